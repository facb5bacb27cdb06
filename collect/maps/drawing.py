"""Draw a road network from above, with its lanes, junctions and routes, as SVG or PNG."""

import dataclasses
import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.network import Lane, RoadNetwork, Strip
from avtd3.collect.maps.route import Route
from avtd3.store.render.text import plural

_GROUND, _PAVED, _LANE, _JUNCTION, _MARK = "#dfe5da", "#a9adb3", "#4a525c", "#6b5c78", "#f4f4f4"
_INK, _ROUTES = "#1c2126", ("#2f80ed", "#e8590c", "#2b8a3e", "#c2255c")
_MARGIN_M, _FOOT_PX, _LONGEST_PX = 12.0, 64, 1600
_MARK_M, _ROUTE_M, _DASH_M = 0.15, 1.0, 4.0
_SCALES_M = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_Points = NDArray[np.float64]


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
    """A picture of a network; make it once, then write it as SVG or PNG.

    Args:
        network: The network.
        routes: Routes to draw.
    """

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
            (f"route {n + 1}, {route.length_m:.0f} m", _ROUTES[n % len(_ROUTES)])
            for n, route in enumerate(routes[: len(_ROUTES)])
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
        colour = _ROUTES[number % len(_ROUTES)]
        yield _Shape(points=route.points, colour=colour, width_m=_ROUTE_M)
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
