"""`Scenario` by number or from a file: YAML of our own, or the CARLA leaderboard's route XML.

The XML follows the files that carla-simulator/leaderboard publishes in its directory data:
``position`` elements in ``waypoints`` since version 2.0, ``waypoint`` elements in version 1.0. The
triggers in ``scenarios`` (a crossing pedestrian, an accident ahead) are ignored, and each route
reports it. docs/scenarios.md describes both formats.
"""

import dataclasses
import difflib
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from avtd3.collect.checks import MOST, check_number
from avtd3.collect.maps.opendrive import decode_xml, parse_number, parse_xml, read_named
from avtd3.collect.maps.planner import MIN_ROUTE_M
from avtd3.collect.maps.weather import WEATHER_GROUPS, WEATHERS
from avtd3.store.errors import ConfigError, abbreviate, check_integers
from avtd3.store.files import safe_join

GENERATED = "generated"
"""Town of the scenarios whose road networks are generated."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The setting of an episode, apart from its seed: roads, traffic, weather, route and time.

    Example:
        >>> from avtd3.collect.maps.scenarios import scenario
        >>> scenario(1, npcs=5).npcs
        5
    """

    number: int
    """Number by which datasets and the command line name it."""
    name: str
    """Name for people."""
    town: str
    """``generated`` for generated networks, else the path of an .xodr file or the name of a map of
    the simulator."""
    network_kinds: tuple[str, ...]
    """Kinds of generated network to choose from; ignored for an .xodr file."""
    networks: int
    """Number of different generated networks."""
    npcs: int
    """Other vehicles around the car."""
    weather: str
    """Name of a weather, or ``random`` for another one in each episode."""
    route_length_m: float
    """Length of the route to the goal, in metres; shorter if the roads end before."""
    time_limit_s: float
    """Simulated seconds after which the episode is truncated."""
    time_per_m_s: float = 0.0
    """Simulated seconds that each metre of the route adds to the time limit."""
    waypoints: tuple[tuple[float, float], ...] = ()
    """Positions x, y in metres that the route leads through; empty for a random route."""
    network: int | None = None
    """Number of the generated network, of the first kind; None for another one in each episode."""
    xodr: str = ""
    """Path of the town's .xodr file, for worlds without a map of that name; empty for none."""
    remarks: tuple[str, ...] = ()
    """Sentences to show to the user about how the setting was read."""

    def document(self) -> dict[str, Any]:
        """Return the setting as JSON values, without fields that have their default value."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast
VERSION = 1  # of the YAML format
MAX_BYTES = {".xml": 16 * 1024 * 1024, ".yaml": 2 * 1024 * 1024}
"""Size limits of scenario files; YAML takes fifty times as long to parse as XML."""
MAX_ROUTES = 10_000
MAX_WAYPOINTS = 100_000  # of all routes of a file together
_MAX_DISTANCE_M = 1e6
_MAX_DEPTH = 8
_ROUTE_KEYS = (
    "id", "name", "town", "xodr", "network", "waypoints", "length_m", "npcs", "weather",
    "time_limit_s",
)  # fmt: skip
_SHARED_KEYS = tuple(key for key in _ROUTE_KEYS if key not in ("id", "name", "waypoints"))
_INITIAL_S, _PER_M_S = 5.0, 0.8
"""Time limit if a file gives none. The CARLA leaderboard 1.0 grants 0.8 s per metre of route and 5
s to start (leaderboard/scenarios/route_scenario.py)."""
_FILE_ONLY = frozenset(("town", "networks", "route_length_m"))
_MIXED = ("country", "loop", "town")
_VARIED = (
    "streets", "country", "streets", "byroad", "streets", "loop", "streets", "town", "streets",
    "motorway",
)  # fmt: skip


SCENARIOS: tuple[Scenario, ...] = tuple(
    Scenario(
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
    for number, (name, kinds, npcs, weather, time_limit_s) in enumerate((
        ("mixed roads, fair weather, 20 vehicles", _MIXED, 20, "fair", 60.0),
        ("empty country roads", ("country",), 0, "clear", 60.0),
        ("town with junctions", ("town",), 20, "fair", 60.0),
        ("bad light: dusk, night, fog or rain", _MIXED, 10, "bad", 60.0),
        ("dense traffic", ("loop", "town"), 40, "fair", 90.0),
        ("everything at random", (*_MIXED, "motorway"), 20, "random", 60.0),
        ("varied roads as on real maps, fair weather", _VARIED, 20, "fair", 60.0),
    ))
)  # fmt: skip
"""All numbered scenarios, each at the index of its number; reports use 0."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioConfig:
    """A scenario by number or from a file, with changes to it.

    Example:
        >>> ScenarioConfig(number=1, npcs=5).resolve()[0].npcs
        5
    """

    number: int = 0
    """Number of the scenario."""
    file: str | None = None
    """Path of a scenario file, whose routes are driven in turn; None for the numbered scenarios."""
    npcs: int | None = None
    """Number of other vehicles; None keeps the scenario's."""
    town: str | None = None
    """``generated`` or the path of an .xodr file; None keeps the scenario's."""
    weather: str | None = None
    """Name of a weather; None keeps the scenario's."""
    networks: int | None = None
    """Number of different generated networks to draw from; None keeps the scenario's."""
    route_length_m: float | None = None
    """Length of the routes in metres; None keeps the scenario's."""
    time_limit_s: float | None = None
    """Simulated seconds to the time limit; None keeps the scenario's."""

    def __post_init__(self) -> None:
        check_integers(self, "scenario ")
        self.resolve()

    def resolve(self) -> tuple[Scenario, ...]:
        """Return the scenario, or those of the file, that episodes use in turn, as changed."""
        changes = {
            field.name: value
            for field in dataclasses.fields(self)
            if field.name not in ("number", "file")
            and (value := getattr(self, field.name)) is not None
        }
        if self.file is None:
            return (scenario(self.number, **changes),)
        if self.number or (wrong := changes.keys() & _FILE_ONLY):
            named = "number" if self.number else ", ".join(sorted(wrong))
            both = f"scenario {named} and scenario file {self.file} are both given"
            raise ConfigError(f"{both}, expected one of them; set the value in the file")
        if "time_limit_s" in changes:
            changes["time_per_m_s"] = 0.0
        return tuple(_changed(entry, changes) for entry in read_scenarios(Path(self.file)))

    def plan_document(self) -> Any:  # noqa: ANN401 - any JSON value
        """Return what identifies the scenarios in a plan, without the directory of their files."""
        documents = [entry.document() for entry in self.resolve()]
        if self.file is None:
            return documents[0]
        folder = f"{Path(self.file).parent.resolve()}/"
        for document in documents:
            document.pop("remarks", None)
            for key in document.keys() & {"town", "xodr"}:
                document[key] = document[key].removeprefix(folder)
        return documents


