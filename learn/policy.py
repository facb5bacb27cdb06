"""The header of a policy file: what a possibly strange file says of itself, read strictly."""

import dataclasses
import importlib.metadata
import json
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

from avtd3.learn import policy_store as exchange
from avtd3.learn.networks import Actor, Encoder, Mlp, NetworkConfig
from avtd3.store.errors import (
    Avtd3Error,
    CheckpointError,
    ConfigError,
    FormatVersionError,
    SpecError,
)
from avtd3.store.spec import EpisodeSpec

FORMAT_VERSION = 1
HEADER_KEY = "avtd3_policy"


def read_header(data: bytes, path: Path) -> dict[str, Any]:
    """The document in the header of a policy file.

    Raises:
        CheckpointError: It is no policy file, or its numbers are impossible.
        FormatVersionError: A later avtd3 wrote it.
    """
    size = int.from_bytes(data[:8], "little")
    try:
        document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEADER_KEY])
        known = document["format_version"]
        int(document["version"]), int(document["updates"])
        limit = float(document.get("action_limit", 1.0))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a policy of avtd3: no readable {HEADER_KEY} in its header ({error!r})"
        ) from error
    if not 0.0 < limit <= 1.0:
        raise CheckpointError(
            f"policy {path} has the action limit {limit}, expected above 0, at most 1; go back to "
            "an earlier policy"
        )
    if known != FORMAT_VERSION:
        raise FormatVersionError(
            f"policy {path} has format version {known}, this avtd3 reads {FORMAT_VERSION}; "
            "update avtd3"
        )
    return dict(document)


def read_claims(document: Mapping[str, Any], path: Path) -> tuple[EpisodeSpec, NetworkConfig]:
    """The spec and the shape of the networks that a header claims.

    Raises:
        CheckpointError: They cannot be.
    """
    try:
        spec = EpisodeSpec.from_json(document["spec"])
        fields = dict(document["network"])
        config = NetworkConfig(**fields | {"hidden": tuple(fields["hidden"])})
    except (Avtd3Error, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"policy {path} has an impossible header: {error}") from error
    return spec, config


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Convolution:
    """A convolution as a product of patches (P, kernel * kernel * C) with a matrix."""

    kernel: int
    stride: int
    weight: Tensor
    """float32 (kernel * kernel * C, C')."""
    bias: Tensor
    """float32 (C',)."""
    norm: nn.GroupNorm | None
    """LayerNorm that follows, if any; BatchNorm is part of weight and bias."""

    def __call__(self, image: Tensor) -> Tensor:
        """Image float32 (H', W', C') of a contiguous image (H, W, C)."""
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


