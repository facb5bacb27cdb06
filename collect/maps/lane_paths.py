"""`LanePaths`: where other vehicles may stand in a network, and the ways they drive from there.

Positions are complex numbers, x + iy in metres, and directions unit complex numbers: a rotation
is then one product.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.network import Lane, RoadNetwork

PATH_POINTS = 256
"""Points of a path, one per metre."""
_STAND_EVERY_M = 3.0
_STAND_MARGIN_M = 6.0
_BEND_MPS2 = 2.0
_BRAKING_MPS2 = 1.5
_LEAST_STEP_M = 0.2
_SMOOTHING = np.ones(5) / 5.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Path:
    """The way ahead of a vehicle."""

    points: NDArray[np.complex128]
    """complex128 (PATH_POINTS,), a metre apart; the last one repeats beyond a dead end."""
    ways: NDArray[np.complex128]
    """complex128 (PATH_POINTS,), unit vectors along the path."""
    speed_mps: NDArray[np.float64]
    """float64 (PATH_POINTS,), highest speed that the bends here and ahead allow."""
    in_junction: NDArray[np.bool_]
    """bool (PATH_POINTS,)."""
    length_m: float
    """Metres to the dead end, or the length of the whole path."""


class LanePaths:
    """The lanes of a network, prepared for traffic.

    Attributes:
        stand: complex128 (n,), places where a vehicle may begin, outside junctions.
        stand_heading: complex128 (n,), direction of the lane there.
        stand_lane: int64 (n,), lane of each place.
        stand_distance_m: float64 (n,), distance of each place along its lane.
    """

    def __init__(self, network: RoadNetwork) -> None:
        self._lanes = network.lanes
        self._points = [lane.points[:, 0] + 1j * lane.points[:, 1] for lane in network.lanes]
        places = [_places(lane) for lane in network.lanes]
        lanes = [
            np.full(len(at), lane.index) for lane, at in zip(network.lanes, places, strict=True)
        ]
        self.stand_lane: NDArray[np.int64] = np.concatenate(lanes)
        self.stand_distance_m: NDArray[np.float64] = np.concatenate(places)
        self.stand = np.concatenate(
            [
                np.interp(at, lane.distance_m, points)
                for lane, points, at in zip(network.lanes, self._points, places, strict=True)
            ]
        )
        yaw = np.concatenate(
            [
                np.interp(at, lane.distance_m, np.unwrap(lane.yaw_rad))
                for lane, at in zip(network.lanes, places, strict=True)
            ]
        )
        self.stand_heading = np.exp(1j * yaw)

    def lay(
        self, lanes: list[int], start_m: float, wish_mps: float, rng: np.random.Generator
    ) -> Path:
        """Lay a path along lanes, drawing a successor at each fork not decided yet.

        Args:
            lanes: Lanes to follow; lanes drawn are appended, lanes driven through stay.
            start_m: Distance along the first lane at which the path begins.
            wish_mps: Speed on a straight.
            rng: Draws successors.
        """
        end_m = start_m + PATH_POINTS
        points, distances, crossing = [], [], []
        reached, place = 0.0, 0
        while reached < end_m:
            lane = self._lanes[lanes[place]]
            points.append(self._points[lane.index])
            distances.append(reached + lane.distance_m)
            crossing.append(np.full(len(lane.points), lane.is_junction))
            reached += lane.length_m
            place += 1
            if place == len(lanes) and reached < end_m:
                if not lane.successors:
                    break
                lanes.append(lane.successors[int(rng.integers(len(lane.successors)))])
        return _resampled(
            np.concatenate(points),
            np.concatenate(distances),
            np.concatenate(crossing),
            start_m=start_m,
            wish_mps=wish_mps,
        )

    def drop_passed(self, lanes: list[int], distance_m: float) -> float:
        """Forget lanes that lie wholly behind a distance; answers the distance on what is left."""
        while len(lanes) > 1 and distance_m >= self._lanes[lanes[0]].length_m:
            distance_m -= self._lanes[lanes.pop(0)].length_m
        return distance_m


def _places(lane: Lane) -> NDArray[np.float64]:
    """Distances along a lane at which a vehicle may begin."""
    last = lane.length_m - _STAND_MARGIN_M
    if lane.is_junction or last < _STAND_MARGIN_M:
        return np.empty(0)
    return np.arange(_STAND_MARGIN_M, last, _STAND_EVERY_M)


def _resampled(
    points: NDArray[np.complex128],
    distance_m: NDArray[np.float64],
    crossing: NDArray[np.bool_],
    *,
    start_m: float,
    wish_mps: float,
) -> Path:
    """One point per metre, with the speeds that bends allow (see `Route.speed_profile`)."""
    metres = np.arange(PATH_POINTS, dtype=np.float64)
    at = start_m + metres
    laid = np.interp(at, distance_m, points)
    step = np.diff(laid)
    size = np.abs(step)
    # Beyond a dead end there are no steps: the last direction holds.
    size[0], last = max(float(size[0]), 1e-9), max(int((size > _LEAST_STEP_M).sum()) - 1, 0)
    step[last + 1 :], size[last + 1 :] = step[last], size[last]
    chord = step / size
    # The direction at a point is the mean of those of the steps before and behind it.
    ways = np.concatenate([chord[:1], chord[1:] + chord[:-1], chord[-1:]])
    ways /= np.abs(ways)
    turn = np.abs(np.angle(chord[1:] * chord[:-1].conj()))
    bend = np.convolve(np.concatenate([turn[:1], turn, turn[-1:]]), _SMOOTHING, mode="same")
    energy = np.minimum(_BEND_MPS2 / np.maximum(bend, 1e-6), wish_mps**2)
    braking = 2.0 * _BRAKING_MPS2 * metres
    reach = np.minimum.accumulate((energy + braking)[::-1])[::-1]
    return Path(
        points=laid,
        ways=ways,
        speed_mps=np.sqrt(np.maximum(reach - braking, 0.0)),
        in_junction=crossing[np.searchsorted(distance_m, at).clip(max=len(crossing) - 1)],
        length_m=min(float(distance_m[-1]) - start_m, float(PATH_POINTS)),
    )
