"""`avtd3 road`: make, draw, check and convert road files."""

from pathlib import Path
from typing import Annotated

from avtd3.configs.commands import options as opt

app = opt.group("Make, draw and check road files (OpenDRIVE).")
RoadArgument = Annotated[Path, opt.argument("FILE", "Road file (.xodr).")]
NewRoadArgument = Annotated[Path, opt.argument("OUT", "Road file to create, such as roads.xodr.")]


@app.command()
def new(
    out: NewRoadArgument,
    kind: Annotated[str, opt.option("KIND", "country, loop, town or motorway.")] = "town",
    seed: Annotated[int, opt.option("N", "Seed of the network.", min=0)] = 0,
    as_json: opt.JsonOption = False,
) -> None:
    """Generate a road network.

    The same kind and seed give the same file. Collections drive on such networks, too.
    """
    from avtd3.collect.maps.road_files import new_road

    opt.check_destinations(out)
    new_road(out, kind, seed)
    opt.answer({"out": str(out), "kind": kind, "seed": seed}, as_json, f"{kind} {seed}: {out}")


@app.command()
def show(
    road: RoadArgument,
    out: Annotated[Path, opt.argument("OUT", "Picture to write: a name with .svg or .png.")],
    routes: Annotated[int, opt.option("N", "Random routes to draw.", min=0, max=4)] = 1,
    length: Annotated[
        float, opt.option("METRES", "Length of the routes.", min=15.0, max=1e6)
    ] = 200.0,
    seed: Annotated[int, opt.option("N", "Seed of the routes.", min=0)] = 0,
    as_json: opt.JsonOption = False,
) -> None:
    """Draw a road file from above, with lanes, junctions and routes."""
    from avtd3.collect.maps.road_files import show_road

    opt.check_destinations(out)
    show_road(road, out, routes=routes, length_m=length, seed=seed)
    opt.answer({"out": str(out)}, as_json, str(out))


@app.command()
def check(road: RoadArgument, as_json: opt.JsonOption = False) -> None:
    """Check whether a road file can be driven.

    Reports what carla.Map finds in it. Exits with 1 if it cannot be driven. See docs/roads.md for
    which parts of a file are read.
    """
    from avtd3.collect.maps.road_files import check_road

    report = check_road(road)
    opt.finish(report, as_json, is_no=report.problem)


@app.command("import")
def import_(
    source: Annotated[Path, opt.argument("SOURCE", "OpenStreetMap extract (.osm).")],
    out: NewRoadArgument,
    lane_width: Annotated[
        float, opt.option("METRES", "Width of the lanes.", min=2.0, max=10.0)
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
