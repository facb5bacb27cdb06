"""Make road files, say what can be driven in them, and convert OpenStreetMap extracts."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.collect.maps.drawing import RoadPicture
from avtd3.collect.maps.native_check import CPU_S, WAIT_S, limit_process
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import (
    MAX_FILE_BYTES,
    decode_xml,
    flatten,
    lane_sections,
    lanes_of,
    parse_opendrive,
    parse_xml,
    read_named,
    read_opendrive,
)
from avtd3.collect.maps.planner import plan_route
from avtd3.collect.maps.route import Route
from avtd3.store.errors import ConfigError, RoadError, WorldError
from avtd3.store.files import exists, write_aside
from avtd3.store.render.text import join_lines, plural

_MODULE = "avtd3.collect.maps.road_files"
_ROUTE_M = 200.0
_ROUTES = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoadReport:
    """What is in a road file, and what of it can be driven."""

    path: str
    """The file."""
    problem: str = ""
    """Why it cannot be used; empty if it can."""
    roads: int = 0
    """Roads in the file."""
    junctions: int = 0
    """Junctions in the file."""
    lanes_in_file: dict[str, int] = dataclasses.field(default_factory=dict)
    """Lanes in the file by type, each lane section counted by itself."""
    lanes: int = 0
    """Driving lanes that carla.Map places and that are long and wide enough."""
    lanes_m: float = 0.0
    """Their length in metres."""
    junction_lanes: int = 0
    """Those of them in junctions."""
    lane_changes: int = 0
    """Lanes from which a car may change to one beside it."""
    dead_ends: int = 0
    """Lanes that lead nowhere."""
    paved: int = 0
    """Shoulders, parking bays and other pavement."""
    signals: int = 0
    """Signals in the file; the built-in simulator ignores them."""
    objects: int = 0
    """Objects in the file; the built-in simulator ignores them."""
    has_relief: bool = False
    """Whether it has hills or banking, which the built-in simulator removes."""
    route_m: float = 0.0
    """Longest of some random routes of up to 200 m."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        if self.problem:
            return join_lines([f"{self.path} cannot be used:", self.problem])
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.lanes_in_file.items())
        lines = [
            f"{self.path} can be driven",
            f"in the file: {plural(self.roads, 'road')}, {plural(self.junctions, 'junction')}; "
            f"lanes: {kinds}",
            f"carla.Map:   {plural(self.lanes, 'driving lane')}, {self.lanes_m / 1000.0:.2f} km, "
            f"{self.junction_lanes:,} of them in junctions; "
            f"{plural(self.paved, 'other paved strip')}",
            f"             {plural(self.lane_changes, 'lane')} with a lane change, "
            f"{plural(self.dead_ends, 'lane')} without continuation",
            f"routes:      {self.route_m:.0f} m found, of {_ROUTE_M:.0f} m wanted",
        ]
        ignored = [plural(self.signals, "signal")] * bool(self.signals)
        ignored += [plural(self.objects, "object")] * bool(self.objects)
        ignored += ["hills and banking"] * self.has_relief
        if ignored:
            lines.append(f"ignored by the built-in simulator: {', '.join(ignored)}")
        return join_lines(lines)

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return dataclasses.asdict(self)


def new_road(out: Path, kind: str, seed: int) -> None:
    """Generate a road network and write it to a new file."""
    from avtd3.collect.maps.generate import generate_network

    _write_new(out, generate_network(kind, seed).encode())


def check_road(path: Path) -> RoadReport:
    """Read a road file as the built-in simulator does, and report what can be driven."""
    try:
        root, network, has_relief = _read(path)
        lengths = [route.length_m for route in random_routes(network, _ROUTES, _ROUTE_M, 0)]
    except RoadError as error:
        return RoadReport(path=str(path), problem=str(error))
    sections = (each for road in root.findall("road") for _, _, each in lane_sections(road))
    kinds = Counter(lane.get("type", "?")[:40] for each in sections for _, lane in lanes_of(each))
    lanes = network.lanes
    return RoadReport(
        path=str(path),
        roads=len(root.findall("road")),
        junctions=len(root.findall("junction")),
        lanes_in_file=dict(kinds.most_common()),
        lanes=len(lanes),
        lanes_m=sum(lane.length_m for lane in lanes),
        junction_lanes=sum(lane.is_junction for lane in lanes),
        lane_changes=sum(
            lane.left_lane is not None or lane.right_lane is not None for lane in lanes
        ),
        dead_ends=sum(not lane.successors for lane in lanes),
        paved=len(network.paved),
        signals=len(root.findall("road/signals/signal")),
        objects=len(root.findall("road/objects/object")),
        has_relief=has_relief,
        route_m=max(lengths),
    )


