"""`Course` and `Ego`: the driven car and its route, as the other vehicles look at them."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.route import Route

_BEYOND_M = 80.0


class Course:
    """A route as the traffic looks at it: complex points and directions, reached by index.

    It goes on straight for a while beyond the route's end, so that what stands there is seen.
    """

    def __init__(self, route: Route) -> None:
        last = len(route.points) - 1
        step_m = route.length_m / last
        further_m = step_m * np.arange(1.0, math.ceil(_BEYOND_M / step_m) + 1.0)
        line = route.points.view(np.complex128)[:, 0]
        yaw = np.append(route.yaw_rad, np.full(len(further_m), route.yaw_rad[-1]))
        self.ways: NDArray[np.complex128] = np.exp(1j * yaw)
        self.points: NDArray[np.complex128] = np.append(line, line[-1] + further_m * self.ways[-1])
        # Plain numbers, for looking at a few points.
        distance = np.append(route.distance_m, route.length_m + further_m)
        self.distances: list[float] = distance.tolist()
        self.places: list[complex] = self.points.tolist()
        self.directions: list[complex] = self.ways.tolist()
        self._longest_m = float(np.abs(np.diff(self.points)).max())
        self._last = len(self.points) - 1
        self._per_m = 1.0 / step_m

    def index(self, distance_m: float) -> int:
        """Index of the point at a distance, about; the last one beyond the end."""
        return min(int(distance_m * self._per_m), self._last)

    def nearest(self, at: complex, first: int, stop: int, within_m: float) -> int | None:
        """Index in a range of the point nearest to a place; None if none is near enough."""
        places, longest, best = self.places, self._longest_m, within_m
        found, index = None, first
        while index < stop:
            away = abs(at - places[index])
            if away < best:
                best, found = away, index
            # So many of the next points cannot be nearer.
            index += int((away - best) / longest) or 1
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Ego:
    """The driven car, as the traffic sees it."""

    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float
    length_m: float
    width_m: float
    course: Course
    course_m: float
    """Distance of the car along its course."""
