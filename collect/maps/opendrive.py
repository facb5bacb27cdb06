"""Read OpenDRIVE files, and check them for everything that carla.Map does not survive.

Documents come from other people: a document type is an error, so no entity is ever expanded.
"""

import math
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from avtd3.store.errors import Avtd3Error, RoadError

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest .xodr file that is read, in bytes."""
MAX_LANE_LENGTH_M = 5_000_000.0
"""Largest total length of all lanes of a network, in metres."""
DRIVING = "driving"
"""OpenDRIVE's type of a lane for cars."""
_FIX = "export it again, or check it with an OpenDRIVE validator"
_GEOMETRIES = ("line", "spiral", "arc", "poly3", "paramPoly3")
_MAX_START_M = 1e-3
_LENGTH_TOLERANCE_M = 10.0
_RELIEF = (
    ("elevationProfile", ("elevation",)),
    ("lateralProfile", ("superelevation", "crossfall", "shape")),
)


def read_opendrive(path: str | Path) -> str:
    """Read an OpenDRIVE file that carla.Map can load.

    Args:
        path: An .xodr file.

    Returns:
        Its text.

    Raises:
        RoadError: The file is missing, is a directory, is unreadable, is empty or is larger than 64
            MiB; it is not XML or not OpenDRIVE; it is malformed in a way that carla.Map does not
            survive; or it has no driving lane.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise RoadError(f"road {path} is {kind}, expected an .xodr file; give its path")
        if status.st_size > MAX_FILE_BYTES:
            raise RoadError(
                f"road {path} has {status.st_size} bytes, expected at most {MAX_FILE_BYTES}; "
                f"split the map"
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RoadError(
            f"road {path} does not exist, expected an .xodr file; check the path"
        ) from error
    except OSError as error:
        raise RoadError(
            f"road {path} cannot be read: {error.strerror}; check the file and its permissions"
        ) from error
    text = _decode(data, str(path))
    parse_opendrive(text, str(path))
    return text


def parse_opendrive(xodr: str, where: str) -> ET.Element:
    """Parse OpenDRIVE text, and check that carla.Map can load it.

    Args:
        xodr: The text.
        where: File or name for error messages.

    Returns:
        The root element, without XML namespaces.

    Raises:
        RoadError: The text is not OpenDRIVE, declares a document type, would crash carla.Map, or
            has no driving lane.
    """
    if not xodr.strip():
        raise RoadError(f"road {where} is empty, expected OpenDRIVE text; {_FIX}")
    root = parse_xml(xodr, f"road {where}", RoadError)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != "OpenDRIVE":
        raise RoadError(f"road {where} is XML of <{root.tag}>, expected <OpenDRIVE>; {_FIX}")
    _Checker(root, where).check()
    return root


def parse_xml(data: str | bytes, where: str, error: type[Avtd3Error]) -> ET.Element:
    """Parse XML that declares no document type, so that it has no entities to expand.

    Args:
        data: The XML.
        where: File or name for error messages.
        error: Class of the error to raise.

    Returns:
        The root element.
    """
    parser = ET.XMLParser(target=_PlainTree(where, error))
    try:
        parser.feed(data)
        root: ET.Element = parser.close()
    except error:
        raise
    except (ET.ParseError, ValueError) as failure:
        raise error(f"{where} is not valid XML: {failure}") from failure
    return root


class _PlainTree(ET.TreeBuilder):
    """Build a tree, and stop at a document type before it declares an entity."""

    def __init__(self, where: str, error: type[Avtd3Error]) -> None:
        super().__init__()
        self._where, self._error = where, error

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        """Raise the error."""
        raise self._error(
            f"{self._where} declares a DOCTYPE ({name:.80}), expected none; remove it"
        )


def flatten(xodr: str) -> tuple[str, bool]:
    """Remove the relief of a network: the built-in simulator drives on a plane.

    Args:
        xodr: OpenDRIVE text.

    Returns:
        The text without elevation, superelevation, crossfall and lateral shape, and whether it had
        any. A text without relief is returned unchanged.

    Raises:
        RoadError: The text is not OpenDRIVE.
    """
    root = parse_opendrive(xodr, "to flatten")
    changed = False
    for road in root.iter("road"):
        for profile, relief in _RELIEF:
            for element in road.findall(profile):
                changed |= any(_is_relief(child) for child in element if child.tag in relief)
                element[:] = [child for child in element if child.tag not in relief]
    return (ET.tostring(root, encoding="unicode"), True) if changed else (xodr, False)


def lane_sections(road: ET.Element) -> list[tuple[float, float, ET.Element]]:
    """Return the lane sections of a road in order, as (start in metres, end in metres, element)."""
    found = sorted(road.findall("lanes/laneSection"), key=lambda e: float(e.get("s", "0")))
    if not found:
        return []
    starts = [float(section.get("s", "0")) for section in found]
    ends = [*starts[1:], float(road.get("length", "0"))]
    return list(zip(starts, ends, found, strict=True))


def lanes_of(section: ET.Element) -> Iterator[tuple[int, ET.Element]]:
    """Yield the lanes of a lane section with their ids, except the centre lane (id 0)."""
    for side in ("left", "right"):
        for lane in section.findall(f"{side}/lane"):
            yield int(lane.get("id", "0")), lane


def _decode(data: bytes, where: str) -> str:
    declared = re.match(rb"""\s*<\?xml[^>]*encoding=["']([A-Za-z0-9._-]+)["']""", data[:200])
    encoding = declared.group(1).decode() if declared else "utf-8"
    try:
        return data.decode("utf-8-sig" if encoding.lower() == "utf-8" else encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise RoadError(f"road {where} is not {encoding} text: {error}; {_FIX}") from error


def _is_relief(element: ET.Element) -> bool:
    return any(float(element.get(key, "0")) != 0.0 for key in "abcd")


class _Checker:
    """Check one document for everything that carla.Map does not survive."""

    def __init__(self, root: ET.Element, where: str) -> None:
        self._root = root
        self._where = where
        self._lanes: dict[str, tuple[set[int], set[int]]] = {}
        self._driving = False
        self._lane_length_m = 0.0

    def check(self) -> None:
        roads = self._root.findall("road")
        for road in roads:
            self._check_road(road)
        if not self._driving:
            self._refuse(f"has no driving lane in its {len(roads)} roads, expected at least one")
        for road in roads:
            self._check_links(road)
        for junction in self._root.findall("junction"):
            self._check_junction(junction)

    def _refuse(self, what: str) -> NoReturn:
        raise RoadError(f"road {self._where} {what}; {_FIX}")

    def _number(self, element: ET.Element, key: str, owner: str) -> float:
        text = element.get(key, "0")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self._refuse(f"has {key}={text!r} in {owner}, expected a finite number")
        return value

    def _check_road(self, road: ET.Element) -> None:
        name = road.get("id", "")
        owner = f"road id {name!r}"
        if not re.fullmatch(r"\d{1,9}", name):
            self._refuse(f"has {owner}, expected a whole number below 1e9")
        if name in self._lanes:
            self._refuse(f"has {owner} twice, expected distinct ids")
        length = self._number(road, "length", owner)
        if not length > 0.0:
            self._refuse(f"has length {length} m in {owner}, expected above 0")
        self._check_plan(road, length, owner)
        self._check_sections(road, length, owner)

    def _check_plan(self, road: ET.Element, length: float, owner: str) -> None:
        plan = road.findall("planView/geometry")
        if not plan:
            self._refuse(f"has no planView geometry in {owner}")
        first = min(self._number(geometry, "s", owner) for geometry in plan)
        if first > _MAX_START_M:
            self._refuse(f"has a planView that starts at {first} m in {owner}, expected 0 m")
        for geometry in plan:
            shapes = [child for child in geometry if child.tag in _GEOMETRIES]
            if not shapes:
                self._refuse(f"has a geometry in {owner}, expected one of {', '.join(_GEOMETRIES)}")
            for element in (geometry, *shapes):
                for key in element.attrib.keys() - {"pRange"}:
                    self._number(element, key, owner)
            if float(geometry.get("length", "0")) > length + _LENGTH_TOLERANCE_M:
                self._refuse(f"has a geometry in {owner} that is longer than the road ({length} m)")

    def _check_sections(self, road: ET.Element, length: float, owner: str) -> None:
        found = road.findall("lanes/laneSection")
        starts = [self._number(section, "s", owner) for section in found]
        if found and (min(starts) < 0.0 or max(starts) >= length):
            self._refuse(
                f"has lane sections from {min(starts)} m to {max(starts)} m in {owner}, expected "
                f"starts from 0 m to below {length} m"
            )
        if len(set(starts)) != len(starts):
            self._refuse(f"has two lane sections with the same start in {owner}, expected one")
        sides = [self._check_lanes(section, owner) for section in found]
        for (start, end, _), lanes in zip(lane_sections(road), sides, strict=True):
            self._lane_length_m += (end - start) * len(lanes)
        if self._lane_length_m > MAX_LANE_LENGTH_M:
            self._refuse(f"has over {MAX_LANE_LENGTH_M / 1000:.0f} km of lanes, expected less")
        empty: set[int] = set()
        by_start = sorted(zip(starts, sides, strict=True), key=lambda pair: pair[0])
        ordered = [lanes for _, lanes in by_start]
        self._lanes[road.get("id", "")] = (ordered[0], ordered[-1]) if ordered else (empty, empty)

    def _check_lanes(self, section: ET.Element, owner: str) -> set[int]:
        if section.find("center/lane") is None:
            self._refuse(f"has a lane section without a centre lane in {owner}, expected one")
        for width in section.iter("width"):
            for key in width.attrib:
                self._number(width, key, owner)
        for lane in (*section.iterfind("left/lane"), *section.iterfind("right/lane")):
            if not re.fullmatch(r"-?[1-9]\d{0,3}", lane.get("id", "")):
                self._refuse(f"has lane id {lane.get('id')!r} in {owner}, expected an integer")
            self._driving |= lane.get("type") == DRIVING
        numbers = [number for number, _ in lanes_of(section)]
        found = set(numbers)
        right = sum(1 for number in found if number < 0)
        whole = {*range(-right, 0), *range(1, len(found) - right + 1)}
        if found != whole or len(numbers) != len(found):
            self._refuse(f"has lanes {numbers} in {owner}, expected 1, 2, ... on each side")
        return found

    def _check_links(self, road: ET.Element) -> None:
        sections = [section for _, _, section in lane_sections(road)]
        inner = [{lane for lane, _ in lanes_of(section)} for section in sections]
        beyond = (self._linked_lanes(road, "predecessor"), self._linked_lanes(road, "successor"))
        around = [beyond[0], *inner, beyond[1]]
        either_way = road.get("rule") == "LHT"
        for index, section in enumerate(sections):
            for number, lane in lanes_of(section):
                # carla.Map follows links in driving direction only, and does not check them.
                if number < 0 or either_way:
                    self._check_link(road, lane, "successor", around[index + 2])
                if number > 0 or either_way:
                    self._check_link(road, lane, "predecessor", around[index])

    def _check_link(
        self, road: ET.Element, lane: ET.Element, name: str, there: set[int] | None
    ) -> None:
        link = lane.find(f"link/{name}")
        if link is None or there is None:
            return
        target = link.get("id", "")
        if target not in {"0", *map(str, there)}:
            self._refuse(
                f"links lane {lane.get('id')} of road id {road.get('id')!r} to a lane "
                f"{target!r} that does not exist, expected one of {sorted(there)}"
            )

    def _linked_lanes(self, road: ET.Element, name: str) -> set[int] | None:
        """Return the lane ids at the other end of a road's link; None if it links to no road."""
        link = road.find(f"link/{name}")
        if link is None or link.get("elementType") != "road":
            return None
        ends = self._lanes.get(link.get("elementId", ""))
        if ends is None:
            return None
        return ends[1] if link.get("contactPoint") == "end" else ends[0]

    def _check_junction(self, junction: ET.Element) -> None:
        for connection in junction.findall("connection"):
            road = connection.get("connectingRoad", connection.get("linkedRoad", ""))
            if road not in self._lanes:
                self._refuse(
                    f"has a connection over road {road!r} in junction {junction.get('id')!r}, "
                    "expected the id of a road that exists"
                )
