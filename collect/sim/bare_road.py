"""`BareRoad`: one winding road without junctions or traffic, which needs no package carla.

`avtd3 demo --quick` drives here where the built-in simulator cannot run.
"""

import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.driving.world import WorldFrame, WorldStart
from avtd3.collect.maps.camera_mounting import FrontCamera
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.collect.sim.world import Vehicle, VehicleParams

NAME = "avtd3.collect.sim.bare_road:BareRoad"
"""Its name for ``--world``."""
LANE_M, PAVED_M = 3.5, 6.0
_SWING_M, _BEND_M, _START_MPS = 4.0, 15.0, 5.0
_GRASS, _ASPHALT, _PAINT, _SKY = 120, 70, 230, 190


class BareRoad:
    """A driving world: a `Vehicle` on a sine-shaped road; the seed sets the phase of the curve.

    Example:
        >>> from avtd3.collect.maps.scenarios import scenario
        >>> BareRoad().reset(scenario(1), seed=2).route.length_m > 200
        True
    """

    name = "bare road"
    control_period_s = 0.05

    def __init__(self) -> None:
        camera = FrontCamera()
        self.image_shape = (1, camera.height, camera.width)
        self._vehicle = Vehicle(VehicleParams(), self.control_period_s)
        self._right_m, self._ahead_m = _ground_rays(camera)

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Start an episode; see `World.reset`."""
        self._phase = np.random.default_rng(seed).uniform(0.0, math.tau)
        x_m = np.arange(0.0, scenario.route_length_m + 1.0)
        points = np.stack([x_m, self._middle_m(x_m)], axis=1)
        route = Route(points=points, lane_width_m=np.array(LANE_M))
        self._vehicle.place(0.0, float(points[0, 1]), float(route.yaw_rad[0]), _START_MPS)
        self._steps = 0
        return WorldStart(route=route, frame=self._frame(), town="bare road", weather="clear")

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Drive for one control period; see `World.step`."""
        self._vehicle.advance(float(action[0]), float(action[1]))
        self._steps += 1
        return self._frame()

    def _middle_m(self, x_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return y of the middle of the lane at some x."""
        return _SWING_M * np.sin(x_m / _BEND_M + self._phase)

    def _frame(self) -> WorldFrame:
        car = self._vehicle
        aside_m = car.y_m - float(self._middle_m(np.array(car.x_m)))
        return WorldFrame(
            frame_id=self._steps,
            sim_time_s=self._steps * self.control_period_s,
            image=self._picture(),
            vehicle=car.state(),
            off_road=abs(aside_m) > PAVED_M / 2.0,
        )

    def _picture(self) -> NDArray[np.uint8]:
        """Return the picture uint8 (1, H, W) from the pose of the car."""
        car, ahead, right = self._vehicle, self._ahead_m, self._right_m
        cos, sin = math.cos(car.yaw_rad), math.sin(car.yaw_rad)
        x_m = car.x_m + cos * ahead - sin * right
        aside_m = np.abs(car.y_m + sin * ahead + cos * right - self._middle_m(x_m))
        grey = np.where(aside_m < PAVED_M / 2.0, _ASPHALT, _GRASS)
        grey[np.abs(aside_m - LANE_M / 2.0) < 0.1] = _PAINT
        grey[np.isnan(ahead)] = _SKY
        return grey.astype(np.uint8)[None]


def _ground_rays(camera: FrontCamera) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the ray of each pixel meets the ground, in metres to the right and ahead.

    Both are float64 (H, W); NaN where the ray meets the sky.
    """
    pitch = math.radians(camera.pitch_deg)
    size_px = camera.width / (2.0 * math.tan(math.radians(camera.field_of_view_deg / 2.0)))
    down, right = np.mgrid[: camera.height, : camera.width] + 0.5
    down, right = down - camera.height / 2.0, right - camera.width / 2.0
    fall = size_px * math.sin(pitch) + down * math.cos(pitch)
    reach = camera.height_m / np.where(fall > 0.0, fall, np.nan)
    ahead = size_px * math.cos(pitch) - down * math.sin(pitch)
    return right * reach, camera.forward_m + ahead * reach
