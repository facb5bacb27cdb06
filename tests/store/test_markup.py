from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from avtd3.store.render.markup import breakable, element, escape, join


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", {}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.text += data


def parse(markup):
    seen = Seen()
    seen.feed(markup)
    seen.close()
    return seen


@given(st.text())
def test_no_text_becomes_a_tag(text):
    seen = parse(element("p", text, title=text))
    assert seen.tags == ["p"]
    assert set(seen.attributes) == {"title"}
    kept = [(a, b) for a, b in zip(seen.text, text, strict=False) if a != "?"]
    assert all(a == b for a, b in kept)
    assert len(seen.text) == len(text)
    assert parse(breakable(text)).tags == ["wbr"] * breakable(text).count("<wbr>")


def test_markup_stays_and_text_is_escaped():
    inner = element("b", "<i>")
    assert inner == "<b>&lt;i&gt;</b>"
    assert element("p", inner, " & ", [inner]) == f"<p>{inner} &amp; {inner}</p>"
    assert join(["<", inner]) == f"&lt;{inner}"
    assert escape("a\x00\x1bb") == "a??b"


def test_attributes_are_spelled_as_html_does():
    made = element("img", class_="a", aria_label='"x"', width=1.50001, alt=None, viewBox="0 0")
    assert made == '<img class="a" aria-label="&quot;x&quot;" width="1.5" viewBox="0 0">'
