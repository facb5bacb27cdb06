"""`avtd3 gate`, `avtd3 compare` and `avtd3 run-page`, and the YAML files that they read."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from avtd3.configs.commands.console import EXIT_NO, say
from avtd3.configs.commands.options import (
    JsonOption,
    answer,
    argument,
    check_destinations,
    complete_words,
    finish,
    option,
)
from avtd3.store.errors import ConfigError, abbreviate

if TYPE_CHECKING:
    from avtd3.learn.analysis.criteria import GateConfig
    from avtd3.learn.analysis.metric_names import DirectionBook, NameBook

STAGES = ("demo", "smoke", "5k", "50k", "100k", "200k", "1m")
"""Stages whose criteria ship with avtd3."""
_FILES = Path(__file__).parent.parent
_DEFAULT_NAMES = "avtd3.yaml"
"""Set of names for runs whose tags match no set."""


def load_gate(stage: str | None, criteria: Path | None) -> "GateConfig":
    """Load the criteria of one of `STAGES`, or of a file, which a stage then only names."""
    from avtd3.learn.analysis.criteria import GateConfig

    if criteria is None and stage not in STAGES:
        found = "no --stage" if stage is None else f"--stage {abbreviate(stage)}"
        raise ConfigError(
            f"found {found}, expected one of {', '.join(STAGES)}, or --criteria with a file"
        )
    file = _FILES / "gates" / f"{stage}.yaml" if criteria is None else criteria
    of = "a gate's settings: stage, steps, criteria"
    config: GateConfig = _load(
        GateConfig, file, {} if stage is None else {"stage": stage}, path="gate", of=of
    )
    return config if config.stage else dataclasses.replace(config, stage=file.stem)


def load_names(chosen: str | None = None, mapped: Sequence[str] = ()) -> "NameBook":
    """Load the sets of names that ship with avtd3, and apply the command line's choices.

    Args:
        chosen: Name of a set, or a file with one; None chooses by the run's tags.
        mapped: Texts of the form ``METRIC=TAG``.
    """
    from avtd3.learn.analysis.metric_names import NameBook, NameSet

    def load(file: Path) -> NameSet:
        of = "names: name, about, axis, marks, tags"
        names: NameSet = _load(NameSet, file, {}, path="names", of=of)
        return names

    files = (_FILES / "gates" / "names").glob("*.yaml")
    ordered = sorted(files, key=lambda p: (p.name != _DEFAULT_NAMES, p.name))
    sets = {found.name: found for found in map(load, ordered)}
    picked = None if chosen is None else sets.get(chosen)
    if chosen is not None and picked is None:
        if not Path(chosen).is_file():
            known = ", ".join(sets)
            raise ConfigError(
                f"--names is {abbreviate(chosen, 300)}, expected a file or one of {known}; "
                "without --names, the set is chosen by the run's tags"
            )
        picked = load(Path(chosen))
    return NameBook(sets=tuple(sets.values()), own=_parse_mapped(mapped), chosen=picked)


def load_directions(file: Path | None = None) -> "DirectionBook":
    """Load the tables of which metrics are better when low or high; that of a file comes first."""
    from avtd3.learn.analysis.metric_names import DirectionBook, Directions

    own, others = (
        _load(Directions, source, {}, path="directions", of="directions: lower, higher, neither")
        if source
        else Directions()
        for source in (file, _FILES / "compare" / "directions.yaml")
    )
    return DirectionBook(own=own, others=others)


def _load(kind: type, file: Path, given: dict[str, str], *, path: str, of: str) -> Any:  # noqa: ANN401
    """Build a dataclass from a YAML file and given keys; name the file in error messages."""
    from avtd3.configs.load import build, parse_mapping, read_text

    text = read_text(file, otherwise="give a YAML file; see docs/gates.md")
    document = parse_mapping(text, str(file), of=of) | given
    try:
        return build(kind, document, path=path)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _parse_mapped(texts: Sequence[str]) -> Mapping[str, str]:
    """Parse texts of the form ``METRIC=TAG``."""
    own: dict[str, str] = {}
    for text in texts:
        metric, found, tag = text.partition("=")
        if not found or not metric or not tag:
            raise ConfigError(
                f"found --map {abbreviate(text)}, expected METRIC=TAG, such as "
                "critic/loss=train/critic_loss"
            )
        own[metric] = tag
    return own


RunArgument = Annotated[
    Path, argument("RUN", "Run directory, any directory with TensorBoard files, or one file.")
]
MapOption = Annotated[
    list[str] | None, option("--map METRIC=TAG", "Read METRIC from TAG of this run. Repeatable.")
]
NamesOption = Annotated[
    str | None,
    option(
        "--names NAME|FILE",
        "Program that wrote the run: avtd3, sb3, cleanrl, or a YAML file of names. "
        "Default: chosen by the run's tags.",
    ),
]
MarkdownOption = Annotated[Path | None, option("FILE", "Write the report as Markdown.")]
HtmlOption = Annotated[Path | None, option("FILE", "Write the report as one HTML page with plots.")]


def gate(
    run: RunArgument,
    stage: Annotated[
        str | None,
        option(
            "STAGE",
            "Built-in criteria: demo, smoke, 5k, 50k, 100k, 200k or 1m.",
            autocompletion=complete_words(*STAGES),
        ),
    ] = None,
    criteria: Annotated[
        Path | None, option("FILE", "YAML file of your own criteria; see docs/gates.md.")
    ] = None,
    optional: Annotated[
        list[str] | None,
        option("PATTERN", "Metrics that the run may lack, such as '*_cnn/*'. Repeatable."),
    ] = None,
    names: NamesOption = None,
    map_: MapOption = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a run against the criteria of a stage.

    The answer is GO or NO-GO. Exits with 1 for NO-GO.
    """
    from avtd3.learn.analysis.gate import gate as run_gate
    from avtd3.learn.analysis.pages import gate_page

    check_destinations(markdown, html)
    config = load_gate(stage, criteria)
    report = run_gate(run, config, load_names(names, map_ or ()), optional=optional or ())
    _write(markdown, report.markdown)
    _write(html, lambda: gate_page(report))
    finish(report, as_json, is_no=report.verdict != "GO")


