"""Shares of the draws: of parts of a mix, of datasets, and of episodes by the age of their policy.

A draw falls on a part of the mix by the part's weight; within it on a dataset by the dataset's
weight; within that on a step, each as likely as its episode's decay says. Parts, and datasets in a
part, that hold no step leave their share to the others in proportion. Parts may overlap.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import ConfigError
from avtd3.store.filters import NO_POLICY, parse_filter

_MOST_HALVINGS = 1000
"""Keeps the weight of the oldest policies above 0, so that something can always be drawn."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixPart:
    """A share of the draws, and the episodes it falls on."""

    filter: tuple[str, ...] = ()
    """Texts as of `avtd3.store.filters`; empty: all episodes."""
    weight: float = 1.0
    """Share of the draws; those of all parts need not add up to 1."""

    def __post_init__(self) -> None:
        parse_filter(self.filter)
        if not 0.0 <= self.weight < math.inf:
            raise ConfigError(f"replay.mix weight is {self.weight!r}, expected a number from 0 up")


def policy_decay(versions: NDArray[np.int64], newest: int, half_life: float) -> NDArray[np.float64]:
    """Weight of each episode by the age of its policy: ``0.5 ** (lag / half_life)``.

    Args:
        versions: int64 (E,); episodes without a policy have weight 1.
        newest: Newest version of all.
        half_life: Versions after which the weight has halved; 0 for no decay.

    Returns:
        float64 (E,), in (0, 1].
    """
    if not half_life:
        return np.ones(len(versions), np.float64)
    halvings = np.minimum((newest - versions) / half_life, _MOST_HALVINGS)
    decay: NDArray[np.float64] = np.where(versions == NO_POLICY, 1.0, np.exp2(-halvings))
    return decay


def episode_shares(
    mass: NDArray[np.float64],
    dataset: NDArray[np.int64],
    parts: NDArray[np.bool_],
    *,
    part_weights: Sequence[float],
    dataset_weights: Sequence[float],
) -> NDArray[np.float64]:
    """Share of the draws that falls on each episode.

    Args:
        mass: float64 (E,), steps of each, times its decay.
        dataset: int64 (E,), number of its dataset.
        parts: bool (P, E), parts of the mix that it belongs to; one of all, if there is no mix.
        part_weights: Weights of the P parts.
        dataset_weights: Weights of the datasets; empty to take them as one.

    Returns:
        float64 (E,), with the sum 1, or 0 where nothing can be drawn.
    """
    shares = np.zeros(len(mass), np.float64)
    for members, weight in zip(parts, part_weights, strict=True):
        within = _within_part(np.where(members, mass, 0.0), dataset, dataset_weights)
        shares += weight * within
    total = shares.sum()
    return shares / total if total > 0.0 else shares


def _within_part(
    mass: NDArray[np.float64], dataset: NDArray[np.int64], weights: Sequence[float]
) -> NDArray[np.float64]:
    """The shares within one part; sum 1, or 0 if it has no mass where there is weight."""
    if weights:
        held = np.bincount(dataset, mass, minlength=len(weights))
        scale = np.divide(weights, held, out=np.zeros(len(weights)), where=held > 0.0)
        mass = mass * scale[dataset]
    total = mass.sum()
    return mass / total if total > 0.0 else mass
