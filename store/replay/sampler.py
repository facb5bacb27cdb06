"""`Sampler`: batches of transitions, or of sequences, from one or several datasets.

A sampler combines four parts:

* `SegmentTracker`: which segments the datasets have, and which of them are wanted.
* `ReplayCache`, or its subclass `DirectReplay`: where frames come from; see `choose_mode`.
* `TransitionIndex`: which transitions may be sampled, and their numbers.
* `Draws` or `Priorities`: which numbers make the next batch.

`Gather` then puts the batch together.
"""

import dataclasses
import hashlib
import itertools
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.episode import Episode, SegmentReader
from avtd3.store.errors import (
    SEGMENT_ERRORS,
    ConfigError,
    NoSegmentsError,
    SegmentCorruptError,
    SegmentNotFoundError,
    install_command,
)
from avtd3.store.filters import NO_POLICY
from avtd3.store.replay.cache import (
    EpisodeSummary,
    FrameArray,
    LoadedSegment,
    Progress,
    ReplayCache,
)
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.direct import DirectReplay
from avtd3.store.replay.draws import (
    Draws,
    Priorities,
    TransitionIndex,
    group_draws,
)
from avtd3.store.replay.gather import (
    Gather,
    SequenceBatch,
    SequenceGather,
    Transitions,
    UngatheredBatch,
    frame_buffers,
)
from avtd3.store.replay.native import native_problem
from avtd3.store.replay.scratch import GIB, Key, row_bytes
from avtd3.store.replay.shared import FRAMES, directory_name
from avtd3.store.replay.tracker import RefreshReport, RefusedSegment, SegmentTracker
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

Mode = Literal["cache", "direct"]

