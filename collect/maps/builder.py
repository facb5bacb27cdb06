"""`NetworkBuilder`: roads, joins and junctions into OpenDRIVE text by `scenariogeneration`.

Every geometry is placed (`add_fixed_geometry`) and every lane linked here, because the library's
own adjustment compares all pairs of roads and cannot close a loop.
"""

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np
from scenariogeneration import xodr

from avtd3.collect.maps.layout import STRAIGHT_RAD, Piece, rounded, turns_of, unit_tangent
from avtd3.store.errors import RoadError

_DIGITS = 9  # below a nanometre; hides the last bits in which machines' sines differ
_DATE = "2000-01-01T00:00:00"
_PLACE = "+proj=tmerc +lat_0=0 +lon_0=0 +k=1 +x_0=0 +y_0=0 +datum=WGS84 +units=m +no_defs"
_PAINT_M = 0.12
_FIRST_LINK_ROAD = 1000
_TURN_SHARE = 0.3  # of a turn over a junction, eased in and out


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Cross-section of a road, the same on both sides."""

    lane_width_m: float
    lanes: int = 1
    """Driving lanes in each direction."""
    centre_marks: tuple[str, ...] = ("broken",)
    """Markings of the middle, taken in turn along the road."""
    mark_length_m: float = math.inf
    """Length of road after which the next marking of the middle is taken."""
    edge_mark: str = "solid"
    """Marking between the outermost lane and what lies beyond."""
    shoulder_m: float = 0.0
    """Width of the paved shoulder; 0 for none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An end of a road that meets a junction."""

    road_id: int
    at_end: bool
    """Whether the road ends at the junction; otherwise it begins there."""
    angle_rad: float
    """Direction in which the road leaves the junction's centre."""


