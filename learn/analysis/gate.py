"""What a gate answers: `GateReport`, as JSON, as text and as Markdown."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from avtd3.learn.analysis.criteria import Criterion, GateConfig
from avtd3.learn.analysis.metric_names import NameBook, NameMap, nearest
from avtd3.learn.analysis.reader import RunLog, read_log
from avtd3.learn.analysis.rules import Answer, Bounds, Outcome, judge, limit_text
from avtd3.learn.analysis.scalars import Curve
from avtd3.store.errors import ConfigError
from avtd3.store.render.text import columns, plural

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
        first, *others = columns([heads, *rows], "<<<<<")
        indent = " " * (first.index(heads[1]) + 2)
        lines = [self.sentence(), "", first]
        for line, judged in zip(others, self.criteria, strict=True):
            lines.append(line)
            if judged.verdict not in ("pass", "skipped"):
                lines += [f"{indent}{text}" for text in self.reasons(judged)]
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


REACHED = 0.98
"""Share of a stage's steps that counts as all of them: a writer's last line may lie before."""
CONFIG_FILE = "config.json"
MAX_SETTINGS_BYTES = 1 << 20
MAX_LIMIT = 1e30
"""Settings above this are no limit: a whole number in JSON may be larger than any float."""


def gate(
    run: Path, config: GateConfig, names: NameBook, *, optional: Sequence[str] = ()
) -> GateReport:
    """HeldOutEvaluator a run.

    Args:
        run: Its directory, one with event files, or an event file.
        config: The criteria.
        names: Which tag is which metric.
        optional: Patterns of metrics or names of criteria, as ``*_cnn/*``, that the run may lack.

    Raises:
        ConfigError: There are no event files, or a pattern or a mapping fits nothing.
    """
    criteria = _make_optional(config.criteria, optional)
    log = read_log(run, names.candidates(criterion.metric for criterion in criteria))
    known = names.pick(log.tags)
    settings = read_settings(run)
    judged = [_judge_files(log)]
    if config.steps is not None:
        judged.append(_judge_steps(log, config.steps))
    judged += [_judge(criterion, config, log, known, settings) for criterion in criteria]
    metrics = {criterion.metric for criterion in criteria}
    return GateReport(
        run=str(run),
        stage=config.stage,
        about=config.about,
        names=known.source.name,
        axis=known.source.axis,
        judged_to=config.steps,
        last_step=log.last_step,
        criteria=tuple(judged),
        notices=(*_notices(log, known, config), *log.notices),
        curves={
            metric: log.curves[tag]
            for metric in sorted(metrics)
            if (tag := known.tag(metric)) in log.curves
        },
    )


def read_settings(run: Path) -> Mapping[str, Any]:
    """The settings that a run of avtd3 wrote down; empty for any other run.

    Raises:
        ConfigError: There is such a file, but it is not what `avtd3 learn` writes.
    """
    path = run / CONFIG_FILE
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_SETTINGS_BYTES:
        return {}  # no file of ours
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no JSON, expected the settings that avtd3 learn wrote: {error}; restore "
            "it, or move it away to use the limits of the criteria file"
        ) from error
    return document if isinstance(document, dict) else {}


def _make_optional(criteria: Sequence[Criterion], patterns: Sequence[str]) -> tuple[Criterion, ...]:
    """Mark what the patterns name."""

    def named(criterion: Criterion, pattern: str) -> bool:
        return fnmatchcase(criterion.metric, pattern) or fnmatchcase(criterion.name, pattern)

    for pattern in patterns:
        if not any(named(criterion, pattern) for criterion in criteria):
            close = nearest(pattern, [c.metric for c in criteria])
            hint = f"; did you mean {close}?" if close else ""
            raise ConfigError(f"--optional {pattern!r} names no metric of this stage{hint}")
    return tuple(
        dataclasses.replace(criterion, optional=True)
        if any(named(criterion, pattern) for pattern in patterns)
        else criterion
        for criterion in criteria
    )


def _judge(
    criterion: Criterion,
    config: GateConfig,
    log: RunLog,
    names: NameMap,
    settings: Mapping[str, Any],
) -> Judged:
    tag = names.tag(criterion.metric)
    limit, note = _setting(criterion, settings)
    bounds = Bounds.of(criterion, limit)
    if tag in log.curves:
        outcome = judge(criterion, bounds, log.curves[tag], config.steps)
        verdict: Verdict = outcome.answer
    else:
        outcome = _absent(criterion.metric, tag, log)
        verdict = "unknown"
    if criterion.optional and not outcome.points:
        verdict = "skipped"
    if criterion.advisory and verdict in ("fail", "unknown"):
        verdict = "warning"
    if note:
        outcome = dataclasses.replace(outcome, reason=f"{outcome.reason}; {note}")
    return Judged(
        name=criterion.name,
        metric=criterion.metric,
        tag=tag,
        limit=limit_text(criterion, bounds),
        verdict=verdict,
        outcome=outcome,
        criterion=criterion,
        bounds=bounds,
    )


def _setting(criterion: Criterion, settings: Mapping[str, Any]) -> tuple[float | None, str]:
    """The bound that the run's own settings have, and a word on where the bound is from."""
    place = criterion.at_most_setting
    if place is None:
        return None, ""
    value: Any = settings
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_LIMIT:
        return float(value), f"the limit is the run's own {place}"
    return None, f"the run does not say {place}: the criterion's own limit"


def _absent(metric: str, tag: str, log: RunLog) -> Outcome:
    what = f"the run has no {tag!r}"
    close = nearest(tag, log.tags)
    if close is not None:
        what += f"; its nearest tag is {close!r}: if that is it, --map {metric}={close}"
    elif not log.tags:
        what += ": it has no scalars at all"
    return _whole("unknown", what, shown="absent")


def _judge_files(log: RunLog) -> Judged:
    count = len(log.files)
    files = plural(count, "event file")
    answer: Answer = "fail" if log.damaged else "pass"
    reason = "; ".join(log.damaged) or "every checksum holds"
    if log.damaged:
        reason += "; copy the files again from where they were written"
    outcome = _whole(answer, reason, shown=f"{len(log.damaged)} of {count} damaged")
    if not log.damaged:
        outcome = dataclasses.replace(outcome, shown=files)
    return Judged(
        name="event files whole", metric="", tag="", limit="", verdict=answer, outcome=outcome
    )


def _judge_steps(log: RunLog, steps: int) -> Judged:
    last = -1 if log.last_step is None else log.last_step
    answer: Answer = "pass" if last >= REACHED * steps else "fail"
    reason = f"the stage has {steps:,} steps"
    if answer == "fail":
        reason += ": let the run go on, or gate it by an earlier stage"
    shown = f"{last:,}" if log.last_step is not None else "no step"
    outcome = dataclasses.replace(
        _whole(answer, reason, shown=shown), measured=None if last < 0 else float(last)
    )
    return Judged(
        name="steps reached",
        metric="",
        tag="",
        limit=f">= {REACHED:.0%} of {steps:,}",
        verdict=answer,
        outcome=outcome,
    )


def _whole(answer: Answer, reason: str, *, shown: str) -> Outcome:
    return Outcome(
        answer=answer,
        measured=None,
        shown=shown,
        at_step=None,
        steps=None,
        points=0,
        reason=reason,
    )


def _notices(log: RunLog, names: NameMap, config: GateConfig) -> list[str]:
    source = names.source
    notices = []
    if source.tags or names.own:
        notices.append(f"tags are read as {source.name} names them; steps are {source.axis}")
    if config.steps is not None and log.last_step is not None and log.last_step > config.steps:
        notices.append(
            f"the run goes on to {log.last_step:,}; it is judged up to {config.steps:,}, as the "
            "stage is long"
        )
    return notices
