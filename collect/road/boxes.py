"""Vehicles as boxes: projected and painted wall by wall, far ones first.

Most walls are a few pixels large or face the camera, so they are rectangles but for less than a
pixel and cost one slice; only near, slanting ones are painted column by column.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEAREST_M = 0.4
_SIMPLE_BEYOND_M = 16.0
_DECK_WITHIN_M = 12.0
# Shares of the vehicle's height at which shadow, paint and glass end, from the ground up.
_FOOT, _BELT, _LAMP = 0.2, 0.62, 0.5
_CABIN_LENGTH, _CABIN_WIDTH, _CABIN_BACK = 0.5, 0.86, 0.05
_GLASS, _SHADOW = 0.12, 0.05
_SIDE_SHADE, _DECK_SHADE = 0.8, 1.12
_LAMP_M = 0.15


class Box(NamedTuple):
    """A vehicle as seen from the car: metres forward and right of the car's centre."""

    forward_m: float
    right_m: float
    yaw_rad: float
    """Heading relative to the car's, clockwise."""
    length_m: float
    width_m: float
    height_m: float
    reflectance: float
    """Brightness of its paint, 0 to 1."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Where a camera sits in its car and how it projects."""

    focal: float
    """Focal length in pixels."""
    column: float
    """Column of the optical axis."""
    row: float
    """Row of the optical axis."""
    sin_pitch: float
    """Sine of the downward tilt."""
    cos_pitch: float
    """Cosine of the downward tilt."""
    heading: complex
    """Unit vector (forward, right) in which the camera looks."""
    forward_m: float
    """Place ahead of the car's centre."""
    right_m: float
    """Place to the right of the car's middle."""
    height_m: float
    """Height above the ground."""

    def seen_from_camera(self, forward_m: float, right_m: float) -> complex:
        """A place seen from the car, as ahead + i aside of the camera."""
        offset = complex(forward_m - self.forward_m, right_m - self.right_m)
        return offset * self.heading.conjugate()

    def rows_of(self, ahead_m: float, heights_m: Sequence[float]) -> list[float]:
        """Rows of points at the same distance ahead and several heights above the ground."""
        sin, cos = self.sin_pitch, self.cos_pitch
        drop, depth = ahead_m * sin, ahead_m * cos
        row, focal, top = self.row, self.focal, self.height_m
        return [
            row + focal * ((top - height) * cos - drop) / (depth + (top - height) * sin)
            for height in heights_m
        ]

    def row_of(self, ahead_m: float, height_m: float) -> float:
        """Row of a point at a distance ahead and a height above the ground."""
        below = self.height_m - height_m
        depth = ahead_m * self.cos_pitch + below * self.sin_pitch
        return self.row + self.focal * (below * self.cos_pitch - ahead_m * self.sin_pitch) / depth


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Light:
    """How bright things on the ground look: ``reflectance * factor + summand``."""

    factor: NDArray[np.float32]
    """float32 (rows, W), light that falls on the ground and arrives here."""
    summand: NDArray[np.float32]
    """float32 (rows, W), light that fog adds on the way."""
    first_row: int
    """Row of the picture to which the first row of both belongs."""


_Paint = tuple[float, float, float]
"""Brightnesses of a vehicle's body, glass and shadow."""


def draw_boxes(
    frame: NDArray[np.float32], view: View, light: Light, boxes: Sequence[Box], lamps: float
) -> None:
    """Draw vehicles into a picture.

    Args:
        frame: float32 (H, W) in [0, 255]; changed in place.
        view: The camera.
        light: The light on the ground.
        boxes: Vehicles in any order; those behind the camera are left out.
        lamps: Brightness of lit lamps; 0 when lamps are off.
    """
    for box in sorted(boxes, key=_distance, reverse=True):
        at = view.seen_from_camera(box.forward_m, box.right_m)
        if at.real <= -0.5 * box.length_m:
            continue
        turn = complex(math.cos(box.yaw_rad), math.sin(box.yaw_rad)) * view.heading.conjugate()
        paint = _lit(frame, view, light, box, at)
        if at.real > _SIMPLE_BEYOND_M or _shows_one_end(box, at, turn):
            _draw_flat(frame, view, box, at, turn, paint)
        else:
            _draw_near(frame, view, box, at, turn, paint)
        if lamps > 0.0:
            _draw_lamps(frame, view, box, at, turn, lamps)


def _distance(box: Box) -> float:
    return math.hypot(box.forward_m, box.right_m)


def _shows_one_end(box: Box, at: complex, turn: complex) -> bool:
    """Whether the camera looks straight at one end of a vehicle, not from right behind it."""
    seen = -at * turn.conjugate()
    return abs(seen.imag) < 0.5 * box.width_m and abs(seen.real) > box.length_m


def _lit(frame: NDArray[np.float32], view: View, light: Light, box: Box, at: complex) -> _Paint:
    """The vehicle's brightnesses in the light on the ground where it stands."""
    ahead = max(at.real, 1.0)
    row = int(view.row_of(ahead, 0.0)) - light.first_row
    column = int(view.column + view.focal * at.imag / ahead)
    row = min(max(row, 0), light.factor.shape[0] - 1)
    column = min(max(column, 0), frame.shape[1] - 1)
    factor, summand = light.factor.item(row, column), light.summand.item(row, column)
    return (
        box.reflectance * factor + summand,
        _GLASS * factor + summand,
        _SHADOW * factor + summand,
    )


