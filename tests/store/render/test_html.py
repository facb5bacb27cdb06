"""Templates: whatever comes from a file stays text."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from avtd3.store.errors import escape
from avtd3.store.render.html import MAX_ROWS, breakable, environment, render_page

UI: Any = environment().get_template("macros.html.j2").module
EVIL = "<script>alert('1')</script>&\""


class Seen(HTMLParser):
    """Tags, attributes and text of a piece of HTML."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", {}
        self.feed(str(markup))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.text += data


@given(st.text())
def test_no_text_becomes_a_tag(text):
    seen = Seen(UI.badge(text, text))
    assert seen.tags == ["span"]
    assert set(seen.attributes) == {"class"}
    shown = escape(text, keep="\n\t")
    assert seen.text == shown
    assert seen.attributes["class"] == f"badge {shown}"
    assert Seen(breakable(text)).tags == ["wbr"] * breakable(text).count("<wbr>")


def test_markup_stays_and_text_is_escaped():
    inner = UI.badge("<i>", "ok")
    assert inner == '<span class="badge ok">&lt;i&gt;</span>'
    assert inner in UI.table(["a", "b"], [("x", inner)], "c")
    assert r"a\x00\x1bb" in UI.badge("a\x00\x1bb", "ok")


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError):
        render_page("gate.html.j2", title="x")


@pytest.mark.parametrize("name", ["table", "verdicts", "bars", "heat"])
def test_every_table_has_a_caption_and_escapes_its_cells(name):
    rows = {
        "table": [(EVIL, EVIL)],
        "verdicts": [(EVIL, EVIL, EVIL, "ok", ())],
        "bars": [(EVIL, 1)],
        "heat": [(EVIL, [(1, 5)])],
    }[name]
    args = (rows, EVIL, EVIL) if name == "bars" else ([EVIL, "x"], rows, EVIL)
    seen = Seen(getattr(UI, name)(*args))
    assert "script" not in seen.tags
    assert seen.tags.count("caption") == seen.tags.count("table") == 1
    assert seen.text.count(EVIL) >= 3


def test_the_bars_of_counts_have_shares_and_those_of_shares_do_not():
    cells = re.findall(r"<td[^>]*>([^<]+)</td>", UI.bars([("a", 3), ("b", 1)], "n", "c"))
    assert cells == ["3", "75%", "1", "25%"]
    made = UI.bars([("a", 0.75), ("b", 0.25)], "n", "c", shares=True)
    assert re.findall(r"<td[^>]*>([^<]+)</td>", made) == ["75%", "25%"]
    assert re.findall(r"width:([0-9.]+)%", made) == ["100.0", "33.3"]


def test_a_long_table_counts_the_rows_that_it_omits():
    made = UI.table(["n"], [(str(n),) for n in range(MAX_ROWS + 1_234)], "c")
    assert made.count("<tr>") == MAX_ROWS + 2
    assert "… and 1,234 more" in made
