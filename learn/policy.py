"""`Policy` and `PolicyActor`: act with a published policy; and the policy file format.

A policy file is a safetensors file. The ``avtd3_policy`` entry of its header is a JSON text with
the format version, the policy's version, its number of updates, the spec and the shape of the
network. Its tensors are the actor's weights. Reading one never executes code from it, and allocates
nothing before the header fits the limits below and the size of the file::

    POLICIES/policy-00000012.json          its size and SHA-256, and the id of the run
    POLICIES/policy-00000012.safetensors   header and weights; never changed once published
    POLICIES/LATEST.json                   the same of the newest policy; replaced

`avtd3.learn.policy_store` writes these files.
"""

import dataclasses
import functools
import importlib.metadata
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeGuard

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from avtd3.learn.networks import (
    Actor,
    Encoder,
    Mlp,
    NetworkConfig,
    ObservationBatch,
    encoders_of,
    evaluating,
    to_pixels,
)
from avtd3.store import files
from avtd3.store.errors import (
    CheckpointError,
    ConfigError,
    FormatVersionError,
    SpecError,
    UnreadableError,
    abbreviate,
)
from avtd3.store.spec import IMAGE, MAX_AXIS, EpisodeSpec
from avtd3.store.step import FrameStack, Observation

FORMAT_VERSION = 2
"""Newest version. Policies whose frames are stacked one after another are written as version 1."""
HEADER_KEY = "avtd3_policy"
LATEST = "LATEST.json"
MAX_POLICY_BYTES, MAX_SIDECAR_BYTES = 1 << 30, 1 << 16
MAX_HEADER_BYTES = 4 << 20  # a spec with all the names that it may have takes 1 MB
MAX_TENSORS = 1_000  # the deepest network has about 150
MAX_COUNT = 10**18 - 1
"""Largest version and number of updates: 18 digits, as in the name of the file."""
_NAME = re.compile(r"policy-(\d{8}|[1-9]\d{8,17})\.(safetensors|json)")
_PROBES = 32
"""Observations to which an actor must answer before it is published."""
_LISTED = 5
"""Names of tensors that a message lists."""
_ROUNDING = 1e-5
"""How far an action may exceed a bound, in half ranges, because of rounding."""
_INPUTS = ("actor_inputs", "critic_inputs")
_OF_TRAINING = ("critic_norm", "shared_encoder", "vector_statistics", *_INPUTS)
"""Settings of the networks that an actor does not need to drive."""
_DTYPES = {torch.float32: "F32", torch.int64: "I64"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A policy file, as described by its sidecar or by `LATEST`."""

    version: int
    file: str
    """Name of the policy file."""
    sha256: str
    run: str = ""
    """Id of the run that published it; empty if an older version did."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyHeader:
    """The header of a policy file; `spec` is that of what the actor sees."""

    version: int
    updates: int
    action_limit: float
    stack_stride: int
    spec: EpisodeSpec
    network: NetworkConfig


def policy_name(version: int) -> str:
    """Return the name of the policy file of a version."""
    return f"policy-{version:08d}.safetensors"


def list_versions(directory: Path, *, whole: bool = True) -> list[int]:
    """Return the versions in a directory, ascending; only `whole` ones have both files."""
    try:
        names = files.list_directory(directory)[1]
    except OSError as error:
        if not files.is_passing(error):
            return []
        raise unreadable(directory, error) from error
    found = {kind: set[int]() for kind in ("safetensors", "json")}
    for name in names:
        if match := _NAME.fullmatch(name):
            found[match[2]].add(int(match[1]))
    weights, sidecars = found.values()
    return sorted(weights & sidecars if whole else weights | sidecars)


def read_latest(directory: Path) -> PublishedFile | None:
    """Read the `LATEST` file of a policy directory; return None if it does not exist."""
    try:
        return read_published(directory / LATEST)
    except CheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_header(data: bytes, path: Path) -> PolicyHeader:
    """Read and check the header of a policy file, and compare it with the size of the file."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a policy of avtd3: its header has {size} bytes, expected at most "
            f"{MAX_HEADER_BYTES}"
        )
    try:
        tensors = json.loads(data[8 : 8 + size])
        document = json.loads(tensors.pop("__metadata__")[HEADER_KEY])
        found = document.get("format_version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a policy of avtd3: no readable {HEADER_KEY} in its header "
            f"({abbreviate(error)})"
        ) from error
    if _is_count(found) and found > FORMAT_VERSION:
        raise FormatVersionError(
            f"policy {path} has format version {found}, this avtd3 reads {FORMAT_VERSION}; update "
            "avtd3"
        )
    header = _check_header(document, path)
    _check_tensors(header, tensors, len(data), path)
    return header


def _check_header(document: Mapping[str, Any], path: Path) -> PolicyHeader:
    limit = document.get("action_limit", 1.0)
    for name in ("format_version", "version", "updates"):
        if not _is_count(document.get(name)):
            raise _invalid(path, name, document.get(name), f"a whole number 0..{MAX_COUNT}")
    if type(limit) not in (int, float) or not 0.0 < limit <= 1.0:
        raise _invalid(path, "action_limit", limit, "a number above 0, at most 1")
    stride = document.get("stack_stride", 1)
    if type(stride) is not int or not 1 <= stride <= MAX_AXIS:
        raise _invalid(path, "stack_stride", stride, f"a whole number 1..{MAX_AXIS}")
    fields = document.get("network")
    known = {field.name for field in dataclasses.fields(NetworkConfig)}.difference(_INPUTS)
    if not isinstance(fields, dict) or not isinstance(fields.get("hidden"), list):
        raise _invalid(path, "network", fields, "an object with a list of widths, hidden")
    if fields.keys() - known:
        raise _invalid(path, "network", fields, f"no keys except {', '.join(sorted(known))}")
    try:
        spec = EpisodeSpec.from_json(document.get("spec"))
        network = NetworkConfig(**fields | {"hidden": tuple(fields["hidden"])})
    except (SpecError, ConfigError) as error:
        raise CheckpointError(f"policy {path}: {error}") from error
    counts = {name: document[name] for name in ("version", "updates")}
    counts["stack_stride"] = stride
    return PolicyHeader(**counts, action_limit=float(limit), spec=spec, network=network)


def _check_tensors(header: PolicyHeader, tensors: Mapping[str, Any], size: int, path: Path) -> None:
    """Compare the tensors that a file claims to hold with those of its network."""
    if len(tensors) > MAX_TENSORS:
        raise _invalid(path, "number of tensors", len(tensors), f"at most {MAX_TENSORS}")
    try:
        with torch.device("meta"):  # shapes only, no memory
            expected = Actor(header.spec, header.network).state_dict()
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(f"policy {path}: {error}") from error
    needed = sum(value.numel() * value.element_size() for value in expected.values())
    if needed > size:
        raise CheckpointError(
            f"policy {path}: the weights of its network take {needed} bytes, expected at most "
            f"{size}, the size of the file; copy it again"
        )
    if expected.keys() != tensors.keys():
        names = sorted(expected.keys() ^ tensors.keys())
        listed = ", ".join(abbreviate(name) for name in names[:_LISTED])
        raise CheckpointError(
            f"policy {path}: {len(names)} tensors are not in both network and file: {listed}"
        )
    for name, meta in expected.items():
        wanted = {"dtype": _DTYPES[meta.dtype], "shape": list(meta.shape)}
        entry = tensors[name] if isinstance(tensors[name], dict) else {}
        given = {key: entry.get(key) for key in wanted}
        if given != wanted:
            raise _invalid(path, name, given, f"{wanted} from its network")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _invalid(path: Path, field: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"policy {path}: {field} is {abbreviate(value)}, expected {expected}; use another policy"
    )


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """Return the error that says that a path cannot be read now."""
    return UnreadableError(
        f"{path} is unreadable now ({error.strerror or error}), which says nothing about its data; "
        "check the disk, the mount and the permissions, then try again"
    )


def encode_policy(actor: Actor, header: PolicyHeader) -> bytes:
    """Return the content of a policy file; the same weights give the same bytes."""
    # Without the default encoder, versions from before the setting read the file.
    skipped = {*_OF_TRAINING, *(["encoder"] if header.network.encoder == "auto" else ())}
    shape = dataclasses.asdict(header.network)
    document = {
        "format_version": 1 if header.stack_stride == 1 else FORMAT_VERSION,
        "version": header.version,
        "updates": header.updates,
        "action_limit": header.action_limit,
        "spec": header.spec.to_json(),
        "spec_digest": header.spec.digest,
        "network": {k: v for k, v in shape.items() if k not in skipped},
        "code_version": importlib.metadata.version("avtd3"),
        **({} if header.stack_stride == 1 else {"stack_stride": header.stack_stride}),
    }
    tensors = {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else None)
        for name, value in actor.folded_state().items()
    }
    return safetensors.torch.save(
        {name: value.contiguous() for name, value in tensors.items()},
        metadata={HEADER_KEY: json.dumps(document, sort_keys=True)},
    )


def _read_verified(path: Path) -> tuple[bytes, str]:
    """Read a policy file and compare it with its sidecar; return its content and SHA-256."""
    sidecar = path.with_suffix(".json")
    expected = read_published(sidecar).sha256
    data = _read(path, MAX_POLICY_BYTES)
    actual = files.sha256(data)
    if actual != expected:
        raise CheckpointError(
            f"policy {path} has SHA-256 {actual}, expected {abbreviate(expected)} "
            f"({sidecar.name}); the file is truncated or altered: copy it again or publish a new "
            "one"
        )
    return data, actual


def read_published(path: Path) -> PublishedFile:
    """Read a sidecar or `LATEST` file; raise `CheckpointError` if it is none."""
    data = _read(path, MAX_SIDECAR_BYTES)
    try:
        document = files.parse_json(data, path)
    except ValueError as error:
        raise CheckpointError(f"{error}; the file is truncated: copy it again") from error
    fields = document if isinstance(document, dict) else {}
    version, file, sha256 = (fields.get(key) for key in ("version", "file", "sha256"))
    run = fields.get("run", "")
    if not (
        _is_count(version)
        and isinstance(sha256, str)
        and isinstance(run, str)
        and isinstance(file, str)
        and (match := _NAME.fullmatch(file))
        and match[2] == "safetensors"
    ):
        raise CheckpointError(
            f"{path} does not name a policy, expected the keys version, file and sha256; copy it "
            "again or publish a new policy"
        )
    return PublishedFile(version=version, file=file, sha256=sha256, run=run)


def _read(path: Path, limit: int) -> bytes:
    try:
        return files.read_bytes(path, limit)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; copy the policy together with its .json file"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"cannot read a policy: {error}; copy it again") from error
    except OSError as error:
        if files.is_passing(error):
            raise unreadable(path, error) from error
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
        stack_stride: Decisions between two frames of its stack.

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
        stack_stride: int = 1,
    ) -> None:
        self.spec = spec
        self.version = version
        self.updates = updates
        self.digest = digest
        self.action_limit = action_limit
        self.stack_stride = stack_stride
        low, high = np.array(spec.action_low), np.array(spec.action_high)
        self._centre = ((low + high) / 2.0).astype(np.float32)
        self.actor = actor.eval()
        """The network; `act` does the same, faster."""
        self._actor = SingleActor(actor)

    def __repr__(self) -> str:
        return f"Policy(version={self.version}, updates={self.updates}, digest={self.digest[:12]})"

    def act(
        self,
        frames: NDArray[np.uint8] | Mapping[str, NDArray[np.uint8]] | None,
        vector: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return the action for one observation.

        Args:
            frames: uint8 (K*C, H, W), oldest first; such by name if the spec has several streams;
                None without a camera.
            vector: float32 (V,), normalised; None if the spec has no vector.

        Returns:
            float32 (A,) within the spec's bounds.

        Raises:
            SpecError: If the observation does not have the spec's shape, or another type.
            CheckpointError: If the action is not finite.
        """
        if frames is None or isinstance(frames, np.ndarray):
            only = next(iter(self.spec.images), IMAGE)
            frames = {} if frames is None else {only: frames}
        self._check(frames, vector)
        action: NDArray[np.float32] = self._actor(
            [torch.from_numpy(frames[name]) for name in self.spec.images],
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

    def _check(
        self, frames: Mapping[str, NDArray[np.uint8]], vector: NDArray[np.float32] | None
    ) -> None:
        shapes = {name: image.observation_shape for name, image in self.spec.images.items()}
        size = (self.spec.vector_size,) if self.spec.vector_size else None
        found = {name: stack.shape for name, stack in frames.items()}
        got = None if vector is None else vector.shape
        if (found, got) != (shapes, size):
            raise SpecError(
                f"observation has frames {_only(found)} and vector {got}, expected {_only(shapes)} "
                f"and {size} (spec of policy {self.version})"
            )
        is_single = vector is None or vector.dtype == np.float32
        if not is_single or any(stack.dtype != np.uint8 for stack in frames.values()):
            types = [str(stack.dtype) for stack in frames.values()]
            types += [] if vector is None else [str(vector.dtype)]
            raise SpecError(
                f"observation has numbers of the types {', '.join(types)}, expected frames of "
                "uint8 and a vector of float32; convert them"
            )

    @classmethod
    def load(cls, path: Path | str, *, spec: EpisodeSpec | None = None) -> Self:
        """Read a published policy. The file may come from anywhere: it is verified first.

        Args:
            path: A file ``policy-<version>.safetensors`` beside its ``.json``, or a policy
                directory for its newest policy.
            spec: The spec of the observations to act on, which may have more streams; None for any.
                See `fit_spec`.

        Raises:
            CheckpointError: If there is no policy, or the file is truncated, altered or
                inconsistent.
            UnreadableError: If it cannot be read now.
            FormatVersionError: If a later version of avtd3 wrote it.
            SpecError: If it was trained on data of another spec.
        """
        files.check_local(path)
        path = Path(path)
        if path.is_dir():
            path = _newest_file(path)
        data, digest = _read_verified(path)
        header = read_header(data, path)
        if spec is not None and fit_spec(header.spec, spec) is None:
            lack = spec.lacks(header.spec)
            raise SpecError(
                f"policy {path} was trained for another spec ({lack}); use a policy that was "
                "trained on data of this spec, or on some of its streams, or give the world what "
                "the policy sees (named streams: SECTION.road.streams, see docs/streams.md)"
            )
        try:
            tensors = safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f"policy {path} cannot be read: {abbreviate(error)}; copy it again"
            ) from error
        for name, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise CheckpointError(f"policy {path}: {name} has values that are not finite")
        actor = Actor(header.spec, header.network)
        actor.load_state_dict(tensors)
        names = ("spec", "version", "updates", "action_limit", "stack_stride")
        return cls(actor, **{name: getattr(header, name) for name in names}, digest=digest)


class Fit(NamedTuple):
    """How a policy acts on the observations of a spec."""

    steps: int
    """Steps for which it holds each action."""
    columns: tuple[int, ...] | None
    """Places in the vector of the numbers that it sees; None if it sees all."""


def fit_spec(policy: EpisodeSpec, spec: EpisodeSpec) -> Fit | None:
    """Return how a policy of a spec acts on observations of another one; None if it cannot.

    It may see fewer numbers of the vector and fewer streams, and decide once in several control
    periods.
    """
    if policy.streams and policy.streams.keys() <= spec.streams.keys():
        spec = spec.select(list(policy.streams))
    steps = max(1, round(policy.control_period_s / spec.control_period_s))
    is_multiple = math.isclose(steps * spec.control_period_s, policy.control_period_s)
    scales = dict(zip(spec.vector_names, spec.vector_scales, strict=True))
    seen = zip(policy.vector_names, policy.vector_scales, strict=True)
    if not is_multiple or any(scales.get(name) != scale for name, scale in seen):
        return None
    same = dataclasses.replace(
        policy,
        vector_names=spec.vector_names,
        vector_scales=spec.vector_scales,
        control_period_s=spec.control_period_s,
    )
    if same != spec:
        return None
    columns = tuple(spec.vector_names.index(name) for name in policy.vector_names)
    return Fit(steps, None if policy.vector_names == spec.vector_names else columns)


class PolicyActor:
    """Act with a policy through an episode: it stacks the camera frames.

    Call `reset` at the start of each episode, then `act` once for each observation.

    Args:
        policy: The policy.
        spec: Spec of the observations, whose vector may have more numbers than the policy sees;
            None for the policy's own.

    Raises:
        SpecError: If the policy cannot act on these observations, see `fit_spec`.

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

    def __init__(self, policy: Policy, spec: EpisodeSpec | None = None) -> None:
        self.policy = policy
        """The policy; it may be replaced between episodes by another one of the same spec."""
        fit = fit_spec(policy.spec, spec or policy.spec)
        if fit is None:
            difference = policy.spec.difference(spec or policy.spec)
            raise SpecError(f"policy {policy.version} has another spec ({difference})")
        self._columns = fit.columns
        self._stacks = {
            name: FrameStack(image.stack, image.stride * policy.stack_stride)
            for name, image in policy.spec.images.items()
        }
        self._is_first = True

    def reset(self) -> None:
        """Start an episode: forget the frames of the previous one."""
        self._is_first = True

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the action, float32 (A,), for the newest camera frame and vector of the episode.

        Raises:
            SpecError: If the observation does not have the spec's shape.
            CheckpointError: If the action is not finite.
        """
        images, version = observation.images, self.policy.version
        for name, image in self.policy.spec.images.items():
            frame = images.get(name)
            if (found := None if frame is None else frame.shape) != image.frame_shape:
                raise SpecError(
                    f"observation has {name} {found}, expected {image.frame_shape} (spec of policy "
                    f"{version})"
                )
        if observation.image is not None and not self._stacks:
            raise SpecError(
                f"observation has image {observation.image.shape}, expected None (spec of policy "
                f"{version})"
            )
        stacks = {name: self._push(name, images[name]) for name in self._stacks}
        self._is_first = False
        vector = observation.vector
        if self._columns is not None and vector is not None:
            vector = vector[list(self._columns)] if self._columns else None
        several = len(stacks) > 1
        return self.policy.act(stacks if several else next(iter(stacks.values()), None), vector)

    def _push(self, name: str, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        stack = self._stacks[name]
        if self._is_first:
            stack.reset(frame)
        else:
            stack.push(frame)
        return stack.stacked()


def _only(shapes: Mapping[str, tuple[int, ...]]) -> object:
    """Return what a message shows of the shapes of frames by stream."""
    return dict(shapes) if len(shapes) > 1 else next(iter(shapes.values()), None)


def _newest_file(directory: Path) -> Path:
    """Return the newest policy file of a directory: that of `LATEST`, else the highest version."""
    if (latest := read_latest(directory)) is not None:
        return directory / latest.file
    if versions := list_versions(directory):
        return directory / policy_name(versions[-1])
    raise CheckpointError(
        f"{directory} contains no policy; give the directory that avtd3 learn publishes into, such "
        "as RUN/policies"
    )


def sample_observations(spec: EpisodeSpec, device: torch.device) -> ObservationBatch:
    """Return noise, the same each time, for `find_fault` before there are data."""
    generator = torch.Generator().manual_seed(0)
    vector, parts = None, []
    for image in spec.images.values():
        shape = (_PROBES, *image.observation_shape)
        parts.append(torch.randint(0, 256, shape, generator=generator).float().to(device))
    if spec.vector_size:
        vector = torch.randn(_PROBES, spec.vector_size, generator=generator).to(device)
    return ObservationBatch(pixels=tuple(parts), vector=vector)


@torch.no_grad()
def find_fault(actor: Actor, observation: ObservationBatch) -> str:
    """Return why an actor must not be published; empty if nothing is wrong with it."""
    for name, value in actor.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            return f"{name} has values that are not finite"
    with evaluating(actor):
        action = actor(observation.first(_PROBES))
    distance = float(((action - actor.action_centre).abs() / actor.action_scale).max())
    if not math.isfinite(distance):
        return f"it answers actions that are not finite to {len(action)} observations of its data"
    if distance > 1.0 + _ROUNDING:
        return f"its actions exceed the bounds of the spec, by up to {distance - 1.0:.1%}"
    return ""


class _Convolution(NamedTuple):
    """A convolution as the product of patches (P, kernel * kernel * C) and a matrix."""

    kernel: int
    stride: int
    weight: Tensor  # float32 (kernel * kernel * C, C')
    bias: Tensor  # float32 (C',)
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
    """A copy of an actor that is fast for one observation at a time, without gradients."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._encoders = [
            _nature(encoder)
            if isinstance(encoder, Encoder)
            else functools.partial(_encode_other, encoder)
            for encoder in encoders_of(actor.encoder)
        ]

    @torch.inference_mode()
    def __call__(self, frames: Sequence[Tensor], vector: Tensor | None) -> Tensor:
        """Return the action, float32 (A,), for frames uint8 (K*C, H, W) and a vector (V,)."""
        parts = [encode(each) for encode, each in zip(self._encoders, frames, strict=True)]
        if vector is not None:
            parts.append(self._actor.normalise(self._actor.seen(vector)))
        state = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._actor.squash(_run(self._actor.head, state))


def _nature(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """Return a function from one stack of frames, uint8 (K*C, H, W), to features (F,)."""
    convolutions = _convolutions(encoder)

    def encode(frames: Tensor) -> Tensor:
        x = torch.stack(frames.unbind(0), -1).float()  # (H, W, K*C), 0..255
        for convolution in convolutions:
            x = encoder.activate(convolution(x))
        return encoder.finish(torch.addmv(encoder.linear.bias, encoder.linear.weight, x.flatten()))

    return encode


def _encode_other(encoder: nn.Module, frames: Tensor) -> Tensor:
    """Return features (F,) of frames uint8 (K*C, H, W)."""
    features: Tensor = encoder(to_pixels(frames[None], torch.float32))
    return features[0]


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
