"""What every command of the command line shares: its common options, its settings, its answer."""

import dataclasses
import json
from typing import Annotated, Any

import typer

from avtd3.configs.commands.console import tell
from avtd3.store.errors import ConfigError

EXIT_NO = 1
"""The exit code of a command whose answer is no: an audit with findings, a halted training."""
EXIT_ENVIRONMENT = 3
"""The exit code of a command whose environment failed: a simulator gone, a disk full."""

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
HostOption = Annotated[str | None, typer.Option(help="Machine of the CARLA servers.")]
PortsOption = Annotated[
    str | None,
    typer.Option(metavar="P[,P...]", help="Ports of the CARLA servers; a worker drives on each."),
]
ServerCommandOption = Annotated[
    str | None,
    typer.Option(metavar="COMMAND", help="Start the CARLA servers so, {port} being the port."),
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


def at_servers(
    settings: Any,  # noqa: ANN401 - a section of a collection or an evaluation
    host: str | None,
    ports: str | None,
    command: str | None,
) -> Any:  # noqa: ANN401
    """Change which CARLA servers a section drives on; None means it was not named.

    Raises:
        ConfigError: Servers are named for another world, or a port is no number.
    """
    if settings.world != "carla" and (host, ports, command) != (None, None, None):
        raise ConfigError(
            f"world is {settings.world!r}, expected carla: --host, --port and --server-command say "
            "where its servers are; add --world carla"
        )
    changes = {"host": host, "ports": parse_ports(ports), "server_command": command}
    return replace(settings, carla=replace(settings.carla, **changes))


def parse_ports(text: str | None) -> tuple[int, ...] | None:
    """The ports in ``2000,2010``; None for None.

    Raises:
        ConfigError: One is no number.
    """
    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"--port is {text!r}, expected numbers as in 2000,2010") from None


def answer(document: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a command's answer on standard output, as JSON or for people."""
    tell(json.dumps(document, indent=2, allow_nan=False) if as_json else text)
