"""The replay cache: each frame decoded once, into memory-mapped rows that are only gathered.

A segment of S steps in E episodes owns S + E rows, side by side. Its observations fill them; its
steps fill the first S. So the step at position p belongs to the observation in row
``p + links[p, SHIFT]``, and no number in ``links`` changes when a segment moves. Frames of 84x84
take 7.06 GB of page cache per million; anonymous memory stays flat.

The cache follows a list of wanted segments (`ReplayCache.follow`). A segment is checked before
its frames are decoded, counts only when all of it is in place, and is refused with a reason
otherwise.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SegmentCorruptError
from avtd3.store.scratch import RowRanges, RowType, ScratchColumns
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

SHIFT, AGE, LEFT = 0, 1, 2
"""Columns of ``links``: rows from a step's position to its observation's row; steps since the
episode's first; steps to the episode's end, this one included (so at least 1)."""

FILL_THREADS = 2
"""Threads that decode while filling; the decoder releases the interpreter's lock."""

Key = tuple[int, str]
"""A segment in the cache: number of its dataset, segment id."""

Progress = Callable[[int, int], None]
"""Called with frames done and frames in all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CachedSegment:
    """A segment that is wholly in the cache, with the columns of its episodes."""

    steps: int
    """Transitions it holds."""
    returns: NDArray[np.float64]
    """float64 (E,), sum of the rewards of each episode."""
    lengths: NDArray[np.int64]
    """int64 (E,), steps of each episode."""
    policy_versions: NDArray[np.int64]
    """int64 (E,), version of the policy that drove each episode, -1 for none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one call of `ReplayCache.follow` changed."""

    added: Mapping[Key, CachedSegment]
    """Segments that can be drawn from now on."""
    removed: int
    """Segments that cannot be drawn any more."""
    refused: Mapping[Key, str]
    """Segments that were wanted and are not usable, with the reason."""


class ReplayCache:
    """Segments of one spec as memory-mapped columns.

    Columns, by row: ``frames`` uint8 (C, H, W) and ``vector`` float32 (V,) of observations (each
    only if the spec has it); ``action`` float32 (A,), ``reward`` float32, ``terminated`` bool and
    ``links`` int32 (3,) of steps.
    """

    def __init__(self, spec: EpisodeSpec, scratch: Path) -> None:
        """Make an empty cache.

        Args:
            spec: What every segment holds.
            scratch: Directory for the nameless scratch files.

        Raises:
            StorageError: `scratch` cannot be written.
        """
        self.spec = spec
        self.segments: dict[Key, CachedSegment] = {}
        self._columns = ScratchColumns(scratch, _row_types(spec))
        self._ranges = RowRanges()

    @property
    def rows(self) -> int:
        """Rows that have disk space behind them."""
        return self._columns.rows

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns, each ``(rows, ...)``, valid until the next `follow`; none while empty."""
        return {name: self._columns[name] for name in self._columns} if self.rows else {}

    def position(self, key: Key) -> int:
        """Position of a segment's first step."""
        return int(self._ranges[key].start)

    def follow(self, wanted: Mapping[Key, Segment], on_progress: Progress | None = None) -> Changes:
        """Hold the wanted segments and no others.

        Args:
            wanted: Segments to hold; those already held are not read again.
            on_progress: Called after each segment that was decoded.

        Raises:
            StorageError: The disk has no room; what was held and is wanted is still held.
        """
        gone = [key for key in self.segments if key not in wanted]
        for key in gone:
            self._ranges.release(key)
            del self.segments[key]
        new = {key: segment for key, segment in wanted.items() if key not in self.segments}
        self._columns.reserve(self._ranges.used + sum(s.observations for s in new.values()))
        refused: dict[Key, str] = {}
        with self._pending() as pending:
            for key, segment in new.items():
                self._enter(key, segment, pending, refused)
            added = self._decode({key: new[key] for key in pending}, pending, refused, on_progress)
            self.segments.update(added)
        return Changes(added=added, removed=len(gone), refused=refused)

    def close(self) -> None:
        """Give the disk space back; safe to call twice."""
        self.segments.clear()
        self._ranges = RowRanges()
        self._columns.close()

    @contextmanager
    def _pending(self) -> Iterator[dict[Key, CachedSegment]]:
        """Segments that own rows but are not whole; whatever stays so loses its rows again."""
        pending: dict[Key, CachedSegment] = {}
        try:
            yield pending
        finally:
            for key in pending.keys() - self.segments.keys():
                self._ranges.release(key)

    def _enter(
        self,
        key: Key,
        segment: Segment,
        pending: dict[Key, CachedSegment],
        refused: dict[Key, str],
    ) -> None:
        """Check a segment's small arrays, give it rows and write all but the frames."""
        try:
            arrays = _read_checked(segment, self.spec)
        except (SegmentCorruptError, OSError) as error:
            refused[key] = str(error)
            return
        for source, target in self._ranges.place(key, segment.observations):
            for name in self._columns:
                self._columns[name][target] = self._columns[name][source]
        pending[key] = CachedSegment(
            steps=segment.steps,
            returns=arrays["episode_return"],
            lengths=arrays["episode_length"],
            policy_versions=arrays["episode_policy_version"],
        )
        self._columns.reserve(self._ranges.end)
        start = self._ranges[key].start
        arrays["links"] = _links(arrays["episode_length"])
        for name in self._columns:
            if name in arrays:
                self._columns[name][start : start + len(arrays[name])] = arrays[name]

    def _decode(
        self,
        segments: Mapping[Key, Segment],
        pending: Mapping[Key, CachedSegment],
        refused: dict[Key, str],
        on_progress: Progress | None,
    ) -> dict[Key, CachedSegment]:
        """Decode frames straight into their rows; returns the segments that are whole."""
        added, done = {}, 0
        total = sum(segment.observations for segment in segments.values())
        with ThreadPoolExecutor(FILL_THREADS, "replay-fill") as pool:
            jobs: dict[Future[None], Key] = {
                pool.submit(self._read_frames, key, segment): key
                for key, segment in segments.items()
            }
            try:
                for job in as_completed(jobs):
                    key = jobs[job]
                    try:
                        job.result()
                        added[key] = pending[key]
                    except (SegmentCorruptError, OSError) as error:
                        refused[key] = str(error)
                    done += segments[key].observations
                    if on_progress is not None:
                        on_progress(done, total)
            finally:
                pool.shutdown(cancel_futures=True)
        return added

    def _read_frames(self, key: Key, segment: Segment) -> None:
        if "frames" in self._columns:
            segment.read_frames(out=self._columns["frames"][self._ranges[key]])


