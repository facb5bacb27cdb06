"""`LanePaths`: where the vehicles of the traffic may start in a network, and the paths they follow.

Positions are complex numbers, x + iy in metres, and directions unit complex numbers: a rotation is
then one product.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.network import Lane, RoadNetwork
from avtd3.collect.maps.route import speed_with_braking

PATH_POINTS = 256
"""Points of a path, one per metre."""
_START_EVERY_M = 3.0
_START_MARGIN_M = 6.0
_CURVE_MPS2 = 2.0
_BRAKING_MPS2 = 1.5
_MIN_STEP_M = 0.2
_SMOOTHING = np.ones(5) / 5.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Path:
    """The path ahead of a vehicle."""

    points: NDArray[np.complex128]
    """complex128 (PATH_POINTS,), one per metre; the last point repeats beyond a dead end."""
    directions: NDArray[np.complex128]
    """complex128 (PATH_POINTS,), unit vectors along the path."""
    speed_mps: NDArray[np.float64]
    """float64 (PATH_POINTS,), highest speed that the curves here and ahead allow."""
    in_junction: NDArray[np.bool_]
    """bool (PATH_POINTS,), whether the point is in a junction."""
    length_m: float
    """Metres to the dead end, or the length of the whole path."""


class LanePaths:
    """The lanes of a network, prepared for traffic.

    Attributes:
        starts: complex128 (n,), positions at which a vehicle may start, outside junctions.
        start_headings: complex128 (n,), direction of the lane there.
        start_lanes: int64 (n,), lane of each position.
        start_distances_m: float64 (n,), distance of each position along its lane.
    """

    def __init__(self, network: RoadNetwork) -> None:
        self._lanes = network.lanes
        self._points = [lane.points[:, 0] + 1j * lane.points[:, 1] for lane in network.lanes]
        places = [_places(lane) for lane in network.lanes]
        lanes = [
            np.full(len(at), lane.index) for lane, at in zip(network.lanes, places, strict=True)
        ]
        self.start_lanes: NDArray[np.int64] = np.concatenate(lanes)
        self.start_distances_m: NDArray[np.float64] = np.concatenate(places)
        self.starts = np.concatenate(
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
        self.start_headings = np.exp(1j * yaw)

    def path(
        self, lanes: list[int], start_m: float, desired_mps: float, rng: np.random.Generator
    ) -> Path:
        """Return a path along lanes; draw a successor at each fork that `lanes` does not decide.

        Args:
            lanes: Lanes to follow. Drawn lanes are appended; lanes that were passed stay.
            start_m: Distance along the first lane at which the path starts.
            desired_mps: Speed on a straight.
            rng: Draws successors.
        """
        end_m = start_m + PATH_POINTS
        points, distances, crossing = [], [], []
        reached_m, place = 0.0, 0
        while reached_m < end_m:
            lane = self._lanes[lanes[place]]
            points.append(self._points[lane.index])
            distances.append(reached_m + lane.distance_m)
            crossing.append(np.full(len(lane.points), lane.is_junction))
            reached_m += lane.length_m
            place += 1
            if place == len(lanes) and reached_m < end_m:
                if not lane.successors:
                    break
                lanes.append(lane.successors[int(rng.integers(len(lane.successors)))])
        return _resampled(
            np.concatenate(points),
            np.concatenate(distances),
            np.concatenate(crossing),
            start_m=start_m,
            desired_mps=desired_mps,
        )

    def drop_passed(self, lanes: list[int], distance_m: float) -> float:
        """Drop the lanes behind a distance; return the distance along the first one left."""
        while len(lanes) > 1 and distance_m >= self._lanes[lanes[0]].length_m:
            distance_m -= self._lanes[lanes.pop(0)].length_m
        return distance_m


def _places(lane: Lane) -> NDArray[np.float64]:
    """Return the distances along a lane at which a vehicle may start."""
    last = lane.length_m - _START_MARGIN_M
    if lane.is_junction or last < _START_MARGIN_M:
        return np.empty(0)
    return np.arange(_START_MARGIN_M, last, _START_EVERY_M)


def _resampled(
    points: NDArray[np.complex128],
    distance_m: NDArray[np.float64],
    crossing: NDArray[np.bool_],
    *,
    start_m: float,
    desired_mps: float,
) -> Path:
    """Return a path with one point per metre and the speeds that curves allow."""
    metres = np.arange(PATH_POINTS, dtype=np.float64)
    at = start_m + metres
    even = np.interp(at, distance_m, points)
    step = np.diff(even)
    size = np.abs(step)
    # Beyond a dead end there are no steps: the last direction continues.
    size[0], last = max(float(size[0]), 1e-9), max(int((size > _MIN_STEP_M).sum()) - 1, 0)
    step[last + 1 :], size[last + 1 :] = step[last], size[last]
    chord = step / size
    # The direction at a point is the mean of the steps before and after it.
    directions = np.concatenate([chord[:1], chord[1:] + chord[:-1], chord[-1:]])
    directions /= np.abs(directions)
    turn = np.abs(np.angle(chord[1:] * chord[:-1].conj()))
    bend = np.convolve(np.concatenate([turn[:1], turn, turn[-1:]]), _SMOOTHING, mode="same")
    max_square = np.minimum(_CURVE_MPS2 / np.maximum(bend, 1e-6), desired_mps**2)
    return Path(
        points=even,
        directions=directions,
        speed_mps=speed_with_braking(max_square, _BRAKING_MPS2, metres),
        in_junction=crossing[np.searchsorted(distance_m, at).clip(max=len(crossing) - 1)],
        length_m=min(float(distance_m[-1]) - start_m, float(PATH_POINTS)),
    )
