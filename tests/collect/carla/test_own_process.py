"""Failures in a test's own process are failures of the test."""

import os
import signal

import pytest

from avtd3.tests.collect.carla import own_process as module
from avtd3.tests.collect.carla.own_process import own_process


def test_a_failure_is_reported_with_its_values():
    with pytest.raises(pytest.fail.Exception, match="assert 1 == 2"):
        own_process(lambda: check(1, 2))()


def check(one, two):
    assert one == two


def test_a_crash_is_a_failure():
    with pytest.raises(pytest.fail.Exception, match="ended with -9"):
        own_process(lambda: os.kill(os.getpid(), signal.SIGKILL))()


def test_a_test_that_never_ends_is_killed(monkeypatch):
    monkeypatch.setattr(module, "WITHIN_S", 0.5)
    with pytest.raises(pytest.fail.Exception, match="ended with -9"):
        own_process(signal.pause)()


def test_a_test_that_passes_passes():
    own_process(lambda: None)()
