"""`Route`: the polyline that the car should follow, and the projection of the car onto it.

The polyline has a point about every metre, in CARLA's frame (x forward, y to the right, yaw
clockwise in radians). Projection is exact on the segments near the last known distance. It takes
about 10 us for a route of any length, and stays on the correct branch where a route crosses or
repeats itself.
"""

import bisect
import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avtd3.store.errors import RoadError, abbreviate

SEARCH_BEHIND_M = 10.0  # of the last known distance, see `Route.project`
SEARCH_AHEAD_M = 30.0
_CURVATURE_KERNEL = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
_STRAIGHT = 1e-9
COMMANDS = ("follow", "left", "right", "straight")
"""Navigation commands: follow the road, or the way across the next junction."""


@dataclasses.dataclass(frozen=True, slots=True)
class Projection:
    """The point of a route that is nearest to a position."""

    distance_m: float
    """Metres along the route, in [0, length]."""
    lateral_m: float
    """Signed distance from the route, positive to its right."""
    yaw_rad: float
    """Heading of the route at that point, continuous along the route (not wrapped)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The way of a route across one junction.

    Example:
        >>> Turn(command="left", from_m=40.0, to_m=52.0).command
        'left'
    """

    command: str
    """``left``, ``right`` or ``straight``."""
    from_m: float
    """Metres along the route to the edge of the junction where the route enters it."""
    to_m: float
    """Metres along the route to the edge where it leaves the junction."""

    def __post_init__(self) -> None:
        if self.command not in COMMANDS[1:]:
            raise RoadError(
                f"command of a turn is {abbreviate(self.command)}, expected left, right or straight"
            )
        if not (math.isfinite(self.to_m) and self.from_m <= self.to_m):
            raise RoadError(
                f"turn runs from {self.from_m} to {self.to_m} m, expected finite numbers in "
                "ascending order"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """A polyline to follow, with its headings, curvatures, lane widths and turns.

    `points`, `lane_width_m` and `turns` are given; the other fields are computed from them. All
    arrays are read-only.

    Example:
        >>> route = Route(points=np.array([[0.0, 0.0], [50.0, 0.0]]), lane_width_m=np.array(3.5))
        >>> route.length_m, route.project(10.0, 1.0).lateral_m
        (50.0, 1.0)
    """

    points: NDArray[np.float64]
    """float64 (N, 2), x and y in metres, N >= 2, in driving order."""
    lane_width_m: NDArray[np.float64]
    """float64 (N,), width of the lane at each point; one number is used for all points."""
    turns: tuple[Turn, ...] = ()
    """The junctions on the way, in driving order; none by default."""
    distance_m: NDArray[np.float64] = dataclasses.field(init=False)
    """float64 (N,), metres along the route from the first point."""
    yaw_rad: NDArray[np.float64] = dataclasses.field(init=False)
    """float64 (N,), heading at each point, unwrapped: continuous along the route."""
    curvature: NDArray[np.float64] = dataclasses.field(init=False)
    """float64 (N,), change of heading per metre, slightly smoothed, positive to the right."""
    length_m: float = dataclasses.field(init=False)
    """Length of the route in metres."""
    _segments: list[tuple[float, float, float, float, float]] = dataclasses.field(init=False)
    _starts: list[float] = dataclasses.field(init=False)
    _yaws: list[float] = dataclasses.field(init=False)
    _max_segment_m: float = dataclasses.field(init=False)
    _last_projection: list[Any] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        points = _checked_points(self.points)
        count = len(points)
        widths = np.array(np.broadcast_to(np.asarray(self.lane_width_m, np.float64), (count,)))
        step = np.diff(points, axis=0)  # (N - 1, 2)
        size = np.hypot(step[:, 0], step[:, 1])
        if not size.min() > 0.0:
            where = int(np.argmin(size))
            fault = f"route point {where + 1} repeats point {where}"
            raise RoadError(f"{fault}, expected distinct neighbours; drop duplicate points")
        distance = distance_along(points)
        yaw = _vertex_yaw(step, size)
        raw = np.pad(np.gradient(yaw, distance), 2, mode="edge")
        curvature = np.convolve(raw, _CURVATURE_KERNEL, mode="valid")
        for array in (points, widths, distance, yaw, curvature):
            array.flags.writeable = False
        # Plain numbers for `project`: for a few segments, numpy's calls are slower.
        segments = np.column_stack([points[:-1], step / size[:, None], size])
        for name, value in {
            "points": points,
            "lane_width_m": widths,
            "distance_m": distance,
            "yaw_rad": yaw,
            "curvature": curvature,
            "length_m": float(distance[-1]),
            "_segments": list(map(tuple, segments.tolist())),
            "_starts": distance[:-1].tolist(),
            "_yaws": yaw.tolist(),
            "_max_segment_m": float(size.max()),
            "_last_projection": [None, None],
        }.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Route({len(self.points)} points, {self.length_m:.1f} m)"

    def command_at(self, distance_m: float, ahead_m: float) -> str:
        """Return the navigation command at a distance along the route, one of `COMMANDS`.

        The command of a junction begins `ahead_m` before it, but not before the junction in front
        of it is left, and ends where the route leaves the junction.
        """
        for turn in self.turns:
            if distance_m < turn.to_m:
                return turn.command if distance_m >= turn.from_m - ahead_m else COMMANDS[0]
        return COMMANDS[0]

    def rest(self, first: int) -> "Route":
        """Return the route from one of its points on, given by its index."""
        passed_m = float(self.distance_m[first])
        turns = (
            Turn(command=turn.command, from_m=turn.from_m - passed_m, to_m=turn.to_m - passed_m)
            for turn in self.turns
            if turn.to_m > passed_m
        )
        return Route(
            points=self.points[first:],
            lane_width_m=self.lane_width_m[first:],
            turns=tuple(turns),
        )

    def project(self, x_m: float, y_m: float, near_m: float | None = None) -> Projection:
        """Find the point of the route that is nearest to a position.

        Beyond either end, the lateral distance is measured across the direction of the end. A car
        that passes the goal straight ahead has therefore no lateral deviation.

        `near_m` is the last known distance along the route: only the segments from
        `SEARCH_BEHIND_M` behind it to `SEARCH_AHEAD_M` beyond it are searched; None searches all.
        """
        # World and task project the same position one after the other.
        query = (x_m, y_m, near_m)
        if query != self._last_projection[0]:
            self._last_projection[:] = query, self._search(x_m, y_m, near_m)
        found: Projection = self._last_projection[1]
        return found

    def _search(self, x_m: float, y_m: float, near_m: float | None) -> Projection:
        first, stop, seed = self._window(x_m, y_m, near_m)
        best, along, right = self._to_segment(seed, x_m, y_m)
        found, longest, index = seed, self._max_segment_m, first
        while index < stop:
            start_x, start_y, _, _, _ = self._segments[index]
            # A segment is at most its length nearer than its start. The distance to a start
            # therefore shows how many of the next segments can be skipped: usually nearly all.
            reach = math.hypot(x_m - start_x, y_m - start_y) - best
            if reach >= longest:
                index += int(reach / longest)
                continue
            candidate = self._to_segment(index, x_m, y_m)
            if candidate[0] < best:
                best, along, right = candidate
                found = index
            index += 1
        return self._projection(found, best, along, right)

    def _window(self, x_m: float, y_m: float, near_m: float | None) -> tuple[int, int, int]:
        """Return the first segment to search, the one after the last, and the one to start with."""
        starts = self._starts
        if near_m is None:
            gap = np.hypot(self.points[:-1, 0] - x_m, self.points[:-1, 1] - y_m)
            return 0, len(starts), int(gap.argmin())
        first = max(bisect.bisect_right(starts, near_m - SEARCH_BEHIND_M) - 1, 0)
        stop = max(bisect.bisect_left(starts, near_m + SEARCH_AHEAD_M), 1)
        seed = bisect.bisect_right(starts, near_m) - 1
        return first, stop, min(max(seed, first), stop - 1)

    def _to_segment(self, index: int, x_m: float, y_m: float) -> tuple[float, float, float]:
        """Return the distance to a segment, and the position along it and to the right of it."""
        start_x, start_y, cos, sin, size = self._segments[index]
        east, south = x_m - start_x, y_m - start_y
        along = east * cos + south * sin
        right = south * cos - east * sin
        if along < 0.0:
            return math.hypot(along, right), along, right
        if along > size:
            return math.hypot(along - size, right), along, right
        return abs(right), along, right

    def _projection(self, segment: int, away: float, along: float, right: float) -> Projection:
        size = self._segments[segment][4]
        foot = min(max(along, 0.0), size)
        at_end = (along < 0.0 and segment == 0) or (
            along > size and segment == len(self._segments) - 1
        )
        lateral = right if at_end else math.copysign(away, right)
        start_yaw, end_yaw = self._yaws[segment], self._yaws[segment + 1]
        yaw = start_yaw + (end_yaw - start_yaw) * foot / size
        return Projection(self._starts[segment] + foot, lateral, yaw)

    def speed_profile(
        self, *, max_lateral_mps2: float, max_braking_mps2: float, max_speed_mps: float
    ) -> NDArray[np.float64]:
        """Return the highest speed float64 (N,) at each point that the curves ahead allow.

        A curve of curvature k allows ``sqrt(max_lateral / |k|)``; before it, the speed may be
        higher by as much as braking removes, see `speed_with_braking`.
        """
        bend = np.maximum(np.abs(self.curvature), _STRAIGHT)
        energy = np.minimum(max_lateral_mps2 / bend, max_speed_mps**2)
        return speed_with_braking(energy, max_braking_mps2, self.distance_m)


def speed_with_braking(
    max_square: NDArray[np.float64], max_braking_mps2: float, distance_m: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the highest speed at each point of a path from which braking meets all limits ahead.

    The limits ``v_i^2 <= v_j^2 + 2 a (s_j - s_i)`` hold if ``v^2 + 2 a s`` is at most its running
    minimum from the end. `max_square` are the squares of the speed limits at the points.
    """
    braking = 2.0 * max_braking_mps2 * distance_m
    limit = np.minimum.accumulate((max_square + braking)[::-1])[::-1]
    return np.sqrt(np.maximum(limit - braking, 0.0))


def distance_along(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the metres along a polyline to each of its points, whose columns start with x, y."""
    step = np.diff(points[:, :2], axis=0)
    return np.concatenate(([0.0], np.cumsum(np.hypot(step[:, 0], step[:, 1]))))


def resample(points: NDArray[np.float64], spacing_m: float = 1.0) -> NDArray[np.float64]:
    """Return points, two or more, about `spacing_m` apart along a polyline, with both ends."""
    distance = distance_along(points)
    if not distance[-1] > 0.0:
        raise RoadError(
            f"polyline of {len(points)} points has no length, expected above 0 m; check the points"
        )
    count = max(round(distance[-1] / spacing_m), 1) + 1
    at = np.linspace(0.0, distance[-1], count)
    return np.stack([np.interp(at, distance, points[:, axis]) for axis in (0, 1)], axis=1)


def _checked_points(points: ArrayLike) -> NDArray[np.float64]:
    checked = np.array(points, np.float64, order="C")
    if checked.ndim != 2 or checked.shape[1] != 2 or len(checked) < 2:
        raise RoadError(f"route points have shape {checked.shape}, expected (N, 2) with N >= 2")
    if not np.isfinite(checked).all():
        raise RoadError("route points contain a value that is not finite, expected finite numbers")
    return checked


def _vertex_yaw(step: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate the headings at the points between those in the middle of the segments."""
    middle = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    if len(middle) == 1:
        return np.repeat(middle, 2)
    inner = (middle[:-1] * size[1:] + middle[1:] * size[:-1]) / (size[:-1] + size[1:])
    first, last = 2.0 * middle[0] - inner[0], 2.0 * middle[-1] - inner[-1]
    return np.concatenate(([first], inner, [last]))
