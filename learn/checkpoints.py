"""Checkpoints: everything that a run needs to continue as if it had never stopped.

::

    RUN/checkpoints/update-000002000/tensors.safetensors   networks, targets, Adam, random state
    RUN/checkpoints/update-000002000/checkpoint.json       counters, sampler, settings, digest
    RUN/checkpoints/best.json                              the best checkpoint and its metric
    RUN/rolled-back/001/update-...                         checkpoints after one that was restored
    RUN/emergency/update-...                               states at which a guard stopped the run

A checkpoint is written to a temporary directory, flushed to disk and renamed. Reading one never
executes code from it. `CheckpointManager` keeps the newest checkpoints, milestones, the last good
one (see `GuardMonitor.mark_checkpoint`) and the best by a metric. Rolling back deletes nothing.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avtd3.learn.config import LearnConfig
from avtd3.learn.metrics import HIGHER, metric
from avtd3.learn.policy import unreadable
from avtd3.learn.td3 import TD3State
from avtd3.store import files
from avtd3.store.errors import (
    Avtd3Error,
    CheckpointError,
    FormatVersionError,
    SpecError,
    abbreviate,
)
from avtd3.store.spec import EpisodeSpec

FORMAT_VERSION = 1
MAX_CHECKPOINT_BYTES = 8 << 30
"""Largest tensor file that is read."""
TENSORS, DOCUMENT = "tensors.safetensors", "checkpoint.json"
CHECKPOINTS, ROLLED_BACK, EMERGENCY, BEST = "checkpoints", "rolled-back", "emergency", "best.json"
_NAME = re.compile(r"update-(\d{9,18})")
_NETWORKS = ("actor", "critic", "actor_target", "critic_target")
_NOISE = "noise"
_REPLACED = ".replaced"
"""Suffix of a checkpoint while another one of the same name is written."""
_SAMPLER = "sampler/"
"""Prefix of the names of the sampler's arrays."""
_NOT_FINITE = ("nan", "inf", "-inf")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_EMERGENCIES_KEPT = 3


