"""Fitted Q evaluation: estimate the value of a policy from episodes that others drove.

The estimate does not use the critic's own values, which are too high where it was trained on its
own actions. It fits a linear function of the critics' last hidden layers to held-out episodes:
``w <- argmin |psi(s, a) w - r - discount * psi(s', pi(s')) w_old|^2 + ridge |w|^2``, repeated until
`w` stays the same (fitted Q evaluation: Le, Voloshin & Yue 2019; with linear functions its fixed
point is that of LSTD-Q: Lagoudakis & Parr 2003). Each episode is rated by a function that was
fitted to other episodes.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
RIDGE = 1e-3
"""Weight of the penalty on `w`, relative to the mean square of the features."""
ROUNDS = 4_000
"""Largest number of repetitions."""
TOLERANCE = 1e-6
DIVERGED = 1e9
"""Factor by which `w` may exceed the first one before the fit is given up."""
RESAMPLES = 2_000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FittedEpisode:
    """Features of an episode of T steps."""

    features: NDArray[np.floating]
    """(T, D), psi of each step's state and action."""
    own: NDArray[np.floating]
    """(T + 1, D), psi of each state, the last one included, and the policy's action there."""
    reward: NDArray[np.float64]
    """(T,)."""
    discount: NDArray[np.float64]
    """(T,): 0 after the last step of a terminated episode, else gamma."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FittedValue:
    """Estimate of the policy's mean discounted return from the states of the episodes on."""

    mean: float
    low: float
    """Lower end of the 95 % interval: the episodes are resampled (percentile bootstrap)."""
    high: float
    """Upper end."""


def fitted_value(episodes: list[FittedEpisode], seed: int = 0) -> FittedValue | None:
    """Estimate the value of a policy; None with fewer than two episodes, or without a fixed point.

    Args:
        episodes: At least `FOLDS` for a useful estimate.
        seed: Seed of the resampling.
    """
    if len(episodes) < 2:
        return None
    scale = np.sqrt(np.mean([np.square(e.features).mean() for e in episodes])) or 1.0
    folds = min(FOLDS, len(episodes))
    sums = [_moments(episodes[fold::folds], scale) for fold in range(folds)]
    values = np.empty(len(episodes))
    for fold in range(folds):
        others = [sums[other] for other in range(folds) if other != fold]
        weights = _fit(*(np.sum([each[part] for each in others], axis=0) for part in range(3)))
        if weights is None:
            return None
        for number in range(fold, len(episodes), folds):
            values[number] = (_with_bias(episodes[number].own[:-1], scale) @ weights).mean()
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(values[drawn].mean(axis=1), (tail, 1.0 - tail))
    return FittedValue(mean=float(values.mean()), low=float(low), high=float(high))


def _with_bias(features: NDArray[np.floating], scale: float) -> NDArray[np.float64]:
    """Return features (N, D + 1) of about unit size, with a constant."""
    return np.concatenate([features.astype(np.float64) / scale, np.ones((len(features), 1))], 1)


_Moments = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _moments(episodes: list[FittedEpisode], scale: float) -> _Moments:
    """Return ``psi' psi``, ``psi' (discount * next psi)`` and ``psi' r``, summed over steps."""
    found = []
    for episode in episodes:
        now, after = (_with_bias(x, scale) for x in (episode.features, episode.own[1:]))
        after *= episode.discount[:, None]
        found.append((now.T @ now, now.T @ after, now.T @ episode.reward))
    gram, cross, target = (np.sum([each[part] for each in found], axis=0) for part in range(3))
    return gram, cross, target


def _fit(
    gram: NDArray[np.float64], cross: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return the fixed point of the repeated regressions; None if there is none."""
    steps = gram[-1, -1]
    inverse = np.linalg.inv(gram + RIDGE * steps * np.eye(len(gram)))
    transition, weights = inverse @ cross, inverse @ target
    start = weights
    for _ in range(ROUNDS):
        after = start + transition @ weights
        change = float(np.abs(after - weights).max())
        weights = after
        if not change < DIVERGED * (1.0 + float(np.abs(start).max())):
            return None
        if change <= TOLERANCE * max(1.0, float(np.abs(weights).max())):
            return weights
    return None
