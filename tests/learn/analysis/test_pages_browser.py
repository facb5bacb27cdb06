"""The pages of a gate, a comparison and a run as a browser shows them."""

import pytest

from avtd3.learn.analysis.compare import CompareConfig, compare
from avtd3.learn.analysis.criteria import Criterion, GateConfig
from avtd3.learn.analysis.gate import gate
from avtd3.learn.analysis.metric_names import DirectionBook, NameBook, NameSet
from avtd3.learn.analysis.pages import compare_page, gate_page
from avtd3.learn.analysis.run_page import write_run_page
from avtd3.tests.learn.pictured_run import EVIL, LONG, make_pictured_run
from avtd3.tests.store.browsing import keyboard_faults, page_faults, views

BOOK = NameBook(sets=(NameSet(name="avtd3", axis="updates"),))


def points(scale):
    """A healthy curve, a wild one, and two with names that try a page."""
    steps = range(1, 200)
    wild = [(s, float("nan") if s % 50 == 0 else scale * 10.0 ** (s % 7)) for s in steps]
    calm = [(s, scale / s) for s in steps]
    return {"critic/loss": calm, LONG: wild, EVIL: [(s, -scale * s) for s in steps]}


@pytest.fixture(scope="module", params=("gate", "compare", "run"))
def page(request, tmp_path_factory, write_foreign):
    folder = tmp_path_factory.mktemp("judged")
    if request.param == "run":
        return write_run_page(make_pictured_run(folder))
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


@views()
def test_it_can_be_read_on_every_screen_and_by_a_screen_reader(browser, page, device, theme):
    assert page_faults(browser, page, device, theme) == {}
    assert browser.evaluate("document.querySelectorAll('svg').length") >= 2


def test_the_keyboard_reaches_everything(browser, page):
    assert keyboard_faults(browser, page) == []
