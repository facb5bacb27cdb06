"""Make, check and draw road files, and convert OpenStreetMap extracts."""

import dataclasses
import io
import json
import math
import os
import signal
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.native_check import CPU_S, WAIT_S, answer_apart, run_apart
from avtd3.collect.maps.network import Lane, RoadNetwork, Strip
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
from avtd3.collect.maps.raster import measure_tiles
from avtd3.collect.maps.route import Route
from avtd3.store.errors import ConfigError, RoadError, WorldError
from avtd3.store.files import exists, write_aside
from avtd3.store.render.text import join_lines, plural

_MODULE = "avtd3.collect.maps.road_files"
_PIXEL_M = 0.1  # default of road.pixel_m
_ROUTE_M = 200.0
_ROUTES = 8
_GROUND, _PAVED, _LANE, _JUNCTION, _MARK = "#dfe5da", "#a9adb3", "#4a525c", "#6b5c78", "#f4f4f4"
_INK, _ROUTE_COLOURS = "#1c2126", ("#2f80ed", "#e8590c", "#2b8a3e", "#c2255c")
_MARGIN_M, _FOOT_PX, _LONGEST_PX = 12.0, 64, 1600
_MARK_M, _ROUTE_WIDTH_M, _DASH_M = 0.15, 1.0, 4.0
_SCALES_M = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_Points = NDArray[np.float64]


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
        measure_tiles(network, _PIXEL_M)
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
    data = json.dumps({"text": text, "lane_width_m": lane_width_m}).encode()
    done = run_apart(_MODULE, data, f"convert {where}")
    if done is None:
        raise RoadError(f"{where} keeps carla.Osm2Odr busy for more than {WAIT_S:g} s")
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A polygon, or a line if it has a width, in metres."""

    points: _Points
    colour: str
    width_m: float = 0.0
    is_dashed: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """A line of text in the foot, in pixels."""

    x: float
    y: float
    text: str


class RoadPicture:
    """A picture of a network with some routes; make it once, then write it as SVG or PNG."""

    def __init__(self, network: RoadNetwork, routes: Sequence[Route] = ()) -> None:
        points = np.concatenate([strip.points for strip in (*network.lanes, *network.paved)])
        self._low = points.min(axis=0) - _MARGIN_M
        size = points.max(axis=0) + _MARGIN_M - self._low
        self._scale = _LONGEST_PX / float(size.max())
        self.width, self._height = (math.ceil(side * self._scale) for side in size.tolist())
        self.width = max(self.width, 640)
        self.height = self._height + _FOOT_PX
        self._shapes = list(_shapes(network, routes))
        self._texts = list(self._foot(network, routes))

    def svg(self) -> bytes:
        """Return the picture as SVG."""
        size = {"width": str(self.width), "height": str(self.height)}
        root = ET.Element("svg", size | {"xmlns": "http://www.w3.org/2000/svg"})
        root.set("viewBox", f"0 0 {self.width} {self.height}")
        ET.SubElement(root, "rect", size | {"fill": _GROUND})
        for shape in self._shapes:
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in self._places(shape.points))
            if not shape.width_m:
                ET.SubElement(root, "polygon", points=places, fill=shape.colour)
                continue
            line = ET.SubElement(root, "polyline", points=places, fill="none", stroke=shape.colour)
            line.set("stroke-width", f"{max(shape.width_m * self._scale, 0.5):.2f}")
            if shape.is_dashed:
                line.set("stroke-dasharray", f"{_DASH_M * self._scale:.1f}")
        for text in self._texts:
            place = {"x": f"{text.x:.0f}", "y": f"{text.y:.0f}", "fill": _INK}
            entry = ET.SubElement(root, "text", place)
            entry.set("font-family", "sans-serif")
            entry.set("font-size", "15")
            entry.text = "".join(c if c.isprintable() else "?" for c in text.text)
        data: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
        return data

    def png(self) -> bytes:
        """Return the picture as PNG."""
        from PIL import Image, ImageDraw

        from avtd3.store.render.media import font

        times = 2  # drawn larger, then reduced, so that edges are smooth
        picture = Image.new("RGB", (times * self.width, times * self.height), _GROUND)
        draw = ImageDraw.Draw(picture)
        for shape in self._shapes:
            places = [(times * x, times * y) for x, y in self._places(shape.points)]
            if not shape.width_m:
                draw.polygon(places, fill=shape.colour)
                continue
            width = max(round(times * shape.width_m * self._scale), 1)
            for part in _dashes(shape) if shape.is_dashed else [slice(None)]:
                draw.line(places[part], fill=shape.colour, width=width, joint="curve")
        for text in self._texts:
            place = (times * text.x, times * (text.y - 13))
            draw.text(place, text.text, fill=_INK, font=font(times * 15))
        small = picture.resize((self.width, self.height), Image.Resampling.BOX)
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        return buffer.getvalue()

    def _places(self, points: _Points) -> list[tuple[float, float]]:
        return [(x, y) for x, y in ((points - self._low) * self._scale).tolist()]

    def _metres(self, places: _Points) -> _Points:
        points: _Points = places / self._scale + self._low
        return points

    def _foot(self, network: RoadNetwork, routes: Sequence[Route]) -> Iterator[_Text]:
        """Yield title and legend, and add the bar of the scale."""
        first, second = self._height + 24, self._height + 50
        length_km = sum(lane.length_m for lane in network.lanes) / 1000.0
        title = f"{network.name}: {plural(len(network.lanes), 'lane')}, {length_km:.2f} km of lane"
        yield _Text(x=14, y=first, text=title)
        legend = [("lane", _LANE), ("lane in a junction", _JUNCTION), ("other pavement", _PAVED)]
        legend += [
            (f"route {n + 1}, {route.length_m:.0f} m", _ROUTE_COLOURS[n % len(_ROUTE_COLOURS)])
            for n, route in enumerate(routes[: len(_ROUTE_COLOURS)])
        ]
        x = 14.0
        for name, colour in legend:
            top, right = second - 12, x + 12
            corners = np.array([(x, top), (right, top), (right, second), (x, second)])
            self._shapes.append(_Shape(points=self._metres(corners), colour=colour))
            yield _Text(x=x + 18, y=second, text=name)
            x += 9.0 * len(name) + 42.0
        fitting = [scale for scale in _SCALES_M if scale * self._scale <= 160] or [_SCALES_M[0]]
        start = np.array([self.width - 14 - fitting[-1] * self._scale, first - 5])
        bar = self._metres(np.array([start, (self.width - 14, first - 5)]))
        self._shapes.append(_Shape(points=bar, colour=_INK, width_m=3.0 / self._scale))
        yield _Text(x=start[0], y=second, text=f"{fitting[-1]} m")


def _dashes(shape: _Shape) -> Iterator[slice]:
    """Yield every other stretch of a line whose points are about a metre apart."""
    step = int(_DASH_M)
    for start in range(0, len(shape.points) - 1, 2 * step):
        yield slice(start, start + step + 1)


def _shapes(network: RoadNetwork, routes: Sequence[Route]) -> Iterator[_Shape]:
    for strip in network.paved:
        yield _Shape(points=_outline(strip), colour=_PAVED)
    for lane in sorted(network.lanes, key=lambda lane: lane.is_junction):
        colour = _JUNCTION if lane.is_junction else _LANE
        yield _Shape(points=_outline(lane), colour=colour)
    for lane in network.lanes:
        if not lane.is_junction:
            yield from _markings(lane)
    for number, route in enumerate(routes):
        colour = _ROUTE_COLOURS[number % len(_ROUTE_COLOURS)]
        yield _Shape(points=route.points, colour=colour, width_m=_ROUTE_WIDTH_M)
        for place, radius in ((route.points[0], 2.0), (route.points[-1], 3.0)):
            turn = np.linspace(0.0, math.tau, 24)
            circle = place + radius * np.stack((np.cos(turn), np.sin(turn)), axis=1)
            yield _Shape(points=circle, colour=colour)


def _edge(strip: Strip, side: float) -> _Points:
    """Return the left (-1) or right (1) edge of a strip."""
    across = np.stack((-np.sin(strip.yaw_rad), np.cos(strip.yaw_rad)), axis=1)
    edge: _Points = strip.points + 0.5 * side * strip.width_m[:, None] * across
    return edge


def _outline(strip: Strip) -> _Points:
    return np.concatenate((_edge(strip, -1.0), _edge(strip, 1.0)[::-1]))


def _markings(lane: Lane) -> Iterator[_Shape]:
    for side, marking in ((-1.0, lane.left_marking), (1.0, lane.right_marking)):
        if marking != "none":
            yield _Shape(
                points=_edge(lane, side),
                colour=_MARK,
                width_m=_MARK_M,
                is_dashed="broken" in marking,
            )


def _write_new(out: Path, data: bytes) -> None:
    if exists(out):
        raise ConfigError(f"{out} exists; choose another path, or remove it first")
    write_aside(out, data)


def main() -> None:
    """Convert the map on standard input, and print the result as JSON; for `import_osm`."""
    with answer_apart() as (data, answer):
        import carla

        given = json.loads(data)
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
