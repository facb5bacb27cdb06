"""Read OpenDRIVE files, and check them for everything that is known to end or block carla.Map.

Documents come from other people: a document type is an error, so no entity is ever expanded;
numbers and encodings are those of XML, not all that Python knows; sizes are limited at first.
"""

import codecs
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from avtd3.store.errors import Avtd3Error, RoadError, advice
from avtd3.store.files import read_bytes

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_TAGS = 3_000_000
MAX_DEPTH = 64
MAX_ROADS = 10_000  # CARLA's Town03 has 216
MAX_LANES = 30_000  # each lane section counted by itself
MAX_LANES_ABREAST = 100
MAX_LANE_LENGTH_M = 500_000.0  # of all lanes together
MAX_NUMBER = 1e9
DRIVING = "driving"  # OpenDRIVE's type of a lane for cars
_FIX = "export it again, or check it with an OpenDRIVE validator"
_GEOMETRIES = ("line", "spiral", "arc", "poly3", "paramPoly3")
_MAX_START_M = 1e-3
_LENGTH_TOLERANCE_M = 10.0
_RELIEF = ("elevation", "superelevation", "crossfall", "shape")
_CUBIC = ("a", "b", "c", "d")
_NUMBERS = {
    "geometry": ("s", "x", "y", "hdg", "length"),
    "spiral": ("curvStart", "curvEnd"),
    "arc": ("curvature",),
    "poly3": _CUBIC,
    "paramPoly3": tuple(f"{key}{axis}" for key in _CUBIC for axis in "UV"),
    "elevation": ("s", *_CUBIC),
    "superelevation": ("s", *_CUBIC),
    "crossfall": ("s", *_CUBIC),
    "shape": ("s", "t", *_CUBIC),
    "laneOffset": ("s", *_CUBIC),
    "laneSection": ("s",),
    "width": ("sOffset", *_CUBIC),
    "border": ("sOffset", *_CUBIC),
    "roadMark": ("sOffset",),
}
"""The attributes of each element that must be numbers."""
_NUMBER = re.compile(r"[ \t\r\n]*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?[ \t\r\n]*")
_ROAD_ID = re.compile(r"[0-9]{1,9}")
_LANE_ID = re.compile(r"-?[1-9][0-9]{0,3}")
_ENCODINGS = re.compile(
    r"utf-(8|16|16-[lb]e)|ascii|iso8859-[0-9]+|cp125[0-9]|gb(2312|k|18030)|big5|shift_jis|euc_(jp|kr)"
)
"""Python's names of the encodings that are read; it also knows ``zlib``, ``idna`` and others."""
Cubic = tuple[float, ...]
Cubics = list[tuple[float, Cubic]]
"""A function in pieces: from each start, in metres, the four coefficients that apply."""


def read_opendrive(path: str | Path) -> str:
    """Read an OpenDRIVE file for carla.Map; raise `RoadError` if it cannot be used.

    Roads with ids that carla.Map cannot hold get numbers, and lanes that are described by their
    borders get widths; otherwise, the text is that of the file.
    """
    where, expected = f"road {path}", "an .xodr file; check the path"
    data = read_named(path, where, MAX_FILE_BYTES, RoadError, expected, "give an .xodr file")
    text = decode_xml(data, where, RoadError)
    root = parse_opendrive(text, str(path), is_checked=True)  # below, with numbered roads
    changed = _number_roads(root)
    _Checker(root, str(path)).check()
    changed |= _widen_bordered_lanes(root)
    return ET.tostring(root, encoding="unicode") if changed else text


def parse_opendrive(xodr: str, where: str, *, is_checked: bool = False) -> ET.Element:
    """Parse OpenDRIVE text, and check it; return the root element, without XML namespaces."""
    if not xodr.strip():
        raise RoadError(f"road {where} is empty, expected OpenDRIVE text; {_FIX}")
    root = parse_xml(xodr, f"road {where}", RoadError)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != "OpenDRIVE":
        raise RoadError(f"road {where} is XML of <{root.tag:.80}>, expected <OpenDRIVE>; {_FIX}")
    if not is_checked:
        _Checker(root, where).check()
    return root


def read_named(
    path: str | Path, where: str, most: int, error: type[Avtd3Error], expected: str, fix: str
) -> bytes:
    """Read a file that a user names, of at most so many bytes; raise `error` if it cannot be."""
    try:
        return read_bytes(path, most)
    except FileNotFoundError as failure:
        raise error(f"{where} does not exist, expected {expected}") from failure
    except OSError as failure:
        raise error(f"{where} cannot be read: {advice(failure, reads=True)}") from failure
    except ValueError as failure:
        raise error(f"{where} cannot be used: {failure}; {fix}") from failure


