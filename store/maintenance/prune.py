"""Remove old or unwanted segments from a dataset, oldest first.

Only whole segments are removed; a segment with some episodes to keep stays. Cutting it would
rewrite the rest, only to free space that the next prune frees anyway.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.errors import SEGMENT_ERRORS, ConfigError, abbreviate
from avtd3.store.files import DAY_S, is_directory, list_directory, storage_errors
from avtd3.store.filters import EpisodeFilter
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.maintenance.pins import read_pins
from avtd3.store.maintenance.removal import (
    MaintenanceReport,
    Problems,
    exclusive,
    find_leftovers,
    remove,
    remove_leftovers,
)
from avtd3.store.render.text import WorkProgress, file_size, join_lines, plural
from avtd3.store.replaced import replaced_by
from avtd3.store.segment import Segment
from avtd3.store.world_record import stored_maps

_AT_ONCE = 16
"""Segments that are removed between two calls of ``should_stop``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """Which segments `prune` may remove, and how many."""

    max_bytes: int | None = None
    """Largest size of all segments: the oldest beyond it are removed, but never the newest."""
    max_steps: int | None = None
    """Largest number of steps in all segments; likewise."""
    older_than_s: float | None = None
    """Remove only segments whose youngest episode began longer ago than this, in seconds."""
    episodes: EpisodeFilter | None = None
    """Remove only segments in which every episode matches."""

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in dataclasses.fields(self)):
            raise ConfigError(
                "nothing to prune was selected, expected --max-bytes, --max-steps, --older-than or "
                "--filter"
            )
        for name in ("max_bytes", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"prune.{name} is {abbreviate(value)}, expected 1 or more")
        if self.older_than_s is not None and not 0.0 <= self.older_than_s < math.inf:
            raise ConfigError(
                f"prune.older_than_s is {abbreviate(self.older_than_s)}, expected 0 or more"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport(MaintenanceReport):
    """What `prune` removed, or would remove."""

    dry_run: bool
    segments_before: int
    steps_before: int
    bytes_before: int
    removed: tuple[str, ...]
    """Ids of the removed segments, oldest first."""
    removed_steps: int
    removed_bytes: int
    pinned: int
    """Segments that were kept only because they are pinned."""
    mixed: int
    """Segments that were kept because only some of their episodes match."""
    within_limits: bool
    """Whether the dataset now keeps ``max_bytes`` and ``max_steps``."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        verb = "would remove" if self.dry_run else "removed"
        gone = len(self.removed)
        lines = [
            f"{verb} {plural(gone, 'segment')} of {self.removed_steps:,} steps, "
            f"{file_size(self.removed_bytes)}",
            f"left: {plural(self.segments_before - gone, 'segment')} of "
            f"{self.steps_before - self.removed_steps:,} steps, "
            f"{file_size(self.bytes_before - self.removed_bytes)}",
        ]
        if self.dry_run:
            lines += [f"  {name}" for name in self.removed]
        if self.pinned:
            lines.append(f"{plural(self.pinned, 'segment')} kept because pinned")
        if self.mixed:
            mixed = plural(self.mixed, "segment")
            lines.append(f"{mixed} kept because of episodes that do not match")
        lines += self.notes("kept")
        if not self.stopped and not self.within_limits:
            lines.append("still above the limit: no other segment may be removed")
        return join_lines(lines)


def prune(
    path: Path,
    config: PruneConfig,
    *,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> PruneReport:
    """Remove the oldest segments that the config selects; without limits, all that it selects.

    Pinned segments stay, and so do those in ``.staging/``, where collectors write.

    Collectors may add to the dataset and learners may read it meanwhile. ``should_stop`` is called
    every few segments; True ends the command.
    """
    dataset = Dataset.open(path)
    with contextlib.nullcontext() if dry_run else exclusive(dataset):
        work = _Pruning(dataset, config, clock())
        gone = work.chosen if dry_run else list(work.remove(should_stop, on_progress))
        if gone and not dry_run:
            remove_unused_maps(dataset, clock())
        return work.report(gone, dry_run=dry_run)


def remove_unused_maps(dataset: Dataset, now_s: float) -> list[str]:
    """Remove the road networks that no segment needs; return their digests.

    Nothing is removed while a segment cannot be read or is in quarantine. A network that a
    collector stored within a day stays: its segment may not be published yet.
    """
    stored = stored_maps(dataset.path)
    snapshot = dataset.snapshot() if stored else Snapshot(segments=())
    if snapshot.refused or dataset.unsealed_ids() or any(_names(dataset.quarantine_path)):
        return []
    try:
        segments = (*snapshot.segments, *snapshot.replaced)
        needed = frozenset[str]().union(*(segment.map_digests() for segment in segments))
    except SEGMENT_ERRORS:
        return []
    removed = []
    for digest in sorted(stored.keys() - needed):
        with storage_errors(stored[digest]):
            if stored[digest].stat().st_mtime < now_s - DAY_S:
                stored[digest].unlink(missing_ok=True)
                removed.append(digest)
    return removed


def _names(path: Path) -> list[str]:
    with storage_errors(path):
        return list_directory(path)[0] if is_directory(path) else []


class _Pruning:
    """One pruning of a dataset."""

    def __init__(self, dataset: Dataset, config: PruneConfig, now_s: float) -> None:
        self._dataset = dataset
        self._config = config
        self._now_s = now_s
        self._pins = read_pins(dataset).keys()
        self._snapshot = dataset.snapshot()
        self._segments = sorted(self._snapshot.segments, key=lambda segment: segment.id)
        self._leftovers = find_leftovers(self._snapshot)
        self._bytes = {segment.id: _bytes_on_disk(segment) for segment in self._segments}
        self._problems = Problems()
        self._problems.add(*self._snapshot.refused)
        self._mixed = self._pinned = 0
        self.chosen = list(self._choose())

    def _choose(self) -> Iterator[Segment]:
        """Yield the segments to remove, oldest first."""
        steps = sum(segment.steps for segment in self._segments)
        size = sum(self._bytes.values())
        limits = self._config.max_bytes is not None or self._config.max_steps is not None
        for segment in self._segments:
            # Keep the newest segment even if it alone exceeds the limit, as a learner does.
            if limits and (self._keeps_limits(steps, size) or segment is self._segments[-1]):
                return
            if not self._may_go(segment):
                continue
            steps -= segment.steps
            size -= self._bytes[segment.id]
            yield segment

    def _keeps_limits(self, steps: int, size: int) -> bool:
        config = self._config
        return (config.max_steps is None or steps <= config.max_steps) and (
            config.max_bytes is None or size <= config.max_bytes
        )

    def _may_go(self, segment: Segment) -> bool:
        """Return whether a segment is old enough, matches and is not pinned; count why not."""
        try:
            if not self._is_old(segment) or not self._matches(segment):
                return False
        except SEGMENT_ERRORS as error:
            self._problems.add(error)
            return False
        if {segment.id, *self._replaced_by(segment)} & self._pins:
            self._pinned += 1
            return False
        return True

    def _is_old(self, segment: Segment) -> bool:
        age_s = self._config.older_than_s
        # Use the times of the episodes: merging does not make a segment younger.
        return age_s is None or bool(
            (segment.read("episode_wall_time") < self._now_s - age_s).all()
        )

    def _matches(self, segment: Segment) -> bool:
        if self._config.episodes is None:
            return True
        found = self._config.episodes.matches(segment.episode_table())
        self._mixed += bool(found.any() and not found.all())
        return bool(found.all())

    def _replaced_by(self, segment: Segment) -> list[str]:
        """Return the segments that this one replaces and that were not yet removed."""
        mine = replaced_by(segment)
        return [name for name in self._leftovers if name in mine]

    def remove(
        self,
        should_stop: Callable[[], bool],
        on_progress: Callable[[WorkProgress], None],
    ) -> Iterator[Segment]:
        """Remove the chosen segments, a few at a time, and yield those that are removed."""
        total = len(self.chosen)
        for start in range(0, total, _AT_ONCE):
            if should_stop():
                return
            batch = self.chosen[start : start + _AT_ONCE]
            # Remove replaced segments before those that replace them, or readers would see them.
            replaced = {name for segment in batch for name in self._replaced_by(segment)}
            if replaced:
                remove_leftovers(self._dataset, self._snapshot, replaced, self._problems)
            remove(self._dataset, batch)
            yield from batch
            done = min(start + _AT_ONCE, total)
            on_progress(WorkProgress(verb="removed", done=done, total=total))

    def report(self, gone: Sequence[Segment], *, dry_run: bool) -> PruneReport:
        """Return what was removed, or would be removed."""
        steps = sum(segment.steps for segment in self._segments)
        size = sum(self._bytes.values())
        gone_steps = sum(segment.steps for segment in gone)
        gone_bytes = sum(self._bytes[segment.id] for segment in gone)
        return PruneReport(
            dataset=str(self._dataset.path),
            dry_run=dry_run,
            segments_before=len(self._segments),
            steps_before=steps,
            bytes_before=size,
            removed=tuple(segment.id for segment in gone),
            removed_steps=gone_steps,
            removed_bytes=gone_bytes,
            pinned=self._pinned,
            mixed=self._mixed,
            within_limits=self._keeps_limits(steps - gone_steps, size - gone_bytes),
            problems=tuple(self._problems.texts),
            unreadable=self._problems.unreadable,
            stopped=len(gone) < len(self.chosen),
        )


def _bytes_on_disk(segment: Segment) -> int:
    try:
        return segment.size_bytes + (segment.path / MANIFEST_FILE).stat().st_size
    except OSError:  # gone since the snapshot
        return segment.size_bytes
