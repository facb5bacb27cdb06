"""Plan a route through given waypoints: the cheapest way along the lanes from each to the next.

A waypoint stands for every lane that is about as near to it as the nearest: where lanes cross in a
junction, the one that the whole route needs is found by dynamic programming over all waypoints.
Ways may change to a lane beside; a change costs as much as a detour of 20 m, more where there is
little room for it, and 100 m more where the marking forbids it. As much it costs to pass a waypoint
in the lane beside: the leaderboard's routes change lanes at one point, a few metres before a
junction, which no car can do.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.driving.world import Scenario
from avtd3.collect.maps.joining import Piece, join
from avtd3.collect.maps.network import Lane, RoadNetwork
from avtd3.collect.maps.planner import MIN_ROUTE_M, PlannedRoute, plan_route, turns_back
from avtd3.store.errors import RouteError

SNAP_M = 5.0
"""Farthest that a waypoint may lie from the middle of a driving lane."""
_ALIKE_M = 2.0  # lanes this much farther away than the nearest are meant as well
_MOST_LANES = 8
_OFFSET_COST = 5.0  # metres of detour per metre between a waypoint and its lane
_CHANGE_M = 20.0
_ROOM_M = 40.0  # a lane change with less room costs twice what is missing
_LEAST_ROOM_M = 10.0
_FORBIDDEN_M = 100.0

_Point = tuple[float, float]
_State = tuple[int, bool]
"""A lane, and whether the way is still in the lane section in which it began."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A lane that a waypoint may mean."""

    lane: int
    share: float
    """Place along the lane, in [0, 1]."""
    offset_m: float
    cost: float = 0.0
    """What it costs to mean this one."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Way:
    """The cheapest way to a place found so far."""

    cost: float
    pieces: tuple[Piece, ...]


def scenario_route(
    network: RoadNetwork, scenario: Scenario, rng: np.random.Generator
) -> PlannedRoute:
    """The route that a scenario asks for: through its waypoints, or a random one.

    Args:
        network: Where to drive.
        scenario: Waypoints, or the wanted length.
        rng: Draws random routes; not used where there are waypoints.

    Raises:
        RouteError: There is no such route.
    """
    if scenario.waypoints:
        return plan_through(network, scenario.waypoints)
    return plan_route(network, rng, scenario.route_length_m)


def plan_through(network: RoadNetwork, waypoints: Sequence[_Point]) -> PlannedRoute:
    """Plan a route through waypoints, in their order.

    Args:
        network: Where to drive.
        waypoints: At least two positions x, y in metres, within `SNAP_M` of a driving lane.

    Returns:
        The route from the first waypoint to the last.

    Raises:
        RouteError: A waypoint lies off the lanes, no way leads from one to the next, or the route
            is shorter than `MIN_ROUTE_M`.
    """
    lanes = _Lanes(network)
    places = [
        _places(network, lanes, point, number) for number, point in enumerate(waypoints, start=1)
    ]
    reached = [(place, _Way(place.cost, ())) for place in places[0]]
    for number, (before, after) in enumerate(itertools.pairwise(waypoints), 1):
        reached = _advance(network, lanes, reached, places[number])
        if not reached:
            raise RouteError(
                f"road {network.name}: no way leads from waypoint {number} {_named(before)} to "
                f"waypoint {number + 1} {_named(after)} along the lanes; check their order and "
                "side of the road, or set one in between"
            )
    pieces = _merged(min(reached, key=lambda found: found[1].cost)[1].pieces)
    length_m = sum(piece.to_m - piece.from_m for piece in pieces)
    if length_m < MIN_ROUTE_M:
        raise RouteError(
            f"road {network.name}: the route through {len(waypoints)} waypoints is {length_m:.1f} "
            f"m long, expected at least {MIN_ROUTE_M} m; set the last one farther on"
        )
    return PlannedRoute(
        route=join(network, pieces),
        lanes=tuple(piece.lane for piece in pieces),
        start_distance_m=pieces[0].from_m,
    )


class _Lanes:
    """The lanes of a network as routes through waypoints ask for them."""

    def __init__(self, network: RoadNetwork) -> None:
        self._network = network
        self._low = np.array([lane.points.min(axis=0) for lane in network.lanes]) - SNAP_M
        self._high = np.array([lane.points.max(axis=0) for lane in network.lanes]) + SNAP_M
        self._numbers = {
            (lane.road_id, lane.section_id, lane.lane_id): lane.index for lane in network.lanes
        }

    def near(self, point: _Point) -> list[_Place]:
        """The places of the lanes within `SNAP_M` of a point, nearest first."""
        inside = ((self._low <= point) & (self._high >= point)).all(axis=1)
        found = [
            _nearest(self._network.lanes[number], point)
            for number in np.flatnonzero(inside).tolist()
        ]
        within = [place for place in found if place.offset_m <= SNAP_M]
        return sorted(within, key=lambda place: (place.offset_m, place.lane))

    def beside(self, number: int) -> list[tuple[int, float]]:
        """The lanes of one direction beside one, and how many metres more a change costs."""
        lane = self._network.lanes[number]
        found = []
        for lane_id in (lane.lane_id - 1, lane.lane_id + 1):
            other = self._numbers.get((lane.road_id, lane.section_id, lane_id))
            if other is None:
                continue
            if other in (lane.left_lane, lane.right_lane):
                found.append((other, 0.0))
            elif lane_id * lane.lane_id > 0 and not lane.is_junction:  # lanes of one direction
                found.append((other, _FORBIDDEN_M))
        return found


def _advance(
    network: RoadNetwork,
    lanes: _Lanes,
    reached: Sequence[tuple[_Place, _Way]],
    places: Sequence[_Place],
) -> list[tuple[_Place, _Way]]:
    """The cheapest way to each place of the next waypoint, if there is one."""
    best: dict[int, _Way] = {}
    for place, way in reached:
        for number, leg in _Search(network, lanes, place).ways(places):
            cost = way.cost + leg.cost + places[number].cost
            if number not in best or cost < best[number].cost:
                best[number] = _Way(cost, (*way.pieces, *leg.pieces))
    return [(places[number], way) for number, way in sorted(best.items())]


def _places(network: RoadNetwork, lanes: _Lanes, point: _Point, number: int) -> list[_Place]:
    """The lanes that a waypoint may mean, nearest first."""
    found = lanes.near(point)
    if not found:
        raise RouteError(
            f"road {network.name}: waypoint {number} {_named(point)} lies more than {SNAP_M:g} m "
            "from every driving lane; is it of this map, in metres, with y to the right as CARLA "
            "counts it?"
        )
    limit = found[0].offset_m + _ALIKE_M
    meant = {place.lane for place in found if place.offset_m <= limit}
    near = {other for lane in meant for other, _ in lanes.beside(lane)} - meant
    return [
        dataclasses.replace(
            place, cost=_OFFSET_COST * place.offset_m + _FORBIDDEN_M * (place.lane in near)
        )
        for place in found
        if place.lane in meant | near
    ][:_MOST_LANES]


def _nearest(lane: Lane, point: _Point) -> _Place:
    start, step = lane.points[:-1], np.diff(lane.points, axis=0)
    size = np.hypot(step[:, 0], step[:, 1])
    along = np.clip(((point - start) * step).sum(axis=1) / np.maximum(size, 1e-9) ** 2, 0.0, 1.0)
    away: NDArray[np.float64] = np.hypot(*(start + along[:, None] * step - point).T)
    place = int(away.argmin())
    at_m = float(lane.distance_m[place] + along[place] * size[place])
    return _Place(lane.index, min(at_m / lane.length_m, 1.0), float(away[place]))


class _Search:
    """Dijkstra's search over lanes from one place."""

    def __init__(self, network: RoadNetwork, lanes: _Lanes, start: _Place) -> None:
        self._network, self._lanes, self._start = network, lanes, start
        self._before: dict[_State, _State | None] = {}

    def ways(self, goals: Sequence[_Place]) -> Iterator[tuple[int, _Way]]:
        """The cheapest way to each goal that can be reached, by the goal's number."""
        found: dict[int, tuple[float, _State]] = {}
        front: list[tuple[float, _State, _State | None]] = [(0.0, (self._start.lane, True), None)]
        while front:
            cost, state, before = heapq.heappop(front)
            if len(found) == len(goals) and cost > max(known for known, _ in found.values()):
                break
            if state in self._before:
                continue
            self._before[state] = before
            for number, goal in enumerate(goals):
                reached = cost + self._length(state, goal.share)
                if self._arrives(state, goal) and (
                    number not in found or reached < found[number][0]
                ):
                    found[number] = (reached, state)
            for more, following in self._following(state):
                heapq.heappush(front, (cost + more, following, state))
        for number, (cost, state) in found.items():
            yield number, _Way(cost, tuple(self._pieces(state, goals[number].share)))

    def _entry(self, state: _State) -> float:
        return self._start.share if state[1] else 0.0

    def _length(self, state: _State, share: float = 1.0) -> float:
        return (share - self._entry(state)) * self._network.lanes[state[0]].length_m

    def _is_beside(self, state: _State, before: _State | None) -> bool:
        """Whether a lane is reached by a change from the one beside it."""
        return before is not None and state[0] in dict(self._lanes.beside(before[0]))

    def _arrives(self, state: _State, goal: _Place) -> bool:
        if goal.lane != state[0] or goal.share < self._entry(state):
            return False
        changes = self._is_beside(state, self._before[state])
        return not changes or self._length(state, goal.share) >= _LEAST_ROOM_M

    def _following(self, state: _State) -> Iterator[tuple[float, _State]]:
        lane, room = self._network.lanes[state[0]], self._length(state)
        for number in lane.successors:
            if not turns_back(self._network, lane, self._network.lanes[number]):
                yield room, (number, False)
        if room >= _LEAST_ROOM_M:
            for number, more in self._lanes.beside(state[0]):
                cost = _CHANGE_M + 2.0 * max(_ROOM_M - room, 0.0) + more
                yield cost, (number, state[1])

    def _pieces(self, last: _State, share: float) -> Iterator[Piece]:
        """Stretches of lanes; lanes beside each other divide their section's way evenly."""
        chain = [last]
        while (before := self._before[chain[-1]]) is not None:
            chain.append(before)
        rows: list[list[_State]] = []
        for before, state in zip((None, *chain[:0:-1]), chain[::-1], strict=True):
            if self._is_beside(state, before):
                rows[-1].append(state)
            else:
                rows.append([state])
        for row in rows:
            entry, exit_ = self._entry(row[0]), share if row is rows[-1] else 1.0
            edges = np.linspace(entry, exit_, len(row) + 1).tolist()
            for (lane, _), first, end in zip(row, edges[:-1], edges[1:], strict=True):
                length_m = self._network.lanes[lane].length_m
                yield Piece(lane, first * length_m, end * length_m)


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces without empty ones, those that go on where the one before ended put together."""
    merged: list[Piece] = []
    for piece in pieces:
        if piece.to_m - piece.from_m < 1e-6:
            continue
        if merged and merged[-1].lane == piece.lane and merged[-1].to_m == piece.from_m:
            merged[-1] = Piece(piece.lane, merged[-1].from_m, piece.to_m)
        else:
            merged.append(piece)
    return merged


def _named(point: _Point) -> str:
    return f"({point[0]:g}, {point[1]:g})"