def _row_types(spec: EpisodeSpec) -> dict[str, RowType]:
    types = {
        "action": RowType(dtype=np.float32, shape=(spec.action_size,)),
        "reward": RowType(dtype=np.float32),
        "terminated": RowType(dtype=np.bool_),
        "links": RowType(dtype=np.int32, shape=(3,)),
    }
    if spec.image is not None:
        types["frames"] = RowType(dtype=np.uint8, shape=spec.image.frame_shape)
    if spec.vector_size:
        types["vector"] = RowType(dtype=np.float32, shape=(spec.vector_size,))
    return types


def _links(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """The links of a segment's steps, int32 (S, 3), from the lengths of its episodes."""
    episode = np.repeat(np.arange(len(lengths)), lengths)
    first = (np.cumsum(lengths) - lengths)[episode]
    age = np.arange(len(episode)) - first
    return np.stack([episode, age, lengths[episode] - age], axis=1).astype(np.int32)


def _read_checked(segment: Segment, spec: EpisodeSpec) -> dict[str, NDArray[Any]]:
    """Read all that is small; raise SegmentCorruptError for what training could not survive."""
    names = ["episode_offset", "episode_length", "episode_return", "episode_policy_version"]
    names += ["action", "reward", "terminated", "truncated"]
    if spec.vector_size:
        names.append("vector")
    arrays = {name: segment.read(name) for name in names}
    for name, values in arrays.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise _unusable(segment, f"{name!r} row {int(finite.argmin())} is not finite")
    _check_episodes(segment, arrays)
    return arrays


def _check_episodes(segment: Segment, arrays: Mapping[str, NDArray[Any]]) -> None:
    lengths = arrays["episode_length"]
    if not (lengths > 0).all() or int(lengths.sum()) != segment.steps:
        raise _unusable(segment, f"episode lengths do not add up to {segment.steps} steps")
    if (arrays["episode_offset"] != np.cumsum(lengths) - lengths).any():
        raise _unusable(segment, "'episode_offset' does not match 'episode_length'")
    ends = np.flatnonzero(arrays["terminated"] | arrays["truncated"])
    if not np.array_equal(ends, np.cumsum(lengths) - 1):
        raise _unusable(segment, "steps marked as an end are not the last steps of the episodes")


def _unusable(segment: Segment, what: str) -> SegmentCorruptError:
    return SegmentCorruptError(
        f"segment {segment.id} ({segment.path}): {what}; "
        "run `avtd3 replay-inspect --quarantine` to set it aside"
    )
