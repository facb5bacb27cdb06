"""A world for tests: a point car on a winding road, with no camera worth the name."""

import math
import os
import signal
import time

import numpy as np

from avtd3.collect.driving.world import Surroundings, VehicleState, WorldFrame, WorldStart
from avtd3.collect.maps.route import Route
from avtd3.store.errors import WorldError

MAX_STEER_RAD = 0.45
WHEELBASE_M = 2.7
ACCELERATION_MPS2 = 3.0
BRAKING_MPS2 = 8.0


def winding_route(length_m=120.0, amplitude_m=4.0, phase=0.0):
    x = np.arange(0.0, length_m + 1.0)
    y = amplitude_m * np.sin(x / 15.0 + phase)
    return Route(points=np.stack([x, y], axis=1), lane_width_m=np.array(3.5))


def straight_route(length_m=100.0):
    x = np.arange(0.0, length_m + 1.0)
    return Route(points=np.stack([x, 0.0 * x], axis=1), lane_width_m=np.array(3.5))


def make_vehicle(**values):
    state = {
        "x_m": 0.0,
        "y_m": 0.0,
        "yaw_rad": 0.0,
        "speed_mps": 0.0,
        "acceleration_mps2": 0.0,
        "lateral_acceleration_mps2": 0.0,
        "steer": 0.0,
    }
    return VehicleState(**{**state, **values})


def make_frame(shape=(1, 8, 8), frame_id=0, **values):
    vehicle = {k: values.pop(k) for k in VehicleState.__slots__ if k in values}
    frame = {
        "frame_id": frame_id,
        "sim_time_s": frame_id * 0.05,
        "image": np.full(shape, frame_id % 256, np.uint8),
        "vehicle": make_vehicle(**vehicle),
        "collision": "",
        "off_road": False,
        "wrong_way": False,
        "lane_invasions": 0,
        "lead_gap_m": math.inf,
        "lead_speed_mps": 0.0,
    }
    return WorldFrame(**{**frame, **values})


class PointWorld:
    """A kinematic bicycle; the road is 8 m wide, and `fail_at` makes a step fail."""

    name = "point"
    control_period_s = 0.05
    image_shape = (1, 8, 8)
    notices: tuple[str, ...] = ()

    def __init__(self, fail_at=None, lead=None):
        self.fail_at = fail_at
        self.lead = lead
        self.steps = 0
        self.closed = False

    def reset(self, scenario, seed):
        rng = np.random.default_rng(seed)
        self.route = winding_route(scenario.route_length_m, phase=rng.uniform(0, 6.28))
        x, y = self.route.points[0]
        self.x, self.y, self.yaw, self.speed = x, y, float(self.route.yaw_rad[0]), 5.0
        self.acceleration, self.frame_id, self.steer, self.noise = 0.0, 0, 0.0, rng
        town = f"winding-{seed % 1000:03d}"
        return WorldStart(route=self.route, frame=self._frame(), town=town, weather="clear")

    def step(self, action):
        self.steps += 1
        if self.steps == self.fail_at:
            raise WorldError("point world failed as asked")
        if not np.isfinite(action).all():
            raise WorldError("action is not finite")
        self.steer, pedal = float(action[0]), float(action[1])
        self.acceleration = pedal * (ACCELERATION_MPS2 if pedal > 0 else BRAKING_MPS2)
        before = self.speed
        self.speed = max(0.0, self.speed + self.acceleration * 0.05)
        self.acceleration = (self.speed - before) / 0.05
        self.yaw += self.speed * math.tan(self.steer * MAX_STEER_RAD) / WHEELBASE_M * 0.05
        self.x += self.speed * math.cos(self.yaw) * 0.05
        self.y += self.speed * math.sin(self.yaw) * 0.05
        self.frame_id += 1
        return self._frame()

    def _frame(self):
        at = self.route.project(self.x, self.y)
        gap = math.inf if self.lead is None else max(0.0, self.lead - at.distance_m)
        return make_frame(
            frame_id=self.frame_id,
            image=self.noise.integers(0, 256, self.image_shape, np.uint8),
            x_m=self.x,
            y_m=self.y,
            yaw_rad=self.yaw,
            speed_mps=self.speed,
            acceleration_mps2=self.acceleration,
            lateral_acceleration_mps2=self.speed**2
            * math.tan(self.steer * MAX_STEER_RAD)
            / WHEELBASE_M,
            steer=self.steer,
            off_road=abs(at.lateral_m) > 4.0,
            collision="vehicle" if gap < 0.5 else "",
            lead_gap_m=gap if gap < 60 else math.inf,
        )

    def surroundings(self):
        return Surroundings(lanes=(self.route.points,), others=np.array([[9.0, 3.0, 0.1]]))

    def close(self):
        self.closed = True


def open_point_world(settings, worker):
    return PointWorld()


class DoomedWorld(PointWorld):
    """Dies with its process, or fails, in the episode after its first."""

    def __init__(self, end):
        super().__init__()
        self.end, self.resets = end, 0

    def reset(self, scenario, seed):
        self.resets += 1
        if self.resets == 2:
            self.end()
        return super().reset(scenario, seed)


def open_world_that_dies(settings, worker):
    return DoomedWorld(lambda: os.kill(os.getpid(), signal.SIGKILL))


def open_world_that_fails(settings, worker):
    def fail():
        raise WorldError("the simulator is gone")

    return DoomedWorld(fail)


def open_world_with_a_fault(settings, worker):
    return DoomedWorld(lambda: 1 / 0)


def open_second_world_dies(settings, worker):
    return open_world_that_dies(settings, worker) if worker == 1 else PointWorld()


def open_second_world_fails(settings, worker):
    return open_world_that_fails(settings, worker) if worker == 1 else PointWorld()


class CameraWorld(PointWorld):
    image_shape = (1, 84, 84)


def open_camera_world(settings, worker):
    return CameraWorld()


class PacedWorld(PointWorld):
    """Takes a few milliseconds for each step, so that a test can interrupt an episode."""

    image_shape = (1, 36, 36)

    def step(self, action):
        time.sleep(0.004)
        return super().step(action)
