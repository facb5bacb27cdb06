"""Define what a gate requires of a run, and check it: `Criterion`, `GateConfig`, `check_criterion`.

A criteria file is a `GateConfig` in YAML; configs/gates/ has those of the stages.
"""

import dataclasses
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from avtd3.learn.analysis.event_log import Curve
from avtd3.learn.analysis.statistics import FEWEST_FOR_TREND, find_trend
from avtd3.store.errors import ConfigError, check_settings
from avtd3.store.render.text import number

Statistic = Literal["max", "min", "mean", "median", "last", "sum"]
Trend = Literal["rising", "falling", "not_rising", "not_falling"]
Rule = Literal["every", "share", "count", Statistic, Trend]
Answer = Literal["pass", "fail", "unknown"]
Data = Literal["any", "online", "offline"]

_Floats = NDArray[np.float64]
_BOUNDS: Mapping[str, tuple[str, float, Callable[[_Floats, float], NDArray[np.bool_]]]] = {
    "below": ("<", 1.0, operator.lt),
    "above": (">", -1.0, operator.gt),
    "at_most": ("<=", 1.0, operator.le),
    "at_least": (">=", -1.0, operator.ge),
}
"""Sign, direction in which values leave the bound, and comparison of each bound."""
_LISTED = 5
"""Steps of points that are not finite that a message lists."""
_STATISTICS: Mapping[str, Callable[[_Floats], float]] = {
    "max": np.max,
    "min": np.min,
    "mean": np.mean,
    "median": np.median,
    "last": operator.itemgetter(-1),
    "sum": np.sum,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The points of a metric that a criterion uses; without any setting, all."""

    from_step: int | None = None
    """First step."""
    to_step: int | None = None
    """Last step."""
    last_share: float | None = None
    """Share of the steps, at the end: 0.2 is the last fifth."""
    last_points: int | None = None
    """Largest number of the remaining points, at the end."""

    def __post_init__(self) -> None:
        share, first, last = self.last_share, self.from_step, self.to_step
        has_points = self.last_points is None or self.last_points >= 1
        is_ordered = first is None or last is None or first <= last
        check_settings(
            self,
            "window.",
            ("last_share", share is None or 0.0 < share <= 1.0, "above 0 and at most 1"),
            ("last_points", has_points, "1 or above"),
            ("from_step", is_ordered, f"at most window.to_step, {last}"),
        )

    def select(self, curve: Curve, end: int | None) -> tuple[NDArray[np.int64], _Floats]:
        """Return the steps and values of a curve in the window, up to the step ``end`` if given."""
        steps = curve.updates
        start = 0 if self.from_step is None else int(np.searchsorted(steps, self.from_step))
        ends = [step for step in (end, self.to_step) if step is not None]
        stop = int(np.searchsorted(steps, min(ends), side="right")) if ends else len(steps)
        if self.last_share is not None and stop > start:
            last, first = int(steps[stop - 1]), min(int(steps[0]), 0)
            least = last - self.last_share * (last - first)
            start = max(start, int(np.searchsorted(steps, least, side="right")))
        if self.last_points is not None:
            start = max(start, stop - self.last_points)
        return steps[start:stop], curve.values[start:stop]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One requirement of a gate for one metric."""

    name: str = ""
    """Name in the table; unique in a file."""
    metric: str = ""
    """avtd3's name of the metric, see learn/metrics.py; other writers' tags are mapped to these."""
    rule: Rule = "every"
    """``every``, ``share`` and ``count`` use each point; ``max``, ``min``, ``mean``, ``median``,
    ``last`` and ``sum`` one number of all points; ``rising``, ``falling``, ``not_rising`` and
    ``not_falling`` the trend."""
    absolute: bool = False
    """Whether to use the absolute values."""
    below: float | None = None
    """Bound that values must be below."""
    above: float | None = None
    """Bound that values must be above."""
    at_most: float | None = None
    """Bound that values must not exceed."""
    at_least: float | None = None
    """Bound that values must reach."""
    at_most_setting: str | None = None
    """Setting in the run's own config.json that replaces the bound ``at_most``, for example
    ``learn.td3.clip.actor_max_norm``; ``at_most`` is for runs that lack the setting."""
    tolerance: float = 0.0
    """How far a value may exceed a bound, as a share of the bound: for rounding."""
    share: float = 1.0
    """With ``share``: smallest share of the points that must be within the bounds."""
    times: int = 0
    """With ``count``: largest number of points that may be within the bounds."""
    confidence: float = 0.95
    """With a trend: required confidence, see learn/analysis/statistics.py."""
    window: Window = dataclasses.field(default_factory=Window)
    """Points to use."""
    data: Data = "any"
    """Runs that have to meet it: ``online`` for those that get new episodes (``learn --follow``,
    and all runs of other tools), ``offline`` for those that learn from fixed data."""
    min_points: int = 1
    """Number of points below which the answer is unknown."""
    optional: bool = False
    """Whether the run may lack the metric; otherwise a missing metric is unknown, so NO-GO."""
    advisory: bool = False
    """Whether a failure is only reported, and does not make the gate NO-GO."""
    why: str = ""
    """What a failure means and what to do, for the user."""
    source: str = ""
    """Source of the criterion."""

    @property
    def is_trend(self) -> bool:
        """Return whether the rule is about a trend."""
        return self.rule in get_args(Trend)

    def __post_init__(self) -> None:
        where, rule = f"criterion {self.name or self.metric!r}", self.rule
        if not self.name or not self.metric:
            raise ConfigError(f"{where} needs a name and a metric")
        check_settings(
            self,
            f"{where}: ",
            *((name, math.isfinite(bound), "a number") for name, bound in self.bounds.items()),
            ("share", 0.0 <= self.share <= 1.0, "0 to 1"),
            ("confidence", 0.5 < self.confidence < 1.0, "between 0.5 and 1"),
            ("min_points", 1 <= self.min_points < math.inf, "1 or above"),
            zero_or_above=("times", "tolerance"),
        )
        has_bound = bool(self.bounds) or self.at_most_setting is not None
        lacks_most = self.at_most_setting is not None and self.at_most is None
        for is_wrong, text in (
            (
                self.is_trend and (has_bound or self.absolute),
                f"rule {rule} takes no bounds; make a second criterion",
            ),
            (
                not self.is_trend and not has_bound,
                f"rule {rule} needs a bound, one of {', '.join(_BOUNDS)}",
            ),
            (lacks_most, "at_most_setting needs at_most too, for runs that lack the setting"),
            # settings that the rule would silently ignore
            (self.share != 1.0 and rule != "share", f"share belongs to rule share, found {rule}"),
            (self.times != 0 and rule != "count", f"times belongs to rule count, found {rule}"),
        ):
            if is_wrong:
                raise ConfigError(f"{where}: {text}")

    @property
    def bounds(self) -> dict[str, float]:
        """Return the bounds that are set, by name."""
        bounds = {field: getattr(self, field) for field in _BOUNDS}
        return {field: bound for field, bound in bounds.items() if bound is not None}

    def limit_text(self) -> str:
        """Format what the criterion requires, for example ``every x < 5``."""
        rule = self.rule
        if self.is_trend:
            return f"{rule.replace('_', ' ')} ({self.confidence:.0%} sure)"
        what = "|x|" if self.absolute else "x"
        if rule in _STATISTICS:
            what = f"{rule} {what}" if self.absolute else rule
        bounds = (f"{what} {_BOUNDS[f][0]} {number(bound)}" for f, bound in self.bounds.items())
        before = {
            "every": "every ",
            "share": f"{self.share:.0%} of points ",
            "count": f"at most {self.times} points ",
        }
        return before.get(rule, "") + ", ".join(bounds)

    def are_within(self, values: _Floats) -> NDArray[np.bool_]:
        """Return whether each value is within the bounds, bool (N,); NaN is not."""
        within = np.isfinite(values)
        for field, bound in self.bounds.items():
            _, sign, is_met = _BOUNDS[field]
            within &= is_met(values, bound + sign * abs(bound) * self.tolerance)
        return within

    def excess(self, values: _Floats) -> _Floats:
        """Return how far each value is beyond the bounds, float64 (N,); negative inside."""
        beyond = np.full(len(values), -np.inf)
        for field, bound in self.bounds.items():
            beyond = np.maximum(beyond, _BOUNDS[field][1] * (values - bound))
        return beyond


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """The criteria of a stage."""

    stage: str = ""
    """Name of the stage."""
    about: str = ""
    """What passing the stage means, for the user."""
    steps: int | None = None
    """Steps of the stage: a run must have reached them, and later points are ignored; None for no
    limit."""
    criteria: tuple[Criterion, ...] = ()
    """The criteria."""

    def __post_init__(self) -> None:
        if not self.criteria:
            raise ConfigError("criteria is empty, expected at least one criterion")
        check_settings(self, "", ("steps", self.steps is None or self.steps >= 1, "1 or above"))
        counts = Counter(criterion.name for criterion in self.criteria)
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise ConfigError(f"criterion {name!r} is there twice; give each its own name")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was measured for a criterion, and whether it is met."""

    answer: Answer
    measured: float | None = None
    shown: str
    """The same number as text, with its unit or meaning."""
    at_step: int | None = None
    """Step of the deciding point, if a single point decided."""
    steps: tuple[int, int] | None = None
    """First and last step within the window."""
    points: int = 0
    reason: str


def check_criterion(criterion: Criterion, curve: Curve, end: int | None) -> Outcome:
    """Check a curve; points that are not finite fail every rule but ``share``: they are outside."""
    steps, values = criterion.window.select(curve, end)
    points = _Points(steps, np.abs(values) if criterion.absolute else values)
    if len(values) < criterion.min_points:
        least = f"expected at least {criterion.min_points}"
        reason = f"{len(values)} of its {len(curve.values)} points are in the window, {least}"
        return points.outcome("unknown", reason)
    not_finite = points.not_finite()
    if not_finite and criterion.rule != "share":
        return points.outcome("fail", not_finite, shown="not finite")
    if criterion.is_trend:
        return _check_trend(criterion, points)
    if criterion.rule in _STATISTICS:
        return _check_statistic(criterion, points)
    if criterion.rule == "every":
        return _check_every(criterion, points)
    return _check_counted(criterion, points, not_finite)


class _Points(NamedTuple):
    steps: NDArray[np.int64]
    values: _Floats

    def outcome(
        self,
        answer: Answer,
        reason: str,
        *,
        measured: float | None = None,
        shown: str | None = None,
        at: int | None = None,
    ) -> Outcome:
        """Make an outcome for these points; ``at`` is the index of the deciding one."""
        if measured is not None:
            shown = number(measured) if shown is None else shown
            measured = measured if math.isfinite(measured) else None
        return Outcome(
            answer=answer,
            measured=measured,
            shown=shown or "",
            at_step=None if at is None else int(self.steps[at]),
            steps=(int(self.steps[0]), int(self.steps[-1])) if len(self.steps) else None,
            points=len(self.steps),
            reason=reason,
        )

    def not_finite(self) -> str:
        """Describe the points that are not finite; empty if there are none."""
        rows = np.flatnonzero(~np.isfinite(self.values))
        if not rows.size:
            return ""
        kinds = np.where(np.isnan(self.values), "NaN", "inf")
        names = [f"{kinds[row]} at {self.steps[row]:,}" for row in rows[:_LISTED]]
        more = f" and {rows.size - _LISTED:,} more" if rows.size > _LISTED else ""
        return f"{rows.size:,} of {len(self.values):,} points not finite: {', '.join(names)}{more}"


def _check_trend(criterion: Criterion, points: _Points) -> Outcome:
    trend = find_trend(points.steps, points.values)
    if trend is None:
        least = f"expected at least {FEWEST_FOR_TREND} to see a trend"
        return points.outcome("unknown", f"{len(points.values)} points, {least}")
    asked = criterion.rule.removeprefix("not_")
    sure = trend.rising if asked == "rising" else trend.falling
    is_sure = sure >= criterion.confidence
    answer: Answer = "pass" if is_sure != criterion.rule.startswith("not_") else "fail"
    slope = f"{trend.slope * 1000:+.3g}"
    reason = f"{asked} with a confidence of {sure:.1%}, median slope per 1,000 steps {slope}"
    return points.outcome(answer, reason, measured=trend.slope, shown=f"{slope} per 1k")


def _check_statistic(criterion: Criterion, points: _Points) -> Outcome:
    rule, values = criterion.rule, points.values
    measured = float(_STATISTICS[rule](values))
    at = {"max": int(values.argmax()), "min": int(values.argmin()), "last": len(values) - 1}
    answer: Answer = "pass" if criterion.are_within(np.array([measured]))[0] else "fail"
    reason = f"{rule} of {len(values):,} points"
    return points.outcome(answer, reason, measured=measured, at=at.get(rule))


def _check_every(criterion: Criterion, points: _Points) -> Outcome:
    outside = np.flatnonzero(~criterion.are_within(points.values))
    worst, total = int(np.argmax(criterion.excess(points.values))), len(points.values)
    answer: Answer = "fail" if outside.size else "pass"
    reason = f"all {total:,} points; the nearest to the bound is shown"
    if outside.size:
        first = f"the first at {points.steps[outside[0]]:,}; the worst is shown"
        reason = f"{outside.size:,} of {total:,} points outside, {first}"
    return points.outcome(answer, reason, measured=float(points.values[worst]), at=worst)


def _check_counted(criterion: Criterion, points: _Points, not_finite: str) -> Outcome:
    within = np.flatnonzero(criterion.are_within(points.values))
    inside, total = within.size, len(points.values)
    if criterion.rule == "share":
        share = inside / total
        answer: Answer = "pass" if share >= criterion.share else "fail"
        reason = f"{inside:,} of {total:,} points within" + (not_finite and f"; {not_finite}")
        return points.outcome(answer, reason, measured=share, shown=f"{share:.1%}")
    answer = "pass" if inside <= criterion.times else "fail"
    at = int(within[0]) if inside else None
    reason = f"{inside:,} of {total:,} points" + ("" if at is None else ", the first is named")
    return points.outcome(answer, reason, measured=float(inside), shown=f"{inside:,} points", at=at)
