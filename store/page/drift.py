"""How far the data of an audit drift, from one window or dataset to the other, as HTML."""

from collections.abc import Sequence

from avtd3.store.inspect.drift import Drift
from avtd3.store.page.charts import number
from avtd3.store.page.markup import Markup, element, shorten
from avtd3.store.page.tables import scrolling

MAX_DRIFTS = 40
"""Quantities told, the most drifted first."""
SEVERITIES = {"same": "ok", "shifted": "warning", "other": "error", "few values": "info"}


def drift_section(drifts: Sequence[Drift], compared: Sequence[str]) -> Markup:
    """The drift as a table.

    Args:
        drifts: At least one quantity, the most drifted first.
        compared: What the two sets of episodes are called.
    """
    before, after = compared
    counts = {kind: sum(d.verdict == kind for d in drifts) for kind in ("other", "shifted")}
    lead = (
        f"From {shorten(before)} to {shorten(after)}, {counts['other']} of {len(drifts)} "
        f"quantities are another population and {counts['shifted']} are shifted."
    )
    note = (
        "PSI: population stability index over ten parts, below 0.1 the same, above 0.25 another "
        "population. KS: largest distance of the cumulative distributions."
    )
    return element(
        "div",
        element("p", lead),
        _table(drifts[:MAX_DRIFTS]),
        element("p", note, class_="note"),
        class_="card",
    )


def _table(drifts: Sequence[Drift]) -> Markup:
    heads = ("quantity", "verdict", "PSI", "KS", "median", "then")
    rows = []
    for drift in drifts:
        verdict = element("span", drift.verdict, class_=f"severity {SEVERITIES[drift.verdict]}")
        figures = (f"{drift.psi:.2f}", f"{drift.ks:.2f}", *map(number, drift.medians))
        cells = [element("th", shorten(drift.name), scope="row"), element("td", verdict)]
        cells += [element("td", figure, class_="figure") for figure in figures]
        rows.append(element("tr", cells))
    caption = "Drift of each quantity"
    styles = [None, None, *["figure"] * 4]
    head = [
        element("th", text, scope="col", class_=style)
        for text, style in zip(heads, styles, strict=True)
    ]
    content = element(
        "table",
        element("caption", caption, class_="hidden"),
        element("thead", element("tr", head)),
        element("tbody", rows),
    )
    return scrolling(content, caption)
