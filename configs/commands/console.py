"""How a long command shows itself on a terminal, and how it is interrupted.

All but `tell` writes to standard error, so that standard output stays free for the answer.
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
"""Seconds between two lines of progress where there is no terminal to draw on."""


class Progress(Protocol):
    """What a long-running function reports while it runs."""

    @property
    def fraction(self) -> float | None:
        """Share of the work that is done, in [0, 1]; None if there is no end in sight."""
        ...

    def line(self) -> str:
        """Where it stands, in one line."""
        ...


Draw = Callable[[Progress], None]


def say(text: str) -> None:
    """Print one line for a person, on standard error."""
    print(text, file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Print a command's answer, on standard output."""
    print(text)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that turns true at the first Ctrl-C or SIGTERM; the second stops at once."""
    received: list[int] = []

    def note(number: int, _: types.FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        # A signal may arrive inside a print, and a stream must not be entered twice.
        os.write(2, b"\navtd3: finishing cleanly; once more to stop at once\n")

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress() -> Iterator[Draw]:
    """Yield a function that draws each report: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with _bar() as draw:
            yield draw
    else:
        yield _Lines()


@contextlib.contextmanager
def _bar() -> Iterator[Draw]:
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

        def draw(report: Progress) -> None:
            fraction = report.fraction
            bar.update(
                task,
                description=report.line(),
                total=None if fraction is None else 1.0,
                completed=fraction or 0.0,
            )

        yield draw


class _Lines:
    """A line at the first report, then one every `LINE_INTERVAL_S` seconds."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, report: Progress) -> None:
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + LINE_INTERVAL_S
        share = "" if report.fraction is None else f"{report.fraction:4.0%} "
        say(f"{share}{report.line()}")
