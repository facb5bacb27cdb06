"""Compaction: small segments become large ones, and nobody who reads sees it happen.

A segment of a few hundred steps costs as many files as a large one: 45 to open, to copy and to
keep on the disk. Runs of small neighbours are merged (`avtd3.store.maintenance.merge`), each run
by one rename; the old segments are removed afterwards. A crash leaves both, of which readers take
the new one, and the next compaction removes the rest.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SegmentCorruptError, SegmentNotFoundError, SpecError
from avtd3.store.files import canonical_json, sha256
from avtd3.store.maintenance.leftovers import find_leftovers, remove_leftovers
from avtd3.store.maintenance.merge import data_provenance, merge
from avtd3.store.maintenance.pins import read_pins
from avtd3.store.maintenance.progress import HousekeepingProgress, count
from avtd3.store.maintenance.removal import empty_trash, exclusive, remove_segments
from avtd3.store.replaced import origins, replaced_ids
from avtd3.store.segment import Segment

MAX_TARGET_STEPS = 131_072
"""Largest target: a merged segment is put together in memory, some 4 kB a step of 84x84 frames."""
MAX_ORIGINS = 1000
"""Most segments that one is merged from, so that its manifest stays small."""
_RANDOM = re.compile(r"(.+)-[0-9a-f]{8}")
_ATTEMPTS = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did, or would do."""

    dataset: str
    dry_run: bool
    segments_before: int
    """Segments that readers saw."""
    segments_after: int
    """Segments that they see now."""
    merged_segments: int
    """Segments that were merged."""
    merged_steps: int
    """Steps in them."""
    bytes_before: int
    """Bytes of the segments that were merged."""
    bytes_after: int
    """Bytes of what they became; 0 in a dry run."""
    leftovers: int
    """Segments that an earlier compaction had replaced and not yet removed."""
    pinned: int
    """Segments left alone because they are pinned."""
    problems: tuple[str, ...]
    """Runs that could not be merged, and why."""
    stopped: bool
    """Whether it was interrupted; what was done is done."""

    def document(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return dataclasses.asdict(self) | {"problems": list(self.problems)}

    def summary(self) -> str:
        """The report in a few lines."""
        verb = "would merge" if self.dry_run else "merged"
        lines = [
            f"{verb} {count(self.merged_segments, 'segment')} of {self.merged_steps:,} steps: "
            f"{self.segments_before:,} -> {count(self.segments_after, 'segment')}"
        ]
        if self.bytes_after:
            lines.append(f"{self.bytes_before / 1e6:.1f} MB -> {self.bytes_after / 1e6:.1f} MB")
        if self.leftovers:
            verb = "would remove" if self.dry_run else "removed"
            lines.append(f"{verb} {count(self.leftovers, 'segment')} merged earlier")
        if self.pinned:
            lines.append(f"{count(self.pinned, 'segment')} pinned")
        lines += [f"not merged: {problem}" for problem in self.problems]
        if self.stopped:
            lines.append("stopped early; run it again to go on")
        return "\n".join(lines)


def compact(
    path: Path,
    *,
    target_steps: int = 16_384,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[HousekeepingProgress], None] = lambda _: None,
) -> CompactReport:
    """Merge runs of small neighbouring segments; the same episodes stay in the same order.

    Small is a segment of at most half of ``target_steps``, so that a growing dataset is not
    written anew each time. Neighbours are merged if nothing lies between them (a pinned or an
    unreadable segment does), and if they have the same config, plan and codec in their provenance.

    Args:
        path: The dataset; collectors may add to it and learners read it meanwhile.
        target_steps: Most steps of a merged segment.
        dry_run: Only say what would be done.
        clock: Seconds since 1970.
        should_stop: Asked before each merge.
        on_progress: Told after each merge.

    Raises:
        DatasetError: There is no dataset, or its pins cannot be read.
        ConfigError: ``target_steps`` is out of range.
        StorageError: The disk is full, or another housekeeper is at work.
    """
    if not 2 <= target_steps <= MAX_TARGET_STEPS:
        raise ConfigError(f"target_steps is {target_steps}, expected 2..{MAX_TARGET_STEPS}")
    dataset = Dataset.open(path)
    if dry_run:
        return _Compaction(dataset, target_steps).report(dry_run=True, stopped=False)
    with exclusive(dataset):
        empty_trash(dataset)
        work = _Compaction(dataset, target_steps)
        stopped = work.run(clock, should_stop, on_progress)
        return work.report(dry_run=False, stopped=stopped)


