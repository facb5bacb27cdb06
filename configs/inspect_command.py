"""`avtd3 replay-inspect`: its options, and which of the audit's functions they call."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from avtd3.configs.inspect_drift import Comparison, parse_share
from avtd3.configs.inspect_episode import EpisodeFiles, show_episode
from avtd3.configs.inspect_estimate import show_estimate
from avtd3.configs.inspect_scores import judge, page_section
from avtd3.store.errors import ConfigError

if TYPE_CHECKING:
    from avtd3.store.audit.report import AuditReport


def replay_inspect(
    datasets: Annotated[
        list[Path] | None, typer.Argument(help="Datasets to audit.", show_default=False)
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of the segments to read, as 5% or 0.05."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Hash also what an earlier audit verified.")
    ] = False,
    against: Annotated[
        list[Path] | None, typer.Option(help="Datasets whose drift from the others to show.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILTER", help="Give two, as date=..2026-11-09: drift from one to the other."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask cluster; default: threads.")
    ] = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move damaged segments to quarantine/ afterwards.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --quarantine: say what would be moved.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Bytes per step of the dataset, or of --config, instead."),
    ] = False,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="Driving scores, computed again from the stored events."),
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
    if estimate:
        show_estimate(datasets or (), config, set_, as_json=as_json)
        return
    if not datasets:
        raise ConfigError("replay-inspect needs a dataset: name one or more directories")
    files = EpisodeFiles(sheet=sheet, gif=gif, mp4=mp4)
    files.check(episode, html, filter_ or (), scores=scores)
    if episode is not None:
        show_episode(datasets, episode, files, among=filter_ or (), as_json=as_json)
        return
    from avtd3.store.audit.audit import audit
    from avtd3.store.audit.report_text import render

    comparison = Comparison.parse(datasets, against or (), window or ())
    settings = section("audit", config, set_)
    settings = replace(
        settings,
        sample=None if sample is None else parse_share(sample),
        strict=strict or None,
        full=full or None,
        scheduler=scheduler,
    )
    with interruptible() as should_stop, progress() as draw:
        report = audit(
            comparison.datasets,
            settings,
            windows=comparison.windows,
            should_stop=should_stop,
            on_progress=draw,
        )
        judged = [judge(comparison.datasets, config, set_, should_stop)] if scores else []
    drifts = comparison.drifts(report)
    if html is not None:
        from avtd3.store.render.page import write_page

        more = [page_section(found) for found in judged]
        write_page(report, html, drifts=drifts, compared=comparison.names, more=more)
        say(f"wrote {html}")
    moved, moved_text = _quarantine(report, wanted=quarantine, dry_run=dry_run)
    told = [found.summary() for found in judged]
    text = "\n".join([render(report), *told, *comparison.text(drifts), *moved_text])
    document = report.document() | {
        "quarantined": moved,
        "drift": [drift.document() for drift in drifts],
        "scores": next((found.document() for found in judged), None),
    }
    answer(document, as_json, text)
    if report.verdict != "ok":
        raise typer.Exit(EXIT_NO)


def _quarantine(
    report: "AuditReport", *, wanted: bool, dry_run: bool
) -> tuple[list[str], list[str]]:
    """Move damaged segments, or say which: their names, and lines for people."""
    if dry_run and not wanted:
        raise ConfigError("--dry-run belongs to --quarantine: the audit itself changes nothing")
    if dry_run:
        return [], [f"would move to quarantine: {name}" for _, name in report.damaged]
    from avtd3.store.audit.audit import quarantine_damaged

    moved = list(quarantine_damaged(report)) if wanted else []
    return moved, [f"moved to quarantine: {name}" for name in moved]
