"""Find episodes with the same steps, or that look nearly the same, across all datasets.

Each episode is reduced to two 64-bit numbers, so a million episodes take 16 MB.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.findings import Fault
from avtd3.store.audit.segment_data import SegmentData

BITS = 64
"""Intervals of an episode that its perceptual hash compares, one bit each."""
NEAR_BITS = 2
"""Largest number of different bits in the hashes of two episodes that look alike."""
FEWEST_BITS = 16
"""Fewest bits of each kind in a hash: otherwise the image hardly changes and resembles others."""

Place = tuple[str, str]
"""Dataset and segment."""


def step_digests(data: SegmentData) -> NDArray[np.uint64]:
    """Return the digest of each episode's actions and rewards, uint64 (E,)."""
    found = []
    for start, length in zip(data.episodes.offset, data.episodes.length, strict=True):
        rows = slice(start, start + length)
        digest = hashlib.sha256(data.action[rows].tobytes())
        digest.update(data.reward[rows].tobytes())
        found.append(int.from_bytes(digest.digest()[:8], "little"))
    return np.array(found, np.uint64)


def perceptual_hashes(data: SegmentData) -> NDArray[np.uint64]:
    """Return a difference hash over time of each episode, uint64 (E,); 0 means no hash.

    Each bit states whether the brightness of the first stream (without one, the sum of the vector)
    rises from one of 65 evenly spaced moments to the next.
    """
    found = np.zeros(len(data.episodes.length), np.uint64)
    if data.streams:
        course = next(iter(data.streams.values())).mean.astype(np.float64)
    elif data.vector is not None:
        course = np.asarray(data.vector.sum(axis=1, dtype=np.float64))
    else:
        return found
    weights = np.uint64(1) << np.arange(BITS, dtype=np.uint64)
    for episode, (start, length) in enumerate(
        zip(data.observation_start.tolist(), data.episodes.length.tolist(), strict=True)
    ):
        if length < BITS:
            continue
        moments = course[np.linspace(start, start + length, BITS + 1).round().astype(np.int64)]
        rises = np.diff(moments) > 0
        if FEWEST_BITS <= rises.sum() <= BITS - FEWEST_BITS:
            found[episode] = weights[rises].sum(dtype=np.uint64)
    return found


class DuplicateFinder:
    """Collects the digests and hashes of all segments, then reports repeated episodes."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._rows: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []

    def add(
        self, dataset: str, segment: str, digests: NDArray[np.uint64], hashes: NDArray[np.uint64]
    ) -> None:
        """Add a segment's episodes: `step_digests` and `perceptual_hashes`, uint64 (E,) each."""
        if digests.size:
            self._places.append((dataset, segment))
            self._rows.append((digests, hashes))

    def faults(self) -> Iterator[tuple[Place, Fault]]:
        """Yield a fault and its place for each episode that repeats an earlier one."""
        if not self._rows:
            return
        counts = [len(digests) for digests, _ in self._rows]
        owner = np.repeat(np.arange(len(counts)), counts)
        number = np.concatenate([np.arange(count) for count in counts])
        digests, hashes = (np.concatenate([row[kind] for row in self._rows]) for kind in (0, 1))
        reported: set[int] = set()
        for check, pairs, text in (
            ("episode-copy", _equal(digests), "has the same actions and rewards as"),
            ("episode-alike", _near(hashes), "changes over time nearly as"),
        ):
            for first, second in pairs:
                one, other = (self._places[owner[row]] for row in (first, second))
                is_copy_of_segment = one[1] == other[1] and one[0] != other[0]
                if second in reported or is_copy_of_segment:  # reported as segment-twice
                    continue
                reported.add(second)
                message = f"{text} episode {number[first]} of {one[1]}, expected another drive"
                yield other, Fault(check=check, episode=int(number[second]), message=message)


def _equal(values: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield each row that repeats a value, after the first row with that value."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    earlier = first[inverse]
    rows = np.flatnonzero(earlier != np.arange(len(values)))
    rows = rows[np.argsort(values[rows], kind="stable")]
    yield from zip(earlier[rows].tolist(), rows.tolist(), strict=True)


def _near(hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of hashes that differ in few bits: of three parts, at least one is equal."""
    found: set[int] = set()
    known = np.flatnonzero(hashes)
    for shift, bits in ((0, 21), (21, 21), (42, 22)):
        part = (hashes[known] >> np.uint64(shift)) & np.uint64(2**bits - 1)
        order = known[np.argsort(part, kind="stable")]
        # Rows with an equal part are adjacent. Comparing only neighbours takes linear time, and
        # finds at least one pair of any group that is alike.
        apart = np.bitwise_xor(hashes[order][1:], hashes[order][:-1])
        distance = np.unpackbits(apart.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
        for place in np.flatnonzero(distance <= NEAR_BITS).tolist():
            first, second = sorted((int(order[place]), int(order[place + 1])))
            if second not in found:
                found.add(second)
                yield first, second
