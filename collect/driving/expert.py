"""`Expert`: drives any route well, using information that no camera shows; `TakeoverDriver`.

Steering is pure pursuit (Coulter 1992): the arc through the rear axle and a point on the route a
look-ahead away. The speed is the lower of what the curves ahead allow and what the intelligent
driver model (Treiber, Hennecke and Helbing 2000, eq. 1-2) allows behind a vehicle. The expert knows
the route and the gap to the vehicle ahead exactly: use it to make data, not as a baseline.

Data in which the expert takes over from a policy where that leaves its bounds show how to return
from where the policy goes (HG-DAgger, Kelly et al. 2019, with a rule in place of a person).
"""

import bisect
import cmath
import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number, check_positive
from avtd3.collect.drivers import Driver
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverConfig:
    """Bounds of the driver ``takeover``: where the expert takes over from a policy.

    Example:
        >>> TakeoverConfig(lateral_m=0.8).release
        0.8
    """

    lateral_m: float = 1.0
    """Distance from the route; a lane reaches about 1.75 m to each side."""
    heading_rad: float = 0.35
    """Angle between the car and the route: 20 degrees."""
    time_to_collision_s: float = 1.5
    """Free way to the vehicle or closed stop line ahead, divided by the speed of approach."""
    speed_mps: float = 12.0
    """Speed: 43 km/h, where the expert drives 30 km/h."""
    standing_s: float = 5.0
    """Seconds of standing with no vehicle close ahead; after `task.stuck_s` the episode ends."""
    release: float = 0.8
    """Share of each bound within which the policy drives again, in (0, 1]: the hysteresis."""
    release_s: float = 1.0
    """Seconds for which the car must have been within these smaller bounds."""

    def __post_init__(self) -> None:
        for name in ("lateral_m", "heading_rad", "time_to_collision_s", "speed_mps", "standing_s"):
            check_positive(f"takeover.{name}", getattr(self, name))
        check_positive("takeover.release", self.release)
        check_number("takeover.release", self.release, maximum=1.0)
        check_number("takeover.release_s", self.release_s, maximum=3600.0)

    def is_outside(self, task: DrivingTask, share: float = 1.0) -> bool:
        """Return whether the car is outside a share of the bounds."""
        frame = task.frame
        closing_mps = frame.vehicle.speed_mps - frame.lead_speed_mps
        time_s = frame.lead_gap_m / closing_mps if closing_mps > 0.0 else math.inf
        return (
            abs(task.lateral_m) > share * self.lateral_m
            or abs(task.heading_rad) > share * self.heading_rad
            or time_s < self.time_to_collision_s / share
            or abs(frame.vehicle.speed_mps) > share * self.speed_mps
            or task.standing_s > share * self.standing_s
        )


class TakeoverDriver:
    """A policy, and the expert in its place from where it leaves its bounds until it is back."""

    def __init__(
        self, policy: Driver, expert: Driver, task: DrivingTask, config: TakeoverConfig
    ) -> None:
        self._policy, self._expert, self._task, self._config = policy, expert, task, config
        self._calm_steps = math.ceil(config.release_s / task.period_s)
        self.expert_drove = False
        """Whether the expert decided on the last action."""

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode, which the policy drives at first."""
        self._policy.reset(rng)
        self._expert.reset(rng)
        self.expert_drove, self._calm = False, 0

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the action of the one that drives; both see every observation."""
        policy, expert = self._policy.act(observation), self._expert.act(observation)
        config, task = self._config, self._task
        if not self.expert_drove:
            self.expert_drove, self._calm = config.is_outside(task), 0
        else:
            self._calm = 0 if config.is_outside(task, config.release) else self._calm + 1
            self.expert_drove = self._calm <= self._calm_steps
        return expert if self.expert_drove else policy
