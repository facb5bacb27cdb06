"""The observation vector: `ObservationConfig` says what it holds, `VectorBuilder` computes it.

The vector holds, in this order: speed, lateral deviation, heading error, and the waypoints ahead
as x, y pairs in the car's frame (x forward, y to the right); or the speed alone. Each number is
stored divided by its scale; the dataset's spec names them all. Nothing is clipped: the car leaves
the road, which ends the episode, long before a number grows large.
"""

import bisect
import cmath
import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_positive
from avtd3.collect.driving.world import VehicleState
from avtd3.collect.maps.route import Projection, Route
from avtd3.store.errors import ConfigError
from avtd3.store.spec import MAX_AXIS

VECTORS = ("full", "speed")
SPEED_SCALE_MPS = 10.0
LATERAL_SCALE_M = 2.0
HEADING_SCALE_RAD = math.pi / 4.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ObservationConfig:
    """What an observation holds."""

    vector: str = "full"
    """``full``, or ``speed`` for the speed alone: a policy must find the rest in the frames."""
    waypoints: int = 10
    """Number of waypoints ahead; 10 give the 23 numbers of the reports."""
    waypoint_spacing_m: float = 2.5
    """Distance along the route between two waypoints; 25 m ahead are 3 s at 30 km/h."""
    stack: int = 4
    """Camera frames per observation, oldest first."""

    def __post_init__(self) -> None:
        if self.vector not in VECTORS:
            raise ConfigError(f"vector is {self.vector!r}, expected one of {VECTORS}")
        if not 1 <= self.waypoints <= 100:
            raise ConfigError(f"waypoints is {self.waypoints}, expected 1 to 100")
        if not 1 <= self.stack <= MAX_AXIS:
            raise ConfigError(f"stack is {self.stack}, expected 1 to {MAX_AXIS}")
        check_positive("waypoint_spacing_m", self.waypoint_spacing_m)

    @property
    def names(self) -> tuple[str, ...]:
        """Name with unit of each number of the vector."""
        if self.vector == "speed":
            return ("speed_mps",)
        points = (f"waypoint_{i:02d}" for i in range(1, self.waypoints + 1))
        pairs = (f"{point}_{axis}_m" for point in points for axis in ("x", "y"))
        return ("speed_mps", "lateral_m", "heading_rad", *pairs)

    @property
    def scales(self) -> tuple[float, ...]:
        """Physical value stored as 1.0, for each number of the vector.

        Forward, the scale is the horizon; sideways, it is 0.4 of that, because roads bend little.
        """
        if self.vector == "speed":
            return (SPEED_SCALE_MPS,)
        horizon = self.waypoints * self.waypoint_spacing_m
        pair = (horizon, 0.4 * horizon)
        return (SPEED_SCALE_MPS, LATERAL_SCALE_M, HEADING_SCALE_RAD, *(pair * self.waypoints))


class VectorBuilder:
    """Builds the vectors of an episode's observations.

    Points are complex numbers, x + iy, so that one product rotates a waypoint into the car's frame.
    Plain Python numbers take half the time of numpy for a dozen waypoints.
    """

    def __init__(self, config: ObservationConfig, route: Route) -> None:
        spacing = config.waypoint_spacing_m
        self._offsets = [spacing * number for number in range(1, config.waypoints + 1)]
        # The last point extends the route straight beyond its end, further than any waypoint.
        beyond = self._offsets[-1] + 1.0
        line = route.points[:, 0] + 1j * route.points[:, 1]
        end = line[-1] + beyond * np.exp(1j * route.yaw_rad[-1])
        self._places: list[complex] = [*line.tolist(), complex(end)]
        self._distances: list[float] = [*route.distance_m.tolist(), route.length_m + beyond]
        self._only_speed = config.vector == "speed"
        self._scales = config.scales[:5]

    def build(
        self, vehicle: VehicleState, at: Projection, heading_rad: float
    ) -> NDArray[np.float32]:
        """Return the normalised numbers, float32 (V,).

        Args:
            vehicle: The car.
            at: Its position on the route.
            heading_rad: Its heading relative to the route's, see `heading_error`.
        """
        if self._only_speed:
            return np.array([vehicle.speed_mps / SPEED_SCALE_MPS], np.float32)
        speed, lateral, heading, forward, side = self._scales
        values = [vehicle.speed_mps / speed, at.lateral_m / lateral, heading_rad / heading]
        here, back = complex(vehicle.x_m, vehicle.y_m), cmath.rect(1.0, -vehicle.yaw_rad)
        places, distances, place = self._places, self._distances, 1
        for offset in self._offsets:
            metres = at.distance_m + offset
            place = bisect.bisect_right(distances, metres, place, len(distances) - 1)
            before, start = places[place - 1], distances[place - 1]
            share = (metres - start) / (distances[place] - start)
            seen = (before + share * (places[place] - before) - here) * back
            values += (seen.real / forward, seen.imag / side)
        return np.array(values, np.float32)


def heading_error(yaw_rad: float, route_yaw_rad: float) -> float:
    """Return the car's heading minus the route's, in [-pi, pi]; positive to the right."""
    return math.remainder(yaw_rad - route_yaw_rad, math.tau)