def decode_xml(data: bytes, where: str, error: type[Avtd3Error]) -> str:
    """Decode XML by its byte order mark or its declaration; raise `error` if that is impossible."""
    declared = re.match(rb"""\s*<\?xml[^>]*encoding=["']([A-Za-z0-9._-]+)["']""", data[:200])
    encoding = declared.group(1).decode() if declared else "utf-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        name = codecs.lookup(encoding).name
        if _ENCODINGS.fullmatch(name):
            return data.decode("utf-8-sig" if name == "utf-8" else name)
    except (UnicodeError, LookupError) as failure:
        raise error(f"{where} is not {encoding:.40} text: {failure}; save it as utf-8") from failure
    raise error(f"{where} has the encoding {encoding:.40}, expected one of text; save it as utf-8")


def parse_xml(text: str, where: str, error: type[Avtd3Error]) -> ET.Element:
    """Parse XML of limited size without a document type; raise `error` if it is anything else."""
    if text.count("<") > MAX_TAGS:
        raise error(f"{where} has {text.count('<')} tags, expected at most {MAX_TAGS}; split it")
    parser = ET.XMLParser(target=_PlainTree(where, error))
    try:
        parser.feed(text)
        root: ET.Element = parser.close()
    except error:
        raise
    except (ET.ParseError, ValueError) as failure:
        raise error(f"{where} is not valid XML: {failure}") from failure
    level = [root]
    for _ in range(MAX_DEPTH):
        level = [child for element in level for child in element]
    if level:
        raise error(f"{where} is XML nested more than {MAX_DEPTH} levels deep, expected fewer")
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


def parse_number(text: str) -> float:
    """Return a decimal number; NaN for ``0x1f``, ``1_000``, ``1,5``, ``inf``, ``1e10`` and text."""
    value = float(text) if len(text) < 100 and _NUMBER.fullmatch(text) else math.nan
    return value if abs(value) <= MAX_NUMBER else math.nan


def flatten(xodr: str) -> tuple[str, bool]:
    """Return a network without its relief, and whether it had any."""
    root = parse_opendrive(xodr, "to flatten")
    changed = False
    for parent in (*root.iterfind("road/elevationProfile"), *root.iterfind("road/lateralProfile")):
        removed = [child for child in parent if child.tag in _RELIEF]
        changed |= any(float(child.get(key, "0")) for child in removed for key in _CUBIC)
        parent[:] = [child for child in parent if child.tag not in _RELIEF]
    return (ET.tostring(root, encoding="unicode"), True) if changed else (xodr, False)


def lane_sections(road: ET.Element) -> list[tuple[float, float, ET.Element]]:
    """Return the lane sections of a road in order, as (start in metres, end in metres, element)."""
    found = sorted(road.findall("lanes/laneSection"), key=lambda e: float(e.get("s", "0")))
    starts = [float(section.get("s", "0")) for section in found]
    ends = [*starts[1:], float(road.get("length", "0"))]
    return list(zip(starts, ends, found, strict=False))


def lanes_of(section: ET.Element) -> Iterator[tuple[int, ET.Element]]:
    """Yield the lanes of a lane section with their ids, except the centre lane (id 0)."""
    for side in ("left", "right"):
        for lane in section.findall(f"{side}/lane"):
            yield int(lane.get("id", "0")), lane


def _number_roads(root: ET.Element) -> bool:
    """Number all roads if one has a text or a large number as its id; return whether that is so."""
    ids = [road.get("id", "") for road in root.findall("road")]
    if all(map(_ROAD_ID.fullmatch, ids)) or not all(ids) or len(set(ids)) < len(ids):
        return False
    numbers = {name: str(number) for number, name in enumerate(ids, 1)}
    for road in root.findall("road"):
        road.set("id", numbers[road.get("id", "")])
    links = [link for link in root.iterfind("road/link/*") if link.get("elementType") == "road"]
    for element in (*links, *root.iterfind("junction/connection")):
        for key in ("elementId", "incomingRoad", "connectingRoad", "linkedRoad"):
            if key in element.attrib:
                element.set(key, numbers.get(element.get(key, ""), "0"))
    return True


