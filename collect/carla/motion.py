"""`Motion`: a car's state from the snapshots of successive frames.

CARLA's own accelerations jump from frame to frame, so ours are finite differences of its velocity,
over the simulated time that has really passed. The origin of a vehicle of CARLA lies on the ground
near its middle; the offset of its bounding box leads to the middle.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

from avtd3.collect.driving.world import VehicleState

if TYPE_CHECKING:
    import carla

_CLOCK_DIGITS = 9  # nanoseconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Where an actor is."""

    x_m: float
    """Of its middle."""
    y_m: float
    """Of its middle."""
    yaw_rad: float
    """In [-pi, pi], clockwise."""
    velocity: complex
    """In m/s, x + iy in the world."""


def pose_of(actor: "carla.ActorSnapshot", ahead_m: float = 0.0) -> Pose:
    """The pose of a `carla.ActorSnapshot`, whose middle lies so far ahead of its origin."""
    transform, velocity = actor.get_transform(), actor.get_velocity()
    place, yaw = transform.location, math.radians(transform.rotation.yaw)
    return Pose(
        x_m=place.x + ahead_m * math.cos(yaw),
        y_m=place.y + ahead_m * math.sin(yaw),
        yaw_rad=math.remainder(yaw, math.tau),
        velocity=complex(velocity.x, velocity.y),
    )


class Motion:
    """The car's state within one episode.

    Args:
        pose: Where it begins.
        at_s: Simulated time there.
    """

    def __init__(self, pose: Pose, at_s: float) -> None:
        self._pose, self._at_s = pose, at_s
        self.state = _state(pose, 0.0, 0.0, 0.0)
        """The newest state; without acceleration at first."""

    def follow(self, pose: Pose, at_s: float, steer: float) -> VehicleState:
        """The state at the next frame.

        Args:
            pose: The car.
            at_s: Simulated time.
            steer: Steering in force, in [-1, 1].
        """
        # Clocks that began long ago differ in the last digits: the same drive gives the same state.
        passed_s, before = round(at_s - self._at_s, _CLOCK_DIGITS), self._pose
        along = across = 0.0
        if passed_s > 0.0:
            along = (_axis(pose, pose.velocity).real - self.state.speed_mps) / passed_s
            across = _axis(pose, pose.velocity - before.velocity).imag / passed_s
        self._pose, self._at_s = pose, at_s
        self.state = _state(pose, along, across, steer)
        return self.state


def _axis(pose: Pose, of: complex) -> complex:
    """A vector of the world as the car has it: forward + i right."""
    return of * complex(math.cos(pose.yaw_rad), -math.sin(pose.yaw_rad))


def _state(pose: Pose, along: float, across: float, steer: float) -> VehicleState:
    return VehicleState(
        x_m=pose.x_m,
        y_m=pose.y_m,
        yaw_rad=pose.yaw_rad,
        speed_mps=_axis(pose, pose.velocity).real,
        acceleration_mps2=along,
        lateral_acceleration_mps2=across,
        steer=steer,
    )
