"""`Policy` and `PolicyActor`: act with a published policy; and the policy file format.

A policy file is a safetensors file. The ``avtd3_policy`` entry of its header is a JSON text with
the format version, the policy's version, its number of updates, the spec and the shape of the
network. Its tensors are the actor's weights. Reading one never executes code from it::

    POLICIES/policy-00000012.safetensors   header and weights; never changed once published
    POLICIES/policy-00000012.json          its size and SHA-256
    POLICIES/LATEST.json                   version, file and SHA-256 of the newest policy; replaced

`avtd3.learn.policy_store` writes these files.
"""

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from avtd3.learn.networks import Actor, Encoder, Mlp, NetworkConfig
from avtd3.store import files
from avtd3.store.errors import (
    Avtd3Error,
    CheckpointError,
    ConfigError,
    FormatVersionError,
    SpecError,
)
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import FrameStack, Observation

FORMAT_VERSION = 1
HEADER_KEY = "avtd3_policy"
LATEST = "LATEST.json"
MAX_POLICY_BYTES = 1 << 30
"""Largest policy file that is read."""
MAX_SIDECAR_BYTES = 1 << 16
"""Largest sidecar or `LATEST` file that is read."""
_NAME = re.compile(r"policy-(\d{8,18})\.safetensors")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A policy file, as described by its sidecar or by `LATEST`."""

    version: int
    """Version of the policy, counted from 0 in each directory."""
    file: str
    """Name of the policy file."""
    sha256: str
    """SHA-256 of the policy file, in hexadecimal."""


def policy_name(version: int) -> str:
    """Return the name of the policy file of a version."""
    return f"policy-{version:08d}.safetensors"


def list_versions(directory: Path) -> list[int]:
    """Return the versions whose policy file exists, ascending; none for a missing directory.

    Raises:
        StorageError: If the directory cannot be read.
    """
    with files.storage_errors(directory):
        try:
            names = [path.name for path in directory.iterdir()]
        except FileNotFoundError:
            return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def read_latest(directory: Path) -> PublishedFile | None:
    """Read the `LATEST` file of a policy directory; return None if it does not exist.

    Raises:
        CheckpointError: If the file is truncated or names something outside the directory.
    """
    path = directory / LATEST
    return _read_published(path) if path.exists() else None


def read_header(data: bytes, path: Path) -> dict[str, Any]:
    """Read the JSON document in the header of a policy file.

    Args:
        data: The file's content.
        path: The file, for messages.

    Raises:
        CheckpointError: If it is not a policy file, or a number in it is invalid.
        FormatVersionError: If a later version of avtd3 wrote it.
    """
    size = int.from_bytes(data[:8], "little")
    try:
        document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEADER_KEY])
        format_version = document["format_version"]
        int(document["version"]), int(document["updates"])
        limit = float(document.get("action_limit", 1.0))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a policy of avtd3: no readable {HEADER_KEY} in its header ({error!r})"
        ) from error
    if not 0.0 < limit <= 1.0:
        raise CheckpointError(
            f"policy {path} has the action limit {limit}, expected above 0, at most 1; use an "
            "earlier policy"
        )
    if format_version != FORMAT_VERSION:
        raise FormatVersionError(
            f"policy {path} has format version {format_version}, this avtd3 reads "
            f"{FORMAT_VERSION}; update avtd3"
        )
    return dict(document)


def encode_policy(
    actor: Actor,
    spec: EpisodeSpec,
    config: NetworkConfig,
    *,
    version: int,
    updates: int,
    action_limit: float = 1.0,
) -> bytes:
    """Return the content of a policy file; the same weights give the same bytes."""
    document = {
        "format_version": FORMAT_VERSION,
        "version": version,
        "updates": updates,
        "action_limit": action_limit,
        "spec": spec.to_json(),
        "spec_digest": spec.digest,
        "network": dataclasses.asdict(config),
        "code_version": importlib.metadata.version("avtd3"),
    }
    tensors = {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else None)
        for name, value in actor.state_dict().items()
    }
    return safetensors.torch.save(
        {name: value.contiguous() for name, value in tensors.items()},
        metadata={HEADER_KEY: json.dumps(document, sort_keys=True)},
    )


def _read_network(document: Mapping[str, Any], path: Path) -> tuple[EpisodeSpec, NetworkConfig]:
    """Return the spec and the shape of the network from a header."""
    try:
        spec = EpisodeSpec.from_json(document["spec"])
        fields = dict(document["network"])
        config = NetworkConfig(**fields | {"hidden": tuple(fields["hidden"])})
    except (Avtd3Error, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"policy {path} has an invalid header: {error}") from error
    return spec, config


def _read_verified(path: Path) -> tuple[bytes, str]:
    """Read a policy file and compare it with its sidecar; return its content and SHA-256."""
    data = _read_bounded(path, MAX_POLICY_BYTES)
    sidecar = path.with_suffix(".json")
    expected = _read_published(sidecar).sha256
    actual = files.sha256(data)
    if actual != expected:
        raise CheckpointError(
            f"policy {path} has SHA-256 {actual}, expected {expected} ({sidecar.name}); the file "
            "is truncated or altered: copy it again or publish a new one"
        )
    return data, actual


def _read_published(path: Path) -> PublishedFile:
    data = _read_bounded(path, MAX_SIDECAR_BYTES)
    try:
        document = files.parse_json(data, path)
    except ValueError as error:
        raise CheckpointError(f"{error}; the file is truncated: copy it again") from error
    fields = document if isinstance(document, dict) else {}
    version, file, sha256 = (fields.get(key) for key in ("version", "file", "sha256"))
    if not (
        isinstance(version, int)
        and isinstance(sha256, str)
        and isinstance(file, str)
        and _NAME.fullmatch(file)
    ):
        raise CheckpointError(
            f"{path} does not name a policy, expected the keys version, file and sha256; copy it "
            "again or publish a new policy"
        )
    return PublishedFile(version=version, file=file, sha256=sha256)


def _read_bounded(path: Path, limit: int) -> bytes:
    try:
        return files.read_bytes(path, limit)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; copy the policy together with its .json file"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read a policy: {error}; copy it again") from error


class Policy:
    """An actor for one observation at a time, without exploration noise.

    `act` takes a stack of frames. To act frame by frame through an episode, use `PolicyActor`.

    Args:
        actor: The network, on the CPU; switched to evaluation mode.
        spec: Spec of its observations and actions.
        version: Version in its policy directory.
        updates: Number of gradient updates of its training.
        digest: SHA-256 of its file; empty if unpublished.
        action_limit: Share of each half range of the action that it uses, in (0, 1]; see the guard
            of that name.

    Example:
        >>> import numpy as np
        >>> from avtd3.learn.networks import Actor, NetworkConfig
        >>> from avtd3.store import EpisodeSpec
        >>> spec = EpisodeSpec(vector_names=("speed",), action_names=("pedal",))
        >>> policy = Policy(Actor(spec, NetworkConfig()), spec, version=0, updates=0)
        >>> policy.act(None, np.zeros(1, np.float32)).shape
        (1,)
    """

    def __init__(
        self,
        actor: Actor,
        spec: EpisodeSpec,
        *,
        version: int,
        updates: int,
        digest: str = "",
        action_limit: float = 1.0,
    ) -> None:
        self.spec = spec
        self.version = version
        self.updates = updates
        self.digest = digest
        self.action_limit = action_limit
        low, high = np.array(spec.action_low), np.array(spec.action_high)
        self._centre = ((low + high) / 2.0).astype(np.float32)
        self._actor = SingleActor(actor.eval())

    def __repr__(self) -> str:
        return f"Policy(version={self.version}, updates={self.updates}, digest={self.digest[:12]})"

    def act(
        self, frames: NDArray[np.uint8] | None, vector: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the action for one observation.

        Args:
            frames: uint8 (K*C, H, W), oldest first; None without a camera.
            vector: float32 (V,), normalised; None if the spec has no vector.

        Returns:
            float32 (A,) within the spec's bounds.

        Raises:
            SpecError: If the observation does not have the spec's shape.
            CheckpointError: If the action is not finite.
        """
        self._check(frames, vector)
        action: NDArray[np.float32] = self._actor(
            None if frames is None else torch.from_numpy(frames),
            None if vector is None else torch.from_numpy(vector),
        ).numpy()
        if not np.isfinite(action).all():
            raise CheckpointError(
                f"policy {self.version} returned {action}, expected finite actions; use an earlier "
                "policy"
            )
        if self.action_limit < 1.0:
            action = self._centre + np.float32(self.action_limit) * (action - self._centre)
        return action

    def _check(self, frames: NDArray[np.uint8] | None, vector: NDArray[np.float32] | None) -> None:
        image = None if self.spec.image is None else self.spec.image.observation_shape
        size = (self.spec.vector_size,) if self.spec.vector_size else None
        got = (None if frames is None else frames.shape, None if vector is None else vector.shape)
        if got != (image, size):
            raise SpecError(
                f"observation has frames {got[0]} and vector {got[1]}, expected {image} and "
                f"{size} (spec of policy {self.version})"
            )

    @classmethod
    def load(cls, path: Path | str, *, spec: EpisodeSpec | None = None) -> Self:
        """Read a published policy. The file may come from anywhere: it is verified first.

        Args:
            path: A file ``policy-<version>.safetensors`` beside its ``.json``, or a policy
                directory for its newest policy.
            spec: The spec that the policy must have; None for any.

        Raises:
            CheckpointError: If there is no policy, or the file is truncated, altered or
                inconsistent.
            FormatVersionError: If a later version of avtd3 wrote it.
            SpecError: If it was trained on data of another spec.
        """
        path = Path(path)
        if path.is_dir():
            path = _newest_file(path)
        data, digest = _read_verified(path)
        document = read_header(data, path)
        found, config = _read_network(document, path)
        if spec is not None and found != spec:
            raise SpecError(
                f"policy {path} was trained for another spec ({found.difference(spec)}); use a "
                "policy that was trained on data of this spec"
            )
        try:
            tensors = safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"policy {path} cannot be read: {error}") from error
        actor = _build_actor(found, config, tensors, path)
        return cls(
            actor,
            found,
            version=document["version"],
            updates=document["updates"],
            digest=digest,
            action_limit=document.get("action_limit", 1.0),
        )


