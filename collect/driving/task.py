"""`DrivingTask`: follow the route to its goal; the same on every world.

The task turns the frames of a world into observation vectors, reward terms and episode ends. What
ends an episode, in this order of precedence:

=========== ========== ======================================================================
collision   terminated the car hit something
off_road    terminated its centre left the road
off_route   terminated it is farther from the route than `TaskConfig.max_lateral_m`
goal        terminated it came within `TaskConfig.goal_m` of the route's end
time_limit  truncated  the scenario's time is over
stuck       truncated  it stood for `TaskConfig.stuck_s` with no vehicle close ahead
=========== ========== ======================================================================

The observation vector holds, in this order: speed, lateral deviation, heading error, and the
waypoints ahead as x, y pairs in the car's frame (x forward, y to the right); or the speed alone.
With `ObservationConfig.command`, the navigation command follows as four numbers, of which one is 1.
Each number is stored divided by its scale; the dataset's spec names them all. Nothing is clipped:
the car leaves the road, which ends the episode, long before a number grows large.
"""

import bisect
import cmath
import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_positive
from avtd3.collect.driving.reward import REWARD_TERMS, RewardConfig, StepFacts, reward_terms
from avtd3.collect.driving.world import VehicleState, WorldFrame, WorldStart
from avtd3.collect.environment import SUCCESS_REASON
from avtd3.collect.maps.route import COMMANDS, Projection, Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.errors import ConfigError, check_integers
from avtd3.store.spec import MAX_AXIS, EpisodeSpec, ImageSpec

ACTION_NAMES = ("steer", "throttle_brake")
"""Steering, right positive; throttle above 0, brake below."""
_STANDING_MPS = 0.3
_LEAD_CLOSE_M = 15.0
VECTORS = ("full", "speed")
SPEED_SCALE_MPS = 10.0
LATERAL_SCALE_M = 2.0
HEADING_SCALE_RAD = math.pi / 4.0
COMMAND_AHEAD_M = 25.0
"""Distance before a junction at which its command begins. It is as far as the default waypoints
show, 3 s at 30 km/h; the expert brakes from there to the speed of a tight turn in 18 m."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ObservationConfig:
    """What an observation holds."""

    vector: str = "full"
    """``full``, or ``speed`` for the speed alone: a policy must find the rest in the frames."""
    command: bool = False
    """Whether the navigation command follows: follow, left, right, straight, as one-hot numbers
    (Codevilla et al. 2018, End-to-end driving via conditional imitation learning)."""
    waypoints: int = 10
    """Number of waypoints ahead; 10 give the 23 numbers of the reports."""
    waypoint_spacing_m: float = 2.5
    """Distance along the route between two waypoints; 25 m ahead are 3 s at 30 km/h."""
    stack: int = 4
    """Camera frames per observation, oldest first."""

    def __post_init__(self) -> None:
        check_integers(self)
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
        names = ["speed_mps"]
        if self.vector == "full":
            numbers = range(1, self.waypoints + 1)
            names += ["lateral_m", "heading_rad"]
            names += [f"waypoint_{i:02d}_{axis}_m" for i in numbers for axis in ("x", "y")]
        return (*names, *(f"command_{name}" for name in COMMANDS * self.command))

    @property
    def scales(self) -> tuple[float, ...]:
        """Physical value stored as 1.0, for each number; smaller sideways: roads bend little."""
        scales = [SPEED_SCALE_MPS]
        if self.vector == "full":
            horizon = self.waypoints * self.waypoint_spacing_m
            scales += [LATERAL_SCALE_M, HEADING_SCALE_RAD]
            scales += [horizon, 0.4 * horizon] * self.waypoints
        return (*scales, *[1.0] * (len(COMMANDS) * self.command))


class VectorBuilder:
    """Builds the vectors of an episode's observations, with complex numbers x + iy, for speed."""

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
        self._has_command, self._route = config.command, route

    def build(
        self, vehicle: VehicleState, at: Projection, heading_rad: float
    ) -> NDArray[np.float32]:
        """Return the normalised numbers, float32 (V,)."""
        values = [vehicle.speed_mps / SPEED_SCALE_MPS]
        if not self._only_speed:
            self._append_route(values, vehicle, at, heading_rad)
        if self._has_command:
            command = self._route.command_at(at.distance_m, COMMAND_AHEAD_M)
            values += [float(name == command) for name in COMMANDS]
        return np.array(values, np.float32)

    def _append_route(
        self, values: list[float], vehicle: VehicleState, at: Projection, heading_rad: float
    ) -> None:
        """Append deviation, heading error and waypoints."""
        _, lateral, heading, forward, side = self._scales
        values += (at.lateral_m / lateral, heading_rad / heading)
        here, back = complex(vehicle.x_m, vehicle.y_m), cmath.rect(1.0, -vehicle.yaw_rad)
        places, distances, place = self._places, self._distances, 1
        for offset in self._offsets:
            metres = at.distance_m + offset
            place = bisect.bisect_right(distances, metres, place, len(distances) - 1)
            before, start = places[place - 1], distances[place - 1]
            share = (metres - start) / (distances[place] - start)
            seen = (before + share * (places[place] - before) - here) * back
            values += (seen.real / forward, seen.imag / side)


