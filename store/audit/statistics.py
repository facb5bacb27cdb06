"""Summarise the data of a segment, and merge the summaries of segments and datasets.

Moments merge exactly (Chan, Golub and LeVeque 1979). Quantiles come from a bottom-k sample: all
values up to `SAMPLE_SIZE`, a uniform sample beyond, in whatever order samples are merged.
`estimate` measures the disk space of a step.
"""

import dataclasses
import hashlib
import math
import re
from collections import Counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.segment_data import SegmentData
from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import DatasetError
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.step_labels import EXPERT_DROVE, OWN_DROVE

LARGEST = 1e300
"""Larger values count as infinite, so that sums and differences of the others are finite."""
SAMPLE_SIZE = 4096
"""Values of a sample; the standard error of its median is 0.8 % of the ranks."""
BINS = 30
_EXACT = 2.0**52
"""Size up to which halves are exact."""
NEAR_ZERO = 0.05
"""Share of a component's largest size below which it counts as zero."""
ABOUT = "about the segment"
"""Key of the bytes that are not array data: manifests and metadata."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean, squared deviation and range of the finite values of a quantity."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""
    minimum: float = math.inf
    maximum: float = -math.inf

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> Self:
        """Compute the moments of an array of any shape, without the values that are not finite."""
        numbers = np.asarray(values, np.float64)
        finite = numbers[np.abs(numbers) <= LARGEST]
        if not finite.size:
            return cls()
        with np.errstate(over="ignore", invalid="ignore"):  # 1e300 squared: no standard deviation
            mean = float(finite.mean())
            squares = float(np.square(finite - mean).sum())
        low, high = float(finite.min()), float(finite.max())
        return cls(count=finite.size, mean=mean, squares=squares, minimum=low, maximum=high)

    def merge(self, other: Self) -> Self:
        """Return the moments of both sets of values together."""
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
        """Return ``count, mean, std, min, max`` as JSON; None where JSON has no such number."""
        return {
            "count": self.count,
            "mean": _number(self.mean) if self.count else None,
            "std": _number(math.sqrt(self.squares / self.count)) if self.count else None,
            "min": _number(self.minimum),
            "max": _number(self.maximum),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A uniform sample that merges in any order: the values with the smallest priorities."""

    priorities: NDArray[np.uint64]
    """uint64 (n,), ascending."""
    values: NDArray[np.float64]
    """float64 (n,)."""

    @classmethod
    def of(cls, values: NDArray[np.generic], key: str) -> Self:
        """Sample the finite values of an array (n,); equal keys give equal priorities."""
        (sample,) = cls.of_columns(np.asarray(values, np.float64)[:, None], key)
        return sample

    @classmethod
    def of_columns(cls, values: NDArray[np.float64], key: str) -> list[Self]:
        """Sample the finite values of each column of float64 (N, M), all at the same rows."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        start = int.from_bytes(digest[:8], "little")
        priorities = _scramble(np.arange(len(values), dtype=np.uint64), np.uint64(start))
        order = np.argsort(priorities)
        priorities = priorities[order]
        samples = []
        for column in values[order].T:
            kept = np.flatnonzero(np.abs(column) <= LARGEST)[:SAMPLE_SIZE]
            samples.append(cls(priorities=priorities[kept], values=column[kept]))
        return samples

    def merge(self, other: Self) -> Self:
        """Return a sample of both sets of values together."""
        # Few values of the other sample can still enter a full one; do not sort the rest.
        full = len(self.priorities) == SAMPLE_SIZE
        last = np.searchsorted(other.priorities, self.priorities[-1]) if full else None
        priorities = np.concatenate([self.priorities, other.priorities[:last]])
        values = np.concatenate([self.values, other.values[:last]])
        order = np.argsort(priorities, kind="stable")[:SAMPLE_SIZE]
        return type(self)(priorities=priorities[order], values=values[order])

    def quantiles(self, shares: tuple[float, ...]) -> list[float | None]:
        """Return the quantiles at the given shares; None if there are no values."""
        if not self.values.size:
            return [None] * len(shares)
        return [_number(float(value)) for value in np.quantile(self.values, shares)]


def _scramble(counter: NDArray[np.uint64], start: np.uint64) -> NDArray[np.uint64]:
    """Return SplitMix64 (Steele, Lea and Flood 2014) at positions of the stream from start."""
    z = start + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _number(value: float) -> float | None:
    """Return the value, or None if JSON has no such number."""
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Moments and a sample of a quantity."""

    moments: Moments = dataclasses.field(default_factory=Moments)
    sample: Sample = dataclasses.field(
        default_factory=lambda: Sample(priorities=np.empty(0, np.uint64), values=np.empty(0))
    )

    @classmethod
    def of(cls, values: NDArray[np.generic], key: str) -> Self:
        """Return the distribution of a one-dimensional array; see `Sample.of` for the key."""
        return cls(moments=Moments.of(values), sample=Sample.of(values, key))

    def merge(self, other: Self) -> Self:
        """Return the distribution of both sets of values together."""
        return type(self)(
            moments=self.moments.merge(other.moments), sample=self.sample.merge(other.sample)
        )

    def document(self) -> dict[str, float | int | None]:
        """Return ``count, mean, std, min, max, p5, p50, p95`` as JSON."""
        p5, p50, p95 = self.sample.quantiles((0.05, 0.5, 0.95))
        return {**self.moments.document(), "p5": p5, "p50": p50, "p95": p95}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """A histogram: counts of values between edges."""

    edges: NDArray[np.float64]
    """float64 (N + 1,), ascending."""
    counts: NDArray[np.float64]
    """float64 (N,), 0 or more."""

    @classmethod
    def of(cls, values: NDArray[np.float64], most: int = BINS) -> Self | None:
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The contents of a segment, a dataset or several datasets."""

    segments: int = 0
    """Published segments without damaged files; episodes and steps count only these."""
    segments_read: int = 0
    """Segments whose data was read and checked."""
    episodes: int = 0
    steps: int = 0
    simulated_seconds: float = 0.0
    """Steps times the control period."""
    bytes_on_disk: int = 0
    """Size of all files of all segments, including damaged ones."""
    bytes_raw: int = 0
    returns: Distribution = dataclasses.field(default_factory=Distribution)
    lengths: Distribution = dataclasses.field(default_factory=Distribution)
    counts: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    """Episodes per value of ``end_reason``, ``scenario``, ..."""
    coverage: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """Episodes per scenario and kind of town, see `kind_of_label`."""
    components: dict[str, dict[str, Distribution]] = dataclasses.field(default_factory=dict)
    """Distributions by name, for ``action``, ``vector`` (in physical units), ``reward_terms`` and
    ``frames``."""
    magnitudes: dict[str, float] = dataclasses.field(default_factory=dict)
    """Sum of the absolute values of each reward term."""
    rewards: Moments = dataclasses.field(default_factory=Moments)
    """Magnitudes of the rewards; their mean is the scale of the rewards."""
    expert: dict[str, float] = dataclasses.field(default_factory=dict)
    """Sums over the steps of which it is known who drove, and what the expert would have done."""
    largest_reward: float = 0.0
    largest_discounted: float = 0.0
    """Largest magnitude of the discounted return from any step."""

    def merge(self, other: Self) -> Self:
        """Return the contents of both together."""
        merged = {}
        for field in dataclasses.fields(self):
            merge = max if field.name in _LARGEST else _merge
            merged[field.name] = merge(getattr(self, field.name), getattr(other, field.name))
        return type(self)(**merged)

    @property
    def reward_shares(self) -> dict[str, float]:
        """Return the share of each reward term in the sum of absolute values."""
        total = sum(self.magnitudes.values())
        return {k: v / total for k, v in self.magnitudes.items()} if total > 0.0 else {}

    @property
    def expert_shares(self) -> dict[str, float]:
        """Return who drove, and how far other drivers were from the expert; empty if not known.

        ``drove`` is the expert's share of the ``steps`` of which the driver is known, ``takeovers``
        how often it followed another driver. ``compared`` counts steps of other drivers of which
        the expert's action is known, ``differing`` is the share of them in which an action is more
        than `DIFFERING` half ranges from it, and ``distance NAME`` the mean distance of an action.
        """
        sums = self.expert
        if not sums.get("steps"):
            return {}
        compared = sums.get("compared", 0.0)
        shares = {name: sums[name] for name in ("steps", "takeovers")} | {"compared": compared}
        shares["drove"] = sums["drove"] / sums["steps"]
        if compared:
            means = ("differing", *(name for name in sums if name.startswith("distance ")))
            shares |= {name: sums[name] / compared for name in means}
        return shares

    @property
    def staleness(self) -> dict[str, float | int]:
        """Return the newest policy version, and how far the driving policies are behind it."""
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
        """Return the summary as a JSON object."""
        return {
            "segments": self.segments,
            "segments_judged": self.segments_read,
            **{name: getattr(self, name) for name in (*_SUMS, *_LARGEST)},
            "staleness": self.staleness,
            "hours": self.simulated_seconds / 3600.0,
            "ratio": self.bytes_raw / self.bytes_on_disk if self.bytes_on_disk else None,
            "returns": self.returns.document(),
            "lengths": self.lengths.document(),
            "reward_scale": self.rewards.mean if self.rewards.count else None,
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
            "expert": self.expert_shares,
        }


DIFFERING = 0.2
"""Distance from the expert's action, in half ranges, from which on actions count as different."""
_LARGEST = ("largest_reward", "largest_discounted")
_SUMS = ("episodes", "steps", "simulated_seconds", "bytes_on_disk", "bytes_raw")


