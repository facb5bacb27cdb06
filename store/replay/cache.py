"""The replay cache: each frame decoded once, into memory-mapped rows that are only gathered.

A segment of S steps in E episodes owns S + E rows, one per observation, side by side. A step lies
in the row of its observation, so the next observation is one row on, and the last row of each
episode has no step. All that is small lies together in one column, because a random draw pays for
each place in memory it touches. Frames of 84x84 take 7.06 GB of page cache per million; anonymous
memory stays flat. Processes of one host share the frames (`SharedRows`): what one has decoded the
others draw.

The cache follows a list of wanted segments (`ReplayCache.follow`). A segment is checked before
its frames are decoded, counts only when all of it is in place, and is refused with a reason
otherwise.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SegmentCorruptError, StorageError
from avtd3.store.replay.episodes import EpisodeSummary
from avtd3.store.replay.rows import Key as Key
from avtd3.store.replay.rows import PrivateRows, Rows, SharedRows
from avtd3.store.replay.scratch import RowType
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

REWARD, ALIVE, ACTION = 0, 1, 2
"""Where the column ``numbers`` has a step's reward, 1 - terminated, and the first number of the
action; the observation's vector follows."""

FILL_THREADS = 2
"""Threads that decode while filling; the decoder releases the interpreter's lock."""

WAIT_S = 0.1
"""Seconds between two looks for segments that another process is decoding."""

