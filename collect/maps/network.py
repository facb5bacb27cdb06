"""Sampling: the centre lines of an OpenDRIVE document's lanes, as carla.Map places them.

`carla.Map.get_waypoint_xodr` costs some 6 us per metre of lane and, unlike
`generate_waypoints`, meets both ends of every lane and misses no short one.
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
"""Wanted distance between the points of a lane."""
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
"""Types of lanes that carry a car though it should not drive there; sidewalks do not."""
SHORTEST_M = 0.25
"""Shortest lane that is kept; shorter ones are stepped over."""
NARROWEST_M = 1.0
"""Smallest mean width of a lane that is kept."""
_INSET_M = 1e-3  # carla.Map has no waypoint at the very end of a road


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """A band of road surface along a centre line, in driving direction, in CARLA's frame."""

    points: NDArray[np.float64]
    """float64 (N, 2), centre line in metres, about every metre, both ends included, N >= 2."""
    yaw_rad: NDArray[np.float64]
    """float64 (N,), heading of the centre line, unwrapped."""
    distance_m: NDArray[np.float64]
    """float64 (N,), metres from the first point."""
    width_m: NDArray[np.float64]
    """float64 (N,), width across the heading."""
    kind: str
    """OpenDRIVE's lane type, ``driving`` or one of `PAVED`."""

    @property
    def length_m(self) -> float:
        """Metres from the first point to the last."""
        return float(self.distance_m[-1])

    def edge(self, side: float) -> NDArray[np.float64]:
        """A line parallel to the centre line.

        Args:
            side: Share of half the width, positive to the right: -1 is the left edge, 1 the
                right one.

        Returns:
            float64 (N, 2), in metres.
        """
        right = np.stack([-np.sin(self.yaw_rad), np.cos(self.yaw_rad)], axis=1)
        moved: NDArray[np.float64] = self.points + (0.5 * side * self.width_m)[:, None] * right
        return moved


@dataclasses.dataclass(slots=True, kw_only=True)
class LaneDraft:
    """A driving lane as sampled, before it knows its neighbours."""

    key: LaneKey
    forward: bool
    strip: Strip
    is_junction: bool
    markings: tuple[str, str]
    last: "carla.Waypoint"


def sample_lanes(world_map: "carla.Map", root: ET.Element) -> tuple[list[LaneDraft], list[Strip]]:
    """Sample the driving lanes of a document, and its other paved surface.

    Args:
        world_map: The `carla.Map` of the same document.
        root: The document, sound.
    """
    drafts: list[LaneDraft] = []
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
            LaneDraft(
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
    """Road id, first and last metre, lane id and type of every lane that a car can stand on."""
    for road in root.iter("road"):
        for start, end, section in lane_sections(road):
            for lane_id, lane in lanes_of(section):
                kind = lane.get("type", "")
                if end - start >= SHORTEST_M and (kind == DRIVING or kind in PAVED):
                    yield int(road.get("id", "0")), start, end, lane_id, kind


def _sample(
    world_map: "carla.Map", road_id: int, lane_id: int, start: float, end: float, kind: str
) -> "tuple[Strip, list[carla.Waypoint], bool] | None":
    """Sample one lane in driving direction; None where there is nothing to drive on."""
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
    """Spell ``SolidSolid`` as ``solid_solid``; no marking at all as ``none``."""
    name = "NONE" if marking is None else str(marking.type)
    if name == "NONE":
        return "none"
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).removeprefix("_")


