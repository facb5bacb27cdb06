"""`Camera`: a grayscale front camera that casts rays onto the painted ground.

Every pixel below the horizon sends up to 2 x 2 rays to the ground plane (`GroundRays`). Light, fog
and lamps depend on the pixel alone and are folded into one factor and one summand per pixel and
episode. Vehicles are boxes on top. Half of the episodes have a clean sensor, as simulators' cameras
do; the noise of the others comes from a tile drawn once per episode.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number
from avtd3.collect.maps.mounting import FrontCamera, draw_mounting
from avtd3.collect.maps.raster import ASPHALT, GAP, PAINT, Raster
from avtd3.collect.maps.texture import TEXTURES
from avtd3.collect.maps.weather import Weather
from avtd3.collect.sim.boxes import Box, Light, View, draw_boxes
from avtd3.collect.sim.rays import GroundRays
from avtd3.collect.sim.window import GroundWindow

# By ground class; those between bare asphalt and paint are mixed.
_REFLECTANCE = (0.40, 0.26, 0.46, 0.30, 0.30, 0.0, 0.0, 0.0, 0.85)
_GRAIN = (0.09, 0.06, 0.04, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03)
_NOISE_SHARE = (1.0 / 3.0, 1.0)
_NOISE_FRAMES = 8
_NOISE_OFFSETS = 4096
_LAMP_M = 12.0
_LAMPS_ON = 0.15


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CameraConfig(FrontCamera):
    """The front camera of the embedded world, with its light and its sensor's noise."""

    brightness_jitter: float = 0.1
    """Largest relative deviation of the exposure."""
    noise: float = 1.5
    """Largest standard deviation of the sensor noise in clear weather, in steps of 256; each
    episode with a noisy sensor draws a third of it to all of it."""
    noisy_share: float = 0.5
    """Share of the episodes whose sensor is noisy; the pictures of the others compress well."""

    def __post_init__(self) -> None:
        FrontCamera.__post_init__(self)  # super() does not know a class with slots
        check_number("camera.brightness_jitter", self.brightness_jitter, maximum=0.9)
        check_number("camera.noise", self.noise, maximum=100)
        check_number("camera.noisy_share", self.noisy_share, maximum=1)


