"""Options, settings, answers and exit codes that the commands share."""

import dataclasses
import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from avtd3.configs.commands.console import (
    EXIT_ENVIRONMENT,
    EXIT_NO,
    is_verbose,
    print_answer,
    say,
    set_verbosity,
)
from avtd3.store.errors import ConfigError, WorldError, abbreviate

if TYPE_CHECKING:
    from avtd3.store.maintenance.derive import Factor

SCENARIOS = (
    "mixed roads, fair weather, 20 vehicles",
    "empty country roads",
    "town with junctions",
    "bad light: dusk, night, fog or rain",
    "dense traffic",
    "everything at random",
    "varied roads as on real maps, fair weather",
)
"""Names of the built-in scenarios, for --help, which does not import the modules that drive."""


def describe_presets() -> dict[str, str]:
    """Return the presets with a sentence each, the first line of each file."""
    found = {}
    for path in sorted(Path(__file__).parents[1].glob("*.yaml")):
        with path.open(encoding="utf-8") as file:
            found[path.stem] = file.readline().lstrip("# ").strip()
    return found


def presets_epilog() -> str:
    """Return the presets as the last paragraph of a help text."""
    return "\n".join(("\b", "Presets, for --config:", *describe_lines(describe_presets(), 76)))


def describe_lines(texts: Mapping[str, str], width: int) -> list[str]:
    """Return lines of names with a text beside each."""
    return [
        line
        for name, text in texts.items()
        for line in textwrap.wrap(
            text, width, initial_indent=f"  {name:20}", subsequent_indent=" " * 22
        )
    ]


def _print_version(is_wanted: bool) -> None:
    """Print the versions of avtd3 and of what its results depend on, and end."""
    if is_wanted:
        print_answer(versions())
        raise typer.Exit


def versions() -> str:
    """Return the versions of avtd3, Python and the packages that its results depend on."""
    found = [f"avtd3 {importlib.metadata.version('avtd3')}", f"Python {platform.python_version()}"]
    for package in ("torch", "numpy", "zarr", "carla", "gymnasium"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join((*found, f"{platform.system()} {platform.machine()}"))


def group(text: str) -> typer.Typer:
    """Create a command that consists of others, with its help."""
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)


def option(form: str, text: str, **more: Any) -> Any:  # noqa: ANN401 - Typer's
    """Declare an option by its form, such as ``--map METRIC=TAG`` or ``--strict``, and its help.

    Without a flag in the form, the flag is the parameter's name.
    """
    flags = [word for word in form.split() if word.startswith("-")]
    metavar = "".join(form.split()[len(flags) :]) or None
    return typer.Option(*flags, metavar=metavar, help=text, **more)


def argument(metavar: str, text: str, **more: Any) -> Any:  # noqa: ANN401 - Typer's
    """Declare an argument by its name and its help."""
    return typer.Argument(metavar=metavar, help=text, **more)


VersionOption = Annotated[
    bool,
    option(
        "--version",
        "Print the versions of avtd3 and of the packages that it uses.",
        callback=_print_version,
        is_eager=True,
    ),
]


def _set_quiet(is_wanted: bool) -> None:
    if is_wanted:
        set_verbosity(-1)


def _set_verbose(is_wanted: bool) -> None:
    if is_wanted:
        set_verbosity(1)
        say(versions())