Progress = Callable[[int, int], None]
"""Called with frames done and frames in all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CachedSegment:
    """A segment that is wholly in the cache."""

    steps: int
    """Transitions it holds."""
    content: str
    """`Segment.content_digest`."""
    first_rows: NDArray[np.int64]
    """int64 (E,), row of each episode's first observation, counted from `ReplayCache.start`."""
    episodes: EpisodeSummary
    """What is known of its E episodes."""


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

    Columns, by row: ``frames`` uint8 (C, H, W), if the spec has an image, and ``numbers`` float32
    (2 + A + V,), see `REWARD`.
    """

    def __init__(
        self, spec: EpisodeSpec, scratch: Path, *, frames: bool = True, shared: bool = True
    ) -> None:
        """Make an empty cache.

        Args:
            spec: What every segment holds.
            scratch: Directory for the scratch files.
            frames: Hold the frames; False for replay that decodes them as they are drawn.
            shared: Share the frames with other processes of this user and host, where possible.

        Raises:
            StorageError: `scratch` cannot be written.
        """
        self.spec = spec
        self.segments: dict[Key, CachedSegment] = {}
        self.notice = ""
        """Why frames are not shared although they should be; empty if all is well."""
        self._rows = self._open(scratch, _row_types(spec, frames=frames), shared=shared)

    def _open(self, scratch: Path, types: Mapping[str, RowType], *, shared: bool) -> Rows:
        if shared and "frames" in types:
            try:
                return SharedRows(scratch, types, self.spec.digest)
            except StorageError:
                raise
            except OSError as error:
                self.notice = f"frames are not shared with other runs: {error}"
        return PrivateRows(scratch, types)

    @property
    def rows(self) -> int:
        """Rows that have disk space behind them."""
        return self._rows.rows

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns, each ``(rows, ...)``, valid until the next `follow`; none while empty."""
        return self._rows.columns() if self.segments else {}

    def start(self, key: Key) -> int:
        """First row of a segment."""
        return int(self._rows[key].start)

    def follow(self, wanted: Mapping[Key, Segment], on_progress: Progress | None = None) -> Changes:
        """Hold the wanted segments and no others.

        Args:
            wanted: Segments to hold; those already held are not read again.
            on_progress: Called after each segment that was decoded, and while another process
                decodes.

        Raises:
            StorageError: The disk has no room; what was held and is wanted is still held.
        """
        gone = [key for key in self.segments if key not in wanted]
        for key in gone:
            del self.segments[key]
        new = {key: segment for key, segment in wanted.items() if key not in self.segments}
        if not gone and not new:
            return Changes(added={}, removed=0, refused={})
        self._rows.change(gone, new)
        refused: dict[Key, str] = {}
        try:
            pending: dict[Key, CachedSegment] = {}
            for key, segment in new.items():
                self._enter(key, segment, pending, refused)
            whole = self._fill({key: new[key] for key in pending}, refused, on_progress)
            added = {key: pending[key] for key in whole}
            self.segments.update(added)
        finally:
            self._rows.settle([key for key in new if key not in self.segments])
        return Changes(added=added, removed=len(gone), refused=refused)

    def close(self) -> None:
        """Give the disk space back; safe to call twice."""
        self.segments.clear()
        self._rows.close()

    def _enter(
        self,
        key: Key,
        segment: Segment,
        pending: dict[Key, CachedSegment],
        refused: dict[Key, str],
    ) -> None:
        """Check a segment's small arrays and write all but the frames."""
        try:
            arrays = _read_checked(segment, self.spec)
            end_reasons = segment.read_strings("episode_end_reason")
        except (SegmentCorruptError, OSError) as error:
            refused[key] = str(error)
            return
        lengths = arrays["episode_length"]
        pending[key] = CachedSegment(
            steps=segment.steps,
            content=segment.content_digest,
            first_rows=np.cumsum(lengths + 1) - (lengths + 1),
            episodes=EpisodeSummary.of(arrays, end_reasons),
        )
        self._write_numbers(self._rows.columns()["numbers"][self._rows[key]], arrays)

    def _write_numbers(self, out: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]]) -> None:
        vector = ACTION + self.spec.action_size
        out[:, :vector] = 0.0
        if self.spec.vector_size:
            out[:, vector:] = arrays["vector"]
        lengths = arrays["episode_length"]
        rows = np.arange(lengths.sum()) + np.repeat(np.arange(len(lengths)), lengths)
        out[rows, REWARD] = arrays["reward"]
        out[rows, ALIVE] = ~arrays["terminated"]
        out[rows, ACTION:vector] = arrays["action"]

    def _fill(
        self,
        segments: Mapping[Key, Segment],
        refused: dict[Key, str],
        on_progress: Progress | None,
    ) -> list[Key]:
        """Wait until frames are in their rows, decoding what nobody else does.

        Returns:
            The segments that are whole.
        """
        waiting, whole = dict(segments), []
        total = sum(segment.observations for segment in segments.values())

        def leave(key: Key) -> None:
            del waiting[key]
            if on_progress is not None:
                on_progress(total - sum(s.observations for s in waiting.values()), total)

        while waiting:
            ready, mine = self._rows.look(waiting)
            for key in ready:
                whole.append(key)
                leave(key)
            for key, fault in self._decode({key: waiting[key] for key in mine}):
                if fault:
                    refused[key] = fault
                else:
                    whole.append(key)
                leave(key)
            if waiting and not ready and not mine:
                time.sleep(WAIT_S)
        return whole

    def _decode(self, segments: Mapping[Key, Segment]) -> Iterator[tuple[Key, str]]:
        """Decode frames straight into their rows; yields each segment with its fault, if any."""
        if not segments:
            return
        with ThreadPoolExecutor(FILL_THREADS, "replay-fill") as pool:
            jobs: dict[Future[None], Key] = {
                pool.submit(self._read_frames, key, segment): key
                for key, segment in segments.items()
            }
            try:
                for job in as_completed(jobs):
                    fault = ""
                    try:
                        job.result()
                        self._rows.finish(jobs[job])
                    except StorageError:
                        raise  # an OSError, but not the segment's fault
                    except (SegmentCorruptError, OSError) as error:
                        fault = str(error)
                    yield jobs[job], fault
            finally:
                pool.shutdown(cancel_futures=True)

    def _read_frames(self, key: Key, segment: Segment) -> None:
        columns = self._rows.columns()
        if "frames" in columns:
            segment.read_frames(out=columns["frames"][self._rows[key]])


def _row_types(spec: EpisodeSpec, *, frames: bool) -> dict[str, RowType]:
    width = ACTION + spec.action_size + spec.vector_size
    types = {"numbers": RowType(dtype=np.float32, shape=(width,))}
    if frames and spec.image is not None:
        types["frames"] = RowType(dtype=np.uint8, shape=spec.image.frame_shape)
    return types


def row_bytes(spec: EpisodeSpec) -> int:
    """Scratch that one row takes in a cache with frames."""
    return sum(kind.size_bytes for kind in _row_types(spec, frames=True).values())


def _read_checked(segment: Segment, spec: EpisodeSpec) -> dict[str, NDArray[Any]]:
    """Read the small arrays; raise SegmentCorruptError for what training could not survive."""
    names = ["episode_offset", "episode_length", "episode_return", "episode_policy_version"]
    names += ["action", "reward", "terminated", "truncated"]
    if spec.vector_size:
        names.append("vector")
    if spec.reward_terms:
        names.append("reward_terms")
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
