"""`StreamCamera`: what draws one named stream of the built-in simulator, and the cameras for it.

=========== ======== ==========================================================================
kind        channels picture
=========== ======== ==========================================================================
``gray``    1        the front camera, see `avtd3.collect.sim.camera`
``rgb``     3        the same in colour: red, green, blue
``semantic`` 5       what the front camera shows: road, marking, verge, sky, vehicle
``bev``     5        the surroundings from above: road, marking, verge, vehicle, oncoming vehicle
``bev_route`` 6      these, and the route
=========== ======== ==========================================================================

Planes of masks have 255 where a pixel shows the class, 0 where not, and the share of its rays at
the borders of the ground. All cameras of an episode make the same random draws, as if they were
mounted on one frame.
"""

import colorsys
import dataclasses
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number
from avtd3.collect.maps.raster import COARSE, EDGE, GAP, PAINT, TEXTURES, VERGE, Raster
from avtd3.collect.maps.weather import Weather
from avtd3.collect.sim.boxes import Box, CarPose, Light, Shapes, draw_boxes
from avtd3.collect.sim.camera import Camera, CameraConfig, GroundWindow
from avtd3.store.errors import ConfigError, SpecError, check_integers
from avtd3.store.spec import MAX_AXIS, ImageSpec
from avtd3.store.world_record import ANGLE_STEPS_PER_RAD, POSITION_STEPS_PER_M

FROM_ABOVE = ("bev", "bev_route")
"""The kinds that no camera takes."""
PLANES = {
    "gray": ("gray",),
    "rgb": ("red", "green", "blue"),
    "semantic": ("road", "marking", "verge", "sky", "vehicle"),
    "bev": ("road", "marking", "verge", "vehicle", "oncoming"),
    "bev_route": ("road", "marking", "verge", "vehicle", "oncoming", "route"),
}
"""What the planes of each kind of picture are."""
_LUMA = (0.299, 0.587, 0.114)
ROUTE_HALF_M = 1.0
"""Half the width of a route in the view from above."""
_ROUTE_EVERY_M = 0.25
MOST_POINTS = 20_000
"""Most points of a route that is stored."""
Line: TypeAlias = NDArray[np.complex128]
"""Points in metres, x + iy."""
# Red, green and blue, by ground class: grass, earth, gravel and asphalt; paint is white.
_GROUND_TINTS = ((0.72, 1.14, 0.58), (1.16, 0.98, 0.72), (1.05, 1.0, 0.9), (0.99, 1.0, 1.03))
_SKY_TINT = (0.76, 1.0, 1.45)
_SATURATION = 0.55


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamCamera(CameraConfig):
    """One named stream of the built-in simulator: a camera, or the view from above.

    Example:
        >>> StreamCamera(kind="bev", height=64, width=64).image.frame_shape
        (5, 64, 64)
    """

    kind: str = "gray"
    """``gray``, ``rgb``, ``semantic`` (masks of what the front camera shows), ``bev`` (masks of the
    surroundings from above) or ``bev_route`` (these and the route); docs/streams.md says what their
    planes are."""
    stack: int = 4
    """Frames per observation, oldest first."""
    stride: int = 1
    """Observations between two frames of a stack."""
    metres_per_pixel: float = 0.5
    """Side of a pixel of the view from above."""
    behind_share: float = 0.25
    """Share of the rows of the view from above that are behind the centre of the car."""

    def __post_init__(self) -> None:
        CameraConfig.__post_init__(self)  # super() does not know a class with slots
        check_integers(self, "camera.")
        if self.kind not in PLANES:
            raise ConfigError(f"camera.kind is {self.kind!r}, expected one of {', '.join(PLANES)}")
        check_number("camera.stack", self.stack, minimum=1, maximum=MAX_AXIS)
        check_number("camera.stride", self.stride, minimum=1, maximum=MAX_AXIS)
        check_number("camera.metres_per_pixel", self.metres_per_pixel, minimum=0.05, maximum=5)
        check_number("camera.behind_share", self.behind_share, maximum=1)

    @property
    def image(self) -> ImageSpec:
        """The stream in a dataset's spec."""
        return ImageSpec(
            channels=len(PLANES[self.kind]),
            height=self.height,
            width=self.width,
            stack=self.stack,
            stride=self.stride,
        )


