"""Which segments another one stands for: the rule that makes a compaction one rename.

A segment that was merged from others lists them in its provenance, under `REPLACES`. While it can
be opened, those are not read: so the rename that publishes it is the moment at which the old ones
go, however long they stay on the disk. `docs/decisions/006-housekeeping.md` has the reasons.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.files import canonical_json, sha256
from avtd3.store.segment import Segment

REPLACES = "replaces"
"""Key of a segment's provenance: id to manifest's digest of every segment that it stands for."""

ORIGIN = "origin"
"""Key of a merged segment's provenance: the segments that collectors wrote, in order."""

RELABEL = "relabel"
"""Key of a relabelled segment's provenance: whose episodes these are, and the weights."""


def replaced_by(segment: Segment) -> frozenset[str]:
    """Ids of the segments that one stands for; of a stranger's provenance, what makes sense."""
    listed = segment.provenance.get(REPLACES)
    return frozenset(listed) - {segment.id} if isinstance(listed, dict) else frozenset()


def replaced_ids(segments: Iterable[Segment]) -> frozenset[str]:
    """Ids of all segments that some of these stand for."""
    return frozenset().union(*(replaced_by(s) for s in segments if REPLACES in s.provenance))


def origins(segment: Segment) -> list[dict[str, Any]]:
    """The segments that its collectors wrote: itself, or what it was merged from."""
    listed = segment.provenance.get(ORIGIN)
    if isinstance(listed, list) and all(map(_is_origin, listed)):
        return listed
    about = segment.provenance
    return [
        {
            "segment_id": segment.id,
            "digest": segment.manifest_digest,
            "provenance_digest": sha256(canonical_json(dict(about))),
            "episodes": segment.episodes,
            "steps": segment.steps,
            **{key: about.get(key) for key in ("collector", "host", "sealed_at")},
        }
    ]


def _is_origin(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("segment_id")) is str
        and type(entry.get("episodes")) is int
        and entry["episodes"] > 0
    )


def unseen_episodes(segment: Segment, held: Iterable[Segment]) -> NDArray[np.bool_]:
    """Episodes of a segment that none of those which it replaces holds.

    Args:
        segment: Perhaps a merged one.
        held: Segments that were read before.

    Returns:
        bool (E,): all True for a segment that was not merged from any of them.
    """
    mine = replaced_by(segment)
    seen = {o["segment_id"] for old in held if old.id in mine for o in origins(old)}
    if seen:
        listed = origins(segment)
        counts = [origin["episodes"] for origin in listed]
        if sum(counts) == segment.episodes:
            return np.repeat([origin["segment_id"] not in seen for origin in listed], counts)
    return np.ones(segment.episodes, np.bool_)
