"""Terminal output of the commands, their progress displays, and Ctrl-C.

Only answers go to standard output; everything else goes to standard error.
"""

import contextlib
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Protocol

LINE_INTERVAL_S = 10.0
"""Seconds between two lines of progress when standard error is not a terminal."""


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


def say(text: str) -> None:
    """Print a message on standard error."""
    print(text, file=sys.stderr, flush=True)


def print_answer(text: str) -> None:
    """Print a command's answer on standard output."""
    print(text)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after the first Ctrl-C or SIGTERM.

    The second signal ends the process at once.
    """
    received: list[int] = []

    def on_signal(number: int, _: types.FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        # A signal may arrive inside a print, and a stream must not be entered twice.
        os.write(2, b"\navtd3: finishing cleanly; press Ctrl-C again to stop at once\n")

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress() -> Iterator[ShowProgress]:
    """Yield a function that shows reports: a bar on a terminal, otherwise occasional lines."""
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _Lines()


@contextlib.contextmanager
def _bar() -> Iterator[ShowProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task("starting", total=None)

        def show(report: Progress) -> None:
            fraction = report.fraction
            bar.update(
                task,
                description=report.line(),
                total=None if fraction is None else 1.0,
                completed=fraction or 0.0,
            )

        yield show


class _Lines:
    """Prints the first report, then one every `LINE_INTERVAL_S` seconds."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, report: Progress) -> None:
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + LINE_INTERVAL_S
        share = "" if report.fraction is None else f"{report.fraction:4.0%} "
        say(f"{share}{report.line()}")
