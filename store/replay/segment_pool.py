"""What a sampler found when it looked at its datasets: what is new, and what it cannot use."""

import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np

from avtd3.store.dataset import Dataset, Refusal, Snapshot
from avtd3.store.errors import DatasetError, SegmentCorruptError, SegmentNotFoundError
from avtd3.store.filters import NO_POLICY
from avtd3.store.replaced import unseen_episodes
from avtd3.store.replay.cache import CachedSegment, Changes, FrameArray, Progress, ReplayCache
from avtd3.store.replay.config import ReplayConfig, check_datasets, select_segments
from avtd3.store.replay.direct import DirectReplay, JoinedDecoder
from avtd3.store.replay.eligibility import Eligibility, HeldOutEpisode, read_episode
from avtd3.store.replay.episodes import EpisodeSummary
from avtd3.store.replay.native import native_problem, open_decoder
from avtd3.store.replay.scratch import GIB, row_bytes
from avtd3.store.replay.shared import FRAMES, Key, directory_name
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec

_NAMED = 5
"""Most segments that an error names."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefusedSegment:
    """A published segment that cannot be used."""

    dataset: Path
    """Directory of its dataset."""
    segment_id: str
    """Name of its directory."""
    reason: str
    """What is wrong with it and what mends it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefreshReport:
    """What a refresh, or the opening of a sampler, changed."""

    segments_added: int
    """Segments that can be drawn from now on."""
    segments_removed: int
    """Segments that cannot be drawn any more: past the capacity, or removed from the dataset."""
    steps_added: int
    """Transitions in the added segments."""
    episodes: EpisodeSummary
    """The episodes in the added segments: by dataset, then segment id."""
    refused: tuple[RefusedSegment, ...]
    """Segments that cannot be used, each reported once; `Sampler.refused` has all of them."""
    absent: tuple[Path, ...] = ()
    """Datasets that cannot be listed or have lost all their segments, as when a disk is unmounted;
    what was read of them can still be drawn."""

    @classmethod
    def join(cls, reports: Sequence[Self], spec: EpisodeSpec) -> Self:
        """Several changes in one report, in the order in which they happened."""
        return cls(
            segments_added=sum(report.segments_added for report in reports),
            segments_removed=sum(report.segments_removed for report in reports),
            steps_added=sum(report.steps_added for report in reports),
            episodes=EpisodeSummary.join([report.episodes for report in reports], spec),
            refused=tuple(segment for report in reports for segment in report.refused),
        )


class Refusals:
    """Segments that cannot be used, in the order in which they were found.

    What could not be opened is tried again by each snapshot. What opened and then proved bad is
    left alone until it is removed: it would be read in vain every time.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Start with none.

        Args:
            paths: Directory of each dataset, in the order of the keys' numbers.
        """
        self._paths = tuple(paths)
        self._reasons: dict[Key, str] = {}
        self._proved: set[Key] = set()
        self._reported: set[Key] = set()

    def __contains__(self, key: Key) -> bool:
        """Whether a segment opened and proved bad."""
        return key in self._proved

    def follow(self, snapshots: Sequence[Snapshot]) -> None:
        """Take in what snapshots refuse; forget what was mended or removed."""
        unopened = {
            (number, refusal.segment_id): refusal.reason
            for number, snapshot in enumerate(snapshots)
            for refusal in snapshot.refused
        }
        if self._proved:
            listed = {
                (n, segment.id) for n, held in enumerate(snapshots) for segment in held.segments
            }
            self._proved &= listed
        still = unopened.keys() | self._proved
        self._reasons = {key: reason for key, reason in self._reasons.items() if key in still}
        self._reasons |= unopened
        self._reported &= still

    def add(self, proved: Mapping[Key, str]) -> None:
        """Take in segments that opened and proved bad, with the reason."""
        self._proved |= proved.keys()
        self._reasons |= proved

    def all(self) -> tuple[RefusedSegment, ...]:
        """All that are refused now."""
        return tuple(self._describe(key) for key in self._reasons)

    def take_new(self) -> tuple[RefusedSegment, ...]:
        """Those that no call before has returned."""
        new = [key for key in self._reasons if key not in self._reported]
        self._reported.update(new)
        return tuple(self._describe(key) for key in new)

    def _describe(self, key: Key) -> RefusedSegment:
        return RefusedSegment(
            dataset=self._paths[key[0]], segment_id=key[1], reason=self._reasons[key]
        )


def name_refused(refused: Sequence[RefusedSegment]) -> str:
    """For an error where nothing but refused segments is left: which, and why the first.

    Args:
        refused: At least one.
    """
    names = ", ".join(segment.segment_id for segment in refused[:_NAMED])
    if len(refused) > _NAMED:
        names += f" and {len(refused) - _NAMED} more"
    return f"{len(refused)} segments are refused ({names}), the first because: {refused[0].reason}"