class PolicyActor:
    """Act with a policy through an episode: it stacks the camera frames.

    Call `reset` at the start of each episode, then `act` once for each observation.

    Args:
        policy: The policy.

    Example:
        >>> import numpy as np
        >>> from avtd3.learn.networks import Actor, NetworkConfig
        >>> from avtd3.store import EpisodeSpec, ImageSpec, Observation
        >>> spec = EpisodeSpec(image=ImageSpec(stack=4), action_names=("steer",))
        >>> policy = Policy(Actor(spec, NetworkConfig()), spec, version=0, updates=0)
        >>> actor = PolicyActor(policy)
        >>> actor.reset()
        >>> actor.act(Observation(image=np.zeros((1, 84, 84), np.uint8))).shape
        (1,)
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        """The policy; it may be replaced between episodes by another one of the same spec."""
        image = policy.spec.image
        self._stack = None if image is None else FrameStack(image.stack)
        self._is_first = True

    def reset(self) -> None:
        """Start an episode: forget the frames of the previous one."""
        self._is_first = True

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the action for the next observation of the episode.

        Args:
            observation: The newest camera frame and the vector.

        Returns:
            float32 (A,) within the spec's bounds.

        Raises:
            SpecError: If the observation does not have the spec's shape.
            CheckpointError: If the action is not finite.
        """
        image = observation.image
        expected = None if self.policy.spec.image is None else self.policy.spec.image.frame_shape
        if (None if image is None else image.shape) != expected:
            raise SpecError(
                f"observation has image {None if image is None else image.shape}, expected "
                f"{expected} (spec of policy {self.policy.version})"
            )
        frames = None
        if self._stack is not None and image is not None:
            if self._is_first:
                self._stack.reset(image)
            else:
                self._stack.push(image)
            frames = self._stack.stacked()
        self._is_first = False
        return self.policy.act(frames, observation.vector)


