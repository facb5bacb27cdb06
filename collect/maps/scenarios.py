"""The CARLA leaderboard's route XML: towns, waypoints and weather of its routes.

Written from the files that carla-simulator/leaderboard publishes in its folder data: ``position``
elements within ``waypoints`` since version 2.0, ``waypoint`` elements in version 1.0. What is read
is what both worlds can drive; the triggers in ``scenarios`` (a pedestrian that crosses, an accident
ahead) are not acted, and each route says so.
"""

import dataclasses
import difflib
import math
import reprlib
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from avtd3.collect.checks import check_number
from avtd3.collect.driving.world import GENERATED, Scenario
from avtd3.collect.maps.opendrive import PlainTree
from avtd3.collect.maps.weather import WEATHER_GROUPS, WEATHERS
from avtd3.store.errors import ConfigError
from avtd3.store.files import safe_join

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
            [_xml_number(point, axis, f"{where}, waypoint {number}") for axis in ("x", "y")]
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
    first = min(weathers, key=lambda entry: _xml_number(entry, "route_percentage", where, 0.0))
    sun, fog, rain, clouds = (
        _xml_number(first, key, where, default)
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


def _xml_number(element: ET.Element, key: str, where: str, default: float | None = None) -> float:
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


VERSION = 1
"""Version of the YAML that this code reads."""
MAX_BYTES = {".xml": 16 * 1024 * 1024, ".yaml": 2 * 1024 * 1024}
"""Largest files that are read; YAML takes fifty times as long as XML."""
MAX_ROUTES = 10_000
MAX_WAYPOINTS = 100_000
"""Most waypoints of all routes of a file together."""
_FARTHEST_M = 1e6
_DEEPEST = 8
_ROUTE_KEYS = (
    "id",
    "name",
    "town",
    "xodr",
    "network",
    "waypoints",
    "length_m",
    "npcs",
    "weather",
    "time_limit_s",
)
_SHARED_KEYS = tuple(key for key in _ROUTE_KEYS if key not in ("id", "name", "waypoints"))
_INITIAL_S, _PER_M_S = 5.0, 0.8
"""Time limit where a file gives none: that of the CARLA leaderboard 1.0, which grants 0.8 s for
each metre of route and 5 s to start (leaderboard/scenarios/route_scenario.py)."""


def read_scenarios(path: Path) -> tuple[Scenario, ...]:
    """Read a scenario file.

    Args:
        path: YAML, or XML if its name ends with ``.xml``.

    Returns:
        The routes as scenarios, at least one, in the order of the file; numbers are distinct.

    Raises:
        ConfigError: The file is missing, too large, or not what docs/scenarios.md describes.
    """
    is_xml = path.suffix.lower() == ".xml"
    data = _read(path, MAX_BYTES[".xml" if is_xml else ".yaml"])
    try:
        routes = parse_routes(data) if is_xml else _parse_yaml(data)
        return _scenarios(routes, path.parent)
    except ConfigError as error:
        raise ConfigError(f"scenario file {path}: {error}") from error


def _read(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise ConfigError(
            f"scenario file {path}: no such file, expected YAML, or route XML of the CARLA "
            "leaderboard; see docs/scenarios.md"
        )
    if path.stat().st_size > max_bytes:
        raise ConfigError(
            f"scenario file {path} has more than {max_bytes} bytes; divide it into several"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"scenario file {path} cannot be read: {error.strerror}") from error


def _parse_yaml(data: bytes) -> list[Mapping[str, Any]]:
    """The routes as mappings of `_ROUTE_KEYS`, their defaults filled in."""
    try:
        text = data.decode("utf-8")
        _check_events(text)
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from error
    top = _mapping(document, "the file", ("avtd3_scenarios", "defaults", "routes"))
    version = top.get("avtd3_scenarios")
    if version != VERSION:
        raise ConfigError(
            f"avtd3_scenarios is {reprlib.repr(version)}, expected {VERSION}; the first line of a "
            f"scenario file says its version: avtd3_scenarios: {VERSION}"
        )
    shared = _mapping(top.get("defaults") or {}, "defaults", _SHARED_KEYS)
    routes = top.get("routes")
    if not isinstance(routes, list):
        raise ConfigError(f"routes is {reprlib.repr(routes)}, expected a list of routes")
    return [
        _with_defaults(_mapping(route, f"routes[{place}]", _ROUTE_KEYS), shared)
        for place, route in enumerate(routes)
    ]


def _check_events(text: str) -> None:
    """Refuse YAML that stands for more than it shows, before anything is built of it."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            # A few hundred bytes of aliases can stand for gigabytes.
            raise ConfigError("YAML aliases (*name) are not read; put what is shared in 'defaults'")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ConfigError(f"YAML nested more than {_DEEPEST} levels deep is no scenario file")


def _with_defaults(route: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """A route that names its own place does not take over another kind of place."""
    places, ways = {"town", "xodr", "network"}, {"waypoints", "length_m"}
    hidden = set().union(*(group for group in (places, ways) if group & route.keys()))
    return {**{key: value for key, value in shared.items() if key not in hidden}, **route}


def _scenarios(routes: Iterable[Mapping[str, Any]], folder: Path) -> tuple[Scenario, ...]:
    found: dict[int, Scenario] = {}
    waypoints = 0
    for place, route in enumerate(routes):
        where = f"routes[{place}]" if "id" not in route else f"route {reprlib.repr(route['id'])}"
        try:
            scenario = _scenario(route, place, folder)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if scenario.number in found:
            raise ConfigError(f"{where}: another route has the id {scenario.number}; choose others")
        found[scenario.number] = scenario
        waypoints += len(scenario.waypoints)
        if len(found) > MAX_ROUTES or waypoints > MAX_WAYPOINTS:
            raise ConfigError(
                f"more than {MAX_ROUTES} routes or {MAX_WAYPOINTS} waypoints; divide the file"
            )
    if not found:
        raise ConfigError("it holds no routes, expected at least one")
    return tuple(found.values())


def _scenario(route: Mapping[str, Any], place: int, folder: Path) -> Scenario:
    number = _whole(route, "id", place)
    name = _text(route, "name", f"route {number}")
    waypoints = _waypoints(route.get("waypoints"))
    if waypoints and "length_m" in route:
        raise ConfigError("it has both waypoints and length_m, expected one of them")
    per_m_s = 0.0 if "time_limit_s" in route else _PER_M_S
    weather = _text(route, "weather", "fair")
    _check_known("weather", weather, (*WEATHERS, *WEATHER_GROUPS))
    kind, network = _network(route)
    town, xodr = _town(route, folder)
    return Scenario(
        number=number,
        name=name,
        town=town,
        xodr=xodr,
        network_kinds=(kind,) if kind else (),
        networks=200,
        network=network,
        npcs=_whole(route, "npcs", 20),
        weather=weather,
        route_length_m=_number(route, "length_m", 200.0, minimum=10.0),
        time_limit_s=_number(route, "time_limit_s", _INITIAL_S, minimum=1.0),
        time_per_m_s=per_m_s,
        waypoints=waypoints,
        remarks=tuple(route.get("remarks", ())),
    )


def _network(route: Mapping[str, Any]) -> tuple[str, int | None]:
    """Kind and number of a generated network; an empty kind for none."""
    network = route.get("network")
    named = [key for key in ("town", "xodr", "network") if key in route]
    if network is None:
        if not named:
            raise ConfigError("it says nowhere to drive, expected one of town, xodr and network")
        return "", None
    if named != ["network"]:
        raise ConfigError(f"it has {' and '.join(named)}, expected network alone or the others")
    found = _mapping(network, "network", ("kind", "number"))
    kind = _text(found, "kind", "")
    if not kind:
        raise ConfigError("network has no kind, expected as network: {kind: town, number: 7}")
    # Imported here: what draws networks takes a second to import, and most files name none.
    from avtd3.collect.maps.generate import NETWORK_KINDS

    _check_known("network kind", kind, NETWORK_KINDS)
    if "waypoints" in route and "number" not in found:
        raise ConfigError("it has waypoints on a network without a number; roads of which one?")
    return kind, _whole(found, "number", 0) if "number" in found else None


def _town(route: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Name or path of the roads, and the path of their .xodr file if the name is not it."""
    town = _text(route, "town", "")
    if "/" in town or "\\" in town or town.lower().endswith(".xodr"):
        raise ConfigError(f"town is {town!r}, expected a map's name; for a file write xodr: FILE")
    if "network" in route:
        return GENERATED, ""
    if "xodr" not in route:
        # The same file runs where the simulator has the map and where only its roads are at hand.
        beside = folder.resolve() / f"{town}.xodr"
        return town, str(beside) if beside.is_file() else ""
    name = _text(route, "xodr", "")
    try:
        path = safe_join(folder, name)
    except ValueError as error:
        raise ConfigError(
            f"xodr: {error}; the files of a scenario file lie in its folder or below it"
        ) from error
    if not path.is_file():
        raise ConfigError(f"xodr {name}: there is no such file in {folder}")
    return (town, str(path)) if town else (str(path), "")


def _waypoints(given: object) -> tuple[tuple[float, float], ...]:
    if given is None:
        return ()
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise ConfigError(f"waypoints are {reprlib.repr(given)}, expected at least two as [x, y]")
    return tuple(_waypoint(point, number) for number, point in enumerate(given, start=1))


def _waypoint(point: object, number: int) -> tuple[float, float]:
    if isinstance(point, list | tuple) and len(point) in (2, 3) and all(map(_is_place, point)):
        return float(point[0]), float(point[1])
    raise ConfigError(
        f"waypoint {number} is {reprlib.repr(point)}, expected [x, y] or [x, y, z] in metres"
    )


def _mapping(value: object, where: str, keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {reprlib.repr(value)}, expected keys: {', '.join(keys)}")
    known = tuple(keys)
    for key in value:
        if key not in known:
            raise ConfigError(
                f"{where} has the unknown key {reprlib.repr(key)}; {_hint(str(key), known)}"
            )
    return value


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
    names = tuple(known)
    if name not in names:
        raise ConfigError(f"{what} is {name!r}; {_hint(name, names)}")


def _hint(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type] # is one


def _is_place(value: object) -> bool:
    return _is_number(value) and abs(value) <= _FARTHEST_M  # type: ignore[arg-type] # is a number


def _number(route: Mapping[str, Any], key: str, default: float, *, minimum: float = 0.0) -> float:
    value = route.get(key, default)
    if not _is_number(value):
        raise ConfigError(f"{key} is {reprlib.repr(value)}, expected a number")
    check_number(key, value, minimum=minimum, maximum=_FARTHEST_M)
    return float(value)


def _whole(route: Mapping[str, Any], key: str, default: int) -> int:
    value = route.get(key, default)
    if type(value) is not int or not 0 <= value <= 2**31:
        raise ConfigError(f"{key} is {reprlib.repr(value)}, expected a whole number, 0 or more")
    return value


def _text(route: Mapping[str, Any], key: str, default: str) -> str:
    value = route.get(key, default)
    if not isinstance(value, str) or not len(value) <= 200 or (key in route and not value):
        raise ConfigError(f"{key} is {reprlib.repr(value)}, expected a text of 1 to 200 characters")
    return value


_OF_THE_FILE = frozenset(("town", "networks", "route_length_m"))
_MIXED = ("country", "loop", "town")


def _numbered_scenario(
    number: int,
    name: str,
    kinds: tuple[str, ...],
    npcs: int,
    weather: str,
    time_limit_s: float = 60.0,
) -> Scenario:
    return Scenario(
        number=number,
        name=name,
        town=GENERATED,
        network_kinds=kinds,
        networks=200,
        npcs=npcs,
        weather=weather,
        route_length_m=200.0,
        time_limit_s=time_limit_s,
    )


SCENARIOS: tuple[Scenario, ...] = (
    _numbered_scenario(0, "mixed roads, fair weather, 20 vehicles", _MIXED, 20, "fair"),
    _numbered_scenario(1, "empty country roads", ("country",), 0, "clear"),
    _numbered_scenario(2, "town with junctions", ("town",), 20, "fair"),
    _numbered_scenario(3, "bad light: dusk, night, fog or rain", _MIXED, 10, "bad"),
    _numbered_scenario(4, "dense traffic", ("loop", "town"), 40, "fair", 90.0),
    _numbered_scenario(5, "everything at random", (*_MIXED, "motorway"), 20, "random"),
)
"""Every scenario, at the place of its number; 0 is the reports' main one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioConfig:
    """A scenario by its number, with what is changed about it."""

    number: int = 0
    """Number of the scenario."""
    file: str | None = None
    """Path of a scenario file, whose routes are driven by turns; None for the numbered ones."""
    npcs: int | None = None
    """Other vehicles; None as in the scenario."""
    town: str | None = None
    """``generated`` or the path of an .xodr file; None as in the scenario."""
    weather: str | None = None
    """A weather by name; None as in the scenario."""
    networks: int | None = None
    """How many different generated networks to draw from; None as in the scenario."""
    route_length_m: float | None = None
    """Length of the routes in metres; None as in the scenario."""
    time_limit_s: float | None = None
    """Simulated seconds to the time limit; None as in the scenario."""

    def __post_init__(self) -> None:
        self.resolve()

    def resolve(self) -> tuple[Scenario, ...]:
        """The scenarios that episodes take by turns, with the changes made: one, or a file's.

        Raises:
            ConfigError: There is no scenario of this number, the file is not a scenario file, or
                a value is impossible.
        """
        changes = {
            field.name: value
            for field in dataclasses.fields(self)
            if field.name not in ("number", "file")
            and (value := getattr(self, field.name)) is not None
        }
        if self.file is None:
            return (scenario(self.number, **changes),)
        if self.number or (wrong := changes.keys() & _OF_THE_FILE):
            named = "number" if self.number else ", ".join(sorted(wrong))
            raise ConfigError(
                f"scenario {named} is given and so is scenario file {self.file}, expected one of "
                "them: write it into the file"
            )
        if "time_limit_s" in changes:
            changes["time_per_m_s"] = 0.0
        return tuple(_changed(entry, changes) for entry in read_scenarios(Path(self.file)))

    def plan_document(self) -> Any:  # noqa: ANN401 - any JSON value
        """What identifies the setting in a plan: not where its files lie."""
        documents = [entry.document() for entry in self.resolve()]
        if self.file is None:
            return documents[0]
        folder = f"{Path(self.file).parent.resolve()}/"
        for document in documents:
            for key in document.keys() & {"town", "xodr"}:
                document[key] = document[key].removeprefix(folder)
        return documents


def scenario(number: int, **changes: object) -> Scenario:
    """A scenario by its number, with some of its fields changed.

    Args:
        number: A place in `SCENARIOS`.
        changes: Fields of `Scenario` and their new values.

    Raises:
        ConfigError: There is no scenario of this number, or a value is impossible.
    """
    if not 0 <= number < len(SCENARIOS):
        known = "; ".join(f"{entry.number} = {entry.name}" for entry in SCENARIOS)
        raise ConfigError(f"scenario {number} does not exist; there are: {known}")
    return _changed(SCENARIOS[number], changes)


def _changed(entry: Scenario, changes: Mapping[str, object]) -> Scenario:
    changed = dataclasses.replace(entry, **changes)  # type: ignore[arg-type] # checked below
    check_number("scenario npcs", changed.npcs, maximum=1000)
    check_number("scenario networks", changed.networks, minimum=1, maximum=1_000_000)
    check_number("scenario route_length_m", changed.route_length_m, minimum=10.0)
    check_number("scenario time_limit_s", changed.time_limit_s, minimum=1.0)
    if not changed.town or not changed.weather:
        raise ConfigError("scenario town and weather must not be empty")
    return changed
