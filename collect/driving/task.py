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

The collector, not the task, sets `STOP_REASON` and `FAULT_REASON` of `avtd3.collect.environment`
and the reasons of `WorldLost` (all truncated).
"""

import bisect
import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_positive
from avtd3.collect.driving.observation import ObservationConfig, VectorBuilder, heading_error
from avtd3.collect.driving.reward import REWARD_TERMS, RewardConfig, StepFacts, reward_terms
from avtd3.collect.driving.world import WorldFrame, WorldStart
from avtd3.collect.environment import SUCCESS_REASON
from avtd3.collect.maps.route import Projection, Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.spec import EpisodeSpec, ImageSpec

ACTION_NAMES = ("steer", "throttle_brake")
"""Steering, right positive; throttle above 0, brake below."""
_STANDING_MPS = 0.3
_LEAD_CLOSE_M = 15.0


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


@dataclasses.dataclass(frozen=True, slots=True)
class TaskStep:
    """One step of the task: what is stored, and what is measured."""

    vector: NDArray[np.float32]
    """float32 (V,), the observation's numbers after the step."""
    reward_terms: NDArray[np.float32]
    """float32 (R,), see `REWARD_TERMS`."""
    terminated: bool
    """Whether the episode ended in a state without a future: nothing to bootstrap from."""
    truncated: bool
    """Whether the episode was cut although it could have continued."""
    reason: str
    """Why it ended, or an empty string."""
    facts: StepFacts
    """What the reward was computed from."""


class DrivingTask:
    """The state of the driving task within one episode.

    Args:
        config: Observation, reward and episode ends.
        control_period_s: Simulated seconds per step.
    """

    def __init__(self, config: TaskConfig, control_period_s: float) -> None:
        self.config = config
        self._period_s = control_period_s
        self._builder: VectorBuilder | None = None
        self._route: Route | None = None
        self._at = Projection(0.0, 0.0, 0.0)
        self._distances: list[float] = []
        self._widths: list[float] = []
        self._best_m = 0.0
        self._steps = 0
        self._standing_s = 0.0
        self._time_limit_s = math.inf
        self._acceleration = (0.0, 0.0)
        self._frame: WorldFrame | None = None
        self.reason = ""
        """Why the current episode ended; empty until then."""

    def spec(self, image: ImageSpec) -> EpisodeSpec:
        """Return the spec of the data that this task makes with a camera."""
        observation = self.config.observation
        return EpisodeSpec(
            image=image,
            vector_names=observation.names,
            vector_scales=observation.scales,
            action_names=ACTION_NAMES,
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            reward_terms=REWARD_TERMS,
            control_period_s=self._period_s,
        )

    @property
    def route(self) -> Route:
        """The current episode's route."""
        assert self._route is not None, "reset() comes first"
        return self._route

    @property
    def frame(self) -> WorldFrame:
        """The newest frame of the current episode."""
        assert self._frame is not None, "reset() comes first"
        return self._frame

    @property
    def progress_m(self) -> float:
        """Metres along the route where the car is now."""
        return self._at.distance_m

    @property
    def lateral_m(self) -> float:
        """Signed distance from the route, positive to its right."""
        return self._at.lateral_m

    @property
    def best_m(self) -> float:
        """Largest distance along the route that the car has reached."""
        return self._best_m

    @property
    def standing_s(self) -> float:
        """Seconds for which the car has been standing with no vehicle close ahead."""
        return self._standing_s

    @property
    def completion(self) -> float:
        """Fraction of the way to the goal driven so far, in [0, 1]."""
        return min(1.0, self._best_m / max(self._goal_m, 1e-9))

    @property
    def _goal_m(self) -> float:
        return max(self.route.length_m - self.config.goal_m, 0.0)

    def reset(self, start: WorldStart, scenario: Scenario) -> NDArray[np.float32]:
        """Start an episode.

        Args:
            start: What the world's reset returned.
            scenario: The scenario that it was reset to; its time limit is enforced here.

        Returns:
            The first observation's vector, float32 (V,).
        """
        vehicle = start.frame.vehicle
        self._frame, self.reason = start.frame, ""
        self._route = start.route
        self._distances = start.route.distance_m.tolist()
        self._widths = start.route.lane_width_m.tolist()
        self._at = start.route.project(vehicle.x_m, vehicle.y_m, near_m=0.0)
        self._best_m = self._at.distance_m
        self._steps = 0
        self._standing_s = 0.0
        self._time_limit_s = scenario.time_limit_s + scenario.time_per_m_s * start.route.length_m
        self._acceleration = (vehicle.acceleration_mps2, vehicle.lateral_acceleration_mps2)
        heading = heading_error(vehicle.yaw_rad, self._at.yaw_rad)
        self._builder = VectorBuilder(self.config.observation, start.route)
        return self._builder.build(vehicle, self._at, heading)

    def advance(self, frame: WorldFrame) -> TaskStep:
        """Compute observation, reward and end of the step that led to a frame.

        Args:
            frame: What the world returned for the action.
        """
        assert self._builder is not None, "reset() comes first"
        vehicle, route = frame.vehicle, self.route
        self._frame = frame
        before_m = self._at.distance_m
        self._at = route.project(vehicle.x_m, vehicle.y_m, near_m=before_m)
        self._best_m = max(self._best_m, self._at.distance_m)
        self._steps += 1
        heading = heading_error(vehicle.yaw_rad, self._at.yaw_rad)
        off_route = abs(self._at.lateral_m) > self.config.max_lateral_m
        terminated, truncated, reason = self._end(frame, off_route)
        self.reason = reason
        facts = StepFacts(
            progress_m=self._at.distance_m - before_m,
            speed_mps=vehicle.speed_mps,
            lateral_m=self._at.lateral_m,
            heading_rad=heading,
            lane_width_m=self._lane_width_m(),
            jerk_mps3=self._jerk(frame),
            collision=bool(frame.collision),
            off_road=frame.off_road or off_route,
            wrong_way=frame.wrong_way,
            lane_invasions=frame.lane_invasions,
            goal=reason == SUCCESS_REASON,
        )
        return TaskStep(
            vector=self._builder.build(vehicle, self._at, heading),
            reward_terms=reward_terms(facts, self.config.reward, self._period_s),
            terminated=terminated,
            truncated=truncated,
            reason=reason,
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
        if self._best_m >= self._goal_m:
            return True, False, SUCCESS_REASON
        # Half a period of slack: 60 s are 1 200 steps of 0.05 s, whatever the sum rounds to.
        if (self._steps + 0.5) * self._period_s > self._time_limit_s:
            return False, True, "time_limit"
        if self._is_stuck(frame):
            return False, True, "stuck"
        return False, False, ""

    def _is_stuck(self, frame: WorldFrame) -> bool:
        stands = abs(frame.vehicle.speed_mps) < _STANDING_MPS and frame.lead_gap_m > _LEAD_CLOSE_M
        self._standing_s = self._standing_s + self._period_s if stands else 0.0
        return self._standing_s >= self.config.stuck_s

    def _lane_width_m(self) -> float:
        """Return the lane's width at the route's point behind the car; points are 1 m apart."""
        place = bisect.bisect_right(self._distances, self._at.distance_m) - 1
        return self._widths[max(place, 0)]

    def _jerk(self, frame: WorldFrame) -> float:
        along, across = self._acceleration
        vehicle = frame.vehicle
        self._acceleration = (vehicle.acceleration_mps2, vehicle.lateral_acceleration_mps2)
        change = math.hypot(self._acceleration[0] - along, self._acceleration[1] - across)
        return change / self._period_s
