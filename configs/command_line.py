"""What every command of the command line shares: its common options, its settings, its answer."""

import dataclasses
import json
from typing import Annotated, Any

import typer

from avtd3.configs.console import tell

EXIT_NO = 1
"""The exit code of a command whose answer is no: an audit with findings, a halted training."""

ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="YAML file, or a preset's name.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override, as learn.td3.tau=0.01; repeatable."),
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Episodes by scenario, world, town, driver, end, policy or date; repeatable.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def section(name: str, config: str | None, overrides: list[str] | None) -> Any:  # noqa: ANN401
    """The settings of a command, see `avtd3.configs.load.load_section`."""
    from avtd3.configs.load import load_section

    return load_section(name, config, overrides or ())


def replace(settings: Any, **changes: object) -> Any:  # noqa: ANN401 - any section
    """Change what the command line named; None means it was not named."""
    named = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(settings, **named)


def answer(document: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a command's answer on standard output, as JSON or for people."""
    tell(json.dumps(document, indent=2, allow_nan=False) if as_json else text)