def _merge(one: Any, other: Any) -> Any:  # noqa: ANN401 - a field of a summary
    """Return two values of a field together; those in dicts are merged by name."""
    if isinstance(one, dict) and not isinstance(one, Counter):
        both = {name: _merge(one[name], other[name]) for name in one.keys() & other.keys()}
        return {**one, **other, **both}
    return one.merge(other) if isinstance(one, Moments | Distribution) else one + other


def summarise(segment_id: str, data: SegmentData, *, gamma: float) -> Summary:
    """Summarise the data of a segment, or of some of its episodes."""
    table, spec, terms = data.episodes, data.spec, data.reward_terms
    size = np.abs(data.reward[np.isfinite(data.reward)])
    components = {
        group: distributions_by_name(names, values, f"{segment_id}/{group}", scales)
        for group, names, values, scales in (
            ("action", spec.action_names, data.action, None),
            ("vector", spec.vector_names, data.vector, spec.vector_scales),
            ("reward_terms", spec.reward_terms, terms, None),
        )
        if values is not None
    }
    columns = () if terms is None else terms.astype(np.float64).T
    magnitudes = {
        name: float(np.abs(column[np.isfinite(column)]).sum())
        for name, column in zip(spec.reward_terms, columns, strict=terms is not None)
    }
    if data.streams:
        greys = {
            f"mean grey of {name}" if spec.streams else "mean grey": features.mean
            for name, features in data.streams.items()
        }
        components["frames"] = {
            name: Distribution.of(mean, f"{segment_id}/{name}") for name, mean in greys.items()
        }
    return Summary(
        segments_read=1,
        returns=Distribution.of(table.episode_return, f"{segment_id}/return"),
        lengths=Distribution.of(table.length, f"{segment_id}/length"),
        counts=_count(table),
        coverage=Counter(
            zip(table.texts("scenario"), map(kind_of_label, table.texts("town")), strict=True)
        ),
        components=components,
        magnitudes=magnitudes,
        expert=_expert_sums(data),
        rewards=Moments.of(size),
        largest_reward=float(size.max(initial=0.0)),
        largest_discounted=largest_discounted(data.reward, table.offset, table.length, gamma),
    )


