"""Generate road networks as OpenDRIVE text: country roads, loops, towns and motorways.

`byroad` and `streets` are like `country` and `town`, with what real networks have besides: tight
turns, sharp angles, streets of different widths, and missing markings.

Roads run along polylines with rounded corners. A corner is a clothoid, an arc and a clothoid back,
so that the curvature is continuous. It starts and ends on the polyline: a closed polyline therefore
gives an exactly closed road, and a street meets its junctions exactly. OpenDRIVE's frame has y to
the left and headings anticlockwise.
"""

import dataclasses
import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scenariogeneration import xodr

from avtd3.store.errors import ConfigError, RoadError

STRAIGHT_RAD = 1e-3  # smaller changes of heading are not rounded
_LINE_M = 1.0  # straight that remains on each side between two corners
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_ATTEMPTS = 500
_SAMPLE_M = 6.0
_DIGITS = 9  # nanometres; hides the last bits, in which the sines of machines differ
_DATE = "2000-01-01T00:00:00"
_PLACE = "+proj=tmerc +lat_0=0 +lon_0=0 +k=1 +x_0=0 +y_0=0 +datum=WGS84 +units=m +no_defs"
_PAINT_M = 0.12
_FIRST_LINK_ROAD = 1000
_TURN_SHARE = 0.3  # share of the clothoids of a turn over a junction
_TOWN_ATTEMPTS = 200
_SHARE = 0.5
_SHORTEST_LEG_M = 3.0
_Point = tuple[float, float]
_Streets = dict[int, list[int]]


def generate_network(kind: str, seed: int) -> str:
    """Generate a road network as OpenDRIVE text; the same kind and seed give the same bytes.

    ``country`` is a winding road, ``loop`` a closed one, ``town`` streets with T-junctions and
    crossings, ``motorway`` two or three lanes per side on gentle curves. ``byroad`` is a narrow
    country road, ``streets`` an irregular town with tight junctions.
    """
    if kind not in _GENERATORS:
        raise ConfigError(f"network kind is {kind!r}, expected one of {', '.join(NETWORK_KINDS)}")
    if seed < 0:
        raise ConfigError(f"network seed is {seed}, expected at least 0")
    rng = np.random.default_rng([NETWORK_KINDS.index(kind), seed])
    builder = NetworkBuilder(f"{kind}-{seed:06d}")
    _GENERATORS[kind](builder, rng)
    return builder.text()


class Winding(NamedTuple):
    """How a road winds: the smallest and the largest value of each property."""

    length_m: tuple[float, float]
    """Length of the polyline before its corners are rounded; for a closed road, circumference of
    the circles on which the vertices are."""
    edge_m: tuple[float, float]
    turn_deg: tuple[float, float]
    radius_m: tuple[float, float]


_WINDING_SHARE = 0.6
_COUNTRY = Winding((1000.0, 1800.0), (70.0, 180.0), (10.0, 105.0), (25.0, 260.0))
_LOOP = Winding((560.0, 1260.0), (60.0, 400.0), (0.0, 115.0), (20.0, 200.0))
_MOTORWAY = Winding((1500.0, 2000.0), (300.0, 520.0), (3.0, 32.0), (350.0, 1500.0))
_BYROAD = Winding((700.0, 1300.0), (26.0, 130.0), (8.0, 115.0), (9.5, 160.0))


class TownShape(NamedTuple):
    """How irregular a town is."""

    spacing_m: tuple[float, float]
    jitter: float
    """Maximum displacement of a node from its grid, as a share of the spacing."""
    removed: int
    """Maximum number of streets that are removed from the grid."""
    sharpest_rad: float
    """Smallest angle between two streets at a junction."""
    radius_m: tuple[float, float]
    """Radii of bends between junctions."""
    bent: float = 0.0
    """Share of the streets that get another bend between their ends."""


