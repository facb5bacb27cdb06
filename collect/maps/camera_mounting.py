"""`FrontCamera`: camera settings that both simulators share, and the `Mounting` of an episode."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from avtd3.collect.checks import check_number, check_positive
from avtd3.store.errors import check_integers

_LIMITS = {
    "height": (8, 1024), "width": (8, 1024), "supersample": (1, 8), "field_of_view_deg": (10, 150),
    "pitch_deg": (-20, 45), "pitch_jitter_deg": (0, 10), "yaw_jitter_deg": (0, 20),
    "height_m": (0, 100), "height_jitter_m": (0, 0.5), "forward_m": (-3, 3),
    "lateral_jitter_m": (0, 1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontCamera:
    """A camera behind the windscreen, and how much its mounting varies between episodes.

    Both simulators have the same defaults, so that one policy can drive on the pictures of both.
    """

    height: int = 84
    """Rows of the picture."""
    width: int = 84
    """Columns of the picture."""
    supersample: int = 2
    """Rays or rendered pixels per pixel along each side; their mean is stored."""
    field_of_view_deg: float = 90.0
    """Horizontal angle of view."""
    forward_m: float = 1.4
    """Distance ahead of the centre of the car."""
    height_m: float = 1.6
    """Height above the ground."""
    pitch_deg: float = 6.0
    """Downward tilt."""
    height_jitter_m: float = 0.1
    """Maximum deviation of the height."""
    lateral_jitter_m: float = 0.1
    """Maximum deviation from the middle of the car."""
    pitch_jitter_deg: float = 1.0
    """Maximum deviation of the tilt."""
    yaw_jitter_deg: float = 1.0
    """Maximum deviation of the camera's heading from the car's."""

    def __post_init__(self) -> None:
        check_integers(self, "camera.")
        for name, (low, high) in _LIMITS.items():
            check_number(f"camera.{name}", getattr(self, name), minimum=low, maximum=high)
        check_positive("camera.height_m", self.height_m - self.height_jitter_m)


class Mounting(NamedTuple):
    """Position and direction of a camera relative to the centre of its car, on the ground."""

    forward_m: float
    right_m: float
    height_m: float
    pitch_rad: float
    yaw_rad: float


def draw_mounting(camera: FrontCamera, rng: np.random.Generator) -> Mounting:
    """Draw the camera mounting of an episode."""
    up, aside, tilt, turn = rng.uniform(-1.0, 1.0, 4).tolist()
    return Mounting(
        forward_m=camera.forward_m,
        right_m=aside * camera.lateral_jitter_m,
        height_m=camera.height_m + up * camera.height_jitter_m,
        pitch_rad=math.radians(camera.pitch_deg + tilt * camera.pitch_jitter_deg),
        yaw_rad=math.radians(turn * camera.yaw_jitter_deg),
    )
