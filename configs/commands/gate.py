"""`avtd3 gate` and `avtd3 compare`: their options, and the criteria and name files they read."""

import enum
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avtd3.configs.commands.console import say
from avtd3.configs.commands.options import EXIT_NO, JsonOption, answer
from avtd3.store.errors import ConfigError

if TYPE_CHECKING:
    from avtd3.learn.analysis.criteria import GateConfig
    from avtd3.learn.analysis.metric_names import DirectionBook, Directions, NameBook, NameSet


_OWN_FILE = "give a YAML file, see docs/gates.md"
_FIRST = "avtd3"
"""The set of names that reads a run which none knows."""


def stages() -> list[str]:
    """Stages whose criteria ship with avtd3, the shortest first."""
    folder = resources.files("avtd3.configs") / "gates"
    return sorted((p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")), key=_length)


def load_gate(stage: str | None, criteria: Path | None) -> "GateConfig":
    """The criteria of a stage, or of a file.

    Raises:
        ConfigError: There is no such stage or file, or something in it is unknown or impossible.
    """
    from avtd3.configs.load import parse_mapping, read_text
    from avtd3.learn.analysis.criteria import GateConfig

    if criteria is not None:
        source, text = str(criteria), read_text(criteria, otherwise=_OWN_FILE)
    elif stage in stages():
        source = f"{stage}.yaml"
        text = (resources.files("avtd3.configs") / "gates" / source).read_text("utf-8")
    else:
        known = ", ".join(stages())
        found = "no --stage" if stage is None else f"--stage {stage!r}"
        raise ConfigError(f"found {found}, expected one of {known}, or a file by --criteria")
    document = parse_mapping(text, source, of="a gate's settings: stage, steps, criteria")
    if stage is not None:
        document["stage"] = stage
    document.setdefault("stage", Path(source).stem)
    config: GateConfig = _build(GateConfig, document, source, path="gate")
    return config


def load_names(chosen: str | None = None, mapped: Sequence[str] = ()) -> "NameBook":
    """The sets of names that ship with avtd3, with what the command line says of them.

    Args:
        chosen: A set's name or a file with one; None picks by the run's tags.
        mapped: ``METRIC=TAG`` each.

    Raises:
        ConfigError: There is no such set, something in it is unknown, or a text is no mapping.
    """
    from avtd3.configs.load import read_text
    from avtd3.learn.analysis.metric_names import NameBook

    folder = resources.files("avtd3.configs") / "gates" / "names"
    sets = {}
    for file in sorted(folder.iterdir(), key=lambda p: (p.name != f"{_FIRST}.yaml", p.name)):
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
                f"--names {chosen!r} is neither a file nor one of {', '.join(sets)}; leave it out "
                "to pick by the run's tags"
            )
        picked = _name_set(read_text(path, otherwise=_OWN_FILE), chosen)
    return NameBook(sets=tuple(sets.values()), own=_parse_mapped(mapped), chosen=picked)


def load_directions(file: Path | None = None) -> "DirectionBook":
    """Which metrics should be low and which high.

    Args:
        file: A person's own table, asked before all others.

    Raises:
        ConfigError: There is no such file, or something in it is unknown.
    """
    from avtd3.configs.load import read_text
    from avtd3.learn.analysis.metric_names import DirectionBook

    shipped = resources.files("avtd3.configs") / "compare" / "directions.yaml"
    others = _directions(shipped.read_text("utf-8"), shipped.name)
    if file is None:
        return DirectionBook(others=others)
    own = _directions(read_text(file, otherwise=_OWN_FILE), str(file))
    return DirectionBook(own=own, others=others)


def _directions(text: str, source: str) -> "Directions":
    from avtd3.configs.load import parse_mapping
    from avtd3.learn.analysis.metric_names import Directions

    document = parse_mapping(text, source, of="directions: lower, higher, neither")
    found: Directions = _build(Directions, document, source, path="directions")
    return found


def _build(kind: type, document: Mapping[str, object], source: str, *, path: str) -> Any:  # noqa: ANN401
    """Build a dataclass; what is wrong is said with the file's name."""
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
    own: dict[str, str] = {}
    for text in texts:
        metric, found, tag = text.partition("=")
        if not found or not metric or not tag:
            raise ConfigError(
                f"--map {text!r} must look like METRIC=TAG, as critic/loss=train/critic_loss"
            )
        own[metric] = tag
    return own


def _length(stage: str) -> tuple[float, str]:
    """Orders 5k before 50k before 1m."""
    units = {"k": 1e3, "m": 1e6}
    number, unit = stage[:-1], stage[-1:]
    return (float(number) * units[unit] if number.isdecimal() and unit in units else 0.0, stage)


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
    from avtd3.learn.analysis.gate import gate as run_gate
    from avtd3.learn.analysis.pages import gate_page

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
    from avtd3.learn.analysis.compare import CompareConfig
    from avtd3.learn.analysis.compare import compare as run_compare
    from avtd3.learn.analysis.pages import compare_page

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
