"""`avtd3 gate` and `avtd3 compare`: their options, and which functions they call."""

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from avtd3.configs.command_line import EXIT_NO, JsonOption, answer
from avtd3.configs.console import say

RunArgument = Annotated[
    Path, typer.Argument(help="A run's directory, any directory with event files, or one file.")
]
MapOption = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="METRIC=TAG", help="A metric's tag in this run; repeatable."),
]
NamesOption = Annotated[
    str | None,
    typer.Option(
        "--names",
        metavar="NAME|FILE",
        help="Whose tags they are: avtd3, sb3, cleanrl or a YAML file; default: by the tags.",
    ),
]
MarkdownOption = Annotated[Path | None, typer.Option(help="Write it as Markdown.")]
HtmlOption = Annotated[Path | None, typer.Option(help="Write it as one HTML page with plots.")]


def gate(
    run: RunArgument,
    stage: Annotated[
        str | None, typer.Option(help="Criteria of avtd3: smoke, 5k, 50k, 100k, 200k or 1m.")
    ] = None,
    criteria: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own criteria, as YAML.")
    ] = None,
    optional: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Metrics the run may lack, as '*_cnn/*'; repeatable."),
    ] = None,
    names: NamesOption = None,
    map_: MapOption = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a run's metrics against a stage's criteria: GO or NO-GO."""
    from avtd3.configs.gate_files import load_gate, load_names
    from avtd3.learn.analysis.gate import gate as run_gate
    from avtd3.learn.analysis.gate_page import gate_page

    config = load_gate(stage, criteria)
    report = run_gate(run, config, load_names(names, map_ or ()), optional=optional or ())
    _write(markdown, report.markdown)
    _write(html, lambda: gate_page(report))
    answer(report.document(), as_json, report.summary())
    if report.verdict != "GO":
        raise typer.Exit(EXIT_NO)


class Align(enum.StrEnum):
    """Up to where `avtd3 compare` looks."""

    COMMON = "common"
    END = "end"


class FailOn(enum.StrEnum):
    """What makes `avtd3 compare` answer no."""

    WORSE = "worse"
    LOST = "lost"


def compare(
    baseline: Annotated[Path, typer.Argument(help="The run before: see avtd3 gate.")],
    candidate: Annotated[Path, typer.Argument(help="The run after.")],
    align: Annotated[
        Align, typer.Option(help="Up to the last common step, or each up to its own end.")
    ] = Align.COMMON,
    window: Annotated[float, typer.Option(help="Share of the steps, at the end.")] = 0.2,
    margin: Annotated[float, typer.Option(help="Change that does not matter, as a share.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="Of the interval of a change.")] = 0.99,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only these metrics, as 'critic/*'; repeatable."),
    ] = None,
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option(help="Exit code 1 if a metric is worse, or if one was lost; repeatable."),
    ] = None,
    directions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Which metrics should be low, which high.")
    ] = None,
    names: NamesOption = None,
    baseline_names: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The same of the baseline.")
    ] = None,
    map_: MapOption = None,
    baseline_map: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=TAG", help="The same of the baseline.")
    ] = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a run's metrics against those of the run before it."""
    from avtd3.configs.gate_files import load_directions, load_names
    from avtd3.learn.analysis.compare import CompareConfig
    from avtd3.learn.analysis.compare import compare as run_compare
    from avtd3.learn.analysis.compare_page import compare_page

    config = CompareConfig(
        align=align.value,
        window=window,
        margin=margin,
        confidence=confidence,
        metrics=tuple(metric or ()),
    )
    books = load_names(baseline_names, baseline_map or ()), load_names(names, map_ or ())
    report = run_compare(baseline, candidate, config, books, load_directions(directions))
    _write(markdown, report.markdown)
    _write(html, lambda: compare_page(report))
    answer(report.document(), as_json, report.summary())
    if FailOn.WORSE in (fail_on or ()) and report.counts["worse"]:
        raise typer.Exit(EXIT_NO)
    if FailOn.LOST in (fail_on or ()) and report.only_baseline:
        raise typer.Exit(EXIT_NO)


def _write(path: Path | None, text: Callable[[], str]) -> None:
    """Write a text to where it is wanted, if it is."""
    from avtd3.store.files import write_aside

    if path is not None:
        write_aside(path, text().encode())
        say(f"wrote {path}")