def _newest_file(directory: Path) -> Path:
    """Return the newest policy file of a directory: that of `LATEST`, else the highest version."""
    latest = read_latest(directory)
    if latest is not None:
        return directory / latest.file
    versions = list_versions(directory)
    if not versions:
        raise CheckpointError(f"{directory} contains no policy; publish one with avtd3 learn")
    return directory / policy_name(versions[-1])


def _build_actor(
    spec: EpisodeSpec, config: NetworkConfig, tensors: dict[str, Tensor], path: Path
) -> Actor:
    try:
        with torch.device("meta"):  # shapes only: the header may name more than the file contains
            expected = Actor(spec, config).state_dict()
    except (ConfigError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"policy {path} has an invalid header: {error}") from error
    if expected.keys() != tensors.keys():
        names = ", ".join(sorted(expected.keys() ^ tensors.keys()))
        raise CheckpointError(
            f"policy {path}: these tensors are not in both header and file: {names}"
        )
    for name, meta in expected.items():
        value = tensors[name]
        if value.shape != meta.shape or value.dtype != meta.dtype:
            raise CheckpointError(
                f"policy {path}: {name} is {value.dtype} {tuple(value.shape)}, expected "
                f"{meta.dtype} {tuple(meta.shape)} from its header"
            )
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"policy {path}: {name} has values that are not finite")
    actor = Actor(spec, config)
    actor.load_state_dict(tensors)
    return actor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Convolution:
    """A convolution as the product of patches (P, kernel * kernel * C) and a matrix."""

    kernel: int
    stride: int
    weight: Tensor
    """float32 (kernel * kernel * C, C')."""
    bias: Tensor
    """float32 (C',)."""
    norm: nn.GroupNorm | None
    """LayerNorm after the convolution, if any; BatchNorm is part of weight and bias."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return float32 (H', W', C') for a contiguous image (H, W, C)."""
        height, width, channels = image.shape
        rows = (height - self.kernel) // self.stride + 1
        columns = (width - self.kernel) // self.stride + 1
        row = width * channels
        patches = image.as_strided(
            (rows, columns, self.kernel, self.kernel * channels),
            (self.stride * row, self.stride * channels, row, 1),
        )
        flat = patches.reshape(rows * columns, -1)
        x = torch.addmm(self.bias, flat, self.weight)
        if self.norm is not None:
            x = functional.layer_norm(x, x.shape, eps=self.norm.eps)
            x = x * self.norm.weight + self.norm.bias
        return x.view(rows, columns, -1)


