"""Stretches of lanes laid end to end as one `Route`, at one point per metre."""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.driving.world import Scenario
from avtd3.collect.maps.network import Lane, RoadNetwork
from avtd3.collect.maps.route import Route, resample
from avtd3.store.errors import RoadError, RouteError

_OVERLAP_M = 0.3  # a join closer than this is a join, not a lane beside
_CHANGE_PER_M = 8.0  # metres before and after a join, per metre that the lanes lie apart
_NARROWEST_M = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a lane, driven in the lane's direction."""

    lane: int
    """Index into `RoadNetwork.lanes`."""
    from_m: float
    """Metres along the lane where it begins."""
    to_m: float = math.inf
    """Metres along the lane where it ends; infinite for the lane's own end."""


def join(network: RoadNetwork, pieces: Sequence[Piece], length_m: float = math.inf) -> Route:
    """One polyline over the pieces, cut to a length.

    Args:
        network: Whose lanes they are.
        pieces: At least one, in driving order.
        length_m: Where to cut it, in metres from its beginning.
    """
    table = _table(network.lanes[pieces[0].lane], pieces[0])
    for piece in pieces[1:]:
        table = _append(table, _table(network.lanes[piece.lane], piece))
    distance = _distance(table)
    end = min(length_m, float(distance[-1]))
    at = np.concatenate((distance[distance < end], [end]))
    cut = np.stack([np.interp(at, distance, table[:, axis]) for axis in (0, 1)], axis=1)
    even = resample(cut)
    along = np.linspace(0.0, end, len(even))
    # A lane that begins or ends as a wedge is no narrower than a car's way through it.
    width = np.maximum(np.interp(along, distance, table[:, 3]), _NARROWEST_M)
    return Route(points=even, lane_width_m=width)


def _table(lane: Lane, piece: Piece) -> NDArray[np.float64]:
    """Columns x, y, yaw and width of the piece's points, float64 (N, 4)."""
    inner = lane.distance_m[lane.distance_m > piece.from_m + _OVERLAP_M]
    at = np.concatenate(([piece.from_m], inner))
    if piece.to_m < lane.length_m:
        at = np.concatenate((at[at < piece.to_m - _OVERLAP_M], [piece.to_m]))
    columns = (lane.points[:, 0], lane.points[:, 1], lane.yaw_rad, lane.width_m)
    return np.stack([np.interp(at, lane.distance_m, column) for column in columns], axis=1)


def _append(table: NDArray[np.float64], more: NDArray[np.float64]) -> NDArray[np.float64]:
    """Join two lanes; where they lie beside each other, change over on a smooth curve."""
    gap = math.hypot(*(more[0, :2] - table[-1, :2]))
    if gap <= _OVERLAP_M:
        return np.concatenate([table, more[1:] if len(more) > 1 else more])
    room = gap * _CHANGE_PER_M
    before, after = _distance(table), _distance(more)
    # The last stretch before the join and the first behind it give way, at most half of each.
    head = table[before <= max(before[-1] - room, 0.5 * before[-1])]
    tail = more[after >= min(room, 0.5 * after[-1])]
    return np.concatenate([head, _bridge(head[-1], tail[0]), tail])


