"""Which segments another one stands for: the rule that makes a compaction one rename.

A segment that was merged from others lists them in its provenance, under `REPLACES`. While it can
be opened, those are not read: so the rename that publishes it is the moment at which the old ones
go, however long they stay on the disk. `docs/decisions/006-housekeeping.md` has the reasons.
"""

from collections.abc import Iterable

from avtd3.store.segment import Segment

REPLACES = "replaces"
"""Key of a segment's provenance: id to manifest's digest of every segment that it stands for."""


def replaced_by(segment: Segment) -> frozenset[str]:
    """Ids of the segments that one stands for; of a stranger's provenance, what makes sense."""
    listed = segment.provenance.get(REPLACES)
    return frozenset(listed) - {segment.id} if isinstance(listed, dict) else frozenset()


def replaced_ids(segments: Iterable[Segment]) -> frozenset[str]:
    """Ids of all segments that some of these stand for."""
    return frozenset().union(*map(replaced_by, segments))
