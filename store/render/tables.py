"""Tables for a page: figures, counts with bars, and counts of pairs.

A table of bars is readable without seeing the bars.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from avtd3.store.render.markup import Markup, breakable, element, shorten

MAX_BARS = 12
"""Rows of a table of bars; the rest becomes one row."""
MAX_ROWS = 300
"""Rows of any other table; a last row tells how many are left out."""


def bars(
    rows: Sequence[tuple[str, float, str]], *, name: str, caption: str, signed: bool = False
) -> Markup:
    """A table with a bar in each row.

    Args:
        rows: Name, size and the size as text, the largest first.
        name: Head of the column of names.
        caption: What the table shows.
        signed: Whether the sizes are already shares of the whole, not counts.
    """
    shown = list(rows[:MAX_BARS])
    rest = rows[MAX_BARS:]
    if rest:
        size = sum(row[1] for row in rest)
        shown.append((f"{len(rest)} others", size, f"{size:.1%}" if signed else f"{size:,.0f}"))
    largest = max((size for _, size, _ in shown), default=0.0)
    total = sum(size for _, size, _ in shown)
    body = []
    for label, size, text in shown:
        width = 100.0 * size / largest if largest > 0 else 0.0
        share = "" if signed or not total else f"{size / total:.0%}"
        body.append(
            element(
                "tr",
                element("th", breakable(shorten(label)), scope="row"),
                element("td", text, class_="figure"),
                *([] if signed else [element("td", share, class_="figure soft")]),
                element("td", element("span", class_="bar", style=f"width:{width:.1f}%")),
            )
        )
    heads = [name, "share"] if signed else [name, "count", "share"]
    hidden = [element("th", head, scope="col", class_="hidden") for head in [*heads, "bar"]]
    return framed(hidden, body, caption=caption, class_="bars")


def heat_table(
    counts: Mapping[tuple[str, str], int], *, rows: str, columns: str, caption: str
) -> Markup:
    """How often pairs occur, as a table whose cells are darker the more there are.

    Args:
        counts: By row's and column's name.
        rows: What the rows are.
        columns: What the columns are.
        caption: What the table shows.
    """
    down = sorted({row for row, _ in counts}, key=_natural)
    across = sorted({column for _, column in counts}, key=_natural)
    most = max(counts.values(), default=1)
    head = [element("th", f"{rows} \\ {columns}", scope="col")]
    head += [element("th", column, scope="col", class_="figure") for column in across]
    body = []
    for row in down:
        cells = [element("th", shorten(row), scope="row")]
        for column in across:
            count = counts.get((row, column), 0)
            heat = 0.0 if not count else 12.0 + 58.0 * math.log1p(count) / math.log1p(most)
            style = f"--heat:{heat:.0f}%"
            cells.append(element("td", f"{count:,}", class_="figure heat", style=style))
        body.append(element("tr", cells))
    return framed(head, body, caption=caption)


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str,
    figures: Collection[str] = (),
) -> Markup:
    """A table in a box that scrolls by itself where it is too wide; figures stand to the right.

    Args:
        heads: One per column; the first column names the row.
        rows: Cells, as many as heads.
        figures: Heads of the columns that hold numbers.
        caption: What the table shows.
    """
    body = []
    for row in rows[:MAX_ROWS]:
        cells = [element("th", shorten(row[0]), scope="row")]
        cells += [
            element("td", cell, class_=_style(head, figures))
            for head, cell in zip(heads[1:], row[1:], strict=True)
        ]
        body.append(element("tr", cells))
    if len(rows) > MAX_ROWS:
        rest = f"… and {len(rows) - MAX_ROWS:,} more"
        body.append(element("tr", element("th", rest, scope="row", colspan=len(heads))))
    return scrolling(framed(column_heads(heads, figures), body, caption=caption), caption)


def column_heads(heads: Sequence[str], figures: Collection[str] = ()) -> list[Markup]:
    """The heads of a table's columns; those of `figures` stand to the right."""
    return [element("th", head, scope="col", class_=_style(head, figures)) for head in heads]


def _style(head: str, figures: Collection[str]) -> str | None:
    return "figure" if head in figures else None


def framed(
    heads: Sequence[Markup], rows: Sequence[Markup], *, caption: str, class_: str | None = None
) -> Markup:
    """A table with a caption for those who cannot see it.

    Args:
        heads: The cells of its head.
        rows: Its rows.
        caption: What it shows.
        class_: Class in the style sheet.
    """
    return element(
        "table",
        element("caption", caption, class_="hidden"),
        element("thead", element("tr", heads)),
        element("tbody", rows),
        class_=class_,
    )


def scrolling(content: Markup, name: str) -> Markup:
    """A box with a scroll bar of its own, which the keyboard reaches."""
    return element("div", content, class_="scroll", role="region", aria_label=name, tabindex="0")


def _natural(name: str) -> tuple[bool, float, str]:
    return (not name.isdecimal(), float(name) if name.isdecimal() else 0.0, name)
