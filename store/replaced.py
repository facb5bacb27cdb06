"""Segments that another segment replaces: the rule that makes a compaction one atomic rename.

A merged segment lists the segments that it was merged from in its provenance, under `REPLACES`.
Readers that can open it ignore those, so the rename that publishes it replaces them all at once,
even if they stay on disk. See `docs/decisions/006-housekeeping.md`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.files import canonical_json, sha256
from avtd3.store.segment import Segment

REPLACES = "replaces"
"""Key of a segment's provenance: manifest digest by id of every segment that it replaces."""

ORIGIN = "origin"
"""Key of a merged segment's provenance: the segments that collectors wrote, in order."""

RELABEL = "relabel"
"""Key of a relabelled segment's provenance: the source of the episodes, and the weights."""


def replaced_by(segment: Segment) -> frozenset[str]:
    """Return the ids of the segments that a segment replaces; invalid entries are ignored."""
    listed = segment.provenance.get(REPLACES)
    return frozenset(listed) - {segment.id} if isinstance(listed, dict) else frozenset()


def replaced_ids(segments: Iterable[Segment]) -> frozenset[str]:
    """Return the ids of all segments that these segments replace."""
    return frozenset().union(*(replaced_by(s) for s in segments if REPLACES in s.provenance))


def origins(segment: Segment) -> list[dict[str, Any]]:
    """Return the segments that collectors wrote: the segment itself, or those merged into it."""
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


def unseen_episodes(segment: Segment, read_before: Iterable[Segment]) -> NDArray[np.bool_]:
    """Return which episodes of a segment are new to a reader of other segments.

    Args:
        segment: A segment that may have been merged from others.
        read_before: Segments that the reader has read.

    Returns:
        bool (E,): False for episodes of segments in ``read_before`` that ``segment`` replaces.
    """
    replaced = replaced_by(segment)
    seen = {o["segment_id"] for old in read_before if old.id in replaced for o in origins(old)}
    if seen:
        listed = origins(segment)
        counts = [origin["episodes"] for origin in listed]
        if sum(counts) == segment.episodes:
            return np.repeat([origin["segment_id"] not in seen for origin in listed], counts)
    return np.ones(segment.episodes, np.bool_)
