"""Checkpoints: all that a run needs to go on as if it had never stopped.

::

    CHECKPOINTS/update-000002000/tensors.safetensors   networks, targets, Adam, random state
    CHECKPOINTS/update-000002000/checkpoint.json       counters, sampler, settings, digest of it

Priorities of the draws, if there are any, lie with the tensors. A checkpoint is written into a
directory aside, flushed to the disk and renamed. Reading one never runs code from it.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avtd3.learn.config import LearnConfig
from avtd3.learn.metrics import HIGHER, metric
from avtd3.learn.td3 import TD3State
from avtd3.store import files
from avtd3.store.errors import CheckpointError, FormatVersionError, SpecError
from avtd3.store.spec import EpisodeSpec

FORMAT_VERSION = 1
MAX_CHECKPOINT_BYTES = 8 << 30
"""Largest tensor file that is read at all."""
TENSORS, DOCUMENT = "tensors.safetensors", "checkpoint.json"
_NAME = re.compile(r"update-(\d{9,18})")
_NETWORKS = ("actor", "critic", "actor_target", "critic_target")
_COUNTERS = ("skipped", "skipped_in_a_row")
_RANGE = "value_range"
_NOISE = "noise"
_REPLACED = ".replaced"
"""Behind the name of a checkpoint while another takes its place."""
_SAMPLER = "sampler/"
"""Before the names of the sampler's arrays."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMetadata:
    """Where a run stands, apart from its tensors."""

    updates: int
    """Critic updates so far."""
    spec_digest: str
    """Digest of the spec of the data."""
    sampler: Mapping[str, Any]
    """What `Sampler.state` returned, the digest of its segments included."""
    arrays: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    """What `Sampler.arrays` returned; kept with the tensors."""
    config: Mapping[str, Any]
    """Resolved settings of the run."""
    seconds: float
    """Wall time that the run has trained for, over all its sessions."""
    guards: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `GuardMonitor.state` returned; empty in checkpoints that are older than the guards."""
    gathered: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `MetricLogger.gathered` returned; empty in older checkpoints."""
    episodes_told: bool = False
    """Whether lines of the log have told of all episodes in the data."""
    best: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `keeping.Best`; empty if no best one is kept."""

    @classmethod
    def from_json(
        cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], path: Path
    ) -> Self:
        """Read it back; `path` is named when a key is missing or of the wrong kind."""
        try:
            return cls(
                updates=int(document["updates"]),
                spec_digest=str(document["spec_digest"]),
                sampler=dict(document["sampler"]),
                arrays=dict(arrays),
                config=dict(document["config"]),
                seconds=float(document["seconds"]),
                guards=dict(document.get("guards", {})),
                gathered=dict(document.get("gathered", {})),
                episodes_told=bool(document.get("episodes_told", False)),
                best=dict(document.get("best", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _torn(path, f"its document cannot be read ({error!r})") from error


def save_checkpoint(
    directory: Path, state: TD3State, noise: torch.Generator, bookmark: CheckpointMetadata
) -> Path:
    """Write a checkpoint; afterwards it is on the disk under its name, or nothing is.

    Args:
        directory: The run's directory of checkpoints; created if need be.
        state: Networks and optimisers.
        noise: Generator of the target noise.
        bookmark: Everything else.

    Raises:
        StorageError: The disk is full or the directory cannot be written.
    """
    path = directory / f"update-{bookmark.updates:09d}"
    aside = directory / f".{path.name}.{os.getpid()}.tmp"
    tensors = _named(state) | {_NOISE: noise.get_state()}
    arrays = {_SAMPLER + name: torch.from_numpy(array) for name, array in bookmark.arrays.items()}
    data = safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in (tensors | arrays).items()}
    )
    about = dataclasses.asdict(dataclasses.replace(bookmark, arrays={}))
    del about["arrays"]
    document = {
        "format_version": FORMAT_VERSION,
        "code_version": importlib.metadata.version("avtd3"),
        "tensors": {"file": TENSORS, "size": len(data), "sha256": files.sha256(data)},
        **about,
    }
    with files.storage_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(".update-*.tmp"):  # of a run that was killed
            files.remove_tree(stale)
        aside.mkdir()
        files.write_new(aside / TENSORS, data)
        files.write_new(aside / DOCUMENT, files.canonical_json(document))
        files.fsync_directory(aside)
        replaced = directory / f".{path.name}{_REPLACED}"
        if path.exists():  # of a run that went back to it
            path.rename(replaced)
        aside.rename(path)
        files.fsync_directory(directory)
        files.remove_tree(replaced)
    return path


def mend_replaced(directory: Path) -> None:
    """Finish what a learner was killed at while it replaced a checkpoint by one of its name.

    Raises:
        StorageError: The directory cannot be written.
    """
    with files.storage_errors(directory):
        for replaced in directory.glob(f".update-*{_REPLACED}"):
            path = directory / replaced.name.removeprefix(".").removesuffix(_REPLACED)
            if path.exists():
                files.remove_tree(replaced)
            else:
                replaced.rename(path)


def load_checkpoint(path: Path, state: TD3State, noise: torch.Generator) -> CheckpointMetadata:
    """Put a checkpoint into fresh networks and optimisers of the same settings.

    Args:
        path: The checkpoint's directory.
        state: Changed in place.
        noise: Changed in place.

    Raises:
        CheckpointError: Torn, altered, or of other networks.
        FormatVersionError: A later avtd3 wrote it.
    """
    document = _read_document(path)
    try:
        claim = document["tensors"]["sha256"]
        data = files.read_bytes(path / TENSORS, MAX_CHECKPOINT_BYTES)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _torn(path, f"its tensors cannot be read ({error})") from error
    if files.sha256(data) != claim:
        raise _torn(path, f"{TENSORS} has another SHA-256 than {DOCUMENT} says")
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise _torn(path, f"{TENSORS} cannot be read ({error})") from error
    arrays = {
        name.removeprefix(_SAMPLER): tensors.pop(name).numpy()
        for name in sorted(tensors)
        if name.startswith(_SAMPLER)
    }
    bookmark = CheckpointMetadata.from_json(document, arrays, path)
    _restore(state, noise, tensors, path)
    state.updates = bookmark.updates
    return bookmark


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints in a directory, oldest first; empty if it does not exist."""
    with contextlib.suppress(FileNotFoundError):
        found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=updates_of)
    return []


