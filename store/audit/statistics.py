"""Summaries of data that add up: of a segment, a dataset, or everything.

Moments merge exactly (Chan, Golub and LeVeque 1979); quantiles come from a bottom-k sample, which
is exact up to `SAMPLE_SIZE` values and beyond it a uniform sample, whatever the order of merging.
"""

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.evidence import Evidence
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.spec import EpisodeSpec

SAMPLE_SIZE = 4096
"""Values kept for quantiles: their standard error at the median is 0.8 % of the ranks."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean, spread and range of the finite values of a quantity."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""
    minimum: float = math.inf
    maximum: float = -math.inf

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> Self:
        """Moments of an array of any shape; values that are not finite are left out."""
        numbers = np.asarray(values, np.float64)
        finite = numbers[np.isfinite(numbers)]
        if not finite.size:
            return cls()
        with np.errstate(over="ignore", invalid="ignore"):  # 1e300 squared: shown as no spread
            mean = float(finite.mean())
            squares = float(np.square(finite - mean).sum())
        return cls(
            count=finite.size,
            mean=mean,
            squares=squares,
            minimum=float(finite.min()),
            maximum=float(finite.max()),
        )

    def merge(self, other: Self) -> Self:
        """Moments of both sets of values together."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        return type(self)(
            count=count,
            mean=self.mean + apart * (other.count / count),
            squares=self.squares + other.squares + apart * apart * self.count * other.count / count,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )

    def document(self) -> dict[str, float | int | None]:
        """``count, mean, std, min, max`` as JSON; None where there is no such number."""
        std = math.sqrt(self.squares / self.count) if self.count else math.nan
        return {
            "count": self.count,
            "mean": _number(self.mean if self.count else math.nan),
            "std": _number(std),
            "min": _number(self.minimum),
            "max": _number(self.maximum),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The values with the smallest priorities: a uniform sample that merges in any order."""

    priorities: NDArray[np.uint64]
    """uint64 (n,), ascending."""
    values: NDArray[np.float64]
    """float64 (n,)."""

    @classmethod
    def of(cls, values: NDArray[np.generic], key: str) -> Self:
        """Sample the finite values of a one-dimensional array.

        Args:
            values: Numbers (n,).
            key: Names the array; the same key gives the same priorities on any machine.
        """
        (sample,) = cls.of_columns(np.asarray(values, np.float64)[:, None], key)
        return sample

    @classmethod
    def of_columns(cls, values: NDArray[np.float64], key: str) -> list[Self]:
        """Sample the finite values of each column of float64 (N, M), all at the same rows."""
        start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        priorities = _scramble(np.arange(len(values), dtype=np.uint64), np.uint64(start))
        order = np.argsort(priorities)
        priorities = priorities[order]
        samples = []
        for column in values[order].T:
            kept = np.flatnonzero(np.isfinite(column))[:SAMPLE_SIZE]
            samples.append(cls(priorities=priorities[kept], values=column[kept]))
        return samples

    @classmethod
    def _smallest(cls, priorities: NDArray[np.uint64], values: NDArray[np.float64]) -> Self:
        order = np.argsort(priorities, kind="stable")[:SAMPLE_SIZE]
        return cls(priorities=priorities[order], values=values[order])

    def merge(self, other: Self) -> Self:
        """Sample of both sets of values together."""
        # Of a full sample's partner few values still come in: the rest is never sorted.
        full = len(self.priorities) == SAMPLE_SIZE
        last = np.searchsorted(other.priorities, self.priorities[-1]) if full else None
        return self._smallest(
            np.concatenate([self.priorities, other.priorities[:last]]),
            np.concatenate([self.values, other.values[:last]]),
        )

    def quantiles(self, shares: tuple[float, ...]) -> list[float | None]:
        """Value below which each share of the values lies, or Nones without values."""
        if not self.values.size:
            return [None] * len(shares)
        return [_number(float(value)) for value in np.quantile(self.values, shares)]


def _scramble(counter: NDArray[np.uint64], start: np.uint64) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014) at positions of the stream that begins at start."""
    z = start + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _number(value: float) -> float | None:
    """The value, or None where JSON has no such number."""
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Moments and quantiles of a quantity of which each episode has one."""

    moments: Moments = dataclasses.field(default_factory=Moments)
    sample: Sample = dataclasses.field(
        default_factory=lambda: Sample(priorities=np.empty(0, np.uint64), values=np.empty(0))
    )

    @classmethod
    def of(cls, values: NDArray[np.generic], key: str) -> Self:
        """Distribution of a one-dimensional array; see `Sample.of` for the key."""
        return cls(moments=Moments.of(values), sample=Sample.of(values, key))

    def merge(self, other: Self) -> Self:
        """Distribution of both sets of values together."""
        return type(self)(
            moments=self.moments.merge(other.moments), sample=self.sample.merge(other.sample)
        )

    def document(self) -> dict[str, float | int | None]:
        """``count, mean, std, min, max, p5, p50, p95`` as JSON."""
        p5, p50, p95 = self.sample.quantiles((0.05, 0.5, 0.95))
        return {**self.moments.document(), "p5": p5, "p50": p50, "p95": p95}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a segment, a dataset or an audit holds."""

    segments: int = 0
    """Published segments whose files are whole; episodes and steps are theirs."""
    segments_judged: int = 0
    """Those of them whose data was read and judged."""
    episodes: int = 0
    steps: int = 0
    simulated_seconds: float = 0.0
    bytes_on_disk: int = 0
    """Size of all files of all segments, the damaged ones included."""
    bytes_raw: int = 0
    """Size of the arrays without compression."""
    returns: Distribution = dataclasses.field(default_factory=Distribution)
    lengths: Distribution = dataclasses.field(default_factory=Distribution)
    """Steps per episode."""
    counts: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    """Episodes per value of a column (``end_reason``, ``scenario``, ...)."""
    coverage: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """Episodes per scenario and town, the numbered towns of a kind together."""
    components: dict[str, dict[str, Distribution]] = dataclasses.field(default_factory=dict)
    """Distribution per name of ``action``, ``vector`` (physical units), ``reward_terms`` and
    ``frames``."""
    magnitudes: dict[str, float] = dataclasses.field(default_factory=dict)
    """Sum of absolute values per reward term."""
    largest_reward: float = 0.0
    """Largest size of a step's reward."""
    largest_discounted: float = 0.0
    """Largest size of a discounted return, from any step on."""

    def merge(self, other: Self) -> Self:
        """What both hold together."""
        return type(self)(
            **{name: getattr(self, name) + getattr(other, name) for name in _SUMS},
            **{name: max(getattr(self, name), getattr(other, name)) for name in _LARGEST},
            returns=self.returns.merge(other.returns),
            lengths=self.lengths.merge(other.lengths),
            counts={
                name: self.counts.get(name, Counter()) + other.counts.get(name, Counter())
                for name in {**self.counts, **other.counts}
            },
            coverage=self.coverage + other.coverage,
            components={
                group: _merge_named(self.components.get(group, {}), other.components.get(group, {}))
                for group in {**self.components, **other.components}
            },
            magnitudes={
                name: self.magnitudes.get(name, 0.0) + other.magnitudes.get(name, 0.0)
                for name in {**self.magnitudes, **other.magnitudes}
            },
        )

    @property
    def reward_shares(self) -> dict[str, float]:
        """Share of each reward term in the sum of the terms' absolute values."""
        total = sum(self.magnitudes.values())
        return {k: v / total for k, v in self.magnitudes.items()} if total > 0.0 else {}

    @property
    def staleness(self) -> dict[str, float | int]:
        """Of the episodes that a policy drove: its newest version, and how far they are behind."""
        counts = {int(k): n for k, n in self.counts.get("policy_version", Counter()).items()}
        driven = {version: count for version, count in counts.items() if version >= 0 < count}
        if not driven:
            return {}
        newest, total = max(driven), sum(driven.values())
        behind = sum((newest - version) * count for version, count in driven.items())
        return {
            "newest": newest,
            "episodes": total,
            "newest_share": driven[newest] / total,
            "mean_behind": behind / total,
            "most_behind": newest - min(driven),
        }

    def document(self) -> dict[str, object]:
        """The summary as a JSON object."""
        return {
            **{name: getattr(self, name) for name in (*_SUMS, *_LARGEST)},
            "staleness": self.staleness,
            "hours": self.simulated_seconds / 3600.0,
            "ratio": self.bytes_raw / self.bytes_on_disk if self.bytes_on_disk else None,
            "returns": self.returns.document(),
            "lengths": self.lengths.document(),
            "counts": {name: dict(counter.most_common()) for name, counter in self.counts.items()},
            "coverage": [
                {"scenario": scenario, "town": town, "episodes": count}
                for (scenario, town), count in sorted(self.coverage.items())
            ],
            "components": {
                group: {name: known.document() for name, known in named.items()}
                for group, named in self.components.items()
            },
            "reward_shares": self.reward_shares,
        }


_SUMS = (
    "segments",
    "segments_judged",
    "episodes",
    "steps",
    "simulated_seconds",
    "bytes_on_disk",
    "bytes_raw",
)

_LARGEST = ("largest_reward", "largest_discounted")


def _merge_named(
    one: dict[str, Distribution], other: dict[str, Distribution]
) -> dict[str, Distribution]:
    return {
        name: one.get(name, Distribution()).merge(other.get(name, Distribution()))
        for name in {**one, **other}
    }


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
            zip(table.texts("scenario"), map(kind_of_label, table.texts("town")), strict=True)
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
        "scenario": Counter(table.texts("scenario")),
        "policy_version": Counter(map(str, table.policy_version.tolist())),
        "driver": Counter(table.texts("driver")),
        "world": Counter(table.texts("world")),
        "town": count_labels(table.texts("town")),
        "weather": count_labels(table.texts("weather")),
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
