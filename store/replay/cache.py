"""`ReplayCache`: the segments of a sampler, decoded once into memory-mapped scratch files."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import ConfigError, SegmentCorruptError, StorageError
from avtd3.store.format.layout import frames_array
from avtd3.store.replay.scratch import Key, PrivateRows, RowType, row_types, write_numbers
from avtd3.store.replay.shared import SharedRows
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

Progress = Callable[[int, int], None]
"""Called with the number of frames done and the number of frames in total."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSummary:
    """A few numbers about each of E episodes, as columns."""

    returns: NDArray[np.float64]
    """float64 (E,), sum of the rewards."""
    lengths: NDArray[np.int64]
    """int64 (E,), number of steps."""
    policy_versions: NDArray[np.int64]
    """int64 (E,), version of the policy that drove; -1 if no policy did."""
    end_reasons: tuple[str, ...]
    """Why each episode ended, length E."""
    reward_term_sums: NDArray[np.float64]
    """float64 (E, R), sum of each reward term over the steps, in the order of the spec."""
    vector_mean_abs: NDArray[np.float64]
    """float64 (E, V), mean absolute value over the observations, as stored (divided by the
    scale)."""

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], end_reasons: Sequence[str]) -> Self:
        """Summarise the episodes of a segment, none of them empty, from its arrays by name."""
        lengths = arrays["episode_length"]
        first_steps = np.cumsum(lengths) - lengths
        rows = lengths + 1
        vector = np.abs(arrays.get("vector", np.zeros((int(rows.sum()), 0), np.float32)))
        terms = arrays.get("reward_terms", np.zeros((int(lengths.sum()), 0), np.float32))
        return cls(
            returns=arrays["episode_return"],
            lengths=lengths,
            policy_versions=arrays["episode_policy_version"],
            end_reasons=tuple(end_reasons),
            reward_term_sums=_sum_runs(terms, first_steps),
            vector_mean_abs=_sum_runs(vector, np.cumsum(rows) - rows) / rows[:, None],
        )

    def choose(self, episodes: NDArray[np.bool_] | slice) -> Self:
        """Return the summary of some episodes, given as bool (E,) or a slice."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        reasons = np.array(columns.pop("end_reasons"), object)[episodes]
        kept = {name: column[episodes] for name, column in columns.items()}
        return type(self)(end_reasons=tuple(reasons), **kept)

    @classmethod
    def join(cls, summaries: Sequence[Self], spec: EpisodeSpec) -> Self:
        """Concatenate summaries; `spec` gives the widths if there are none."""

        def stack(name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
            empty = np.zeros((0, *shape), dtype)
            return np.concatenate([empty, *(getattr(summary, name) for summary in summaries)])

        return cls(
            returns=stack("returns", np.float64),
            lengths=stack("lengths", np.int64),
            policy_versions=stack("policy_versions", np.int64),
            end_reasons=tuple(reason for summary in summaries for reason in summary.end_reasons),
            reward_term_sums=stack("reward_term_sums", np.float64, len(spec.reward_terms)),
            vector_mean_abs=stack("vector_mean_abs", np.float64, spec.vector_size),
        )


def _sum_runs(values: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum the runs of rows that begin at `starts`, none of them empty: float64 (E, ...)."""
    return np.add.reduceat(values, starts, axis=0, dtype=np.float64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSegment:
    """A segment whose transitions can be sampled."""

    steps: int
    """Number of transitions."""
    content: str
    """`Segment.content_digest`."""
    first_rows: NDArray[np.int64]
    """int64 (E,), row of each episode's first observation, relative to `ReplayCache.start`."""
    episodes: EpisodeSummary
    """Summary of its E episodes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one call of `ReplayCache.follow` or `ReplayCache.take_loaded` changed."""

    added: Mapping[Key, LoadedSegment]
    """Segments that can be sampled from now on."""
    removed: int
    """Number of segments that can no longer be sampled."""
    refused: Mapping[Key, Exception]
    """Wanted segments that cannot be used, with the reason."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameArray:
    """All decoded frames of one stream in a replay cache."""

    frames: NDArray[np.uint8] | None
    """uint8 (rows, C, H, W), memory of the cache itself; None while the cache is empty."""
    placed: Mapping[Key, slice]
    """Rows of each segment that can be sampled. The contents of other rows are undefined."""


class FrameSource(Protocol):
    """Reads the frames of one stream of a batch."""

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the frames of rows int64 (B, W) into `out`, uint8 (B, W, C*H*W), contiguous.

        Raise SegmentNotFoundError, SegmentCorruptError or SegmentUnreadableError if a segment was
        removed, is damaged, or cannot be read now; see `ReplayCache.take_damaged`.
        """


def _read_checked(segment: Segment, spec: EpisodeSpec) -> dict[str, NDArray[Any]]:
    """Read and check the small arrays that replay needs, by name."""
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


def check_held(segment: Segment, arrays: Mapping[str, NDArray[Any]], repeat: int) -> None:
    """Raise if an action changes within a decision of so many steps."""
    lengths, action = arrays["episode_length"], arrays["action"]
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    steps = np.arange(segment.steps) - starts
    first = starts + steps // repeat * repeat
    changed = (action != action[first]).any(axis=1)
    if changed.any():
        row = int(changed.argmax())
        episode = int(np.searchsorted(np.cumsum(lengths), row, side="right"))
        raise ConfigError(
            f"replay.action_repeat is {repeat}, but segment {segment.id} ({segment.path}) changes "
            f"its action within a decision, first in step {steps[row]} of episode {episode}; "
            f"expected data of avtd3 collect --set collect.hold_actions={repeat}"
        )


def _expert_actions(segment: Segment) -> NDArray[np.float32]:
    """Return what the expert would have done, float32 (S, A); NaN where that is not known."""
    found = np.full((segment.steps, segment.spec.action_size), np.nan, np.float32)
    ends = segment.read("episode_length").cumsum().tolist()
    for labels, end in zip(segment.labels() or (), ends, strict=False):
        if labels is not None and labels.expert_action is not None:
            found[end - len(labels.expert_action) : end] = labels.expert_action
    return found


def _check_episodes(segment: Segment, arrays: Mapping[str, NDArray[Any]]) -> None:
    lengths = arrays["episode_length"]
    is_possible = ((lengths > 0) & (lengths <= segment.steps)).all()  # else sums may overflow
    if not is_possible or int(lengths.sum()) != segment.steps:
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


Result = tuple[Key, LoadedSegment | Exception]
"""A segment and its record, or why it is refused."""


class BackgroundDecoder:
    """Runs a generator in a thread and collects what it yields."""

    def __init__(self, work: Generator[Result | None, None, None]) -> None:
        """Start the thread; `work` yields results, or None wherever it may be stopped."""
        self._work = work
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._is_over = False
        self._is_stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="replay-filling", daemon=True)
        self._thread.start()

    @property
    def has_results(self) -> bool:
        """Whether `take` has something to return or raise, the end of the work included."""
        return bool(self._results) or self._is_over

    def take(self) -> tuple[list[Result], bool]:
        """Return the new results, and whether they are the last ones; raise the work's error."""
        with self._changed:
            results, self._results = self._results, []
            if not results and self._error is not None:
                raise self._error
            return results, self._is_over and self._error is None

    def wait(self) -> None:
        """Wait until `has_results`."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_results)

    def stop(self) -> None:
        """Stop at the next result and wait for the thread; safe to call twice."""
        self._is_stopped = True
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._work:
                if item is not None:
                    with self._changed:
                        self._results.append(item)
                        self._changed.notify_all()
                if self._is_stopped:
                    break
            self._work.close()
        except BaseException as error:  # noqa: BLE001 - raised again by `take`
            self._error = error
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


FILL_THREADS = 2
"""Number of decoding threads; the decoder releases the GIL."""

WAIT_S = 0.1
"""Seconds between two checks for segments that another process is decoding."""


class ReplayCache:
    """The segments of a sampler, of one spec, decoded into memory-mapped arrays.

    Each of their observations has a row, by which the arrays and `frames` are read.

    It reads only the streams of its spec, which may be some of those that the segments have. The
    arrays, by row: the frames of each stream, uint8 (C, H, W), and ``numbers`` float32
    (2 + A + V,), with `labels` A more, see `avtd3.store.replay.scratch`.
    """

    def __init__(
        self,
        spec: EpisodeSpec,
        scratch: Path,
        *,
        frames: bool = True,
        shared: bool = True,
        in_background: bool = False,
        labels: bool = False,
        action_repeat: int = 1,
    ) -> None:
        """Create an empty cache; `shared` shares frames with other processes if possible.

        `labels` adds the expert's actions, `action_repeat` is the number of steps per decision.
        """
        self.spec = spec
        self.segments: dict[Key, LoadedSegment] = {}
        """Segments that are completely in the cache."""
        self.notice = ""
        """Why frames are not shared although they should be; empty if they are."""
        self._in_background = in_background
        self._decoder: BackgroundDecoder | None = None
        self._streams = {stream: frames_array(spec, stream) for stream in spec.images}
        self._labels, self._action_repeat = labels, action_repeat
        types = row_types(spec, frames=frames, labels=labels)
        self._rows = self._open(scratch, types, shared=shared)

    def _open(
        self, scratch: Path, types: Mapping[str, RowType], *, shared: bool
    ) -> PrivateRows | SharedRows:
        if shared and len(types) > 1:
            try:
                return SharedRows(scratch, types, self.spec.digest)
            except StorageError:
                raise
            except OSError as error:
                self.notice = f"frames are not shared with other runs: {error}"
        return PrivateRows(scratch, types)

    @property
    def rows(self) -> int:
        """Number of rows that have disk space."""
        return self._rows.rows

    @property
    def frames(self) -> Mapping[str, FrameSource]:
        """Read the frames of each stream, until the next change; empty if there are none."""
        arrays = self.arrays()
        return {
            stream: MappedFrames(arrays[name])
            for stream, name in self._streams.items()
            if name in arrays
        }

    @property
    def is_loading(self) -> bool:
        """Whether a background thread is loading segments; `follow` must not be called then."""
        return self._decoder is not None

    @property
    def has_loaded(self) -> bool:
        """Whether `take_loaded` has something to return; only True while `is_loading`."""
        return self._decoder is not None and self._decoder.has_results

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return the arrays, each ``(rows, ...)``, valid until the next change; see the class."""
        return self._rows.arrays() if self.segments else {}

    def start(self, key: Key) -> int:
        """Return the first row of a segment."""
        return int(self._rows[key].start)

    def frame_array(self, stream: str | None = None) -> FrameArray | None:
        """Return all decoded frames of a stream; None if they are not in memory."""
        placed = {key: self._rows[key] for key in self.segments}
        name = frames_array(self.spec, stream) if self.spec.images else ""
        return FrameArray(frames=self.arrays().get(name), placed=placed)

    def follow(self, wanted: Mapping[Key, Segment], on_progress: Progress | None = None) -> Changes:
        """Load the wanted segments and drop all others, or start to do so in the background.

        Raise StorageError if the disk is full; segments that were loaded and are wanted still are.
        """
        removed, new = self._make_room(wanted)
        if self._in_background:
            if new:
                self._decoder = BackgroundDecoder(self._load(new))
            return Changes(added={}, removed=removed, refused={})
        results: list[Result] = []
        left = total = sum(segment.observations for segment in new.values())
        try:
            with contextlib.closing(self._load(new)) as work:
                for result in work:
                    if result is None:
                        continue
                    results.append(result)
                    left -= new[result[0]].observations
                    if on_progress is not None:
                        on_progress(total - left, total)
            return self._add(results, removed)
        finally:
            refused = {key for key, found in results if isinstance(found, Exception)}
            done = self.segments.keys() | refused
            self._rows.settle([key for key in new if key not in done])

    def wait(self) -> None:
        """Wait until `has_loaded`; only while `is_loading`."""
        assert self._decoder is not None
        self._decoder.wait()

    def take_loaded(self) -> Changes:
        """Return what the background thread has loaded; raise StorageError if the disk is full."""
        assert self._decoder is not None
        results, is_over = self._decoder.take()
        if is_over:
            self._decoder = None
            self._rows.settle(())
        return self._add(results, 0)

    def take_damaged(self) -> Mapping[Key, Exception]:
        """Return the segments that `frames` failed to read since the last call, with reasons.

        None did: all frames were checked when they were decoded.
        """
        return {}

    def close(self) -> None:
        """Free the disk space; safe to call twice."""
        if self._decoder is not None:
            self._decoder.stop()
            self._decoder = None
        self.segments.clear()
        self._rows.close()

    def _make_room(self, wanted: Mapping[Key, Segment]) -> tuple[int, dict[Key, Segment]]:
        """Drop what is not wanted; return how many segments those were, and the new ones."""
        assert self._decoder is None, "rows must not move while they are written"
        gone = [key for key in self.segments if key not in wanted]
        for key in gone:
            del self.segments[key]
        new = {key: segment for key, segment in wanted.items() if key not in self.segments}
        if gone or new:
            self._rows.change(gone, new)
        return len(gone), new

    def _add(self, results: Sequence[Result], removed: int) -> Changes:
        added = {key: found for key, found in results if isinstance(found, LoadedSegment)}
        refused = {key: found for key, found in results if isinstance(found, Exception)}
        self.segments.update(added)
        return Changes(added=added, removed=removed, refused=refused)

    def _load(self, segments: Mapping[Key, Segment]) -> Generator[Result | None, None, None]:
        """Yield each segment once it is complete or refused; None while other processes decode."""
        waiting = dict(segments)
        while waiting:
            # The shares get smaller, so that processes that want the same segments finish at the
            # same time (guided self-scheduling, Polychronopoulos and Kuck 1987).
            share = max(2 * FILL_THREADS, len(waiting) // 8)
            ready, mine = self._rows.claim(waiting, share)
            decode = dict.fromkeys(ready, False) | dict.fromkeys(mine, True)
            for key, found in self._load_share(waiting, decode):
                if isinstance(found, Exception):
                    self._rows.settle([key])  # now: others may have an intact copy
                del waiting[key]
                yield key, found
            if waiting and not decode:
                time.sleep(WAIT_S)
                yield None

    def _load_share(
        self, segments: Mapping[Key, Segment], decode: Mapping[Key, bool]
    ) -> Iterator[Result]:
        """Load segments in a few threads; decode the frames of those whose value is True."""
        if not decode:
            return
        with ThreadPoolExecutor(FILL_THREADS, "replay-fill") as pool:
            jobs = {
                pool.submit(self._load_one, key, segments[key], decode=is_mine): key
                for key, is_mine in decode.items()
            }
            try:
                for job in as_completed(jobs):
                    key = jobs[job]
                    try:
                        found: LoadedSegment | Exception = job.result()
                        if decode[key]:
                            self._rows.finish(key)
                    except StorageError:
                        raise  # an OSError, but not a fault of the segment
                    except (SegmentCorruptError, OSError) as error:
                        found = error
                    yield key, found
            finally:
                pool.shutdown(cancel_futures=True)

    def _load_one(self, key: Key, segment: Segment, *, decode: bool) -> LoadedSegment:
        """Check a segment, write its numbers and, with `decode`, its frames."""
        arrays = _read_checked(segment, self.spec)
        if self._action_repeat > 1:
            check_held(segment, arrays, self._action_repeat)
        if self._labels:
            arrays["expert_action"] = _expert_actions(segment)
        end_reasons = segment.read_strings("episode_end_reason")
        out = self._rows.arrays()
        write_numbers(out["numbers"][self._rows[key]], arrays, self.spec)
        for stream, name in self._streams.items() if decode else ():
            if name in out:
                for start, frames in segment.frame_parts(stream):
                    self._rows.put_frames(name, key, start, frames)
        lengths = arrays["episode_length"]
        return LoadedSegment(
            steps=segment.steps,
            content=segment.content_digest,
            first_rows=np.cumsum(lengths + 1) - (lengths + 1),
            episodes=EpisodeSummary.of(arrays, end_reasons),
        )


class MappedFrames:
    """A `FrameSource` over decoded frames in memory."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        """Read from these frames, uint8 (rows, C, H, W)."""
        # With two axes instead of four, np.take copies each row as one block.
        self._frames = frames.reshape(len(frames), -1)

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the frames of these rows into `out`; see `FrameSource.take`."""
        np.take(self._frames, rows, axis=0, mode="clip", out=out)
