"""Episodes that hold the same steps, or look nearly the same, however far apart they lie.

Each episode is reduced to two numbers of 64 bits, so a million of them cost 16 MB.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.evidence import Evidence
from avtd3.store.audit.findings import Fault

BITS = 64
"""Moments at which an episode's course is compared."""
NEAR_BITS = 2
"""Bits by which the looks of two episodes may differ."""
LEAST_TURNS = 16
"""Bits of each kind that a look needs: a picture that hardly changes is like any other."""

Place = tuple[str, str, int]
"""Dataset, segment, episode."""


def episode_digests(evidence: Evidence) -> NDArray[np.uint64]:
    """Digest of each episode's actions and rewards: uint64 (E,)."""
    table = evidence.episodes
    found = np.empty(len(table.length), np.uint64)
    for episode, (start, length) in enumerate(
        zip(table.offset.tolist(), table.length.tolist(), strict=True)
    ):
        rows = slice(start, start + length)
        digest = hashlib.sha256(evidence.action[rows].tobytes())
        digest.update(evidence.reward[rows].tobytes())
        found[episode] = int.from_bytes(digest.digest()[:8], "little")
    return found


def episode_looks(evidence: Evidence) -> NDArray[np.uint64]:
    """Difference hash over time of each episode: uint64 (E,), 0 where nothing can be compared.

    Bit by bit: whether the brightness (without a camera, the sum of the vector) rises from one of
    65 moments, evenly spread, to the next.
    """
    course = _course(evidence)
    found = np.zeros(len(evidence.episodes.length), np.uint64)
    if course is None:
        return found
    weights = np.uint64(1) << np.arange(BITS, dtype=np.uint64)
    for episode, (start, length) in enumerate(
        zip(evidence.observation_start.tolist(), evidence.episodes.length.tolist(), strict=True)
    ):
        if length < BITS:
            continue
        moments = course[np.linspace(start, start + length, BITS + 1).round().astype(np.int64)]
        rises = np.diff(moments) > 0
        if LEAST_TURNS <= rises.sum() <= BITS - LEAST_TURNS:
            found[episode] = weights[rises].sum(dtype=np.uint64)
    return found


def _course(evidence: Evidence) -> NDArray[np.float64] | None:
    if evidence.frames is not None:
        return evidence.frames.mean.astype(np.float64)
    if evidence.vector is not None:
        return np.asarray(evidence.vector.sum(axis=1, dtype=np.float64))
    return None


class DuplicateFinder:
    """Remembers the episodes of all segments, then tells which repeat another one."""

    def __init__(self) -> None:
        self._places: list[tuple[str, str]] = []
        self._rows: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []

    def add(
        self, dataset: str, segment: str, digests: NDArray[np.uint64], looks: NDArray[np.uint64]
    ) -> None:
        """Take a segment's episodes: two uint64 (E,)."""
        if digests.size:
            self._places.append((dataset, segment))
            self._rows.append((digests, looks))

    def faults(self) -> Iterator[tuple[Place, Fault]]:
        """A fault for each episode that repeats an earlier one, and where it lies."""
        if not self._rows:
            return
        counts = [len(digests) for digests, _ in self._rows]
        owner = np.repeat(np.arange(len(counts)), counts)
        number = np.concatenate([np.arange(count) for count in counts])
        copies: set[int] = set()
        digests, looks = (np.concatenate([row[kind] for row in self._rows]) for kind in (0, 1))
        for check, pairs in (("episode-copy", _equal(digests)), ("episode-alike", _near(looks))):
            says = (
                "holds the same actions and rewards as"
                if check == "episode-copy"
                else ("changes over time nearly as")
            )
            for first, second in pairs:
                (one, other) = (self._places[owner[row]] for row in (first, second))
                if second in copies or (one[1] == other[1] and one[0] != other[0]):
                    continue  # told already, or a copy of the whole segment: segment-twice
                copies.add(second)
                episode = int(number[second])
                message = f"{says} episode {number[first]} of {one[1]}, expected another drive"
                yield (*other, episode), Fault(check=check, episode=episode, message=message)


def _equal(values: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Each row that repeats a value, with the first row that has it."""
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1]) + 1
    first: dict[int, int] = {}
    for row in same.tolist():
        value = int(values[order[row]])
        first.setdefault(value, int(order[row - 1]))
        yield first[value], int(order[row])


def _near(looks: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs of looks that differ in few bits: three parts of which at least one is equal."""
    told: set[int] = set()
    known = np.flatnonzero(looks)
    for shift, bits in ((0, 21), (21, 21), (42, 22)):
        part = (looks[known] >> np.uint64(shift)) & np.uint64(2**bits - 1)
        order = known[np.argsort(part, kind="stable")]
        # Rows with an equal part lie side by side, and only neighbours are compared: linear, and
        # of many that are alike at least a pair is told.
        apart = np.bitwise_xor(looks[order][1:], looks[order][:-1])
        distance = np.unpackbits(apart.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
        for place in np.flatnonzero(distance <= NEAR_BITS).tolist():
            first, second = sorted((int(order[place]), int(order[place + 1])))
            if second not in told:
                told.add(second)
                yield first, second
