"""The CARLA leaderboard's route XML: towns, waypoints and weather of its routes.

Written from the files that carla-simulator/leaderboard publishes in its folder data: ``position``
elements within ``waypoints`` since version 2.0, ``waypoint`` elements in version 1.0. What is read
is what both worlds can drive; the triggers in ``scenarios`` (a pedestrian that crosses, an accident
ahead) are not acted, and each route says so.
"""

import math
import reprlib
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

from avtd3.collect.maps.plain_xml import PlainTree
from avtd3.store.errors import ConfigError

_DARK_DEG, _LOW_DEG = 0.0, 15.0
_FOG, _RAIN, _CLOUDS = 40.0, 30.0, 60.0


def parse_routes(data: bytes) -> list[Mapping[str, Any]]:
    """The routes as mappings with the keys of our own scenario files.

    Args:
        data: The XML.

    Returns:
        One mapping a route: ``id``, ``name``, ``town``, ``waypoints``, ``weather``, ``remarks``.

    Raises:
        ConfigError: It is not XML of routes, or declares a document type.
    """
    parser = ET.XMLParser(target=PlainTree(_refuse))
    try:
        parser.feed(data)
        root: ET.Element = parser.close()
    except ET.ParseError as error:
        raise ConfigError(f"not valid XML: {error}") from error
    if root.tag != "routes":
        raise ConfigError(f"XML of <{root.tag:.80}>, expected <routes> as the leaderboard has it")
    return [_route(element, place) for place, element in enumerate(root.iter("route"))]


def _refuse(name: str) -> ConfigError:
    return ConfigError(f"it declares a DOCTYPE ({name:.80}), expected none; remove it")


def _route(element: ET.Element, place: int) -> Mapping[str, Any]:
    text = element.get("id", str(place))
    where = f"route {reprlib.repr(text)}"
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigError(f"{where}: its id is no whole number")
    points = element.findall("waypoints/position") or element.findall("waypoint")
    if "town" not in element.attrib:
        raise ConfigError(f"{where}: it has no town, expected <route id=... town=...>")
    weather, known = _weather(element, where)
    return {
        "id": int(text),
        "name": f"leaderboard route {text}",
        "town": element.attrib["town"],
        "waypoints": [
            [_number(point, axis, f"{where}, waypoint {number}") for axis in ("x", "y")]
            for number, point in enumerate(points, start=1)
        ],
        "weather": weather,
        "remarks": (*known, *_unacted(element, text)),
    }


def _unacted(element: ET.Element, route: str) -> list[str]:
    kinds = sorted({str(scenario.get("type"))[:40] for scenario in element.iter("scenario")})
    count = sum(1 for _ in element.iter("scenario"))
    if not count:
        return []
    named = ", ".join(kinds[:5]) + (", ..." if len(kinds) > 5 else "")
    return [f"route {route}: its {count} scenarios ({named}) are not acted, traffic is"]


def _weather(element: ET.Element, where: str) -> tuple[str, list[str]]:
    """The named weather nearest to that at the route's start, and what to say about it."""
    weathers = element.findall("weathers/weather") or element.findall("weather")
    if not weathers:
        return "fair", []
    first = min(weathers, key=lambda entry: _number(entry, "route_percentage", where, 0.0))
    sun, fog, rain, clouds = (
        _number(first, key, where, default)
        for key, default in (
            ("sun_altitude_angle", 45.0),
            ("fog_density", 0.0),
            ("precipitation", 0.0),
            ("cloudiness", 0.0),
        )
    )
    name = _named_weather(sun, fog, rain, clouds)
    changing = [f"{where}: its weather stays {name}; changes along the route are not followed"]
    return name, changing if len({tuple(_look(entry)) for entry in weathers}) > 1 else []


def _named_weather(sun_deg: float, fog: float, rain: float, clouds: float) -> str:
    if sun_deg <= _DARK_DEG:
        return "night"
    if fog >= _FOG:
        return "fog"
    if rain >= _RAIN:
        return "rain"
    if sun_deg < _LOW_DEG:
        return "dusk"
    return "overcast" if clouds >= _CLOUDS else "clear"


def _look(entry: ET.Element) -> list[tuple[str, str]]:
    return sorted(pair for pair in entry.attrib.items() if pair[0] != "route_percentage")


def _number(element: ET.Element, key: str, where: str, default: float | None = None) -> float:
    text = element.get(key)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{where}: {key} is {reprlib.repr(text)}, expected a number")
    return value
