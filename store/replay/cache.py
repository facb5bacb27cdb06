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
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SegmentCorruptError, StorageError
from avtd3.store.replay.checked import read_checked
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
            added = self._fill(new, refused, on_progress)
            self.segments.update(added)
        finally:
            done = self.segments.keys() | refused.keys()
            self._rows.settle([key for key in new if key not in done])
        return Changes(added=added, removed=len(gone), refused=refused)

    def close(self) -> None:
        """Give the disk space back; safe to call twice."""
        self.segments.clear()
        self._rows.close()

    def _enter(self, key: Key, segment: Segment) -> CachedSegment:
        """Check a segment's small arrays and write all but the frames."""
        arrays = read_checked(segment, self.spec)
        end_reasons = segment.read_strings("episode_end_reason")
        self._write_numbers(self._rows.columns()["numbers"][self._rows[key]], arrays)
        lengths = arrays["episode_length"]
        return CachedSegment(
            steps=segment.steps,
            content=segment.content_digest,
            first_rows=np.cumsum(lengths + 1) - (lengths + 1),
            episodes=EpisodeSummary.of(arrays, end_reasons),
        )

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
    ) -> dict[Key, CachedSegment]:
        """Put segments into their rows, decoding the frames that nobody else does.

        Returns:
            The segments that are whole.
        """
        waiting, whole = dict(segments), {}
        left = total = sum(segment.observations for segment in segments.values())
        while waiting:
            # Ever smaller shares, so that processes that want the same segments divide them and
            # end together (guided self-scheduling, Polychronopoulos and Kuck 1987).
            share = max(2 * FILL_THREADS, len(waiting) // 8)
            ready, mine = self._rows.look(waiting, share)
            decode = dict.fromkeys(ready, False) | dict.fromkeys(mine, True)
            for key, found in self._take_in(waiting, decode):
                if isinstance(found, CachedSegment):
                    whole[key] = found
                else:
                    refused[key] = found
                    self._rows.settle([key])  # now: others with a good copy wait for it
                left -= waiting.pop(key).observations
                if on_progress is not None:
                    on_progress(total - left, total)
            if waiting and not decode:
                time.sleep(WAIT_S)
        return whole

    def _take_in(
        self, segments: Mapping[Key, Segment], decode: Mapping[Key, bool]
    ) -> Iterator[tuple[Key, CachedSegment | str]]:
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
        entered, columns = self._enter(key, segment), self._rows.columns()
        if decode and "frames" in columns:
            segment.read_frames(out=columns["frames"][self._rows[key]])
        return entered


def _row_types(spec: EpisodeSpec, *, frames: bool) -> dict[str, RowType]:
    width = ACTION + spec.action_size + spec.vector_size
    types = {"numbers": RowType(dtype=np.float32, shape=(width,))}
    if frames and spec.image is not None:
        types["frames"] = RowType(dtype=np.uint8, shape=spec.image.frame_shape)
    return types


def row_bytes(spec: EpisodeSpec) -> int:
    """Scratch that one row takes in a cache with frames."""
    return sum(kind.size_bytes for kind in _row_types(spec, frames=True).values())