def _expert_sums(data: SegmentData) -> dict[str, float]:
    """Return the sums of `Summary.expert_shares`."""
    driver, label, spec = data.step_driver, data.expert_action, data.spec
    if driver is None:
        return {}
    expert = driver == EXPERT_DROVE
    begins = expert[1:] & (driver[:-1] == OWN_DROVE) & (np.diff(data.step_episode) == 0)
    counts = {"steps": driver > 0, "drove": expert, "takeovers": begins}
    sums = {name: float(chosen.sum()) for name, chosen in counts.items()}
    if label is None:
        return sums
    half = 0.5 * (np.asarray(spec.action_high) - np.asarray(spec.action_low))
    distance = np.abs(data.action - label) / half
    distance = distance[(driver == OWN_DROVE) & np.isfinite(distance).all(axis=1)]
    sums["compared"] = float(len(distance))
    sums["differing"] = float((distance > DIFFERING).any(axis=1).sum())
    totals = zip(spec.action_names, distance.sum(axis=0).tolist(), strict=True)
    return sums | {f"distance {name}": total for name, total in totals}


def _count(table: EpisodeTable) -> dict[str, Counter[str]]:
    """Count the episodes per value of the columns that reports show."""
    return {
        "end_reason": Counter(table.end_reason),
        "scenario": Counter(table.texts("scenario")),
        "policy_version": Counter(map(str, table.policy_version.tolist())),
        "driver": Counter(table.texts("driver")),
        "world": Counter(table.texts("world")),
        "town": Counter(map(kind_of_label, table.texts("town"))),
        "weather": Counter(map(kind_of_label, table.texts("weather"))),
    }


