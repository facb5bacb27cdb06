"""Actors of an episode: spectator, cars with the built-in simulator's dynamics, sensors."""

import dataclasses
import math
from typing import Any

from avtd3.collect.sim.world import Vehicle, VehicleParams
from avtd3.tests.collect.carla.server import packing
from avtd3.tests.collect.carla.server.blueprints import ROAD_CAR, SIZES_M

STILL = (0.0,) * 9
"""Velocity, angular velocity and acceleration of an actor that does not move."""
NO_LIGHT = (4, 0, 0)
NO_CONTROL = [0.0, 0.0, 0.0, False, False, False, 0]
SPEED_LIMIT_KMH = 50.0
DRY_TYRE_FRICTION = 3.5
# The wheels of CARLA turn far, and its traffic manager relies on that.
_CARLA_PARAMS = VehicleParams(max_wheel_angle_rad=1.2, wheel_rate_radps=6.0)
_NO_STATE = b""


class Actor:
    """An actor; `pose` is x, y, z in metres and pitch, yaw, roll in degrees."""

    def __init__(self, number, description, pose, parent=None):
        self.id, self.description, self.pose = number, description, tuple(pose)
        self.parent_id = parent.id if parent else 0
        self.half_m = (0.0, 0.0, 0.0)

    @property
    def type_id(self):
        return self.description[1]

    @property
    def attributes(self):
        return {name: value for name, _, value in self.description[2]}

    def box(self):
        """Return its BoundingBox: the origin is on the ground, the box above it."""
        return [[0.0, 0.0, self.half_m[2]], list(self.half_m), [0.0, 0.0, 0.0], self.id]

    def wire(self):
        """Return the Actor record in answers to calls."""
        return [self.id, self.parent_id, self.description, self.box(), b"\x0e", self.token()]

    def token(self):
        return b""

    def motion(self):
        return STILL

    def state(self):
        return _NO_STATE

    def move_to(self, pose):
        """Teleport the actor."""
        self.pose = tuple(pose)


class Car(Actor):
    """A vehicle; with physics, it always stands on the road, at any given height."""

    def __init__(self, number, description, pose, height_at):
        super().__init__(number, description, pose)
        self._height_at = height_at
        length, width, height = SIZES_M[description[1]]
        self.half_m = (0.5 * length, 0.5 * width, 0.5 * height)
        params = VehicleParams() if description[1] == ROAD_CAR else _CARLA_PARAMS
        self._params = dataclasses.replace(params, length_m=length, width_m=width)
        self.control, self.light_flags = list(NO_CONTROL), 0
        self.simulates, self.grip, self.constant_mps = True, 1.0, None
        self.body = Vehicle(self._params, 0.05)
        self._period_s = 0.05
        self.light = NO_LIGHT
        """State, whether there is one, and id of the traffic light that the car must obey."""
        self.move_to(pose)

    def state(self):
        return packing.vehicle_state(self.control, SPEED_LIMIT_KMH, self.light)

    def move_to(self, pose):
        """Move it; its velocity in the world stays the same."""
        velocity = self._velocity()
        x, y, _, _, yaw, _ = pose
        self.body.x_m, self.body.y_m = x, y
        self.body.yaw_rad = math.remainder(math.radians(yaw), math.tau)
        self.set_velocity(velocity)
        if self.simulates:
            self._show(pose[2])
        else:
            self.pose = tuple(pose)

    def set_velocity(self, velocity):
        """Set its velocity in the world, a complex number in m/s."""
        along = velocity * complex(math.cos(self.body.yaw_rad), -math.sin(self.body.yaw_rad))
        self.body.speed_mps, self.body.side_speed_mps = along.real, along.imag

    def set_turn(self, degrees_per_s):
        """Set its yaw rate."""
        self.body.yaw_rate_radps = math.radians(degrees_per_s)

    def _velocity(self):
        body = self.body
        heading = complex(math.cos(body.yaw_rad), math.sin(body.yaw_rad))
        return complex(body.speed_mps, body.side_speed_mps) * heading

    def _show(self, near_m=None):
        body = self.body
        height_m = self._height_at(body.x_m, body.y_m, self.pose[2] if near_m is None else near_m)
        self.pose = (body.x_m, body.y_m, height_m, 0.0, math.degrees(body.yaw_rad), 0.0)

    def halt(self):
        """Stop it, like a body without physics."""
        body = self.body
        body.place(body.x_m, body.y_m, body.yaw_rad, 0.0)

    def advance(self, period_s):
        """Drive for a period."""
        if not self.simulates:
            return
        if period_s != self._period_s:
            self.body, old = Vehicle(self._params, period_s), self.body
            vars(self.body).update({**vars(old), "_period_s": period_s})
            self._period_s = period_s
        throttle, steer, brake, hand_brake, reverse = self.control[:5]
        drive = 0.0 if reverse else throttle
        if self.constant_mps is not None:
            self.body.speed_mps, drive, brake = self.constant_mps, 0.0, 0.0
        self.body.advance(steer, -1.0 if hand_brake else drive - brake, self.grip)
        self._show()

    def motion(self):
        body = self.body
        heading = complex(math.cos(body.yaw_rad), math.sin(body.yaw_rad))
        velocity = self._velocity()
        pull = complex(body.acceleration_mps2, body.lateral_acceleration_mps2) * heading
        turn = math.degrees(body.yaw_rate_radps)
        return (velocity.real, velocity.imag, 0.0, 0.0, 0.0, turn, pull.real, pull.imag, 0.0)

    def physics(self):
        """Return its VehiclePhysicsControl; only mass and tyre friction have an effect."""
        friction = DRY_TYRE_FRICTION * self.grip
        angle = math.degrees(self._params.max_wheel_angle_rad)
        centre = [0.0, 0.0, 0.0]
        wheel = [friction, 0.25, angle, 35.0, 1500.0, 3000.0, 2.0, 17.0, 1000.0, centre]
        return [
            [[0.0, 400.0], [5000.0, 400.0]],
            5800.0,
            1.0,
            0.15,
            2.0,
            0.35,
            True,
            0.5,
            10.0,
            4.0,
            [[2.85, 0.5, 0.65]],
            self._params.mass_kg,
            0.3,
            centre,
            [[0.0, 1.0], [120.0, 0.5]],
            [list(wheel) for _ in range(4)],
            False,
        ]

    def apply_physics(self, physics):
        """Set the tyre friction from a VehiclePhysicsControl; ignore the rest."""
        wheels = physics[15]
        self.grip = sum(wheel[0] for wheel in wheels) / len(wheels) / DRY_TYRE_FRICTION