def _widen_bordered_lanes(root: ET.Element) -> bool:
    """Give widths to the lanes that have only borders; return whether there were any.

    carla.Map does not use borders, the distances of the outer edges from the reference line (ASAM
    OpenDRIVE 1.8, 11.6.2). Some exporters write those on the right as positive numbers.
    """
    changed = False
    for section in root.iterfind("road/lanes/laneSection"):
        lanes = sorted(lanes_of(section), key=lambda pair: abs(pair[0]))
        for side in (1, -1):
            edge: Cubics = [(0.0, (0.0, 0.0, 0.0, 0.0))]
            for lane in (lane for number, lane in lanes if number * side > 0):
                borders, widths = _records(lane, "border"), _records(lane, "width")
                if borders and not widths:
                    changed = True
                    sign = -1.0 if borders[0][1][0] < 0.0 else 1.0
                    outer = [(start, tuple(sign * x for x in cubic)) for start, cubic in borders]
                    for start, cubic in _combine(outer, edge, -1.0):
                        values = dict(zip(_CUBIC, map(repr, cubic), strict=True))
                        ET.SubElement(lane, "width", {"sOffset": repr(start), **values})
                    edge = outer
                elif widths:
                    edge = _combine(edge, widths, 1.0)
    return changed


def _records(lane: ET.Element, tag: str) -> Cubics:
    """Return the start and the coefficients of each record of a lane, in order."""
    return sorted(
        (float(record.get("sOffset", "0")), tuple(float(record.get(key, "0")) for key in _CUBIC))
        for record in lane.findall(tag)
    )


def _combine(one: Cubics, other: Cubics, factor: float) -> Cubics:
    """Return the piecewise cubic ``one + factor * other``."""
    found = []
    for start in sorted({0.0, *(start for start, _ in (*one, *other))}):
        pairs = zip(_piece(one, start), _piece(other, start), strict=True)
        found.append((start, tuple(x + factor * y for x, y in pairs)))
    return found


def _piece(records: Cubics, start: float) -> Cubic:
    """Return the cubic that applies from `start`, moved there; the first also applies before it."""
    origin, (a, b, c, d) = max(
        (record for record in records if record[0] <= start), default=records[0]
    )
    x = start - origin
    return a + x * (b + x * (c + x * d)), b + x * (2.0 * c + 3.0 * x * d), c + 3.0 * x * d, d