def heading_error(yaw_rad: float, route_yaw_rad: float) -> float:
    """Return the car's heading minus the route's, in [-pi, pi]; positive to the right."""
    return math.remainder(yaw_rad - route_yaw_rad, math.tau)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """Observation, reward and episode ends of the driving task."""

    observation: ObservationConfig = dataclasses.field(default_factory=ObservationConfig)
    """What the policy observes."""
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    """What it is rewarded for."""
    goal_m: float = 3.0
    """Distance to the route's end at which the goal is reached."""
    max_lateral_m: float = 8.0
    """Distance from the route at which the car counts as off the route."""
    stuck_s: float = 10.0
    """Seconds of standing without a vehicle ahead after which the episode is truncated."""

    def __post_init__(self) -> None:
        for name in ("goal_m", "max_lateral_m", "stuck_s"):
            check_positive(name, getattr(self, name))


@dataclasses.dataclass(slots=True, kw_only=True)
class TaskStep:
    """One step of the task: what is stored, and what is measured; not frozen, as `StepFacts`."""

    vector: NDArray[np.float32]
    reward_terms: NDArray[np.float32]
    terminated: bool
    truncated: bool
    reason: str
    facts: StepFacts


class DrivingTask:
    """The state of the driving task within one episode.

    `reset` sets the `route`, the newest `frame` and the number of `steps`; `best_m`, the largest
    distance along the route that the car has reached; `standing_s`, the seconds for which it has
    been standing with no vehicle close ahead; and `reason`, why the episode ended, which is empty
    until then. `period_s` is the control period in seconds.
    """

    def __init__(self, config: TaskConfig, control_period_s: float) -> None:
        self.config, self.period_s = config, control_period_s

    def spec(
        self, image: ImageSpec | None, streams: Mapping[str, ImageSpec] | None = None
    ) -> EpisodeSpec:
        """Return the spec of the data that this task makes with a camera, or with named streams."""
        observation = self.config.observation
        return EpisodeSpec(
            image=image,
            streams=streams or {},
            vector_names=observation.names,
            vector_scales=observation.scales,
            action_names=ACTION_NAMES,
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            reward_terms=REWARD_TERMS,
            control_period_s=self.period_s,
        )

    @property
    def progress_m(self) -> float:
        """Metres along the route where the car is now."""
        return self._at.distance_m

    @property
    def lateral_m(self) -> float:
        """Signed distance from the route, positive to its right."""
        return self._at.lateral_m

    @property
    def heading_rad(self) -> float:
        """The car's heading minus the route's, in [-pi, pi]; positive to the right."""
        return heading_error(self.frame.vehicle.yaw_rad, self._at.yaw_rad)

    @property
    def completion(self) -> float:
        """Fraction of the way to the goal driven so far, in [0, 1]."""
        return min(1.0, self.best_m / max(self._goal_m, 1e-9))

    def reset(self, start: WorldStart, scenario: Scenario) -> NDArray[np.float32]:
        """Start an episode."""
        vehicle, route = start.frame.vehicle, start.route
        self.frame, self.route, self.reason = start.frame, route, ""
        self._goal_m = max(route.length_m - self.config.goal_m, 0.0)
        self._distances: list[float] = route.distance_m.tolist()
        self._widths: list[float] = route.lane_width_m.tolist()
        self._at = route.project(vehicle.x_m, vehicle.y_m, near_m=0.0)
        self.best_m = self._at.distance_m
        self.steps, self.standing_s = 0, 0.0
        self._time_limit_s = scenario.time_limit_s + scenario.time_per_m_s * route.length_m
        self._acceleration = (vehicle.acceleration_mps2, vehicle.lateral_acceleration_mps2)
        self._builder = VectorBuilder(self.config.observation, route)
        return self._builder.build(vehicle, self._at, self.heading_rad)

    def advance(self, frame: WorldFrame) -> TaskStep:
        """Compute observation, reward and end of the step that led to a frame."""
        vehicle, route = frame.vehicle, self.route
        self.frame = frame
        before_m = self._at.distance_m
        self._at = route.project(vehicle.x_m, vehicle.y_m, near_m=before_m)
        self.best_m = max(self.best_m, self._at.distance_m)
        self.steps += 1
        heading = self.heading_rad
        off_route = abs(self._at.lateral_m) > self.config.max_lateral_m
        terminated, truncated, self.reason = self._end(frame, off_route)
        # The lane's width at the route's point behind the car: points are 1 m apart.
        place = bisect.bisect_right(self._distances, self._at.distance_m) - 1
        facts = StepFacts(
            progress_m=self._at.distance_m - before_m,
            speed_mps=vehicle.speed_mps,
            lateral_m=self._at.lateral_m,
            heading_rad=heading,
            lane_width_m=self._widths[max(place, 0)],
            jerk_mps3=self._jerk(vehicle),
            collision=bool(frame.collision),
            off_road=frame.off_road or off_route,
            wrong_way=frame.wrong_way,
            lane_invasions=frame.lane_invasions,
            goal=self.reason == SUCCESS_REASON,
        )
        return TaskStep(
            vector=self._builder.build(vehicle, self._at, heading),
            reward_terms=reward_terms(facts, self.config.reward, self.period_s),
            terminated=terminated,
            truncated=truncated,
            reason=self.reason,
            facts=facts,
        )

    def _end(self, frame: WorldFrame, off_route: bool) -> tuple[bool, bool, str]:
        """Return whether the episode is terminated, whether it is truncated, and why."""
        if frame.collision:
            return True, False, "collision"
        if frame.off_road:
            return True, False, "off_road"
        if off_route:
            return True, False, "off_route"
        if self.best_m >= self._goal_m:
            return True, False, SUCCESS_REASON
        # Half a period of slack: 60 s are 1 200 steps of 0.05 s, whatever the sum rounds to.
        if (self.steps + 0.5) * self.period_s > self._time_limit_s:
            return False, True, "time_limit"
        stands = abs(frame.vehicle.speed_mps) < _STANDING_MPS and frame.lead_gap_m > _LEAD_CLOSE_M
        self.standing_s = self.standing_s + self.period_s if stands else 0.0
        is_stuck = self.standing_s >= self.config.stuck_s
        return False, is_stuck, "stuck" if is_stuck else ""

    def _jerk(self, vehicle: VehicleState) -> float:
        along, across = self._acceleration
        self._acceleration = (vehicle.acceleration_mps2, vehicle.lateral_acceleration_mps2)
        change = math.hypot(self._acceleration[0] - along, self._acceleration[1] - across)
        return change / self.period_s