def scenario(number: int, **changes: object) -> Scenario:
    """Return a scenario by its index in `SCENARIOS`, with some of its fields changed."""
    if not 0 <= number < len(SCENARIOS):
        known = "; ".join(f"{entry.number} = {entry.name}" for entry in SCENARIOS)
        raise ConfigError(f"scenario is {number}, expected one of: {known}")
    return _changed(SCENARIOS[number], changes)


def _changed(entry: Scenario, changes: Mapping[str, object]) -> Scenario:
    changed = dataclasses.replace(entry, **changes)  # type: ignore[arg-type] # checked below
    check_number("scenario npcs", changed.npcs, maximum=1000)
    check_number("scenario networks", changed.networks, minimum=1, maximum=1_000_000)
    check_number("scenario route_length_m", changed.route_length_m, minimum=MIN_ROUTE_M)
    check_number("scenario time_limit_s", changed.time_limit_s, minimum=1.0)
    if not changed.town or not changed.weather:
        raise ConfigError("scenario town or weather is empty, expected a name")
    if changed.town == GENERATED and not changed.network_kinds:
        raise ConfigError("scenario network_kinds is empty, expected a kind of network")
    return changed


def read_scenarios(path: Path) -> tuple[Scenario, ...]:
    """Read the routes of a scenario file: YAML, or XML if its name ends with ``.xml``."""
    is_xml, where = path.suffix.lower() == ".xml", f"scenario file {path}"
    most = MAX_BYTES[".xml" if is_xml else ".yaml"]
    expected = "YAML or route XML of the CARLA leaderboard; see docs/scenarios.md"
    data = read_named(path, where, most, ConfigError, expected, "if it is too large, split it")
    try:
        routes = _parse_xml(data) if is_xml else _parse_yaml(data)
        return _scenarios(routes, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _scenarios(routes: Iterable[Mapping[str, Any]], folder: Path) -> tuple[Scenario, ...]:
    found: dict[int, Scenario] = {}
    for place, route in enumerate(routes):
        where = f"routes[{place}]" if "id" not in route else f"route {abbreviate(route['id'])}"
        try:
            scenario = _scenario(route, place, folder)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if scenario.number in found:
            same = f"another route has the id {scenario.number}"
            raise ConfigError(f"{where}: {same}, expected distinct ids")
        found[scenario.number] = scenario
    if not found:
        raise ConfigError("it contains no routes, expected at least one")
    return tuple(found.values())


def _check_size(routes: int, waypoints: int) -> None:
    if routes > MAX_ROUTES or waypoints > MAX_WAYPOINTS:
        most = f"{MAX_ROUTES} and {MAX_WAYPOINTS}; split the file"
        raise ConfigError(
            f"it has {routes} routes and {waypoints} waypoints, expected at most {most}"
        )


def _scenario(route: Mapping[str, Any], place: int, folder: Path) -> Scenario:
    number = _whole(route, "id", place)
    name = _text(route, "name", f"route {number}")
    waypoints = _waypoints(route.get("waypoints"))
    if waypoints and "length_m" in route:
        raise ConfigError("it has both waypoints and length_m, expected one of them; remove one")
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
        route_length_m=_number(route, "length_m", 200.0, minimum=MIN_ROUTE_M),
        time_limit_s=_number(route, "time_limit_s", _INITIAL_S, minimum=1.0),
        time_per_m_s=per_m_s,
        waypoints=waypoints,
        remarks=tuple(route.get("remarks", ())),
    )


