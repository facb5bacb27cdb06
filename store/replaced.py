"""Which segments another one replaces: the rule that makes a compaction one rename.

A segment that was merged from others lists them in its provenance, under `REPLACES`. That is a
claim, which anyone may write. It counts only if it is proven from the bytes of both sides: every
episode of the replaced segment is in the replacement. Then readers leave the replaced one out, so
the rename that publishes a merged segment is the moment at which the old ones go, however long they
stay on the disk. `docs/decisions/006-housekeeping.md` has the reasons.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import OWN_ATTRIBUTES, EpisodeTable
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.layout import EPISODE_STRINGS, frames_array
from avtd3.store.segment import Segment
from avtd3.store.world_record import SETUP

REPLACES = "replaces"
"""Key of a segment's provenance: manifest digest by id of every segment that it replaces."""

ORIGIN = "origin"
"""Key of a merged segment's provenance: the segments that collectors wrote, in order."""

RELABEL = "relabel"
"""Key of a relabelled segment's provenance: the source of the episodes, and the weights."""

RENDER = "render"
"""Key of the provenance of a segment with other pictures: their source, and what was changed."""

UPGRADE = "upgrade"
"""Key of the provenance of a segment in a newer format: its source, and the stream's name."""

_FRAMES_AT_ONCE = 512
_OFFSET = "episode_offset"
"""The one column that says where an episode lies, not what it is."""


def replaced_by(segment: Segment) -> frozenset[str]:
    """Return the ids that a segment claims to replace; nothing if the claim makes no sense."""
    listed = segment.provenance.get(REPLACES)
    return frozenset(listed) - {segment.id} if isinstance(listed, dict) else frozenset()


def episode_digests(segment: Segment, *, without: Collection[str] = ()) -> Iterator[str]:
    """Return the SHA-256 of each episode of a segment, in order, in hexadecimal.

    It covers the decoded bytes of the episode's rows of every array, frames and wall time
    included, with names, dtypes and row shapes, the strings, the attributes, the events, the state
    of the world and the labels of the steps; not where in the segment they lie.
    """
    table = segment.episode_table()
    streams = {frames_array(segment.spec, stream): stream for stream in segment.spec.images}
    skipped = {_OFFSET, *streams, *without}
    names = [name for name in sorted(segment.names) if name not in skipped]
    arrays = {name: segment.read(name) for name in names if name not in EPISODE_STRINGS}
    events, others = segment.events(), _others(segment, has_setup=SETUP not in without)
    strings = {name: segment.read_strings(name) for name in names if name in EPISODE_STRINGS}
    seen = [stream for name, stream in streams.items() if name not in without]
    for number in range(segment.episodes):
        digest = hashlib.sha256()
        for name, values in arrays.items():
            rows = values[_rows(segment, name, len(values), table, number)]
            digest.update(f"{name} {rows.dtype.str} {rows.shape}\n".encode())
            digest.update(rows.tobytes())
        for name, texts in strings.items():
            text = texts[number].encode("utf-8", "surrogatepass")
            digest.update(f"{name} {len(text)}\n".encode() + text)
        for name, value in sorted(table.attributes_of(number).items()):
            if name not in OWN_ATTRIBUTES:
                number_or_text = value if isinstance(value, str) else float(value)
                digest.update(f"{name} {number_or_text!r}\n".encode())
        for event in () if events is None else events.of_episode(number):
            digest.update(f"{event}\n".encode("utf-8", "surrogatepass"))
        digest.update(others[number])
        for frames in _frames(segment, table, number, seen):
            digest.update(frames.data)
        yield digest.hexdigest()


def _rows(segment: Segment, name: str, rows: int, table: EpisodeTable, number: int) -> slice:
    """Return an episode's rows of an array, which follow from the array's name and length."""
    if name.startswith("episode_"):
        return slice(number, number + 1)
    start, length = int(table.offset[number]), int(table.length[number])
    if rows == segment.steps:
        return slice(start, start + length)
    return slice(start + number, start + number + length + 1)  # observations: always more


def _others(segment: Segment, *, has_setup: bool) -> list[bytes]:
    """Return states of the world and labels in each episode as bytes; empty if not known."""
    records = segment.world_records() or [None] * segment.episodes
    labels = segment.labels() or [None] * segment.episodes
    worlds = [b"" if each is None else each.to_bytes(has_setup=has_setup) for each in records]
    known = [b"" if each is None else each.to_bytes() for each in labels]
    return [world + label for world, label in zip(worlds, known, strict=True)]


