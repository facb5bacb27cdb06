"""Other weights for stored reward terms: rewards and returns that follow from them."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec


def full_weights(weights: Mapping[str, float], spec: EpisodeSpec) -> dict[str, float]:
    """One finite factor for each reward term, in the order of the spec.

    Args:
        weights: Factors by name; terms that are not named get 1.
        spec: Names the terms.

    Raises:
        SpecError: The spec has no terms.
        ConfigError: A name is of no term, or a factor no finite number.
    """
    terms = spec.reward_terms
    if not terms:
        raise SpecError("the dataset stores rewards without their terms: nothing can be weighted")
    for name, weight in weights.items():
        if name not in terms:
            near = difflib.get_close_matches(name, terms, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"weight of {name!r}: the terms are {', '.join(terms)}{hint}")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ConfigError(f"weight of {name!r} is {weight!r}, expected a number")
        if not math.isfinite(weight):
            raise ConfigError(f"weight of {name!r} is {weight!r}, expected a finite number")
    return {name: float(weights.get(name, 1.0)) for name in terms}


def weighted(segment: Segment, weights: Sequence[float]) -> dict[str, NDArray[Any]]:
    """Reward terms, rewards and returns of a segment under other weights.

    Products are rounded to float32 as they are stored; each reward is the sum of its stored terms
    and each return that of its stored rewards, both added in double precision.

    Args:
        segment: Where the terms lie.
        weights: Factor of each of the R terms.

    Returns:
        ``reward_terms`` float32 (N, R), ``reward`` float32 (N,), ``episode_return`` float64 (E,).

    Raises:
        ConfigError: A weighted term or their sum is no finite float32.
        SegmentNotFoundError: The segment was removed.
        SegmentCorruptError: Its bytes are not those that were published.
    """
    table = segment.episode_table()
    with np.errstate(over="ignore", invalid="ignore"):
        products = segment.read("reward_terms").astype(np.float64) * np.asarray(weights)
        terms = products.astype(np.float32)
        reward = terms.sum(axis=1, dtype=np.float64).astype(np.float32)
    if not (np.isfinite(terms).all() and np.isfinite(reward).all()):
        raise ConfigError(
            f"segment {segment.id}: with weights {list(weights)} a reward leaves float32; "
            "choose smaller ones"
        )
    returns = [
        float(reward[start : start + length].sum(dtype=np.float64))
        for start, length in zip(table.offset.tolist(), table.length.tolist(), strict=True)
    ]
    return {"reward_terms": terms, "reward": reward, "episode_return": np.array(returns)}
