"""`Wandering`: noise that drivers add to their actions."""

import math

import numpy as np
from numpy.typing import NDArray


class Wandering:
    """Ornstein-Uhlenbeck noise of a given stationary deviation; independent for time 0.

    Args:
        sigma: Standard deviation of each action's noise, float64 (A,).
        time_s: Correlation time.
        period_s: Seconds between two values.
    """

    def __init__(self, sigma: NDArray[np.float64], time_s: float, period_s: float) -> None:
        self._keep = math.exp(-period_s / time_s) if time_s > 0.0 else 0.0
        self._drive = sigma * math.sqrt(1.0 - self._keep**2)
        self._value = np.zeros_like(sigma)
        self._rng = np.random.default_rng(0)

    def begin(self, rng: np.random.Generator) -> None:
        """Start at 0, and draw from a generator from now on."""
        self._rng, self._value = rng, np.zeros_like(self._drive)

    def next(self) -> NDArray[np.float64]:
        """The next value, float64 (A,)."""
        drawn = self._rng.standard_normal(self._drive.size)
        self._value = self._keep * self._value + self._drive * drawn
        return self._value
