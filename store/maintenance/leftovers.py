"""What a killed compaction, or a copying, left of segments that others replace."""

from collections.abc import Collection

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.errors import SegmentCorruptError, SegmentNotFoundError
from avtd3.store.maintenance.removal import remove_segments
from avtd3.store.replaced import REPLACES, replaced_by


def find_leftovers(dataset: Dataset, snapshot: Snapshot) -> list[str]:
    """Segments on the disk that one of a snapshot replaces, in the order in which they may go.

    Only those whose manifest is the one that was replaced: another segment of the same name is
    left alone.
    """
    replaced: dict[str, str] = {}
    for segment in snapshot.segments:
        if replaced_by(segment):
            replaced |= segment.provenance[REPLACES]
    found: list[tuple[int, str]] = []
    for name in replaced.keys() & set(dataset.segment_ids()) if replaced else ():
        try:
            segment = dataset.open_segment(name)
        except (SegmentCorruptError, SegmentNotFoundError):
            continue
        if segment.manifest_digest == replaced[name]:
            # What replaces others goes behind them, lest they come to light again.
            found.append((len(replaced_by(segment)), name))
    return [name for _, name in sorted(found)]


def remove_leftovers(
    dataset: Dataset, snapshot: Snapshot, pins: Collection[str]
) -> tuple[list[str], list[str]]:
    """Remove leftovers whose replacement is whole, every file of it hashed again.

    Returns:
        Names of what was removed, and the replacements that are not whole, with the reason.

    Raises:
        StorageError: The dataset cannot be written.
    """
    left = [name for name in find_leftovers(dataset, snapshot) if name not in pins]
    removed: list[str] = []
    problems: list[str] = []
    for segment in snapshot.segments if left else ():
        mine = [name for name in left if name in replaced_by(segment)]
        if not mine:
            continue
        try:
            segment.verify()
        except (SegmentCorruptError, SegmentNotFoundError) as error:
            problems.append(str(error))
            continue
        remove_segments(dataset, mine)
        removed += mine
        left = [name for name in left if name not in mine]
    return removed, problems
