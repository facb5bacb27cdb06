"""`avtd3 status`."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import EXIT_NO, interruptible, live_text
from avtd3.store.errors import DatasetError

if TYPE_CHECKING:
    from avtd3.store.remote.client import LocalPlace, RemotePlace
    from avtd3.store.render.status_view import StatusReport
    from avtd3.store.status import Observer

POLICIES = "policies"
"""Directory of a run's policies."""
_STEP_S, _PATIENCE_S = 0.2, 1.0


def status(
    places: Annotated[
        list[str],
        opt.argument("PLACE", "Datasets, runs and directories of policies: paths or URLs."),
    ],
    watch: Annotated[
        bool | None,
        opt.option(
            "--watch/--once",
            "Update the table until Ctrl-C. Default: --watch in a terminal, unless --json or "
            "--html is given.",
        ),
    ] = None,
    interval: Annotated[
        float, opt.option("S", "Seconds between two updates of the table.", min=0.5, max=3600.0)
    ] = 2.0,
    html: Annotated[
        Path | None, opt.option("FILE", "Write one HTML page; with --watch, at each update.")
    ] = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Show what collectors and learners do now.

    They write heartbeats into their datasets and policies. Exits with 1 if a process is late or
    dead. A heartbeat in a bucket is compared with the next one, so the first answer can take up to
    12 seconds.
    """
    from avtd3.store.status import Observer

    opt.check_destinations(html)
    if watch and as_json:
        raise typer.BadParameter("--json prints one document; do not use it with --watch")
    if watch is None:
        watch = sys.stdout.isatty() and not as_json and html is None
    with interruptible() as should_stop:
        found = _open(places, should_stop)
        observer = Observer(found)
        if watch:
            with live_text() as show:
                while not should_stop():
                    report = _look(found, observer)
                    show(report.text())
                    _write(report, html)
                    _wait(interval, should_stop)
            return
        report = _settle(found, observer, should_stop)
    _write(report, html)
    opt.answer(report.document(), as_json, report.text())
    if not report.is_well:
        raise typer.Exit(EXIT_NO)


def _open(
    places: Sequence[str], should_stop: Callable[[], bool]
) -> "list[LocalPlace | RemotePlace]":
    """Open the places; a run's policies belong to it."""
    from avtd3.store.remote.client import LocalPlace, Patience, check_reachable, open_place

    found = []
    for text in places:
        # The next look is better than a long wait.
        place = open_place(text, Patience(seconds=_PATIENCE_S, should_stop=should_stop))
        check_reachable(place)
        found.append(place)
        if isinstance(place, LocalPlace):
            if not place.path.is_dir():
                raise DatasetError(
                    f"{text} is not a directory, expected a dataset, a run or a directory of "
                    "policies; check the path"
                )
            if place.path.joinpath(POLICIES).is_dir():
                found.append(LocalPlace(place.path / POLICIES))
    return found


def _look(places: "Sequence[LocalPlace | RemotePlace]", observer: "Observer") -> "StatusReport":
    from avtd3.store.render.status_view import StatusReport

    seen = observer.look()
    return StatusReport([place.text for place in places], seen, observer.problems)


def _settle(
    places: "Sequence[LocalPlace | RemotePlace]",
    observer: "Observer",
    should_stop: Callable[[], bool],
) -> "StatusReport":
    """Look until it is known of each process whether it writes heartbeats."""
    from avtd3.store.status import INTERVAL_S

    end_s = time.monotonic() + 1.2 * INTERVAL_S
    while True:
        report = _look(places, observer)
        is_known = all(seen.state != "unknown" for seen in report.seen)
        if is_known or should_stop() or time.monotonic() > end_s:
            return report
        _wait(1.0, should_stop)


def _write(report: "StatusReport", html: Path | None) -> None:
    from avtd3.store.files import write_aside

    if html is not None:
        write_aside(html, report.page().encode("utf-8"))


def _wait(seconds: float, should_stop: Callable[[], bool]) -> None:
    end_s = time.monotonic() + seconds
    while not should_stop() and (left_s := end_s - time.monotonic()) > 0.0:
        time.sleep(min(_STEP_S, left_s))
