"""`avtd3 doctor`: is what avtd3 needs from others there, and in order?"""

from pathlib import Path
from typing import Annotated

import typer

from avtd3.configs.commands.options import (
    EXIT_ENVIRONMENT,
    EXIT_NO,
    ConfigOption,
    HostOption,
    JsonOption,
    SetOption,
    answer,
    replace,
    section,
)

app = typer.Typer(
    help="Check what avtd3 needs from others.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _doctor() -> None:
    """Check what avtd3 needs from others."""


@app.command()
def carla(
    host: HostOption = None,
    port: Annotated[int | None, typer.Option(help="Port of the CARLA server.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the camera's picture as PNG.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a CARLA server: connection, versions, steps, pictures, speed.

    Answers 0 if episodes can be driven there, 1 if something is wrong, 3 if there is no server.
    """
    from avtd3.collect.carla.doctor import examine

    ports = None if port is None else (port,)
    settings = replace(section("collect", config, set_).carla, host=host, ports=ports)
    report = examine(settings, settings.ports[0], image)
    answer(report.document(), as_json, report.summary())
    if not report.is_reached:
        raise typer.Exit(EXIT_ENVIRONMENT)
    if not report.is_well:
        raise typer.Exit(EXIT_NO)
