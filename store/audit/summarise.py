"""What a segment's arrays add to the audit's summary."""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.evidence import Evidence
from avtd3.store.audit.statistics import Distribution, Moments, Sample, Summary
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.spec import EpisodeSpec


def summarise(segment_id: str, evidence: Evidence, spec: EpisodeSpec, *, gamma: float) -> Summary:
    """What a judged segment, or some of its episodes, hold.

    Args:
        segment_id: Names the samples.
        evidence: The arrays.
        spec: Their names and scales.
        gamma: Discount of a step, for the largest return.
    """
    table = evidence.episodes
    size = np.abs(evidence.reward[np.isfinite(evidence.reward)])
    components = {
        "action": distributions_by_name(spec.action_names, evidence.action, f"{segment_id}/action")
    }
    magnitudes: dict[str, float] = {}
    if evidence.vector is not None:
        components["vector"] = distributions_by_name(
            spec.vector_names, evidence.vector, f"{segment_id}/vector", spec.vector_scales
        )
    if evidence.reward_terms is not None:
        components["reward_terms"] = distributions_by_name(
            spec.reward_terms, evidence.reward_terms, f"{segment_id}/reward_terms"
        )
        magnitudes = dict(_magnitudes(spec.reward_terms, evidence.reward_terms))
    if evidence.frames is not None:
        grey = Distribution.of(evidence.frames.mean, f"{segment_id}/mean grey")
        components["frames"] = {"mean grey": grey}
    return Summary(
        segments_judged=1,
        returns=Distribution.of(table.episode_return, f"{segment_id}/return"),
        lengths=Distribution.of(table.length, f"{segment_id}/length"),
        counts=_count(table),
        coverage=Counter(
            zip(map(str, table.scenario.tolist()), map(kind_of_label, table.town), strict=True)
        ),
        components=components,
        magnitudes=magnitudes,
        largest_reward=float(size.max(initial=0.0)),
        largest_discounted=largest_discounted(evidence.reward, table.offset, table.length, gamma),
    )


def _magnitudes(names: tuple[str, ...], terms: NDArray[np.float32]) -> Iterator[tuple[str, float]]:
    for part, name in enumerate(names):
        values = np.abs(terms[:, part].astype(np.float64))
        yield name, float(values[np.isfinite(values)].sum())


def _count(table: EpisodeTable) -> dict[str, Counter[str]]:
    """Episodes per value of what a person asks about."""
    return {
        "end_reason": Counter(table.end_reason),
        "scenario": Counter(map(str, table.scenario.tolist())),
        "policy_version": Counter(map(str, table.policy_version.tolist())),
        "driver": Counter(table.driver),
        "world": Counter(table.world),
        "town": count_labels(list(table.town)),
        "weather": count_labels(list(table.weather)),
    }


def largest_discounted(
    reward: NDArray[np.float32], offset: NDArray[np.int64], length: NDArray[np.int64], gamma: float
) -> float:
    """Largest size of ``sum gamma^t r`` from any step to its episode's end.

    Args:
        reward: float32 (N_steps,).
        offset: int64 (E,), first step of each episode.
        length: int64 (E,), steps of each.
        gamma: Discount of a step.
    """
    values = np.where(np.isfinite(reward), reward, 0.0).astype(np.float64)
    total, largest = np.zeros(len(length)), 0.0
    # All episodes at once, from their ends: as many rounds as the longest has steps.
    for back in range(1, int(length.max(initial=0)) + 1):
        going = np.flatnonzero(length >= back)
        total[going] = values[(offset + length - back)[going]] + gamma * total[going]
        largest = max(largest, float(np.abs(total[going]).max()))
    return largest


def distributions_by_name(
    names: tuple[str, ...],
    values: NDArray[np.float32],
    key: str,
    scales: tuple[float, ...] | None = None,
) -> dict[str, Distribution]:
    """Distribution of each column of float32 (N, len(names)), times its scale.

    Args:
        names: Of the columns.
        values: The array.
        key: Names the array, see `Sample.of`.
        scales: One per column; None for 1.
    """
    factors = scales or (1.0,) * len(names)
    columns = values.astype(np.float64) * factors
    samples = Sample.of_columns(columns, key)
    return {
        name: Distribution(moments=Moments.of(columns[:, column]), sample=samples[column])
        for column, name in enumerate(names)
    }


def count_labels(labels: list[str]) -> Counter[str]:
    """Count labels, the numbered ones (``country-000012``) together as ``country-*``."""
    return Counter(map(kind_of_label, labels))


def kind_of_label(label: str) -> str:
    """A label without the number at its end: ``country-*`` for ``country-000012``."""
    return re.sub(r"(?<=-)\d+$", "*", label) or "-"
