"""`SumTree`: draws places in proportion to their values, which may change at any time.

A tree of sums with 64 children to a node, so that a million values are three levels and a batch is
a few calls of numpy on each, for all of its draws together. Sums are always added up anew from the
children, one after another: they never drift, and equal values give equal trees, bit for bit.
"""

import numpy as np
from numpy.typing import NDArray

FAN_OUT = 64
"""Children of a node."""


class SumTree:
    """Sums over values that are 0 or above."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        """Build the sums.

        Args:
            values: float64 (N,), finite, 0 or above; copied.
        """
        self._levels = [_padded(values)]
        while len(self._levels[-1]) > 1:
            self._levels.append(_padded(_sums(self._levels[-1])))
        self.total = float(_sums(self._levels[-1])[0])

    def values(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values at some places, in their shape."""
        return self._levels[0].reshape(-1)[places]

    def set(self, places: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Change values; of places given twice, the last one counts.

        Args:
            places: int64 (B,), below N.
            values: float64 (B,), finite, 0 or above.
        """
        self._levels[0].reshape(-1)[places] = values
        for level, above in zip(self._levels, self._levels[1:], strict=False):
            places = places // FAN_OUT
            above.reshape(-1)[places] = _sums(level[places])
        self.total = float(_sums(self._levels[-1])[0])

    def find(self, targets: NDArray[np.float64]) -> NDArray[np.int64]:
        """The places where the running sum of the values passes the targets.

        No place with value 0 is ever found, whatever rounding does to a target.

        Args:
            targets: float64 (B,), from 0 to below `total`, which is above 0.

        Returns:
            int64 (B,).
        """
        node = np.zeros(len(targets), np.int64)
        draws = np.arange(len(targets))
        for level in reversed(self._levels):
            running = level[node].cumsum(axis=1)  # (B, F)
            child = (running <= targets[:, None]).sum(axis=1)
            last = (running < running[:, -1:]).sum(axis=1)  # behind it, all values are 0
            child = np.minimum(child, last)
            before = np.where(child > 0, running[draws, child - 1], 0.0)
            targets = np.maximum(targets - before, 0.0)
            node = node * FAN_OUT + child
        return node


def _padded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values in rows of nodes, float64 (M, F), filled up with zeros; M is at least 1."""
    nodes = max(1, -(-len(values) // FAN_OUT))
    padded = np.zeros(nodes * FAN_OUT, np.float64)
    padded[: len(values)] = values
    return padded.reshape(nodes, FAN_OUT)


def _sums(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of each node, float64 (M,): in the very order in which `SumTree.find` adds."""
    sums: NDArray[np.float64] = nodes.cumsum(axis=1)[:, -1]
    return sums