_CROSSABLE = frozenset({"none", "broken", "broken_broken", "botts_dots"})
_HOP_M = 0.3
_HOPS = 8
_LARGEST_GAP_M = 2.5
_SHARPEST_JOIN_RAD = math.pi / 3
_TOUCH_M = 0.5
_TOUCH_RAD = 0.3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane(Strip):
    """A driving lane of one lane section, and where it leads."""

    index: int
    """Position in `RoadNetwork.lanes`."""
    road_id: int
    """OpenDRIVE road."""
    section_id: int
    """Number of the lane section in its road."""
    lane_id: int
    """OpenDRIVE lane, negative to the right of the road's reference line."""
    is_junction: bool
    """Whether it crosses a junction."""
    left_marking: str
    """Marking on its left in driving direction: ``none``, ``solid``, ``broken``, ..."""
    right_marking: str
    """Marking on its right in driving direction."""
    left_lane: int | None
    """Lane of the same direction on the left that may be changed to."""
    right_lane: int | None
    """Lane of the same direction on the right that may be changed to."""
    successors: tuple[int, ...]
    """Lanes that continue it."""
    predecessors: tuple[int, ...]
    """Lanes that it continues."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoadNetwork:
    """All driving lanes of a network, joined."""

    name: str
    """Name unique to the geometry."""
    map: "carla.Map"
    """The `carla.Map` itself; it cannot be pickled."""
    lanes: tuple[Lane, ...]
    """Driving lanes; at least one."""
    paved: tuple[Strip, ...]
    """Shoulders, parking and other surface that is not a driving lane."""
    bounds: tuple[float, float, float, float]
    """Smallest x and y, largest x and y of lanes and pavement, in metres."""

    @classmethod
    def from_opendrive(cls, name: str, xodr: str) -> Self:
        """Build the network of an OpenDRIVE document.

        Args:
            name: Name for pictures, datasets and messages.
            xodr: OpenDRIVE text.

        Raises:
            RoadError: The text is not OpenDRIVE, carla.Map refuses it, or it has no driving
                lane of useful length and width.
            WorldError: The carla package is not installed.
        """
        root = parse_opendrive(xodr, name)
        try:
            world_map = _carla_map(name, xodr)
            drafts, paved = sample_lanes(world_map, root)
            links = _links(drafts)
        except (RuntimeError, IndexError) as error:
            raise RoadError(
                f"road {name} is refused by carla.Map ({error}), expected OpenDRIVE that CARLA "
                f"can load; check it with an OpenDRIVE validator"
            ) from error
        if not drafts:
            raise RoadError(
                f"road {name} has no driving lane of at least {SHORTEST_M} m by {NARROWEST_M} m"
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
    # Imported here: settings of the road world are read on machines that have no carla.
    try:
        import carla
    except ImportError as error:
        raise WorldError(
            "the road world needs the package carla 0.9.16, which has wheels for Python 3.10 to "
            f"3.12 on x86-64 Linux and Windows; collect on such a machine ({error})"
        ) from error
    return carla.Map(name, xodr)


def _links(drafts: list[LaneDraft]) -> list[tuple[int, ...]]:
    """Successors of each lane: carla.Map's, else whatever begins right at its end."""
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
            for number in _followers(draft.last, index)
            if gap[number] <= _LARGEST_GAP_M and turn[number] <= _SHARPEST_JOIN_RAD
        ]
        touching = np.flatnonzero((gap <= _TOUCH_M) & (turn <= _TOUCH_RAD)).tolist()
        found.append(tuple(linked or touching))
    return found


def _followers(last: "carla.Waypoint", index: dict[LaneKey, int]) -> list[int]:
    """Lanes that `waypoint.next` leads to, stepping over lanes too short to keep."""
    found: dict[int, None] = {}
    front = [last]
    for _ in range(_HOPS):
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


def _lanes(drafts: list[LaneDraft], links: list[tuple[int, ...]]) -> tuple[Lane, ...]:
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
    drafts: list[LaneDraft], index: dict[LaneKey, int], draft: LaneDraft, side: int
) -> int | None:
    """The lane next to this one (-1 left, 1 right) if it runs along and the marking lets cross."""
    if draft.markings[side == 1] not in _CROSSABLE:
        return None
    road_id, section_id, lane_id = draft.key
    # Lane ids fall from left to right along the road's reference line.
    beside = lane_id - side if draft.forward else lane_id + side
    number = index.get((road_id, section_id, beside))
    if number is None or drafts[number].forward != draft.forward:
        return None
    return number