class NetworkBuilder:
    """Collects roads of right-hand traffic and writes them as one document."""

    def __init__(self, name: str) -> None:
        self._document = xodr.OpenDrive(name, revMinor="4", geo_reference=_PLACE)
        self._roads: dict[int, xodr.Road] = {}
        self._links = _FIRST_LINK_ROAD

    def add_road(self, pieces: Sequence[Piece], profile: Profile) -> int:
        """Add a road.

        Args:
            pieces: Its reference line, in order.
            profile: Its cross-section.

        Returns:
            The id of the road.
        """
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
        """Let the second road continue the first, lane by lane."""
        before, after = self._roads[first], self._roads[second]
        before.add_successor(xodr.ElementType.road, second, xodr.ContactPoint.start)
        after.add_predecessor(xodr.ElementType.road, first, xodr.ContactPoint.end)
        for lane in _all_lanes(before.lanes.lanesections[-1]):
            lane.add_link("successor", lane.lane_id)
        for lane in _all_lanes(after.lanes.lanesections[0]):
            lane.add_link("predecessor", lane.lane_id)

    def add_junction(
        self,
        junction_id: int,
        centre: tuple[float, float],
        arms: Sequence[Arm],
        reach_m: float,
        lane_width_m: float,
    ) -> None:
        """Connect roads of one lane a side in all directions except back.

        Args:
            junction_id: Id of the junction.
            centre: Where the roads' axes meet.
            arms: The roads; each ends `reach_m` from the centre on its straight way to it.
            reach_m: Distance of the roads' ends from the centre.
            lane_width_m: Width of the lanes.

        Raises:
            RoadError: An arm's road is unknown.
        """
        junction = xodr.Junction(f"junction {junction_id}", junction_id)
        for arm in arms:
            if arm.road_id not in self._roads:
                raise RoadError(f"junction {junction_id} joins unknown road {arm.road_id}")
            road = self._roads[arm.road_id]
            link = road.add_successor if arm.at_end else road.add_predecessor
            link(xodr.ElementType.junction, junction_id)
        for incoming in arms:
            for outgoing in arms:
                if incoming is not outgoing:
                    pieces = _crossing(centre, incoming.angle_rad, outgoing.angle_rad, reach_m)
                    self._connect(junction, incoming, outgoing, pieces, lane_width_m)
        self._document.add_junction(junction)

    def _connect(
        self,
        junction: xodr.Junction,
        incoming: Arm,
        outgoing: Arm,
        pieces: list[Piece],
        lane_width_m: float,
    ) -> None:
        from_lane = -1 if incoming.at_end else 1
        to_lane = 1 if outgoing.at_end else -1
        lane = xodr.Lane(a=lane_width_m)
        lane.add_roadmark(_mark("none"))
        lane.add_link("predecessor", from_lane)
        lane.add_link("successor", to_lane)
        centre = xodr.Lane()
        centre.add_roadmark(_mark("none"))
        section = xodr.LaneSection(0, centre)
        section.add_right_lane(lane)
        lanes = xodr.Lanes()
        lanes.add_lanesection(section)
        road = xodr.Road(self._links, _plan(pieces), lanes, road_type=junction.id)
        road.add_predecessor(xodr.ElementType.road, incoming.road_id, _contact(incoming))
        road.add_successor(xodr.ElementType.road, outgoing.road_id, _contact(outgoing))
        self._document.add_road(road)
        connection = xodr.Connection(incoming.road_id, self._links, xodr.ContactPoint.start)
        connection.add_lanelink(from_lane, -1)
        junction.add_connection(connection)
        self._links += 1

    def text(self) -> str:
        """The document; the same roads give the same bytes, whatever the date."""
        root: ET.Element = self._document.get_element()
        for header in root.iter("header"):
            header.set("date", _DATE)
        ET.indent(root)
        return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


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
    start_m: float, profile: Profile, centre_mark: str, follows: bool, goes_on: bool
) -> xodr.LaneSection:
    """One lane section, linked to the sections before and after it in the same road."""
    centre = xodr.Lane()
    centre.add_roadmark(_mark(centre_mark))
    section = xodr.LaneSection(start_m, centre)
    for add in (section.add_left_lane, section.add_right_lane):
        for number in range(1, profile.lanes + 1):
            lane = xodr.Lane(a=profile.lane_width_m)
            lane.add_roadmark(_mark("broken" if number < profile.lanes else profile.edge_mark))
            add(lane)
        if profile.shoulder_m > 0.0:
            shoulder = xodr.Lane(xodr.LaneType.shoulder, a=profile.shoulder_m)
            shoulder.add_roadmark(_mark("none"))
            add(shoulder)
    for lane in _all_lanes(section):
        if follows:
            lane.add_link("predecessor", lane.lane_id)
        if goes_on:
            lane.add_link("successor", lane.lane_id)
    return section


def _all_lanes(section: xodr.LaneSection) -> list[xodr.Lane]:
    return [*section.leftlanes, *section.rightlanes]


def _mark(kind: str) -> xodr.RoadMark:
    change = xodr.LaneChange.both if kind == "broken" else xodr.LaneChange.none
    return xodr.RoadMark(xodr.RoadMarkType[kind], width=_PAINT_M, laneChange=change)


def _contact(arm: Arm) -> xodr.ContactPoint:
    return xodr.ContactPoint.end if arm.at_end else xodr.ContactPoint.start


def _crossing(
    centre: tuple[float, float], from_rad: float, to_rad: float, reach_m: float
) -> list[Piece]:
    """The way over a junction between the ends of two arms."""
    places = np.array(
        [
            _polar(centre, from_rad, reach_m),
            centre,
            _polar(centre, to_rad, reach_m),
        ]
    )
    turn = float(turns_of(places)[0])
    radius = reach_m / unit_tangent(turn, _TURN_SHARE) if abs(turn) > STRAIGHT_RAD else 0.0
    # The corner takes all of both edges: what is left of them is rounding.
    return [piece for piece in rounded(places, [radius], _TURN_SHARE) if piece.length_m > 1e-6]


def _polar(centre: tuple[float, float], angle_rad: float, distance_m: float) -> tuple[float, float]:
    return (
        centre[0] + distance_m * math.cos(angle_rad),
        centre[1] + distance_m * math.sin(angle_rad),
    )
