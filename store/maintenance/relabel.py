"""Make a dataset of the same episodes with rewards computed anew from the stored reward terms."""

import dataclasses
import difflib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError, abbreviate
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.layout import segment_arrays
from avtd3.store.maintenance.derive import (
    Change,
    Derivation,
    NewArrays,
    shared_line,
)
from avtd3.store.maintenance.removal import (
    MaintenanceReport,
    exclusive,
)
from avtd3.store.render.text import WorkProgress, file_size, join_lines, plural
from avtd3.store.replaced import RELABEL
from avtd3.store.seal import array_files
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A factor on one reward term, in the steps where a stored term is below a limit.

    Several factors on one term are multiplied. So a reward can be a product, such as progress that
    counts half in uncomfortable steps and nothing outside the lane.
    """

    term: str
    """Term that is multiplied."""
    where: str
    """Term that is compared with the limit, as stored, before any weight."""
    below: float
    """The limit: the factor applies where the stored value is smaller."""
    factor: float


def full_weights(weights: Mapping[str, float], spec: EpisodeSpec) -> dict[str, float]:
    """Return a factor for each reward term, in the order of the spec."""
    terms = spec.reward_terms
    if not terms:
        raise SpecError("the dataset stores rewards without their terms; nothing can be weighted")
    for name, weight in weights.items():
        _check_term(f"weight of {abbreviate(name)}", name, weight, terms)
    return {name: float(weights.get(name, 1.0)) for name in terms}


def _check_term(what: str, name: str, number: object, terms: Sequence[str]) -> None:
    """Raise ConfigError if a term is unknown or the number for it is not finite."""
    if name not in terms:
        near = difflib.get_close_matches(name, terms, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{what}: the terms are {', '.join(terms)}{hint}")
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigError(f"{what} is {abbreviate(number)}, expected a finite number")


def _check_factors(factors: Sequence[Factor], spec: EpisodeSpec) -> None:
    for each in factors:
        what = f"factor on {abbreviate(each.term)} where {abbreviate(each.where)} is low"
        _check_term(what, each.term, each.factor, spec.reward_terms)
        _check_term(f"limit of the {what}", each.where, each.below, spec.reward_terms)


def weighted(
    segment: Segment, weights: Sequence[float], factors: Sequence[Factor] = ()
) -> dict[str, NDArray[Any]]:
    """Compute the reward terms, rewards and returns of a segment with weights and factors.

    Products are rounded to float32. A reward is the sum of its rounded terms, and a return the sum
    of its rounded rewards, both added in double precision.

    Returns:
        ``reward_terms`` float32 (N, R), ``reward`` float32 (N,), ``episode_return`` float64 (E,).
    """
    table = segment.episode_table()
    with np.errstate(over="ignore", invalid="ignore"):
        stored, names = segment.read("reward_terms").astype(np.float64), segment.spec.reward_terms
        products = stored * np.asarray(weights)
        for each in factors:
            is_low = stored[:, names.index(each.where)] < each.below
            products[is_low, names.index(each.term)] *= each.factor
        terms = products.astype(np.float32)
        reward = terms.sum(axis=1, dtype=np.float64).astype(np.float32)
    if not (np.isfinite(terms).all() and np.isfinite(reward).all()):
        raise ConfigError(
            f"segment {segment.id}: with weights {list(weights)} a reward exceeds the range of "
            "float32; choose smaller weights"
        )
    returns = [
        float(reward[start : start + length].sum(dtype=np.float64))
        for start, length in zip(table.offset.tolist(), table.length.tolist(), strict=True)
    ]
    return {"reward_terms": terms, "reward": reward, "episode_return": np.array(returns)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RelabelReport(MaintenanceReport):
    """What `relabel` made."""

    source: str
    """Path of the old dataset."""
    weights: Mapping[str, float]
    """Weight of each reward term."""
    factors: tuple[Factor, ...]
    """Factors that apply in some steps."""
    segments: int
    """Segments that were made."""
    steps: int
    """Steps in these segments."""
    already_there: int
    """Segments that an earlier run had made."""
    bytes_written: int
    """Size of the files that were written."""
    bytes_shared: int
    """Size of the files that both datasets share through hard links."""
    bytes_copied: int
    """Size of the files that were copied because hard links are not possible."""
    mean_return_before: float
    """Old mean return of the episodes in the new segments; 0 if there are none."""
    mean_return_after: float
    """New mean return of these episodes."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        made = f"{plural(self.segments, 'segment')} of {self.steps:,} steps"
        lines = [f"relabelled {made} into {self.dataset}"]
        if self.segments:
            lines += [
                f"mean return {self.mean_return_before:.3f} -> {self.mean_return_after:.3f}",
                shared_line(self.bytes_written, self.bytes_shared),
            ]
        if self.bytes_copied:
            lines.append(
                f"{file_size(self.bytes_copied)} copied: hard links are not possible from "
                f"{self.source} to {self.dataset}"
            )
        if self.already_there:
            lines.append(f"{plural(self.already_there, 'segment')} made before")
        return join_lines([*lines, *self.notes("skipped")])


_NEW_ARRAYS = ("reward", "reward_terms", "episode_return")


def relabel(
    source: Path,
    target: Path,
    weights: Mapping[str, float],
    *,
    factors: Sequence[Factor] = (),
    clock: Callable[[], float] = time.time,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> RelabelReport:
    """Make a dataset of the same episodes with weighted reward terms, or add what is new to it.

    ``weights`` multiply reward terms by name; other terms get 1. ``factors`` also multiply them,
    in some steps. ``should_stop`` is called
    before each segment; True ends the command.
    """
    old = Dataset.open(source)
    full = full_weights(weights, old.spec)
    _check_factors(factors, old.spec)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the source dataset itself; name a new directory")
    new = Dataset.create(target, old.spec)
    document: dict[str, Any] = {"weights": full}
    if factors:
        document["factors"] = [dataclasses.asdict(each) for each in factors]
    # Without factors, the tag of the weights alone: that of earlier versions.
    tag = sha256(canonical_json(document if factors else full))[:8]
    change = Change(key=RELABEL, document=document, tag=tag, arrays=_NEW_ARRAYS)
    returns: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def make(segment: Segment) -> NewArrays:
        values = weighted(segment, tuple(full.values()), factors)
        returns[segment.id] = (segment.read("episode_return"), values["episode_return"])
        layouts = segment_arrays(segment.spec, **segment.counts)
        parts = (array_files(layouts[name], values[name]) for name in _NEW_ARRAYS)
        return NewArrays(files={path: data for part in parts for path, data in part.items()})

    with exclusive(new):
        work = Derivation(old, new, change)
        counts = work.run_all(make, "relabelled", clock, should_stop, on_progress)
    before, after = (_mean([returns[name][n] for name in work.made]) for n in (0, 1))
    return RelabelReport(
        weights=full,
        factors=tuple(factors),
        mean_return_before=before,
        mean_return_after=after,
        **counts,
    )


def _mean(returns: Sequence[NDArray[np.float64]]) -> float:
    return float(np.concatenate(returns).mean()) if returns else 0.0