def updates_of(path: Path) -> int:
    """Updates of a checkpoint, by its name."""
    return int(path.name.removeprefix("update-"))


def prune_checkpoints(directory: Path, keep: int, milestones: tuple[int, ...]) -> None:
    """Remove all but the newest `keep` checkpoints and those at milestones."""
    for path in list_checkpoints(directory)[: -max(keep, 1)]:
        if updates_of(path) not in milestones:
            files.remove_tree(path)


def _named(state: TD3State) -> dict[str, Tensor]:
    """Every tensor of the state itself, not a copy, by its name in the file."""
    tensors: dict[str, Tensor] = {name: getattr(state, name) for name in _COUNTERS}
    for name in _NETWORKS:
        for key, value in getattr(state, name).state_dict().items():
            tensors[f"{name}/{key}"] = value
    if state.value_range is not None:
        tensors[_RANGE] = state.value_range
    for prefix, parameter, optimizer in _trained(state):
        if parameter in optimizer.state:  # not before the first step
            moments = optimizer.state[parameter]
            tensors |= {prefix + moment: moments[moment] for moment in _MOMENTS}
    return tensors


def _trained(state: TD3State) -> Iterator[tuple[str, nn.Parameter, torch.optim.Adam]]:
    """Every parameter, what the names of its moments begin with, and its optimiser.

    The numbers are those of the network, not of the groups of the optimiser: a run may go on with
    another kind of weight decay.
    """
    for name, (network, optimizer) in state.networks().items():
        for number, p in enumerate(network.mlp_parameters() + network.encoder_parameters()):
            yield f"{name}_optimizer/{number}/", p, optimizer


