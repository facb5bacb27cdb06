"""`avtd3 doctor`: check external requirements."""

from pathlib import Path
from typing import Annotated

import typer

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import EXIT_ENVIRONMENT, EXIT_NO

app = typer.Typer(
    help="Check that external requirements are met.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _doctor() -> None:
    """Check that external requirements are met."""


@app.command()
def carla(
    host: opt.HostOption = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port of the CARLA server. Default: 2000.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save a camera image as PNG.")
    ] = None,
    config: opt.ConfigOption = None,
    set_: opt.SetOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Check that a CARLA server can be used.

    Tests the connection, versions, simulation steps, camera images and speed. Exits with 0 if
    episodes can be driven, with 1 if something is wrong, and with 3 if no server answers.
    """
    from avtd3.collect.carla.doctor import examine

    opt.check_destinations(image)
    ports = None if port is None else (port,)
    settings = opt.replace(opt.section("collect", config, set_).carla, host=host, ports=ports)
    report = examine(settings, settings.ports[0], image)
    opt.answer(report.document(), as_json, report.summary())
    if not report.is_reached:
        raise typer.Exit(EXIT_ENVIRONMENT)
    if not report.is_well:
        raise typer.Exit(EXIT_NO)
