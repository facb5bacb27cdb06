"""How far the data of an audit drift, from one window or dataset to the other, as HTML."""

from collections.abc import Sequence

from avtd3.store.audit.drift import Drift
from avtd3.store.render.charts import number
from avtd3.store.render.markup import Markup, element, shorten
from avtd3.store.render.tables import scrolling

MAX_DRIFTS = 40
"""Quantities told, the most drifted first."""
SEEN_DRIFTS = 8
"""Those of them that are seen at once: the camera's pictures must not be screens away."""
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
        _table(drifts[:SEEN_DRIFTS], "The most drifted quantities"),
        _folded(drifts[SEEN_DRIFTS:MAX_DRIFTS]),
        element("p", note, class_="note"),
        class_="card",
    )


def _folded(drifts: Sequence[Drift]) -> Markup | str:
    """The less drifted quantities, behind a line that opens them."""
    if not drifts:
        return ""
    noun = "quantity" if len(drifts) == 1 else "quantities"
    told = element("summary", f"{len(drifts)} more {noun}, less drifted")
    return element("details", told, _table(drifts, "Drift of the other quantities"))


def _table(drifts: Sequence[Drift], caption: str) -> Markup:
    heads = ("quantity", "verdict", "PSI", "KS", "median", "then")
    rows = []
    for drift in drifts:
        verdict = element("span", drift.verdict, class_=f"severity {SEVERITIES[drift.verdict]}")
        figures = (f"{drift.psi:.2f}", f"{drift.ks:.2f}", *map(number, drift.medians))
        cells = [element("th", shorten(drift.name), scope="row"), element("td", verdict)]
        cells += [element("td", figure, class_="figure") for figure in figures]
        rows.append(element("tr", cells))
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