def shared_options() -> list[Any]:
    """Return the options that every command has, as Typer makes them for a command."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def command(
        verbose: Annotated[
            bool,
            typer.Option(
                *("--verbose", "-v"),
                help="Also print versions, settings that are not defaults, and tracebacks.",
                callback=_set_verbose,
                expose_value=False,
            ),
        ] = False,
        quiet: Annotated[
            bool,
            typer.Option(
                *("--quiet", "-q"),
                help="Print only the answer and errors.",
                callback=_set_quiet,
                expose_value=False,
            ),
        ] = False,
    ) -> None:
        pass

    return [found for found in typer.main.get_command(app).params if not found.expose_value]


def complete_presets(incomplete: str) -> list[tuple[str, str]]:
    """Return the presets that start with what a user has typed, with a sentence each."""
    return [pair for pair in describe_presets().items() if pair[0].startswith(incomplete)]


def complete_sections(incomplete: str) -> list[str]:
    """Return the sections that start with what a user has typed."""
    from avtd3.configs.load import SECTIONS

    return [name for name in SECTIONS if name.startswith(incomplete)]


def complete_words(*words: str) -> Callable[[str], list[str]]:
    """Make a function that returns those of some words that start with what a user has typed."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    option(
        "--config FILE",
        "YAML file, or the name of a preset; see avtd3 config list.",
        autocompletion=complete_presets,
    ),
]
SetOption = Annotated[
    list[str] | None,
    option("--set KEY=VALUE", "Set one key, such as learn.td3.tau=0.01. Repeatable."),
]
FilterOption = Annotated[
    list[str] | None,
    option(
        "--filter KEY=VALUE",
        "Select episodes by scenario, world, town, driver, end, policy or date, such as "
        "end=goal,timeout or policy=3..7. Repeatable; all filters must match.",
    ),
]
JsonOption = Annotated[bool, option("--json", "Print one JSON document to standard output.")]
WorldOption = Annotated[
    str | None,
    option(
        "--world WORLD",
        "road (built-in simulator), carla, gym:ID (Gymnasium), or MODULE:FACTORY (your own "
        "world, also from the current directory; see docs/worlds.md). Default: road.",
        autocompletion=complete_words("road", "carla", "gym:"),
    ),
]
SchedulerOption = Annotated[
    str | None,
    option(
        "ADDRESS",
        "Scheduler of a Dask cluster whose workers drive, such as tcp://host:8786. Default: "
        "this machine.",
    ),
]
WorkersOption = Annotated[
    int | None, option("N", "Worker processes. Default: 1, or one per port with CARLA.", min=1)
]
SeedOption = Annotated[int | None, option("N", "Random seed. Default: 0.", min=0)]
ScenarioOption = Annotated[
    int | None,
    option(
        "N",
        "Built-in scenario: "
        + "; ".join(f"{number} {name}" for number, name in enumerate(SCENARIOS))
        + ". Default: 0.",
        min=0,
    ),
]
ScenarioFileOption = Annotated[
    str | None, option("FILE", "Drive these routes in turn: YAML, or CARLA leaderboard XML.")
]
NpcsOption = Annotated[
    int | None, option("N", "Number of other vehicles. Default: as in the scenario.", min=0)
]
WalkersOption = Annotated[
    int | None, option("N", "Number of pedestrians, in CARLA. Default: 0.", min=0)
]
TownOption = Annotated[
    str | None,
    option(
        "TOWN", "OpenDRIVE file (.xodr), or a CARLA map such as Town01. Default: generated roads."
    ),
]
HostOption = Annotated[
    str | None, option("HOST", "Host name or address of the CARLA servers. Default: localhost.")
]
PortsOption = Annotated[
    str | None,
    option("PORT[,PORT...]", "Ports of the CARLA servers; each gets one worker. Default: 2000."),
]
ServerCommandOption = Annotated[
    str | None,
    option("COMMAND", "Start the CARLA servers with this command; {port} becomes the port."),
]


def section(
    name: str,
    config: str | None,
    overrides: Sequence[str] | None,
    *others: str,
    stored: Mapping[str, Any] | None = None,
) -> Any:  # noqa: ANN401 - any section
    """Load the settings of a command.

    ``others`` names more sections that the command uses; ``stored`` has settings of the section
    that the file and the overrides change.
    """
    from avtd3.configs.load import find_origins, load_section

    used = tuple(dict.fromkeys((name, *others)))
    if is_verbose():
        for key, where in find_origins(config, overrides or ()).items():
            if key.partition(".")[0] in used:
                say(f"{key} is set by {where}")
    return load_section(name, config, overrides or (), used=used, stored=stored)


