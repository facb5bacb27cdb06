"""The camera sensor: the camera of the built-in simulator, with the client's pose and size."""

import dataclasses
import math

import numpy as np

from avtd3.collect.maps.weather import Weather
from avtd3.collect.sim.boxes import Box
from avtd3.collect.sim.camera import Camera
from avtd3.collect.sim.streams import SemanticCamera
from avtd3.tests.collect.plain import STEADY

TAGGED = "sensor.camera.semantic_segmentation"
CAMERAS = ("sensor.camera.rgb", TAGGED)
_TAGS = np.array([1, 24, 10, 11, 14], np.uint8)  # road, marking, terrain, sky, car
_SEES_M = 80.0
_LOWEST_M, _HIGHEST_M = 0.3, 30.0
_PITCH_DEG = (-20.0, 45.0)
_SEED = 7  # any constant; the built-in simulator draws reflectances by episode


class Eye:
    """The pictures of one camera sensor.

    The camera gets the pose of the sensor as if it were the car's, so that any mounting works;
    roll is ignored.
    """

    def __init__(self, attributes, pose, *, sees_tags=False):
        self.sees_tags = sees_tags
        self.field_of_view_deg = float(attributes["fov"])
        self.config = dataclasses.replace(
            STEADY,
            height=int(attributes["image_size_y"]),
            width=int(attributes["image_size_x"]),
            field_of_view_deg=self.field_of_view_deg,
            supersample=1,
            forward_m=0.0,
            height_m=min(max(pose[2], _LOWEST_M), _HIGHEST_M),
            pitch_deg=min(max(-pose[3], _PITCH_DEG[0]), _PITCH_DEG[1]),
            noisy_share=0.0,
        )
        self._camera = (SemanticCamera if sees_tags else Camera)(self.config)
        self._shown = None

    def look(self, pose, raster, weather, cars):
        """Return a picture of the ground and of cars, uint8 (H, W): gray, or numbers of tags."""
        if self._shown != (id(raster), weather):
            self._camera.reset(raster, seen_weather(weather), np.random.default_rng(_SEED))
            self._shown = (id(raster), weather)
        x, y, yaw = pose[0], pose[1], math.radians(pose[4])
        back = complex(math.cos(yaw), -math.sin(yaw))
        boxes = []
        for car in cars:
            at = complex(car.pose[0] - x, car.pose[1] - y) * back
            # A camera is inside its own car, or so close that the car is not visible.
            if abs(at) < _SEES_M and at.real > 0.0 and not _holds(car, x, y):
                boxes.append(_box(car, at, yaw))
        seen = self._camera.render(x, y, yaw, boxes)
        return _TAGS.take(seen.argmax(axis=0)) if self.sees_tags else seen[0]


def _holds(car, x, y):
    """Return whether a point is inside the outline of a car."""
    yaw = math.radians(car.pose[4])
    at = complex(x - car.pose[0], y - car.pose[1]) * complex(math.cos(yaw), -math.sin(yaw))
    return abs(at.real) <= car.half_m[0] and abs(at.imag) <= car.half_m[1]


def _box(car, at, yaw):
    length, width, height = (2.0 * half for half in car.half_m)
    colour = [int(part) for part in car.attributes["color"].split(",")]
    paint = max(sum(colour) / len(colour) / 255.0, 0.1)
    turn = math.remainder(math.radians(car.pose[4]) - yaw, math.tau)
    return Box(at.real, at.imag, turn, length, width, height, paint)


def seen_weather(values):
    """Return the weather for the client's 14 numbers, similar to that of the built-in simulator."""
    cloudiness, rain, sun_altitude, fog = values[0], values[1], values[5], values[6]
    sun = min(max((sun_altitude + 5.0) / 25.0, 0.0), 1.0)
    light = (0.12 + 0.93 * sun) * (1.0 - 0.3 * cloudiness / 100.0 - 0.2 * rain / 100.0)
    return Weather(
        name="server",
        grip=1.0,
        light=light,
        contrast=1.0 - 0.3 * max(rain, fog) / 100.0,
        sky_top=0.03 + 0.52 * sun,
        sky_horizon=0.08 + 0.77 * sun,
        fog_per_m=0.001 + 0.0005 * fog + 0.0001 * rain,
        headlights=0.9 * (1.0 - sun),
        noise=1.0,
    )