def _network(route: Mapping[str, Any]) -> tuple[str, int | None]:
    """Return kind and number of a generated network; an empty kind for other roads."""
    named = [key for key in ("town", "xodr", "network") if key in route]
    if "network" not in named:
        if not named:
            raise ConfigError("it has no roads, expected one of town, xodr and network")
        return "", None
    if named != ["network"]:
        both = " and ".join(named)
        raise ConfigError(f"it has {both}, expected network alone; remove the others")
    found = _mapping(route["network"], "network", ("kind", "number"))
    kind = _text(found, "kind", "")
    if not kind:
        raise ConfigError("network has no kind, expected {kind: town, number: 7}")
    # Imported here: importing the generator takes a second, and most files do not need it.
    from avtd3.collect.maps.generate import NETWORK_KINDS

    _check_known("network kind", kind, NETWORK_KINDS)
    if "waypoints" in route and "number" not in found:
        raise ConfigError("it has waypoints, expected a number for its network; add one")
    return kind, _whole(found, "number", 0) if "number" in found else None


def _town(route: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Return name or path of the roads, and the path of their .xodr file if it differs."""
    town = _text(route, "town", "")
    if "/" in town or "\\" in town or town.lower().endswith(".xodr"):
        expected = "the name of a map; for a file use xodr: FILE"
        raise ConfigError(f"town is {abbreviate(town)}, expected {expected}")
    if "network" in route:
        return GENERATED, ""
    if "xodr" not in route:
        # The same file works whether the simulator has the map or only the .xodr file exists.
        beside = folder.resolve() / f"{town}.xodr"
        return town, str(beside) if os.path.isfile(beside) else ""  # noqa: PTH113 - never raises
    name = _text(route, "xodr", "")
    try:
        path = safe_join(folder, name)
    except ValueError as error:
        raise ConfigError(
            f"xodr: {error}; move the file into the directory of the scenario file or below it"
        ) from error
    if not path.is_file():
        raise ConfigError(f"xodr {name} does not exist in {folder}; check its path")
    return (town, str(path)) if town else (str(path), "")


def _waypoints(given: object) -> tuple[tuple[float, float], ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) < 2:
        raise ConfigError(f"waypoints are {abbreviate(given)}, expected at least two as [x, y]")
    for number, point in enumerate(given, start=1):
        if not (isinstance(point, list) and len(point) in (2, 3) and all(map(_is_place, point))):
            found = f"waypoint {number} is {abbreviate(point)}"
            raise ConfigError(f"{found}, expected [x, y] or [x, y, z] in metres")
    return tuple((float(point[0]), float(point[1])) for point in given)


def _number(route: Mapping[str, Any], key: str, default: float, *, minimum: float = 0.0) -> float:
    value = route.get(key, default)
    if not _is_number(value):
        raise ConfigError(f"{key} is {abbreviate(value)}, expected a number")
    check_number(key, value, minimum=minimum, maximum=_MAX_DISTANCE_M)
    return float(value)


def _whole(route: Mapping[str, Any], key: str, default: int) -> int:
    value = route.get(key, default)
    if type(value) is not int or not 0 <= value <= 2**31:
        raise ConfigError(f"{key} is {abbreviate(value)}, expected an integer, 0 or more")
    return value


def _text(route: Mapping[str, Any], key: str, default: str) -> str:
    value = route.get(key, default)
    if not isinstance(value, str) or not len(value) <= 200 or (key in route and not value):
        raise ConfigError(f"{key} is {abbreviate(value)}, expected text of 1 to 200 characters")
    return value


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) is not bool and isinstance(value, int | float) and abs(value) <= MOST


def _is_place(value: object) -> bool:
    return _is_number(value) and abs(value) <= _MAX_DISTANCE_M


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
    names = tuple(known)
    if name not in names:
        raise ConfigError(f"{what} is {abbreviate(name)}; {_hint(name, names)}")


def _hint(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _parse_yaml(data: bytes) -> list[Mapping[str, Any]]:
    """Return the routes as mappings of `_ROUTE_KEYS`, with the file's defaults."""
    try:
        text = data.decode("utf-8")
        _check_events(text)
        document = yaml.load(text, _YAML)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"it is not valid YAML: {' '.join(str(error).split())}") from error
    top = _mapping(document, "the file", ("avtd3_scenarios", "defaults", "routes"))
    version = top.get("avtd3_scenarios")
    if version != VERSION:
        raise ConfigError(
            f"avtd3_scenarios is {abbreviate(version)}, expected {VERSION}; start the file with "
            f"the line avtd3_scenarios: {VERSION}"
        )
    shared = _mapping(top.get("defaults") or {}, "defaults", _SHARED_KEYS)
    routes = top.get("routes")
    if not isinstance(routes, list):
        raise ConfigError(f"routes is {abbreviate(routes)}, expected a list of routes")
    found = [_mapping(route, f"routes[{place}]", _ROUTE_KEYS) for place, route in enumerate(routes)]
    ways = [way for route in found if isinstance(way := route.get("waypoints"), list)]
    _check_size(len(found), sum(map(len, ways)))
    return [_with_defaults(route, shared) for route in found]