def replace(settings: Any, **changes: object) -> Any:  # noqa: ANN401 - any section
    """Return the settings with the options of the command line; None means not given."""
    given = {key: value for key, value in changes.items() if value is not None}
    for key, value in given.items():
        if isinstance(value, int) and abs(value) >= 2**63:
            option = "scenario" if key == "number" else key.replace("_", "-")
            raise ConfigError(f"--{option} is {abbreviate(value)}, expected less than 2^63")
    return dataclasses.replace(settings, **given)


def check_destinations(*paths: Path | None) -> None:
    """Check before the work that files can be written at its end; make missing directories."""
    from avtd3.store.files import check_local, storage_errors

    for path in filter(None, paths):
        check_local(path)
        if path.is_dir():
            raise ConfigError(f"{path} is a directory; give the path of a file")
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def at_servers(
    settings: Any,  # noqa: ANN401 - a section of a collection or an evaluation
    host: str | None,
    ports: str | None,
    command: str | None,
    walkers: int | None = None,
) -> Any:  # noqa: ANN401
    """Return the settings with the options that name CARLA servers; None means not given."""
    if settings.world != "carla" and {host, ports, command, walkers} != {None}:
        raise ConfigError(
            "--host, --port, --server-command and --walkers need the world carla, found "
            f"{settings.world!r}; add --world carla"
        )
    carla = replace(
        settings.carla, host=host, ports=parse_ports(ports), server_command=command, walkers=walkers
    )
    return replace(settings, carla=carla)


def answer(document: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print a command's answer on standard output, as JSON or as text."""
    if as_json:
        # DEL is the only control character that json leaves.
        text = json.dumps(document, indent=2, allow_nan=False).replace("\x7f", "\\u007f")
    print_answer(text)


class Report(Protocol):
    """The result of a command."""

    def document(self) -> Mapping[str, Any]:
        """Return the report as JSON values."""
        ...

    def summary(self) -> str:
        """Format the report for a terminal."""
        ...


def finish(
    report: Report, as_json: bool, *, is_no: object = False, has_failed: object = False
) -> None:
    """Print the answer of a command, and end it with exit code 3 or 1 if that is true."""
    answer(report.document(), as_json, report.summary())
    if has_failed:
        raise typer.Exit(EXIT_ENVIRONMENT)
    if is_no:
        raise typer.Exit(EXIT_NO)


def check_simulators(failure: str) -> None:
    """Raise `WorldError`, for exit code 3, if there is a text about what failed."""
    if failure:
        raise WorldError(failure)


_BYTES = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**n for n, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**n for n, prefix in enumerate("kmgt", start=1)},
}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """Parse ``10GB`` (powers of 1000), ``10GiB`` (of 1024) or ``10000`` into bytes, in any case."""
    return round(_parse_amount(text, _BYTES, "an amount of bytes, such as 10GB, 500MB or 2GiB"))


def parse_seconds(text: str) -> float:
    """Parse ``45s``, ``90m``, ``12h``, ``30d`` or ``2w`` into seconds."""
    return _parse_amount(text, _SECONDS, "a time, such as 30d, 12h, 90m or 45s")


def _parse_amount(text: str, units: Mapping[str, float], expected: str) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"found {abbreviate(text)}, expected {expected}")
    amount = float(match[1]) * factor
    if not math.isfinite(amount):
        raise ConfigError(f"{abbreviate(text)} is too large; expected {expected}")
    return amount


def parse_share(text: str) -> float:
    """Parse a share above 0 and at most 1, as ``5%`` or ``0.05``."""
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"--sample is {abbreviate(text)}, expected a share above 0 and at most 1, such as 5% "
            "or 0.05"
        )
    return share


