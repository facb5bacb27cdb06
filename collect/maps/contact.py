"""The driven car's contact with its surroundings: the ground, vehicles that it hits, the one ahead.

Both simulators use it. Positions are complex numbers, x + iy in metres; directions are unit complex
numbers.
"""

import dataclasses
import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.raster import SHOULDER, Raster
from avtd3.collect.maps.route import Route

LEAD_WITHIN_M = 60.0
"""How far ahead on the route a vehicle counts as the lead vehicle."""
_WRONG_WAY_COS = math.cos(math.radians(120.0))
_BEYOND_M = 80.0
_CLEARANCE_M = 0.2
_TOUCH_M = 8.0
NEAR_M = 80.0
"""How far `find_nearby` looks."""
# Maximum distance from the course at which the centre of a vehicle in the corridor can be.
_CORRIDOR_M = 5.0
_LONGEST_M = 6.0


class Course:
    """A route as complex points and directions, extended straight to show vehicles beyond it."""

    def __init__(self, route: Route) -> None:
        last = len(route.points) - 1
        step_m = route.length_m / last
        further_m = step_m * np.arange(1.0, math.ceil(_BEYOND_M / step_m) + 1.0)
        line = route.points.view(np.complex128)[:, 0]
        yaw = np.append(route.yaw_rad, np.full(len(further_m), route.yaw_rad[-1]))
        self.directions: NDArray[np.complex128] = np.exp(1j * yaw)
        self.points: NDArray[np.complex128] = np.append(
            line, line[-1] + further_m * self.directions[-1]
        )
        # Plain numbers: faster than numpy for a few points.
        distance = np.append(route.distance_m, route.length_m + further_m)
        self.distance_list: list[float] = distance.tolist()
        self.point_list: list[complex] = self.points.tolist()
        self.direction_list: list[complex] = self.directions.tolist()
        self._max_step_m = float(np.abs(np.diff(self.points)).max())
        self._last = len(self.points) - 1
        self._per_m = 1.0 / step_m

    def index(self, distance_m: float) -> int:
        """Return the approximate index of a distance, at most the last one."""
        return min(int(distance_m * self._per_m), self._last)

    def nearest(self, at: complex, first: int, stop: int, within_m: float) -> int | None:
        """Return the index in a range of the nearest point; None if none is close enough."""
        places, longest, best = self.point_list, self._max_step_m, within_m
        found, index = None, first
        while index < stop:
            away = abs(at - places[index])
            if away < best:
                best, found = away, index
            # Skip the next points that cannot be nearer.
            index += int((away - best) / longest) or 1
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Ego:
    """The driven car, as other vehicles see it, `course_m` along its course."""

    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float
    length_m: float
    width_m: float
    course: Course
    course_m: float


class OtherVehicles(Protocol):
    """The other vehicles of a world, whatever drives them: one entry of each array per vehicle."""

    at: NDArray[np.complex128]
    """Centres x + iy in metres, far away for a vehicle without a position."""
    heading: NDArray[np.complex128]
    speed_mps: NDArray[np.float64]
    """Speeds along their headings."""
    length_m: NDArray[np.float64]
    width_m: NDArray[np.float64]


class Nearby(NamedTuple):
    """The vehicles around a car, by index in the arrays of `OtherVehicles`.

    `places` are their centres in the world; `at` (forward + i right) and `heading` are relative to
    the car.
    """

    numbers: list[int]
    places: list[complex]
    at: list[complex]
    heading: list[complex]


class GroundContact(NamedTuple):
    """The ground under a car, see `WorldFrame`, and the direction of the lane if there is one."""

    off_road: bool
    wrong_way: bool
    lane_yaw_rad: float | None


def ground_contact(raster: Raster, x_m: float, y_m: float, yaw_rad: float) -> GroundContact:
    """Return the ground under the centre of a car with a heading."""
    lane_yaw = raster.direction_at(x_m, y_m)
    wrong_way = lane_yaw is not None and math.cos(yaw_rad - lane_yaw) < _WRONG_WAY_COS
    return GroundContact(raster.ground_at(x_m, y_m) < SHOULDER, wrong_way, lane_yaw)


