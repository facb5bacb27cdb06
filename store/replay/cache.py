"""The small arrays of a segment, checked for what training could not survive."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SegmentCorruptError, StorageError
from avtd3.store.replay.episodes import EpisodeSummary
from avtd3.store.replay.scratch import RowType, row_types, write_numbers
from avtd3.store.replay.shared import Key as Key
from avtd3.store.replay.shared import PrivateRows, Rows, SharedRows
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec


def read_checked(segment: Segment, spec: EpisodeSpec) -> dict[str, NDArray[Any]]:
    """Read the small arrays that replay needs, by name.

    Raises:
        SegmentNotFoundError: The segment was removed since it was opened.
        SegmentCorruptError: It is damaged, a number is not finite, or episodes contradict another.
    """
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


Item = TypeVar("Item")


class BackgroundDecoder(Generic[Item]):
    """Takes from a generator in a thread of its own; what has arrived is asked for."""

    def __init__(self, work: Generator[Item | None, None, None]) -> None:
        """Start.

        Args:
            work: Yields what arrives, and now and then None, so that it can be stopped.
        """
        self._work = work
        self._arrived: list[Item] = []
        self._fault: BaseException | None = None
        self._is_over = False
        self._is_stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="replay-filling", daemon=True)
        self._thread.start()

    @property
    def has_news(self) -> bool:
        """Whether `take` has something to give, an error or the end among it."""
        return bool(self._arrived) or self._is_over

    def take(self) -> tuple[list[Item], bool]:
        """What has arrived since the last call, and whether nothing will come after it.

        Raises:
            BaseException: What ended the work.
        """
        with self._changed:
            arrived, self._arrived = self._arrived, []
            if not arrived and self._fault is not None:
                raise self._fault
            return arrived, self._is_over and self._fault is None

    def wait(self) -> None:
        """Wait until there is something to take."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_news)

    def stop(self) -> None:
        """End the work after what is being done; safe to call twice."""
        self._is_stopped = True
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._work:
                if item is not None:
                    with self._changed:
                        self._arrived.append(item)
                        self._changed.notify_all()
                if self._is_stopped:
                    break
            self._work.close()
        except BaseException as error:  # noqa: BLE001 - whoever takes gets it
            self._fault = error
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


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


Arrival = tuple[Key, CachedSegment | str]
"""A segment that is whole, or why it is refused."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one call of `ReplayCache.follow` or `ReplayCache.arrived` changed."""

    added: Mapping[Key, CachedSegment]
    """Segments that can be drawn from now on."""
    removed: int
    """Segments that cannot be drawn any more."""
    refused: Mapping[Key, str]
    """Segments that were wanted and are not usable, with the reason."""


