"""Draws from datasets: snapshot and seed in, batches of transitions out.

`Sampler` draws which transitions make a batch. `avtd3.store.selection` says which segments they are
drawn from, `avtd3.store.replay` holds those decoded, `avtd3.store.gather` puts the batch together.
"""

import dataclasses
import hashlib
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset, Refusal
from avtd3.store.errors import CheckpointError, DatasetError, NoSegmentsError
from avtd3.store.gather import Gather, Transitions
from avtd3.store.replay import CachedSegment, Key, Progress, ReplayCache
from avtd3.store.segment import Segment
from avtd3.store.selection import ReplayConfig, check_datasets, select_segments

__all__ = ["RefreshReport", "ReplayConfig", "Sampler", "Transitions"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefreshReport:
    """What a refresh, or the opening of a sampler, changed."""

    segments_added: int
    """Segments that can be drawn from now on."""
    segments_removed: int
    """Segments that cannot be drawn any more: past the capacity, or removed from the dataset."""
    steps_added: int
    """Transitions in the added segments."""
    episodes_added: int
    """Episodes in the added segments."""
    returns: NDArray[np.float64]
    """float64 (episodes_added,), sum of rewards of each new episode."""
    lengths: NDArray[np.int64]
    """int64 (episodes_added,), steps of each new episode."""
    policy_versions: NDArray[np.int64]
    """int64 (episodes_added,), policy that drove each new episode, -1 for none."""
    refused: tuple[Refusal, ...]
    """Segments that cannot be used, each reported once."""
    absent: tuple[Path, ...] = ()
    """Datasets that cannot be listed or have lost all their segments, as when a disk is unmounted;
    what was read of them can still be drawn."""


class Sampler:
    """Uniform draws of transitions from one or several datasets.

    What can be drawn is a function of the datasets' snapshots and the capacity alone; with the
    same seed it gives the same batches. One lock lets `sample` run in a thread of its own.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        config: ReplayConfig,
        *,
        seed: int,
        scratch: Path | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """Take a snapshot of each dataset and decode it into the replay cache.

        Args:
            datasets: Where to read; all of one spec.
            config: What to keep and how to draw.
            seed: Seed of the draws.
            scratch: Directory for the scratch files if the config names none.
            on_progress: Called with frames done and frames in all while decoding.

        Raises:
            ConfigError: No dataset, one given twice, or not one weight for each.
            SpecError: The datasets hold different data.
            StorageError: The scratch directory is not writable or too small.
        """
        self._datasets = check_datasets(datasets, config)
        self.spec = self._datasets[0].spec
        self.config = config
        self.steps = 0
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._lock = threading.Lock()
        self._seen: set[Key] = set()
        self._refused: set[Key] = set()
        self._snapshots = [dataset.snapshot() for dataset in self._datasets]
        directory = Path(config.scratch) if config.scratch else scratch
        self._cache = ReplayCache(self.spec, directory or Path(tempfile.gettempdir()))
        self._gather = Gather(
            self.spec, batch_size=config.batch_size, n_step=config.n_step, gamma=config.gamma
        )
        try:
            self.opening = self._follow(on_progress)
        except BaseException:
            self.close()
            raise

    def sample(self) -> Transitions:
        """Draw a batch.

        Returns:
            Views of buffers that the third call from now overwrites.

        Raises:
            NoSegmentsError: Nothing has been published yet.
        """
        with self._lock:
            if not self.steps:
                raise NoSegmentsError(self._why_empty())
            return self._gather(self._draw())

    def refresh(self) -> RefreshReport:
        """Take in what was published since, and let go of what is too old or was removed.

        Raises:
            StorageError: The scratch directory is too small for what is new.
        """
        with self._lock:
            absent = [number for number in range(len(self._datasets)) if self._is_absent(number)]
            report = self._follow(None)
            paths = tuple(self._datasets[number].path for number in absent)
            return dataclasses.replace(report, absent=paths)

    def state(self) -> dict[str, Any]:
        """The generator's state and a digest of what can be drawn, as plain JSON."""
        with self._lock:
            state = self._generator.bit_generator.state
            return {
                # 128-bit numbers, which not every reader of JSON keeps
                "state": str(state["state"]["state"]),
                "increment": str(state["state"]["inc"]),
                "has_uint32": int(state["has_uint32"]),
                "uinteger": int(state["uinteger"]),
                "segments": self._digest(),
            }

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Continue where `state` was taken.

        Returns:
            True if the same segments can be drawn as then, so that the batches are identical.

        Raises:
            CheckpointError: `state` is not what `Sampler.state` returns.
        """
        with self._lock:
            try:
                self._generator.bit_generator.state = {
                    "bit_generator": "PCG64",
                    "state": {"state": int(state["state"]), "inc": int(state["increment"])},
                    "has_uint32": int(state["has_uint32"]),
                    "uinteger": int(state["uinteger"]),
                }
                return bool(state["segments"] == self._digest())
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise CheckpointError(
                    f"sampler state cannot be read ({error!r}), expected what Sampler.state() "
                    "returns; resume from another checkpoint"
                ) from error

    def close(self) -> None:
        """Give the scratch space back; safe to call twice."""
        with self._lock:
            self.steps = 0
            self._gather.bind(None)
            self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw(self) -> NDArray[np.int64]:
        """Positions of a batch of steps, int64 (B,)."""
        size = self.config.batch_size
        if self.config.weights:
            dataset = self._choice.searchsorted(self._generator.random(size), side="right")
            number = self._starts[dataset] + self._generator.integers(0, self._counts[dataset])
        else:
            number = self._generator.integers(0, self.steps, size)
        segment = self._ends.searchsorted(number, side="right")
        position: NDArray[np.int64] = number + self._shift[segment]
        return position

    def _is_absent(self, number: int) -> bool:
        """Take a new snapshot, unless the dataset is as good as unmounted."""
        old = self._snapshots[number]
        try:
            new = self._datasets[number].refresh(old)
        except DatasetError:
            return True
        if old.segments and not new.segments:
            return True
        self._snapshots[number] = new
        return False

    def _follow(self, on_progress: Progress | None) -> RefreshReport:
        """Make the cache hold what the snapshots and the capacity ask for."""
        added: dict[Key, CachedSegment] = {}
        refused = self._new_refusals()
        removed = 0
        try:
            while True:
                changes = self._cache.follow(self._wanted(), on_progress)
                added |= changes.added
                removed += changes.removed
                if not changes.refused:
                    break
                # Room that a refused segment was to take goes to the next older ones.
                self._refused |= changes.refused.keys()
                refused += [
                    Refusal(segment_id=key[1], reason=reason)
                    for key, reason in changes.refused.items()
                ]
        finally:
            self._index()
        return _report(list(added.values()), removed, refused)

    def _new_refusals(self) -> list[Refusal]:
        """What the snapshots refuse and no report has named yet."""
        found = [
            (number, refusal)
            for number, snapshot in enumerate(self._snapshots)
            for refusal in snapshot.refused
        ]
        new = [
            refusal for number, refusal in found if (number, refusal.segment_id) not in self._seen
        ]
        self._seen |= {(number, refusal.segment_id) for number, refusal in found}
        return new

    def _wanted(self) -> dict[Key, Segment]:
        segments = {
            (number, segment.id): segment
            for number, snapshot in enumerate(self._snapshots)
            for segment in snapshot.segments
            if (number, segment.id) not in self._refused
        }
        return select_segments(segments, self.config)

    def _index(self) -> None:
        """Number all transitions: by dataset, then segment id, then time."""
        keys = sorted(self._cache.segments)
        steps = np.array([self._cache.segments[key].steps for key in keys], dtype=np.int64)
        start = np.array([self._cache.position(key) for key in keys], dtype=np.int64)
        self._ends: NDArray[np.int64] = (
            steps.cumsum()
        )  # a segment's transitions are numbered up to its end
        self._shift = start - (self._ends - steps)
        dataset = np.array([key[0] for key in keys], dtype=np.int64)
        self._counts = np.bincount(dataset, steps, len(self._datasets)).astype(np.int64)
        self._starts = self._counts.cumsum() - self._counts
        if self.config.weights:
            weights = np.where(self._counts > 0, self.config.weights, 0.0).cumsum()
            self._choice = weights / max(weights[-1], np.finfo(np.float64).tiny)
        self.steps = int(steps.sum())
        self._gather.bind(self._cache)

    def _digest(self) -> str:
        return hashlib.sha256(repr(sorted(self._cache.segments)).encode()).hexdigest()

    def _why_empty(self) -> str:
        paths = ", ".join(str(dataset.path) for dataset in self._datasets)
        refused = len(self._seen) + len(self._refused)
        why = f"{refused} segments are refused" if refused else "no segment is published yet"
        return f"nothing to draw from {paths}: {why}; run `avtd3 collect` and refresh"


def _report(
    added: Sequence[CachedSegment], removed: int, refused: Sequence[Refusal]
) -> RefreshReport:
    def join(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *(getattr(s, name) for s in added)])

    lengths = join("lengths", np.int64)
    return RefreshReport(
        segments_added=len(added),
        segments_removed=removed,
        steps_added=sum(segment.steps for segment in added),
        episodes_added=len(lengths),
        returns=join("returns", np.float64),
        lengths=lengths,
        policy_versions=join("policy_versions", np.int64),
        refused=tuple(refused),
    )
