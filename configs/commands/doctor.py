"""`avtd3 doctor`: check external requirements."""

from pathlib import Path
from typing import Annotated

from avtd3.configs.commands import options as opt

app = opt.group("Check that external requirements are met.")


@app.callback()
def _doctor() -> None:
    """Check that external requirements are met."""


@app.command()
def carla(
    host: opt.HostOption = None,
    port: Annotated[
        int | None, opt.option("PORT", "Port of the CARLA server. Default: 2000.")
    ] = None,
    image: Annotated[Path | None, opt.option("FILE", "Save a camera image as PNG.")] = None,
    drive: Annotated[
        float | None,
        opt.option("SECONDS", "Also let the expert drive, and check what that shows.", min=1.0),
    ] = None,
    town: Annotated[str, opt.option("TOWN", "Map for --drive.")] = "Town01",
    npcs: Annotated[int, opt.option("N", "Other vehicles for --drive.", min=0)] = 10,
    html: Annotated[
        Path | None, opt.option("FILE", "Write the findings and pictures of --drive as HTML.")
    ] = None,
    config: opt.ConfigOption = None,
    set_: opt.SetOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Check that a CARLA server can be used.

    Tests the connection, versions, simulation steps, camera images and speed. Exits with 0 if
    episodes can be driven, with 1 if something is wrong, and with 3 if no server answers.
    """
    from avtd3.collect.carla import doctor
    from avtd3.collect.maps.scenarios import scenario
    from avtd3.store.files import write_aside

    opt.check_destinations(image, html)
    ports = None if port is None else (port,)
    settings = opt.replace(opt.section("collect", config, set_).carla, host=host, ports=ports)
    seconds, setting = drive or 0.0, scenario(0, town=town, npcs=npcs)
    report, pictures = doctor.examine(settings, settings.ports[0], image, setting, seconds)
    if html is not None:
        write_aside(html, doctor.page(report, pictures).encode())
    opt.finish(report, as_json, is_no=not report.is_well, has_failed=not report.is_reached)