class ColourCamera(Camera):
    """The front camera in colour: three planes of equal brightness and different tints."""

    def _prepare(self) -> None:
        gray = np.frombuffer(self._table, np.uint8).astype(np.float64)
        tints = np.ones((16, 3))
        tints[: len(_GROUND_TINTS)] = [_of_unit_luma(tint) for tint in _GROUND_TINTS]
        by_code = np.repeat(tints, TEXTURES, axis=0)
        planes = np.rint(gray[:, None] * by_code).clip(0, 255).astype(np.uint8)
        self._tables = [planes[:, channel].tobytes() for channel in range(3)]
        horizon = len(self._sky)
        height = (horizon - np.arange(horizon))[:, None] / self.config.height
        rise = 1.0 - np.exp(-3.0 * height)
        tint = _of_unit_luma(_SKY_TINT)
        self._skies = [
            (self._sky * (1.0 + (share - 1.0) * rise)).astype(np.float32) for share in tint
        ]

    def render(
        self, x_m: float, y_m: float, yaw_rad: float, boxes: Sequence[Box]
    ) -> NDArray[np.uint8]:
        """Render a new picture uint8 (3, H, W) from a pose of the car."""
        codes, tints = self._look(x_m, y_m, yaw_rad), [_paint(box) for box in boxes]
        picture = np.empty((3, self.config.height, self.config.width), np.uint8)
        for channel in range(3):
            tinted = [
                box._replace(reflectance=box.reflectance * tint[channel])
                for box, tint in zip(boxes, tints, strict=True)
            ]
            table, sky = self._tables[channel], self._skies[channel]
            picture[channel] = self._plane(codes, table, sky, tinted, channel)
        self._frames += 1
        return picture


def _of_unit_luma(tint: Sequence[float]) -> list[float]:
    luma = sum(share * weight for share, weight in zip(tint, _LUMA, strict=True))
    return [share / luma for share in tint]


def _paint(box: Box) -> list[float]:
    """Return the tint of a vehicle, which follows from its reflectance."""
    hue = box.reflectance * 1e4 % 1.0
    return _of_unit_luma(colorsys.hsv_to_rgb(hue, _SATURATION, 1.0))


class SemanticCamera(Camera):
    """What the front camera shows: a mask for each class of `PLANES`."""

    def _prepare(self) -> None:
        self._masks = [bytes(shares) for shares in _ground_masks()]
        size = (self.config.height, self.config.width)
        rows = size[0] - len(self._sky)
        nothing = np.zeros((rows, size[1]), np.float32)
        self._flat = Light(nothing, nothing + 255.0, len(self._sky))

    def render(
        self, x_m: float, y_m: float, yaw_rad: float, boxes: Sequence[Box]
    ) -> NDArray[np.uint8]:
        """Render masks uint8 (5, H, W) from a pose of the car."""
        codes, horizon = self._look(x_m, y_m, yaw_rad), len(self._sky)
        planes = np.zeros((5, self.config.height, self.config.width), np.uint8)
        for plane, table in zip(planes, self._masks, strict=False):
            plane[horizon:] = self._rays.brightness(codes, table) / self._rays.count + 0.5
        planes[3, :horizon] = 255
        frame = self._frame
        frame[:] = 0.0
        draw_boxes(frame, self.view, self._flat, boxes, 0.0)
        vehicle = frame > 0.0
        planes[:, vehicle] = 0
        planes[4][vehicle] = 255
        return planes


def _ground_masks() -> list[NDArray[np.uint8]]:
    """Return the share of road, marking and verge of each ground code, uint8 (256,) each."""
    kind = np.arange(256) // TEXTURES
    marking = np.where((kind >= GAP) & (kind <= PAINT), (kind - GAP) * 255.0 / (PAINT - GAP), 0.0)
    verge = np.where((kind == VERGE) | (kind == EDGE), 255.0, 0.0)
    road = 255.0 - marking - verge
    return [np.rint(share).astype(np.uint8) for share in (road, marking, verge)]