_SPARE = 0.9
"""Maximum share of the free space that a cache may take; other programs write to the disk, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMode:
    """Where frames come from, and why."""

    mode: Mode
    """``cache``: decoded once into a scratch file. ``direct``: from the dataset for each batch."""
    why: str
    """The reason, for people."""

    def __str__(self) -> str:
        return f"replay {self.mode}: {self.why}"


def choose_mode(
    config: ReplayConfig,
    spec: EpisodeSpec,
    wanted: Mapping[Key, Segment],
    scratch: Path,
    *,
    grows: bool,
) -> ReplayMode:
    """Return the configured mode; for ``auto``, return ``cache`` if the cache fits on the disk.

    `wanted` are the segments to load first. If it `grows`, more are expected, so that the whole
    capacity must fit.
    """
    if config.mode == "direct" and spec.images:
        return ReplayMode(mode="direct", why=f"as configured; {_describe_decoder()}")
    if not spec.images:
        return ReplayMode(mode="cache", why="there are no frames to decode")
    if config.mode == "cache":
        return ReplayMode(mode="cache", why="as configured")
    steps = sum(segment.steps for segment in wanted.values())
    rows = sum(segment.observations for segment in wanted.values())
    if grows and steps < config.capacity:
        # Each episode has one row more than steps. Ignore it until an episode is known.
        rows = config.capacity * rows // steps if steps else config.capacity
    need, free = rows * row_bytes(spec), _free_bytes(scratch) + _shared_bytes(scratch, spec)
    text = (
        f"{rows:,} frames need {need / GIB:.2f} GiB of scratch, {free / GIB:.2f} GiB are free "
        f"in {scratch}"
    )
    if need <= _SPARE * free:
        return ReplayMode(mode="cache", why=text)
    return ReplayMode(mode="direct", why=f"{text}; {_describe_decoder()}")


def _describe_decoder() -> str:
    if problem := native_problem():
        return (
            f"frames are decoded by numcodecs, half as fast as with `{install_command('native')}` "
            f"({problem})"
        )
    return "frames are decoded natively"


def _free_bytes(directory: Path) -> int:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    state = os.statvfs(directory)
    return state.f_bavail * state.f_frsize


def _shared_bytes(directory: Path, spec: EpisodeSpec) -> int:
    """Return the size of frames that other processes share, which most likely include ours."""
    try:
        shared = (directory / directory_name(spec.digest)).glob(f"{FRAMES}*")
        return sum(512 * path.lstat().st_blocks for path in shared)
    except OSError:
        return 0


def _open_backend(
    mode: ReplayMode, spec: EpisodeSpec, scratch: Path, config: ReplayConfig
) -> tuple[ReplayCache, ReplayMode]:
    """Return an empty backend, and the mode with what people should know about it."""
    labels, repeat = config.imitate_expert, config.action_repeat
    if mode.mode == "direct":
        return DirectReplay(spec, scratch, labels=labels, action_repeat=repeat), mode
    cache = ReplayCache(
        spec,
        scratch,
        in_background=config.fill == "while",
        labels=labels,
        action_repeat=repeat,
    )
    if cache.notice:
        mode = dataclasses.replace(mode, why=f"{mode.why}; {cache.notice}")
    return cache, mode


TAKE_S = 0.5
"""Minimum seconds between two updates of the index while segments are loaded in the background."""


class Sampler:
    """Samples batches of transitions, or of sequences, from one or several datasets.

    What can be sampled depends only on the snapshots of the datasets and on the configuration;
    with the same seed, the batches are the same. All methods may be called from several threads.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from avtd3.store import Dataset, EpisodeSpec, Observation, SegmentWriter
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> dataset = Dataset.create(tempfile.mkdtemp(), spec)
        >>> with SegmentWriter(dataset) as writer:
        ...     writer.begin(Observation(vector=np.zeros(1, np.float32)))
        ...     after = Observation(vector=np.ones(1, np.float32))
        ...     writer.step(np.zeros(1, np.float32), 1.0, after, terminated=True)
        >>> with Sampler([dataset], ReplayConfig(batch_size=4), seed=0) as sampler:
        ...     for batch in sampler.batches(2):
        ...         print(batch.reward, batch.discount)
        [1. 1. 1. 1.] [0. 0. 0. 0.]
        [1. 1. 1. 1.] [0. 0. 0. 0.]
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        config: ReplayConfig,
        *,
        seed: int,
        scratch: Path | None = None,
        buffers: int = 3,
        gathers: bool = True,
        grows: bool = False,
        part: tuple[int, int] = (0, 1),
        on_progress: Progress | None = None,
    ) -> None:
        """Take a snapshot of each dataset, and load its segments or start to load them.

        Args:
            datasets: Datasets with the same spec, apart from streams that are not read.
            config: What to keep and how to sample.
            seed: Seed of the batches.
            scratch: Directory for the scratch files if `config` names none; None for the system's
                temporary directory.
            buffers: Number of batches whose frames are valid at the same time. Use 3 for a thread
                that samples ahead. Use 1 if each batch is used up at once: the buffer then stays in
                the CPU cache, which saves a fifth of the time.
            gathers: False for batches without frames, whose `Transitions.frame_rows` are rows of
                `frame_array`. Direct replay always gathers.
            grows: Whether `refresh` will be called; see `choose_mode`.
            part: A number and how many there are: batches are that part of batches so many times
                as large. Samplers with the same seed and data, one per part, share them.
            on_progress: Called with frames done and frames in total while frames are decoded.

        Raises:
            ConfigError: There is no dataset, one is given twice, there is not one weight each,
                `buffers` is below 1, or `seed` below 0.
            SpecError: The datasets have different specs.
            StorageError: The scratch directory cannot be written or is too small.
        """
        if buffers < 1:
            raise ConfigError(f"a sampler needs at least 1 buffer, found {buffers}")
        if seed < 0:
            raise ConfigError(f"the seed of a sampler is {seed}, expected a whole number >= 0")
        directory = Path(config.scratch or scratch or tempfile.gettempdir())
        self.config, self.steps = config, 0
        self._tracker = SegmentTracker(datasets, config)
        stored = self._tracker.datasets[0].spec.select(config.streams)
        self.spec = config.view(stored)
        """Spec of what is sampled."""
        mode = choose_mode(config, stored, self._tracker.wanted(), directory, grows=grows)
        self.backend, self.mode = _open_backend(mode, stored, directory, config)
        size, length = config.batch_size, config.sequence_length
        number, parts = part
        self._own = slice(number * size, (number + 1) * size)
        self._draws = Draws(seed=seed, batch_size=parts * size)
        self._gather = Gather(self.spec, config)
        self._priorities = self._sequences = None
        if config.prioritised:
            self._priorities = Priorities(config.priority, seed=seed, batch_size=parts * size)
        if length:
            count = size // length
            self._own_sequences = slice(number * count, (number + 1) * count)
            self._sequence_draws = Draws(seed=seed, batch_size=parts * count)
            self._sequences = SequenceGather(
                self.spec, length=length, count=count, action_repeat=config.action_repeat
            )
        gathers = gathers or isinstance(self.backend, DirectReplay)
        self._buffers = [frame_buffers(self.spec, config, gathers=gathers) for _ in range(buffers)]
        self._sampled = 0
        self._block: list[UngatheredBatch] = []
        self._looked_up: NDArray[np.int64] | None = None
        self._frame_arrays: dict[str, FrameArray] = {}
        self._chosen_digest = self._hashed = ""
        self._newest = NO_POLICY
        self._taken_s = -math.inf
        self._unreported: list[RefreshReport] = []
        self._lock = threading.Lock()
        try:
            self.opening = self._open(on_progress)
            """What was loaded when the sampler was opened."""
        except BaseException:
            self.close()
            raise

    def sample(self) -> Transitions:
        """Sample a batch.

        Returns:
            A batch. The call number `buffers` from now overwrites its frames; its other arrays are
            never overwritten.

        Raises:
            NoSegmentsError: There are no transitions to sample.
            DatasetUnreadableError: The same, because no segment can be read now.
        """
        with self._lock:
            while True:
                self._take_loaded(every_s=TAKE_S)
                if not self.steps:
                    raise self._tracker.empty_error()
                try:
                    batch = self._next().gather()
                except SEGMENT_ERRORS:
                    self._refuse_damaged()
                    continue
                self._sampled += 1
                return batch

    def batches(self, count: int | None = None) -> Iterator[Transitions]:
        """Yield batches of `sample`.

        Args:
            count: Number of batches; None for an endless iterator.
        """
        for _ in itertools.repeat(None) if count is None else range(count):
            yield self.sample()

    def __iter__(self) -> Iterator[Transitions]:
        """Yield batches of `sample` without end."""
        return self.batches()

    def sample_sequences(self) -> SequenceBatch:
        """Sample a batch of ``batch_size / sequence_length`` sequences.

        Every start that leaves `ReplayConfig.sequence_length` steps in its episode is equally
        likely, or as likely as weights, mix and decay say. Shorter episodes are never sampled.

        Returns:
            Sequences whose frames the next call overwrites.

        Raises:
            ConfigError: `ReplayConfig.sequence_length` is 0.
            NoSegmentsError: Nothing can be sampled, or no episode is long enough.
            DatasetUnreadableError: Nothing can be sampled, because no segment can be read now.
        """
        length = self.config.sequence_length
        if self._sequences is None:
            raise ConfigError("replay.sequence_length is 0, expected the length of the sequences")
        with self._lock:
            self._take_loaded(every_s=TAKE_S)
            while self._sequence_draws.count:
                block, number = self._sequence_draws.next()
                try:
                    return self._sequences.batch(block[number, self._own_sequences])
                except SEGMENT_ERRORS:
                    self._refuse_damaged()
            if not self.steps:
                raise self._tracker.empty_error()
            raise NoSegmentsError(
                f"no episode has {length} steps, the value of replay.sequence_length; lower it"
            )

    def sequence_batches(self, count: int | None = None) -> Iterator[SequenceBatch]:
        """Yield batches of `sample_sequences`.

        Args:
            count: Number of batches; None for an endless iterator.
        """
        for _ in itertools.repeat(None) if count is None else range(count):
            yield self.sample_sequences()

    def update_priorities(self, index: NDArray[np.int64], td_error: NDArray[np.float32]) -> None:
        """Set the priorities of transitions from their TD errors.

        Args:
            index: int64 (B,), `Transitions.index` of any earlier batch.
            td_error: float (B,), of any sign. Non-finite values are ignored.

        Raises:
            ConfigError: `ReplayConfig.prioritised` is not set.
        """
        if self._priorities is None:
            raise ConfigError("replay.prioritised is false, expected true to update priorities")
        with self._lock:
            self._priorities.update(index, td_error)

    def refresh(self) -> RefreshReport:
        """Load segments published since the last refresh; drop removed ones and the oldest.

        Raises:
            StorageError: The scratch directory is too small.
        """
        with self._lock:
            self._take_loaded()
            # Rows must not move while segments are loaded, so finish that first.
            absent = () if self.backend.is_loading else self._tracker.refresh()
            self._follow()
            return dataclasses.replace(self._take_reports(), absent=absent)

    def retry_refused(self) -> RefreshReport:
        """Try refused segments again, such as those that could not be read; take no new segments.

        Call it now and then in place of `refresh` if the data must otherwise stay the same. It
        costs nothing if no segment is refused.

        Raises:
            StorageError: The scratch directory is too small.
        """
        with self._lock:
            self._take_loaded()
            if not self.backend.is_loading and self._tracker.refusals:
                self._tracker.retry()
                self._follow()
            return self._take_reports()

    def refuse(self, segments: Iterable[RefusedSegment]) -> None:
        """Exclude segments that another process cannot use, until a refresh tries them again."""
        with self._lock:
            paths = [dataset.path for dataset in self._tracker.datasets]
            reasons = {(paths.index(s.dataset), s.segment_id): s.reason for s in segments}
            known = self._tracker.refusals
            self._tracker.refuse(
                {key: SegmentCorruptError(why) for key, why in reasons.items() if key not in known}
            )
            self._follow()

    @property
    def has_refused(self) -> bool:
        """Whether there are segments for `retry_refused` to try."""
        return bool(self._tracker.refusals)

    @property
    def has_news(self) -> bool:
        """Whether `news` has changes to report, or will have once more is loaded."""
        return bool(self._unreported) or self.backend.is_loading

    def news(self) -> RefreshReport:
        """Return the changes since the last report, without refreshing.

        Raises:
            StorageError: The scratch directory is too small.
        """
        with self._lock:
            self._take_loaded()
            return self._take_reports()

    def held_out(self, limit: int | None = None) -> Iterator[Episode]:
        """Yield complete episodes that are never sampled, in an order that new ones do not change.

        Their steps are decisions, see `ReplayConfig.action_repeat`.

        Args:
            limit: Maximum number of episodes; None for all.
        """
        with self._lock:
            chosen = self._tracker.held_out()
        found = 0
        for key, number, segment in chosen:
            if found == limit:
                return
            try:
                reader, repeat = SegmentReader(segment), self.config.action_repeat
                episode = Episode(reader, number, action_repeat=repeat).load(self.spec.images)
            except SegmentNotFoundError:
                continue  # pruned or merged in the meantime; the next refresh finds out
            except (SegmentCorruptError, OSError) as error:
                with self._lock:
                    self._tracker.refuse({key: error})
                continue
            found += 1
            yield episode

    def frame_array(self, stream: str | None = None) -> FrameArray:
        """Return all decoded frames of a stream, or of the only one.

        The object is a new one after each change of the segments.

        Raises:
            ConfigError: The mode is ``direct``.
            SpecError: There is no such stream, or there are several and none is named.
        """
        name = self.spec.stream_name(stream) if self.spec.images else ""
        with self._lock:
            if name not in self._frame_arrays:
                found = self.backend.frame_array(stream)
                if found is None:
                    raise ConfigError("direct replay has no frame array; set replay.mode to cache")
                self._frame_arrays[name] = found
            return self._frame_arrays[name]

    @property
    def steps_published(self) -> int:
        """Steps that the datasets have published so far: sampled, excluded and dropped ones."""
        return self._tracker.published.total()

    @property
    def steps_by_collector(self) -> Mapping[str, int]:
        """The published steps so far by the name of the collector in the segments' names."""
        return dict(self._tracker.published)

    def segments_of(self, number: int) -> set[str]:
        """Return the names of the segments of a dataset that are sampled, or being loaded."""
        return {name for dataset, name in tuple(self._tracker.followed) if dataset == number}

    @property
    def excluded(self) -> str:
        """Why no episode may be sampled; empty if there are no episodes."""
        return self._tracker.eligibility.describe()

    @property
    def refused(self) -> tuple[RefusedSegment, ...]:
        """All published segments that cannot be used, as of the last refresh."""
        with self._lock:
            return self._tracker.refusals.all()

    def state(self) -> dict[str, Any]:
        """Return the state of the generators and a digest of what can be sampled, as plain JSON."""
        with self._lock:
            state = {**self._draws.state(), "segments": self._digest()}
            if self._priorities is not None:
                state["priorities"] = self._priorities.state()
            if self._sequences is not None:
                state["sequences"] = self._sequence_draws.state()
            return state

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the part of the state that is too large for JSON: the priorities, if any."""
        with self._lock:
            return {} if self._priorities is None else self._priorities.arrays()

    def restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> bool:
        """Continue from `state` and `arrays`.

        Returns:
            Whether the same transitions can be sampled as then, so that the batches are identical.

        Raises:
            CheckpointError: `state` is not what `Sampler.state` returns.
        """
        with self._lock:
            self._draws.restore(state)
            if self._priorities is not None and "priorities" in state:
                self._priorities.restore(state["priorities"], arrays or {})
            if self._sequences is not None and "sequences" in state:
                self._sequence_draws.restore(state["sequences"])
            return bool(state.get("segments") == self._digest())

    @property
    def digest(self) -> str:
        """SHA-256 of what can be sampled."""
        with self._lock:
            return self._digest()

    def close(self) -> None:
        """Free the scratch space; safe to call twice."""
        with self._lock:
            self.backend.close()
            self._index()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> UngatheredBatch:
        """Return the next batch without its frames."""
        if self._priorities is not None:
            drawn = self._priorities.draw()
            block = self._gather.look_up(drawn.number[None, self._own])
            weight, index = drawn.weight[None, self._own], drawn.index[None]
            return self._batches(dataclasses.replace(block, weight=weight, index=index), 0)[0]
        numbers, place = self._draws.next()
        if numbers is not self._looked_up:
            block = self._gather.look_up(numbers[:, self._own])
            self._block, self._looked_up = self._batches(block, place), numbers
        return self._block[place]

    def _batches(self, block: Transitions, place: int) -> list[UngatheredBatch]:
        """Return the batches of a block, of which number `place` is the next.

        Buffers take turns.
        """
        turns = range(self._sampled - place, self._sampled - place + len(block.reward))
        return self._gather.batches(block, [self._buffers[n % len(self._buffers)] for n in turns])

    def _open(self, on_progress: Progress | None) -> RefreshReport:
        """Load segments, until something can be sampled or there is nothing to load."""
        self._follow(on_progress)
        total = sum(segment.observations for segment in self._tracker.followed.values())
        while self.backend.is_loading and not self.backend.segments:
            self.backend.wait()
            self._take_loaded()
            if on_progress is not None:
                followed = self._tracker.followed
                on_progress(sum(followed[key].observations for key in self.backend.segments), total)
        return self._take_reports()

    def _follow(self, on_progress: Progress | None = None) -> None:
        """Load the wanted segments and drop all others, or start to do so in the background."""
        added: dict[Key, LoadedSegment] = {}
        removed = 0
        if not self.backend.is_loading:
            while (wanted := self._tracker.wanted()).keys() != self.backend.segments.keys():
                try:
                    changes = self.backend.follow(wanted, on_progress)
                finally:
                    self._index()  # rows have moved, even if the disk is full
                added |= changes.added
                removed += changes.removed
                # Older segments get the room of refused ones.
                self._tracker.refuse(changes.refused)
                if self.backend.is_loading:
                    break
            if self._tracker.eligibility.newest != self._newest:
                self._index()  # the age of the policies has changed
            self._tracker.follow(wanted)
        self._report(added, removed)

    def _take_loaded(self, every_s: float = 0.0) -> None:
        """Let segments be sampled that were loaded in the background.

        Do so at most every so many seconds, because the whole index is made again.
        """
        if not self.backend.has_loaded or time.monotonic() < self._taken_s + every_s:
            return
        self._taken_s = time.monotonic()
        changes = self.backend.take_loaded()
        self._tracker.refuse(changes.refused)
        if changes.added:
            self._index()
        self._report(changes.added, 0)
        if not self.backend.is_loading:
            self._follow()  # older segments get the room of refused ones

    def _refuse_damaged(self) -> None:
        """Continue without segments that turned out to be damaged or removed."""
        damaged = self.backend.take_damaged()
        assert damaged, "otherwise the same batch would fail again and again"
        self._tracker.refuse(damaged)
        self._tracker.refresh()  # a removed segment may have been merged into another one
        self._follow()

    def _report(self, added: Mapping[Key, LoadedSegment], removed: int) -> None:
        new = self._tracker.new_episodes(added)
        self._unreported.append(
            RefreshReport(
                segments_added=len(new),
                segments_removed=removed,
                steps_added=sum(int(episodes.lengths.sum()) for episodes in new),
                episodes=EpisodeSummary.join(new, self.spec),
                refused=self._tracker.refusals.take_new(),
            )
        )

    def _take_reports(self) -> RefreshReport:
        """Return all unreported changes in one report."""
        report = RefreshReport.join(self._unreported, self.spec)
        self._unreported.clear()
        return report

    def _index(self) -> None:
        """Number all transitions that may be sampled, and sample from these from now on."""
        eligibility, datasets = self._tracker.eligibility, len(self._tracker.datasets)
        self._frame_arrays, self._newest = {}, eligibility.newest
        self._block, self._looked_up = [], None
        self._hashed = ""
        index = TransitionIndex.of(self.backend, eligibility, self.config.action_repeat)
        groups = group_draws(index, index.lengths, eligibility, self.config, datasets)
        self.steps = index.steps
        self._chosen_digest = "" if eligibility.takes_all else index.digest(groups)
        self._draws.bind(groups.counts, groups.shares)
        if self._priorities is not None:
            self._priorities.bind(index, groups.by_episode(index.lengths))
        arrays, frames = self.backend.arrays(), self.backend.frames
        self._gather.bind(arrays, index, frames)
        if self._sequences is not None:
            starts = index.sequence_starts(self.config.sequence_length)
            groups = group_draws(index, starts, eligibility, self.config, datasets)
            self._sequence_draws.bind(groups.counts, groups.shares)
            self._sequences.bind(arrays, index, frames)

    def _digest(self) -> str:
        if not self._hashed:
            text = repr(sorted(self.backend.segments)) + self._chosen_digest
            self._hashed = hashlib.sha256(text.encode()).hexdigest()
        return self._hashed
