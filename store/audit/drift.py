"""Measure how far the data of two sets of episodes have drifted apart.

Each quantity gets the population stability index over ten equally populated parts of the first set
(Siddiqi 2006: below 0.1 the populations are the same, above 0.25 they differ) and the two-sample
Kolmogorov-Smirnov statistic, both from the audit's samples of 4096 values.
"""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.statistics import Summary

PARTS = 10
"""Number of parts that the index compares."""
SAME, OTHER = 0.1, 0.25
"""Index below which two populations are the same, and above which they differ."""
FEW = 100
"""Number of values below which an index is mostly chance."""

Verdict = Literal["same", "shifted", "other", "few values"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How one quantity differs between two sets of episodes."""

    name: str
    """Group and name of the quantity, for example ``action steer``."""
    psi: float
    """Population stability index, 0 or more."""
    ks: float
    """Largest distance between the two cumulative distributions, in [0, 1]."""
    medians: tuple[float, float]
    verdict: Verdict
    """``few values`` if a set is too small to compare."""

    def document(self) -> dict[str, object]:
        """Return the drift as a JSON object."""
        return dataclasses.asdict(self)


def drift_between(first: Summary, second: Summary) -> tuple[Drift, ...]:
    """Return the drift of each quantity in both summaries, the most drifted first."""
    others = _quantities(second)
    found = [
        _compare(name, values, others[name])
        for name, values in _quantities(first).items()
        if name in others
    ]
    return tuple(sorted(found, key=lambda drift: -drift.psi))


def population_stability(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the index of the second float64 (n,) relative to the first float64 (m,)."""
    edges = np.unique(np.quantile(first, np.linspace(0.0, 1.0, PARTS + 1)[1:-1]))
    shares = []
    for values in (first, second):
        # Count values below, on and above each edge: of values such as 0 or 1, most are edges.
        part = np.searchsorted(edges, values, "left") + np.searchsorted(edges, values, "right")
        counts = np.bincount(part, minlength=2 * len(edges) + 1)
        # Add half a value to each part: an empty part would make the index infinite.
        shares.append((counts + 0.5) / (len(values) + 0.5 * len(counts)))
    expected, found = shares
    return float(((found - expected) * np.log(found / expected)).sum())


def kolmogorov_smirnov(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the largest distance between the two empirical cumulative distributions."""
    points = np.concatenate([first, second])
    one, other = (
        np.searchsorted(np.sort(values), points, side="right") / len(values)
        for values in (first, second)
    )
    return float(np.abs(one - other).max())


def _quantities(summary: Summary) -> dict[str, NDArray[np.float64]]:
    """Return the samples of all quantities that have values, float64 (n,) each."""
    episode = {"return": summary.returns, "length": summary.lengths}
    return {
        f"{group} {name}": known.sample.values
        for group, named in {"episode": episode, **summary.components}.items()
        for name, known in named.items()
        if known.sample.values.size
    }


def _compare(name: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> Drift:
    psi = population_stability(first, second)
    verdict: Verdict = "same" if psi < SAME else "shifted" if psi < OTHER else "other"
    return Drift(
        name=name,
        psi=psi,
        ks=kolmogorov_smirnov(first, second),
        medians=(float(np.median(first)), float(np.median(second))),
        verdict="few values" if min(len(first), len(second)) < FEW else verdict,
    )
