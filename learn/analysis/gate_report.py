"""What a gate answers: `GateReport`, as JSON, as text and as Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from avtd3.learn.analysis.criteria import Criterion
from avtd3.learn.analysis.rules import Bounds, Outcome
from avtd3.learn.analysis.scalars import Curve

FORMAT = "avtd3.gate/1"
"""Name and version of the JSON document."""

Verdict = Literal["pass", "fail", "unknown", "skipped", "warning"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A criterion with its answer."""

    name: str
    """What the criterion is called."""
    metric: str
    """avtd3's name of the metric; empty where the criterion is about the run itself."""
    tag: str
    """What the run calls it."""
    limit: str
    """What was asked, in a few characters."""
    verdict: Verdict
    """``pass``, ``fail``, ``unknown`` (could not be told), ``skipped`` (an optional metric is
    absent), ``warning`` (an advisory criterion that does not hold or is unknown)."""
    outcome: Outcome
    """What was measured, and why it is so."""
    criterion: Criterion | None = None
    """The criterion; None where it is built in."""
    bounds: Bounds | None = None
    """What the values were held against."""

    @property
    def blocks(self) -> bool:
        """Whether this alone makes the gate NO-GO."""
        return self.verdict in ("fail", "unknown")

    def document(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        outcome = self.outcome
        passed = {"pass": True, "fail": False, "warning": False}.get(self.verdict)
        return {
            "name": self.name,
            "metric": self.metric,
            "tag": self.tag,
            "limit": self.limit,
            "value": outcome.measured,
            "shown": outcome.shown,
            "passed": passed,
            "verdict": self.verdict,
            "blocks": self.blocks,
            "at_step": outcome.at_step,
            "steps": None if outcome.steps is None else list(outcome.steps),
            "points": outcome.points,
            "reason": outcome.reason,
            "why": "" if self.criterion is None else self.criterion.why,
            "source": "" if self.criterion is None else self.criterion.source,
        }

    @property
    def where(self) -> str:
        """The step or steps that it is about, for people."""
        outcome = self.outcome
        if outcome.at_step is not None:
            return f"{outcome.at_step:,}"
        return "" if outcome.steps is None else f"{outcome.steps[0]:,} to {outcome.steps[1]:,}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """A stage's answer about a run."""

    run: str
    """The run's directory."""
    stage: str
    """The stage."""
    about: str
    """What passing it means."""
    names: str
    """The set of names that the tags were read by."""
    axis: str
    """What the steps count."""
    judged_to: int | None
    """Last step that was looked at; None for all."""
    last_step: int | None
    """Last step of the run; None if it has no scalars."""
    criteria: tuple[Judged, ...]
    """Every criterion with its answer, in the file's order, the built-in ones first."""
    notices: tuple[str, ...]
    """What a reader should know of the event files."""
    curves: Mapping[str, Curve]
    """The metrics that were judged, by avtd3's name; not in the document."""

    @property
    def verdict(self) -> str:
        """``GO`` or ``NO-GO``."""
        return "NO-GO" if any(judged.blocks for judged in self.criteria) else "GO"

    @property
    def counts(self) -> dict[str, int]:
        """How many criteria have each verdict, those that no criterion has left out."""
        verdicts = [judged.verdict for judged in self.criteria]
        order: Sequence[Verdict] = ("pass", "fail", "unknown", "warning", "skipped")
        return {verdict: verdicts.count(verdict) for verdict in order if verdict in verdicts}

    def document(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return {
            "format": FORMAT,
            "run": self.run,
            "stage": self.stage,
            "verdict": self.verdict,
            "names": self.names,
            "axis": self.axis,
            "judged_to": self.judged_to,
            "last_step": self.last_step,
            "counts": self.counts,
            "criteria": [judged.document() for judged in self.criteria],
            "notices": list(self.notices),
        }

    def sentence(self) -> str:
        """The verdict in one line."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())
        return f"{self.verdict}: stage {self.stage} of {self.run} ({counts})"

    def summary(self) -> str:
        """The report for a terminal: a table, and why under each line that does not pass."""
        rows = [
            (
                j.verdict.upper() if j.blocks else j.verdict,
                j.name,
                j.limit,
                j.outcome.shown,
                j.where,
            )
            for j in self.criteria
        ]
        heads = ("", "criterion", "asked", "measured", f"at {self.axis}")
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
        lines = [self.sentence(), "", align(heads, widths)]
        for row, judged in zip(rows, self.criteria, strict=True):
            lines.append(align(row, widths))
            if judged.verdict not in ("pass", "skipped"):
                lines += [f"{'':{widths[0]}}    {text}" for text in self.reasons(judged)]
        lines += ["", *(f"note: {notice}" for notice in self.notices)] if self.notices else []
        return "\n".join([*lines, "", self.sentence()])

    def reasons(self, judged: Judged) -> list[str]:
        """Why a criterion does not pass, and what that means."""
        what = f"{judged.metric}: " if judged.metric else ""
        if judged.tag != judged.metric:
            what = f"{judged.metric} ({judged.tag}): "
        texts = [what + judged.outcome.reason]
        if judged.criterion is not None and judged.criterion.why:
            texts.append(judged.criterion.why)
        return texts

    def markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"# {self.verdict}: stage {self.stage} of `{self.run}`", ""]
        lines += [self.about, ""] if self.about else []
        lines += [
            f"| verdict | criterion | metric | asked | measured | at {self.axis} | why |",
            "| --- | --- | --- | --- | ---: | ---: | --- |",
        ]
        for judged in self.criteria:
            verdict = f"**{judged.verdict}**" if judged.blocks else judged.verdict
            metric = f"`{judged.metric}`" if judged.metric else ""
            cells = (verdict, judged.name, metric, judged.limit, judged.outcome.shown)
            why = judged.outcome.reason
            if judged.criterion is not None and judged.criterion.why and judged.verdict != "pass":
                why += f". {judged.criterion.why}"
            lines.append("| " + " | ".join(map(cell, (*cells, judged.where, why))) + " |")
        lines += ["", *(f"- {notice}" for notice in self.notices)] if self.notices else []
        return "\n".join([*lines, ""])


def cell(text: str) -> str:
    """Text that cannot break out of a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def align(row: Sequence[str], widths: Sequence[int]) -> str:
    """A line of a table whose columns have these widths."""
    return "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
