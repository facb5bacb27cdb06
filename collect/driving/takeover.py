"""`TakeoverDriver`: a policy drives, and the expert takes over where the policy leaves its bounds.

Data of such drives show how to return from where the policy goes (HG-DAgger, Kelly et al. 2019,
with a rule in place of a person).
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number, check_positive
from avtd3.collect.drivers import Driver
from avtd3.collect.driving.task import DrivingTask
from avtd3.store.step import Observation


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
