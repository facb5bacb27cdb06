"""Draw vehicles as boxes: projected and painted wall by wall, far vehicles first.

Most walls are a few pixels large or face the camera. They are rectangles to within a pixel, and
cost one slice. Only near, slanted walls are painted column by column.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.contact import NEAR_M
from avtd3.store.world_record import ANGLE_STEPS_PER_RAD, POSITION_STEPS_PER_M

# The live simulator searches with exact positions up to NEAR_M: a few steps of rounding below it.
SEEN_M = NEAR_M - 1e-5
"""Distance within which front cameras show vehicles."""
CarPose = tuple[float, float, float]
"""x, y in metres and yaw in radians of the car."""
Shapes = Sequence[Sequence[float]]
"""Length, width, height and reflectance of each vehicle."""
_NEAREST_M = 0.4
_SIMPLE_BEYOND_M = 12.0
_DECK_WITHIN_M = 8.0  # farther decks are half a pixel high
# Shares of the height of a vehicle at which shadow and paint end, and of its lamps.
_FOOT, _BELT, _LAMP = 0.2, 0.62, 0.5
_CABIN_LENGTH, _CABIN_WIDTH, _CABIN_BACK = 0.5, 0.86, 0.05
_GLASS, _SHADOW = 0.12, 0.05
_SIDE_SHADE, _DECK_SHADE = 0.8, 1.12
_LAMP_M = 0.15


class Box(NamedTuple):
    """A vehicle relative to the car: metres forward and to the right of the centre of the car."""

    forward_m: float
    right_m: float
    yaw_rad: float
    """Heading relative to the car's, clockwise."""
    length_m: float
    width_m: float
    height_m: float
    reflectance: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Where a camera is in its car, and how it projects."""

    focal: float  # in pixels
    column: float
    row: float
    """Column and row of the optical axis."""
    sin_pitch: float
    cos_pitch: float
    """Sine and cosine of the downward tilt."""
    heading: complex
    """Unit vector (forward, right) in which the camera looks."""
    forward_m: float
    right_m: float
    height_m: float
    """Position relative to the centre of the car, on the ground."""

    def rows_of(self, ahead_m: float, heights_m: Sequence[float]) -> list[float]:
        """Return the rows of points at one distance ahead and at several heights."""
        sin, cos, focal = self.sin_pitch, self.cos_pitch, self.focal
        drop, depth, row, top = ahead_m * sin, ahead_m * cos, self.row, self.height_m
        return [
            row + focal * ((top - height) * cos - drop) / (depth + (top - height) * sin)
            for height in heights_m
        ]


class Light(NamedTuple):
    """Brightness of surfaces near the ground: ``reflectance * factor + summand``."""

    factor: NDArray[np.float32]
    """float32 (rows, W), light that falls on the ground and arrives at the camera."""
    summand: NDArray[np.float32]
    """float32 (rows, W), light that fog adds on the way."""
    first_row: int
    """Row of the picture that belongs to the first row of both."""


def visible_boxes(
    car: CarPose,
    poses: Sequence[Sequence[int]],
    shapes: Shapes,
    numbers: Sequence[int],
    slope: float,
) -> list[Box]:
    """Return the vehicles that a camera may see, which sees `slope` m to each side per m ahead.

    `poses` are whole steps, see `avtd3.store.world_record`; `numbers` are the vehicles that may be
    near, at least those within `SEEN_M` ahead.
    """
    x_m, y_m, yaw_rad = car
    here, back = complex(x_m, y_m), complex(math.cos(yaw_rad), -math.sin(yaw_rad))
    found = []
    for number in numbers:
        x, y, yaw = poses[number]
        at = (complex(x / POSITION_STEPS_PER_M, y / POSITION_STEPS_PER_M) - here) * back
        ahead, aside = at.real, at.imag
        if ahead > -1.0 and abs(aside) < slope * ahead + 5.0 and abs(at) < SEEN_M:
            found.append(Box(ahead, aside, yaw / ANGLE_STEPS_PER_RAD - yaw_rad, *shapes[number]))
    return found


def draw_boxes(
    frame: NDArray[np.float32], view: View, light: Light, boxes: Sequence[Box], lamps: float
) -> None:
    """Draw vehicles into a picture float32 (H, W) in [0, 255]; `lamps` is 0 when they are off."""
    mount, back = complex(view.forward_m, view.right_m), view.heading.conjugate()
    for box in sorted(boxes, key=lambda box: math.hypot(box[0], box[1]), reverse=True):
        at = (complex(box[0], box[1]) - mount) * back
        if at.real <= -0.5 * box.length_m:
            continue
        turn = complex(math.cos(box.yaw_rad), math.sin(box.yaw_rad)) * back
        seen = at * turn.conjugate()
        shows_one_end = abs(seen.imag) < 0.5 * box.width_m and abs(seen.real) > box.length_m
        draw = _draw_flat if at.real > _SIMPLE_BEYOND_M or shows_one_end else _draw_near
        if draw(frame, view, light, box, at, turn) and lamps > 0.0:
            _draw_lamps(frame, view, box, at, turn, lamps)


def _lit(view: View, light: Light, reflectance: float, at: complex) -> tuple[float, float, float]:
    """Return the brightnesses of a vehicle's body, glass and shadow where it stands."""
    ahead, top = max(at.real, 1.0), view.height_m
    depth = ahead * view.cos_pitch + top * view.sin_pitch
    rise = view.focal * (top * view.cos_pitch - ahead * view.sin_pitch) / depth
    rows, columns = light.factor.shape
    row = min(max(int(view.row + rise) - light.first_row, 0), rows - 1)
    column = min(max(int(view.column + view.focal * at.imag / ahead), 0), columns - 1)
    factor, summand = light.factor.item(row, column), light.summand.item(row, column)
    return reflectance * factor + summand, _GLASS * factor + summand, _SHADOW * factor + summand


