"""Sampling: the centre lines of an OpenDRIVE document's lanes, as carla.Map places them.

`carla.Map.get_waypoint_xodr` costs some 6 us per metre of lane and, unlike
`generate_waypoints`, meets both ends of every lane and misses no short one.
"""

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.soundness import DRIVING, lane_sections, lanes_of

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
