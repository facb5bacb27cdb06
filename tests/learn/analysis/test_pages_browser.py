"""The pages of a gate and of a comparison as a browser shows them: at a desk and on a phone."""

import itertools

import pytest

from avtd3.learn.analysis.compare import CompareConfig, compare
from avtd3.learn.analysis.criteria import Criterion, GateConfig
from avtd3.learn.analysis.gate import gate
from avtd3.learn.analysis.metric_names import DirectionBook, NameBook, NameSet
from avtd3.learn.analysis.pages import compare_page, gate_page
from avtd3.tests.store.browsing import FAINT, SMALL, STICKS_OUT, WIDTHS, browser

__all__ = ["browser"]  # a fixture

BOOK = NameBook(sets=(NameSet(name="avtd3", axis="updates"),))
EVIL = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"
LONG = "a/metric_whose_name_is_much_longer_than_anybody_would_like_it_to_be_in_a_table"


def points(scale):
    """A healthy curve, a wild one, and two with names that try a page."""
    steps = range(1, 200)
    wild = [(s, float("nan") if s % 50 == 0 else scale * 10.0 ** (s % 7)) for s in steps]
    calm = [(s, scale / s) for s in steps]
    return {"critic/loss": calm, LONG: wild, EVIL: [(s, -scale * s) for s in steps]}


@pytest.fixture(scope="module", params=("gate", "compare"))
def page(request, tmp_path_factory, write_foreign):
    folder = tmp_path_factory.mktemp("judged")
    write_foreign(folder / "before", points(1.0))
    write_foreign(folder / "after", points(3.0))
    if request.param == "gate":
        criteria = (
            Criterion(name=LONG, metric=LONG, below=5, why=EVIL * 3, source="R5"),
            Criterion(name="falls", metric="critic/loss", rule="falling"),
            Criterion(name=EVIL, metric="absent", above=0, why=LONG * 4),
        )
        text = gate_page(gate(folder / "after", GateConfig(stage=EVIL, criteria=criteria), BOOK))
    else:
        runs = (folder / "before", folder / "after")
        text = compare_page(compare(*runs, CompareConfig(), (BOOK, BOOK), DirectionBook()))
    path = folder / "page.html"
    path.write_text(text)
    return path


@pytest.fixture(
    params=itertools.product(WIDTHS, ("light", "dark")), ids=lambda shown: "-".join(shown)
)
def shown(request, browser, page):
    """The browser with the page open and unfolded, what it did meanwhile, and its width."""
    device, theme = request.param
    browser.open(page, width=WIDTHS[device], theme=theme, phone=device == "phone")
    events = list(browser.events)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return browser, events, WIDTHS[device]


def test_it_fits_the_screen_and_can_be_read(shown):
    browser, _, width = shown
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(STICKS_OUT) == []
    assert browser.evaluate(FAINT) == []
    assert browser.evaluate(SMALL) == 0
    assert browser.evaluate("document.querySelectorAll('svg').length") >= 2


def test_it_is_alone_and_still(shown, page):
    browser, events, _ = shown
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert asked == [page.as_uri()]
    noisy = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in events if event["method"] in noisy] == []
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("document.title") != "run"