class DrivingActor:
    """A copy of an actor that takes one observation at a time, without gradients."""

    def __init__(self, actor: Actor) -> None:
        """Copy the weights of an actor on the CPU, in evaluation mode."""
        self._actor = actor
        self._encoder = actor.encoder
        if actor.encoder is not None:
            self._convolutions = _convolutions(actor.encoder)

    @torch.inference_mode()
    def __call__(self, frames: Tensor | None, vector: Tensor | None) -> Tensor:
        """The action, float32 (A,).

        Args:
            frames: uint8 (K*C, H, W), if the actor has a CNN.
            vector: float32 (V,), if the spec has a vector.
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
        weight, bias = (
            encoder.scaled_first()
            if number == 0
            else (
                convolution.weight,
                convolution.bias,
            )
        )
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


class Policy:
    """An actor that drives: one observation in, one action out."""

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
        """Wrap an actor.

        Args:
            actor: The network, on the CPU; switched to evaluation mode.
            spec: What it observes and how it acts.
            version: Number in its policy directory.
            updates: Gradient updates it was trained for.
            digest: SHA-256 of the file it came from; empty if unpublished.
            action_limit: Share of each half range of the action that it uses; the learner may hold
                it back while it is being brought up.
        """
        self.spec = spec
        self.version = version
        self.updates = updates
        self.digest = digest
        self.action_limit = action_limit
        low, high = np.array(spec.action_low), np.array(spec.action_high)
        self._centre = ((low + high) / 2.0).astype(np.float32)
        self._actor = DrivingActor(actor.eval())

    def __repr__(self) -> str:
        return f"Policy(version={self.version}, updates={self.updates}, digest={self.digest[:12]})"

    def act(
        self, frames: NDArray[np.uint8] | None, vector: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """The action in one observation, without exploration noise.

        Args:
            frames: uint8 (K*C, H, W), oldest first; None without a camera.
            vector: float32 (V,), normalised; None if the spec has none.

        Returns:
            float32 (A,) within the spec's bounds.

        Raises:
            SpecError: The observation does not have the spec's shape.
            CheckpointError: The network answered something that is not finite.
        """
        self._check(frames, vector)
        action: NDArray[np.float32] = self._actor(
            None if frames is None else torch.from_numpy(frames),
            None if vector is None else torch.from_numpy(vector),
        ).numpy()
        if not np.isfinite(action).all():
            raise CheckpointError(
                f"policy {self.version} answers {action}, expected finite actions; go back to an "
                "earlier policy"
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
    def load(cls, path: Path, *, spec: EpisodeSpec | None = None) -> Self:
        """Read a published policy, possibly a stranger's.

        Args:
            path: The ``policy-<version>.safetensors`` file, beside its ``.json``.
            spec: The spec it must have; any if None.

        Raises:
            CheckpointError: The file is torn, altered, or holds other tensors than it claims.
            FormatVersionError: A later avtd3 wrote it.
            SpecError: It was trained on other data than `spec` describes.
        """
        data, digest = exchange.read_verified(path)
        document = read_header(data, path)
        found, config = read_claims(document, path)
        if spec is not None and found != spec:
            raise SpecError(
                f"policy {path} was trained for another spec ({found.difference(spec)}); use a "
                "policy trained on such data"
            )
        try:
            tensors = safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"policy {path} cannot be read: {error}") from error
        actor = _build(found, config, tensors, path)
        return cls(
            actor,
            found,
            version=document["version"],
            updates=document["updates"],
            digest=digest,
            action_limit=document.get("action_limit", 1.0),
        )


def encode_policy(
    actor: Actor,
    spec: EpisodeSpec,
    config: NetworkConfig,
    *,
    version: int,
    updates: int,
    action_limit: float = 1.0,
) -> bytes:
    """The bytes of a policy file; the same weights give the same bytes."""
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


class PolicyStore:
    """Where a learner publishes policies and collectors find them.

    One learner may publish at a time; any number of collectors may read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.warning = ""
        """Why the newest policy was not taken; empty unless the last call found that anew."""
        self._warned = ""

    def publish(
        self,
        actor: Actor,
        spec: EpisodeSpec,
        config: NetworkConfig,
        *,
        updates: int,
        action_limit: float = 1.0,
    ) -> int:
        """Publish an actor under the next version, which is returned.

        Raises:
            StorageError: The directory cannot be written.
        """
        published = exchange.publish(
            self.path,
            lambda version: encode_policy(
                actor, spec, config, version=version, updates=updates, action_limit=action_limit
            ),
        )
        return published.version

    def newest_version(self) -> int | None:
        """The highest version in the directory; None if it holds no policy."""
        return max(exchange.versions(self.path), default=None)

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` policies."""
        exchange.prune(self.path, keep)

    def latest(self, spec: EpisodeSpec | None) -> Policy | None:
        """The newest policy that can be read, or None if there is none.

        Raises:
            SpecError: The newest policy was trained for another spec.
        """
        policy = self.poll(None, spec)
        if policy is not None:
            return policy
        for version in reversed(exchange.versions(self.path)):
            try:
                return Policy.load(self.path / exchange.policy_name(version), spec=spec)
            except (CheckpointError, FormatVersionError) as error:
                self._warn(error)
        return None

    def poll(self, current: Policy | None, spec: EpisodeSpec | None) -> Policy | None:
        """The policy that `LATEST.json` names if it is another than `current`, else `current`.

        Cheap enough to call between episodes: one small file is read. When the newest policy is
        torn, the answer is `current` and `warning` says why, once.

        Raises:
            SpecError: The newest policy was trained for another spec.
        """
        self.warning = ""
        try:
            latest = exchange.read_latest(self.path)
            if latest is not None and (current is None or latest.sha256 != current.digest):
                current = Policy.load(self.path / latest.file, spec=spec)
            self._warned = ""
        except (CheckpointError, FormatVersionError) as error:
            self._warn(error)
        return current

    def _warn(self, error: Avtd3Error) -> None:
        if str(error) != self._warned:
            self.warning = self._warned = str(error)


def _build(
    spec: EpisodeSpec, config: NetworkConfig, tensors: dict[str, Tensor], path: Path
) -> Actor:
    try:
        with torch.device("meta"):  # shapes only: a header may claim more than the file holds
            expected = Actor(spec, config).state_dict()
    except (ConfigError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"policy {path} has an impossible header: {error}") from error
    if expected.keys() != tensors.keys():
        names = ", ".join(sorted(expected.keys() ^ tensors.keys()))
        raise CheckpointError(f"policy {path} lacks or has beyond its header the tensors {names}")
    for name, want in expected.items():
        got = tensors[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise CheckpointError(
                f"policy {path}: {name} is {got.dtype} {tuple(got.shape)}, expected {want.dtype} "
                f"{tuple(want.shape)} from its header"
            )
        if not bool(torch.isfinite(got).all()):
            raise CheckpointError(f"policy {path}: {name} holds numbers that are not finite")
    actor = Actor(spec, config)
    actor.load_state_dict(tensors)
    return actor