class FailOn(enum.StrEnum):
    """Result that makes `avtd3 compare` exit with 1."""

    WORSE = "worse"
    LOST = "lost"


def compare(
    baseline: Annotated[
        Path, argument("BASELINE", "Run to compare with; may be what avtd3 gate accepts.")
    ],
    candidate: Annotated[Path, argument("CANDIDATE", "Run to check.")],
    align: Annotated[
        Literal["common", "end"],
        typer.Option(help="Compare up to the last common step, or each run up to its end."),
    ] = "common",
    window: Annotated[
        float, option("SHARE", "Compare this last share of the steps, in (0, 1].")
    ] = 0.2,
    margin: Annotated[
        float, option("SHARE", "Ignore changes up to this share of the baseline.")
    ] = 0.05,
    confidence: Annotated[
        float, option("P", "Confidence level of the intervals, in (0.5, 1).")
    ] = 0.99,
    metric: Annotated[
        list[str] | None,
        option("PATTERN", "Compare only these metrics, such as 'critic/*'. Repeatable."),
    ] = None,
    fail_on: Annotated[
        list[FailOn] | None,
        option(
            "worse|lost",
            "Exit with 1 if a metric is worse, or if the candidate lost one. Repeatable.",
        ),
    ] = None,
    directions: Annotated[
        Path | None, option("FILE", "YAML file of metrics that are better when low or when high.")
    ] = None,
    names: NamesOption = None,
    baseline_names: Annotated[str | None, option("NAME|FILE", "--names of the baseline.")] = None,
    map_: MapOption = None,
    baseline_map: Annotated[
        list[str] | None, option("METRIC=TAG", "--map of the baseline. Repeatable.")
    ] = None,
    everything: Annotated[
        bool, option("--all", "Also list the metrics without a clear change.")
    ] = False,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs, and list what changed."""
    from avtd3.learn.analysis.compare import CompareConfig
    from avtd3.learn.analysis.compare import compare as run_compare
    from avtd3.learn.analysis.pages import compare_page

    check_destinations(markdown, html)
    config = CompareConfig(
        align=align,
        window=window,
        margin=margin,
        confidence=confidence,
        metrics=tuple(metric or ()),
    )
    books = load_names(baseline_names, baseline_map or ()), load_names(names, map_ or ())
    report = run_compare(baseline, candidate, config, books, load_directions(directions))
    _write(markdown, report.markdown)
    _write(html, lambda: compare_page(report))
    answer(report.document(), as_json, report.summary(everything=everything))
    failures = {"worse": report.counts["worse"], "lost": report.only_baseline}
    if any(failures[kind] for kind in fail_on or ()):
        raise typer.Exit(EXIT_NO)


def run_page(
    run: Annotated[Path, argument("RUN", "Directory of a run of avtd3 learn.")],
    data: Annotated[
        list[Path] | None,
        option(
            "DATASET",
            "Where a dataset of the run is now. Repeatable. Default: where the run read it.",
        ),
    ] = None,
    out: Annotated[Path | None, option("FILE", "File to write. Default: RUN/run.html.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the page of a run again.

    It shows curves with alerts, what the policy looks at, and what it would do. avtd3 learn writes
    it at the end, and at checkpoints. See docs/run-page.md.
    """
    from avtd3.learn.analysis.run_page import write_run_page

    check_destinations(out)
    path = write_run_page(run, out, data)
    answer({"run": str(run), "page": str(path)}, as_json, f"wrote {path}")


def _write(path: Path | None, text: Callable[[], str]) -> None:
    """Write a text to a file, unless the path is None."""
    from avtd3.store.files import write_aside

    if path is not None:
        write_aside(path, text().encode())
        say(f"wrote {path}")