def _check_events(text: str) -> None:
    """Raise if the YAML would expand to much more than its text, before it is constructed."""
    depth = 0
    for event in yaml.parse(text, _YAML):
        if isinstance(event, yaml.AliasEvent):
            # A few hundred bytes of aliases can expand to gigabytes.
            raise ConfigError("it has a YAML alias (*name), expected none; use 'defaults' instead")
        if tag := getattr(event, "tag", None):
            raise ConfigError(f"it has a YAML tag ({tag:.40}), expected none; remove it")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ConfigError(f"its YAML is nested more than {_MAX_DEPTH} levels deep")


def _mapping(value: object, where: str, keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {abbreviate(value)}, expected keys: {', '.join(keys)}")
    known = tuple(keys)
    for key in value:
        if key not in known:
            hint = _hint(str(key), known)
            raise ConfigError(f"{where} has the unknown key {abbreviate(key)}; {hint}")
    return value


def _with_defaults(route: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the file's defaults to a route, except for roads or lengths that the route replaces."""
    places, ways = {"town", "xodr", "network"}, {"waypoints", "length_m"}
    hidden = set().union(*(group for group in (places, ways) if group & route.keys()))
    return {**{key: value for key, value in shared.items() if key not in hidden}, **route}


def _parse_xml(data: bytes) -> list[Mapping[str, Any]]:
    """Return the routes of the leaderboard's XML as mappings of `_ROUTE_KEYS` and ``remarks``."""
    root = parse_xml(decode_xml(data, "it", ConfigError), "it", ConfigError)
    if root.tag != "routes":
        raise ConfigError(f"it is XML of <{root.tag:.80}>, expected <routes> of the leaderboard")
    routes = root.findall("route")
    points = sum(1 for element in root.iter() if element.tag in ("position", "waypoint"))
    _check_size(len(routes), points)
    return [_route(element, place) for place, element in enumerate(routes)]


def _route(element: ET.Element, place: int) -> Mapping[str, Any]:
    text = element.get("id", str(place))
    where = f"route {abbreviate(text)}"
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigError(f"{where}: its id is not an integer from 0 to 999999999")
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
        "remarks": (*known, *_ignored_triggers(element, text)),
    }


def _ignored_triggers(element: ET.Element, route: str) -> list[str]:
    found = [str(scenario.get("type"))[:40] for scenario in element.iter("scenario")]
    if not found:
        return []
    kinds = sorted(set(found))
    named = ", ".join(kinds[:5]) + (", ..." if len(kinds) > 5 else "")
    its = f"its {len(found)} scenarios ({named})"
    return [f"route {route}: {its} are ignored; other vehicles drive"]


def _weather(element: ET.Element, where: str) -> tuple[str, list[str]]:
    """Return the named weather nearest to that at the start of the route, and remarks about it."""
    weathers = element.findall("weathers/weather") or element.findall("weather")
    if not weathers:
        return "fair", []
    first = min(weathers, key=lambda entry: _xml_number(entry, "route_percentage", where, 0.0))
    sun = _xml_number(first, "sun_altitude_angle", where, 45.0)
    keys = ("fog_density", "precipitation", "cloudiness")
    fog, rain, clouds = (_xml_number(first, key, where, 0.0) for key in keys)
    signs = (
        ("night", sun <= 0.0),
        ("fog", fog >= 40.0),
        ("rain", rain >= 30.0),
        ("dusk", sun < 15.0),
        ("overcast", clouds >= 60.0),
    )
    name = next((name for name, applies in signs if applies), "clear")
    every = ({**entry.attrib, "route_percentage": ""} for entry in weathers)
    if len({tuple(sorted(values.items())) for values in every}) == 1:
        return name, []
    return name, [f"{where}: its weather stays {name}; changes along the route are ignored"]


def _xml_number(element: ET.Element, key: str, where: str, default: float | None = None) -> float:
    text = element.get(key)
    if text is None and default is not None:
        return default
    value = parse_number(text or "")
    if math.isnan(value):
        raise ConfigError(f"{where}: {key} is {abbreviate(text)}, expected a number")
    return value