def _restore(
    state: TD3State, noise: torch.Generator, tensors: dict[str, Tensor], path: Path
) -> None:
    _make_moments(state, tensors)
    targets = _named(state) | {_NOISE: noise.get_state()}
    if targets.keys() != tensors.keys():
        names = ", ".join(sorted(targets.keys() ^ tensors.keys())[:5])
        raise CheckpointError(
            f"checkpoint {path} is of other networks (not in both: {names} ...); resume with the "
            "settings it was made with"
        )
    for name, target in targets.items():
        found = tensors[name]
        if target.shape != found.shape or target.dtype != found.dtype:
            raise CheckpointError(
                f"checkpoint {path}: {name} is {found.dtype} {tuple(found.shape)}, expected "
                f"{target.dtype} {tuple(target.shape)}; resume with the settings it was made with"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    noise.set_state(tensors[_NOISE])


def _make_moments(state: TD3State, tensors: Mapping[str, Tensor]) -> None:
    """Give Adam empty moments for those parameters that the checkpoint has moments of."""
    for prefix, p, optimizer in _trained(state):
        if f"{prefix}step" in tensors:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = files.read_json(path / DOCUMENT)
    except (OSError, ValueError) as error:
        raise _torn(path, f"{DOCUMENT} cannot be read ({error})") from error
    if not isinstance(document, dict):
        raise _torn(path, f"{DOCUMENT} holds no JSON object")
    if document.get("format_version") != FORMAT_VERSION:
        raise FormatVersionError(
            f"checkpoint {path} has format version {document.get('format_version')}, this avtd3 "
            f"reads {FORMAT_VERSION}; update avtd3"
        )
    return document


def _torn(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is torn: {what}; remove it to go on from the one before"
    )


CHECKPOINTS, ROLLED_BACK, BEST = "checkpoints", "rolled-back", "best.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best checkpoint so far."""

    metric: str
    """By which metric."""
    value: float
    """Its newest value when the checkpoint was made."""
    updates: int
    """Which checkpoint."""
    newest: float
    """The metric's newest value at the newest checkpoint."""

    def after(self, value: float, updates: int) -> Self:
        """The best after one more checkpoint; of two as good, the earlier one."""
        known = metric(self.metric)
        assert known is not None
        better = value > self.value if known.better == HIGHER else value < self.value
        if better:
            return dataclasses.replace(self, value=value, updates=updates, newest=value)
        return dataclasses.replace(self, newest=value)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read it back.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            return cls(
                metric=str(document["metric"]),
                value=float(document["value"]),
                updates=int(document["updates"]),
                newest=float(document["newest"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint does not say which is the best ({error!r}); resume from another"
            ) from error


class CheckpointManager:
    """A run's checkpoints."""

    def __init__(self, run: Path, config: LearnConfig) -> None:
        """Look after a run's checkpoints; nothing is read yet.

        Args:
            run: The run's directory.
            config: How many are kept.
        """
        self.best: Best | None = None
        """The best checkpoint so far; None without `LearnConfig.keep_best`, or before one."""
        self._run, self._config = run, config
        self._directory = run / CHECKPOINTS

    def find(self, rollback: int | None) -> Path | None:
        """The checkpoint to go on from; None if the run has none yet.

        Args:
            rollback: Updates of the one to go back to; None for the newest.

        Raises:
            CheckpointError: There is none of so many updates.
        """
        mend_replaced(self._directory)
        found = {updates_of(path): path for path in list_checkpoints(self._directory)}
        if rollback is None:
            return found[max(found)] if found else None
        if rollback not in found:
            kept = ", ".join(map(str, found)) or "none"
            raise CheckpointError(
                f"--rollback {rollback}: {self._directory} keeps no checkpoint of that update, "
                f"expected one of: {kept}; earlier rollbacks moved theirs to "
                f"{self._run / ROLLED_BACK}"
            )
        return found[rollback]

    def load(
        self, path: Path, state: TD3State, noise: torch.Generator, spec: EpisodeSpec
    ) -> CheckpointMetadata:
        """Put a checkpoint into fresh networks and optimisers of the same settings.

        Raises:
            CheckpointError: Torn, altered, or of other networks.
            FormatVersionError: A later avtd3 wrote it.
            SpecError: It was trained on data of another spec.
        """
        bookmark = load_checkpoint(path, state, noise)
        if bookmark.spec_digest != spec.digest:
            raise SpecError(
                f"checkpoint {path} was trained on data of spec {bookmark.spec_digest[:12]}, "
                f"expected {spec.digest[:12]} as the datasets have; resume with its own data"
            )
        self.restore(bookmark)
        return bookmark

    def restore(self, bookmark: CheckpointMetadata) -> None:
        """Take the best one from a bookmark, if it is by the metric that is asked for.

        Raises:
            StorageError: The directory cannot be written.
        """
        best = Best.from_json(bookmark.best) if bookmark.best else None
        self.best = best if best is not None and best.metric == self._config.keep_best else None
        self._tell_best()

    def set_aside(self, updates: int) -> Path | None:
        """Move all checkpoints behind an update out of the way, the newest first.

        A run that is killed meanwhile goes on from that update, or from one behind it.

        Returns:
            Where they are now; None if there were none.

        Raises:
            StorageError: The directory cannot be written.
        """
        later = [path for path in list_checkpoints(self._directory) if updates_of(path) > updates]
        if not later:
            return None
        place = self._run / ROLLED_BACK
        with files.storage_errors(place):
            place.mkdir(exist_ok=True)
            number = max((int(p.name) for p in place.iterdir() if p.name.isdecimal()), default=0)
            aside = place / f"{number + 1:03d}"
            aside.mkdir()
            for path in reversed(later):
                path.rename(aside / path.name)
            files.fsync_directory(aside)
            files.fsync_directory(self._directory)
        return aside

    def save(
        self,
        state: TD3State,
        noise: torch.Generator,
        bookmark: CheckpointMetadata,
        *,
        newest: Mapping[str, float],
        good: int | None,
    ) -> None:
        """Write a checkpoint and remove those that need not be kept.

        Args:
            state: Networks and optimisers.
            noise: Generator of the target noise.
            bookmark: Everything else; which is the best is filled in here.
            newest: The newest value of each metric that this session logged.
            good: Updates of the last good checkpoint, if there is one.

        Raises:
            StorageError: The disk is full or the directory cannot be written.
        """
        self._judge(bookmark.updates, newest)
        best = {} if self.best is None else dataclasses.asdict(self.best)
        bookmark = dataclasses.replace(bookmark, best=best)
        save_checkpoint(self._directory, state, noise, bookmark)
        if self.best is not None and self.best.updates == bookmark.updates:
            self._tell_best()
        kept = [*self._config.milestones, good, None if self.best is None else self.best.updates]
        milestones = tuple(updates for updates in kept if updates is not None)
        prune_checkpoints(self._directory, self._config.keep_checkpoints, milestones)

    def _judge(self, updates: int, newest: Mapping[str, float]) -> None:
        name = self._config.keep_best
        value = newest.get(name, None if self.best is None else self.best.newest)
        if not name or value is None or value != value:  # NaN is never the best
            return
        if self.best is None:
            self.best = Best(metric=name, value=value, updates=updates, newest=value)
        else:
            self.best = self.best.after(value, updates)

    def _tell_best(self) -> None:
        path = self._directory / BEST
        if self.best is None:
            with files.storage_errors(path):
                path.unlink(missing_ok=True)
            return
        document = dataclasses.asdict(self.best)
        del document["newest"]
        files.write_aside(path, files.canonical_json(document))
