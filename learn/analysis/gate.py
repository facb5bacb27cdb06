"""Check a training run against the criteria of a stage: `gate` returns GO or NO-GO."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from avtd3.learn.analysis.criteria import (
    Answer,
    Criterion,
    Data,
    GateConfig,
    Outcome,
    check_criterion,
)
from avtd3.learn.analysis.event_log import Curve, RunLog, read_log
from avtd3.learn.analysis.metric_names import NameBook, NameMap, nearest
from avtd3.learn.run_settings import CONFIG_FILE
from avtd3.store.errors import ConfigError
from avtd3.store.files import read_json
from avtd3.store.render.text import columns, join_lines, markdown_table, plural

FORMAT = "avtd3.gate/1"
REACHED = 0.98
"""Share of a stage's steps that counts as all: the last line may be logged before the last step."""
MAX_SETTINGS_BYTES = 1 << 20
MAX_LIMIT = 1e30
"""Settings above this are not limits: a whole number in JSON may be larger than any float."""

Verdict = Literal["pass", "fail", "unknown", "skipped", "warning"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CriterionResult:
    """A criterion with its verdict."""

    name: str
    metric: str = ""
    """avtd3's name of the metric; empty if the criterion is about the run itself."""
    tag: str = ""
    limit: str = ""
    verdict: Verdict
    outcome: Outcome
    criterion: Criterion | None = None
    """The criterion, with the run's own limits; None if it is built in."""

    @property
    def blocks(self) -> bool:
        """Return whether this result alone makes the gate NO-GO."""
        return self.verdict in ("fail", "unknown")

    @property
    def measurement(self) -> tuple[str, str, str]:
        """Return what is required, what was measured, and the step or steps that decided."""
        outcome = self.outcome
        where = "" if outcome.steps is None else f"{outcome.steps[0]:,} to {outcome.steps[1]:,}"
        if outcome.at_step is not None:
            where = f"{outcome.at_step:,}"
        return self.limit, outcome.shown, where

    @property
    def why(self) -> str:
        """Return what a failure means and how to fix it; empty unless this is one."""
        is_failure = self.criterion is not None and self.outcome.answer == "fail"
        return self.criterion.why if self.criterion is not None and is_failure else ""

    def document(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        outcome = self.outcome
        passed = {"pass": True, "fail": False, "warning": False}.get(self.verdict)
        named = {name: getattr(self, name) for name in ("name", "metric", "tag", "limit")}
        found = {n: getattr(outcome, n) for n in ("at_step", "steps", "points", "reason")}
        return {
            **named,
            "value": outcome.measured,
            "shown": outcome.shown,
            "passed": passed,
            "verdict": self.verdict,
            "blocks": self.blocks,
            **found,
            "why": "" if self.criterion is None else self.criterion.why,
            "source": "" if self.criterion is None else self.criterion.source,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The result of `gate`: the verdict, and each criterion with what was measured."""

    run: str
    stage: str
    about: str
    """What passing the stage means."""
    names: str
    axis: str
    end_step: int | None
    last_step: int | None
    criteria: tuple[CriterionResult, ...]
    notices: tuple[str, ...]
    curves: Mapping[str, Curve]
    """The metrics that were used, by avtd3's name; not in the document."""

    @property
    def verdict(self) -> str:
        """Return ``GO`` or ``NO-GO``."""
        return "NO-GO" if any(result.blocks for result in self.criteria) else "GO"

    @property
    def meaning(self) -> str:
        """Return what the verdict means, as a sentence."""
        if self.verdict == "GO":
            return self.about
        blocking = ", ".join(result.name for result in self.criteria if result.blocks)
        return f"The stage is not passed. Not met or not measured: {blocking}."

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of criteria with each verdict that occurs."""
        verdicts = [result.verdict for result in self.criteria]
        order: Sequence[Verdict] = ("pass", "fail", "unknown", "warning", "skipped")
        return {verdict: verdicts.count(verdict) for verdict in order if verdict in verdicts}

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "format": FORMAT,
            "run": self.run,
            "stage": self.stage,
            "verdict": self.verdict,
            "names": self.names,
            "axis": self.axis,
            "judged_to": self.end_step,
            "last_step": self.last_step,
            "counts": self.counts,
            "criteria": [result.document() for result in self.criteria],
            "notices": list(self.notices),
        }

    def sentence(self) -> str:
        """Format the verdict as one line."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())
        return f"{self.verdict}: stage {self.stage} of {self.run} ({counts})"

    def summary(self) -> str:
        """Format the report for a terminal: a table, with the reasons of what did not pass."""
        heads = ("", "criterion", "asked", "measured", f"at {self.axis}")
        rows = [
            (r.verdict.upper() if r.blocks else r.verdict, r.name, *r.measurement)
            for r in self.criteria
        ]
        first, *others = columns([heads, *rows], "<<<<<")
        indent = " " * (first.index(heads[1]) + 2)
        lines = [self.sentence(), "", first]
        for line, result in zip(others, self.criteria, strict=True):
            lines.append(line)
            if result.verdict not in ("pass", "skipped"):
                tag = f" ({result.tag})" if result.tag != result.metric else ""
                what = f"{result.metric}{tag}: " if result.metric else ""
                lines.append(f"{indent}{what}{result.outcome.reason}")
                lines += [f"{indent}{result.why}"] if result.why else []
        lines += ["", *(f"note: {notice}" for notice in self.notices)] if self.notices else []
        return join_lines([*lines, "", self.sentence()])

    def markdown(self) -> str:
        """Format the report as Markdown."""
        rows = []
        for result in self.criteria:
            verdict = f"**{result.verdict}**" if result.blocks else result.verdict
            metric = f"`{result.metric}`" if result.metric else ""
            why = result.outcome.reason
            if result.why:
                why += f". {result.why}"
            rows.append((verdict, result.name, metric, *result.measurement, why))
        at = f"at {self.axis}"
        heads = ("verdict", "criterion", "metric", "asked", "measured", at, "why")
        lines = [f"# {self.verdict}: stage {self.stage} of `{self.run}`", ""]
        lines += [self.meaning, ""] if self.meaning else []
        lines += markdown_table(heads, "<<<<>><", rows)
        lines += ["", *(f"- {notice}" for notice in self.notices)] if self.notices else []
        return "\n".join([*lines, ""])


def gate(
    run: Path, config: GateConfig, names: NameBook, *, optional: Sequence[str] = ()
) -> GateReport:
    """Check a run against the criteria of a stage, the checksums of its files and its steps."""
    criteria = _make_optional(config.criteria, optional)
    log = read_log(run, names.candidates(criterion.metric for criterion in criteria))
    known = names.pick(log.tags)
    settings = read_settings(run)
    results = [
        _check_files(log),
        *([] if config.steps is None else [_check_steps(log, config.steps)]),
        *(_check_metric(c, known.tag(c.metric), log, config.steps, settings) for c in criteria),
    ]
    return GateReport(
        run=str(run),
        stage=config.stage,
        about=config.about,
        names=known.source.name,
        axis=known.source.axis,
        end_step=config.steps,
        last_step=log.last_step,
        criteria=tuple(results),
        notices=(*_notices(log, known, config), *log.notices),
        curves={
            result.metric: log.curves[result.tag]
            for result in sorted(results, key=lambda result: result.metric)
            if result.tag in log.curves
        },
    )


def read_settings(run: Path) -> Mapping[str, Any]:
    """Return the settings that a run of avtd3 wrote; empty for any other run."""
    path = run / CONFIG_FILE
    if not path.is_file() or path.stat().st_size > MAX_SETTINGS_BYTES:
        return {}
    try:
        document = read_json(path, MAX_SETTINGS_BYTES)
    except ValueError as error:
        raise ConfigError(
            f"{path} is not valid JSON, expected the settings that avtd3 learn wrote ({error}); "
            "restore the file, or move it away to use the limits of the criteria file"
        ) from error
    return document if isinstance(document, dict) else {}


def _make_optional(criteria: Sequence[Criterion], patterns: Sequence[str]) -> tuple[Criterion, ...]:
    """Make the criteria optional that one of the patterns matches."""
    chosen: set[str] = set()
    for pattern in patterns:
        named = [c.name for c in criteria if fnmatch.filter((c.metric, c.name), pattern)]
        if not named:
            close = nearest(pattern, [criterion.metric for criterion in criteria])
            hint = f"; did you mean {close}?" if close else ""
            raise ConfigError(f"--optional {pattern!r} matches no metric of this stage{hint}")
        chosen.update(named)
    return tuple(dataclasses.replace(c, optional=c.optional or c.name in chosen) for c in criteria)


def _check_metric(
    criterion: Criterion, tag: str, log: RunLog, steps: int | None, settings: Mapping[str, Any]
) -> CriterionResult:
    criterion, note = _use_setting(criterion, settings)
    applies = criterion.data in ("any", _data_of(settings))
    if not applies:
        reason = f"only for runs that learn {criterion.data}"
        outcome = Outcome(answer="unknown", shown="", reason=reason)
    elif tag in log.curves:
        outcome = check_criterion(criterion, log.curves[tag], steps)
    else:
        outcome = _absent(criterion.metric, tag, log)
    verdict: Verdict = outcome.answer
    if not applies or (criterion.optional and not outcome.points):
        verdict = "skipped"
    elif criterion.advisory and verdict in ("fail", "unknown"):
        verdict = "warning"
    if note:
        outcome = dataclasses.replace(outcome, reason=f"{outcome.reason}; {note}")
    return CriterionResult(
        name=criterion.name,
        metric=criterion.metric,
        tag=tag,
        limit=criterion.limit_text(),
        verdict=verdict,
        outcome=outcome,
        criterion=criterion,
    )


def _data_of(settings: Mapping[str, Any]) -> Data:
    """Return whether a run learned from fixed data, as far as its settings say so."""
    return "offline" if settings.get("follow") is False else "online"


def _use_setting(criterion: Criterion, settings: Mapping[str, Any]) -> tuple[Criterion, str]:
    """Return the criterion with the run's own limit, and a note on where the limit is from."""
    key = criterion.at_most_setting
    if key is None:
        return criterion, ""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_LIMIT:
        own = dataclasses.replace(criterion, at_most=float(value))
        return own, f"the limit is the run's own {key}"
    return criterion, f"the run does not say {key}: the criterion's own limit"


def _absent(metric: str, tag: str, log: RunLog) -> Outcome:
    reason = f"the run has no {tag!r}"
    close = nearest(tag, log.tags)
    if close is not None:
        reason += f"; its nearest tag is {close!r}: if that is it, --map {metric}={close}"
    elif not log.tags:
        reason += ": it has no scalars at all"
    return Outcome(answer="unknown", shown="absent", reason=reason)


def _check_files(log: RunLog) -> CriterionResult:
    count = len(log.files)
    answer: Answer = "fail" if log.damaged else "pass"
    shown, reason = plural(count, "event file"), "every checksum is valid"
    if log.damaged:
        shown = f"{len(log.damaged)} of {count} damaged"
        reason = "; ".join(log.damaged) + "; copy the files again from where they were written"
    outcome = Outcome(answer=answer, shown=shown, reason=reason)
    return CriterionResult(name="event files whole", verdict=answer, outcome=outcome)


def _check_steps(log: RunLog, steps: int) -> CriterionResult:
    last = log.last_step
    answer: Answer = "pass" if last is not None and last >= REACHED * steps else "fail"
    reason = f"the stage has {steps:,} steps"
    if answer == "fail":
        reason += ": continue the run, or gate it by an earlier stage"
    shown = "no step" if last is None else f"{last:,}"
    measured = None if last is None or last < 0 else float(last)
    outcome = Outcome(answer=answer, measured=measured, shown=shown, reason=reason)
    limit = f">= {REACHED:.0%} of {steps:,}"
    return CriterionResult(name="steps reached", limit=limit, verdict=answer, outcome=outcome)


def _notices(log: RunLog, names: NameMap, config: GateConfig) -> list[str]:
    source = names.source
    notices = []
    if source.tags or names.own:
        notices.append(f"tags are read as {source.name} names them; steps are {source.axis}")
    if config.steps is not None and log.last_step is not None and log.last_step > config.steps:
        notices.append(
            f"the run continues to {log.last_step:,}; points after {config.steps:,}, the length of "
            "the stage, are ignored"
        )
    return notices
