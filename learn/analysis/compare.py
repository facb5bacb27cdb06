"""What a comparison answers: `CompareReport`, as JSON, as text and as Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avtd3.learn.analysis.criteria import Window
from avtd3.learn.analysis.gate import cell
from avtd3.learn.analysis.metric_names import DirectionBook, NameBook, NameMap
from avtd3.learn.analysis.noise import FEWEST, Level, change_interval
from avtd3.learn.analysis.reader import RunLog, read_log
from avtd3.learn.analysis.rules import select
from avtd3.learn.analysis.scalars import Curve
from avtd3.store.errors import ConfigError
from avtd3.store.render.text import columns, number, plural

FORMAT = "avtd3.compare/1"
"""Name and version of the JSON document."""

Verdict = Literal["worse", "better", "changed", "unclear", "same"]
ORDER: tuple[Verdict, ...] = ("worse", "better", "changed", "unclear", "same")
"""Verdicts in the order in which people want to see them."""
CAUTION = (
    "An interval covers the noise within these two runs, not how far another seed of either would "
    "be."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How one metric differs between two runs."""

    metric: str
    """avtd3's name of it, or the tag that both runs give it."""
    direction: str | None
    """``lower`` or ``higher`` is better, or ``neither``; None if it is not known."""
    before: float | None
    """Median of the baseline's window; None without a finite point."""
    after: float | None
    """Median of the candidate's."""
    interval: tuple[float, float] | None
    """What the change lies in; None where noise could not be told."""
    points: tuple[int, int]
    """Points in the windows."""
    verdict: Verdict
    reason: str
    """Why, in words."""

    @property
    def change(self) -> float | None:
        """Median of the candidate less that of the baseline."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before

    @property
    def share(self) -> float | None:
        """The change as a share of the baseline; None where that is 0."""
        if self.change is None or not self.before:
            return None
        return self.change / abs(self.before)

    @property
    def rank(self) -> tuple[int, float, str]:
        """Sorts by verdict, then the largest change first."""
        return ORDER.index(self.verdict), -abs(self.share or 0.0), self.metric

    def document(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return {
            "metric": self.metric,
            "direction": self.direction,
            "before": self.before,
            "after": self.after,
            "change": self.change,
            "share": self.share,
            "interval": None if self.interval is None else list(self.interval),
            "points": list(self.points),
            "verdict": self.verdict,
            "reason": self.reason,
        }

    def texts(self) -> tuple[str, str, str, str]:
        """Before, after, change and interval, for people."""
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
    """One of the two runs."""

    run: str
    """Its directory."""
    names: str
    """The set of names its tags were read by."""
    axis: str
    """What its steps count."""
    last_step: int | None
    """Last step it has; None without scalars."""
    judged_to: int
    """Last step that was looked at."""
    notices: tuple[str, ...]
    """What a reader should know of its event files."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompareReport:
    """How a candidate differs from a baseline."""

    baseline: Side
    candidate: Side
    window: float
    """Share of the steps whose median was compared."""
    confidence: float
    """Of the intervals."""
    margin: float
    """Change that does not matter, as a share."""
    changes: tuple[Change, ...]
    """Every metric that both runs have, by verdict."""
    only_baseline: tuple[str, ...]
    """Metrics that the candidate lacks."""
    only_candidate: tuple[str, ...]
    """Metrics that the baseline lacks."""
    notices: tuple[str, ...]
    """What a reader should know."""
    curves: Mapping[str, tuple[Curve, Curve]]
    """The metrics of both, by name; not in the document."""

    @property
    def counts(self) -> dict[str, int]:
        """How many metrics have each verdict."""
        verdicts = [change.verdict for change in self.changes]
        return {verdict: verdicts.count(verdict) for verdict in ORDER}

    def document(self) -> dict[str, Any]:
        """The report as a JSON document."""

        def side(of: Side) -> dict[str, Any]:
            document = dataclasses.asdict(of)
            return document | {"notices": list(of.notices)}

        return {
            "format": FORMAT,
            "baseline": side(self.baseline),
            "candidate": side(self.candidate),
            "window": self.window,
            "confidence": self.confidence,
            "margin": self.margin,
            "counts": self.counts,
            "metrics": [change.document() for change in self.changes],
            "only_baseline": list(self.only_baseline),
            "only_candidate": list(self.only_candidate),
            "notices": list(self.notices),
        }

    def sentence(self) -> str:
        """The answer in one line."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items() if count)
        shared = plural(len(self.changes), "shared metric")
        return f"{shared}: {counts or 'nothing to compare'}"

    def method(self) -> str:
        """How it was compared, in a sentence or two."""
        ends = [f"{side.judged_to:,}" for side in (self.baseline, self.candidate)]
        where = ends[0] if ends[0] == ends[1] else " and ".join(ends)
        return (
            f"Medians over the last {self.window:.0%} of the steps up to {where}; intervals of "
            f"{self.confidence:.0%}; changes below {self.margin:.0%} count as none. {CAUTION}"
        )

    def summary(self) -> str:
        """The report for a terminal."""
        rows = [(c.verdict, c.metric, *c.texts()) for c in self.changes]
        heads = ("", "metric", "before", "after", "change", f"{self.confidence:.0%} interval")
        lines = [f"baseline  {self.baseline.run}", f"candidate {self.candidate.run}", ""]
        lines += columns([heads, *rows], "<" * len(heads))
        lines += [""] + [f"only in the {name}: {', '.join(m)}" for name, m in self.lonely()]
        lines += [f"note: {notice}" for notice in self.notices]
        return "\n".join([*lines, self.method(), self.sentence()])

    def lonely(self) -> list[tuple[str, Sequence[str]]]:
        """Metrics that only one run has, by what the run is called; runs without any left out."""
        both = (("baseline", self.only_baseline), ("candidate", self.only_candidate))
        return [(name, metrics) for name, metrics in both if metrics]

    def markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"# `{self.candidate.run}` against `{self.baseline.run}`", "", self.sentence(), ""]
        interval = f"{self.confidence:.0%} interval"
        lines += [
            f"| verdict | metric | before | after | change | {interval} | why |",
            "| --- | --- | ---: | ---: | ---: | ---: | --- |",
        ]
        for change in self.changes:
            bold = f"**{change.verdict}**" if change.verdict == "worse" else change.verdict
            cells = (bold, f"`{change.metric}`", *change.texts(), change.reason)
            lines.append("| " + " | ".join(map(cell, cells)) + " |")
        lines.append("")
        for name, metrics in self.lonely():
            lines.append(f"- only in the {name}: " + ", ".join(f"`{metric}`" for metric in metrics))
        lines += [f"- {notice}" for notice in self.notices]
        return "\n".join([*lines, "", self.method(), ""])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """Settings of a comparison."""

    align: Literal["common", "end"] = "common"
    """``common``: both runs up to the last step that both have; ``end``: each up to its own end."""
    window: float = 0.2
    """Share of those steps, at their end, whose median is compared."""
    margin: float = 0.05
    """Change that does not matter, as a share of the baseline's median, or of its spread within the
    window where that is larger."""
    confidence: float = 0.99
    """Of the interval around a change, see learn/analysis/noise.py. Of a hundred metrics, one may
    be called changed by chance."""
    metrics: tuple[str, ...] = ()
    """Patterns of metrics to compare, as ``critic/*``; empty compares all."""

    def __post_init__(self) -> None:
        if not 0.0 < self.window <= 1.0:
            raise ConfigError(f"window is {self.window}, expected above 0 and at most 1")
        if not 0.5 < self.confidence < 1.0:
            raise ConfigError(f"confidence is {self.confidence}, expected between 0.5 and 1")
        if not 0.0 <= self.margin < float("inf"):
            raise ConfigError(f"margin is {self.margin}, expected 0 or above")


def compare(
    baseline: Path,
    candidate: Path,
    config: CompareConfig,
    names: tuple[NameBook, NameBook],
    directions: DirectionBook,
) -> CompareReport:
    """Compare two runs.

    Args:
        baseline: Directory of the run before.
        candidate: Directory of the run after.
        config: Settings.
        names: Which tag is which metric, for the baseline and for the candidate.
        directions: Which metrics should be low and which high.

    Raises:
        ConfigError: A run has no event files or no scalar in them, or a pattern fits no metric of
            either.
    """
    logs = (read_log(baseline), read_log(candidate))
    ends = _ends((baseline, candidate), logs, config)
    maps = tuple(book.pick(log.tags) for book, log in zip(names, logs, strict=True))
    before, after = (
        _by_metric(log, known, config.metrics) for log, known in zip(logs, maps, strict=True)
    )
    if config.metrics and not before and not after:
        raise ConfigError(f"--metric {', '.join(config.metrics)} fits no metric of either run")
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
            judged_to=end,
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
        notices=tuple(_notices(sides, logs, ends)),
        curves={metric: (before[metric], after[metric]) for metric in before.keys() & after.keys()},
    )


def _by_metric(log: RunLog, names: NameMap, patterns: Sequence[str]) -> dict[str, Curve]:
    curves = {names.metric(tag): curve for tag, curve in log.curves.items()}
    return {
        metric: curve
        for metric, curve in curves.items()
        if not patterns or any(fnmatchcase(metric, pattern) for pattern in patterns)
    }


def _ends(runs: Sequence[Path], logs: Sequence[RunLog], config: CompareConfig) -> tuple[int, int]:
    """Last step of each run that is looked at."""
    steps = []
    for run, log in zip(runs, logs, strict=True):
        if log.last_step is None:
            raise ConfigError(f"{run} has logged no scalar yet; let it reach its first line")
        steps.append(log.last_step)
    first, second = steps
    common = min(first, second)
    return (common, common) if config.align == "common" else (first, second)


def _change(
    before: Curve,
    after: Curve,
    metric: str,
    ends: tuple[int, int],
    config: CompareConfig,
    directions: DirectionBook,
) -> Change:
    windows = [
        _window(curve, end, config) for curve, end in zip((before, after), ends, strict=True)
    ]
    direction = directions.of(metric)
    wild = tuple(int((~np.isfinite(values)).sum()) for values in windows)
    points = tuple(len(values) for values in windows)
    finite = [values[np.isfinite(values)] for values in windows]
    medians = tuple(float(np.median(values)) if values.size else None for values in finite)
    verdict: Verdict = "unclear"
    interval = None
    if wild[0] or wild[1]:
        verdict, reason = _judge_wild(wild, points)
    elif min(points) < FEWEST:
        reason = f"{min(points)} points in a window, expected at least {FEWEST}"
    else:
        levels = Level.of(finite[0]), Level.of(finite[1])
        interval = change_interval(*levels, config.confidence)
        room = config.margin * max(abs(levels[0].median), levels[0].spread)
        verdict, reason = _judge(levels, interval, room, direction)
    return Change(
        metric=metric,
        direction=direction,
        before=medians[0],
        after=medians[1],
        interval=interval,
        points=(points[0], points[1]),
        verdict=verdict,
        reason=reason,
    )


def _window(
    curve: Curve, end: int, config: CompareConfig
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    start = end - config.window * end
    _, values = select(
        curve, Window(from_step=int(start) + 1, to_step=max(end, int(start) + 1)), end
    )
    return values


def _judge(
    levels: tuple[Level, Level],
    interval: tuple[float, float],
    room: float,
    direction: str | None,
) -> tuple[Verdict, str]:
    change = levels[1].median - levels[0].median
    low, high = interval
    if low <= 0.0 <= high:
        if max(-low, high) <= room:
            return "same", "no change, and any there may be is within the margin"
        return "unclear", "the change is within the noise"
    if abs(change) <= room:
        return "same", "a change within the margin"
    if direction in (None, "neither"):
        return "changed", "beyond the noise; neither way is better by itself"
    better = (change < 0.0) == (direction == "lower")
    return ("better" if better else "worse"), f"beyond the noise; {direction} is better"


def _judge_wild(wild: tuple[int, ...], points: tuple[int, ...]) -> tuple[Verdict, str]:
    parts = [
        f"{count:,} of {total:,} points of the {name} are not finite"
        for count, total, name in zip(wild, points, ("baseline", "candidate"), strict=True)
        if count
    ]
    reason = "; ".join(parts)
    if wild[0] and wild[1]:
        return "unclear", reason
    return ("worse" if wild[1] else "better"), reason


def _notices(sides: Sequence[Side], logs: Sequence[RunLog], ends: tuple[int, int]) -> list[str]:
    notices = []
    for name, side, log, end in zip(("baseline", "candidate"), sides, logs, ends, strict=True):
        notices += [f"{name}: {notice}" for notice in side.notices]
        if log.last_step is not None and log.last_step > end:
            notices.append(
                f"the {name} goes on to {log.last_step:,}; both are compared up to {end:,} "
                "(--align end takes each one's own end)"
            )
    if sides[0].axis != sides[1].axis:
        notices.append(
            f"the baseline's steps are {sides[0].axis}, the candidate's {sides[1].axis}: what is "
            "compared at one step need not be as far in learning"
        )
    return notices
