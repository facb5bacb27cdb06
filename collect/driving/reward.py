"""The reward: a sum of terms, all of which are stored with every step.

With the default weights, at 20 Hz and 30 km/h, a step of good driving earns about 0.7: 0.42 for
progress and 0.25 for speed. Ordinary steps stay within [-10, +15], a collision step costs about 50,
and no term makes up more than 70 % of the sum of absolute values while the expert drives. An
episode of 20 s returns about 250. Progress, speed and jerk scale with time, so the reward does not
depend on the control period.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number, check_positive

REWARD_TERMS = (
    "efficiency/progress",
    "efficiency/speed",
    "efficiency/goal",
    "lane_keeping/lateral",
    "lane_keeping/heading",
    "comfort/jerk",
    "safety/collision",
    "safety/off_road",
    "safety/wrong_way",
    "safety/lane_invasion",
)
"""Names of the terms, in the order in which they are stored."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Weights of the reward terms; 0 switches a term off but keeps its column."""

    target_speed_mps: float = 30.0 / 3.6
    """Speed that earns the most: 30 km/h."""
    progress_per_m: float = 1.0
    """Reward for each metre along the route; driving back costs the same."""
    speed_per_s: float = 5.0
    """Reward for each second at the target speed; less above and below it, 0 when standing."""
    goal: float = 10.0
    """Reward for reaching the goal, which ends the episode and so all further reward."""
    lateral_per_s: float = 6.0
    """Cost of each second at the edge of the lane; grows with the square of the deviation."""
    heading_per_s: float = 4.0
    """Cost of each second at a heading error of 45 degrees; grows with its square up to 90."""
    jerk_per_s: float = 1.0
    """Cost of each second at a jerk of `jerk_scale_mps3`."""
    jerk_scale_mps3: float = 10.0
    """Jerk that counts as 1; the cost is capped at three times this."""
    collision: float = 50.0
    """Cost of the step that collides, which ends the episode."""
    off_road: float = 25.0
    """Cost of the step that leaves the road, which ends the episode."""
    wrong_way_per_s: float = 20.0
    """Cost of each second in a lane of the opposite direction."""
    lane_invasion: float = 0.5
    """Cost of each lane marking crossed, at most two a step."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_number(field.name, getattr(self, field.name))
        check_positive("target_speed_mps", self.target_speed_mps)
        check_positive("jerk_scale_mps3", self.jerk_scale_mps3)


@dataclasses.dataclass(slots=True, kw_only=True)
class StepFacts:
    """What happened in one step; not frozen, which would take four times as long to make."""

    progress_m: float
    """Metres gained along the route, negative when the car went back."""
    speed_mps: float
    lateral_m: float
    heading_rad: float
    lane_width_m: float
    jerk_mps3: float
    """Change of the acceleration vector per second, without sign."""
    collision: bool
    off_road: bool
    wrong_way: bool
    lane_invasions: int
    goal: bool


def reward_terms(facts: StepFacts, config: RewardConfig, period_s: float) -> NDArray[np.float32]:
    """Return all terms of one step, float32 (R,) in the order of `REWARD_TERMS`."""
    target = config.target_speed_mps
    # 0 when standing, 1 at the target and 0 at twice the target.
    speed = max(-1.0, 1.0 - abs(facts.speed_mps - target) / target)
    deviation = facts.lateral_m / (0.5 * facts.lane_width_m)
    error = facts.heading_rad / (math.pi / 4.0)
    jerk = min(facts.jerk_mps3 / config.jerk_scale_mps3, 3.0)
    terms = (
        config.progress_per_m * facts.progress_m,
        config.speed_per_s * period_s * speed,
        config.goal if facts.goal else 0.0,
        -config.lateral_per_s * period_s * min(deviation * deviation, 4.0),
        -config.heading_per_s * period_s * min(error * error, 4.0),
        -config.jerk_per_s * period_s * jerk,
        -config.collision if facts.collision else 0.0,
        -config.off_road if facts.off_road else 0.0,
        -config.wrong_way_per_s * period_s if facts.wrong_way else 0.0,
        -config.lane_invasion * min(facts.lane_invasions, 2),
    )
    return np.array(terms, np.float32)