def _draw_flat(
    frame: NDArray[np.float32], view: View, light: Light, box: Box, at: complex, turn: complex
) -> bool:
    """Draw a far vehicle, or one that shows only its end; return whether it is in the picture."""
    _, _, _, length, width, tall, reflectance = box
    cosine, sine = abs(turn.real), abs(turn.imag)
    ahead = at.real - 0.5 * (cosine * length + sine * width)
    middle = view.column + view.focal * at.imag / ahead - 0.5
    half = 0.5 * view.focal * (sine * length + cosine * width) / ahead
    left, right = max(math.ceil(middle - half), 0), math.ceil(middle + half)
    if right <= 0 or left >= frame.shape[1]:
        return False
    heights = (0.0, _FOOT * tall, _BELT * tall, tall)
    ground, foot, belt, top = (math.ceil(row - 0.5) for row in view.rows_of(ahead, heights))
    body, glass, shadow = _lit(view, light, reflectance, at)
    frame[foot:ground, left:right] = shadow
    frame[belt:foot, left:right] = body
    inset = round((1.0 - _CABIN_WIDTH) * half)
    frame[top:belt, left + inset : max(right - inset, 0)] = glass
    return True


def _draw_near(
    frame: NDArray[np.float32], view: View, light: Light, box: Box, at: complex, turn: complex
) -> bool:
    """Draw a vehicle with its walls and decks; return whether it may be in the picture."""
    _, _, _, length, width, tall, reflectance = box
    ahead, aside = 0.5 * length * turn, 0.5j * width * turn
    if _is_outside(frame, view, at, abs(ahead) + abs(aside)):
        return False
    body, glass, shadow = _lit(view, light, reflectance, at)
    foot, belt = _FOOT * tall, _BELT * tall
    # Bonnet and boot: the far walls, visible above the near ones.
    for one, two, _ in _walls(at, ahead, aside, near=False) if at.real < _DECK_WITHIN_M else ():
        _draw_wall(frame, view, one, two, (0.0, belt), (_DECK_SHADE * body,))
    for one, two, is_end in _walls(at, ahead, aside, near=True):
        shade = body if is_end else _SIDE_SHADE * body
        _draw_wall(frame, view, one, two, (0.0, foot, belt), (shadow, shade))
    at -= _CABIN_BACK * length * turn
    for one, two, _ in _walls(at, _CABIN_LENGTH * ahead, _CABIN_WIDTH * aside, near=True):
        _draw_wall(frame, view, one, two, (belt, tall), (glass,))
    return True