class SegmentTracker:
    """The newest snapshot of each dataset, what may be drawn of it, and what is refused."""

    def __init__(self, datasets: Sequence[Dataset], config: ReplayConfig) -> None:
        """Take a snapshot of each.

        Raises:
            ConfigError: No dataset, one given twice, or not one weight for each.
            SpecError: The datasets hold different data.
        """
        self.datasets = check_datasets(datasets, config)
        self.eligible = Eligibility(config)
        self.refusals = Refusals([dataset.path for dataset in self.datasets])
        self._config = config
        # Files of segments that the capacity leaves out need not be there; see `wanted`.
        check = not self.eligible.takes_all
        self._snapshots = [dataset.snapshot(check_files=check) for dataset in self.datasets]
        self._held: Mapping[Key, Segment] = {}

    def look_again(self) -> tuple[Path, ...]:
        """Take new snapshots; returns the datasets that are absent, whose old ones are kept."""
        numbers = range(len(self.datasets))
        return tuple(self.datasets[n].path for n in numbers if self._is_absent(n))

    def begin(self) -> None:
        """Let the refusals follow the snapshots; before `wanted` is asked for."""
        self.refusals.follow(self._snapshots)

    def wanted(self) -> dict[Key, Segment]:
        """The segments to hold; refuses those of whose episodes nothing can be read."""
        while True:
            segments = self._listed()
            self.refusals.add(unreadable := self.eligible.look(segments))
            readable = {key: segments[key] for key in segments if key not in unreadable}
            chosen = select_segments(self.eligible.steps(readable), self._config)
            found = {key: segments[key] for key in chosen}
            if not self._leave_out_torn(found):
                return found

    def _leave_out_torn(self, found: Mapping[Key, Segment]) -> bool:
        """Let the snapshots refuse what is torn, so that it is tried again once it is whole."""
        torn: dict[Key, Refusal] = {}
        for key, segment in found.items():
            try:
                segment.check_files()
            except (SegmentCorruptError, SegmentNotFoundError) as error:
                torn[key] = Refusal(segment_id=segment.id, reason=str(error))
        for number in {number for number, _ in torn}:
            old = self._snapshots[number]
            self._snapshots[number] = Snapshot(
                segments=tuple(s for s in old.segments if (number, s.id) not in torn),
                refused=(*old.refused, *(torn[key] for key in torn if key[0] == number)),
            )
        if torn:
            self.begin()
        return bool(torn)

    def news(
        self, held: Mapping[Key, Segment], added: Mapping[Key, CachedSegment]
    ) -> list[EpisodeSummary]:
        """The episodes that added segments bring: those that may be drawn and were not held.

        A segment that was merged from others brings nothing that those had brought.

        Args:
            held: All segments that are held from now on.
            added: Those of them that were not held at the last call.

        Returns:
            One for each added segment, sorted by key.
        """
        before, self._held = self._held, held
        found = []
        for key in sorted(added):
            is_new = np.zeros(len(added[key].episodes), np.bool_)
            is_new[self.eligible.drawable(key)] = True
            of_same = (old for (number, _), old in before.items() if number == key[0])
            is_new &= unseen_episodes(held[key], of_same)
            found.append(added[key].episodes.choose(is_new))
        return found

    def held_out(self, lock: threading.Lock, limit: int | None) -> Iterator[HeldOutEpisode]:
        """See `Sampler.held_out`; holds the lock only where it looks up what there is."""
        with lock:
            segments, chosen = self._listed(), self.eligible.held_out()
        found = 0
        for key, number in chosen:
            if found == limit:
                return
            try:
                episode = read_episode(segments[key], number, self.datasets[0].spec)
            except SegmentNotFoundError:
                continue  # pruned or merged since; the next refresh knows
            except (SegmentCorruptError, OSError) as error:
                with lock:
                    self.refusals.add({key: str(error)})
                continue
            found += 1
            yield episode

    def why_empty(self) -> str:
        """For an error where nothing can be drawn: what there is, and the mend."""
        paths = ", ".join(str(dataset.path) for dataset in self.datasets)
        if left_out := self.eligible.describe():
            return f"nothing to draw from {paths}: {left_out}"
        if refused := self.refusals.all():
            return f"nothing to draw from {paths}: {name_refused(refused)}"
        return (
            f"nothing to draw from {paths}: no segment is published yet; "
            "run `avtd3 collect` and refresh"
        )

    def _listed(self) -> dict[Key, Segment]:
        """All published segments that are not refused."""
        return {
            (number, segment.id): segment
            for number, snapshot in enumerate(self._snapshots)
            for segment in snapshot.segments
            if (number, segment.id) not in self.refusals
        }

    def _is_absent(self, number: int) -> bool:
        """Take a new snapshot, unless the dataset is as good as unmounted."""
        old = self._snapshots[number]
        try:
            new = self.datasets[number].refresh(old)
        except DatasetError:
            return True
        if old.segments and not new.segments:
            return True
        self._snapshots[number] = new
        return False


