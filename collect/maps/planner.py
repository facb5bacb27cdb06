"""Plan routes along lanes: random ones, and ones through given waypoints."""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.network import Lane, RoadNetwork
from avtd3.collect.maps.route import Route, Turn, distance_along, resample
from avtd3.store.errors import RoadError, RouteError

_OVERLAP_M = 0.3  # lanes whose ends are closer than this continue each other
_CHANGE_PER_M = 8.0  # length of a lane change before and after the join, per metre between lanes
_NARROWEST_M = 2.0
MIN_ROUTE_M = 15.0  # length of the shortest route that is driven
_SHORTEST_M = MIN_ROUTE_M - 0.05  # lanes are sampled a millimetre short at each end
SNAP_M = 5.0  # maximum distance of a waypoint from the middle of a driving lane
_STARTS = 24  # positions that are tried before the longest route found is taken
_VISITS = 400  # lanes that are visited from one start, so that the search ends
_END_MARGIN_M = 5.0
_TURN_BACK_RAD = math.radians(150.0)
_STRAIGHT_RAD = math.radians(35.0)
"""A way across a junction that turns by less is straight, as in CARLA's own planner
(GlobalRoutePlanner._turn_decision)."""
_ALIKE_M = 2.0  # a waypoint also stands for lanes this much farther away than the nearest
_MAX_LANES = 8
_OFFSET_COST = 5.0  # metres of detour per metre between a waypoint and its lane
_CHANGE_M, _MIN_ROOM_M = 20.0, 10.0
_ROOM_M = 40.0  # a lane change with less room costs twice the missing length
_FORBIDDEN_M = 100.0  # cost of a lane change that the marking forbids
_Point = tuple[float, float]
_State = tuple[int, bool]
"""A lane, and whether the path is still in the lane section in which it started."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedRoute:
    """A route and the lanes that it runs along."""

    route: Route
    lanes: tuple[int, ...]
    """Indices in `RoadNetwork.lanes`, in driving order; a lane may occur again."""


@dataclasses.dataclass(frozen=True, slots=True)
class LanePart:
    """A part of a lane (an index), between two distances along it; infinite for its end."""

    lane: int
    from_m: float
    to_m: float = math.inf


def plan_route(network: RoadNetwork, rng: np.random.Generator, length_m: float) -> PlannedRoute:
    """Plan a random route, shorter than `length_m` only if no start leads so far.

    Starts are distributed evenly over all metres of lane, outside junctions if possible.
    """
    if not length_m >= MIN_ROUTE_M:
        raise RoadError(f"route length is {length_m} m, expected at least {MIN_ROUTE_M:g} m")
    best: tuple[float, float, tuple[int, ...]] = (0.0, 0.0, ())
    for start_lane, start_m in _starts(network, rng):
        reached, lanes = _drive(network, rng, start_lane, start_m, length_m)
        if reached > best[0]:
            best = (reached, start_m, lanes)
        if reached >= length_m:
            break
    reached, start_m, lanes = best
    if reached < _SHORTEST_M:
        found = f"no route of {MIN_ROUTE_M:g} m (longest found: {reached:.1f} m)"
        raise RoadError(f"road {network.name} has {found}; use longer roads")
    parts = [LanePart(lanes[0], start_m), *(LanePart(lane, 0.0) for lane in lanes[1:])]
    return PlannedRoute(join(network, parts, min(length_m, reached)), lanes)


def plan_through(network: RoadNetwork, waypoints: Sequence[_Point]) -> PlannedRoute:
    """Plan the cheapest route through at least two waypoints, in their order."""
    lanes = _Lanes(network)
    places = [_places(lanes, point, number) for number, point in enumerate(waypoints, start=1)]
    reached: list[tuple[_Place, _Path]] = [(place, (place.cost, ())) for place in places[0]]
    for number, (before, after) in enumerate(itertools.pairwise(waypoints), 1):
        reached = _advance(lanes, reached, places[number])
        if not reached:
            raise RouteError(
                f"road {network.name}: no lanes lead from waypoint {number} {_named(before)} to "
                f"waypoint {number + 1} {_named(after)}; check their order and their side of the "
                "road, or add one in between"
            )
    parts = _merged(min(reached, key=lambda found: found[1][0])[1][1])
    length_m = sum(part.to_m - part.from_m for part in parts)
    if length_m < _SHORTEST_M:
        raise RouteError(
            f"road {network.name}: the route through {len(waypoints)} waypoints is {length_m:.1f} "
            f"m long, expected at least {MIN_ROUTE_M:g} m; move the last one farther away"
        )
    return PlannedRoute(join(network, parts), tuple(part.lane for part in parts))


def join(network: RoadNetwork, parts: Sequence[LanePart], length_m: float = math.inf) -> Route:
    """Join parts of lanes, at least one, into one route that is cut to a length."""
    table = _table(network.lanes[parts[0].lane], parts[0])
    for part in parts[1:]:
        table = _append(table, _table(network.lanes[part.lane], part))
    distance = distance_along(table)
    end = min(length_m, float(distance[-1]))
    at = np.concatenate((distance[distance < end], [end]))
    cut = np.stack([np.interp(at, distance, table[:, axis]) for axis in (0, 1)], axis=1)
    even = resample(cut)
    along = np.linspace(0.0, end, len(even))
    # A lane that starts or ends as a wedge still has room for a car.
    width = np.maximum(np.interp(along, distance, table[:, 3]), _NARROWEST_M)
    route = Route(points=even, lane_width_m=width)
    return dataclasses.replace(route, turns=tuple(_turns(network, parts, route)))


def _turns(network: RoadNetwork, parts: Sequence[LanePart], route: Route) -> Iterator[Turn]:
    """Yield the junctions that a route enters; lanes of junctions in a row are one junction.

    The direction is the whole change of heading from the lane before the junction to the end of
    the last lane inside it, also if the route starts or ends inside.
    """
    at_m, entered_m, turned_rad = 0.0, math.nan, 0.0
    for before, part in itertools.pairwise((None, *parts)):
        assert part is not None, "only the first is None"
        lane = network.lanes[part.lane]
        if lane.is_junction:
            if math.isnan(entered_m):
                entered_m, turned_rad = at_m, 0.0
            turned_rad += float(lane.yaw_rad[-1] - lane.yaw_rad[0])
            if before is not None and before.lane != part.lane:
                joint = lane.yaw_rad[0] - network.lanes[before.lane].yaw_rad[-1]
                turned_rad += math.remainder(joint, math.tau)
        elif not math.isnan(entered_m):
            yield _turn(turned_rad, entered_m, at_m)
            entered_m = math.nan
        end_m = min(part.to_m, lane.length_m)
        x_m, y_m = (float(np.interp(end_m, lane.distance_m, lane.points[:, i])) for i in (0, 1))
        at_m = route.project(x_m, y_m, near_m=at_m + end_m - part.from_m).distance_m
        if at_m >= route.length_m:
            break
    if not math.isnan(entered_m):
        yield _turn(turned_rad, entered_m, route.length_m)


def _turn(turned_rad: float, from_m: float, to_m: float) -> Turn:
    straight = abs(turned_rad) < _STRAIGHT_RAD
    command = "straight" if straight else "left" if turned_rad < 0.0 else "right"
    return Turn(command=command, from_m=from_m, to_m=to_m)


def _table(lane: Lane, part: LanePart) -> NDArray[np.float64]:
    """Return columns x, y, yaw and width of the points of a part, float64 (N, 4)."""
    inner = lane.distance_m[lane.distance_m > part.from_m + _OVERLAP_M]
    at = np.concatenate(([part.from_m], inner))
    if part.to_m < lane.length_m:
        at = np.concatenate((at[at < part.to_m - _OVERLAP_M], [part.to_m]))
    columns = (lane.points[:, 0], lane.points[:, 1], lane.yaw_rad, lane.width_m)
    return np.stack([np.interp(at, lane.distance_m, column) for column in columns], axis=1)


def _append(table: NDArray[np.float64], more: NDArray[np.float64]) -> NDArray[np.float64]:
    """Append the points of the next lane, on a smooth curve if the lanes are side by side."""
    gap = math.hypot(*(more[0, :2] - table[-1, :2]))
    if gap <= _OVERLAP_M:
        return np.concatenate([table, more[1:] if len(more) > 1 else more])
    room = gap * _CHANGE_PER_M
    before, after = distance_along(table), distance_along(more)
    # The curve replaces the points before and after the join, at most half of each part.
    head = table[before <= max(before[-1] - room, 0.5 * before[-1])]
    tail = more[after >= min(room, 0.5 * after[-1])]
    return np.concatenate([head, _bridge(head[-1], tail[0]), tail])


def _bridge(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a cubic Hermite curve between two rows, without both: a point about every metre."""
    chord = math.hypot(*(end[:2] - start[:2]))
    share = np.linspace(0.0, 1.0, max(math.ceil(chord), 1) + 1)[1:-1, None]
    way = [chord * np.array([math.cos(row[2]), math.sin(row[2])]) for row in (start, end)]
    place = (
        (1.0 + 2.0 * share) * (1.0 - share) ** 2 * start[:2]
        + share**2 * (3.0 - 2.0 * share) * end[:2]
        + share * (1.0 - share) ** 2 * way[0]
        - share**2 * (1.0 - share) * way[1]
    )
    return np.concatenate([place, (1.0 - share) * start[2:] + share * end[2:]], axis=1)