def _read(path: Path) -> tuple[ET.Element, RoadNetwork, bool]:
    """Return a file's document, its network without relief, and whether it has relief."""
    text, has_relief = flatten(read_opendrive(path))
    name = os.fsencode(path.stem).decode("utf-8", "backslashreplace")
    return parse_opendrive(text, name), RoadNetwork.from_opendrive(name, text), has_relief


def random_routes(network: RoadNetwork, count: int, length_m: float, seed: int) -> list[Route]:
    """Plan random routes, as episodes have them."""
    rng = np.random.default_rng(seed)
    return [plan_route(network, rng, length_m).route for _ in range(count)]


def show_road(path: Path, out: Path, *, routes: int, length_m: float, seed: int) -> None:
    """Draw a road file as SVG or PNG, by the name of the picture."""
    if out.suffix not in (".svg", ".png"):
        raise ConfigError(f"{out} is no picture's name, expected one that ends with .svg or .png")
    _, network, _ = _read(path)
    picture = RoadPicture(network, random_routes(network, routes, length_m, seed))
    write_aside(out, picture.svg() if out.suffix == ".svg" else picture.png())


def import_osm(source: Path, out: Path, lane_width_m: float) -> RoadReport:
    """Convert an OpenStreetMap extract to a new road file, and report what can be driven.

    carla.Osm2Odr runs in a process of its own, because it may end or block it.
    """
    where, expected = f"map {source}", "an .osm file; check the path"
    data = read_named(source, where, MAX_FILE_BYTES, RoadError, expected, "give an .osm file")
    text = decode_xml(data, where, RoadError)
    if parse_xml(text, where, RoadError).tag != "osm":
        raise RoadError(f"{where} is not OpenStreetMap XML, expected <osm>; export it as .osm")
    converted = _convert(text, where, lane_width_m)
    parse_opendrive(converted, str(out))
    _write_new(out, converted.encode())
    return check_road(out)


def _convert(text: str, where: str, lane_width_m: float) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", _MODULE],
            input=json.dumps({"text": text, "lane_width_m": lane_width_m}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent alone
            timeout=WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RoadError(f"{where} keeps carla.Osm2Odr busy for more than {WAIT_S:g} s") from error
    except OSError as error:
        raise WorldError(f"cannot start a process to convert {where}: {error}") from error
    if done.returncode == -signal.SIGXCPU:
        raise RoadError(f"{where} keeps carla.Osm2Odr busy for {CPU_S} s; give a smaller extract")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise RoadError(f"{where} ends carla.Osm2Odr with {name}, expected a map with streets")
    if done.returncode:
        raise WorldError(f"the process that converts {where} failed with {done.returncode}")
    answer = json.loads(done.stdout)
    if answer["fault"]:
        raise RoadError(f"{where} is rejected by carla.Osm2Odr: {answer['fault']}")
    return str(answer["xodr"])


def _write_new(out: Path, data: bytes) -> None:
    if exists(out):
        raise ConfigError(f"{out} exists; choose another path, or remove it first")
    write_aside(out, data)


def main() -> None:
    """Convert the map on standard input, and print the result as JSON; for `import_osm`."""
    limit_process()
    import carla

    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # the converter prints, too
        given = json.loads(sys.stdin.buffer.read())
        settings, xodr, fault = carla.Osm2OdrSettings(), "", ""
        settings.default_lane_width = given["lane_width_m"]
        try:
            xodr = carla.Osm2Odr.convert(given["text"], settings)
        except RuntimeError as error:
            fault = str(error)
        except MemoryError:
            fault = "it needs too much memory"
        json.dump({"xodr": xodr, "fault": fault}, answer)


if __name__ == "__main__":
    main()