def _is_outside(frame: NDArray[np.float32], view: View, at: complex, reach_m: float) -> bool:
    """Return whether everything within a distance of a place is left or right of the picture."""
    right = frame.shape[1] - view.column
    half = max(view.column, right) + 1.0
    depth = view.cos_pitch * at.real + view.height_m * max(view.sin_pitch, 0.0)
    is_outside: bool = view.focal * (abs(at.imag) - reach_m) > half * (depth + reach_m)
    return is_outside


def _walls(
    at: complex, ahead: complex, aside: complex, *, near: bool
) -> list[tuple[complex, complex, bool]]:
    """Return the walls that face the camera (`near`) or not: both ends, if it is an end wall."""
    found = []
    sides = ((ahead, aside, True), (aside, ahead, False))
    for normal, along, is_end in (*sides, (-ahead, aside, True), (-aside, ahead, False)):
        middle = at + normal
        if (middle.real * normal.real + middle.imag * normal.imag < 0.0) == near:
            found.append((middle - along, middle + along, is_end))
    return found


def _draw_wall(
    frame: NDArray[np.float32],
    view: View,
    one: complex,
    two: complex,
    heights_m: tuple[float, ...],
    brightnesses: tuple[float, ...],
) -> None:
    """Paint a wall in bands between heights, from the ground up."""
    if one.real < _NEAREST_M or two.real < _NEAREST_M:
        if one.real < _NEAREST_M and two.real < _NEAREST_M:
            return
        cut = one + (two - one) * (_NEAREST_M - one.real) / (two.real - one.real)
        one, two = (cut, two) if one.real < _NEAREST_M else (one, cut)
    fall, cos, ceil = view.height_m * view.sin_pitch, view.cos_pitch, math.ceil
    left = view.column + view.focal * one.imag / (one.real * cos + fall)
    right = view.column + view.focal * two.imag / (two.real * cos + fall)
    if left > right:
        left, right, one, two = right, left, two, one
    first, stop = max(ceil(left - 0.5), 0), min(ceil(right - 0.5), frame.shape[1])
    if first >= stop:
        return
    starts, stops = view.rows_of(one.real, heights_m), view.rows_of(two.real, heights_m)
    slopes = [(end - start) / (right - left) for start, end in zip(starts, stops, strict=True)]
    # Paint as many columns at a time as the borders stay within a pixel.
    steepest = max(slopes[0], -slopes[0], slopes[-1], -slopes[-1])
    width = stop - first if steepest * (stop - first) < 1.0 else max(int(1.0 / steepest), 1)
    for column in range(first, stop, width):
        end = min(column + width, stop)
        along = 0.5 * (column + end) - left
        bottom = ceil(starts[0] + slopes[0] * along - 0.5)
        for band, brightness in enumerate(brightnesses, 1):
            if bottom <= 0:
                break
            top = ceil(starts[band] + slopes[band] * along - 0.5)
            frame[top if top > 0 else 0 : bottom, column:end] = brightness
            bottom = top


def _draw_lamps(
    frame: NDArray[np.float32], view: View, box: Box, at: complex, turn: complex, lamps: float
) -> None:
    """Draw the two lamps of the end that faces the camera, headlights brighter than tail lights."""
    seen_from_front = at.real * turn.real + at.imag * turn.imag < 0.0
    end = 0.5 * box.length_m * (turn if seen_from_front else -turn)
    brightness = lamps if seen_from_front else 0.6 * lamps
    for side in (-0.4, 0.4):
        lamp = at + end + side * 1j * box.width_m * turn
        if lamp.real < _NEAREST_M:
            continue
        column = int(view.column + view.focal * lamp.imag / lamp.real)
        row = int(view.rows_of(lamp.real, (_LAMP * box.height_m,))[0])
        size = max(round(_LAMP_M * view.focal / lamp.real), 1)
        if column >= 0 and row >= 0:
            frame[row : row + size, column : column + size] = brightness