class _Checker:
    """Check one document for everything that is known to end or block carla.Map."""

    def __init__(self, root: ET.Element, where: str) -> None:
        self._root = root
        self._where = where
        self._lanes: dict[str, tuple[set[int], set[int]]] = {}
        self._driving = False
        self._lane_length_m, self._lane_count = 0.0, 0

    def check(self) -> None:
        roads = self._root.findall("road")
        if len(roads) > MAX_ROADS:
            self._refuse(f"has {len(roads)} roads, expected at most {MAX_ROADS}", "split it")
        for road in roads:
            self._check_road(road)
        if not self._driving:
            expected = f'at least one <lane type="{DRIVING}">'
            self._refuse(f"has no driving lane in its {len(roads)} roads, expected {expected}")
        for road in roads:
            self._check_links(road)
        self._check_references()

    def _check_references(self) -> None:
        for junction in self._root.findall("junction"):
            place = f"in junction {junction.get('id')!r:.80}"
            for connection in junction.findall("connection"):
                road = connection.get("connectingRoad", connection.get("linkedRoad", ""))
                if road not in self._lanes:
                    found = f"has a connection over road {road!r:.80} {place}"
                    self._refuse(f"{found}, expected the id of a road that exists")
        signals = {signal.get("id") for signal in self._root.iterfind("road/signals/signal")}
        for reference in self._root.iterfind("road/signals/signalReference"):
            if (name := reference.get("id")) not in signals:
                found = f"has a signalReference to signal {name!r:.80}"
                self._refuse(f"{found}, expected the id of a signal that exists")

    def _refuse(self, what: str, fix: str = _FIX) -> NoReturn:
        raise RoadError(f"road {self._where} {what}; {fix}")

    def _number(self, element: ET.Element, key: str, owner: str) -> float:
        text = element.get(key, "0")
        value = parse_number(text)
        if math.isnan(value):
            expected = f"a finite decimal number of at most {MAX_NUMBER:g}"
            self._refuse(f"has {key}={text!r:.80} in {owner}, expected {expected}")
        return value

    def _check_road(self, road: ET.Element) -> None:
        name = road.get("id", "")
        owner = f"road id {name!r:.80}"
        if not _ROAD_ID.fullmatch(name):
            self._refuse(f"has {owner}, expected a whole number below 1e9")
        if name in self._lanes:
            self._refuse(f"has {owner} twice, expected distinct ids")
        length = self._number(road, "length", owner)
        if not length > 0.0:
            self._refuse(f"has length {length} m in {owner}, expected above 0")
        for element in road.iter():
            for key in _NUMBERS.get(element.tag, ()):
                if key in element.attrib:
                    self._number(element, key, owner)
        self._check_plan(road, length, owner)
        self._check_sections(road, length, owner)

    def _check_plan(self, road: ET.Element, length: float, owner: str) -> None:
        plan = road.findall("planView/geometry")
        if not plan:
            self._refuse(f"has no planView geometry in {owner}")
        for path, what in (("planView/geometry", "planView"), ("lanes/laneOffset", "laneOffset")):
            first = min((float(e.get("s", "0")) for e in road.findall(path)), default=0.0)
            if first > _MAX_START_M:
                self._refuse(f"has a {what} that starts at {first} m in {owner}, expected 0 m")
        for geometry in plan:
            if not any(child.tag in _GEOMETRIES for child in geometry):
                self._refuse(f"has a geometry in {owner}, expected one of {', '.join(_GEOMETRIES)}")
            if float(geometry.get("length", "0")) > length + _LENGTH_TOLERANCE_M:
                self._refuse(f"has a geometry in {owner} that is longer than the road ({length} m)")

    def _check_sections(self, road: ET.Element, length: float, owner: str) -> None:
        found = lane_sections(road)
        starts = [start for start, _, _ in found]
        if found and (min(starts) < 0.0 or max(starts) >= length):
            sections = f"lane sections from {min(starts)} m to {max(starts)} m in {owner}"
            self._refuse(f"has {sections}, expected starts from 0 m to below {length} m")
        if len(set(starts)) != len(starts):
            self._refuse(f"has two lane sections with the same start in {owner}, expected one")
        sides: list[set[int]] = []
        for start, end, section in found:
            sides.append(self._check_lanes(section, owner))
            self._lane_length_m += (end - start) * len(sides[-1])
            self._lane_count += len(sides[-1])
        if self._lane_length_m > MAX_LANE_LENGTH_M or self._lane_count > MAX_LANES:
            most = f"{MAX_LANES} lanes or {MAX_LANE_LENGTH_M / 1000:.0f} km of lanes"
            self._refuse(f"has over {most}", "split it")
        self._lanes[road.get("id", "")] = (sides[0], sides[-1]) if sides else (set(), set())

    def _check_lanes(self, section: ET.Element, owner: str) -> set[int]:
        if section.find("center/lane") is None:
            self._refuse(f"has a lane section without a centre lane in {owner}, expected one")
        lanes = [*section.iterfind("left/lane"), *section.iterfind("right/lane")]
        if len(lanes) > MAX_LANES_ABREAST:
            abreast = f"{len(lanes)} lanes side by side in {owner}"
            self._refuse(f"has {abreast}, expected at most {MAX_LANES_ABREAST}")
        for lane in lanes:
            if not _LANE_ID.fullmatch(lane.get("id", "")):
                self._refuse(f"has lane id {lane.get('id')!r:.80} in {owner}, expected an integer")
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
        before, after = (self._linked_lanes(road, name) for name in ("predecessor", "successor"))
        around = [before, *inner, after]
        either_way = road.get("rule") == "LHT"
        for index, section in enumerate(sections):
            for number, lane in lanes_of(section):
                # carla.Map follows links in driving direction only, and does not check them.
                owner = f"lane {lane.get('id')} of road id {road.get('id')!r}"
                if number < 0 or either_way:
                    self._check_link(owner, lane.find("link/successor"), around[index + 2])
                if number > 0 or either_way:
                    self._check_link(owner, lane.find("link/predecessor"), around[index])

    def _check_link(self, owner: str, link: ET.Element | None, there: set[int] | None) -> None:
        if link is None or there is None:
            return
        if (target := link.get("id", "")) not in {"0", *map(str, there)}:
            found = f"to a lane {target!r:.80} that does not exist"
            self._refuse(f"links {owner} {found}, expected one of {sorted(there)}")

    def _linked_lanes(self, road: ET.Element, name: str) -> set[int] | None:
        """Return the lane ids at the other end of a road's link; None if it links to no road."""
        link = road.find(f"link/{name}")
        if link is None or link.get("elementType") != "road":
            return None
        ends = self._lanes.get(link.get("elementId", ""))
        if ends is None:
            return None
        return ends[1] if link.get("contactPoint") == "end" else ends[0]