class Camera:
    """The camera of one car; `begin` draws an episode's mounting, light and noise."""

    def __init__(self, config: CameraConfig) -> None:
        self.config = config
        self._window = GroundWindow()
        # Whole pictures: numpy clips three times as fast by an array as by a number.
        size = (config.height, config.width)
        self._black, self._white = np.zeros(size, np.float32), np.full(size, 255.0, np.float32)

    def begin(self, raster: Raster, weather: Weather, rng: np.random.Generator) -> None:
        """Prepare an episode.

        Args:
            raster: The ground to look at.
            weather: Light and fog.
            rng: The episode's generator.
        """
        config = self.config
        self._window.show(raster)
        self.view = view = _draw_view(config, rng)
        exposure = 255.0 * (1.0 + rng.uniform(-1.0, 1.0) * config.brightness_jitter)
        self._table = _reflectances(weather, rng)
        size = (config.height, config.width)
        self._rays = GroundRays(view, size, config.supersample, raster.pixel_m)
        self._light(weather, exposure)
        self._lamps = exposure if weather.headlights > _LAMPS_ON else 0.0
        self._draw_noise(weather.noise, rng)

    def _draw_noise(self, factor: float, rng: np.random.Generator) -> None:
        """Draw the episode's sensor: clean, or with a tile of noise and where to begin in it."""
        config, self._frames = self.config, 0
        is_noisy, share = rng.random() < config.noisy_share, rng.uniform(*_NOISE_SHARE)
        sigma = np.float32(config.noise * share * factor)
        self._noise: NDArray[np.float32] | None = None
        if is_noisy and sigma > 0.0:
            pixels = config.height * config.width
            self._noise = rng.standard_normal(pixels * _NOISE_FRAMES, np.float32) * sigma
            offsets = rng.integers(0, pixels * (_NOISE_FRAMES - 1), _NOISE_OFFSETS)
            self._offsets: list[int] = offsets.tolist()

    def _light(self, weather: Weather, exposure: float) -> None:
        """Factor and summand from ground reflectance to brightness, per pixel; and the sky."""
        config, horizon = self.config, self._rays.horizon
        ahead, right = self._rays.ahead_m[:, None], self._rays.right_m
        distance = np.hypot(ahead, right)
        lamps = np.exp(-((right / (2.0 + 0.3 * ahead)) ** 2)) / (1.0 + (ahead / _LAMP_M) ** 2)
        passed = np.exp(-weather.fog_per_m * distance)
        factor = passed * (weather.light + weather.headlights * lamps) * exposure
        haze = (1.0 - passed) * weather.sky_horizon * exposure
        # The table is in steps of 255, and rays are summed, not averaged. Half a step makes the
        # cast to integers, which cuts, round to the nearest.
        self._factor = (factor / (255.0 * self._rays.count)).astype(np.float32)
        self._summand = (haze + 0.5).astype(np.float32)
        self.light = Light(
            factor=factor.astype(np.float32),
            summand=haze.astype(np.float32),
            first_row=horizon,
        )
        height = (horizon - np.arange(horizon))[:, None] / config.height
        rise = 1.0 - np.exp(-3.0 * height)
        sky = weather.sky_horizon + (weather.sky_top - weather.sky_horizon) * rise
        self._frame = np.empty((config.height, config.width), np.float32)
        self._sky = (sky * exposure + 0.5).astype(np.float32)

    def render(
        self, x_m: float, y_m: float, yaw_rad: float, boxes: Sequence[Box]
    ) -> NDArray[np.uint8]:
        """Take a picture.

        Args:
            x_m: Centre of the car.
            y_m: Centre of the car.
            yaw_rad: Heading of the car.
            boxes: Vehicles seen from the car, in any order.

        Returns:
            uint8 (1, H, W), a new array.
        """
        frame, horizon = self._frame, self._rays.horizon
        frame[:horizon] = self._sky
        ground = frame[horizon:]
        self._window.follow(x_m, y_m)
        met = self._rays.brightness(self._window, x_m, y_m, yaw_rad, self._table)
        np.multiply(met, self._factor, out=ground)
        ground += self._summand
        draw_boxes(frame, self.view, self.light, boxes, self._lamps)
        if self._noise is not None:
            offset = self._offsets[self._frames % _NOISE_OFFSETS]
            self._frames += 1
            frame += self._noise[offset : offset + frame.size].reshape(frame.shape)
            np.maximum(frame, self._black, out=frame)
        np.minimum(frame, self._white, out=frame)
        return frame.astype(np.uint8)[None]


def _draw_view(config: CameraConfig, rng: np.random.Generator) -> View:
    """Draw the mounting of an episode's camera."""
    at = draw_mounting(config, rng)
    half_angle = math.radians(config.field_of_view_deg / 2.0)
    return View(
        focal=config.width / 2.0 / math.tan(half_angle),
        column=config.width / 2.0,
        row=config.height / 2.0,
        sin_pitch=math.sin(at.pitch_rad),
        cos_pitch=math.cos(at.pitch_rad),
        heading=complex(math.cos(at.yaw_rad), math.sin(at.yaw_rad)),
        forward_m=at.forward_m,
        right_m=at.right_m,
        height_m=at.height_m,
    )


def _reflectances(weather: Weather, rng: np.random.Generator) -> bytes:
    """What each of the 256 ground codes reflects, in steps of 255, varied by episode."""
    grounds = np.array(_REFLECTANCE) * (1.0 + rng.uniform(-0.15, 0.15, len(_REFLECTANCE)))
    bare, paint = grounds[ASPHALT], grounds[PAINT] * rng.uniform(0.8, 1.0)
    grounds[GAP : PAINT + 1] = bare + (paint - bare) * np.linspace(0.0, 1.0, PAINT - GAP + 1)
    middle = bare
    grain = np.array(_GRAIN) * rng.uniform(0.6, 1.4)
    texture = np.linspace(-0.5, 0.5, TEXTURES)
    levels = np.zeros((16, TEXTURES))
    levels[: PAINT + 1] = grounds[:, None] + grain[:, None] * texture
    levels = middle + (levels - middle) * weather.contrast
    gamma = rng.uniform(0.85, 1.15)
    table: bytes = np.rint(255.0 * levels.clip(0.0, 1.0) ** gamma).astype(np.uint8).tobytes()
    return table
