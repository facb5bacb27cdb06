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

from avtd3.learn.state import TD3State
from avtd3.store import files
from avtd3.store.errors import CheckpointError, FormatVersionError

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
class Bookmark:
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
    """What `Watch.state` returned; empty in checkpoints that are older than the guards."""
    gathered: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `Journal.gathered` returned; empty in older checkpoints."""
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
    directory: Path, state: TD3State, noise: torch.Generator, bookmark: Bookmark
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


def load_checkpoint(path: Path, state: TD3State, noise: torch.Generator) -> Bookmark:
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
    bookmark = Bookmark.from_json(document, arrays, path)
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