class _Compaction:
    """One pass over a dataset."""

    def __init__(self, dataset: Dataset, target_steps: int) -> None:
        self._dataset = dataset
        self._pins = read_pins(dataset).keys()
        self._snapshot = dataset.snapshot()
        self._names = sorted([*dataset.segment_ids(), *dataset.unsealed_ids()])
        self._leftovers = find_leftovers(dataset, self._snapshot)
        self._runs = list(self._plan(target_steps))
        self._done: list[Sequence[Segment]] = []
        self._bytes_after = 0
        self._problems: list[str] = []
        self._removed = 0

    def _plan(self, target_steps: int) -> Iterator[list[Segment]]:
        """Runs of at least two segments to merge."""
        visible = {segment.id: segment for segment in self._snapshot.segments}
        hidden = replaced_ids(visible.values()) - visible.keys()
        run: list[Segment] = []
        for name in self._names:
            if name in hidden:
                continue
            segment = visible.get(name)
            is_small = segment is not None and 2 * segment.steps <= target_steps
            if segment is None or name in self._pins or not is_small:
                if len(run) > 1:
                    yield run
                run = []
                continue
            if run and not _fits(run, segment, target_steps):
                if len(run) > 1:
                    yield run
                run = []
            run.append(segment)
        if len(run) > 1:
            yield run

    def run(
        self,
        clock: Callable[[], float],
        should_stop: Callable[[], bool],
        on_progress: Callable[[HousekeepingProgress], None],
    ) -> bool:
        """Remove leftovers and merge; returns whether it was stopped early."""
        removed, problems = remove_leftovers(self._dataset, self._snapshot, self._pins)
        self._removed += len(removed)
        self._problems += problems
        total = sum(map(len, self._runs))
        done = 0
        for run in self._runs:
            if should_stop():
                return True
            try:
                self._merge(run, clock())
            except (SegmentCorruptError, SegmentNotFoundError, SpecError) as error:
                self._problems.append(str(error))
            done += len(run)
            on_progress(HousekeepingProgress(verb="merged", done=done, total=total))
        return False

    def _merge(self, run: Sequence[Segment], now_s: float) -> None:
        name = merged_name(run, self._names)
        if name is None:
            raise SpecError(f"segment {run[0].id}: no name would keep its place in the order")
        size = merge(self._dataset, run, name, now_s=now_s)
        self._bytes_after += size
        self._done.append(run)
        remove_segments(self._dataset, [segment.id for segment in run])

    def report(self, *, dry_run: bool, stopped: bool) -> CompactReport:
        """What was done; in a dry run, what would be."""
        runs = self._runs if dry_run else self._done
        merged = [segment for run in runs for segment in run]
        before = len(self._snapshot.segments)
        return CompactReport(
            dataset=str(self._dataset.path),
            dry_run=dry_run,
            segments_before=before,
            segments_after=before - len(merged) + len(runs),
            merged_segments=len(merged),
            merged_steps=sum(segment.steps for segment in merged),
            bytes_before=sum(segment.size_bytes for segment in merged),
            bytes_after=self._bytes_after,
            leftovers=len(self._leftovers) if dry_run else self._removed,
            pinned=sum(segment.id in self._pins for segment in self._snapshot.segments),
            problems=tuple(self._problems),
            stopped=stopped,
        )


def _fits(run: Sequence[Segment], segment: Segment, target_steps: int) -> bool:
    """Whether a run may go on with this segment."""
    steps = sum(member.steps for member in run) + segment.steps
    listed = sum(len(origins(member)) for member in run) + len(origins(segment))
    return (
        steps <= target_steps
        and listed <= MAX_ORIGINS
        and data_provenance(run[0]) == data_provenance(segment)
    )


def merged_name(run: Sequence[Segment], names: Sequence[str]) -> str | None:
    """A name that sorts where the run lies, and follows from what is merged alone.

    Two machines that merge the same segments of two copies so make the same segment, of which a
    later copying keeps one.

    Args:
        run: The segments to merge, in order.
        names: All names in the dataset, sorted.

    Returns:
        The name, or None if none of those tried keeps the order.
    """
    content = canonical_json([[segment.id, segment.manifest_digest] for segment in run])
    mine = {segment.id for segment in run}
    others = [name for name in names if name not in mine]
    before = max((name for name in others if name < run[0].id), default="")
    behind = min((name for name in others if name > run[0].id), default=None)
    match = _RANDOM.fullmatch(run[0].id)
    for attempt in range(_ATTEMPTS):
        tail = sha256(content + str(attempt).encode())[:8]
        # At last behind the whole name, which always sorts behind the segment itself.
        base = match[1] if match and attempt + 1 < _ATTEMPTS else run[0].id
        name = f"{base}-{tail}"
        if before < name and (behind is None or name < behind) and name not in mine:
            return name
    return None
