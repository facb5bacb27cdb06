"""Everything that the commands print, their progress displays, and the signals that end them.

Only answers go to standard output; everything else goes to standard error. `terminal` replaces both
streams, so that nothing that is printed can steer a terminal, whoever prints it.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO, TypedDict, cast

from avtd3.store.errors import StorageError, escape

if TYPE_CHECKING:
    from rich.console import Console

EXIT_NO = 1
"""Exit code when the answer is no: an audit with findings, NO-GO, training stopped by a guard."""
EXIT_USAGE = 2
"""Exit code for an invalid command line, configuration or input."""
EXIT_ENVIRONMENT = 3
"""Exit code when the environment failed: no simulator, disk full."""
EXIT_UNEXPECTED = 70
"""Exit code of an error that avtd3 does not know."""

LINE_INTERVAL_S = 10.0
"""Seconds between two lines of progress when standard error is not a terminal."""

_COLOURS = re.compile(r"(\x1b\[38;5;[0-9]{1,3};48;5;[0-9]{1,3}m|\x1b\[0m)")
"""The only control codes that avtd3 prints: the colours of the frames of an episode."""


_verbosity = [0]
"""-1 for --quiet, 1 for --verbose; `set_verbosity` changes it."""


def set_verbosity(level: int) -> None:
    """Print only answers and errors from now on (-1), or what helps to find a problem, too (1)."""
    _verbosity[0] = level


def is_verbose() -> bool:
    """Return whether the user asked for everything that helps to find a problem."""
    return _verbosity[0] > 0


class Progress(Protocol):
    """A report of a function that runs for a long time."""

    @property
    def fraction(self) -> float | None:
        """Share of the work that is done, in [0, 1]; None if the amount of work is unknown."""
        ...

    def line(self) -> str:
        """Describe the progress in one line."""
        ...


ShowProgress = Callable[[Progress], None]


class Control(TypedDict):
    """Arguments of a function that runs for a long time."""

    should_stop: Callable[[], bool]
    """Whether a signal asked to end."""
    on_progress: ShowProgress
    """Shows a report."""


class SafeStream:
    """A stream that escapes control characters, and outlives the reader at its other end.

    Line breaks and the colours of frames stay. A character that the encoding lacks is escaped, too.
    When a pipe or a terminal is closed at its other end, further output is dropped.

    Args:
        stream: Where to write.
        must_arrive: Whether any other failure to write, such as a full disk, is an error.
        raw: Whether to keep control characters, as a progress bar needs.
    """

    def __init__(self, stream: TextIO, *, must_arrive: bool, raw: bool = False) -> None:
        self._stream, self._must_arrive, self._raw = stream, must_arrive, raw
        self.encoding = stream.encoding or "utf-8"
        self.isatty, self.fileno = stream.isatty, stream.fileno

    def write(self, text: str) -> int:
        """Write a text."""
        safe = text if self._raw else "".join(map(_escape_all_but_colours, _COLOURS.split(text)))
        known = safe.encode(self.encoding, "backslashreplace").decode(self.encoding)
        with self._failures():
            self._stream.write(known)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._failures():
            self._stream.flush()

    def raw(self) -> "SafeStream":
        """Return a stream to the same place that keeps control characters."""
        return SafeStream(self._stream, must_arrive=self._must_arrive, raw=True)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is still buffered, and what Python flushes at its end, must go somewhere.
            with contextlib.suppress(OSError), Path(os.devnull).open("wb") as null:
                os.dup2(null.fileno(), self.fileno())
            if self._must_arrive and error.errno != errno.EPIPE:
                message = f"cannot write standard output: {error.strerror}"
                raise StorageError(error.errno, message) from error


def _escape_all_but_colours(text: str) -> str:
    return text if _COLOURS.fullmatch(text) else escape(text, keep="\n\t")


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Make the standard streams safe, and end at signals with the exit code 128 + their number."""
    _open_missing_streams()
    with _safe_streams(), _handled(lambda number: sys.exit(128 + number)):
        yield