class SingleActor:
    """A copy of an actor that is fast for one observation at a time, without gradients.

    Args:
        actor: An actor on the CPU, in evaluation mode.
    """

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._encoder = actor.encoder
        if actor.encoder is not None:
            self._convolutions = _convolutions(actor.encoder)

    @torch.inference_mode()
    def __call__(self, frames: Tensor | None, vector: Tensor | None) -> Tensor:
        """Return the action, float32 (A,).

        Args:
            frames: uint8 (K*C, H, W); None if the actor has no CNN.
            vector: float32 (V,); None if the spec has no vector.
        """
        parts = [] if vector is None else [vector]
        if self._encoder is not None:
            assert frames is not None
            parts.insert(0, self._features(self._encoder, frames))
        state = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._actor.squash(_run(self._actor.head, state))

    def _features(self, encoder: Encoder, frames: Tensor) -> Tensor:
        x = torch.stack(frames.unbind(0), -1).float()  # (H, W, K*C), 0..255
        for convolution in self._convolutions:
            x = encoder.activate(convolution(x))
        return encoder.finish(torch.addmv(encoder.linear.bias, encoder.linear.weight, x.flatten()))


def _run(mlp: Mlp, x: Tensor) -> Tensor:
    for number, layer in enumerate(mlp.layers):
        assert isinstance(layer, nn.Linear)
        x = torch.addmv(layer.bias, layer.weight, mlp.activate(x) if number else x)
    return x


@torch.no_grad()
def _convolutions(encoder: Encoder) -> list[_Convolution]:
    found = []
    for number, (convolution, norm) in enumerate(
        zip(encoder.convolutions, encoder.norms, strict=True)
    ):
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        weight, bias = convolution.weight, convolution.bias
        if number == 0:
            weight, bias = encoder.scaled_first()
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight = weight * scale[:, None, None, None]
            bias = (bias - norm.running_mean) * scale + norm.bias
        found.append(
            _Convolution(
                kernel=convolution.kernel_size[0],
                stride=convolution.stride[0],
                weight=weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(),
                bias=bias.clone(),
                norm=norm if isinstance(norm, nn.GroupNorm) else None,
            )
        )
    return found
