"""`SumTree`: draws places in proportion to their values, which may change at any time.

A tree of sums with 16 children to a node and one wide node at the top, so that a million values
are two levels and a running sum of 3 907 numbers; a batch is a few calls of numpy on each level,
for all of its draws together (64 children, or 2, take two to four times as long). Sums are always
added up anew from the children, one after another: they never drift, and equal values give equal
trees, bit for bit.
"""

import numpy as np
from numpy.typing import NDArray

FAN_OUT = 16
"""Children of a node."""
TOP = 4096
"""Most sums in the running sum at the top."""


class SumTree:
    """Sums over values that are 0 or above."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        """Build the sums.

        Args:
            values: float64 (N,), finite, 0 or above, N at least 1; copied.
        """
        self._levels: list[NDArray[np.float64]] = []
        self._top = values.copy()
        while len(self._top) > TOP:
            self._levels.append(_padded(self._top))
            self._top = _sums(self._levels[-1])
        self._running = self._top.cumsum()

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._running[-1])

    def values(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values at some places, in their shape."""
        lowest = self._levels[0].reshape(-1) if self._levels else self._top
        return lowest[places]

    def set(self, places: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Change values; of places given twice, the last one counts.

        Args:
            places: int64 (B,), below N.
            values: float64 (B,), finite, 0 or above.
        """
        for level in self._levels:
            level.reshape(-1)[places] = values
            places = places // FAN_OUT
            values = _sums(level[places])
        self._top[places] = values
        self._top.cumsum(out=self._running)

    def find(self, targets: NDArray[np.float64]) -> NDArray[np.int64]:
        """The places where the running sum of the values passes the targets.

        No place with value 0 is ever found, whatever rounding does to a target.

        Args:
            targets: float64 (B,), from 0 to below `total`, which is above 0.

        Returns:
            int64 (B,).
        """
        targets = np.minimum(targets, np.nextafter(self._running[-1], 0.0))
        place = self._running.searchsorted(targets, side="right")
        before = self._running[place] - self._top[place]
        draws = np.arange(len(targets))
        for level in reversed(self._levels):
            children = level[place]
            running = children.cumsum(axis=1)  # (B, F)
            targets = np.clip(targets - before, 0.0, np.nextafter(running[:, -1], 0.0))
            child = (running > targets[:, None]).argmax(axis=1)
            before = running[draws, child] - children[draws, child]
            place = place * FAN_OUT + child
        return place


def _padded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values in rows of nodes, float64 (M, F), filled up with zeros."""
    nodes = -(-len(values) // FAN_OUT)
    padded = np.zeros(nodes * FAN_OUT, np.float64)
    padded[: len(values)] = values
    return padded.reshape(nodes, FAN_OUT)


def _sums(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of each node, float64 (M,): in the very order in which `SumTree.find` adds."""
    sums: NDArray[np.float64] = nodes.cumsum(axis=1)[:, -1].copy()
    return sums