def _bridge(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """A cubic Hermite curve between two rows, both left out, about a point per metre."""
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


def _distance(table: NDArray[np.float64]) -> NDArray[np.float64]:
    step = np.hypot(*np.diff(table[:, :2], axis=0).T)
    return np.concatenate(([0.0], np.cumsum(step)))


MIN_ROUTE_M = 30.0
"""Shortest route that is worth an episode."""
_STARTS = 24  # positions tried before settling for the longest way found
_VISITS = 400  # lanes looked at from one start; networks branch, searches must end
_END_MARGIN_M = 5.0
_TURN_BACK_RAD = math.radians(150.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRoute:
    """A route and the lanes that it runs along."""

    route: Route
    """The way, about a point per metre."""
    lanes: tuple[int, ...]
    """Indices into `RoadNetwork.lanes`, in driving order; a lane may come again."""
    start_distance_m: float
    """Where on the first lane the route begins."""


def plan_route(network: RoadNetwork, rng: np.random.Generator, length_m: float) -> PlannedRoute:
    """Plan a random route.

    The same network and the same state of the generator give the same route.

    Args:
        network: Where to drive.
        rng: Draws the start and the way on at forks.
        length_m: Wanted length, in metres; met to about a metre, and shorter only where no start
            goes so far.

    Returns:
        The route with its lanes. Starts are spread over all metres of lane outside junctions
        (inside them only if there is nothing else).

    Raises:
        RoadError: The length is below `MIN_ROUTE_M`, or no way of `MIN_ROUTE_M` was found.
    """
    if not length_m >= MIN_ROUTE_M:
        raise RoadError(f"route of {length_m} m wanted, expected at least {MIN_ROUTE_M} m")
    best: tuple[float, float, tuple[int, ...]] = (0.0, 0.0, ())
    for start_lane, start_m in _starts(network, rng):
        reached, lanes = _drive(network, rng, start_lane, start_m, length_m)
        if reached > best[0]:
            best = (reached, start_m, lanes)
        if reached >= length_m:
            break
    reached, start_m, lanes = best
    if reached < MIN_ROUTE_M:
        raise RoadError(
            f"road {network.name} has no way of {MIN_ROUTE_M} m (longest found: {reached:.1f} m)"
        )
    pieces = [Piece(lanes[0], start_m), *(Piece(lane, 0.0) for lane in lanes[1:])]
    return PlannedRoute(
        route=join(network, pieces, min(length_m, reached)),
        lanes=lanes,
        start_distance_m=start_m,
    )


def _starts(network: RoadNetwork, rng: np.random.Generator) -> list[tuple[int, float]]:
    """Random positions, then the very beginning of the lanes, longest first."""
    lanes = [lane for lane in network.lanes if not lane.is_junction] or list(network.lanes)
    length = np.array([lane.length_m for lane in lanes])
    drawn = rng.choice(len(lanes), size=_STARTS, p=length / length.sum())
    share = rng.random(_STARTS)
    found = [
        (lanes[number].index, float(part * max(lanes[number].length_m - _END_MARGIN_M, 0.0)))
        for number, part in zip(drawn.tolist(), share.tolist(), strict=True)
    ]
    longest = np.argsort(-length, kind="stable")[:_STARTS].tolist()
    return found + [(lanes[number].index, 0.0) for number in longest]


def _drive(
    network: RoadNetwork, rng: np.random.Generator, lane: int, start_m: float, length_m: float
) -> tuple[float, tuple[int, ...]]:
    """Search depth first from a position; the length reached (up to the wanted) and the lanes."""
    reached = network.lanes[lane].length_m - start_m
    path, lengths = [lane], [reached]
    ways = [_ways(network, rng, lane)]
    best: tuple[float, tuple[int, ...]] = (reached, (lane,))
    for _ in range(_VISITS):
        if best[0] >= length_m or not path:
            break
        if not ways[-1]:
            for stack in (path, lengths, ways):
                stack.pop()
            continue
        following = ways[-1].pop()
        path.append(following)
        lengths.append(lengths[-1] + network.lanes[following].length_m)
        ways.append(_ways(network, rng, following))
        if lengths[-1] > best[0]:
            best = (lengths[-1], tuple(path))
    return best


def _ways(network: RoadNetwork, rng: np.random.Generator, lane: int) -> list[int]:
    successors = [
        following
        for following in network.lanes[lane].successors
        if not turns_back(network, network.lanes[lane], network.lanes[following])
    ]
    return [successors[number] for number in rng.permutation(len(successors)).tolist()]


def turns_back(network: RoadNetwork, lane: Lane, following: Lane) -> bool:
    """Whether a lane leads over a junction back to where one came from; too tight to drive."""
    if not following.is_junction:
        return False
    beyond = [network.lanes[number].yaw_rad[0] for number in following.successors]
    turns = np.array([*beyond, following.yaw_rad[-1]]) - lane.yaw_rad[-1]
    # Converted maps bend at the joins too, so the connection's own turn does not tell it all.
    return bool(np.cos(turns).min() < math.cos(_TURN_BACK_RAD))


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