def _starts(network: RoadNetwork, rng: np.random.Generator) -> list[tuple[int, float]]:
    """Return random positions, then the starts of the longest lanes, as (lane, distance)."""
    lanes = [lane for lane in network.lanes if not lane.is_junction] or list(network.lanes)
    length = np.array([lane.length_m for lane in lanes])
    drawn = rng.choice(len(lanes), size=_STARTS, p=length / length.sum())
    share = rng.random(_STARTS)
    found = [
        (lanes[number].index, float(along * max(lanes[number].length_m - _END_MARGIN_M, 0.0)))
        for number, along in zip(drawn.tolist(), share.tolist(), strict=True)
    ]
    longest = np.argsort(-length, kind="stable")[:_STARTS].tolist()
    return found + [(lanes[number].index, 0.0) for number in longest]


def _drive(
    network: RoadNetwork, rng: np.random.Generator, lane: int, start_m: float, length_m: float
) -> tuple[float, tuple[int, ...]]:
    """Search depth first from a position; return the length reached and the lanes."""
    reached = network.lanes[lane].length_m - start_m
    path, lengths = [lane], [reached]
    choices = [_next_lanes(network, rng, lane)]
    best: tuple[float, tuple[int, ...]] = (reached, (lane,))
    for _ in range(_VISITS):
        if best[0] >= length_m or not path:
            break
        if not choices[-1]:
            for stack in (path, lengths, choices):
                stack.pop()
            continue
        successor = choices[-1].pop()
        path.append(successor)
        lengths.append(lengths[-1] + network.lanes[successor].length_m)
        choices.append(_next_lanes(network, rng, successor))
        if lengths[-1] > best[0]:
            best = (lengths[-1], tuple(path))
    return best


