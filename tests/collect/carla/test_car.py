import math

import pytest

from avtd3.collect.carla.car import Motion, Pose, pose_of


class Vector:
    def __init__(self, x, y, z=0.0):
        self.x, self.y, self.z = x, y, z


class Snapshot:
    """The parts of `carla.ActorSnapshot` that a pose uses."""

    def __init__(self, x, y, yaw_deg, velocity):
        self.place, self.yaw_deg, self.velocity = Vector(x, y), yaw_deg, Vector(*velocity)

    def get_transform(self):
        rotation = type("Rotation", (), {"pitch": 0.0, "yaw": self.yaw_deg, "roll": 0.0})
        return type("Transform", (), {"location": self.place, "rotation": rotation})

    def get_velocity(self):
        return self.velocity


def pose(yaw_rad, velocity):
    return Pose(x_m=0.0, y_m=0.0, z_m=0.0, yaw_rad=yaw_rad, velocity=velocity)


def test_the_middle_lies_ahead_of_the_origin_and_angles_are_wrapped():
    found = pose_of(Snapshot(1.0, 2.0, 450.0, (3.0, 4.0)), ahead_m=0.5)
    assert (found.x_m, found.y_m) == pytest.approx((1.0, 2.5))
    assert found.yaw_rad == pytest.approx(math.pi / 2)
    assert found.velocity == 3 + 4j


def test_speeding_up_straight_on():
    motion = Motion(pose(math.pi / 2, 5j), 10.0)
    assert motion.state.speed_mps == pytest.approx(5.0)
    assert motion.state.acceleration_mps2 == motion.state.lateral_acceleration_mps2 == 0.0
    state = motion.update(pose(math.pi / 2, 5.1j), 10.05, 0.25)
    assert state.speed_mps == pytest.approx(5.1)
    assert state.acceleration_mps2 == pytest.approx(2.0)
    assert state.lateral_acceleration_mps2 == pytest.approx(0.0, abs=1e-9)
    assert state.steer == 0.25


def test_a_circle_pulls_towards_its_middle():
    """10 m/s on a radius of 50 m, to the right: 2 m/s2 across and none along."""
    rate, step_s = 10.0 / 50.0, 0.05
    motion = Motion(pose(0.0, 10.0 + 0j), 0.0)
    for number in range(1, 4):
        yaw = rate * step_s * number
        velocity = 10.0 * complex(math.cos(yaw), math.sin(yaw))
        state = motion.update(pose(yaw, velocity), number * step_s, 0.0)
    assert state.acceleration_mps2 == pytest.approx(0.0, abs=1e-9)
    assert state.lateral_acceleration_mps2 == pytest.approx(2.0, rel=1e-3)


def test_rolling_backwards_is_negative_and_missed_time_counts():
    motion = Motion(pose(0.0, -1.0 + 0j), 0.0)
    assert motion.state.speed_mps == -1.0
    # Another client ticked once in between: two periods have passed.
    assert motion.update(pose(0.0, -2.0 + 0j), 0.1, 0.0).acceleration_mps2 == pytest.approx(-10.0)
    assert motion.update(pose(0.0, -3.0 + 0j), 0.1, 0.0).acceleration_mps2 == 0.0
