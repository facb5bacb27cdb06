"""Count values in bins, and how many are near zero: the bias of data that drives straight on."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.statistics import Distribution

BINS = 30
_EXACT = 2.0**52
"""Size up to which halves are exact."""
NEAR_ZERO = 0.05
"""Share of a component's largest size below which it counts as zero."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """A histogram: counts of values between edges."""

    edges: NDArray[np.float64]
    """float64 (N + 1,), ascending."""
    counts: NDArray[np.float64]
    """float64 (N,), 0 or more."""

    @classmethod
    def of(cls, values: NDArray[np.float64], most: int = BINS) -> "Bins | None":
        """Count all finite values, at most `LARGEST`, in bins of equal width; None without any.

        There are `most` bins; whole numbers of a narrow range get a bin each.
        """
        finite = values[np.isfinite(values)]
        if not finite.size:
            return None
        low, high = float(finite.min()), float(finite.max())
        size = max(1.0, abs(low), abs(high))
        whole = size < _EXACT and bool((finite == np.round(finite)).all())
        if whole and high - low < most:
            edges = np.arange(low - 0.5, high + 1.0)
        elif high - low > 1e-9 * size:
            edges = np.linspace(low, high, most + 1)
        else:
            room = max(0.5, 1e-6 * size)
            edges = np.array([low - room, low + room])
        counts, _ = np.histogram(finite, edges)
        return cls(edges=edges, counts=counts.astype(np.float64))


def near_zero(known: Distribution) -> tuple[float, float]:
    """Return the size below which a value counts as zero, and the share of such values."""
    most = max(abs(known.moments.minimum), abs(known.moments.maximum))
    near = NEAR_ZERO * most
    return near, float(np.mean(np.abs(known.sample.values) <= near))
