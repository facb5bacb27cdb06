import errno
import io
import os
import re
import signal
import sys
import time

import pytest

from avtd3.configs.commands import console
from avtd3.store.errors import StorageError
from avtd3.store.render.text import join_lines

HOSTILE = (
    "\x1b[2J", "\x1b]0;title\x07", "\x00", "\x08", "\r", "\x0b", "\x7f", "\x85", "\x9b31m",
    "\u2028", "\u2029", "\u202e", "\u2066", "\u200f", "\ufeff", "\udc80", "\U000e0041",
)  # fmt: skip
"""Text that clears a screen, moves its cursor, reorders what follows, or cannot be encoded."""


class Report:
    def __init__(self, text, fraction=None):
        self.text, self.fraction = text, fraction

    def line(self):
        return self.text


class Failing(io.StringIO):
    """A stream whose every write fails."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_is_printed_cannot_steer_a_terminal(capsys, text):
    with console.terminal():
        console.print_answer(f"a{text}b\nc")
        console.say(f"a{text}b\nc")
        sys.stderr.write(f"a{text}b\nc\n")  # as other packages do
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.isprintable()
    assert first.startswith("a\\")
    assert second == "c"
    assert err == out * 2


@pytest.mark.parametrize("text", [*HOSTILE, "\n", "\nverdict: ok"])
def test_a_value_never_starts_a_line_of_a_report(text):
    (line,) = join_lines([f"a{text}b"]).splitlines()
    assert line.isprintable()
    assert join_lines(["a", "b", ""]) == "a\nb\n"


@pytest.mark.parametrize("text", [*HOSTILE, "\n", "[/red]"])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_shows_names_as_they_are_but_harmless(capsys, monkeypatch, text, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    with console.terminal(), console.progress() as show:
        show(Report(f"segment a{text}b", 0.5))
        sys.stderr.write(f"note a{text}b!\n")
    _, err = capsys.readouterr()
    shown = f"segment a{text if text.isprintable() else repr(text)[1:-1]}b"
    assert shown in err
    assert text.isprintable() or text == "\n" or f"a{text}b" not in err


def test_the_colours_of_frames_are_kept(capsys):
    cell = "\x1b[38;5;12;48;5;240m▀\x1b[0m"
    with console.terminal():
        console.print_answer(f"{cell}\x1b[31m")
    assert capsys.readouterr().out == f"{cell}\\x1b[31m\n"


def test_what_the_encoding_lacks_is_escaped():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console.SafeStream(file, must_arrive=True).write("dütä ▀\n")
    file.flush()
    assert file.buffer.getvalue() == b"d\\xfct\\xe4 \\u2580\n"


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_messages_that_nobody_can_read_end_nothing(number):
    stream = console.SafeStream(Failing(number), must_arrive=False)
    stream.write("lost")
    stream.flush()


def test_an_answer_that_cannot_be_written_is_an_error_unless_nobody_reads_it():
    console.SafeStream(Failing(errno.EPIPE), must_arrive=True).write("unread")
    with pytest.raises(StorageError, match="cannot write standard output: No space left"):
        console.SafeStream(Failing(errno.ENOSPC), must_arrive=True).write("lost")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_the_first_signal_requests_a_stop_and_handlers_are_restored(capfd, name):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with console.interruptible() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
    assert signal.getsignal(number) is before
    assert "press Ctrl-C again to stop at once" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_outside_of_the_work_ends_with_its_code(name):
    number = signal.Signals[name]
    with console.terminal(), pytest.raises(SystemExit) as end:
        os.kill(os.getpid(), number)
    assert end.value.code == 128 + number


def test_nohup_keeps_a_command_alive():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.terminal(), console.interruptible() as should_stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_terminal_lines_are_printed_at_intervals(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.progress() as show:
        show(Report("first", 0.25))
        show(Report("too soon", 0.5))
        now[0] += console.LINE_INTERVAL_S
        show(Report("unknown amount of work"))
    out, err = capsys.readouterr()
    assert err.splitlines() == [" 25% 0:00: first", "0:10: unknown amount of work"]
    assert not out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (754.0, "12:34"), (3599.7, "1:00:00"), (90_061.0, "25:01:01")],
)
def test_times_are_read_as_on_a_clock(seconds, text):
    assert console.clock_time(seconds) == text


def test_the_time_that_is_left_is_estimated_from_what_was_done_here(capsys, monkeypatch):
    """A run that is resumed at one half has done no work yet."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.progress() as show:
        for seconds, fraction in ((0.0, None), (30.0, 0.5), (10.0, 0.5), (20.0, 0.6), (60.0, 1.0)):
            now[0] += seconds
            show(Report("x", fraction))
    assert capsys.readouterr().err.splitlines() == [
        "0:00: x",
        " 50% 0:30: x",
        " 50% 0:40: x",
        " 60% 1:00, 2:00 left: x",
        "100% 2:00, 0:00 left: x",
    ]


@pytest.mark.parametrize("level", [-1, 0, 1])
def test_quiet_commands_print_answers_and_errors_only(capsys, monkeypatch, level):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: level == 0, raising=False)
    console.set_verbosity(level)
    try:
        with console.progress() as show:
            show(Report("under way", 0.5))
        console.say("message")
        console.complain("error")
        console.print_answer("answer")
    finally:
        console.set_verbosity(0)
    out, err = capsys.readouterr()
    assert out == "answer\n"
    assert ("under way" in err, "message" in err, "error" in err) == (level >= 0, level >= 0, True)


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_the_bar_fits_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    words = " ".join(f"word{number}" for number in range(40))
    with console.progress() as show:
        show(Report(words, 0.25))
        show(Report(words, 0.5))
    shown = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n")
    assert max(map(len, shown.splitlines())) <= columns
    assert "50%" in shown
    assert "left" in shown
    assert words in " ".join(shown.split())


@pytest.mark.parametrize("has_colours", [True, False])
def test_a_user_can_switch_colours_off(capsys, monkeypatch, has_colours):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not has_colours:
        monkeypatch.setenv("NO_COLOR", "1")
    with console.progress() as show:
        show(Report("under way", 0.5))
    found = re.findall(r"\x1b\[[0-9;]*m", capsys.readouterr().err)
    assert bool(set(found) - {"\x1b[0m"}) == has_colours


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_a_terminal_gets_a_bar(capsys, monkeypatch, fraction):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.progress() as show:
        show(Report("under way", fraction))
    out, err = capsys.readouterr()
    assert "under way" in err
    assert not out