def _frames(
    segment: Segment, table: EpisodeTable, number: int, streams: Iterable[str]
) -> Iterator[NDArray[Any]]:
    start = int(table.observation_offset[number])
    stop = start + int(table.length[number]) + 1
    for stream in streams:
        for first in range(start, stop, _FRAMES_AT_ONCE):
            yield segment.read_frames(first, min(first + _FRAMES_AT_ONCE, stop), stream=stream)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a segment says of another one that is there, and whether it is true."""

    claimant: str
    """Id of the segment that says it replaces the other one."""
    claimed: str
    """Id of the other one."""
    problem: str = ""
    """Why that is not so; empty if it was proven from the bytes of both."""

    @property
    def is_proven(self) -> bool:
        """Whether the claimant holds all episodes of the claimed segment."""
        return not self.problem


class ClaimChecker:
    """Checks claims of segments by their bytes; the episodes' digests of a segment are kept.

    Reading both sides takes 0.3 s for 10 000 steps with images (bench/open_bench.py). A reader
    checks a claim once, and only if the claimed segment is there.
    """

    def __init__(self) -> None:
        self._digests: dict[str, Counter[str]] = {}

    def digests(self, segment: Segment) -> Counter[str]:
        """Return how often each episode occurs in a segment, by its digest."""
        found = self._digests.get(segment.id)
        if found is None:
            self._digests[segment.id] = found = Counter(episode_digests(segment))
        return found

    def check(self, claimant: Segment, claimed: Segment) -> Claim:
        """Compare the episodes of two segments, byte for byte."""
        problem = names_another(claimant, claimed)
        if not problem and (missing := self.digests(claimed) - self.digests(claimant)):
            problem = f"it lacks {missing.total()} of that segment's {claimed.episodes} episodes"
        return Claim(claimant=claimant.id, claimed=claimed.id, problem=problem)


def names_another(claimant: Segment, claimed: Segment) -> str:
    """Return what is wrong with a claim by the digests alone, without reading any data."""
    digest = claimant.provenance[REPLACES].get(claimed.id)
    # A relabelled segment does not know the digests of the others that were relabelled.
    if digest in ("", claimed.manifest_digest):
        return ""
    return "it names another segment of that id, with another digest"


def claims_among(segments: Mapping[str, Segment]) -> list[tuple[str, str]]:
    """Return which of some segments claim to replace which others of them: pairs of ids."""
    return [
        (segment.id, claimed)
        for segment in segments.values()
        if REPLACES in segment.provenance
        for claimed in sorted(replaced_by(segment) & segments.keys())
    ]


def claims_in_circles(pairs: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Return the claims whose claimed segment claims the claimant, directly or through others."""
    pairs = list(pairs)
    claimed_by: dict[str, list[str]] = {}
    for claimant, claimed in pairs:
        claimed_by.setdefault(claimant, []).append(claimed)

    def reaches(start: str, end: str) -> bool:
        seen, todo = set[str](), [start]
        while todo:
            name = todo.pop()
            if name == end:
                return True
            if name not in seen:
                seen.add(name)
                todo += claimed_by.get(name, ())
        return False

    return frozenset(
        (claimant, claimed)
        for claimant, claimed in pairs
        if claimed in claimed_by and reaches(claimed, claimant)
    )


def origins(segment: Segment) -> list[dict[str, Any]]:
    """Return the segments as collectors wrote them: this one, or those it was merged from."""
    listed = segment.provenance.get(ORIGIN)
    if isinstance(listed, list) and all(map(_is_origin, listed)):
        return listed
    about = segment.provenance
    return [
        {
            "segment_id": segment.id,
            "digest": segment.manifest_digest,
            "provenance_digest": sha256(canonical_json(dict(about), allow_nan=True)),
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
    """Return which episodes are in no segment of ``read_before`` that the segment replaces (E,)."""
    mine = replaced_by(segment)
    listed = segment.provenance[REPLACES] if mine else {}
    seen = {
        origin["segment_id"]
        for old in read_before
        if old.id in mine and listed[old.id] in ("", old.manifest_digest)
        for origin in origins(old)
    }
    if seen:
        listed = origins(segment)
        counts = [origin["episodes"] for origin in listed]
        if sum(counts) == segment.episodes:
            return np.repeat([origin["segment_id"] not in seen for origin in listed], counts)
    return np.ones(segment.episodes, np.bool_)
