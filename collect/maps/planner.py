"""Plan a route: a random start in a network, and a random way on at every fork.

The first start that can be driven for the wanted length is taken; a dead end ahead makes the
search turn back to the last fork. Where no start reaches that far the longest way found stands.
Lanes are joined by their centre lines, see `avtd3.collect.maps.joining`; a route through given
waypoints is planned by `avtd3.collect.maps.waypoints`.
"""

import dataclasses
import math

import numpy as np

from avtd3.collect.maps.joining import Piece, join
from avtd3.collect.maps.network import Lane, RoadNetwork
from avtd3.collect.maps.route import Route
from avtd3.store.errors import RoadError

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
