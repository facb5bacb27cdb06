"""`avtd3 gate` and `avtd3 compare`, and the YAML files that they read."""

import enum
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avtd3.configs.commands.console import EXIT_NO, say
from avtd3.configs.commands.options import JsonOption, answer, check_destinations
from avtd3.store.errors import ConfigError

if TYPE_CHECKING:
    from avtd3.learn.analysis.criteria import GateConfig
    from avtd3.learn.analysis.metric_names import DirectionBook, Directions, NameBook, NameSet


_EXPECTED_FILE = "give a YAML file; see docs/gates.md"
_DEFAULT_NAMES = "avtd3"
"""Set of names for runs whose tags match no set."""


def stages() -> list[str]:
    """Return the stages whose criteria ship with avtd3, shortest first."""
    folder = resources.files("avtd3.configs") / "gates"
    return sorted((p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")), key=_length)


def load_gate(stage: str | None, criteria: Path | None) -> "GateConfig":
    """Load the criteria of a stage, or of a file.

    Args:
        stage: One of `stages`, or None; with a file, the name that the report gives the stage.
        criteria: A YAML file with criteria, or None.

    Raises:
        ConfigError: If there is no such stage or file, or the file is invalid.
    """
    from avtd3.configs.load import parse_mapping, read_text
    from avtd3.learn.analysis.criteria import GateConfig

    if criteria is not None:
        source, text = str(criteria), read_text(criteria, otherwise=_EXPECTED_FILE)
    elif stage in stages():
        source = f"{stage}.yaml"
        text = (resources.files("avtd3.configs") / "gates" / source).read_text("utf-8")
    else:
        known = ", ".join(stages())
        found = "no --stage" if stage is None else f"--stage {stage!r}"
        raise ConfigError(f"found {found}, expected one of {known}, or --criteria with a file")
    document = parse_mapping(text, source, of="a gate's settings: stage, steps, criteria")
    if stage is not None:
        document["stage"] = stage
    document.setdefault("stage", Path(source).stem)
    config: GateConfig = _build(GateConfig, document, source, path="gate")
    return config


def load_names(chosen: str | None = None, mapped: Sequence[str] = ()) -> "NameBook":
    """Load the sets of names that ship with avtd3, and apply the command line's choices.

    Args:
        chosen: Name of a set, or a file with one; None chooses by the run's tags.
        mapped: Texts of the form ``METRIC=TAG``.

    Raises:
        ConfigError: If there is no such set, it is invalid, or a text has another form.
    """
    from avtd3.configs.load import read_text
    from avtd3.learn.analysis.metric_names import NameBook

    folder = resources.files("avtd3.configs") / "gates" / "names"
    sets = {}
    for file in sorted(
        folder.iterdir(), key=lambda p: (p.name != f"{_DEFAULT_NAMES}.yaml", p.name)
    ):
        if file.name.endswith(".yaml"):
            found = _name_set(file.read_text("utf-8"), file.name)
            sets[found.name] = found
    picked = None
    if chosen is not None and chosen in sets:
        picked = sets[chosen]
    elif chosen is not None:
        path = Path(chosen)
        if not path.is_file():
            raise ConfigError(
                f"--names is {chosen!r}, expected a file or one of {', '.join(sets)}; without "
                "--names, the set is chosen by the run's tags"
            )
        picked = _name_set(read_text(path, otherwise=_EXPECTED_FILE), chosen)
    return NameBook(sets=tuple(sets.values()), own=_parse_mapped(mapped), chosen=picked)


def load_directions(file: Path | None = None) -> "DirectionBook":
    """Load the table of which metrics are better when they are low, and which when high.

    Args:
        file: A table that takes precedence over the built-in ones, or None.

    Raises:
        ConfigError: If there is no such file, or it is invalid.
    """
    from avtd3.configs.load import read_text
    from avtd3.learn.analysis.metric_names import DirectionBook

    shipped = resources.files("avtd3.configs") / "compare" / "directions.yaml"
    others = _directions(shipped.read_text("utf-8"), shipped.name)
    if file is None:
        return DirectionBook(others=others)
    own = _directions(read_text(file, otherwise=_EXPECTED_FILE), str(file))
    return DirectionBook(own=own, others=others)


def _directions(text: str, source: str) -> "Directions":
    from avtd3.configs.load import parse_mapping
    from avtd3.learn.analysis.metric_names import Directions

    document = parse_mapping(text, source, of="directions: lower, higher, neither")
    found: Directions = _build(Directions, document, source, path="directions")
    return found


def _build(kind: type, document: Mapping[str, object], source: str, *, path: str) -> Any:  # noqa: ANN401
    """Build a dataclass; name the file in error messages."""
    from avtd3.configs.load import build

    try:
        return build(kind, document, path=path)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _name_set(text: str, source: str) -> "NameSet":
    from avtd3.configs.load import parse_mapping
    from avtd3.learn.analysis.metric_names import NameSet

    document = parse_mapping(text, source, of="names: name, about, axis, marks, tags")
    names: NameSet = _build(NameSet, document, source, path="names")
    return names


def _parse_mapped(texts: Sequence[str]) -> Mapping[str, str]:
    """Parse texts of the form ``METRIC=TAG``."""
    own: dict[str, str] = {}
    for text in texts:
        metric, found, tag = text.partition("=")
        if not found or not metric or not tag:
            raise ConfigError(
                f"found --map {text!r}, expected METRIC=TAG, such as critic/loss=train/critic_loss"
            )
        own[metric] = tag
    return own


def _length(stage: str) -> tuple[float, str]:
    """Return a sort key that puts 5k before 50k before 1m."""
    units = {"k": 1e3, "m": 1e6}
    number, unit = stage[:-1], stage[-1:]
    return (float(number) * units[unit] if number.isdecimal() and unit in units else 0.0, stage)


RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Run directory, any directory with TensorBoard files, or one file."
    ),
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="METRIC=TAG", help="Read METRIC from TAG of this run. Repeatable."
    ),
]
NamesOption = Annotated[
    str | None,
    typer.Option(
        "--names",
        metavar="NAME|FILE",
        help="Program that wrote the run: avtd3, sb3, cleanrl, or a YAML file of names. "
        "Default: chosen by the run's tags.",
    ),
]
MarkdownOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the report as Markdown.")
]
HtmlOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML page with plots.")
]


