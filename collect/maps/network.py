"""`RoadNetwork`: the driving lanes of an OpenDRIVE document, as carla.Map places them.

`carla.Map.get_waypoint_xodr` costs about 6 us per metre of lane. Unlike `generate_waypoints`, it
reaches both ends of every lane and misses no short lane.
"""

import dataclasses
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import require_carla
from avtd3.collect.maps.native_check import MEMORY_BYTES, answer_apart, check_native
from avtd3.collect.maps.opendrive import DRIVING, lane_sections, lanes_of, parse_opendrive
from avtd3.store.errors import RoadError

if TYPE_CHECKING:
    import carla


LaneKey = tuple[int, int, int]
"""Road, lane section and lane, as carla.Map numbers them."""
SPACING_M = 1.0  # target distance between the points of a lane
SHORTEST_M = 0.25  # shorter lanes are only paved; their neighbours are linked directly
NARROWEST_M = 1.0  # lanes with a smaller mean width are dropped
PAVED = frozenset((
    "shoulder", "parking", "stop", "bidirectional", "biking", "bus", "taxi", "HOV", "entry", "exit",
    "onRamp", "offRamp", "connectingRamp", "restricted", "roadWorks",
))  # fmt: skip
"""Types of paved lanes on which cars should not drive. Sidewalks are not among them."""
_INSET_M = 1e-3  # carla.Map has no waypoint exactly at the end of a road
# The markings that permit a lane change.
_CROSSABLE = frozenset({"none", "broken", "broken_broken", "botts_dots"})
# Links of carla.Map are followed in steps of this length, over dropped lanes too.
_HOP_M, _MAX_HOPS = 0.3, 8
_MAX_GAP_M, _MAX_JOIN_RAD = 2.5, math.pi / 3
_NEAR_M = _MAX_GAP_M + 0.1
# A lane without a link continues in the lanes that start this close to its end.
_TOUCH_M, _TOUCH_RAD = 0.5, 0.3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """A band of road surface along a centre line, in driving direction, in CARLA's frame."""

    points: NDArray[np.float64]
    """float64 (N, 2), N >= 2, centre line with a point about every metre, including both ends."""
    yaw_rad: NDArray[np.float64]
    """float64 (N,), heading of the centre line, unwrapped."""
    distance_m: NDArray[np.float64]
    """float64 (N,), metres along the centre line from the first point."""
    width_m: NDArray[np.float64]
    height_m: NDArray[np.float64]
    kind: str
    """OpenDRIVE's lane type, ``driving`` or one of `PAVED`."""

    @property
    def length_m(self) -> float:
        """Return the length of the centre line in metres."""
        return float(self.distance_m[-1])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane(Strip):
    """A driving lane of one lane section, with its neighbours."""

    index: int
    road_id: int
    section_id: int
    lane_id: int
    """OpenDRIVE lane, negative to the right of the road's reference line."""
    is_junction: bool
    left_marking: str
    """Marking on the left in driving direction: ``none``, ``solid``, ``broken``, ..."""
    right_marking: str
    left_lane: int | None = None
    """Index of the lane on the left if its direction is the same and the marking can be crossed."""
    right_lane: int | None = None
    successors: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoadNetwork:
    """All driving lanes of a network, linked."""

    name: str
    map: "carla.Map"
    lanes: tuple[Lane, ...]
    paved: tuple[Strip, ...]
    """Shoulders, parking bays and other paved surface that is not a lane, and very short lanes."""

    @classmethod
    def from_opendrive(cls, name: str, xodr: str, *, is_trusted: bool = False) -> Self:
        """Build the network of an OpenDRIVE document.

        A text that avtd3 did not generate (`is_trusted`) is first built in a process of its own.
        """
        root = parse_opendrive(xodr, name)
        require_carla("a road network")
        try:
            import carla  # noqa: F401 - here: configurations are also read on machines without it
        except ImportError as error:
            require_carla("a road network", f"which cannot be imported ({error})")
        if not is_trusted:
            check_native(name, xodr)
        try:
            world_map, lanes, paved = _build(xodr, root)
        except (RuntimeError, IndexError) as error:
            raise RoadError(
                f"road {name} is rejected by carla.Map ({error}), expected OpenDRIVE that CARLA "
                f"can load; check it with an OpenDRIVE validator"
            ) from error
        if not lanes:
            missing = f"no driving lane of at least {SHORTEST_M} m by {NARROWEST_M} m"
            raise RoadError(f"road {name} has {missing}, expected one; check the lane widths")
        return cls(name=name, map=world_map, lanes=lanes, paved=paved)

    def __repr__(self) -> str:
        length = sum(lane.length_m for lane in self.lanes)
        return f"RoadNetwork({self.name!r}, {len(self.lanes)} lanes, {length:.0f} m of lane)"


def _build(xodr: str, root: ET.Element) -> "tuple[carla.Map, tuple[Lane, ...], tuple[Strip, ...]]":
    """Return the map of a checked document, its driving lanes and its other paved surface."""
    import carla

    world_map = carla.Map("road", xodr)
    sampled, paved = _sample_lanes(world_map, root)
    return world_map, _linked(sampled), tuple(paved)