def as_json(value: Any) -> Any:  # noqa: ANN401 - records of any kind
    """Return a record of a run's state as JSON; numbers that are not finite become text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_as(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401 - as the kind says
    """Read what `as_json` returned; every number, text and container must have its type."""
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (origin is types.UnionType and value is None):
        return value
    if origin is types.UnionType:
        exact = [each for each in kinds if type(value) is each]
        return read_as((exact or kinds)[0], value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _read_record(kind, value, where)
    if origin is dict and isinstance(value, dict):
        return {k: read_as(kinds[1], item, f"{where}.{abbreviate(k)}") for k, item in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        is_pair = origin is tuple and kinds[-1] is not Ellipsis  # of values of their own kinds
        of = kinds if is_pair else kinds[:1] * len(value)
        if len(of) == len(value):
            return origin(read_as(k, item, where) for k, item in zip(of, value, strict=True))
    return _read_scalar(kind, value, where)


def _read_record(kind: Any, value: Mapping[str, Any], where: str) -> Any:  # noqa: ANN401 - as above
    hints = typing.get_type_hints(kind)
    given = {
        field.name: read_as(hints[field.name], value[field.name], f"{where}.{field.name}")
        for field in dataclasses.fields(kind)
        if field.name in value
    }
    try:
        return kind(**given)
    except TypeError as error:  # a field without a default is missing
        raise CheckpointError(f"{where}: {error}; resume from another checkpoint") from error


def _read_scalar(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - as above
    is_small = not isinstance(value, int) or abs(value) < 1 << 63
    if kind is float and (type(value) in (int, float) or value in _NOT_FINITE) and is_small:
        return float(value)
    if type(value) is kind and is_small:
        return value
    name = kind.__name__ if isinstance(kind, type) else kind
    raise CheckpointError(
        f"{where} is {abbreviate(value)}, expected {name}; resume from another checkpoint"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMetadata:
    """Everything in a checkpoint except the tensors of the networks and optimisers."""

    updates: int
    spec_digest: str
    sampler: dict[str, Any]
    """What `Sampler.state` returned, including a digest of its segments."""
    arrays: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    """What `Sampler.arrays` returned; stored with the tensors."""
    config: dict[str, Any]
    """Resolved settings of the run."""
    seconds: float
    """Wall-clock time that the run has trained for, over all its processes."""
    guards: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What `GuardMonitor.state` returned; empty in checkpoints older than the guards."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What `MetricLogger.state` returned; empty in older checkpoints."""
    episodes_logged: bool = False
    """Whether the metrics of all episodes in the data have been logged."""
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `Best`; empty if no best checkpoint is kept."""

    def document(self) -> dict[str, Any]:
        """Return the metadata without the arrays, as JSON values."""
        return {key: getattr(self, name) for name, key in _keys().items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], path: Path) -> Self:
        """Read a document; raise `CheckpointError` if a key is missing or invalid."""
        kinds = typing.get_type_hints(cls)
        given = {
            name: read_as(kinds[name], document[key], f"checkpoint {path}: {key}")
            for name, key in _keys().items()
            if key in document
        }
        try:
            return cls(**given)
        except TypeError as error:
            raise _invalid(path, f"{DOCUMENT} is incomplete ({error})") from error


def _keys() -> dict[str, str]:
    """Return the key in the document of each field of the metadata except the arrays."""
    renamed = {"metrics": "gathered", "episodes_logged": "episodes_told"}
    names = [field.name for field in dataclasses.fields(CheckpointMetadata)]
    return {name: renamed.get(name, name) for name in names if name != "arrays"}


def save_checkpoint(
    directory: Path, state: TD3State, noise: torch.Generator, metadata: CheckpointMetadata
) -> Path:
    """Write a checkpoint: it is either complete on disk under its name, or absent."""
    path = directory / f"update-{metadata.updates:09d}"
    temporary = directory / f".{path.name}.{os.getpid()}.tmp"
    data = state_bytes(state, noise, metadata.arrays)
    document = {
        "format_version": FORMAT_VERSION,
        "code_version": importlib.metadata.version("avtd3"),
        "tensors": {"file": TENSORS, "size": len(data), "sha256": files.sha256(data)},
        **metadata.document(),
    }
    with files.storage_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(".update-*.tmp"):  # left by a process that was killed
            files.remove_tree(stale)
        temporary.mkdir()
        files.write_new(temporary / TENSORS, data)
        files.write_new(temporary / DOCUMENT, files.canonical_json(document))
        files.fsync_directory(temporary)
        replaced = directory / f".{path.name}{_REPLACED}"
        if path.exists() and not files.move_directory(path, replaced):  # the run rolled back to it
            files.remove_tree(path)
        temporary.rename(path)
        files.fsync_directory(directory)
        files.remove_tree(replaced)
    return path


def state_bytes(
    state: TD3State, noise: torch.Generator, arrays: Mapping[str, NDArray[Any]]
) -> bytes:
    """Return the networks, the optimisers, the random state and the arrays of a sampler."""
    tensors = _tensors_of(state) | {_NOISE: noise.get_state()}
    tensors |= {_SAMPLER + name: torch.from_numpy(array) for name, array in arrays.items()}
    return safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    )


def load_state(
    data: bytes, state: TD3State, noise: torch.Generator | None, path: Path
) -> dict[str, NDArray[Any]]:
    """Load what `state_bytes` returned, in place; return the arrays of a sampler.

    Without `noise`, ignore the random state, which only a generator on the run's device can take.
    """
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise _invalid(path, f"{TENSORS} cannot be read ({error})") from error
    arrays = {
        name.removeprefix(_SAMPLER): tensors.pop(name).numpy()
        for name in sorted(tensors)
        if name.startswith(_SAMPLER)
    }
    if noise is None:
        tensors.pop(_NOISE, None)
    _restore(state, noise, tensors, path)
    return arrays


def fix_replaced(directory: Path) -> None:
    """Repair a directory of checkpoints after a kill while a checkpoint was replaced."""
    with files.storage_errors(directory):
        for replaced in directory.glob(f".update-*{_REPLACED}"):
            path = directory / replaced.name.removeprefix(".").removesuffix(_REPLACED)
            if path.exists() or not files.move_directory(replaced, path):
                files.remove_tree(replaced)


def load_checkpoint(
    path: Path, state: TD3State, noise: torch.Generator | None
) -> CheckpointMetadata:
    """Load a checkpoint into networks and optimisers of the same settings; see `load_state`."""
    document = _read_document(path)
    try:
        expected = document["tensors"]["sha256"]
        data = files.read_bytes(path / TENSORS, MAX_CHECKPOINT_BYTES)
    except OSError as error:
        raise _not_read(path, TENSORS, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid(path, f"its tensors cannot be read ({error})") from error
    if files.sha256(data) != expected:
        raise _invalid(path, f"the SHA-256 of {TENSORS} differs from the one in {DOCUMENT}")
    metadata = CheckpointMetadata.from_json(document, path)
    arrays = load_state(data, state, noise, path)
    state.updates = metadata.updates
    return dataclasses.replace(metadata, arrays=arrays)


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints in a directory, oldest first; none if it does not exist."""
    with contextlib.suppress(FileNotFoundError):
        found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=updates_of)
    return []