Mode = Literal["cache", "direct"]

_SPARE = 0.9
"""Most of the free space that a cache may take; others write to that disk, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMode:
    """Where frames come from."""

    mode: Mode
    """``cache``: decoded once into a scratch file; ``direct``: from the shards at every draw."""
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
    """Take the mode that was configured, or with ``auto`` the cache wherever it fits.

    Args:
        config: `ReplayConfig.mode` and the capacity.
        spec: What a row holds.
        wanted: Segments to be held at first.
        scratch: Where the cache's files would lie; need not exist yet.
        grows: More will be published: room is needed for the whole capacity.
    """
    if config.mode == "direct" and spec.image is not None:
        return ReplayMode(mode="direct", why=f"as configured; {_describe_decoder()}")
    if spec.image is None:
        return ReplayMode(mode="cache", why="there are no frames to decode")
    if config.mode == "cache":
        return ReplayMode(mode="cache", why="as configured")
    steps = sum(segment.steps for segment in wanted.values())
    rows = sum(segment.observations for segment in wanted.values())
    if grows and steps < config.capacity:
        # Each episode has one row more than steps; until one is known, that is left aside.
        rows = config.capacity * rows // steps if steps else config.capacity
    need, free = rows * row_bytes(spec), _free_bytes(scratch) + _shared_bytes(scratch, spec)
    fits = need <= _SPARE * free
    text = (
        f"{rows:,} frames need {need / GIB:.2f} GiB of scratch, {free / GIB:.2f} GiB are free "
        f"in {scratch}"
    )
    if fits:
        return ReplayMode(mode="cache", why=text)
    return ReplayMode(mode="direct", why=f"{text}; {_describe_decoder()}")


def _describe_decoder() -> str:
    if problem := native_problem():
        return (
            "frames are decoded by numcodecs, half as fast as with `pip install 'avtd3[native]'` "
            f"({problem})"
        )
    return "frames are decoded natively"


def _free_bytes(directory: Path) -> int:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    state = os.statvfs(directory)
    return state.f_bavail * state.f_frsize


def _shared_bytes(directory: Path, spec: EpisodeSpec) -> int:
    """Room taken by frames that other processes share: most likely those that are wanted."""
    try:
        return 512 * (directory / directory_name(spec.digest) / FRAMES).lstat().st_blocks
    except OSError:
        return 0


def open_replay(mode: ReplayMode, spec: EpisodeSpec, scratch: Path) -> ReplayCache | DirectReplay:
    """An empty replay of the chosen mode.

    Raises:
        StorageError: `scratch` cannot be written.
    """
    if mode.mode == "direct":
        size = 0 if spec.image is None else spec.image.frame_bytes
        return DirectReplay(spec, scratch, open_decoder(size) or JoinedDecoder(size))
    return ReplayCache(spec, scratch)


DAMAGED = (SegmentCorruptError, SegmentNotFoundError)
"""What a draw meets when a segment proves bad only now."""
TAKE_S = 0.5
"""Seconds between two looks, while batches are drawn, for what was decoded meanwhile."""


class SegmentPool:
    """Follows datasets, and says so whenever what can be drawn has changed."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        config: ReplayConfig,
        *,
        directory: Path,
        grows: bool,
        on_change: Callable[[], None],
    ) -> None:
        """Start empty.

        Args:
            datasets: Where to read; all of one spec.
            config: What to keep.
            directory: For the scratch files.
            grows: Whether more will be published; see `choose_mode`.
            on_change: Called after every change of what is held, or of which of it may be drawn.

        Raises:
            ConfigError: No dataset, one given twice, or not one weight for each.
            SpecError: The datasets hold different data.
            StorageError: The directory is not writable.
        """
        self.following = SegmentTracker(datasets, config)
        self.spec = self.following.datasets[0].spec
        self.mode = choose_mode(config, self.spec, self.following.wanted(), directory, grows=grows)
        self.cache = open_replay(self.mode, self.spec, directory)
        if isinstance(self.cache, ReplayCache) and self.cache.notice:
            why = f"{self.mode.why}; {self.cache.notice}"
            self.mode = dataclasses.replace(self.mode, why=why)
        self.unreported: list[RefreshReport] = []
        """What has changed since it was last asked for."""
        self._on_change = on_change
        self._column: FrameArray | None = None
        self._newest = NO_POLICY
        self._taken_s = -math.inf
        self._wanted: Mapping[Key, Segment] = {}
        self._fills_behind = config.fill == "while" and isinstance(self.cache, ReplayCache)

    @property
    def is_filling(self) -> bool:
        """Whether segments are being decoded behind the draws."""
        return isinstance(self.cache, ReplayCache) and self.cache.is_filling

    def open(self, on_progress: Progress | None) -> RefreshReport:
        """Follow for the first time, and wait until something can be drawn, if there is anything.

        Args:
            on_progress: Called with frames done and frames in all, while it waits.

        Raises:
            StorageError: The scratch directory is too small.
        """
        self.unreported.append(self.follow(on_progress))
        total = sum(segment.observations for segment in self._wanted.values())
        while self.is_filling and not self.cache.segments:
            assert isinstance(self.cache, ReplayCache)
            self.cache.wait()
            self.take_arrived()
            if on_progress is not None:
                held = [self._wanted[key].observations for key in self.cache.segments]
                on_progress(sum(held), total)
        return self.take_reports()

    def follow(self, on_progress: Progress | None = None) -> RefreshReport:
        """Hold what the snapshots and the capacity ask for, or begin to.

        Args:
            on_progress: Called with frames done and frames in all, while it waits.

        Raises:
            StorageError: The scratch directory is too small.
        """
        if self._fills_behind:
            return self._follow_behind()
        added: dict[Key, CachedSegment] = {}
        self.following.begin()
        removed = 0
        while (wanted := self.following.wanted()).keys() != self.cache.segments.keys():
            try:
                changes = self.cache.follow(wanted, on_progress)
            finally:
                self._change()  # rows have moved, even if the disk is full
            added |= changes.added
            removed += changes.removed
            # Room that a refused segment was to take goes to the next older ones.
            self.following.refusals.add(changes.refused)
        if self.following.eligible.newest != self._newest:
            self._change()  # which episodes are too old, or how much, has changed
        new = self.following.news(wanted, added)
        return self._report(new, added=len(new), removed=removed)

    def take_arrived(self, every_s: float = 0.0) -> None:
        """Let what was decoded meanwhile be drawn, too.

        Args:
            every_s: Do nothing if the last time is not so many seconds ago: all that can be drawn
                is numbered anew.
        """
        if not isinstance(self.cache, ReplayCache) or not self.cache.has_arrivals:
            return
        if (now := time.monotonic()) >= self._taken_s + every_s:
            self._taken_s = now
            self.unreported.append(self._take(self.cache.arrived()))
            if not self.cache.is_filling:  # room that refused ones were to take
                self.unreported.append(self._follow_behind())

    def refuse_damaged(self) -> None:
        """Go on without segments that proved bad only now, when frames of theirs were drawn."""
        assert isinstance(self.cache, DirectReplay), "a cache has checked all of its frames"
        damaged = self.cache.frames.take_damaged()
        assert damaged, "else the same draw would fail for ever"
        self.following.refusals.add(damaged)
        self.following.look_again()  # it may have been merged into another
        self.unreported.append(self.follow())

    def take_reports(self) -> RefreshReport:
        """All changes that were not reported yet, in one."""
        report = RefreshReport.join(self.unreported, self.spec)
        self.unreported.clear()
        return report

    def close(self) -> None:
        """Give the scratch space back; safe to call twice."""
        self.cache.close()
        self._change()

    def _follow_behind(self) -> RefreshReport:
        """Begin to decode what is wanted; while that is going on, nothing else is looked for."""
        assert isinstance(self.cache, ReplayCache)
        removed = 0
        if not self.cache.is_filling:
            self.following.begin()
            self._wanted = self.following.wanted()
            if self._wanted.keys() != self.cache.segments.keys():
                try:
                    removed = self.cache.follow_behind(self._wanted)
                finally:
                    self._change()
            if self.following.eligible.newest != self._newest:
                self._change()
        return self._report([], added=0, removed=removed)

    def _take(self, changes: Changes) -> RefreshReport:
        self.following.refusals.add(changes.refused)
        if changes.added:
            self._change()
        new = self.following.news(self._wanted, changes.added)
        return self._report(new, added=len(new), removed=0)

    def frame_array(self) -> FrameArray:
        """All decoded frames, another object once they change; only of a cache of images."""
        assert isinstance(self.cache, ReplayCache)
        if self._column is None:
            self._column = FrameArray.of(self.cache)
        return self._column

    def _change(self) -> None:
        self._column = None
        self._newest = self.following.eligible.newest
        self._on_change()

    def _report(self, new: list[EpisodeSummary], *, added: int, removed: int) -> RefreshReport:
        return RefreshReport(
            segments_added=added,
            segments_removed=removed,
            steps_added=sum(int(episodes.lengths.sum()) for episodes in new),
            episodes=EpisodeSummary.join(new, self.spec),
            refused=self.following.refusals.take_new(),
        )