class Light(Actor):
    """A traffic light; its trigger volume lies across a lane, with the stop line in its middle."""

    def __init__(self, number, x, y, lane_yaw_deg):
        kind = [0, "traffic.traffic_light", []]
        # Its forward direction is across the lane.
        super().__init__(number, kind, (x, y, 0.0, 0.0, lane_yaw_deg + 90.0, 0.0))
        self.half_m = (1.5, 3.0, 1.0)
        self.light_state = 2

    def state(self):
        return packing.light_state(self.light_state)

    def holds(self, x, y):
        """Return whether a point is in its trigger volume."""
        turn = math.radians(self.pose[4])
        at = complex(x - self.pose[0], y - self.pose[1]) * complex(math.cos(turn), -math.sin(turn))
        return abs(at.real) <= self.half_m[0] and abs(at.imag) <= self.half_m[1]


class Walker(Actor):
    """A pedestrian who walks straight on; the origin is in the middle."""

    def __init__(self, number, description, pose):
        super().__init__(number, description, pose)
        self.half_m = (0.2, 0.2, 0.9)
        self.control: list[Any] = [[1.0, 0.0, 0.0], 0.0, False]
        self.simulates = True

    def box(self):
        return [[0.0, 0.0, 0.0], list(self.half_m), [0.0, 0.0, 0.0], self.id]

    def motion(self):
        (x, y, _), speed, _ = self.control
        return (x * speed, y * speed, *([0.0] * 7))

    def advance(self, period_s):
        """Walk for a period."""
        if not self.simulates:
            return
        velocity, pose = self.motion(), self.pose
        self.pose = (
            pose[0] + velocity[0] * period_s, pose[1] + velocity[1] * period_s, *pose[2:]
        )  # fmt: skip


class Sensor(Actor):
    """A sensor attached to its parent; it does not move without one."""

    def __init__(self, number, description, mount, parent=None):
        super().__init__(number, description, mount, parent)
        self._mount, self._parent = tuple(mount), parent
        self.follow()

    def token(self):
        # Without a token, the client computes lane invasions itself.
        return b"" if self.type_id == "sensor.other.lane_invasion" else packing.token(self.id, 0)

    def follow(self):
        """Move to the current pose of the parent."""
        if self._parent is None:
            return
        x, y, z, pitch, yaw, roll = self._mount
        px, py, pz, _, parent_yaw, _ = self._parent.pose
        turn = math.radians(parent_yaw)
        at = complex(px, py) + complex(x, y) * complex(math.cos(turn), math.sin(turn))
        self.pose = (at.real, at.imag, pz + z, pitch, parent_yaw + yaw, roll)

    def move_to(self, pose):
        """Move it relative to its parent, or in the world if it has none."""
        self._mount = self.pose = tuple(pose)
        self.follow()


def numbers(transform):
    """Return a Transform of the wire as six numbers."""
    place, turn = transform
    return (*place, *turn)
