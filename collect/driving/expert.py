"""`Expert`: drives any route well, using information that no camera shows.

Steering is pure pursuit (Coulter 1992): the arc through the rear axle and a point on the route a
look-ahead away. The speed is the lower of what the curves ahead allow and what the intelligent
driver model (Treiber, Hennecke and Helbing 2000, eq. 1-2) allows behind a vehicle. The expert knows
the route and the gap to the vehicle ahead exactly: use it to make data, not as a baseline.
"""

import bisect
import cmath
import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_positive
from avtd3.collect.driving.task import DrivingTask
from avtd3.collect.driving.world import VehicleState, WorldFrame
from avtd3.store.step import Observation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExpertConfig:
    """How the expert drives, and the properties of the car that it assumes."""

    target_speed_mps: float = 30.0 / 3.6
    """Speed on a free straight road: 30 km/h."""
    max_lateral_mps2: float = 1.8
    """Lateral acceleration accepted in curves."""
    max_braking_mps2: float = 1.5
    """Deceleration planned before curves."""
    max_acceleration_mps2: float = 1.5
    """Acceleration on a free road."""
    lookahead_s: float = 0.55
    """Look-ahead, in seconds of driving; a longer one cuts corners, a shorter one weaves."""
    min_lookahead_m: float = 3.5
    """Smallest look-ahead."""
    time_gap_s: float = 1.4
    """Desired time to the vehicle ahead."""
    min_gap_m: float = 4.0
    """Desired gap when standing."""
    wheelbase_m: float = 2.7
    """Distance between the axles."""
    max_steer_rad: float = 0.45
    """Angle of the wheels at a steering command of 1."""
    full_throttle_mps2: float = 4.0
    """Acceleration at a throttle of 1."""
    full_brake_mps2: float = 8.7
    """Deceleration at a brake of 1."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))


class Expert:
    """Pure pursuit with speed control; see the module's description."""

    expert_drove = True
    _HARDEST_MPS2 = 6.0
    _SPEED_GAIN_PER_S = 1.2
    _PEDAL_RATE = 0.08
    """Largest rise of the pedal per step in normal driving, for comfort."""

    def __init__(self, config: ExpertConfig, task: DrivingTask) -> None:
        self._config, self._task = config, task
        self._profile: list[float] = []
        self._distances: list[float] = []
        self._points: list[complex] = []
        self._pedal = 0.0

    def reset(self, rng: np.random.Generator) -> None:
        """Plan the speeds along the episode's route; the generator is not used."""
        config, route = self._config, self._task.route
        self._profile = route.speed_profile(
            max_lateral_mps2=config.max_lateral_mps2,
            max_braking_mps2=config.max_braking_mps2,
            max_speed_mps=config.target_speed_mps,
        ).tolist()
        self._distances = route.distance_m.tolist()
        self._points = (route.points[:, 0] + 1j * route.points[:, 1]).tolist()
        self._pedal = 0.0

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the action that follows the route and keeps speed and distance, float32 (2,)."""
        frame = self._task.frame
        return np.array((self._steer(frame.vehicle), self._drive(frame)), np.float32)

    def _steer(self, vehicle: VehicleState) -> float:
        config = self._config
        reach = max(config.min_lookahead_m, config.lookahead_s * vehicle.speed_mps + 1.5)
        yaw = vehicle.yaw_rad
        rear = complex(vehicle.x_m, vehicle.y_m) - cmath.rect(0.5 * config.wheelbase_m, yaw)
        way = (self._ahead(self._task.progress_m + reach) - rear) * cmath.rect(1.0, -yaw)
        distance = max(abs(way), 1.0)
        angle = math.atan(2.0 * config.wheelbase_m * way.imag / (distance * distance))
        return min(1.0, max(-1.0, angle / config.max_steer_rad))

    def _ahead(self, distance_m: float) -> complex:
        """Return the route's point at a distance, extrapolated past its end, without numpy."""
        at, points = self._distances, self._points
        place = min(max(bisect.bisect_right(at, distance_m), 1), len(at) - 1)
        share = (distance_m - at[place - 1]) / (at[place] - at[place - 1])
        return points[place - 1] + share * (points[place] - points[place - 1])

    def _drive(self, frame: WorldFrame) -> float:
        config, speed = self._config, frame.vehicle.speed_mps
        # The speed planned a little ahead allows for the delay of the pedals.
        ahead_m = self._task.progress_m + 0.2 * max(speed, 0.0)
        place = min(bisect.bisect_left(self._distances, ahead_m), len(self._profile) - 1)
        desired = self._SPEED_GAIN_PER_S * (self._profile[place] - speed)
        desired = min(desired, config.max_acceleration_mps2, self._behind(frame))
        desired = max(desired, -self._HARDEST_MPS2)
        full = config.full_throttle_mps2 if desired > 0.0 else config.full_brake_mps2
        # Pedals move slowly for comfort, except in hard braking.
        slowest = -self._PEDAL_RATE if desired > -2.0 else -1.0
        change = min(max(desired / full - self._pedal, slowest), self._PEDAL_RATE)
        self._pedal = min(1.0, max(-1.0, self._pedal + change))
        return self._pedal

    def _behind(self, frame: WorldFrame) -> float:
        """Return the intelligent driver model's acceleration behind the vehicle ahead."""
        gap = frame.lead_gap_m
        if math.isinf(gap):
            return math.inf
        config, speed = self._config, max(frame.vehicle.speed_mps, 0.0)
        top = config.max_acceleration_mps2
        closing = speed - frame.lead_speed_mps
        comfort = 2.0 * math.sqrt(top * 2.0)
        desired = config.min_gap_m + max(0.0, speed * (config.time_gap_s + closing / comfort))
        free = 1.0 - (speed / config.target_speed_mps) ** 4
        return top * (free - (desired / max(gap, 0.1)) ** 2)
