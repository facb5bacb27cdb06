"""What the pages of a gate and of a comparison share: their style, their table, their cards."""

from collections.abc import Mapping, Sequence

from avtd3.learn.metrics import metric
from avtd3.store.render.markup import Markup, breakable, element, join, shorten
from avtd3.store.render.tables import column_heads, framed, scrolling

STYLE = """
.line.before { stroke: var(--mark); } .line.after { stroke: var(--bar); }
.dot.before { fill: var(--mark); } .dot.after { fill: var(--bar); }
.wild { stroke: var(--error); stroke-width: 2; } .window { fill: var(--line); opacity: 0.45; }
.plot .mark { stroke: var(--error); }
.swatch { display: inline-block; width: 18px; height: 3px; vertical-align: middle;
  margin-right: 6px; border-radius: 2px; }
.swatch.before { background: var(--mark); } .swatch.after { background: var(--bar); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 20px; list-style: none; padding: 0;
  margin: 0 0 12px; font-size: 15px; overflow-wrap: anywhere; }
.card h3 { overflow-wrap: anywhere; } .card > p { margin: 0; font-size: 14px; }
.judged tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 160px; }
.judged .note { display: block; font-weight: 400; margin: 0; }
.judged td:last-child { min-width: 260px; padding-right: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  .judged thead { position: absolute; clip-path: inset(50%); }
  .judged, .judged tbody { display: block; }
  .judged tr { display: flex; flex-wrap: wrap; gap: 2px 12px; padding: 10px 0;
    border-bottom: 1px solid var(--line); }
  .judged tbody tr:last-child { border: 0; }
  .judged th, .judged td { border: 0; padding: 0; }
  .judged th { flex: 1 1 60%; min-width: 0; }
  .judged td[data-head] { flex-basis: 100%; text-align: left; white-space: normal;
    overflow-wrap: anywhere; }
  .judged td[data-head]:empty { display: none; }
  .judged td[data-head]::before { content: attr(data-head) ": "; color: var(--soft); }
  .judged td:last-child { min-width: 0; color: var(--soft); } }
"""


def verdict_table(
    heads: Sequence[str],
    rows: Sequence[tuple[Markup, Markup, Sequence[str]]],
    *,
    figures: frozenset[str] = frozenset(),
    caption: str,
) -> Markup:
    """A table of verdicts, each row a block of its own on a phone.

    Args:
        heads: Of the name, the verdict, and each other cell.
        rows: Name, verdict and the other cells.
        figures: Heads of the columns that hold numbers.
        caption: What the table shows.
    """
    body = []
    for name, verdict, cells in rows:
        row = [element("th", name, scope="row"), element("td", verdict)]
        for head, text in zip(heads[2:], cells, strict=True):
            style = "figure" if head in figures else None
            row.append(element("td", shorten(text, 600), class_=style, data_head=head))
        body.append(element("tr", row))
    content = framed(column_heads(heads, figures), body, caption=caption, class_="judged")
    return element("div", scrolling(content, caption), class_="card")


def row_name(name: str, below: str = "") -> Markup:
    """What a row is about, with a word below it in small."""
    note = element("span", breakable(shorten(below)), class_="note") if below else Markup("")
    return join((breakable(shorten(name)), note))


def badge(verdict: str, kind: str) -> Markup:
    """A verdict; `kind` is its class: ``ok``, ``info``, ``warning`` or ``error``."""
    return element("span", verdict, class_=f"severity {kind}")


def plot_card(name: str, plot: Markup, *words: str | Markup) -> Markup:
    """A metric's plot with its meaning and what is said of it."""
    known = metric(name)
    meaning = "" if known is None else element("p", str(known), class_="soft")
    said = [element("p", word) for word in words if word]
    return element(
        "div", element("h3", breakable(shorten(name))), meaning, said, plot, class_="card"
    )


def key_figures(figures: Mapping[str, str]) -> Markup:
    """Numbers in large, by what they are."""
    return element(
        "dl",
        [
            element("div", element("dt", name), element("dd", value))
            for name, value in figures.items()
        ],
        class_="keys",
    )


def notice_list(notices: Sequence[str]) -> Markup:
    """What a reader should know, as a list."""
    lines = [element("li", shorten(notice, 1000)) for notice in notices]
    return element("div", element("ul", lines, class_="offenders"), class_="card")