def _next_lanes(network: RoadNetwork, rng: np.random.Generator, lane: int) -> list[int]:
    """Return the successors of a lane in random order, without those that turn back."""
    here, lanes = network.lanes[lane], network.lanes
    found = [n for n in here.successors if not _turns_back(network, here, lanes[n])]
    return [found[number] for number in rng.permutation(len(found)).tolist()]


def _turns_back(network: RoadNetwork, lane: Lane, successor: Lane) -> bool:
    """Return whether a lane leads over a junction back, which is too tight to drive."""
    if not successor.is_junction:
        return False
    beyond = [network.lanes[number].yaw_rad[0] for number in successor.successors]
    turns = np.array([*beyond, successor.yaw_rad[-1]]) - lane.yaw_rad[-1]
    # Lanes of converted maps also bend at the joins: check the direction beyond the junction too.
    return bool(np.cos(turns).min() < math.cos(_TURN_BACK_RAD))


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A position on a lane, in [0, 1], for which a waypoint may stand at a cost."""

    lane: int
    share: float
    offset_m: float
    cost: float = 0.0


_Path = tuple[float, tuple[LanePart, ...]]
"""Cost and parts of the cheapest path to a place found so far."""


class _Lanes:
    """The lanes of a network, indexed for routes through waypoints."""

    def __init__(self, network: RoadNetwork) -> None:
        self.network = network
        self._low = np.array([lane.points.min(axis=0) for lane in network.lanes]) - SNAP_M
        self._high = np.array([lane.points.max(axis=0) for lane in network.lanes]) + SNAP_M
        self._numbers = {
            (lane.road_id, lane.section_id, lane.lane_id): lane.index for lane in network.lanes
        }

    def near(self, point: _Point) -> list[_Place]:
        """Return the nearest place on each lane within `SNAP_M` of a point, nearest first."""
        inside = ((self._low <= point) & (self._high >= point)).all(axis=1)
        lanes = self.network.lanes
        found = [_nearest(lanes[number], point) for number in np.flatnonzero(inside).tolist()]
        within = [place for place in found if place.offset_m <= SNAP_M]
        return sorted(within, key=lambda place: (place.offset_m, place.lane))

    def beside(self, number: int) -> list[tuple[int, float]]:
        """Return the lanes beside a lane in its direction, and the extra cost of changing."""
        lane = self.network.lanes[number]
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


def _places(lanes: _Lanes, point: _Point, number: int) -> list[_Place]:
    """Return the places for which a waypoint may stand, nearest first."""
    found = lanes.near(point)
    if not found:
        raise RouteError(
            f"road {lanes.network.name}: waypoint {number} {_named(point)} is more than "
            f"{SNAP_M:g} m from every driving lane; check that it belongs to this map, in metres, "
            "with y to the right as in CARLA"
        )
    limit = found[0].offset_m + _ALIKE_M
    alike = {place.lane for place in found if place.offset_m <= limit}
    beside = {other for lane in alike for other, _ in lanes.beside(lane)} - alike
    used = [place for place in found if place.lane in alike | beside][:_MAX_LANES]
    costs = [_OFFSET_COST * p.offset_m + _FORBIDDEN_M * (p.lane in beside) for p in used]
    return [dataclasses.replace(p, cost=cost) for p, cost in zip(used, costs, strict=True)]


def _nearest(lane: Lane, point: _Point) -> _Place:
    start, step = lane.points[:-1], np.diff(lane.points, axis=0)
    size = np.hypot(step[:, 0], step[:, 1])
    along = np.clip(((point - start) * step).sum(axis=1) / np.maximum(size, 1e-9) ** 2, 0.0, 1.0)
    away: NDArray[np.float64] = np.hypot(*(start + along[:, None] * step - point).T)
    place = int(away.argmin())
    at_m = float(lane.distance_m[place] + along[place] * size[place])
    return _Place(lane.index, min(at_m / lane.length_m, 1.0), float(away[place]))


def _advance(
    lanes: _Lanes, reached: Sequence[tuple[_Place, _Path]], places: Sequence[_Place]
) -> list[tuple[_Place, _Path]]:
    """Return the cheapest path to each place of the next waypoint that can be reached."""
    best: dict[int, _Path] = {}
    for place, (so_far, parts) in reached:
        for number, (leg, more) in _Search(lanes, place).paths(places):
            cost = so_far + leg + places[number].cost
            if number not in best or cost < best[number][0]:
                best[number] = (cost, (*parts, *more))
    return [(places[number], path) for number, path in sorted(best.items())]


class _Search:
    """Dijkstra's search over lanes from one place."""

    def __init__(self, lanes: _Lanes, start: _Place) -> None:
        self._network, self._lanes, self._start = lanes.network, lanes, start
        self._before: dict[_State, _State | None] = {}

    def paths(self, goals: Sequence[_Place]) -> Iterator[tuple[int, _Path]]:
        """Yield the cheapest path to each goal that can be reached, with the index of the goal."""
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
                reached, known = cost + self._length(state, goal.share), found.get(number)
                if self._arrives(state, goal) and (known is None or reached < known[0]):
                    found[number] = (reached, state)
            for more, successor in self._successors(state):
                heapq.heappush(front, (cost + more, successor, state))
        for number, (cost, state) in found.items():
            yield number, (cost, tuple(self._parts(state, goals[number].share)))

    def _entry(self, state: _State) -> float:
        return self._start.share if state[1] else 0.0

    def _length(self, state: _State, share: float = 1.0) -> float:
        return (share - self._entry(state)) * self._network.lanes[state[0]].length_m

    def _is_beside(self, state: _State, before: _State | None) -> bool:
        """Return whether a lane was reached by a change from the lane beside it."""
        return before is not None and state[0] in dict(self._lanes.beside(before[0]))

    def _arrives(self, state: _State, goal: _Place) -> bool:
        if goal.lane != state[0] or goal.share < self._entry(state):
            return False
        changes = self._is_beside(state, self._before[state])
        return not changes or self._length(state, goal.share) >= _MIN_ROOM_M

    def _successors(self, state: _State) -> Iterator[tuple[float, _State]]:
        lane, room = self._network.lanes[state[0]], self._length(state)
        for number in lane.successors:
            if not _turns_back(self._network, lane, self._network.lanes[number]):
                yield room, (number, False)
        if room >= _MIN_ROOM_M:
            for number, more in self._lanes.beside(state[0]):
                cost = _CHANGE_M + 2.0 * max(_ROOM_M - room, 0.0) + more
                yield cost, (number, state[1])

    def _parts(self, last: _State, share: float) -> Iterator[LanePart]:
        """Yield the parts of lanes of a path; lanes side by side share their section evenly."""
        chain = [last]
        while (before := self._before[chain[-1]]) is not None:
            chain.append(before)
        rows: list[list[_State]] = []
        for state in reversed(chain):
            if self._is_beside(state, self._before[state]):
                rows[-1].append(state)
            else:
                rows.append([state])
        for row in rows:
            entry, exit_ = self._entry(row[0]), share if row is rows[-1] else 1.0
            edges = np.linspace(entry, exit_, len(row) + 1).tolist()
            for (lane, _), first, end in zip(row, edges[:-1], edges[1:], strict=True):
                length_m = self._network.lanes[lane].length_m
                yield LanePart(lane, first * length_m, end * length_m)


def _merged(parts: Sequence[LanePart]) -> list[LanePart]:
    """Return the parts without empty ones; adjacent parts of a lane are merged."""
    merged: list[LanePart] = []
    for part in parts:
        if part.to_m - part.from_m < 1e-6:
            continue
        if merged and merged[-1].lane == part.lane and merged[-1].to_m == part.from_m:
            merged[-1] = LanePart(part.lane, merged[-1].from_m, part.to_m)
        else:
            merged.append(part)
    return merged


def _named(point: _Point) -> str:
    return f"({point[0]:g}, {point[1]:g})"
