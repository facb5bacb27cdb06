"""How values spread: counts between edges, and them as one line of text.

What driving data suffer from most shows here: a car that goes straight ahead nearly all the time.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.statistics import Distribution

BINS = 30
NEAR_ZERO = 0.05
"""Share of a component's largest size below which it counts as none: the straight-driving bias."""
_INKS = " .:-=+*#%@"
"""From no value to the most."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """Counts of values between edges."""

    edges: NDArray[np.float64]
    """float64 (N + 1,), ascending."""
    counts: NDArray[np.float64]
    """float64 (N,), 0 or more."""

    @classmethod
    def of(cls, values: NDArray[np.float64], most: int = BINS) -> "Bins | None":
        """At most so many bins of equal width around all finite values; None if there are none.

        Whole numbers of a narrow range get a bin each.
        """
        finite = values[np.isfinite(values)]
        if not finite.size:
            return None
        low, high = float(finite.min()), float(finite.max())
        whole = bool((finite == np.round(finite)).all())
        if whole and high - low < most:
            edges = np.arange(low - 0.5, high + 1.0)
        elif high - low > 1e-9 * max(1.0, abs(low), abs(high)):
            edges = np.linspace(low, high, most + 1)
        else:
            edges = np.array([low - 0.5, low + 0.5])
        counts, _ = np.histogram(finite, edges)
        return cls(edges=edges, counts=counts.astype(np.float64))


def near_zero(known: Distribution) -> tuple[float, float]:
    """Size below which a value counts as none, and the share of the values that do."""
    most = max(abs(known.moments.minimum), abs(known.moments.maximum))
    near = NEAR_ZERO * most
    return near, float(np.mean(np.abs(known.sample.values) <= near))


def strip(bins: Bins, width: int) -> str:
    """The bins as characters, the darker the more values; each that holds any is seen.

    Args:
        bins: What to draw; fewer than ``width`` are drawn broader.
        width: Characters.
    """
    most = max(1.0, float(bins.counts.max(initial=0.0)))
    inks = [_INKS[math.ceil(count / most * (len(_INKS) - 1))] for count in bins.counts]
    return "".join(inks[place * len(inks) // width] for place in range(width))