class ReplayCache:
    """Segments of one spec as memory-mapped columns.

    Columns, by row: ``frames`` uint8 (C, H, W), if the spec has an image, and ``numbers`` float32
    (2 + A + V,), see `avtd3.store.replay.scratch`.
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
        self._filling: BackgroundDecoder[Arrival] | None = None
        self._rows = self._open(scratch, row_types(spec, frames=frames), shared=shared)

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
            on_progress: Called after each segment.

        Raises:
            StorageError: The disk has no room; what was held and is wanted is still held.
        """
        removed, new = self._make_room(wanted)
        arrived: list[Arrival] = []
        left = total = sum(segment.observations for segment in new.values())
        try:
            with contextlib.closing(self._fill(new)) as work:
                for arrival in work:
                    if arrival is None:
                        continue
                    arrived.append(arrival)
                    left -= new[arrival[0]].observations
                    if on_progress is not None:
                        on_progress(total - left, total)
            return self._take(arrived, removed)
        finally:
            done = self.segments.keys() | {key for key, found in arrived if isinstance(found, str)}
            self._rows.settle([key for key in new if key not in done])

    def follow_behind(self, wanted: Mapping[Key, Segment]) -> int:
        """Begin to hold the wanted segments and no others, in a thread; see `arrived`.

        Returns:
            How many segments are no longer held.

        Raises:
            StorageError: The disk has no room; what was held and is wanted is still held.
        """
        removed, new = self._make_room(wanted)
        if new:
            self._filling = BackgroundDecoder(self._fill(new))
        return removed

    @property
    def is_filling(self) -> bool:
        """Whether segments are still to come that `follow_behind` was told of."""
        return self._filling is not None

    @property
    def has_arrivals(self) -> bool:
        """Whether `arrived` has something to say."""
        return self._filling is not None and self._filling.has_news

    def wait(self) -> None:
        """Wait until `arrived` has something to say; only if `is_filling`."""
        assert self._filling is not None
        self._filling.wait()

    def arrived(self) -> Changes:
        """Take in the segments that are whole since the last call; only if `is_filling`.

        Raises:
            StorageError: The disk has no room.
        """
        assert self._filling is not None
        arrived, is_over = self._filling.take()
        if is_over:
            self._filling = None
            self._rows.settle(())
        return self._take(arrived, 0)

    def _make_room(self, wanted: Mapping[Key, Segment]) -> tuple[int, dict[Key, Segment]]:
        """Let go of what is not wanted; returns how many those were, and what is new."""
        assert self._filling is None, "rows must not move while they are filled"
        gone = [key for key in self.segments if key not in wanted]
        for key in gone:
            del self.segments[key]
        new = {key: segment for key, segment in wanted.items() if key not in self.segments}
        if gone or new:
            self._rows.change(gone, new)
        return len(gone), new

    def _take(self, arrived: Iterable[Arrival], removed: int) -> Changes:
        added: dict[Key, CachedSegment] = {}
        refused: dict[Key, str] = {}
        for key, found in arrived:
            if isinstance(found, CachedSegment):
                added[key] = found
            else:
                refused[key] = found
        self.segments.update(added)
        return Changes(added=added, removed=removed, refused=refused)

    def close(self) -> None:
        """Give the disk space back; safe to call twice."""
        if self._filling is not None:
            self._filling.stop()
            self._filling = None
        self.segments.clear()
        self._rows.close()

    def _enter(self, key: Key, segment: Segment) -> CachedSegment:
        """Check a segment's small arrays and write all but the frames."""
        arrays = read_checked(segment, self.spec)
        end_reasons = segment.read_strings("episode_end_reason")
        write_numbers(self._rows.columns()["numbers"][self._rows[key]], arrays, self.spec)
        lengths = arrays["episode_length"]
        return CachedSegment(
            steps=segment.steps,
            content=segment.content_digest,
            first_rows=np.cumsum(lengths + 1) - (lengths + 1),
            episodes=EpisodeSummary.of(arrays, end_reasons),
        )

    def _fill(self, segments: Mapping[Key, Segment]) -> Generator[Arrival | None, None, None]:
        """Put segments into their rows, decoding the frames that nobody else does.

        Yields:
            Each segment once it is whole or refused; None while others decode.
        """
        waiting = dict(segments)
        while waiting:
            # Ever smaller shares, so that processes that want the same segments divide them and
            # end together (guided self-scheduling, Polychronopoulos and Kuck 1987).
            share = max(2 * FILL_THREADS, len(waiting) // 8)
            ready, mine = self._rows.look(waiting, share)
            decode = dict.fromkeys(ready, False) | dict.fromkeys(mine, True)
            for key, found in self._take_in(waiting, decode):
                if isinstance(found, str):
                    self._rows.settle([key])  # now: others with a good copy wait for it
                del waiting[key]
                yield key, found
            if waiting and not decode:
                time.sleep(WAIT_S)
                yield None

    def _take_in(
        self, segments: Mapping[Key, Segment], decode: Mapping[Key, bool]
    ) -> Iterator[Arrival]:
        """Enter segments and decode the frames of some; yields each one, or what is wrong."""
        if not decode:
            return
        with ThreadPoolExecutor(FILL_THREADS, "replay-fill") as pool:
            jobs = {
                pool.submit(self._take_one, key, segments[key], decode=is_mine): key
                for key, is_mine in decode.items()
            }
            try:
                for job in as_completed(jobs):
                    key = jobs[job]
                    try:
                        found: CachedSegment | str = job.result()
                        if decode[key]:
                            self._rows.finish(key)
                    except StorageError:
                        raise  # an OSError, but not the segment's fault
                    except (SegmentCorruptError, OSError) as error:
                        found = str(error)
                    yield key, found
            finally:
                pool.shutdown(cancel_futures=True)

    def _take_one(self, key: Key, segment: Segment, *, decode: bool) -> CachedSegment:
        entered = self._enter(key, segment)
        if decode and "frames" in self._rows.columns():
            for start, frames in segment.frame_parts():
                self._rows.put_frames(key, start, frames)
        return entered


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameArray:
    """The frames of a replay cache, and where those of each segment lie."""

    frames: NDArray[np.uint8] | None
    """uint8 (rows, C, H, W), the cache's own memory; None while it is empty."""
    placed: Mapping[Key, slice]
    """Rows of each segment that can be drawn from; what lies between them is not for reading."""

    @classmethod
    def of(cls, cache: ReplayCache) -> Self:
        """The column of a cache of images."""
        placed = {}
        for key, segment in cache.segments.items():
            start = cache.start(key)
            placed[key] = slice(start, start + segment.steps + len(segment.first_rows))
        return cls(frames=cache.columns().get("frames"), placed=placed)
