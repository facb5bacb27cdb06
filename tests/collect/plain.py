"""Plain values for tests: a camera without randomness, and a step in which nothing happens."""

from avtd3.collect.driving.reward import StepFacts
from avtd3.collect.sim.camera import CameraConfig

PERIOD_S = 0.05

STEADY = CameraConfig(
    height_jitter_m=0.0,
    lateral_jitter_m=0.0,
    pitch_jitter_deg=0.0,
    yaw_jitter_deg=0.0,
    brightness_jitter=0.0,
    noise=0.0,
)
"""Mounted in the same place every time, without noise."""

CRUISE = StepFacts(
    progress_m=30 / 3.6 * PERIOD_S,
    speed_mps=30 / 3.6,
    lateral_m=0.0,
    heading_rad=0.0,
    lane_width_m=3.5,
    jerk_mps3=0.0,
    collision=False,
    off_road=False,
    wrong_way=False,
    lane_invasions=0,
    goal=False,
)
"""In the middle of the lane, at 30 km/h."""