def _draw_flat(
    frame: NDArray[np.float32], view: View, box: Box, at: complex, turn: complex, paint: _Paint
) -> None:
    """A far vehicle, or one that shows only its end: its outline, in three rectangles."""
    cosine, sine = abs(turn.real), abs(turn.imag)
    ahead = at.real - 0.5 * (cosine * box.length_m + sine * box.width_m)
    middle = view.column + view.focal * at.imag / ahead
    half = 0.5 * view.focal * (sine * box.length_m + cosine * box.width_m) / ahead
    left, right = max(math.ceil(middle - half - 0.5), 0), math.ceil(middle + half - 0.5)
    if right <= 0 or left >= frame.shape[1]:
        return
    tall = box.height_m
    heights = (0.0, _FOOT * tall, _BELT * tall, tall)
    ground, foot, belt, top = (math.ceil(row - 0.5) for row in view.rows_of(ahead, heights))
    body, glass, shadow = paint
    frame[foot:ground, left:right] = shadow
    frame[belt:foot, left:right] = body
    inset = round((1.0 - _CABIN_WIDTH) * half)
    frame[top:belt, left + inset : max(right - inset, 0)] = glass


def _draw_near(
    frame: NDArray[np.float32], view: View, box: Box, at: complex, turn: complex, paint: _Paint
) -> None:
    """A vehicle with its walls and the top of its bonnet and boot."""
    tall, (body, glass, shadow) = box.height_m, paint
    ahead, aside = 0.5 * box.length_m * turn, 0.5j * box.width_m * turn
    foot, belt = _FOOT * tall, _BELT * tall
    # Bonnet and boot: the far walls, seen over the near ones.
    for one, two, _ in _walls(at, ahead, aside, near=False) if at.real < _DECK_WITHIN_M else ():
        _draw_wall(frame, view, one, two, (0.0, belt), (_DECK_SHADE * body,))
    for one, two, is_end in _walls(at, ahead, aside, near=True):
        shade = body if is_end else _SIDE_SHADE * body
        _draw_wall(frame, view, one, two, (0.0, foot, belt), (shadow, shade))
    at -= _CABIN_BACK * box.length_m * turn
    for one, two, _ in _walls(at, _CABIN_LENGTH * ahead, _CABIN_WIDTH * aside, near=True):
        _draw_wall(frame, view, one, two, (belt, tall), (glass,))


def _walls(
    at: complex, ahead: complex, aside: complex, *, near: bool
) -> list[tuple[complex, complex, bool]]:
    """Walls of a box that turn towards the camera (`near`) or away from it.

    Returns:
        For each its two ends and whether it is the front or the rear one.
    """
    found = []
    for normal, along, is_end in (
        (ahead, aside, True),
        (aside, ahead, False),
        (-ahead, aside, True),
        (-aside, ahead, False),
    ):
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
    fall = view.height_m * view.sin_pitch
    left = view.column + view.focal * one.imag / (one.real * view.cos_pitch + fall)
    right = view.column + view.focal * two.imag / (two.real * view.cos_pitch + fall)
    if left > right:
        left, right, one, two = right, left, two, one
    first, stop = max(math.ceil(left - 0.5), 0), min(math.ceil(right - 0.5), frame.shape[1])
    if first >= stop:
        return
    starts, stops = view.rows_of(one.real, heights_m), view.rows_of(two.real, heights_m)
    slopes = [(end - start) / (right - left) for start, end in zip(starts, stops, strict=True)]
    # As many columns at a time as the borders stay level within a pixel.
    steepest = max(slopes[0], -slopes[0], slopes[-1], -slopes[-1])
    width = stop - first if steepest * (stop - first) < 1.0 else max(int(1.0 / steepest), 1)
    for column in range(first, stop, width):
        end = min(column + width, stop)
        along = 0.5 * (column + end) - left
        bottom = math.ceil(starts[0] + slopes[0] * along - 0.5)
        for band, brightness in enumerate(brightnesses, 1):
            if bottom <= 0:
                break
            top = math.ceil(starts[band] + slopes[band] * along - 0.5)
            frame[top if top > 0 else 0 : bottom, column:end] = brightness
            bottom = top


def _draw_lamps(
    frame: NDArray[np.float32], view: View, box: Box, at: complex, turn: complex, lamps: float
) -> None:
    """Light up the two lamps of the end that faces the camera, head lamps whiter than tail ones."""
    seen_from_front = at.real * turn.real + at.imag * turn.imag < 0.0
    end = 0.5 * box.length_m * (turn if seen_from_front else -turn)
    brightness = lamps if seen_from_front else 0.6 * lamps
    for side in (-0.4, 0.4):
        lamp = at + end + side * 1j * box.width_m * turn
        if lamp.real < _NEAREST_M:
            continue
        column = int(view.column + view.focal * lamp.imag / lamp.real)
        row = int(view.row_of(lamp.real, _LAMP * box.height_m))
        size = max(round(_LAMP_M * view.focal / lamp.real), 1)
        if column >= 0 and row >= 0:
            frame[row : row + size, column : column + size] = brightness
