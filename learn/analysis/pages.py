"""Show a gate or a comparison as one HTML page."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from avtd3.learn.analysis import compare, gate
from avtd3.learn.analysis.compare import Change, CompareReport
from avtd3.learn.analysis.event_log import Curve
from avtd3.learn.analysis.gate import CriterionResult, GateReport
from avtd3.learn.metrics import metric
from avtd3.store.render.html import render_page
from avtd3.store.render.plots import Line, curves
from avtd3.store.render.text import integer, shorten

MAX_PLOTS = 200
"""Metrics of a comparison that are drawn, by verdict: a run may have a hundred thousand."""
MAX_ROWS = 2_000
"""Metrics of a comparison in the table."""
KINDS: Mapping[gate.Verdict | compare.Verdict, str] = {
    **dict.fromkeys(("pass", "better"), "ok"),
    **dict.fromkeys(("fail", "unknown", "worse"), "error"),
    "warning": "warning",
    "changed": "warning",
    **dict.fromkeys(("skipped", "unclear", "same"), "info"),
}
"""Classes of the verdicts of gates and comparisons in the style sheet."""


def gate_page(report: GateReport) -> str:
    """Return the answer of a gate as a page: the verdict, each criterion, and the curves."""
    at = f"at {report.axis}"
    last = "none" if report.last_step is None else integer(report.last_step)
    passed = f"{report.counts.get('pass', 0)} of {len(report.criteria)}"
    return render_page(
        "gate.html.j2",
        title=f"{report.verdict}: stage {shorten(report.stage)} of {shorten(report.run)}",
        report=report,
        key_figures=[
            ("stage", report.stage, ""),
            (f"{report.axis} in the run", last, ""),
            ("criteria passed", passed, ""),
        ],
        heads=("criterion", "verdict", "asked", "measured", at, "why"),
        figures=("measured", at),
        criteria=[
            (r.name, r.metric, r.verdict, KINDS[r.verdict], (*r.measurement, _why(r)))
            for r in report.criteria
        ],
        cards=_gate_cards(report),
    )


def compare_page(report: CompareReport) -> str:
    """Return a comparison as a page: each shared metric before and after, in a table and plots."""
    heads = ("metric", "verdict", "before", "after", "change", f"{report.confidence:.0%} interval")
    clear, others = report.clear, report.changes[len(report.clear) :]
    kept = {change.metric for change in report.changes[:MAX_PLOTS]}

    def rows(changes: Sequence[Change]) -> list[tuple[object, ...]]:
        return [
            (c.metric, "", c.verdict, KINDS[c.verdict], (*c.texts(), c.reason)) for c in changes
        ]

    def cards(changes: Sequence[Change]) -> list[dict[str, object]]:
        drawn = (c for c in changes if any(len(k.updates) for k in report.curves[c.metric]))
        return [_change_card(change, report) for change in drawn if change.metric in kept]

    return render_page(
        "compare.html.j2",
        title=f"{shorten(report.candidate.run)} against {shorten(report.baseline.run)}",
        report=report,
        heads=(*heads, "why"),
        figures=heads[2:],
        kinds=KINDS,
        clear=rows(clear[:MAX_ROWS]),
        others=rows(others[: MAX_ROWS - len(clear[:MAX_ROWS])]),
        rows_left_out=max(0, len(report.changes) - MAX_ROWS),
        notices=[f"only in the {name}: {', '.join(names)}" for name, names in report.lonely()]
        + list(report.notices),
        clear_cards=cards(clear),
        other_cards=cards(others),
        plots_left_out=max(0, len(report.changes) - MAX_PLOTS),
    )


def _why(result: CriterionResult) -> str:
    reason, why = result.outcome.reason, result.why
    if why:
        reason += f". {why[0].upper()}{why[1:]}"
    source = "" if result.criterion is None else result.criterion.source
    return f"{reason} [{source}]" if source else reason


def _gate_cards(report: GateReport) -> list[dict[str, object]]:
    """Return a card for each metric with points, those of failed criteria first."""
    asked: dict[str, list[CriterionResult]] = {}
    for result in report.criteria:
        asked.setdefault(result.metric, []).append(result)
    cards = []
    for name in sorted(report.curves, key=lambda name: not any(j.blocks for j in asked[name])):
        if not len(report.curves[name].updates):
            continue
        limits = sorted({limit for result in asked[name] for limit in _limits(result)})
        line = curve_line("run", report.curves[name])
        plot = curves([line], name=name, axis=report.axis, limits=limits)
        badges = [(r.verdict, KINDS[r.verdict], r.limit) for r in asked[name]]
        cards.append(metric_card(name, plot, badges))
    return cards


def _limits(result: CriterionResult) -> list[float]:
    """Return the values at which the metric itself would cross the bounds."""
    criterion = result.criterion
    if criterion is None or criterion.rule == "sum":
        return []
    given = list(criterion.bounds.values())
    return [*given, *(-bound for bound in given)] if criterion.absolute else given


def _change_card(change: Change, report: CompareReport) -> dict[str, object]:
    both = zip(("before", "after"), report.curves[change.metric], strict=True)
    lines = [curve_line(kind, curve, kind) for kind, curve in both if len(curve.updates)]
    end = max(report.baseline.end_step, report.candidate.end_step)
    window = ((1.0 - report.window) * end, float(end))
    plot = curves(lines, name=change.metric, axis=report.candidate.axis, window=window)
    before, after, delta, _ = change.texts()
    text = f"{before or 'nothing'} → {after or 'nothing'}, {delta or 'no change'}"
    return metric_card(change.metric, plot, [(change.verdict, KINDS[change.verdict], text)])


def curve_line(label: str, curve: Curve, kind: str = "after") -> Line:
    """Return a curve as a line of a plot."""
    return Line(label=label, steps=curve.updates, values=curve.values, kind=kind)


def metric_card(
    name: str, plot: Markup, verdicts: Sequence[tuple[str, str, str]] = ()
) -> dict[str, object]:
    """Return a metric and its meaning for the template; a verdict has a class and a text."""
    known = metric(name)
    meaning = "" if known is None else str(known)
    return {"name": name, "meaning": meaning, "verdicts": verdicts, "plot": plot}