class _Sampled(NamedTuple):
    """A driving lane as sampled, without links to other lanes."""

    lane: Lane
    forward: bool
    last: "carla.Waypoint"


def _sample_lanes(world_map: "carla.Map", root: ET.Element) -> tuple[list[_Sampled], list[Strip]]:
    sampled: list[_Sampled] = []
    paved: list[Strip] = []
    for road_id, start, end, lane_id, kind in _document_lanes(root):
        found = _sample(world_map, road_id, lane_id, start, end, kind)
        if found is None:
            continue
        strip, waypoints, forward = found
        if kind != DRIVING or end - start < SHORTEST_M:
            paved.append(strip)
            continue
        middle = waypoints[len(waypoints) // 2]
        lane = Lane(
            **{field.name: getattr(strip, field.name) for field in dataclasses.fields(Strip)},
            index=len(sampled),
            road_id=road_id,
            section_id=middle.section_id,
            lane_id=lane_id,
            is_junction=middle.is_junction,
            left_marking=_marking(middle.left_lane_marking),
            right_marking=_marking(middle.right_lane_marking),
        )
        sampled.append(_Sampled(lane, forward, waypoints[-1]))
    return sampled, paved


def _document_lanes(root: ET.Element) -> Iterator[tuple[int, float, float, int, str]]:
    """Yield road id, start and end in metres, lane id and type of every driving or paved lane."""
    for road in root.findall("road"):
        for start, end, section in lane_sections(road):
            for lane_id, lane in lanes_of(section):
                kind = lane.get("type", "")
                if end - start > 10.0 * _INSET_M and (kind == DRIVING or kind in PAVED):
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
        rows.append((place.x, place.y, pose.rotation.yaw, waypoint.lane_width, place.z))
    table = np.array(rows, np.float64).reshape(-1, 5)
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
        height_m=table[:, 4].copy(),
        kind=kind,
    )
    return strip, waypoints, forward


def _marking(marking: "carla.LaneMarking | None") -> str:
    """Return the name of a marking: ``solid_solid`` for ``SolidSolid``, ``none`` for no marking."""
    name = "NONE" if marking is None else str(marking.type)
    if name == "NONE":
        return "none"
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).removeprefix("_")


def _links(sampled: list[_Sampled], index: dict[LaneKey, int]) -> list[tuple[int, ...]]:
    """Return the successors of each lane: those of carla.Map, else the lanes at its end."""
    begins = np.array([lane.points[0] for lane, _, _ in sampled]).reshape(-1, 2)
    headings = np.array([lane.yaw_rad[0] for lane, _, _ in sampled])
    by_x = np.argsort(begins[:, 0], kind="stable")
    sorted_x = begins[by_x, 0]
    found = []
    for lane, _, last in sampled:
        end, yaw = lane.points[-1], float(lane.yaw_rad[-1])
        first, stop = np.searchsorted(sorted_x, (end[0] - _NEAR_M, end[0] + _NEAR_M))
        near = np.sort(by_x[first:stop])
        gap = np.hypot(*(begins[near] - end).T)
        turn = np.abs((headings[near] - yaw + math.pi) % (2.0 * math.pi) - math.pi)
        meeting = set(near[(gap <= _MAX_GAP_M) & (turn <= _MAX_JOIN_RAD)].tolist())
        linked = [number for number in _next_lanes(last, index) if number in meeting]
        touching = near[(gap <= _TOUCH_M) & (turn <= _TOUCH_RAD)].tolist()
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


def _linked(sampled: list[_Sampled]) -> tuple[Lane, ...]:
    """Return the lanes with their neighbours and successors."""
    index = {(lane.road_id, lane.section_id, lane.lane_id): lane.index for lane, _, _ in sampled}
    return tuple(
        dataclasses.replace(
            each.lane,
            left_lane=_beside(sampled, index, each, side=-1),
            right_lane=_beside(sampled, index, each, side=1),
            successors=successors,
        )
        for each, successors in zip(sampled, _links(sampled, index), strict=True)
    )


def _beside(
    sampled: list[_Sampled], index: dict[LaneKey, int], each: _Sampled, side: int
) -> int | None:
    """Return the lane beside a lane (-1 left, 1 right) if a car may change to it, else None."""
    lane = each.lane
    if (lane.right_marking if side == 1 else lane.left_marking) not in _CROSSABLE:
        return None
    # Lane ids decrease from left to right along the reference line of the road.
    beside = lane.lane_id - side if each.forward else lane.lane_id + side
    number = index.get((lane.road_id, lane.section_id, beside))
    return None if number is None or sampled[number].forward != each.forward else number


def main() -> None:
    """Build the document on standard input, and print its fault as JSON; for `native_check`."""
    with answer_apart() as (data, answer):
        xodr, fault = data.decode(), ""
        try:
            _build(xodr, parse_opendrive(xodr, "to check", is_checked=True))
        except (RuntimeError, IndexError) as error:
            fault = f"is rejected by carla.Map ({error})"
        except MemoryError:
            fault = f"needs more than {MEMORY_BYTES >> 30} GiB of memory"
        json.dump(fault, answer)


if __name__ == "__main__":
    main()