@contextlib.contextmanager
def _safe_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, SafeStream(sys.stdout, must_arrive=True))
    sys.stderr = cast(TextIO, SafeStream(sys.stderr, must_arrive=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _open_missing_streams() -> None:
    """Open /dev/null where the shell closed a standard stream, as ``2>&-`` does.

    Otherwise the next file that is opened would take its number, and get what is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the end


def say(text: str) -> None:
    """Print a message on standard error, unless the user wants answers and errors only."""
    if _verbosity[0] >= 0:
        complain(text)


def complain(text: str) -> None:
    """Print an error on standard error."""
    print(text, file=sys.stderr, flush=True)


def print_answer(text: str) -> None:
    """Print a command's answer on standard output."""
    print(text)


@contextlib.contextmanager
def _handled(handler: Callable[[int], object]) -> Iterator[None]:
    """Call a function at the first signal that asks to end; the second ends the process at once.

    These are Ctrl-C, SIGTERM, SIGHUP (unless nohup made the process ignore it), and SIGUSR1, which
    SLURM can send before it preempts a job.
    """
    received: list[int] = []

    def on_signal(number: int, _: types.FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        handler(number)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after the first signal that asks to end.

    The second signal ends the process at once.
    """
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        # A signal may arrive inside a print, and a stream must not be entered twice.
        with contextlib.suppress(OSError):  # such as a terminal that is gone
            os.write(2, b"\navtd3: finishing cleanly; press Ctrl-C again to stop at once\n")

    with _handled(on_signal):
        yield lambda: bool(received)


@contextlib.contextmanager
def running() -> Iterator[Control]:
    """Yield the arguments of a function that can be interrupted and that reports progress."""
    with interruptible() as should_stop, progress() as show:
        yield {"should_stop": should_stop, "on_progress": show}


@contextlib.contextmanager
def progress() -> Iterator[ShowProgress]:
    """Yield a function that shows reports: a bar on a terminal, otherwise occasional lines.

    With --quiet, it shows nothing.
    """
    if _verbosity[0] < 0:
        yield lambda report: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _Lines()


@contextlib.contextmanager
def _bar() -> Iterator[ShowProgress]:
    """Show a bar with times, and the report below it, on a terminal of any width."""
    from rich.console import Group, RenderableType
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    clock, text = _Clock(), "starting"
    fraction: float | None = None

    def draw() -> RenderableType:
        bar = ProgressBar(1.0, fraction or 0.0, width=24, pulse=fraction is None)
        row = Table.grid(padding=(0, 1))
        row.add_row(bar, clock.times(fraction))
        return Group(row, Text(text))

    # The bar moves what others print above itself, with its own streams: these must be safe, too.
    console = _console(sys.stderr)
    with Live(get_renderable=draw, console=console, refresh_per_second=4) as live, _safe_streams():

        def show(report: Progress) -> None:
            nonlocal fraction, text
            fraction, text = report.fraction, escape(report.line())
            clock.observe(fraction)

        yield show
        live.refresh()


@contextlib.contextmanager
def live_text() -> Iterator[Callable[[str], None]]:
    """Yield a function that replaces the text that it printed before, on standard output."""
    from rich.live import Live
    from rich.text import Text

    console = _console(sys.stdout)
    with Live(Text(""), console=console, auto_refresh=False) as live, _safe_streams():
        yield lambda text: live.update(
            Text(escape(text, keep="\n"), no_wrap=True, overflow="ellipsis"), refresh=True
        )


def _console(stream: object) -> "Console":
    """Make Rich's console for a stream, without our escapes: it moves the cursor."""
    from rich.console import Console

    return Console(file=cast(TextIO, stream.raw() if isinstance(stream, SafeStream) else stream))


class _Clock:
    """Measures how long the work takes, and estimates how long it will still take."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._first: tuple[float, float] | None = None

    def observe(self, fraction: float | None) -> None:
        """Remember the first share of the work; what was done before costs no time here."""
        if self._first is None and fraction is not None:
            self._first = fraction, time.monotonic()

    def times(self, fraction: float | None) -> str:
        """Format the share of the work, and the times, as ``25% 1:00, 3:00 left``."""
        now = time.monotonic()
        share = "" if fraction is None else f"{fraction:4.0%} "
        return f"{share}{clock_time(now - self._start_s)}{self._left(fraction, now)}"

    def _left(self, fraction: float | None, now: float) -> str:
        if fraction is None or self._first is None or fraction <= self._first[0]:
            return ""
        begun, begun_s = self._first
        left_s = (now - begun_s) * (1.0 - fraction) / (fraction - begun)
        return f", {clock_time(left_s)} left"


def clock_time(seconds: float) -> str:
    """Format a duration as ``0:05``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Lines:
    """Prints the first report, then one every `LINE_INTERVAL_S` seconds."""

    def __init__(self) -> None:
        self._next_s, self._clock = 0.0, _Clock()

    def __call__(self, report: Progress) -> None:
        self._clock.observe(report.fraction)
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + LINE_INTERVAL_S
        say(f"{self._clock.times(report.fraction)}: {escape(report.line())}")