def updates_of(path: Path) -> int:
    """Return the number of updates of a checkpoint, from its name."""
    return int(path.name.removeprefix("update-"))


def prune_checkpoints(directory: Path, keep: int, milestones: Sequence[int | None]) -> None:
    """Remove all checkpoints except the newest `keep` and those at milestones."""
    for path in list_checkpoints(directory)[: -max(keep, 1)]:
        if updates_of(path) not in milestones:
            files.remove_tree(path)


def _tensors_of(state: TD3State) -> dict[str, Tensor]:
    """Return every tensor of the state, not a copy, by its name in the file."""
    tensors = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    for name in _NETWORKS:
        network: nn.Module = getattr(state, name)
        # the critics' tensors include those of an encoder that the actor shares
        skipped = "encoder." if state.shares_encoder and name.startswith("actor") else "/"
        tensors |= {
            f"{name}/{key}": value
            for key, value in network.state_dict().items()
            if not key.startswith(skipped)
        }
    if state.value_range is not None:
        tensors["value_range"] = state.value_range
    for prefix, parameter, optimizer in _parameters_of(state):
        if parameter in optimizer.state:  # not before the first step
            moments = optimizer.state[parameter]
            tensors |= {prefix + moment: moments[moment] for moment in _MOMENTS}
    return tensors


def _parameters_of(state: TD3State) -> Iterator[tuple[str, nn.Parameter, torch.optim.Adam]]:
    """Yield the prefix of the names of its moments, the parameter, and its optimiser.

    The numbers are those of the network, so that a run may continue with another weight decay.
    """
    for name, (network, optimizer) in state.networks().items():
        for number, p in enumerate(network.mlp_parameters() + network.encoder_parameters()):
            yield f"{name}_optimizer/{number}/", p, optimizer


