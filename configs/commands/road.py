"""`avtd3 road`: make, draw, check and convert road files."""

from pathlib import Path
from typing import Annotated

import typer

from avtd3.configs.commands import options as opt

app = typer.Typer(
    help="Make, draw and check road files (OpenDRIVE).", no_args_is_help=True, rich_markup_mode=None
)
RoadArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Road file (.xodr).")]
NewRoadArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="Road file to create, such as roads.xodr.")
]


@app.command()
def new(
    out: NewRoadArgument,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="country, loop, town or motorway.")
    ] = "town",
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of the network of this kind.")
    ] = 0,
    as_json: opt.JsonOption = False,
) -> None:
    """Generate a road network.

    The same kind and seed give the same file. Collections use these networks, too.
    """
    from avtd3.collect.maps.road_files import new_road

    opt.check_destinations(out)
    new_road(out, kind, seed)
    opt.answer({"out": str(out), "kind": kind, "seed": seed}, as_json, f"{kind} {seed}: {out}")


@app.command()
def show(
    road: RoadArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Picture to write: a name with .svg or .png.")
    ],
    routes: Annotated[
        int, typer.Option(min=0, max=4, metavar="N", help="Random routes to draw.")
    ] = 1,
    length: Annotated[
        float, typer.Option(min=15.0, max=1e6, metavar="METRES", help="Length of the routes.")
    ] = 200.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the routes.")] = 0,
    as_json: opt.JsonOption = False,
) -> None:
    """Draw a road file from above, with lanes, junctions and routes."""
    from avtd3.collect.maps.road_files import show_road

    opt.check_destinations(out)
    show_road(road, out, routes=routes, length_m=length, seed=seed)
    opt.answer({"out": str(out)}, as_json, str(out))


@app.command()
def check(road: RoadArgument, as_json: opt.JsonOption = False) -> None:
    """Check whether a road file can be driven, and report what carla.Map finds in it.

    Exits with 1 if it cannot be driven. See docs/roads.md for what is read.
    """
    from avtd3.collect.maps.road_files import check_road

    report = check_road(road)
    opt.finish(report, as_json, is_no=report.problem)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="OpenStreetMap extract (.osm).")],
    out: NewRoadArgument,
    lane_width: Annotated[
        float, typer.Option(min=2.0, max=10.0, metavar="METRES", help="Width of the lanes.")
    ] = 3.35,
    as_json: opt.JsonOption = False,
) -> None:
    """Convert an OpenStreetMap extract to a road file, and check it.

    Exits with 1 if the result cannot be driven.
    """
    from avtd3.collect.maps.road_files import import_osm

    opt.check_destinations(out)
    report = import_osm(source, out, lane_width)
    opt.finish(report, as_json, is_no=report.problem)
