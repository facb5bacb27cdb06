"""What a sampler holds: the wanted segments, in the replay cache or open for direct draws."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from avtd3.store.dataset import Dataset
from avtd3.store.errors import SegmentCorruptError, SegmentNotFoundError
from avtd3.store.filters import NO_POLICY
from avtd3.store.replay.cache import CachedSegment, Changes, Progress, ReplayCache
from avtd3.store.replay.direct import DirectReplay
from avtd3.store.replay.direct_choice import choose_mode, open_replay
from avtd3.store.replay.episodes import EpisodeSummary
from avtd3.store.replay.following import Following
from avtd3.store.replay.frame_column import FrameColumn
from avtd3.store.replay.refresh import RefreshReport
from avtd3.store.replay.rows import Key
from avtd3.store.replay.selection import ReplayConfig
from avtd3.store.segment import Segment

DAMAGED = (SegmentCorruptError, SegmentNotFoundError)
"""What a draw meets when a segment proves bad only now."""
TAKE_S = 0.5
"""Seconds between two looks, while batches are drawn, for what was decoded meanwhile."""


class Stock:
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
        self.following = Following(datasets, config)
        self.spec = self.following.datasets[0].spec
        self.mode = choose_mode(config, self.spec, self.following.wanted(), directory, grows=grows)
        self.cache = open_replay(self.mode, self.spec, directory)
        if isinstance(self.cache, ReplayCache) and self.cache.notice:
            why = f"{self.mode.why}; {self.cache.notice}"
            self.mode = dataclasses.replace(self.mode, why=why)
        self.unreported: list[RefreshReport] = []
        """What has changed since it was last asked for."""
        self._on_change = on_change
        self._column: FrameColumn | None = None
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

    def frame_column(self) -> FrameColumn:
        """All decoded frames, another object once they change; only of a cache of images."""
        assert isinstance(self.cache, ReplayCache)
        if self._column is None:
            self._column = FrameColumn.of(self.cache)
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
