"""The doctor's page as a browser shows it."""

import numpy as np
import pytest

from avtd3.collect.carla.doctor import FAILED, OK, WARNING, DoctorReport, Finding, page
from avtd3.tests.store.browsing import keyboard_faults, page_faults, views

EVIL = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    findings = (
        Finding("server", OK, "CARLA 0.9.16 answers in 12 ms"),
        Finding("drive", WARNING, EVIL * 2, "stop other clients that tick the server"),
        Finding("camera", FAILED, "x" * 200, EVIL),
    )
    report = DoctorReport(server=EVIL, findings=findings, is_reached=True, image="")
    pictures = [np.full((3, 60, 90), level, np.uint8) for level in (40, 200, 90)]
    path = tmp_path_factory.mktemp("doctor") / "page.html"
    path.write_text(page(report, pictures))
    return path


@views()
def test_it_can_be_read_on_every_screen_and_by_a_screen_reader(browser, path, device, theme):
    assert page_faults(browser, path, device, theme) == {}


def test_the_keyboard_reaches_everything(browser, path):
    assert keyboard_faults(browser, path) == []
