"""Check one criterion of a gate against one curve: `judge`."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from avtd3.learn.analysis.criteria import Criterion, Window
from avtd3.learn.analysis.scalars import Curve
from avtd3.learn.analysis.trend import FEWEST, find_trend
from avtd3.store.render.text import number

Answer = Literal["pass", "fail", "unknown"]

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]
_NAMED = 5
"""Steps of non-finite points that a message lists."""

STATISTICS: Mapping[str, Callable[[_Floats], float]] = {
    "max": lambda values: float(values.max()),
    "min": lambda values: float(values.min()),
    "mean": lambda values: float(values.mean()),
    "median": lambda values: float(np.median(values)),
    "last": lambda values: float(values[-1]),
    "sum": lambda values: float(values.sum()),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds that values are compared with."""

    below: float | None = None
    above: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    tolerance: float = 0.0
    """How far beyond a bound a value may lie, as a share of the bound."""

    @classmethod
    def of(cls, criterion: Criterion, at_most: float | None) -> "Bounds":
        """Return a criterion's bounds; `at_most`, from the run's settings, replaces its own."""
        return cls(
            below=criterion.below,
            above=criterion.above,
            at_most=criterion.at_most if at_most is None else at_most,
            at_least=criterion.at_least,
            tolerance=criterion.tolerance,
        )

    def hold(self, values: _Floats) -> _Mask:
        """Return whether each value lies within the bounds, bool (N,); NaN does not."""
        within = np.isfinite(values)
        if self.below is not None:
            within &= values < self.below + self._slack(self.below)
        if self.above is not None:
            within &= values > self.above - self._slack(self.above)
        if self.at_most is not None:
            within &= values <= self.at_most + self._slack(self.at_most)
        if self.at_least is not None:
            within &= values >= self.at_least - self._slack(self.at_least)
        return within

    def excess(self, values: _Floats) -> _Floats:
        """Return how far each value lies beyond the bounds, float64 (N,); negative inside."""
        beyond = np.full(len(values), -np.inf)
        for bound in (self.below, self.at_most):
            if bound is not None:
                beyond = np.maximum(beyond, values - bound)
        for bound in (self.above, self.at_least):
            if bound is not None:
                beyond = np.maximum(beyond, bound - values)
        return beyond

    def text(self, what: str) -> str:
        """Format the bounds, for example ``x < 5, x >= 0``."""
        signs = (("<", self.below), (">", self.above), ("<=", self.at_most), (">=", self.at_least))
        return ", ".join(f"{what} {sign} {number(b)}" for sign, b in signs if b is not None)

    def _slack(self, bound: float) -> float:
        return abs(bound) * self.tolerance


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of a criterion for a curve."""

    answer: Answer
    """Whether the criterion holds."""
    measured: float | None
    """Number that was compared with the bounds; None if there is none."""
    shown: str
    """The same number as text, with its unit or meaning."""
    at_step: int | None
    """Step of the deciding point, if a single point decided."""
    steps: tuple[int, int] | None
    """First and last step within the window."""
    points: int
    """Number of points within the window."""
    reason: str
    """Explanation of the answer."""


def select(curve: Curve, window: Window, end: int | None) -> tuple[NDArray[np.int64], _Floats]:
    """Return the steps and values of a curve within a window.

    Args:
        curve: The curve.
        window: The window.
        end: Last step of the stage, after which points are ignored; None for no limit.
    """
    steps, values = curve.updates, curve.values
    keep = np.ones(len(steps), np.bool_)
    if end is not None:
        keep &= steps <= end
    if window.from_step is not None:
        keep &= steps >= window.from_step
    if window.to_step is not None:
        keep &= steps <= window.to_step
    steps, values = steps[keep], values[keep]
    if window.last_share is not None and len(steps):
        last = int(steps[-1])
        first = min(int(curve.updates[0]), 0)
        keep = steps > last - window.last_share * (last - first)
        steps, values = steps[keep], values[keep]
    if window.last_points is not None:
        steps, values = steps[-window.last_points :], values[-window.last_points :]
    return steps, values


def limit_text(criterion: Criterion, bounds: Bounds) -> str:
    """Format what a criterion requires, in a few characters."""
    rule = criterion.rule
    if criterion.is_trend:
        return f"{rule.replace('_', ' ')} ({criterion.confidence:.0%} sure)"
    what = "|x|" if criterion.absolute else "x"
    inner = bounds.text(what)
    if rule == "every":
        return f"every {inner}"
    if rule == "share":
        return f"{criterion.share:.0%} of points {inner}"
    if rule == "count":
        return f"at most {criterion.times} points {inner}"
    return bounds.text(f"{rule} {what}" if criterion.absolute else rule)


def judge(criterion: Criterion, bounds: Bounds, curve: Curve, end: int | None) -> Outcome:
    """Check a criterion against a curve.

    A point that is not finite makes every rule fail except ``share``, where it counts as a point
    outside the bounds.

    Args:
        criterion: The criterion.
        bounds: Its bounds, including those from the run's settings.
        curve: The metric.
        end: Last step of the stage, after which points are ignored; None for no limit.
    """
    steps, values = select(curve, criterion.window, end)
    points = _Points(steps=steps, values=np.abs(values) if criterion.absolute else values)
    if len(values) < criterion.min_points:
        least = f"expected at least {criterion.min_points}"
        reason = f"{len(values)} of its {len(curve.values)} points are in the window, {least}"
        return points.outcome("unknown", reason)
    wild = _wild(points)
    if wild and criterion.rule != "share":
        return points.outcome("fail", wild, shown="not finite")
    if criterion.is_trend:
        return _judge_trend(criterion, points)
    if criterion.rule in STATISTICS:
        return _judge_statistic(criterion, bounds, points)
    return _judge_points(criterion, bounds, points, wild)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Points:
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
        """Make an outcome for these points; `at` is the index of the deciding one."""
        text = ("" if measured is None else number(measured)) if shown is None else shown
        return Outcome(
            answer=answer,
            measured=measured if measured is None or math.isfinite(measured) else None,
            shown=text,
            at_step=None if at is None else int(self.steps[at]),
            steps=(int(self.steps[0]), int(self.steps[-1])) if len(self.steps) else None,
            points=len(self.steps),
            reason=reason,
        )


def _wild(points: _Points) -> str:
    """Describe the points that are not finite; empty if there are none."""
    wild = np.flatnonzero(~np.isfinite(points.values))
    if not wild.size:
        return ""
    names = [
        f"{'NaN' if math.isnan(points.values[i]) else 'inf'} at {points.steps[i]:,}"
        for i in wild[:_NAMED]
    ]
    more = f" and {wild.size - _NAMED:,} more" if wild.size > _NAMED else ""
    return f"{wild.size:,} of {len(points.values):,} points not finite: {', '.join(names)}{more}"


def _judge_trend(criterion: Criterion, points: _Points) -> Outcome:
    trend = find_trend(points.steps, points.values)
    if trend is None:
        return points.outcome(
            "unknown", f"{len(points.values)} points, expected at least {FEWEST} to see a trend"
        )
    asked = criterion.rule.removeprefix("not_")
    sure = trend.rising if asked == "rising" else trend.falling
    holds = sure >= criterion.confidence
    answer: Answer = "pass" if holds != criterion.rule.startswith("not_") else "fail"
    reason = f"{asked} with a confidence of {sure:.1%}, median slope per 1,000 steps "
    return points.outcome(
        answer,
        reason + f"{trend.slope * 1000:+.3g}",
        measured=trend.slope,
        shown=f"{trend.slope * 1000:+.3g} per 1k",
    )


def _judge_statistic(criterion: Criterion, bounds: Bounds, points: _Points) -> Outcome:
    rule, values = criterion.rule, points.values
    measured = STATISTICS[rule](values)
    at = {"max": int(values.argmax()), "min": int(values.argmin()), "last": len(values) - 1}
    holds = bool(bounds.hold(np.array([measured]))[0])
    answer: Answer = "pass" if holds else "fail"
    reason = f"{rule} of {len(values):,} points"
    return points.outcome(answer, reason, measured=measured, at=at.get(rule))


def _judge_points(criterion: Criterion, bounds: Bounds, points: _Points, wild: str) -> Outcome:
    within = bounds.hold(points.values)
    inside, total = int(within.sum()), len(within)
    if criterion.rule == "every":
        worst = int(np.argmax(bounds.excess(points.values)))
        measured = float(points.values[worst])
        if inside == total:
            reason = f"all {total:,} points; the nearest to the bound is shown"
            return points.outcome("pass", reason, measured=measured, at=worst)
        first = int(points.steps[np.flatnonzero(~within)[0]])
        reason = f"{total - inside:,} of {total:,} points outside, the first at {first:,}; "
        reason += "the worst is shown"
        return points.outcome("fail", reason, measured=measured, at=worst)
    if criterion.rule == "share":
        share = inside / total
        answer: Answer = "pass" if share >= criterion.share else "fail"
        reason = f"{inside:,} of {total:,} points within" + (f"; {wild}" if wild else "")
        return points.outcome(answer, reason, measured=share, shown=f"{share:.1%}")
    answer = "pass" if inside <= criterion.times else "fail"
    at = int(np.flatnonzero(within)[0]) if inside else None
    reason = f"{inside:,} of {total:,} points" + ("" if at is None else ", the first is named")
    return points.outcome(answer, reason, measured=float(inside), shown=f"{inside:,} points", at=at)
