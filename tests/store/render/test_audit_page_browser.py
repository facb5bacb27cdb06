"""The audit's page as a browser shows it: at a desk and on a phone, light and dark."""

import base64
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from avtd3.store.audit.audit import audit
from avtd3.store.audit.drift import drift_between
from avtd3.store.render.audit_page import write_audit_page
from avtd3.tests.store.browsing import FAINT, SMALL, STICKS_OUT, WIDTHS, browser
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

__all__ = ["browser"]  # a fixture
LONG = "a-town-whose-name-is-much-longer-than-anybody-would-like-it-to-be"
EVIL = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with findings, long names, names that are HTML, and every kind of plot."""
    spec = make_spec(height=40, width=40)
    named = {"reward_terms": ["efficiency/a_term_with_a_long_name_of_its_own", EVIL]}
    spec = type(spec).from_json(spec.to_json() | named)
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(16):
        town = (EVIL, LONG, "country-000012", "loop-000003")[number % 4]
        driver = ("expert+noise=0.2", LONG + LONG)[number % 2]
        versions = {"policy_version": number % 3, "policy_digest": "0" * 64}
        episode = make_episode(
            spec, 5 + number, number, town=town, driver=driver, scenario=number % 5, **versions
        )
        episode.frames[:] = rng.integers(60, 200, episode.frames.shape, dtype=np.uint8)
        if number % 3 == 0:
            episode.frames[2] = 0
        episodes.append(episode)
    folder = tmp_path_factory.mktemp("page")
    write_dataset(folder / "data", spec, episodes)
    write_dataset(folder / LONG, spec, episodes[:2], collector="other")
    report = audit([folder / "data", folder / LONG])
    drifts = drift_between(*(dataset.summary for dataset in report.datasets))
    write_audit_page(report, folder / "page.html", drifts=drifts, compared=(EVIL, LONG))
    return folder / "page.html"


@pytest.fixture(
    scope="module",
    params=itertools.product(WIDTHS, ("light", "dark")),
    ids=lambda shown: "-".join(shown),
)
def shown(request, browser, page):
    """The browser with the page open, and what it did to open it."""
    device, theme = request.param
    browser.open(page, width=WIDTHS[device], theme=theme, phone=device == "phone")
    events = list(browser.events)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return browser, events, WIDTHS[device], theme


def test_nothing_is_wider_than_the_screen(shown):
    browser, _, width, _ = shown
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(STICKS_OUT) == []


def test_nothing_is_asked_of_the_network(shown, page):
    _, events, _, _ = shown
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert [url for url in asked if not url.startswith("data:image/")] == [page.as_uri()]


def test_nothing_runs_and_nothing_is_complained_of(shown):
    browser, events, _, _ = shown
    noisy = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in events if event["method"] in noisy] == []
    assert browser.evaluate("document.title").startswith("Audit of ")
    assert browser.evaluate("document.scripts.length") == 0


def test_every_picture_is_shown(shown):
    browser, _, _, _ = shown
    widths = browser.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(widths) >= 12
    assert all(width == 40 for width in widths)


def test_text_stands_out_and_is_large_enough(shown):
    browser, _, _, _ = shown
    assert browser.evaluate(FAINT) == []
    assert browser.evaluate(SMALL) == 0


def test_the_theme_is_the_readers(shown):
    browser, _, _, theme = shown
    with Image.open(io.BytesIO(base64.b64decode(browser.screenshot(20, 20)))) as picture:
        corner = np.asarray(picture.convert("L")).mean()
    assert corner > 200 if theme == "light" else corner < 60