def find_nearby(ego: Ego, traffic: OtherVehicles) -> Nearby:
    """Return the vehicles that the car may touch, see or follow."""
    here = complex(ego.x_m, ego.y_m)
    back = complex(math.cos(ego.yaw_rad), -math.sin(ego.yaw_rad))
    # Plain numbers: for a few dozen vehicles, numpy's calls are slower.
    headings = traffic.heading.tolist()
    around = Nearby([], [], [], [])
    for number, place in enumerate(traffic.at.tolist()):
        seen = (place - here) * back
        if seen.real > -_TOUCH_M and abs(seen) < NEAR_M:
            around.numbers.append(number)
            around.places.append(place)
            around.at.append(seen)
            around.heading.append(headings[number] * back)
    return around


def hits_vehicle(ego: Ego, traffic: OtherVehicles, around: Nearby) -> bool:
    """Return whether the body of the car overlaps another vehicle."""
    own = (0.5 * ego.length_m, 0.5 * ego.width_m)
    for number, at, heading in zip(around.numbers, around.at, around.heading, strict=True):
        if abs(at) < _TOUCH_M:
            half = (0.5 * traffic.length_m.item(number), 0.5 * traffic.width_m.item(number))
            if rectangles_overlap(at, heading, half, own):
                return True
    return False


def lead_on_route(ego: Ego, traffic: OtherVehicles, around: Nearby) -> tuple[float, float]:
    """Return free metres to the vehicle ahead in the car's corridor, and its speed along the route.

    Without one within `LEAD_WITHIN_M`, they are infinite and 0.
    """
    if not around.numbers:
        return math.inf, 0.0
    course, nearest_to = ego.course, ego.course.nearest
    first = course.index(ego.course_m)
    stop = course.index(ego.course_m + LEAD_WITHIN_M + _LONGEST_M) + 1
    gap, speed = LEAD_WITHIN_M, 0.0
    for number, place in zip(around.numbers, around.places, strict=True):
        nearest = nearest_to(place, first, stop, _CORRIDOR_M)
        if nearest is None:
            continue
        found = _gap_along(ego, traffic, number, nearest)
        if found is not None and found[0] <= gap:
            gap, speed = found
    return (math.inf if gap == LEAD_WITHIN_M else max(gap, 0.0)), speed


def rectangles_overlap(
    at: complex, heading: complex, half: tuple[float, float], own: tuple[float, float]
) -> bool:
    """Return whether a rectangle overlaps one at the origin that points along the real axis.

    `half` and `own` are half their lengths and widths. By the separating axis theorem, they are
    apart if and only if the direction of one of their sides separates them.
    """
    cosine, sine = abs(heading.real), abs(heading.imag)
    if abs(at.real) > own[0] + half[0] * cosine + half[1] * sine:
        return False
    if abs(at.imag) > own[1] + half[0] * sine + half[1] * cosine:
        return False
    turned = at * heading.conjugate()
    if abs(turned.real) > half[0] + own[0] * cosine + own[1] * sine:
        return False
    return abs(turned.imag) <= half[1] + own[0] * sine + own[1] * cosine


def _gap_along(
    ego: Ego, traffic: OtherVehicles, number: int, nearest: int
) -> tuple[float, float] | None:
    """Return free metres to a vehicle along the course and its speed; None if it is aside."""
    course, at = ego.course, traffic.at.item(number)
    way = course.direction_list[nearest].conjugate()
    local = (at - course.point_list[nearest]) * way
    turn = traffic.heading.item(number) * way
    cosine, sine = abs(turn.real), abs(turn.imag)
    length, width = traffic.length_m.item(number), traffic.width_m.item(number)
    along = course.distance_list[nearest] - ego.course_m + local.real
    beside = 0.5 * (sine * length + cosine * width + ego.width_m) + _CLEARANCE_M
    if abs(local.imag) > beside or along <= 0.0:
        return None
    gap = along - 0.5 * (cosine * length + sine * width + ego.length_m)
    return gap, traffic.speed_mps.item(number) * turn.real