def _restore(
    state: TD3State, noise: torch.Generator | None, tensors: dict[str, Tensor], path: Path
) -> None:
    for prefix, p, optimizer in _parameters_of(state):
        if f"{prefix}step" in tensors:  # Adam has no moments before the first step
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
    targets = _tensors_of(state) | ({} if noise is None else {_NOISE: noise.get_state()})
    if targets.keys() != tensors.keys():
        names = ", ".join(sorted(targets.keys() ^ tensors.keys())[:5])
        raise CheckpointError(
            f"checkpoint {path} has other networks than the settings (not in both: {names} ...); "
            "resume with the settings of the run"
        )
    for name, target in targets.items():
        found = tensors[name]
        if target.shape != found.shape or target.dtype != found.dtype:
            raise CheckpointError(
                f"checkpoint {path}: {name} is {found.dtype} {tuple(found.shape)}, expected "
                f"{target.dtype} {tuple(target.shape)}; resume with the settings of the run"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    if noise is not None:
        noise.set_state(tensors[_NOISE])


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = files.read_json(path / DOCUMENT)
    except OSError as error:
        raise _not_read(path, DOCUMENT, error) from error
    except ValueError as error:
        raise _invalid(path, f"{DOCUMENT} cannot be read ({error})") from error
    if not isinstance(document, dict):
        raise _invalid(path, f"{DOCUMENT} is not a JSON object")
    if document.get("format_version") != FORMAT_VERSION:
        raise FormatVersionError(
            f"checkpoint {path} has format version {document.get('format_version')}, this avtd3 "
            f"reads {FORMAT_VERSION}; update avtd3"
        )
    return document


def _not_read(path: Path, name: str, error: OSError) -> Avtd3Error:
    if files.is_passing(error):
        return unreadable(path / name, error)
    return _invalid(path, f"{name} cannot be read ({error})")


def _invalid(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is damaged: {what}; remove it to continue from the previous one"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best checkpoint so far."""

    metric: str
    value: float
    """Newest value of the metric when the checkpoint was saved."""
    updates: int
    newest: float
    """Newest value of the metric at the newest checkpoint."""


class CheckpointManager:
    """Save, restore and remove the checkpoints of a run."""

    def __init__(self, run: Path, config: LearnConfig, spec: EpisodeSpec) -> None:
        self.best: Best | None = None
        """The best checkpoint so far; None without `LearnConfig.keep_best`, or before one."""
        self._run, self._config, self._spec = run, config, spec
        self._directory = run / CHECKPOINTS

    def __contains__(self, updates: int) -> bool:
        return updates in map(updates_of, list_checkpoints(self._directory))

    def restore_newest(self, state: TD3State, noise: torch.Generator) -> CheckpointMetadata | None:
        """Load the newest checkpoint in place; return None if there is none."""
        fix_replaced(self._directory)
        found = list_checkpoints(self._directory)
        return self._load(found[-1], state, noise) if found else None

    def roll_back(
        self, updates: int, state: TD3State, noise: torch.Generator | None
    ) -> tuple[CheckpointMetadata, Path | None]:
        """Load a checkpoint, and move all later ones to ``RUN/rolled-back/NNN``, newest first.

        Without `noise`, its random state is ignored.
        """
        fix_replaced(self._directory)
        found = {updates_of(path): path for path in list_checkpoints(self._directory)}
        if updates not in found:
            kept = ", ".join(map(str, found)) or "none"
            raise CheckpointError(
                f"rollback {updates}: {self._directory} has no checkpoint of that update, expected "
                f"one of: {kept}; earlier rollbacks moved theirs to {self._run / ROLLED_BACK}"
            )
        metadata = self._load(found[updates], state, noise)
        later = [path for number, path in found.items() if number > updates]
        return metadata, self._move_aside(later) if later else None

    def save(
        self,
        state: TD3State,
        noise: torch.Generator,
        metadata: CheckpointMetadata,
        *,
        newest: Mapping[str, float],
        good: int | None,
    ) -> Path:
        """Write a checkpoint and remove those that need not be kept; return its directory."""
        self._update_best(metadata.updates, newest)
        best = {} if self.best is None else dataclasses.asdict(self.best)
        metadata = dataclasses.replace(metadata, best=best)
        path = save_checkpoint(self._directory, state, noise, metadata)
        if self.best is not None and self.best.updates == metadata.updates:
            self._write_best()
        kept = (*self._config.milestones, good, None if self.best is None else self.best.updates)
        prune_checkpoints(self._directory, self._config.keep_checkpoints, kept)
        return path

    def save_emergency(
        self, state: TD3State, noise: torch.Generator, metadata: CheckpointMetadata
    ) -> Path:
        """Save the state at which a guard stopped the run; no run resumes from it by itself."""
        path = save_checkpoint(self._run / EMERGENCY, state, noise, metadata)
        prune_checkpoints(self._run / EMERGENCY, _EMERGENCIES_KEPT, ())
        return path

    def _load(
        self, path: Path, state: TD3State, noise: torch.Generator | None
    ) -> CheckpointMetadata:
        metadata = load_checkpoint(path, state, noise)
        if metadata.spec_digest != self._spec.digest:
            raise SpecError(
                f"checkpoint {path} was trained on data of spec {metadata.spec_digest[:12]}, but "
                f"the datasets have spec {self._spec.digest[:12]}; resume with the run's own data"
            )
        best = read_as(Best, metadata.best, f"checkpoint {path}: best") if metadata.best else None
        self.best = best if best is not None and best.metric == self._config.keep_best else None
        self._write_best()
        return metadata

    def _move_aside(self, later: list[Path]) -> Path:
        parent = self._run / ROLLED_BACK
        with files.storage_errors(parent):
            parent.mkdir(exist_ok=True)
            number = max((int(p.name) for p in parent.iterdir() if p.name.isdecimal()), default=0)
            aside = parent / f"{number + 1:03d}"
            aside.mkdir()
            for path in reversed(later):
                if not files.move_directory(path, aside / path.name):
                    files.remove_tree(path)
            files.fsync_directory(aside)
            files.fsync_directory(self._directory)
        return aside

    def _update_best(self, updates: int, newest: Mapping[str, float]) -> None:
        name, best = self._config.keep_best, self.best
        known, value = metric(name), newest.get(name, None if best is None else best.newest)
        if known is None or value is None or value != value:  # NaN is never the best
            return
        sign = 1.0 if known.better == HIGHER else -1.0
        if best is None or sign * value > sign * best.value:
            self.best = Best(metric=name, value=value, updates=updates, newest=value)
        else:
            self.best = dataclasses.replace(best, newest=value)

    def _write_best(self) -> None:
        path = self._directory / BEST
        if self.best is None:
            with files.storage_errors(path):
                path.unlink(missing_ok=True)
            return
        document = {name: getattr(self.best, name) for name in ("metric", "value", "updates")}
        files.write_aside(path, files.canonical_json(document))
