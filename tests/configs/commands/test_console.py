import os
import signal
import sys
import time

import pytest

from avtd3.configs.commands import console


class Report:
    def __init__(self, text, fraction=None):
        self.text, self.fraction = text, fraction

    def line(self):
        return self.text


def test_the_first_signal_requests_a_stop_and_handlers_are_restored(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with console.interruptible() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "press Ctrl-C again to stop at once" in capfd.readouterr().err


def test_without_a_terminal_lines_are_printed_at_intervals(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.progress() as show:
        show(Report("first", 0.25))
        show(Report("too soon", 0.5))
        now[0] += console.LINE_INTERVAL_S
        show(Report("unknown amount of work"))
    out, err = capsys.readouterr()
    assert err.splitlines() == [" 25% first", "unknown amount of work"]
    assert not out


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_a_terminal_gets_a_bar(capsys, monkeypatch, fraction):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.progress() as show:
        show(Report("under way", fraction))
    out, err = capsys.readouterr()
    assert "under way" in err
    assert not out