def parse_ports(text: str | None) -> tuple[int, ...] | None:
    """Parse ``2000,2010``; return None for None."""
    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--port is {abbreviate(text)}, expected numbers, such as 2000,2010"
        ) from None


def parse_weights(texts: Sequence[str]) -> "tuple[dict[str, float], tuple[Factor, ...]]":
    """Parse weights and factors from ``name=1.0,other=0.5``, YAML files and names of presets.

    Later weights replace earlier ones. Only files have factors.
    """
    weights: dict[str, float] = {}
    factors: list[Factor] = []
    for text in texts:
        if "=" not in text:
            for name, value in _read_weights(text).items():
                weights[name] = _parse_weight(name, value)
                factors += _parse_factors(name, value)
            continue
        for part in text.split(","):
            name, _, value = part.partition("=")
            weights[name.strip()] = _parse_weight(name, value)
    return weights, tuple(factors)


def parse_cameras(
    texts: Sequence[str],
) -> tuple[dict[str, int | float | str], dict[str, dict[str, int | float | str]]]:
    """Parse cameras; later values replace earlier ones.

    Returns:
        Settings of the only camera from ``width=144,height=96``, and settings by name of a stream
        from ``rgb=kind=rgb,width=144``; a name alone, ``gray=``, has no settings.
    """
    settings: dict[str, int | float | str] = {}
    streams: dict[str, dict[str, int | float | str]] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        is_stream = "=" in text and (not rest.strip() or "=" in rest.split(",")[0])
        into = streams.setdefault(name.strip(), {}) if is_stream else settings
        given = rest if is_stream else text
        into.update(_parse_setting(part) for part in given.split(",") if given.strip())
    return settings, streams


def _parse_setting(part: str) -> tuple[str, int | float | str]:
    name, sign, value = (piece.strip() for piece in part.partition("="))
    if not (name and sign and value):
        raise ConfigError(
            f"setting {abbreviate(part)}, expected NAME=NUMBER, such as width=144, or a stream "
            "with such settings, such as rgb=kind=rgb,width=144"
        )
    if value.isdecimal() and len(value) < 20:  # a longer one is a float
        return name, int(value)
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _parse_weight(name: str, value: object) -> float:
    if isinstance(value, dict):
        value = value.get("weight", 1.0)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    found = abbreviate(value)
    raise ConfigError(
        f"weight {name[:200]} is {found}, expected NAME=NUMBER, such as safety/collision=2.0"
    )


def _parse_factors(name: str, value: object) -> "Iterator[Factor]":
    """Yield the factors of an entry ``{weight: 0.5, factors: {r1: {below: -1, factor: 0}}}``."""
    from avtd3.store.maintenance.derive import Factor

    if not isinstance(value, dict):
        return
    factors = value.get("factors", {})
    if value.keys() - {"weight", "factors"} or not isinstance(factors, dict):
        raise ConfigError(
            f"weight {name[:200]} is {abbreviate(value)}, expected a number or a mapping with the "
            "keys weight and factors, where factors maps terms to {below: NUMBER, factor: NUMBER}"
        )
    for where, entry in factors.items():
        if not isinstance(entry, dict) or entry.keys() != {"below", "factor"}:
            raise ConfigError(
                f"weight {name[:200]}: the factor for {abbreviate(where)} is {abbreviate(entry)}, "
                "expected {below: NUMBER, factor: NUMBER}"
            )
        yield Factor(term=name, where=str(where), below=entry["below"], factor=entry["factor"])


def _read_weights(source: str) -> dict[str, Any]:
    from avtd3.configs.load import parse_mapping, read_preset

    text = read_preset(
        source, "rewards", otherwise="expected NAME=NUMBER,..., or a YAML file of such pairs"
    )
    document = parse_mapping(text, source, of="reward terms to numbers")
    if not document:
        raise ConfigError(f"--weights {source} is empty, expected reward terms with numbers")
    return {str(name): value for name, value in document.items()}
