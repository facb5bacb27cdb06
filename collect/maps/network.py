"""`RoadNetwork`: the driving lanes of an OpenDRIVE document, as carla.Map places them.

`carla.Map.get_waypoint_xodr` costs about 6 us per metre of lane. Unlike `generate_waypoints`, it
reaches both ends of every lane and misses no short lane.
"""

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.opendrive import DRIVING, lane_sections, lanes_of, parse_opendrive
from avtd3.store.errors import RoadError, WorldError

if TYPE_CHECKING:
    import carla


LaneKey = tuple[int, int, int]
"""Road, lane section and lane, as carla.Map numbers them."""
SPACING_M = 1.0
"""Target distance between the points of a lane."""
SHORTEST_M = 0.25
"""Lanes shorter than this are dropped; their neighbours are linked directly."""
NARROWEST_M = 1.0
"""Lanes with a smaller mean width are dropped."""
PAVED = frozenset(
    {
        "shoulder",
        "parking",
        "stop",
        "bidirectional",
        "biking",
        "bus",
        "taxi",
        "HOV",
        "entry",
        "exit",
        "onRamp",
        "offRamp",
        "connectingRamp",
        "restricted",
        "roadWorks",
    }
)
"""Types of paved lanes on which cars should not drive. Sidewalks are not among them."""
_INSET_M = 1e-3  # carla.Map has no waypoint exactly at the end of a road
# The markings that permit a lane change.
_CROSSABLE = frozenset({"none", "broken", "broken_broken", "botts_dots"})
# Links of carla.Map are followed in steps of this length, over dropped lanes too.
_HOP_M = 0.3
_MAX_HOPS = 8
_MAX_GAP_M = 2.5
_MAX_JOIN_RAD = math.pi / 3
# A lane without a link continues in the lanes that start this close to its end.
_TOUCH_M = 0.5
_TOUCH_RAD = 0.3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """A band of road surface along a centre line, in driving direction, in CARLA's frame."""

    points: NDArray[np.float64]
    """float64 (N, 2), centre line in metres, one point about every metre, including both ends, N >=
    2."""
    yaw_rad: NDArray[np.float64]
    """float64 (N,), heading of the centre line, unwrapped."""
    distance_m: NDArray[np.float64]
    """float64 (N,), metres along the centre line from the first point."""
    width_m: NDArray[np.float64]
    """float64 (N,), width across the heading."""
    kind: str
    """OpenDRIVE's lane type, ``driving`` or one of `PAVED`."""

    @property
    def length_m(self) -> float:
        """Return the length of the centre line in metres."""
        return float(self.distance_m[-1])

    def edge(self, side: float) -> NDArray[np.float64]:
        """Return a line parallel to the centre line.

        Args:
            side: Share of half the width, positive to the right: -1 is the left edge, 1 the right
                edge.

        Returns:
            float64 (N, 2), in metres.
        """
        right = np.stack([-np.sin(self.yaw_rad), np.cos(self.yaw_rad)], axis=1)
        moved: NDArray[np.float64] = self.points + (0.5 * side * self.width_m)[:, None] * right
        return moved


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane(Strip):
    """A driving lane of one lane section, with its neighbours."""

    index: int
    """Index in `RoadNetwork.lanes`."""
    road_id: int
    """OpenDRIVE road."""
    section_id: int
    """Number of the lane section in the road."""
    lane_id: int
    """OpenDRIVE lane, negative to the right of the road's reference line."""
    is_junction: bool
    """Whether the lane crosses a junction."""
    left_marking: str
    """Marking on the left in driving direction: ``none``, ``solid``, ``broken``, ..."""
    right_marking: str
    """Marking on the right in driving direction."""
    left_lane: int | None
    """Index of the lane on the left, if it has the same direction and the marking permits a
    change."""
    right_lane: int | None
    """Index of the lane on the right, if it has the same direction and the marking permits a
    change."""
    successors: tuple[int, ...]
    """Indices of the lanes that continue this one."""
    predecessors: tuple[int, ...]
    """Indices of the lanes that this one continues."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoadNetwork:
    """All driving lanes of a network, linked."""

    name: str
    """Name of the network, unique to its geometry."""
    map: "carla.Map"
    """The `carla.Map`; it cannot be pickled."""
    lanes: tuple[Lane, ...]
    """Driving lanes, at least one."""
    paved: tuple[Strip, ...]
    """Shoulders, parking bays and other paved surface that is not a driving lane."""
    bounds: tuple[float, float, float, float]
    """Minimum x, minimum y, maximum x and maximum y of lanes and paved surface, in metres."""

    @classmethod
    def from_opendrive(cls, name: str, xodr: str) -> Self:
        """Build the network of an OpenDRIVE document.

        Args:
            name: Name for pictures, datasets and messages.
            xodr: OpenDRIVE text.

        Raises:
            RoadError: The text is not OpenDRIVE, carla.Map rejects it, or it has no driving lane of
                sufficient length and width.
            WorldError: The carla package is not installed.
        """
        root = parse_opendrive(xodr, name)
        try:
            world_map = _carla_map(name, xodr)
            drafts, paved = _sample_lanes(world_map, root)
            links = _links(drafts)
        except (RuntimeError, IndexError) as error:
            raise RoadError(
                f"road {name} is rejected by carla.Map ({error}), expected OpenDRIVE that CARLA "
                f"can load; check it with an OpenDRIVE validator"
            ) from error
        if not drafts:
            raise RoadError(
                f"road {name} has no driving lane of at least {SHORTEST_M} m by {NARROWEST_M} m, "
                "expected one; check the lane widths"
            )
        lanes = _lanes(drafts, links)
        strips = (*lanes, *paved)
        edges = np.concatenate([strip.edge(side) for strip in strips for side in (-1.0, 1.0)])
        low, high = edges.min(axis=0), edges.max(axis=0)
        bounds = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        return cls(name=name, map=world_map, lanes=lanes, paved=tuple(paved), bounds=bounds)

    def __repr__(self) -> str:
        length = sum(lane.length_m for lane in self.lanes)
        return f"RoadNetwork({self.name!r}, {len(self.lanes)} lanes, {length:.0f} m of lane)"


def _carla_map(name: str, xodr: str) -> "carla.Map":
    # Imported here: configurations are also read on machines without carla.
    try:
        import carla
    except ImportError as error:
        raise WorldError(
            "the built-in simulator needs the package carla 0.9.16, which has wheels for Python "
            f"3.10 to 3.12 on x86-64 Linux and Windows; collect on such a machine ({error})"
        ) from error
    return carla.Map(name, xodr)


@dataclasses.dataclass(slots=True, kw_only=True)
class _LaneDraft:
    """A driving lane as sampled, before it is linked to its neighbours."""

    key: LaneKey
    forward: bool
    strip: Strip
    is_junction: bool
    markings: tuple[str, str]
    last: "carla.Waypoint"


def _sample_lanes(world_map: "carla.Map", root: ET.Element) -> tuple[list[_LaneDraft], list[Strip]]:
    """Sample the driving lanes of a checked document, and its other paved surface."""
    drafts: list[_LaneDraft] = []
    paved: list[Strip] = []
    for road_id, start, end, lane_id, kind in _document_lanes(root):
        sampled = _sample(world_map, road_id, lane_id, start, end, kind)
        if sampled is None:
            continue
        strip, waypoints, forward = sampled
        if kind != DRIVING:
            paved.append(strip)
            continue
        middle = waypoints[len(waypoints) // 2]
        drafts.append(
            _LaneDraft(
                key=(road_id, middle.section_id, lane_id),
                forward=forward,
                strip=strip,
                is_junction=middle.is_junction,
                markings=(
                    _marking(middle.left_lane_marking),
                    _marking(middle.right_lane_marking),
                ),
                last=waypoints[-1],
            )
        )
    return drafts, paved


def _document_lanes(root: ET.Element) -> Iterator[tuple[int, float, float, int, str]]:
    """Yield road id, start and end in metres, lane id and type of every driving or paved lane."""
    for road in root.iter("road"):
        for start, end, section in lane_sections(road):
            for lane_id, lane in lanes_of(section):
                kind = lane.get("type", "")
                if end - start >= SHORTEST_M and (kind == DRIVING or kind in PAVED):
                    yield int(road.get("id", "0")), start, end, lane_id, kind


def _sample(
    world_map: "carla.Map", road_id: int, lane_id: int, start: float, end: float, kind: str
) -> "tuple[Strip, list[carla.Waypoint], bool] | None":
    """Sample one lane in driving direction; None if it is too short or too narrow."""
    count = max(math.ceil((end - start) / SPACING_M), 1) + 1
    at = np.linspace(start + _INSET_M, end - _INSET_M, count)
    find = world_map.get_waypoint_xodr
    waypoints = [w for w in (find(road_id, lane_id, s) for s in at.tolist()) if w is not None]
    rows = []
    for waypoint in waypoints:
        pose = waypoint.transform
        place = pose.location
        rows.append((place.x, place.y, pose.rotation.yaw, waypoint.lane_width))
    table = np.array(rows, np.float64).reshape(-1, 4)
    if len(table) < 2 or not np.isfinite(table).all() or table[:, 3].mean() < NARROWEST_M:
        return None
    along = table[-1, :2] - table[0, :2] if len(table) == 2 else table[1, :2] - table[0, :2]
    yaw = math.radians(table[0, 2])
    forward = bool(along[0] * math.cos(yaw) + along[1] * math.sin(yaw) > 0.0)
    if not forward:
        table, waypoints = table[::-1], waypoints[::-1]
    step = np.hypot(*np.diff(table[:, :2], axis=0).T)
    keep = np.concatenate(([True], step > 1e-6))
    if keep.sum() < 2:
        return None
    distance = np.concatenate(([0.0], np.cumsum(step)))[keep]
    table = table[keep]
    strip = Strip(
        points=table[:, :2].copy(),
        yaw_rad=np.unwrap(np.radians(table[:, 2])),
        distance_m=distance,
        width_m=np.abs(table[:, 3]),
        kind=kind,
    )
    return strip, waypoints, forward


def _marking(marking: "carla.LaneMarking | None") -> str:
    """Return the name of a marking: ``solid_solid`` for ``SolidSolid``, ``none`` for no marking."""
    name = "NONE" if marking is None else str(marking.type)
    if name == "NONE":
        return "none"
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).removeprefix("_")


def _links(drafts: list[_LaneDraft]) -> list[tuple[int, ...]]:
    """Return the successors of each lane: those of carla.Map, else the lanes at its end."""
    index = {draft.key: number for number, draft in enumerate(drafts)}
    begins = np.array([draft.strip.points[0] for draft in drafts]).reshape(-1, 2)
    headings = np.array([draft.strip.yaw_rad[0] for draft in drafts])
    found = []
    for draft in drafts:
        end, yaw = draft.strip.points[-1], float(draft.strip.yaw_rad[-1])
        gap = np.hypot(*(begins - end).T)
        turn = np.abs((headings - yaw + math.pi) % (2.0 * math.pi) - math.pi)
        linked = [
            number
            for number in _next_lanes(draft.last, index)
            if gap[number] <= _MAX_GAP_M and turn[number] <= _MAX_JOIN_RAD
        ]
        touching = np.flatnonzero((gap <= _TOUCH_M) & (turn <= _TOUCH_RAD)).tolist()
        found.append(tuple(linked or touching))
    return found


def _next_lanes(last: "carla.Waypoint", index: dict[LaneKey, int]) -> list[int]:
    """Return the lanes that `waypoint.next` leads to, across lanes that were dropped."""
    found: dict[int, None] = {}
    front = [last]
    for _ in range(_MAX_HOPS):
        beyond = []
        for waypoint in (after for before in front for after in before.next(_HOP_M)):
            number = index.get((waypoint.road_id, waypoint.section_id, waypoint.lane_id))
            if number is not None:
                found[number] = None
            elif waypoint.lane_type.name == "Driving":
                beyond.append(waypoint)
        front = beyond
        if not front:
            break
    return sorted(found)


def _lanes(drafts: list[_LaneDraft], links: list[tuple[int, ...]]) -> tuple[Lane, ...]:
    index = {draft.key: number for number, draft in enumerate(drafts)}
    before: list[list[int]] = [[] for _ in drafts]
    for number, successors in enumerate(links):
        for successor in successors:
            before[successor].append(number)
    return tuple(
        Lane(
            **{f.name: getattr(draft.strip, f.name) for f in dataclasses.fields(Strip)},
            index=number,
            road_id=draft.key[0],
            section_id=draft.key[1],
            lane_id=draft.key[2],
            is_junction=draft.is_junction,
            left_marking=draft.markings[0],
            right_marking=draft.markings[1],
            left_lane=_beside(drafts, index, draft, side=-1),
            right_lane=_beside(drafts, index, draft, side=1),
            successors=links[number],
            predecessors=tuple(before[number]),
        )
        for number, draft in enumerate(drafts)
    )


def _beside(
    drafts: list[_LaneDraft], index: dict[LaneKey, int], draft: _LaneDraft, side: int
) -> int | None:
    """Return the lane beside a lane (-1 left, 1 right) if a car may change to it, else None."""
    if draft.markings[side == 1] not in _CROSSABLE:
        return None
    road_id, section_id, lane_id = draft.key
    # Lane ids fall from left to right along the road's reference line.
    beside = lane_id - side if draft.forward else lane_id + side
    number = index.get((road_id, section_id, beside))
    if number is None or drafts[number].forward != draft.forward:
        return None
    return number
