"""What a comparison answers: `CompareReport`, as JSON, as text and as Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from avtd3.learn.analysis.gate_report import align, cell
from avtd3.learn.analysis.scalars import Curve
from avtd3.store.render.charts import number

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
        shared = len(self.changes)
        return (
            f"{shared} shared metric{'' if shared == 1 else 's'}: {counts or 'nothing to compare'}"
        )

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
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
        lines = [f"baseline  {self.baseline.run}", f"candidate {self.candidate.run}", ""]
        lines += [align(row, widths) for row in (heads, *rows)]
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
