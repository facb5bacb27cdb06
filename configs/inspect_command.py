"""`avtd3 replay-inspect`: its options, and which of the audit's functions they call."""

from pathlib import Path
from typing import Annotated

import typer

from avtd3.configs.command_line import (
    EXIT_NO,
    ConfigOption,
    FilterOption,
    JsonOption,
    SetOption,
    answer,
    replace,
    section,
)
from avtd3.configs.console import interruptible, progress, say
from avtd3.configs.inspect_episode import EpisodeFiles, show_episode


def replay_inspect(
    datasets: Annotated[list[Path], typer.Argument(help="Datasets to audit.")],
    sample: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of the segments to read.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask cluster; default: threads.")
    ] = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move damaged segments to quarantine/ afterwards.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the audit as one HTML page.")] = None,
    episode: Annotated[
        str | None,
        typer.Option(
            metavar="EPISODE",
            help="Draw one episode instead: SEGMENT:NUMBER, a number in the plan, "
            "or worst, best, longest, shortest, random.",
        ),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Its contact sheet, as PNG.")] = None,
    gif: Annotated[Path | None, typer.Option(help="Play it as a GIF.")] = None,
    mp4: Annotated[Path | None, typer.Option(help="Play it as a film.")] = None,
    filter_: FilterOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Audit datasets: what they hold, whether the bytes are whole, whether the data make sense."""
    files = EpisodeFiles(sheet=sheet, gif=gif, mp4=mp4)
    files.check(episode, html, filter_ or ())
    if episode is not None:
        show_episode(datasets, episode, files, among=filter_ or (), as_json=as_json)
        return
    from avtd3.store.audit import audit, quarantine_damaged
    from avtd3.store.report import render

    settings = section("audit", config, set_)
    settings = replace(settings, sample=sample, strict=strict or None, scheduler=scheduler)
    with interruptible() as should_stop, progress() as draw:
        report = audit(datasets, settings, should_stop=should_stop, on_progress=draw)
    if html is not None:
        from avtd3.store.page import write_page

        write_page(report, html)
        say(f"wrote {html}")
    moved = list(quarantine_damaged(report)) if quarantine else []
    text = "\n".join([render(report), *(f"moved to quarantine: {name}" for name in moved)])
    answer(report.document() | {"quarantined": moved}, as_json, text)
    if report.verdict != "ok":
        raise typer.Exit(EXIT_NO)
