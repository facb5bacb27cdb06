"""Plan a route: a random start in a network, and a random way on at every fork.

The first start that can be driven for the wanted length is taken; a dead end ahead makes the
search turn back to the last fork. Where no start reaches that far the longest way found stands.
Lanes are joined by their centre lines, laid out anew at one point per metre.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.road.network import Lane, RoadNetwork
from avtd3.collect.route import Route, resample
from avtd3.store.errors import RoadError

MIN_ROUTE_M = 30.0
"""Shortest route that is worth an episode."""
_STARTS = 24  # positions tried before settling for the longest way found
_VISITS = 400  # lanes looked at from one start; networks branch, searches must end
_OVERLAP_M = 0.3  # a join closer than this is a join, not a lane beside
_CHANGE_PER_M = 8.0  # metres before and after a join, per metre that the lanes lie apart
_END_MARGIN_M = 5.0
_NARROWEST_M = 2.0
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
    return PlannedRoute(
        route=_join(network, lanes, start_m, min(length_m, reached)),
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
        if not _turns_back(network, network.lanes[lane], network.lanes[following])
    ]
    return [successors[number] for number in rng.permutation(len(successors)).tolist()]


def _turns_back(network: RoadNetwork, lane: Lane, following: Lane) -> bool:
    """Whether a lane leads over a junction back to where one came from; too tight to drive."""
    if not following.is_junction:
        return False
    beyond = [network.lanes[number].yaw_rad[0] for number in following.successors]
    turns = np.array([*beyond, following.yaw_rad[-1]]) - lane.yaw_rad[-1]
    # Converted maps bend at the joins too, so the connection's own turn does not tell it all.
    return bool(np.cos(turns).min() < math.cos(_TURN_BACK_RAD))


def _join(network: RoadNetwork, lanes: tuple[int, ...], start_m: float, length_m: float) -> Route:
    """One polyline over the lanes from a distance on the first, cut to a length."""
    table = _table(network.lanes[lanes[0]], start_m)
    for lane in lanes[1:]:
        table = _append(table, _table(network.lanes[lane], 0.0))
    distance = _distance(table)
    end = min(length_m, float(distance[-1]))
    at = np.concatenate((distance[distance < end], [end]))
    cut = np.stack([np.interp(at, distance, table[:, axis]) for axis in (0, 1)], axis=1)
    even = resample(cut)
    along = np.linspace(0.0, end, len(even))
    # A lane that begins or ends as a wedge is no narrower than a car's way through it.
    width = np.maximum(np.interp(along, distance, table[:, 3]), _NARROWEST_M)
    return Route(points=even, lane_width_m=width)


def _table(lane: Lane, start_m: float) -> NDArray[np.float64]:
    """Columns x, y, yaw and width of a lane's points from a distance on, float64 (N, 4)."""
    at = np.concatenate(([start_m], lane.distance_m[lane.distance_m > start_m + _OVERLAP_M]))
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
