"""A gate's answer as one HTML page: the verdict, each criterion, and the curves they look at."""

from importlib import metadata

from avtd3.learn.analysis.gate import GateReport, Judged, Verdict
from avtd3.learn.analysis.page import (
    STYLE,
    badge,
    key_figures,
    notice_list,
    plot_card,
    row_name,
    verdict_table,
)
from avtd3.learn.analysis.plots import Line, curve_plot
from avtd3.learn.analysis.rules import Bounds
from avtd3.store.render.frame import html_page, section
from avtd3.store.render.markup import Markup, element, join, shorten

KINDS: dict[Verdict, str] = {
    "pass": "ok",
    "fail": "error",
    "unknown": "error",
    "warning": "warning",
    "skipped": "info",
}


def gate_page(report: GateReport) -> str:
    """The page.

    Args:
        report: A stage's answer about a run.
    """
    title = f"{report.verdict}: stage {shorten(report.stage)} of {shorten(report.run)}"
    parts = [section("Criteria", _criteria(report))]
    if report.notices:
        parts.append(section("Notes", notice_list(report.notices)))
    if report.curves:
        parts.append(section("Curves", _curves(report)))
    footer = element("footer", element("p", f"Made by avtd3 {metadata.version('avtd3')} gate."))
    return html_page(title, _header(report, title), element("main", parts), footer, style=STYLE)


def _header(report: GateReport, title: str) -> Markup:
    kind = "ok" if report.verdict == "GO" else "error"
    verdict = element("span", report.verdict, class_=f"verdict {kind}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items())
    last = "none" if report.last_step is None else f"{report.last_step:,}"
    figures = {
        "stage": shorten(report.stage),
        f"{report.axis} in the run": last,
        "criteria held": f"{report.counts.get('pass', 0)} of {len(report.criteria)}",
    }
    return element(
        "header",
        element("h1", title),
        element("p", verdict, " ", f"{counts}. {report.about}"),
        key_figures(figures),
    )


def _criteria(report: GateReport) -> Markup:
    rows = []
    for judged in report.criteria:
        outcome = judged.outcome
        cells = (judged.limit, outcome.shown, judged.where, _why(judged))
        rows.append(
            (
                row_name(judged.name, judged.metric),
                badge(judged.verdict, KINDS[judged.verdict]),
                cells,
            )
        )
    at = f"at {report.axis}"
    heads = ("criterion", "verdict", "asked", "measured", at, "why")
    return verdict_table(
        heads, rows, figures=frozenset({"measured", at}), caption="Each criterion with its answer"
    )


def _why(judged: Judged) -> str:
    reason = judged.outcome.reason
    if judged.criterion is None:
        return reason
    if judged.verdict not in ("pass", "skipped") and judged.criterion.why:
        reason += f". {judged.criterion.why[0].upper()}{judged.criterion.why[1:]}"
    return f"{reason} [{judged.criterion.source}]" if judged.criterion.source else reason


def _curves(report: GateReport) -> Markup:
    """A card for each metric, those of failed criteria first."""
    asked: dict[str, list[Judged]] = {}
    for judged in report.criteria:
        asked.setdefault(judged.metric, []).append(judged)
    order = sorted(report.curves, key=lambda name: not any(j.blocks for j in asked[name]))
    cards = []
    for name in order:
        curve = report.curves[name]
        if not len(curve.updates):
            continue
        limits = sorted({limit for judged in asked[name] for limit in _limits(judged)})
        line = Line(label="run", curve=curve, kind="after")
        plot = curve_plot([line], name=name, axis=report.axis, limits=limits)
        said = [
            join((badge(j.verdict, KINDS[j.verdict]), element("span", f" {j.limit}")))
            for j in asked[name]
        ]
        cards.append(plot_card(name, plot, *said))
    note = element("p", f"Over {report.axis}; a broken line is a limit near the curve.")
    return join((note, element("div", cards, class_="cards")))


def _limits(judged: Judged) -> list[float]:
    """Values at which the metric itself would cross the bounds."""
    bounds, criterion = judged.bounds or Bounds(), judged.criterion
    if criterion is None or criterion.rule == "sum":
        return []
    found = (bounds.below, bounds.above, bounds.at_most, bounds.at_least)
    given = [bound for bound in found if bound is not None]
    return [*given, *(-bound for bound in given)] if criterion.absolute else given