def gate(
    run: RunArgument,
    stage: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Built-in criteria: smoke, 5k, 50k, 100k, 200k or 1m."),
    ] = None,
    criteria: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of your own criteria; see docs/gates.md."),
    ] = None,
    optional: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Metrics that the run may lack, such as '*_cnn/*'. Repeatable."
        ),
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
    answer(report.document(), as_json, report.summary())
    if report.verdict != "GO":
        raise typer.Exit(EXIT_NO)


class Align(enum.StrEnum):
    """Last step that `avtd3 compare` uses of each run."""

    COMMON = "common"
    END = "end"


class FailOn(enum.StrEnum):
    """Result that makes `avtd3 compare` exit with 1."""

    WORSE = "worse"
    LOST = "lost"


def compare(
    baseline: Annotated[
        Path, typer.Argument(metavar="BASELINE", help="Run to compare with; as in avtd3 gate.")
    ],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="Run to check.")],
    align: Annotated[
        Align,
        typer.Option(help="Compare up to the last common step, or each run up to its end."),
    ] = Align.COMMON,
    window: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Compare this last share of the steps, in (0, 1]."),
    ] = 0.2,
    margin: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Ignore changes up to this share of the baseline."),
    ] = 0.05,
    confidence: Annotated[
        float, typer.Option(metavar="P", help="Confidence level of the intervals, in (0, 1).")
    ] = 0.99,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Compare only these metrics, such as 'critic/*'. Repeatable."
        ),
    ] = None,
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option(
            help="Exit with 1 if a metric is worse, or if the candidate lost one. Repeatable."
        ),
    ] = None,
    directions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file of metrics that are better when low or when high."
        ),
    ] = None,
    names: NamesOption = None,
    baseline_names: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="--names of the baseline.")
    ] = None,
    map_: MapOption = None,
    baseline_map: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=TAG", help="--map of the baseline. Repeatable."),
    ] = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare all metrics that two runs share."""
    from avtd3.learn.analysis.compare import CompareConfig
    from avtd3.learn.analysis.compare import compare as run_compare
    from avtd3.learn.analysis.pages import compare_page

    check_destinations(markdown, html)
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
    """Write a text to a file, unless the path is None."""
    from avtd3.store.files import write_aside

    if path is not None:
        write_aside(path, text().encode())
        say(f"wrote {path}")
