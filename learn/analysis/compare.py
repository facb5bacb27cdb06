"""Compare the metrics of two training runs: `compare` reports what became better or worse."""

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avtd3.learn.analysis.criteria import Window
from avtd3.learn.analysis.event_log import Curve, RunLog, read_log
from avtd3.learn.analysis.metric_names import DirectionBook, NameBook, NameMap
from avtd3.learn.analysis.statistics import FEWEST_FOR_LEVEL, Level, change_interval
from avtd3.store.errors import ConfigError, check_settings
from avtd3.store.render.text import columns, join_lines, markdown_table, number, plural

FORMAT = "avtd3.compare/1"
_NAMED = 3
"""Metrics of each verdict that the headline names."""
Verdict = Literal["worse", "better", "changed", "unclear", "same"]
ORDER: tuple[Verdict, ...] = ("worse", "better", "changed", "unclear", "same")
"""Verdicts in the order of reports."""
CLEAR = ORDER[:3]
"""Verdicts on a change beyond the noise; reports list these first, and count the others."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How one metric differs between two runs."""

    metric: str
    """avtd3's name of the metric, or the tag in both runs."""
    direction: str | None
    """Whether ``lower`` or ``higher`` is better, or ``neither``; None if unknown."""
    before: float | None
    after: float | None
    interval: tuple[float, float] | None
    """Confidence interval of the change; None if the noise cannot be estimated."""
    points: tuple[int, int]
    verdict: Verdict
    reason: str

    @property
    def change(self) -> float | None:
        """Return the median of the candidate minus that of the baseline."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before

    @property
    def share(self) -> float | None:
        """Return the change as a share of the baseline; None if that is 0."""
        if self.change is None or not self.before:
            return None
        return self.change / abs(self.before)

    @property
    def rank(self) -> tuple[int, float, str]:
        """Return a sort key: by verdict, then the largest change first."""
        return ORDER.index(self.verdict), -abs(self.share or 0.0), self.metric

    def document(self) -> dict[str, Any]:
        """Return the change as a JSON object."""
        return {**dataclasses.asdict(self), "change": self.change, "share": self.share}

    def named(self) -> str:
        """Return the metric with its change, as a share if there is one."""
        share = "" if self.share is None else f" {self.share:+.0%}"
        return f"{self.metric}{share}"

    def texts(self) -> tuple[str, str, str, str]:
        """Format the values before and after, the change and the interval."""
        before, after, change = (
            "" if value is None else number(value)
            for value in (self.before, self.after, self.change)
        )
        if self.change is not None and self.change > 0:
            change = f"+{change}"
        if self.share is not None and abs(self.share) < 10:
            change += f" ({self.share:+.0%})"
        if self.interval is None:
            return before, after, change, ""
        low, high = map(number, self.interval)
        return before, after, change, f"{low} to {high}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two runs of a comparison."""

    run: str
    names: str
    axis: str
    """What the steps count."""
    last_step: int | None
    end_step: int
    notices: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the run as a JSON object."""
        renamed = {"end_step": "judged_to"}
        return {renamed.get(key, key): value for key, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompareReport:
    """The result of `compare`: how each metric of a candidate differs from a baseline."""

    baseline: Side
    candidate: Side
    window: float
    """Share of the steps, at the end, whose median was compared."""
    confidence: float
    margin: float
    changes: tuple[Change, ...]
    only_baseline: tuple[str, ...]
    only_candidate: tuple[str, ...]
    notices: tuple[str, ...]
    curves: Mapping[str, tuple[Curve, Curve]]
    """Curves of both runs by metric; not in the document."""

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of metrics with each verdict."""
        verdicts = [change.verdict for change in self.changes]
        return {verdict: verdicts.count(verdict) for verdict in ORDER}

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        lists = ("only_baseline", "only_candidate", "notices")
        return {
            "format": FORMAT,
            "baseline": self.baseline.document(),
            "candidate": self.candidate.document(),
            **{name: getattr(self, name) for name in ("window", "confidence", "margin", "counts")},
            "metrics": [change.document() for change in self.changes],
            **{name: list(getattr(self, name)) for name in lists},
        }

    @property
    def clear(self) -> tuple[Change, ...]:
        """Return the metrics that are worse, better or changed."""
        return tuple(change for change in self.changes if change.verdict in CLEAR)

    def sentence(self) -> str:
        """Format the number of metrics with each verdict as one line."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items() if count)
        shared = plural(len(self.changes), "shared metric")
        return f"{shared}: {counts or 'nothing to compare'}"

    def headline(self) -> str:
        """Name the metrics that changed, the worse ones first, as one line."""
        if not self.clear:
            return f"no clear change in {plural(len(self.changes), 'shared metric')}"
        named = []
        for verdict in CLEAR:
            found = [change for change in self.clear if change.verdict == verdict]
            if found:
                names = ", ".join(change.named() for change in found[:_NAMED])
                more = f" and {len(found) - _NAMED} more" if found[_NAMED:] else ""
                named.append(f"{len(found)} {verdict}: {names}{more}")
        return "; ".join(named)

    def quiet(self) -> str:
        """Say how many metrics have no clear change, and why; empty if there are none."""
        unclear = [change for change in self.changes if change.verdict == "unclear"]
        few = sum(min(change.points) < FEWEST_FOR_LEVEL for change in unclear)
        parts = {
            "do not differ": self.counts["same"],
            "differ by no more than the noise": len(unclear) - few,
            f"have fewer than {FEWEST_FOR_LEVEL} points in a window (--window widens it)": few,
        }
        return "; ".join(f"{count} {what}" for what, count in parts.items() if count)

    def method(self) -> str:
        """Describe how the runs were compared."""
        ends = [f"{side.end_step:,}" for side in (self.baseline, self.candidate)]
        where = ends[0] if ends[0] == ends[1] else " and ".join(ends)
        return (
            f"Medians over the last {self.window:.0%} of the steps up to {where}; intervals of "
            f"{self.confidence:.0%}; changes below {self.margin:.0%} are ignored. An interval "
            "covers the noise within these two runs, not the difference between seeds."
        )

    def summary(self, *, everything: bool = False) -> str:
        """Format the report for a terminal; only `everything` lists metrics without a change."""
        heads = ("", "metric", "before", "after", "change", f"{self.confidence:.0%} interval")
        shown = self.changes if everything else self.clear
        rows = [(c.verdict, c.metric, *c.texts()) for c in shown]
        lines = [self.headline(), ""]
        lines += [f"baseline  {self.baseline.run}", f"candidate {self.candidate.run}", ""]
        lines += [*columns([heads, *rows], "<" * len(heads)), ""] if rows else []
        if quiet := self.quiet():
            lines.append(f"others: {quiet}" + ("" if everything else "; --all lists them"))
        lines += [f"only in the {name}: {', '.join(m)}" for name, m in self.lonely()]
        lines += [f"note: {notice}" for notice in self.notices]
        return join_lines([*lines, self.method(), self.sentence()])

    def lonely(self) -> list[tuple[str, Sequence[str]]]:
        """Return ``baseline`` and ``candidate`` with the metrics that only this run has, if any."""
        both = (("baseline", self.only_baseline), ("candidate", self.only_candidate))
        return [(name, metrics) for name, metrics in both if metrics]

    def markdown(self) -> str:
        """Format the report as Markdown."""
        interval = f"{self.confidence:.0%} interval"
        heads = ("verdict", "metric", "before", "after", "change", interval, "why")
        bold = {"worse": "**worse**"}

        def table(changes: Sequence[Change]) -> list[str]:
            rows = [
                (bold.get(c.verdict, c.verdict), f"`{c.metric}`", *c.texts(), c.reason)
                for c in changes
            ]
            return [*markdown_table(heads, "<<>>>><", rows), ""]

        lines = [f"# `{self.candidate.run}` against `{self.baseline.run}`", ""]
        lines += [self.sentence(), ""]
        lines += table(self.clear) if self.clear else ["No clear change.", ""]
        if others := self.changes[len(self.clear) :]:
            lines += ["## Without a clear change", "", *table(others)]
        for name, metrics in self.lonely():
            lines.append(f"- only in the {name}: " + ", ".join(f"`{metric}`" for metric in metrics))
        lines += [f"- {notice}" for notice in self.notices]
        return "\n".join([*lines, "", self.method(), ""])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """Settings of `compare`."""

    align: Literal["common", "end"] = "common"
    """``common``: use both runs up to the last step of both; ``end``: each up to its own end."""
    window: float = 0.2
    """Share of these steps, at the end, whose median is compared."""
    margin: float = 0.05
    """Change to ignore, as a share of the baseline's median, or of its spread within the window if
    that is larger."""
    confidence: float = 0.99
    """Confidence of the interval of a change, see learn/analysis/statistics.py. Of a hundred
    metrics, one may be reported as changed by chance."""
    metrics: tuple[str, ...] = ()
    """Patterns of metrics to compare, for example ``critic/*``; empty compares all."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            "",
            ("window", 0.0 < self.window <= 1.0, "above 0 and at most 1"),
            ("confidence", 0.5 < self.confidence < 1.0, "between 0.5 and 1"),
            zero_or_above=("margin",),
        )


def compare(
    baseline: Path,
    candidate: Path,
    config: CompareConfig,
    names: tuple[NameBook, NameBook],
    directions: DirectionBook,
) -> CompareReport:
    """Compare the medians over the last part of the steps, for each metric of both runs.

    The verdict is ``better``, ``worse`` or ``changed`` only if the change exceeds the margin and
    its confidence interval, which is corrected for autocorrelation, excludes 0.
    """
    logs = (read_log(baseline), read_log(candidate))
    ends = _ends((baseline, candidate), logs, config)
    maps = [book.pick(log.tags) for book, log in zip(names, logs, strict=True)]
    before, after = (
        _by_metric(log, known, config.metrics) for log, known in zip(logs, maps, strict=True)
    )
    if config.metrics and not before and not after:
        raise ConfigError(f"--metric {', '.join(config.metrics)} matches no metric of either run")
    changes = [
        _change(before[metric], after[metric], metric, ends, config, directions)
        for metric in sorted(before.keys() & after.keys())
    ]
    sides = tuple(
        Side(
            run=str(run),
            names=known.source.name,
            axis=known.source.axis,
            last_step=log.last_step,
            end_step=end,
            notices=(*log.notices, *log.damaged),
        )
        for run, log, known, end in zip((baseline, candidate), logs, maps, ends, strict=True)
    )
    return CompareReport(
        baseline=sides[0],
        candidate=sides[1],
        window=config.window,
        confidence=config.confidence,
        margin=config.margin,
        changes=tuple(sorted(changes, key=lambda change: change.rank)),
        only_baseline=tuple(sorted(before.keys() - after.keys())),
        only_candidate=tuple(sorted(after.keys() - before.keys())),
        notices=tuple(_notices(sides)),
        curves={change.metric: (before[change.metric], after[change.metric]) for change in changes},
    )


def _by_metric(log: RunLog, names: NameMap, patterns: Sequence[str]) -> dict[str, Curve]:
    curves = {names.metric(tag): curve for tag, curve in log.curves.items()}
    chosen = patterns or "*"
    return {m: c for m, c in curves.items() if any(fnmatchcase(m, pattern) for pattern in chosen)}


def _ends(runs: Sequence[Path], logs: Sequence[RunLog], config: CompareConfig) -> tuple[int, int]:
    """Return the last step of each run to use."""
    steps = [log.last_step for log in logs if log.last_step is not None]
    if len(steps) < len(logs):
        run = runs[[log.last_step for log in logs].index(None)]
        raise ConfigError(f"{run} has logged no scalars yet; wait until it has logged some")
    return (steps[0], steps[1]) if config.align == "end" else (min(steps), min(steps))


def _change(
    before: Curve,
    after: Curve,
    metric: str,
    ends: tuple[int, int],
    config: CompareConfig,
    directions: DirectionBook,
) -> Change:
    windows = _window(before, ends[0], config), _window(after, ends[1], config)
    direction = directions.of(metric)
    points = len(windows[0]), len(windows[1])
    finite = [values[np.isfinite(values)] for values in windows]
    not_finite = points[0] - len(finite[0]), points[1] - len(finite[1])
    medians = [float(np.median(values)) if values.size else None for values in finite]
    verdict: Verdict = "unclear"
    interval = None
    if any(not_finite):
        verdict, reason = _classify_not_finite(not_finite, points)
    elif min(points) < FEWEST_FOR_LEVEL:
        reason = f"{min(points)} points in a window, expected at least {FEWEST_FOR_LEVEL}"
    else:
        levels = Level.of(finite[0]), Level.of(finite[1])
        interval = change_interval(*levels, config.confidence)
        margin = config.margin * max(abs(levels[0].median), levels[0].spread)
        verdict, reason = _classify(levels, interval, margin, direction)
    return Change(
        metric=metric,
        direction=direction,
        before=medians[0],
        after=medians[1],
        interval=interval,
        points=points,
        verdict=verdict,
        reason=reason,
    )


def _window(curve: Curve, end: int, config: CompareConfig) -> NDArray[np.float64]:
    first = int(end - config.window * end) + 1
    return Window(from_step=first, to_step=max(end, first)).select(curve, end)[1]


def _classify(
    levels: tuple[Level, Level], interval: tuple[float, float], margin: float, direction: str | None
) -> tuple[Verdict, str]:
    """Return the verdict on a change, and its reason."""
    change = levels[1].median - levels[0].median
    low, high = interval
    if low <= 0.0 <= high:
        if max(-low, high) <= margin:
            return "same", "no change, and the interval is within the margin"
        return "unclear", "the change is within the noise"
    if abs(change) <= margin:
        return "same", "a change within the margin"
    if direction in (None, "neither"):
        return "changed", "beyond the noise; neither direction is better by itself"
    better = (change < 0.0) == (direction == "lower")
    return ("better" if better else "worse"), f"beyond the noise; {direction} is better"


def _classify_not_finite(bad: tuple[int, ...], points: tuple[int, ...]) -> tuple[Verdict, str]:
    reason = "; ".join(
        f"{count:,} of {total:,} points of the {name} are not finite"
        for count, total, name in zip(bad, points, ("baseline", "candidate"), strict=True)
        if count
    )
    if all(bad):
        return "unclear", reason
    return ("worse" if bad[1] else "better"), reason


def _notices(sides: Sequence[Side]) -> list[str]:
    notices = []
    for name, side in zip(("baseline", "candidate"), sides, strict=True):
        notices += [f"{name}: {notice}" for notice in side.notices]
        if side.last_step is not None and side.last_step > side.end_step:
            notices.append(
                f"the {name} continues to {side.last_step:,}; both are compared up to "
                f"{side.end_step:,} (--align end uses the end of each)"
            )
    if sides[0].axis != sides[1].axis:
        notices.append(
            f"the baseline's steps are {sides[0].axis}, the candidate's {sides[1].axis}: at "
            "the same step, one run may have learned for longer"
        )
    return notices
