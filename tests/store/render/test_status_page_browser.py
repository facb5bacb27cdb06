"""The page of collectors and learners as a browser shows it."""

import pytest

from avtd3.store.render.status_view import StatusReport
from avtd3.store.status import Beat, Seen
from avtd3.tests.store.browsing import keyboard_faults, page_faults, views

EVIL = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"
LONG = "a-machine-whose-name-is-much-longer-than-anybody-would-like-it-to-be-in-a-table"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    beats = (
        Beat(role="learner", name="run", updates=50, target=100, policy_version=9, rate=2.5),
        Beat(role="collector", name=EVIL, host=LONG, steps=5_000, rate=20.0, policy_version=4),
        Beat(role="collector", name=LONG, host=EVIL, alerts=(EVIL, LONG * 3), spool_bytes=10**9),
        Beat(role="collector", name="ended", is_ended=True),
    )
    seen = [Seen(beat, "/data", 400.0 * number) for number, beat in enumerate(beats)]
    path = tmp_path_factory.mktemp("status") / "page.html"
    path.write_text(StatusReport([LONG, EVIL], seen, [EVIL]).page())
    return path


@views()
def test_it_can_be_read_on_every_screen_and_by_a_screen_reader(browser, page, device, theme):
    assert page_faults(browser, page, device, theme) == {}


def test_the_keyboard_reaches_everything(browser, page):
    assert keyboard_faults(browser, page) == []