class BirdsEye:
    """Draws the surroundings from above: the car's heading is up, its centre in the middle column.

    Vehicles are whole pixels, wherever their centre is. It sees what the front camera does not.
    """

    def __init__(self, config: StreamCamera) -> None:
        self._config, self._window = config, GroundWindow()
        self._shows_route, self._route = config.kind == "bev_route", np.zeros(0, np.complex128)
        self._masks = [shares.tobytes() for shares in _ground_masks()]
        height, width, side_m = config.height, config.width, config.metres_per_pixel
        rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
        ahead = ((1.0 - config.behind_share) * height - rows) * side_m
        right = (columns - width / 2.0) * side_m
        self._at = ahead[:, None] + 1j * right
        sub = ((np.arange(config.supersample) + 0.5) / config.supersample - 0.5) * side_m
        inside = (sub[:, None] + 1j * sub).reshape(-1, 1, 1)
        self._points = (self._at + inside).reshape(-1)
        self._reach_m = float(np.abs(self._points).max())

    def reset(
        self,
        raster: Raster,
        weather: Weather | None,
        rng: np.random.Generator | None,
        route: Line | None,
    ) -> None:
        """Prepare an episode, also without weather; raise SpecError if the route is missing."""
        if self._shows_route:
            if route is None:
                raise SpecError(
                    "the route is not known, which bev_route shows: it was not stored by earlier "
                    f"versions, and is not for routes of more than {MOST_POINTS} points; draw bev, "
                    "or collect again"
                )
            self._route = _dense(route)
        self._window.show(raster)
        pixel_m = raster.pixel_m
        near_m, far_m = (reach_m - 2.0 * pixel_m for reach_m in GroundWindow.reach_m(pixel_m))
        distance = np.abs(self._points)
        # Beyond the window, the ground at its border repeats.
        points = self._points * np.minimum(1.0, far_m / np.maximum(distance, 1e-9))
        is_far = distance > near_m
        self._far = np.flatnonzero(is_far)
        self._near_points = np.where(is_far, 0.0, points)
        self._far_points = points[self._far]
        self._pixel_m = pixel_m

    def skip_to(self, frame: int) -> None:
        """Do nothing: all frames are drawn in the same way."""

    def draw(
        self, car: CarPose, poses: NDArray[np.int64], shapes: Shapes, numbers: Sequence[int]
    ) -> NDArray[np.uint8]:
        """Draw a frame as `Camera.draw` does; all vehicles are looked at, not only ``numbers``."""
        x_m, y_m, yaw_rad = car
        config, turn = self._config, complex(math.cos(yaw_rad), math.sin(yaw_rad))
        codes = self._codes(complex(x_m, y_m), turn)
        planes = np.zeros(config.image.frame_shape, np.uint8)
        places = config.supersample**2
        for plane, table in zip(planes, self._masks, strict=False):
            # bytes.translate is the fastest table look-up, see `GroundRays.brightness`.
            seen = np.frombuffer(codes.translate(table), np.uint8).reshape(places, *plane.shape)
            plane[:] = (np.add.reduce(seen, axis=0, dtype=np.uint16) + places // 2) // places
        if len(poses):
            self._draw_vehicles(planes[:5], complex(x_m, y_m), turn, poses, shapes)
        if self._shows_route:
            self._draw_route(planes[5], complex(x_m, y_m), turn)
        return planes

    def _draw_route(self, plane: NDArray[np.uint8], here: complex, turn: complex) -> None:
        """Mark the pixels whose centres are near the route, also where a vehicle is."""
        config, side_m = self._config, self._config.metres_per_pixel
        at = self._route - here
        at = at[np.abs(at) < self._reach_m + ROUTE_HALF_M] * turn.conjugate()
        rows = (1.0 - config.behind_share) * config.height - 0.5 - at.real / side_m
        columns = config.width / 2.0 - 0.5 + at.imag / side_m
        half = max(ROUTE_HALF_M / side_m, 0.5)
        around = np.arange(-math.ceil(half), math.ceil(half) + 1)
        row = np.rint(rows).astype(np.intp)[:, None, None] + around[:, None]
        column = np.rint(columns).astype(np.intp)[:, None, None] + around
        is_near = (row - rows[:, None, None]) ** 2 + (column - columns[:, None, None]) ** 2
        shown = is_near <= half * half
        shown &= (row >= 0) & (row < config.height) & (column >= 0) & (column < config.width)
        plane.reshape(-1)[(row * config.width + column)[shown]] = 255

    def _codes(self, here: complex, turn: complex) -> bytes:
        """Return the ground code at each point."""
        window = self._window
        window.follow(here.real, here.imag)
        origin, pixel_m = here - complex(*window.fine_m), self._pixel_m
        index = _window_index(self._near_points, origin, turn, pixel_m)
        if len(self._far):
            origin = here - complex(*window.coarse_m)
            far = _window_index(self._far_points, origin, turn, pixel_m * COARSE)
            index[self._far] = far + window.coarse_row * window.stride
        codes: bytes = window.flat.take(index).tobytes()
        return codes

    def _draw_vehicles(
        self,
        planes: NDArray[np.uint8],
        here: complex,
        turn: complex,
        poses: NDArray[np.int64],
        shapes: Shapes,
    ) -> None:
        at = (poses[:, 0] + 1j * poses[:, 1]) / POSITION_STEPS_PER_M - here
        at *= turn.conjugate()
        for number in np.flatnonzero(np.abs(at) < self._reach_m + 20.0).tolist():
            yaw_rad = poses.item(number, 2) / ANGLE_STEPS_PER_RAD
            heading = complex(math.cos(yaw_rad), math.sin(yaw_rad)) * turn.conjugate()
            length, width = shapes[number][:2]
            seen = (self._at - at[number]) * heading.conjugate()
            body = (np.abs(seen.real) <= 0.5 * length) & (np.abs(seen.imag) <= 0.5 * width)
            planes[:, body] = 0
            planes[3 if heading.real >= 0.0 else 4][body] = 255


def route_steps(points: NDArray[np.float64]) -> list[list[int]] | None:
    """Return a route float64 (N, 2) for a setup: second differences of x and of y in millimetres.

    Return None if it has more than `MOST_POINTS`.
    """
    if len(points) > MOST_POINTS:
        return None
    millimetres = np.rint(points.T * 1e3).astype(np.int64)
    found: list[list[int]] = np.diff(millimetres, n=2, prepend=np.zeros((2, 2), int)).tolist()
    return found


def route_line(steps: Sequence[Sequence[int]]) -> Line:
    """Return the points of a route in metres, x + iy, from what `route_steps` made of it."""
    x, y = np.array(steps, np.int64).cumsum(axis=1).cumsum(axis=1) / 1e3
    line: Line = x + 1j * y
    return line


def _dense(line: Line) -> Line:
    """Return the points of a line, and others between them, at most `_ROUTE_EVERY_M` apart."""
    along = np.concatenate(([0.0], np.abs(np.diff(line)).cumsum()))
    at = np.union1d(along, np.arange(0.0, along[-1], _ROUTE_EVERY_M))
    found: Line = np.interp(at, along, line.real) + 1j * np.interp(at, along, line.imag)
    return found


def _window_index(
    points: NDArray[np.complex128], origin: complex, turn: complex, pixel_m: float
) -> NDArray[np.intp]:
    """Return the places in the flat window of points relative to a car at an origin in it."""
    at = points * (turn / pixel_m)
    at += origin / pixel_m
    index = at.imag.astype(np.intp)
    index *= GroundWindow.stride
    index += at.real.astype(np.intp)
    return index


StreamDrawer = Camera | BirdsEye
"""What draws the frames of one stream."""
_CAMERAS = {"gray": Camera, "rgb": ColourCamera, "semantic": SemanticCamera}


def open_drawer(config: CameraConfig) -> StreamDrawer:
    """Return what draws a stream, or the pictures of the only camera."""
    if not isinstance(config, StreamCamera):
        return Camera(config)
    if config.kind in FROM_ABOVE:
        return BirdsEye(config)
    return _CAMERAS[config.kind](config)
