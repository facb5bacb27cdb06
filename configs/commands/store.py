"""`avtd3 store`: the commands that change what a dataset holds; the audit only reads.

Exit codes are those of all commands; 1 says that something was left undone: a limit that pins
forbid to keep, a segment that cannot be read, an interruption.
"""

from pathlib import Path
from typing import Annotated

import typer

from avtd3.configs.commands.console import interruptible, progress
from avtd3.configs.commands.options import EXIT_NO, FilterOption, JsonOption, answer
from avtd3.configs.units import parse_bytes, parse_seconds, parse_weights

app = typer.Typer(
    help="Prune, compact, relabel and pin: what changes a dataset.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DatasetArgument = Annotated[Path, typer.Argument(help="The dataset.")]
SegmentsArgument = Annotated[list[str] | None, typer.Argument(help="Names of segments.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")
]


@app.command()
def prune(
    dataset: DatasetArgument,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Remove the oldest beyond this, as 10GB.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Remove the oldest beyond so many steps.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only segments older than this, as 30d.")
    ] = None,
    filter_: FilterOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove segments: the oldest, those of an age, or those all of whose episodes match."""
    from avtd3.store.filters import parse_filter
    from avtd3.store.maintenance.prune import PruneConfig
    from avtd3.store.maintenance.prune import prune as run

    config = PruneConfig(
        max_bytes=None if max_bytes is None else parse_bytes(max_bytes),
        max_steps=max_steps,
        older_than_s=None if older_than is None else parse_seconds(older_than),
        episodes=parse_filter(filter_) if filter_ else None,
    )
    with interruptible() as should_stop, progress() as draw:
        report = run(dataset, config, dry_run=dry_run, should_stop=should_stop, on_progress=draw)
    answer(report.document(), as_json, report.summary())
    if report.stopped or report.problems or not report.within_limits:
        raise typer.Exit(EXIT_NO)


@app.command()
def compact(
    dataset: DatasetArgument,
    target_steps: Annotated[
        int, typer.Option(help="Most steps of a merged segment; half of it is small.")
    ] = 16_384,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge small neighbouring segments; every episode stays the same, byte for byte."""
    from avtd3.store.maintenance.compact import compact as run

    with interruptible() as should_stop, progress() as draw:
        report = run(
            dataset,
            target_steps=target_steps,
            dry_run=dry_run,
            should_stop=should_stop,
            on_progress=draw,
        )
    answer(report.document(), as_json, report.summary())
    if report.stopped or report.problems:
        raise typer.Exit(EXIT_NO)


@app.command()
def relabel(
    dataset: DatasetArgument,
    new: Annotated[Path, typer.Argument(help="The dataset to make; run again, it goes on.")],
    weights: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=NUMBER,...",
            help="Factors of stored reward terms, or a YAML file of them; others keep 1.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a dataset of the same episodes under other rewards; frames are shared, not copied."""
    from avtd3.store.maintenance.relabel import relabel as run

    factors = parse_weights(weights)
    with interruptible() as should_stop, progress() as draw:
        report = run(dataset, new, factors, should_stop=should_stop, on_progress=draw)
    answer(report.document(), as_json, report.summary())
    if report.stopped or report.problems:
        raise typer.Exit(EXIT_NO)


@app.command()
def pin(
    dataset: DatasetArgument,
    segments: SegmentsArgument = None,
    filter_: FilterOption = None,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Keep segments as they are: neither pruned nor merged. A filter pins all that hold a match."""
    from avtd3.store.filters import parse_filter
    from avtd3.store.maintenance.pins import pin as run

    episodes = parse_filter(filter_) if filter_ else None
    report = run(dataset, segments or (), episodes=episodes, note=note)
    answer(report.document(), as_json, report.summary())


@app.command()
def unpin(
    dataset: DatasetArgument,
    segments: SegmentsArgument = None,
    filter_: FilterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take pins off."""
    from avtd3.store.filters import parse_filter
    from avtd3.store.maintenance.pins import unpin as run

    episodes = parse_filter(filter_) if filter_ else None
    report = run(dataset, segments or (), episodes=episodes)
    answer(report.document(), as_json, report.summary())


@app.command()
def pins(dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """List the pinned segments."""
    from avtd3.store.maintenance.pins import list_pins

    report = list_pins(dataset)
    answer(report.document(), as_json, report.summary())