_TOWN = TownShape((85.0, 125.0), 0.1, 3, math.radians(62.0), (12.0, 40.0))
_STREETS = TownShape((42.0, 100.0), 0.22, 4, math.radians(48.0), (7.0, 24.0), bent=0.45)
# Radius of a turn to the right over a junction, at the middle of the lane.
_TIGHTEST_M = (5.0, 11.0)
_BEND_M = 0.16  # displacement of a bend, as a share of the length of its street


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Cross-section of a road, the same on both sides."""

    lane_width_m: float
    lanes: int = 1  # in each direction
    centre_marks: tuple[str, ...] = ("broken",)
    """Markings of the centre line, used in turn along the road, each for `mark_length_m`."""
    mark_length_m: float = math.inf
    edge_mark: str = "solid"
    shoulder_m: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A part of a road whose curvature changes linearly: a line, an arc or a clothoid."""

    x_m: float
    y_m: float
    heading_rad: float
    length_m: float
    curvature_start: float = 0.0
    """In 1/m, positive to the left."""
    curvature_end: float = 0.0

    def end(self) -> tuple[float, float, float]:
        """Return position and heading at the end, by Gauss-Legendre quadrature, exact to 1e-9 m."""
        at = 0.5 * self.length_m * (_NODES + 1.0)
        slope = (self.curvature_end - self.curvature_start) / self.length_m
        heading = self.heading_rad + at * (self.curvature_start + 0.5 * slope * at)
        scale = 0.5 * self.length_m
        turned = 0.5 * (self.curvature_start + self.curvature_end) * self.length_m
        return (
            self.x_m + scale * float(_WEIGHTS @ np.cos(heading)),
            self.y_m + scale * float(_WEIGHTS @ np.sin(heading)),
            self.heading_rad + turned,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One end of a road at a junction, whose centre it leaves in a direction."""

    road_id: int
    at_end: bool
    """Whether the road ends at the junction; otherwise it starts there."""
    angle_rad: float
    reach_m: float
    """Distance from the centre to the end of the road."""
    width_m: float
    """Width of the lanes."""

    @property
    def contact(self) -> xodr.ContactPoint:
        """The end of the road at the junction."""
        return xodr.ContactPoint.end if self.at_end else xodr.ContactPoint.start


class NetworkBuilder:
    """Collect roads with right-hand traffic and write them as one document."""

    def __init__(self, name: str) -> None:
        self._document = xodr.OpenDrive(name, revMinor="4", geo_reference=_PLACE)
        self._roads: dict[int, xodr.Road] = {}
        self._links = _FIRST_LINK_ROAD

    def add_road(self, pieces: Sequence[Piece], profile: Profile) -> int:
        """Add a road along a reference line; return its id."""
        road_id = len(self._roads) + 1
        plan = _plan(pieces)
        length = plan.get_total_length()
        count = max(math.floor(length / profile.mark_length_m), 1)
        lanes = xodr.Lanes()
        for index in range(count):
            mark = profile.centre_marks[index % len(profile.centre_marks)]
            start = round(index * length / count, 3)
            lanes.add_lanesection(_section(start, profile, mark, index > 0, index < count - 1))
        self._roads[road_id] = xodr.Road(road_id, plan, lanes)
        self._document.add_road(self._roads[road_id])
        return road_id

    def join(self, first: int, second: int) -> None:
        """Make the second road continue the first, lane by lane."""
        before, after = self._roads[first], self._roads[second]
        before.add_successor(xodr.ElementType.road, second, xodr.ContactPoint.start)
        after.add_predecessor(xodr.ElementType.road, first, xodr.ContactPoint.end)
        _link(before.lanes.lanesections[-1], "successor")
        _link(after.lanes.lanesections[0], "predecessor")

    def add_junction(
        self, junction_id: int, centre: _Point, arms: Sequence[Arm], edge_mark: str = "none"
    ) -> None:
        """Connect roads with one lane per side in all directions except back.

        Each road ends on its straight line to the centre.
        """
        junction = xodr.Junction(f"junction {junction_id}", junction_id)
        for arm in arms:
            road = self._roads[arm.road_id]
            link = road.add_successor if arm.at_end else road.add_predecessor
            link(xodr.ElementType.junction, junction_id)
        for incoming, outgoing in itertools.permutations(arms, 2):
            plan = _plan(_crossing(centre, incoming, outgoing))
            from_lane = -1 if incoming.at_end else 1
            widening = (outgoing.width_m - incoming.width_m) / plan.get_total_length()
            slope = {"b": round(widening, _DIGITS)} if widening else {}
            lane = _marked(xodr.Lane(a=incoming.width_m, **slope), edge_mark)
            lane.add_link("predecessor", from_lane)
            lane.add_link("successor", 1 if outgoing.at_end else -1)
            section = xodr.LaneSection(0, _marked(xodr.Lane(), "none"))
            section.add_right_lane(lane)
            lanes = xodr.Lanes()
            lanes.add_lanesection(section)
            road = xodr.Road(self._links, plan, lanes, road_type=junction_id)
            road.add_predecessor(xodr.ElementType.road, incoming.road_id, incoming.contact)
            road.add_successor(xodr.ElementType.road, outgoing.road_id, outgoing.contact)
            self._document.add_road(road)
            connection = xodr.Connection(incoming.road_id, self._links, xodr.ContactPoint.start)
            connection.add_lanelink(from_lane, -1)
            junction.add_connection(connection)
            self._links += 1
        self._document.add_junction(junction)

    def text(self) -> str:
        """Return the document; the same roads give the same bytes on any date."""
        root: ET.Element = self._document.get_element()
        for header in root.iter("header"):
            header.set("date", _DATE)
        ET.indent(root)
        return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _country(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    builder.add_road(winding_road(rng, _COUNTRY), _two_lanes(rng))


def _loop(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    pieces = closed_road(rng, _LOOP)
    cut = _middle_line(pieces)
    profile = _two_lanes(rng)
    first = builder.add_road(pieces[:cut], profile)
    second = builder.add_road(pieces[cut:], profile)
    builder.join(first, second)
    builder.join(second, first)


def _motorway(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    pieces = winding_road(rng, _MOTORWAY)
    profile = Profile(
        lane_width_m=round(rng.uniform(3.5, 3.75), 2),
        lanes=int(rng.integers(2, 4)),
        centre_marks=("solid_solid",),
        shoulder_m=round(rng.uniform(1.5, 3.0), 2),
    )
    builder.add_road(pieces, profile)


def _middle_line(pieces: list[Piece]) -> int:
    """Return the index of the straight piece nearest to the middle of a list."""
    lines = [n for n, piece in enumerate(pieces) if n and not piece.curvature_start]
    straight = [n for n in lines if not pieces[n].curvature_end]
    return min(straight, key=lambda n: abs(n - len(pieces) // 2))


def _two_lanes(rng: np.random.Generator) -> Profile:
    return Profile(
        lane_width_m=round(rng.uniform(3.0, 3.75), 2),
        centre_marks=tuple(rng.permutation(["broken", "solid", "solid_solid"]).tolist()),
        mark_length_m=float(rng.uniform(150.0, 400.0)),
        edge_mark=str(rng.choice(["solid", "solid", "broken"])),
        shoulder_m=round(rng.uniform(0.4, 1.6), 2) if rng.random() < 0.7 else 0.0,
    )


def _byroad(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    builder.add_road(winding_road(rng, _BYROAD), _any_profile(rng, rng.uniform(2.7, 3.7)))


def _any_profile(rng: np.random.Generator, lane_width_m: float) -> Profile:
    """Draw a street with any markings, or none."""
    marks = rng.choice(["broken", "none", "solid", "solid_solid"], 3, p=[0.45, 0.25, 0.15, 0.15])
    return Profile(
        lane_width_m=round(lane_width_m, 2),
        centre_marks=tuple(marks.tolist()),
        mark_length_m=float(rng.uniform(25.0, 200.0)),
        edge_mark=str(rng.choice(["none", "solid", "broken"], p=[0.45, 0.4, 0.15])),
        shoulder_m=round(rng.uniform(0.2, 2.5), 2) if rng.random() < 0.5 else 0.0,
    )


def _town(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    places, streets = _town_plan(rng, _TOWN)
    reach = float(rng.uniform(14.0, 18.0))
    profile = Profile(
        lane_width_m=round(rng.uniform(3.0, 3.6), 2),
        centre_marks=(str(rng.choice(["broken", "broken", "solid"])),),
        edge_mark=str(rng.choice(["solid", "none", "broken"])),
    )
    reaches = {(node, beyond): reach for node, ends in streets.items() for beyond in ends}
    chains = [(chain, profile) for chain in _chains(streets)]
    _add_town(builder, rng, places, chains, reaches, _TOWN.radius_m)


def _streets(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    for _ in range(_TOWN_ATTEMPTS):
        places, streets = _town_plan(rng, _STREETS)
        usual_m = rng.uniform(2.8, 4.1)
        widths = (
            usual_m if rng.random() < 0.6 else rng.uniform(2.75, 4.0) for _ in itertools.count()
        )
        chains = [(chain, _any_profile(rng, next(widths))) for chain in _chains(streets)]
        reaches = _reaches(rng, places, streets, usual_m)
        if all(_has_room(places[chain], _ends_of(chain, reaches)) for chain, _ in chains):
            break
    else:
        raise RoadError(f"no town found in {_TOWN_ATTEMPTS} attempts; use another seed")
    edge_mark = str(rng.choice(["none", "solid", "broken"], p=[0.7, 0.2, 0.1]))
    _add_town(builder, rng, places, chains, reaches, _STREETS.radius_m, edge_mark)


def _add_town(
    builder: NetworkBuilder,
    rng: np.random.Generator,
    places: NDArray[np.float64],
    chains: Sequence[tuple[list[int], Profile]],
    reaches: Mapping[tuple[int, int], float],
    radius_m: tuple[float, float],
    edge_mark: str = "none",
) -> None:
    """Add streets along nodes, and the junctions at their ends."""
    arms: dict[int, list[Arm]] = {}
    for chain, profile in chains:
        pieces = _street(rng, places[chain], _ends_of(chain, reaches), radius_m)
        road_id = builder.add_road(pieces, profile)
        for node, beyond, at_end in ((chain[0], chain[1], False), (chain[-1], chain[-2], True)):
            x, y = places[beyond] - places[node]
            reach_m, width_m = reaches[node, beyond], profile.lane_width_m
            arm = Arm(road_id, at_end, math.atan2(y, x), reach_m, width_m)
            arms.setdefault(node, []).append(arm)
    for number, (node, ends) in enumerate(sorted(arms.items()), start=1):
        centre = (float(places[node][0]), float(places[node][1]))
        builder.add_junction(number, centre, ends, edge_mark)


def _ends_of(chain: list[int], reaches: Mapping[tuple[int, int], float]) -> tuple[float, float]:
    """Return how far from its junctions a street starts and ends."""
    return reaches[chain[0], chain[1]], reaches[chain[-1], chain[-2]]


def _town_plan(rng: np.random.Generator, shape: TownShape) -> tuple[NDArray[np.float64], _Streets]:
    """Draw the nodes float64 (N, 2) of a town, and the nodes to which each is connected."""
    for _ in range(_TOWN_ATTEMPTS):
        across, along = int(rng.integers(3, 5)), 3
        spacing = rng.uniform(*shape.spacing_m, 2)
        grid = np.stack(np.meshgrid(np.arange(across), np.arange(along)), axis=-1).reshape(-1, 2)
        places = (grid + rng.uniform(-shape.jitter, shape.jitter, grid.shape)) * spacing
        streets = _grid_streets(across, along)
        _thin_out(rng, streets, int(rng.integers(0, shape.removed + 1)))
        places = _bend(rng, places, streets, shape.bent)
        if _is_fit(places, streets, shape.sharpest_rad):
            return places, streets
    raise RoadError(f"no town found in {_TOWN_ATTEMPTS} attempts; use another seed")


def _grid_streets(across: int, along: int) -> _Streets:
    streets: _Streets = {node: [] for node in range(across * along)}
    for node in streets:
        right, above = node + 1, node + across
        for beyond, fits in ((right, right % across != 0), (above, above < across * along)):
            if fits:
                streets[node].append(beyond)
                streets[beyond].append(node)
    return streets


def _thin_out(rng: np.random.Generator, streets: _Streets, count: int) -> None:
    """Remove random streets, unless that leaves a dead end or an island."""
    for _ in range(count):
        start = int(rng.integers(len(streets)))
        end = int(rng.choice(streets[start]))
        if min(len(streets[start]), len(streets[end])) <= 2:
            continue
        streets[start].remove(end)
        streets[end].remove(start)
        if len(_reached(streets, start)) < len(streets):
            streets[start].append(end)
            streets[end].append(start)


def _reached(streets: _Streets, start: int) -> set[int]:
    found, front = {start}, [start]
    while front:
        beyond = set(streets[front.pop()]) - found
        found |= beyond
        front += beyond
    return found


def _bend(
    rng: np.random.Generator, places: NDArray[np.float64], streets: _Streets, share: float
) -> NDArray[np.float64]:
    """Add a node beside the middle of a share of the streets; return all places."""
    added = list(places)
    pairs = [(start, end) for start, ends in streets.items() for end in ends if start < end]
    for start, end in pairs if share else ():
        if rng.random() >= share:
            continue
        along = places[end] - places[start]
        aside = np.array([-along[1], along[0]]) * rng.uniform(-_BEND_M, _BEND_M)
        node = len(added)
        added.append(places[start] + rng.uniform(0.35, 0.65) * along + aside)
        streets[node] = [start, end]
        for near, far in ((start, end), (end, start)):
            streets[near][streets[near].index(far)] = node
    return np.array(added)


def _reaches(
    rng: np.random.Generator, places: NDArray[np.float64], streets: _Streets, width_m: float
) -> dict[tuple[int, int], float]:
    """Draw how far from its junction each street ends: just far enough for tight turns."""
    reaches: dict[tuple[int, int], float] = {}
    for node, ends in streets.items():
        if len(ends) < 3:
            continue
        tight, wide = _TIGHTEST_M
        radius_m = tight + (wide - tight) * rng.random() ** 3 + 0.5 * width_m
        for beyond, gap in zip(ends, _gaps(places, node, ends).tolist(), strict=True):
            reach_m = radius_m * unit_tangent(math.pi - gap, _TURN_SHARE)
            reaches[node, beyond] = reach_m * float(rng.uniform(1.0, 1.25))
    return reaches


def _gaps(places: NDArray[np.float64], node: int, ends: list[int]) -> NDArray[np.float64]:
    """Return the angle between each street at a node and the one nearest to it."""
    leaving = places[ends] - places[node]
    angle = np.arctan2(leaving[:, 1], leaving[:, 0])
    turn = np.abs(np.remainder(angle[:, None] - angle + math.pi, 2.0 * math.pi) - math.pi)
    np.fill_diagonal(turn, math.inf)
    nearest: NDArray[np.float64] = turn.min(axis=1)
    return nearest


def _has_room(nodes: NDArray[np.float64], reach_m: tuple[float, float]) -> bool:
    """Return whether a street is long enough between its junctions, and its bends wide enough."""
    legs = np.hypot(*np.diff(nodes, axis=0).T)
    legs[0] -= reach_m[0]
    legs[-1] -= reach_m[1]
    if legs.min() < _SHORTEST_LEG_M:
        return False
    fits = _largest_radii(_shortened(nodes, reach_m), _SHARE)
    return bool(fits.min(initial=math.inf) >= _STREETS.radius_m[0])


def _is_fit(places: NDArray[np.float64], streets: _Streets, sharpest_rad: float) -> bool:
    """Return whether streets meet at wide angles and no street returns to its own junction."""
    if any(_gaps(places, node, ends).min() < sharpest_rad for node, ends in streets.items()):
        return False
    return all(chain[0] != chain[-1] for chain in _chains(streets))


def _chains(streets: _Streets) -> list[list[int]]:
    """Return streets from junction to junction, through the nodes where only two ends meet."""
    found = []
    for node in (node for node, ends in streets.items() if len(ends) > 2):
        for beyond in streets[node]:
            chain = [node, beyond]
            while len(streets[chain[-1]]) == 2:
                before, after = streets[chain[-1]]
                chain.append(after if before == chain[-2] else before)
            # Each street is found from both of its ends; keep one of them.
            if (chain[0], chain[1]) <= (chain[-1], chain[-2]):
                found.append(chain)
    return found


def _street(
    rng: np.random.Generator,
    nodes: NDArray[np.float64],
    reach_m: tuple[float, float],
    radius_m: tuple[float, float],
) -> list[Piece]:
    """Return the street between two junctions, shortened at both, with rounded corners."""
    line = _shortened(nodes, reach_m)
    fits = _largest_radii(line, _SHARE)
    return rounded(line, [min(float(fit), rng.uniform(*radius_m)) for fit in fits], _SHARE)


def _shortened(nodes: NDArray[np.float64], reach_m: tuple[float, float]) -> NDArray[np.float64]:
    line = nodes.copy()
    for end, beyond, reach in ((0, 1, reach_m[0]), (-1, -2, reach_m[1])):
        leaving = nodes[beyond] - nodes[end]
        line[end] = nodes[end] + reach * leaving / math.hypot(*leaving)
    return line


def winding_road(rng: np.random.Generator, winding: Winding) -> list[Piece]:
    """Draw a winding road that keeps a distance from itself and ends elsewhere."""
    target, (least, most) = rng.uniform(*winding.length_m), map(math.radians, winding.turn_deg)
    vertices = [np.zeros(2)]
    headings = [rng.uniform(-math.pi, math.pi)]
    length = 0.0
    for _ in range(_ATTEMPTS):
        edge = rng.uniform(*winding.edge_m)
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(least, most)
        heading = headings[-1] + (turn if len(vertices) > 1 else 0.0)
        new = vertices[-1] + edge * np.array([math.cos(heading), math.sin(heading)])
        if not _is_possible(vertices, new, heading - headings[0], winding):
            continue
        vertices.append(new)
        headings.append(heading)
        length += edge
        if length >= target:
            break
    line = np.array(vertices)
    return rounded(line, _drawn_radii(rng, _largest_radii(line), winding), _WINDING_SHARE)


def _is_possible(
    vertices: list[NDArray[np.float64]], new: NDArray[np.float64], veer: float, winding: Winding
) -> bool:
    if len(vertices) < 2:
        return True
    radius = _largest_radii(np.array([*vertices[-2:], new]))[0]
    return bool(
        radius >= winding.radius_m[0]
        and abs(veer) <= 0.7 * math.pi
        and _is_clear(vertices, new, winding.edge_m[0] / 2.0)
    )


def _is_clear(vertices: list[NDArray[np.float64]], new: NDArray[np.float64], away_m: float) -> bool:
    """Return whether the edge to a new vertex keeps its distance from all edges but the last."""
    earlier = [_along(a, b) for a, b in itertools.pairwise(vertices[:-1])]
    if not earlier:
        return True
    here = _along(vertices[-1], new)
    gap = here[:, None] - np.concatenate(earlier)[None]
    return bool((gap**2).sum(axis=-1).min() > away_m**2)


def _along(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    count = max(math.ceil(math.hypot(*(end - start)) / _SAMPLE_M), 1) + 1
    return np.linspace(start, end, count)


def _drawn_radii(
    rng: np.random.Generator, fits: NDArray[np.float64], winding: Winding
) -> list[float]:
    """Draw radii between the smallest allowed and the largest that fit, large ones more often."""
    low, high = winding.radius_m
    parts = np.sqrt(rng.random(len(fits)))
    pairs = zip(np.clip(fits, low, high), parts, strict=True)
    return [float(low * (top / low) ** part) for top, part in pairs]


def closed_road(rng: np.random.Generator, winding: Winding) -> list[Piece]:
    """Draw a closed road: a star-shaped polygon with rounded corners."""
    for _ in range(_ATTEMPTS):
        count = int(rng.integers(5, 10))
        step = 2.0 * math.pi / count
        angle = step * (np.arange(count) + rng.uniform(-0.3, 0.3, count))
        radius = rng.uniform(*winding.length_m, count) / (2.0 * math.pi)
        polygon = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        if rng.random() < 0.5:
            polygon = polygon[::-1].copy()
        ring = np.concatenate([polygon[-1:], polygon, polygon[:1]])
        fits, sharpest = _largest_radii(ring), np.abs(turns_of(ring)).max()
        if fits.min() < winding.radius_m[0] or sharpest > math.radians(winding.turn_deg[1]):
            continue
        seam = 0.5 * (polygon[0] + polygon[-1])
        radii = _drawn_radii(rng, fits, winding)
        return rounded(np.concatenate([[seam], polygon, [seam]]), radii, _WINDING_SHARE)
    raise RoadError(f"no closed road found in {_ATTEMPTS} attempts; use another seed")


def rounded(vertices: NDArray[np.float64], radii: Sequence[float], share: float) -> list[Piece]:
    """Return a road along a polyline whose inner vertices are rounded with the given radii."""
    pieces: list[Piece] = []
    place = vertices[0]
    turns = [*turns_of(vertices).tolist(), 0.0]
    for index, turn in enumerate(turns):
        edge = vertices[index + 1] - vertices[index]
        direction = edge / math.hypot(*edge)
        bends = abs(turn) > STRAIGHT_RAD
        tangent = radii[index] * unit_tangent(turn, share) if bends else 0.0
        stop = vertices[index + 1] - tangent * direction
        heading = math.atan2(direction[1], direction[0])
        straight = math.hypot(*(stop - place))
        pieces.append(Piece(place[0], place[1], heading, straight))
        place = stop
        if bends:
            pieces += corner((stop[0], stop[1], heading), turn, radii[index], share)
            place = np.array(pieces[-1].end()[:2])
    return pieces


def corner(
    start: tuple[float, float, float], turn_rad: float, radius_m: float, share: float
) -> list[Piece]:
    """Build a corner from x, y and heading; `share` of the turn is taken by the two clothoids."""
    bend = math.copysign(1.0 / radius_m, turn_rad)
    ease = share * abs(turn_rad) * radius_m
    hold = (1.0 - share) * abs(turn_rad) * radius_m
    pieces: list[Piece] = []
    for length, first, last in ((ease, 0.0, bend), (hold, bend, bend), (ease, bend, 0.0)):
        pieces.append(Piece(*start, length, first, last))
        start = pieces[-1].end()
    return pieces


def unit_tangent(turn_rad: float, share: float) -> float:
    """Return the distance from a corner's vertex to its ends, for a smallest radius of 1 m."""
    x, y, _ = corner((0.0, 0.0, 0.0), abs(turn_rad), 1.0, share)[-1].end()
    # Both ends are equally far from the vertex: (x, y) = (t + t cos, t sin).
    if abs(turn_rad) < math.pi / 2:
        return x / (1.0 + math.cos(turn_rad))
    return y / math.sin(abs(turn_rad))


def turns_of(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the change of heading at each inner vertex, in (-pi, pi]."""
    edges = np.diff(vertices, axis=0)
    heading = np.arctan2(edges[:, 1], edges[:, 0])
    turned: NDArray[np.float64] = np.pi - (np.pi - np.diff(heading)) % (2.0 * np.pi)
    return turned


def _largest_radii(line: NDArray[np.float64], share: float = _WINDING_SHARE) -> NDArray[np.float64]:
    """Return the radii at which neighbouring corners of a line just fit on the edges around."""
    lengths = np.hypot(*np.diff(line, axis=0).T)
    room = np.minimum(lengths[:-1], lengths[1:]) / 2.0 - _LINE_M
    turns = np.abs(turns_of(line)).clip(STRAIGHT_RAD).tolist()
    return np.asarray(room / np.array([unit_tangent(turn, share) for turn in turns]), np.float64)


def _plan(pieces: Sequence[Piece]) -> xodr.PlanView:
    plan = xodr.PlanView()
    for piece in pieces:
        length = round(piece.length_m, _DIGITS)
        first = round(piece.curvature_start, _DIGITS)
        last = round(piece.curvature_end, _DIGITS)
        if first == last:
            shape = xodr.Arc(first, length=length) if first else xodr.Line(length)
        else:
            shape = xodr.Spiral(first, last, length=length)
        place = (piece.x_m, piece.y_m, piece.heading_rad)
        plan.add_fixed_geometry(shape, *(round(float(value), _DIGITS) for value in place))
    return plan


def _section(
    start_m: float, profile: Profile, centre_mark: str, has_previous: bool, has_next: bool
) -> xodr.LaneSection:
    """Return one lane section, linked to the sections before and after it in the same road."""
    section = xodr.LaneSection(start_m, _marked(xodr.Lane(), centre_mark))
    for add in (section.add_left_lane, section.add_right_lane):
        for number in range(1, profile.lanes + 1):
            mark = "broken" if number < profile.lanes else profile.edge_mark
            add(_marked(xodr.Lane(a=profile.lane_width_m), mark))
        if profile.shoulder_m > 0.0:
            add(_marked(xodr.Lane(xodr.LaneType.shoulder, a=profile.shoulder_m), "none"))
    if has_previous:
        _link(section, "predecessor")
    if has_next:
        _link(section, "successor")
    return section


def _link(section: xodr.LaneSection, kind: str) -> None:
    """Link each lane of a section to the lane with the same id in the next or previous section."""
    for lane in (*section.leftlanes, *section.rightlanes):
        lane.add_link(kind, lane.lane_id)


def _marked(lane: xodr.Lane, kind: str) -> xodr.Lane:
    change = xodr.LaneChange.both if kind == "broken" else xodr.LaneChange.none
    lane.add_roadmark(xodr.RoadMark(xodr.RoadMarkType[kind], width=_PAINT_M, laneChange=change))
    return lane


def _crossing(centre: _Point, incoming: Arm, outgoing: Arm) -> list[Piece]:
    """Return the curve over a junction between the ends of two arms."""
    begin, end = (
        arm.reach_m * np.array((math.cos(arm.angle_rad), math.sin(arm.angle_rad)))
        for arm in (incoming, outgoing)
    )
    places = np.array(centre) + np.array([begin, (0.0, 0.0), end])
    turn = float(turns_of(places)[0])
    reach_m = min(incoming.reach_m, outgoing.reach_m)
    radius = reach_m / unit_tangent(turn, _TURN_SHARE) if abs(turn) > STRAIGHT_RAD else 0.0
    # The corner uses the shorter edge completely: tiny pieces are rounding errors.
    return [piece for piece in rounded(places, [radius], _TURN_SHARE) if piece.length_m > 1e-6]


_GENERATORS: dict[str, Callable[[NetworkBuilder, np.random.Generator], None]] = {
    "country": _country,
    "loop": _loop,
    "town": _town,
    "motorway": _motorway,
    "byroad": _byroad,
    "streets": _streets,
}
NETWORK_KINDS: tuple[str, ...] = tuple(_GENERATORS)