def largest_discounted(
    reward: NDArray[np.float32], offset: NDArray[np.int64], length: NDArray[np.int64], gamma: float
) -> float:
    """Return the largest magnitude of ``sum gamma^t r`` from any step to the episode's end."""
    values = np.where(np.isfinite(reward), reward, 0.0).astype(np.float64)
    total, largest = np.zeros(len(length)), 0.0
    # Process all episodes at once, from their ends.
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
    """Return the distribution of each column of float32 (N, len(names)), times its scale."""
    factors = scales or (1.0,) * len(names)
    columns = values.astype(np.float64) * factors
    samples = Sample.of_columns(columns, key)
    return {
        name: Distribution(moments=Moments.of(columns[:, column]), sample=samples[column])
        for column, name in enumerate(names)
    }


def kind_of_label(label: str) -> str:
    """Replace the number at the end of a label: ``country-*`` for ``country-000012``."""
    return re.sub(r"(?<=-)\d+$", "*", label) or "-"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes per step of each array, as measured on a dataset."""

    steps: int
    seconds_per_step: float
    stored: dict[str, float]
    """Bytes per step by array, and `ABOUT`."""
    raw: float

    @property
    def bytes_per_step(self) -> float:
        """Return the bytes on disk per step."""
        return sum(self.stored.values())

    @property
    def hours_per_terabyte(self) -> float:
        """Return the hours of driving that fit into 10^12 bytes."""
        return 1e12 / self.bytes_per_step * self.seconds_per_step / 3600.0

    def document(self) -> dict[str, object]:
        """Return the estimate as a JSON object."""
        return {
            **dataclasses.asdict(self),
            "bytes_per_step": self.bytes_per_step,
            "hours_per_terabyte": self.hours_per_terabyte,
            "ratio": self.raw / self.bytes_per_step,
        }

    def summary(self) -> str:
        """Format the estimate for a terminal, the largest array first."""
        lines = [
            f"{self.bytes_per_step:,.0f} bytes per step, "
            f"{self.hours_per_terabyte:,.0f} hours per terabyte",
            f"  measured on {self.steps:,} steps; {self.raw:,.0f} bytes raw, "
            f"{self.raw / self.bytes_per_step:.1f}x",
        ]
        for name, size in sorted(self.stored.items(), key=lambda item: -item[1]):
            lines.append(f"  {name:<28} {size:>12,.1f}  {size / self.bytes_per_step:>6.1%}")
        return "\n".join(lines) + "\n"


def estimate(dataset: Dataset) -> Estimate:
    """Measure the published segments of a dataset."""
    stored: dict[str, float] = {}
    steps, raw = 0, 0
    for segment in dataset.snapshot().segments:
        steps, raw = steps + segment.steps, raw + segment.raw_bytes
        about = stored.get(ABOUT, 0.0)
        stored[ABOUT] = about + (segment.path / MANIFEST_FILE).stat().st_size
        for name, entry in segment.files.items():
            array, _, rest = name.partition("/")
            key = array if rest.startswith("c/") else ABOUT
            stored[key] = stored.get(key, 0.0) + entry.size
    if not steps:
        raise DatasetError(
            f"{dataset.path} has no steps to measure; collect a few seconds of driving first"
        )
    return Estimate(
        steps=steps,
        seconds_per_step=dataset.spec.control_period_s,
        stored={name: size / steps for name, size in stored.items()},
        raw=raw / steps,
    )
