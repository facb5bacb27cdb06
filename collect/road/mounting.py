"""`Mounting`: where an episode's camera sits, the same draw on every world with roads."""

import dataclasses
import math
from typing import Protocol

import numpy as np


class MountingLimits(Protocol):
    """A camera's place, and how far it varies between episodes."""

    @property
    def forward_m(self) -> float:
        """Mounting ahead of the car's centre."""
        ...

    @property
    def height_m(self) -> float:
        """Mounting above the ground."""
        ...

    @property
    def pitch_deg(self) -> float:
        """Downward tilt."""
        ...

    @property
    def height_jitter_m(self) -> float:
        """Largest deviation of the height."""
        ...

    @property
    def lateral_jitter_m(self) -> float:
        """Largest deviation from the car's middle."""
        ...

    @property
    def pitch_jitter_deg(self) -> float:
        """Largest deviation of the tilt."""
        ...

    @property
    def yaw_jitter_deg(self) -> float:
        """Largest deviation of the heading."""
        ...


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


def draw_mounting(limits: MountingLimits, rng: np.random.Generator) -> Mounting:
    """Draw the mounting of an episode's camera."""
    up, aside, tilt, turn = rng.uniform(-1.0, 1.0, 4).tolist()
    return Mounting(
        forward_m=limits.forward_m,
        right_m=aside * limits.lateral_jitter_m,
        height_m=limits.height_m + up * limits.height_jitter_m,
        pitch_rad=math.radians(limits.pitch_deg + tilt * limits.pitch_jitter_deg),
        yaw_rad=math.radians(turn * limits.yaw_jitter_deg),
    )
