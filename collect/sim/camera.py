"""`Camera`: the gray front camera of the built-in simulator, which samples the painted ground.

A picture is the ground seen by the rays of its pixels, the sky, the boxes of the vehicles and the
noise of the sensor. Rays look up the ground in one contiguous window around the car: one gather for
each ray, instead of one for its tile and one for its pixel.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number
from avtd3.collect.maps.episode_setup import FrontCamera, draw_mounting
from avtd3.collect.maps.raster import ASPHALT, COARSE, GAP, PAINT, TEXTURES, TILE, Raster
from avtd3.collect.maps.weather import Weather
from avtd3.collect.sim.boxes import (
    Box,
    CarPose,
    Light,
    Shapes,
    View,
    draw_boxes,
    visible_boxes,
)

_FINE_TILES, _COARSE_TILES = 8, 16
# Distance of the car from the centre of the window, in tiles, at which the window moves.
_SLACK_TILES = 1.5
# Rays closer to the horizon than this meet the ground too far away to matter.
_MIN_FALL = 1e-3
# By ground class; the classes between bare asphalt and paint are interpolated.
_REFLECTANCE = (0.40, 0.26, 0.46, 0.30, 0.30, 0.0, 0.0, 0.0, 0.85)
_GRAIN = (0.09, 0.06, 0.04, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03)
_NOISE_SHARE = (1.0 / 3.0, 1.0)
_NOISE_FRAMES, _NOISE_OFFSETS = 8, 4096
_CHANNEL_SHIFT = 2  # frames in the block of noise between two channels
_LAMP_M, _LAMPS_ON = 12.0, 0.15


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CameraConfig(FrontCamera):
    """The front camera of the built-in simulator, with its light and the noise of its sensor."""

    brightness_jitter: float = 0.1
    """Maximum relative deviation of the exposure."""
    noise: float = 1.5
    """Maximum standard deviation of the sensor noise in clear weather, in steps of 256. Each
    episode with a noisy sensor draws between a third of it and all of it."""
    noisy_share: float = 0.5
    """Share of the episodes with a noisy sensor; the pictures of the others compress well."""

    def __post_init__(self) -> None:
        FrontCamera.__post_init__(self)  # super() does not know a class with slots
        check_number("camera.brightness_jitter", self.brightness_jitter, maximum=0.9)
        check_number("camera.noise", self.noise, maximum=100)
        check_number("camera.noisy_share", self.noisy_share, maximum=1)


class Camera:
    """The camera of one car; `reset` draws the mounting, light and noise of an episode."""

    def __init__(self, config: CameraConfig) -> None:
        self.config = config
        self._window = GroundWindow()
        half_angle = math.radians(config.field_of_view_deg / 2.0)
        self.slope = 1.2 * max(1.0, math.tan(half_angle))
        """See `visible_boxes`."""
        # Whole pictures: numpy clips by an array three times as fast as by a number.
        size = (config.height, config.width)
        self._black, self._white = np.zeros(size, np.float32), np.full(size, 255.0, np.float32)

    def reset(
        self,
        raster: Raster,
        weather: Weather,
        rng: np.random.Generator,
        route: NDArray[np.complex128] | None = None,
    ) -> None:
        """Prepare an episode on the ground of a raster; no front camera shows the route."""
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
        self._prepare()

    def _prepare(self) -> None:
        """Prepare what other kinds of cameras need for an episode."""

    def _draw_noise(self, factor: float, rng: np.random.Generator) -> None:
        """Draw the sensor of the episode: clean, or with a block of noise and offsets into it."""
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
        """Compute the light per pixel: factor and summand on ground reflectances, and the sky."""
        config, horizon = self.config, self._rays.horizon
        ahead, right = self._rays.ahead_m[:, None], self._rays.right_m
        distance = np.hypot(ahead, right)
        lamps = np.exp(-((right / (2.0 + 0.3 * ahead)) ** 2)) / (1.0 + (ahead / _LAMP_M) ** 2)
        passed = np.exp(-weather.fog_per_m * distance)
        factor = passed * (weather.light + weather.headlights * lamps) * exposure
        haze = (1.0 - passed) * weather.sky_horizon * exposure
        # The table is in steps of 255, and rays are summed, not averaged. The cast to integers
        # truncates; with half a step more, it rounds to the nearest.
        self._factor = (factor / (255.0 * self._rays.count)).astype(np.float32)
        self._summand = (haze + 0.5).astype(np.float32)
        self.light = Light(
            factor=factor.astype(np.float32), summand=haze.astype(np.float32), first_row=horizon
        )
        height = (horizon - np.arange(horizon))[:, None] / config.height
        rise = 1.0 - np.exp(-3.0 * height)
        sky = weather.sky_horizon + (weather.sky_top - weather.sky_horizon) * rise
        self._frame = np.empty((config.height, config.width), np.float32)
        self._sky = (sky * exposure + 0.5).astype(np.float32)

    def skip_to(self, frame: int) -> None:
        """Draw a frame of the episode next, counted from 0: its noise depends on the number."""
        self._frames = frame

    def draw(
        self, car: CarPose, poses: NDArray[np.int64], shapes: Shapes, numbers: Sequence[int]
    ) -> NDArray[np.uint8]:
        """Draw a new frame uint8 (C, H, W) from a pose of the car; see `visible_boxes`."""
        return self.render(*car, visible_boxes(car, poses.tolist(), shapes, numbers, self.slope))

    def render(
        self, x_m: float, y_m: float, yaw_rad: float, boxes: Sequence[Box]
    ) -> NDArray[np.uint8]:
        """Render a new picture uint8 (1, H, W) from a pose of the car."""
        codes = self._look(x_m, y_m, yaw_rad)
        frame = self._plane(codes, self._table, self._sky, boxes)
        self._frames += 1
        return frame[None]

    def _look(self, x_m: float, y_m: float, yaw_rad: float) -> bytes:
        """Return the ground codes that the rays meet from a pose of the car."""
        self._window.follow(x_m, y_m)
        return self._rays.codes(self._window, x_m, y_m, yaw_rad)

    def _plane(
        self,
        codes: bytes,
        table: bytes,
        sky: NDArray[np.float32],
        boxes: Sequence[Box],
        channel: int = 0,
    ) -> NDArray[np.uint8]:
        """Draw one plane uint8 (H, W); each channel has other noise."""
        frame, horizon = self._frame, self._rays.horizon
        frame[:horizon] = sky
        ground = frame[horizon:]
        summed = self._rays.brightness(codes, table)
        np.multiply(summed, self._factor, out=ground)
        ground += self._summand
        draw_boxes(frame, self.view, self.light, boxes, self._lamps)
        if self._noise is not None:
            offset = self._offsets[self._frames % _NOISE_OFFSETS]
            if channel:
                most = frame.size * (_NOISE_FRAMES - 1)
                offset = (offset + channel * _CHANNEL_SHIFT * frame.size) % most
            frame += self._noise[offset : offset + frame.size].reshape(frame.shape)
            np.maximum(frame, self._black, out=frame)
        np.minimum(frame, self._white, out=frame)
        return frame.astype(np.uint8)


class GroundWindow:
    """Fine pixels around the car and coarse ones farther away, in one array of equal rows.

    The fine square is in rows 0 to 1023; the coarse one, half as wide, is in the left half of the
    rows below, from `coarse_row`. A position x in metres is in the fine column ``(x - fine_m[0]) /
    pixel_m``, and likewise for rows with ``fine_m[1]``; `coarse_m` is the origin of the coarse
    square. The window moves by whole tiles when the car approaches its border.
    """

    stride = coarse_row = _FINE_TILES * TILE

    def __init__(self) -> None:
        side = TILE // COARSE
        rows = self.coarse_row + _COARSE_TILES * side
        self.codes: NDArray[np.uint8] = np.zeros((rows, self.stride), np.uint8)
        self.flat = self.codes.reshape(-1)
        fine, coarse = self.codes[: self.coarse_row], self.codes[self.coarse_row :]
        self._fine = fine.reshape(_FINE_TILES, TILE, _FINE_TILES, TILE)
        self._coarse = coarse[:, : _COARSE_TILES * side].reshape(
            _COARSE_TILES, side, _COARSE_TILES, side
        )
        self.fine_m = self.coarse_m = (0.0, 0.0)
        self._raster: Raster | None = None
        self._centre_m = (0.0, 0.0)

    @staticmethod
    def reach_m(pixel_m: float) -> tuple[float, float]:
        """Return the distances from the car that are always inside the fine and coarse square."""
        fine, coarse = (tiles / 2 - _SLACK_TILES for tiles in (_FINE_TILES, _COARSE_TILES))
        return fine * (TILE * pixel_m), coarse * (TILE * pixel_m)

    def show(self, raster: Raster) -> None:
        """Use another raster."""
        self._raster, self._centre_m = raster, (math.inf, math.inf)

    def follow(self, x_m: float, y_m: float) -> None:
        """Move with the car; does nothing while the car is close enough to the centre."""
        raster = self._raster
        assert raster is not None, "show a raster before following the car"
        tile_m = TILE * raster.pixel_m
        slack = _SLACK_TILES * tile_m
        if abs(x_m - self._centre_m[0]) <= slack and abs(y_m - self._centre_m[1]) <= slack:
            return
        column = round((x_m - raster.left_m) / tile_m)
        row = round((y_m - raster.top_m) / tile_m)
        self._centre_m = (raster.left_m + column * tile_m, raster.top_m + row * tile_m)
        half, reach = _FINE_TILES // 2, _COARSE_TILES // 2
        slots = raster.slots(row - reach, column - reach, _COARSE_TILES)
        near = slots[reach - half : reach + half, reach - half : reach + half]
        self._fine[:] = raster.fine[near].swapaxes(1, 2)
        self._coarse[:] = raster.coarse[slots].swapaxes(1, 2)
        x, y = self._centre_m
        self.fine_m = (x - half * tile_m, y - half * tile_m)
        self.coarse_m = (x - reach * tile_m, y - reach * tile_m)


class GroundRays:
    """The rays of all pixels below the horizon, `fine` x `fine` of them per pixel; fewer nearby.

    Rows and columns of rays are sorted by their position in the pixel, so that a picture is the sum
    of blocks. `ahead_m` (rows,) and `right_m` (rows, W) say where the ground of each pixel is, and
    `count` (rows, 1) how many rays each pixel of a row has.
    """

    def __init__(self, view: View, size: tuple[int, int], fine: int, pixel_m: float) -> None:
        height, width = size
        sub = (np.arange(fine)[:, None] + 0.5) / fine
        across = (np.arange(width) + sub - view.column) / view.focal  # (fine, W)
        down = (np.arange(height) + sub - view.row) / view.focal  # (fine, H)
        fall = view.sin_pitch + down * view.cos_pitch
        # A row shows the ground if all its rays do.
        self.horizon = int((fall < _MIN_FALL).any(axis=0).sum())
        fall, down = fall[:, self.horizon :], down[:, self.horizon :]
        reach = view.height_m / fall  # (fine, rows)
        ahead = reach * (view.cos_pitch - down * view.sin_pitch)
        self.ahead_m = ahead.mean(axis=0)
        middle = across.mean(axis=0)
        self.right_m: NDArray[np.float64] = reach.mean(axis=0)[:, None] * middle
        rows, far = reach.shape[1], int((reach.max(axis=0) > pixel_m * view.focal).sum())
        self.count = np.where(np.arange(rows) < far, fine * fine, fine)[:, None]
        self._far, self._fine, self._width = far, fine, width
        self._far_rays = fine * far * fine * width
        # The rays of far rows come first, then those of near rows.
        ahead, reach = (
            np.concatenate([rays[:, :far].reshape(-1), rays[:, far:].reshape(-1)])
            for rays in (ahead, reach)
        )
        side = float(np.abs(across).max())
        self._lines = _lines(view, ahead, reach, side, pixel_m).astype(np.float32)
        self._across_far, self._across_near = (
            np.stack([np.ones(rays.size), rays.reshape(-1)]).astype(np.float32)
            for rays in (across, middle)
        )
        count = self._far_rays + fine * (rows - far) * width
        self._points = np.empty((2, count), np.float32)
        self._rows, self._columns = self._points
        self._points_far = self._points[:, : self._far_rays].reshape(2, fine * far, -1)
        self._points_near = self._points[:, self._far_rays :].reshape(2, -1, width)
        self._index = np.empty(count, np.intp)
        self._total = np.empty((rows, width), np.uint16)

    def codes(self, window: GroundWindow, x_m: float, y_m: float, yaw_rad: float) -> bytes:
        """Return the ground code that each ray meets, for `brightness`."""
        (fine_x, fine_y), (coarse_x, coarse_y) = window.fine_m, window.coarse_m
        turn = (math.cos(yaw_rad), math.sin(yaw_rad))
        pose = (*turn, x_m - fine_x, y_m - fine_y, x_m - coarse_x, y_m - coarse_y, 1.0)
        lines = np.dot(self._lines, np.array(pose, np.float32)).reshape(2, -1, 2)
        far = self._fine * self._far
        np.matmul(lines[:, :far], self._across_far, out=self._points_far)
        np.matmul(lines[:, far:], self._across_near, out=self._points_near)
        # Single precision resolves 1.6 million positions to a sixteenth of a pixel, and fewer
        # arrays leave more of the processor's cache.
        rows = self._rows
        np.trunc(rows, out=rows)
        rows *= window.stride
        rows += self._columns
        # Gathers need indices of pointer size, and are twice as fast without `out`. All indices
        # are inside the window: see `_lines`.
        np.copyto(self._index, rows, casting="unsafe")
        codes: bytes = window.flat.take(self._index).tobytes()
        return codes

    def brightness(self, codes: bytes, table: bytes) -> NDArray[np.uint16]:
        """Return the sum of the brightnesses that the rays of each pixel meet, uint16 (rows, W).

        `table` holds the brightness of each ground code. The result is valid until the next call.
        """
        # bytes.translate is the fastest table look-up, 1.5 times as fast as np.take.
        seen = np.frombuffer(codes.translate(table), np.uint8)
        fine, split, total = self._fine, self._far_rays, self._total
        far_seen = seen[:split].reshape(fine, self._far, fine, self._width)
        np.add.reduce(far_seen, axis=(0, 2), dtype=np.uint16, out=total[: self._far])
        near_seen = seen[split:].reshape(fine, -1, self._width)
        np.add.reduce(near_seen, axis=0, dtype=np.uint16, out=total[self._far :])
        return total


def _lines(
    view: View, ahead: NDArray[np.float64], reach: NDArray[np.float64], side: float, pixel_m: float
) -> NDArray[np.float64]:
    """Return the matrix (4 * rows, 7) that turns a pose into base and slope of each row's line.

    The window pixel of a ray is ``base + across * slope``. Far rows sample the coarse pixels; rows
    beyond those, the border of the coarse square.
    """
    near_m, far_m = (reach_m - 2.0 * pixel_m for reach_m in GroundWindow.reach_m(pixel_m))
    away = np.hypot(ahead, reach * side)
    mount_m = math.hypot(view.forward_m, view.right_m)
    clip = np.minimum(1.0, (far_m - mount_m) / away)
    coarse = away + mount_m > near_m
    scale = np.where(coarse, 1.0 / (pixel_m * COARSE), 1.0 / pixel_m)
    mount = complex(view.forward_m, view.right_m)
    base = (mount + ahead * clip * view.heading) * scale
    slope = 1j * reach * clip * view.heading * scale
    lines = np.zeros((2, len(reach), 2, 7))
    for part, value in enumerate((base, slope)):
        lines[0, :, part, :2] = np.stack([value.imag, value.real], axis=1)
        lines[1, :, part, :2] = np.stack([value.real, -value.imag], axis=1)
    near_scale, coarse_scale = np.where(coarse, 0.0, scale), np.where(coarse, scale, 0.0)
    lines[0, :, 0, 3], lines[1, :, 0, 2] = near_scale, near_scale
    lines[0, :, 0, 5], lines[1, :, 0, 4] = coarse_scale, coarse_scale
    lines[0, :, 0, 6] = np.where(coarse, GroundWindow.coarse_row, 0)
    return lines.reshape(-1, 7)


def _draw_view(config: CameraConfig, rng: np.random.Generator) -> View:
    """Draw the mounting of an episode's camera, and return its projection."""
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
    """Draw the reflectance of each of the 256 ground codes, in steps of 255."""
    grounds = np.array(_REFLECTANCE) * (1.0 + rng.uniform(-0.15, 0.15, len(_REFLECTANCE)))
    bare, paint = grounds[ASPHALT], grounds[PAINT] * rng.uniform(0.8, 1.0)
    grounds[GAP : PAINT + 1] = bare + (paint - bare) * np.linspace(0.0, 1.0, PAINT - GAP + 1)
    grain = np.array(_GRAIN) * rng.uniform(0.6, 1.4)
    texture = np.linspace(-0.5, 0.5, TEXTURES)
    levels = np.zeros((16, TEXTURES))
    levels[: PAINT + 1] = grounds[:, None] + grain[:, None] * texture
    levels = bare + (levels - bare) * weather.contrast
    gamma = rng.uniform(0.85, 1.15)
    table: bytes = np.rint(255.0 * levels.clip(0.0, 1.0) ** gamma).astype(np.uint8).tobytes()
    return table
