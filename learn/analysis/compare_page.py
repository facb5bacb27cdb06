"""A comparison as one HTML page: every shared metric before and after, in a table and in plots."""

from collections.abc import Sequence
from importlib import metadata

from avtd3.learn.analysis.compare import Change, CompareReport, Verdict
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
from avtd3.store.render.frame import html_page, section
from avtd3.store.render.markup import Markup, element, join, shorten

MAX_PLOTS = 200
"""Metrics that are drawn, the most telling first: a stranger's run may have a hundred thousand."""
MAX_ROWS = 2_000
"""Metrics in the table."""
KINDS: dict[Verdict, str] = {
    "worse": "error",
    "better": "ok",
    "changed": "info",
    "unclear": "warning",
    "same": "info",
}


def compare_page(report: CompareReport) -> str:
    """The page.

    Args:
        report: How a candidate differs from a baseline.
    """
    title = f"{shorten(report.candidate.run)} against {shorten(report.baseline.run)}"
    notices = [f"only in the {name}: {', '.join(metrics)}" for name, metrics in report.lonely()]
    notices += report.notices
    parts = [section("Changes", _table(report))]
    if notices:
        parts.append(section("Notes", notice_list(notices)))
    if report.changes:
        parts.append(section("Before and after", _plots(report)))
    made = f"Made by avtd3 {metadata.version('avtd3')} compare."
    footer = element("footer", element("p", f"{report.method()} {made}"))
    return html_page(title, _header(report, title), element("main", parts), footer, style=STYLE)


def _header(report: CompareReport, title: str) -> Markup:
    figures = {verdict: f"{count:,}" for verdict, count in report.counts.items()}
    return element(
        "header", element("h1", title), element("p", f"{report.sentence()}."), key_figures(figures)
    )


def _table(report: CompareReport) -> Markup:
    rows = [
        (row_name(change.metric), badge(change.verdict, KINDS[change.verdict]), _cells(change))
        for change in report.changes[:MAX_ROWS]
    ]
    interval = f"{report.confidence:.0%} interval"
    heads = ("metric", "verdict", "before", "after", "change", interval, "why")
    found = verdict_table(
        heads, rows, figures=frozenset(heads[2:6]), caption="Every metric that both runs have"
    )
    left_out = len(report.changes) - len(rows)
    more = element("p", f"… and {left_out:,} more", class_="note") if left_out else ""
    return join((found, more))


def _cells(change: Change) -> Sequence[str]:
    return (*change.texts(), change.reason)


def _plots(report: CompareReport) -> Markup:
    drawn = report.changes[:MAX_PLOTS]
    telling = [_card(change, report) for change in drawn if change.verdict != "same"]
    same = [_card(change, report) for change in drawn if change.verdict == "same"]
    parts = [_legend(report), element("div", telling, class_="cards")]
    if same:
        noun = "metric" if len(same) == 1 else "metrics"
        summary = element("summary", f"{len(same)} {noun} without a change")
        parts.append(element("details", summary, element("div", same, class_="cards")))
    left_out = len(report.changes) - len(drawn)
    if left_out:
        text = f"{left_out:,} metrics are not drawn; name those you want by --metric."
        parts.append(element("p", text, class_="note"))
    return join(parts)


def _legend(report: CompareReport) -> Markup:
    sides = (("before", report.baseline.run), ("after", report.candidate.run))
    lines = [
        element("li", element("span", class_=f"swatch {kind}"), f"{kind}: {shorten(run)}")
        for kind, run in sides
    ]
    lines.append(element("li", "shaded: what is compared"))
    return element("ul", lines, class_="legend")


def _card(change: Change, report: CompareReport) -> Markup:
    kinds = ("before", "after")
    lines = [
        Line(label=kind, curve=curve, kind=kind)
        for kind, curve in zip(kinds, report.curves[change.metric], strict=True)
        if len(curve.updates)
    ]
    end = max(report.baseline.judged_to, report.candidate.judged_to)
    window = ((1.0 - report.window) * end, float(end))
    axis = report.candidate.axis
    plot = curve_plot(lines, name=change.metric, axis=axis, window=window)
    before, after, delta, _ = change.texts()
    words = element(
        "span", f" {before or 'nothing'} → {after or 'nothing'}, {delta or 'no change'}"
    )
    verdict = join((badge(change.verdict, KINDS[change.verdict]), words))
    return plot_card(change.metric, plot, verdict)
