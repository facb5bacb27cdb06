"""The audit's page as a browser shows it: at three widths, light and dark, and by keyboard."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from avtd3.store.audit.audit import audit
from avtd3.store.audit.drift import drift_between
from avtd3.store.render.audit_view import write_audit_page
from avtd3.tests.store.browsing import keyboard_faults, page_faults, views
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

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


@views()
def test_it_can_be_read_on_every_screen_and_by_a_screen_reader(browser, page, device, theme):
    assert page_faults(browser, page, device, theme) == {}
    assert browser.evaluate("document.title").startswith("Audit of ")
    widths = browser.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(widths) >= 12
    assert all(width == 40 for width in widths)
    with Image.open(io.BytesIO(base64.b64decode(browser.screenshot(20, 20)))) as picture:
        corner = np.asarray(picture.convert("L")).mean()
    assert corner > 200 if theme == "light" else corner < 60


def test_the_keyboard_reaches_everything(browser, page):
    assert keyboard_faults(browser, page) == []


BAD = """<!DOCTYPE html><html lang="en"><head><title>bad</title><style>
p { color: #ccc; background: #fff } summary:focus { outline: none }</style></head><body>
<main><h1>Bad</h1><p>faint</p><div style="width: 2000px">wide</div><img src="data:,">
<svg width="90"><text style="font-size: 5px" y="9">small</text></svg>
<details><summary>cannot be seen</summary></details><script>console.log(1)</script>
<img alt="" src="http://127.0.0.1:9/x.png"></main></body></html>"""


def test_the_checks_find_each_kind_of_fault(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(BAD)
    found = page_faults(browser, page, "tablet", "light")
    assert found.keys() == {
        *("wider than the screen", "sticks out", "small", "faint", "asks the network"),
        *("complains", "scripts", "broken images", "axe"),
    }
    assert any("image-alt" in fault for fault in found["axe"])
    assert any("color-contrast" in fault for fault in found["axe"])
    assert keyboard_faults(browser, page) == [
        "focus cannot be seen: <summary>cannot be seen</summary>"
    ]
