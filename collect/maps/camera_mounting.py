"""The front camera and its `Mounting` in an episode, the same on every world with roads."""

import dataclasses
import math

import numpy as np

from avtd3.collect.checks import check_number, check_positive


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontCamera:
    """A camera behind the windscreen, and how far its mounting varies between episodes.

    Pictures of every world with roads are to fit one policy: so they have one set of defaults.
    """

    height: int = 84
    """Rows of the picture."""
    width: int = 84
    """Columns of the picture."""
    supersample: int = 2
    """Rays or rendered pixels per pixel along each side; their mean is what is stored."""
    field_of_view_deg: float = 90.0
    """Horizontal angle of view."""
    forward_m: float = 1.4
    """Mounting ahead of the car's centre."""
    height_m: float = 1.6
    """Mounting above the ground."""
    pitch_deg: float = 6.0
    """Downward tilt."""
    height_jitter_m: float = 0.1
    """Largest deviation of the height."""
    lateral_jitter_m: float = 0.1
    """Largest deviation from the car's middle."""
    pitch_jitter_deg: float = 1.0
    """Largest deviation of the tilt."""
    yaw_jitter_deg: float = 1.0
    """Largest deviation of the camera's heading from the car's."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            check_number(f"camera.{name}", getattr(self, name), minimum=8, maximum=1024)
        check_number("camera.supersample", self.supersample, minimum=1, maximum=8)
        check_number("camera.field_of_view_deg", self.field_of_view_deg, minimum=10, maximum=150)
        check_number("camera.pitch_deg", self.pitch_deg, minimum=-20, maximum=45)
        check_number("camera.pitch_jitter_deg", self.pitch_jitter_deg, maximum=10)
        check_number("camera.yaw_jitter_deg", self.yaw_jitter_deg, maximum=20)
        check_number("camera.height_jitter_m", self.height_jitter_m, maximum=0.5)
        check_positive("camera.height_m", self.height_m - self.height_jitter_m)
        check_number("camera.forward_m", self.forward_m, minimum=-3, maximum=3)
        check_number("camera.lateral_jitter_m", self.lateral_jitter_m, maximum=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mounting:
    """A camera's place on its car."""

    forward_m: float
    """Ahead of the car's centre."""
    right_m: float
    """To the right of the car's middle."""
    height_m: float
    """Above the ground."""
    pitch_rad: float
    """Downward tilt."""
    yaw_rad: float
    """Heading against the car's, positive to the right."""


def draw_mounting(camera: FrontCamera, rng: np.random.Generator) -> Mounting:
    """Draw the mounting of an episode's camera."""
    up, aside, tilt, turn = rng.uniform(-1.0, 1.0, 4).tolist()
    return Mounting(
        forward_m=camera.forward_m,
        right_m=aside * camera.lateral_jitter_m,
        height_m=camera.height_m + up * camera.height_jitter_m,
        pitch_rad=math.radians(camera.pitch_deg + tilt * camera.pitch_jitter_deg),
        yaw_rad=math.radians(turn * camera.yaw_jitter_deg),
    )
