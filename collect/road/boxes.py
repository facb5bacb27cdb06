"""Vehicles as boxes: projected and painted wall by wall, far ones first.

Most walls are a few pixels large or face the camera, so they are rectangles but for less than a
pixel and cost one slice; only near, slanting ones are painted column by column.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEAREST_M = 0.4
_BODY_TOP = 0.62  # shares of the vehicle's height
_BODY_FOOT = 0.2
_GLASS = 0.12
_SHADOW = 0.05
_LAMP_HEIGHT = 0.5
_LAMP_M = 0.15
_DECK_WITHIN_M = 20.0


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


class _Face(NamedTuple):
    """An upright wall between two corners: ahead and aside of the camera, in metres."""

    ahead_1: float
    aside_1: float
    ahead_2: float
    aside_2: float
    is_end: bool


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
        _draw(frame, view, light, box, lamps)


def _distance(box: Box) -> float:
    return math.hypot(box.forward_m, box.right_m)


def _draw(frame: NDArray[np.float32], view: View, light: Light, box: Box, lamps: float) -> None:
    at = (complex(box.forward_m, box.right_m) - complex(view.forward_m, view.right_m)) * (
        view.heading.conjugate()
    )
    if at.real < -box.length_m:
        return
    turn = complex(math.cos(box.yaw_rad), math.sin(box.yaw_rad)) * view.heading.conjugate()
    factor, summand = _light_at(frame, view, light, at)
    body, glass, shadow = (
        factor * reflectance + summand for reflectance in (box.reflectance, _GLASS, _SHADOW)
    )
    tall = box.height_m
    if at.real < _DECK_WITHIN_M:
        # Bonnet and boot: the far walls, seen over the near ones.
        for face in _faces(at, turn, box.length_m, box.width_m, front=False):
            _wall(frame, view, face, (0.0, _BODY_TOP * tall), 1.12 * body)
    for face in _faces(at, turn, box.length_m, box.width_m, front=True):
        shade = body if face.is_end else 0.8 * body
        _wall(frame, view, face, (_BODY_FOOT * tall, _BODY_TOP * tall), shade)
        _wall(frame, view, face, (0.0, _BODY_FOOT * tall), shadow)
    for face in _faces(
        at - 0.05 * box.length_m * turn, turn, 0.5 * box.length_m, 0.86 * box.width_m, front=True
    ):
        _wall(frame, view, face, (_BODY_TOP * tall, tall), glass)
    if lamps > 0.0:
        _draw_lamps(frame, view, box, at, turn, lamps)


def _light_at(
    frame: NDArray[np.float32], view: View, light: Light, at: complex
) -> tuple[float, float]:
    """Factor and summand of the light on the ground where a vehicle stands."""
    ahead = max(at.real, 1.0)
    row = int(view.row_of(ahead, 0.0)) - light.first_row
    column = int(view.column + view.focal * at.imag / ahead)
    row = min(max(row, 0), light.factor.shape[0] - 1)
    column = min(max(column, 0), frame.shape[1] - 1)
    return float(light.factor[row, column]), float(light.summand[row, column])


def _faces(
    at: complex, turn: complex, length_m: float, width_m: float, *, front: bool
) -> Iterator[_Face]:
    """Walls of a box that turn towards the camera (`front`) or away from it."""
    ahead, aside = 0.5 * length_m * turn, 0.5j * width_m * turn
    corners = (at + ahead - aside, at + ahead + aside, at - ahead + aside, at - ahead - aside)
    for side, normal in enumerate((ahead, aside, -ahead, -aside)):
        middle = at + normal
        faces_camera = middle.real * normal.real + middle.imag * normal.imag < 0.0
        if faces_camera == front:
            one, two = corners[side], corners[(side + 1) % 4]
            yield _Face(one.real, one.imag, two.real, two.imag, side % 2 == 0)


def _wall(
    frame: NDArray[np.float32],
    view: View,
    face: _Face,
    heights_m: tuple[float, float],
    brightness: float,
) -> None:
    """Paint a wall between two heights in one brightness."""
    clipped = _clip(face)
    if clipped is None:
        return
    ahead_1, aside_1, ahead_2, aside_2, _ = clipped
    low, high = heights_m
    fall = (view.height_m - 0.5 * (low + high)) * view.sin_pitch
    left = view.column + view.focal * aside_1 / (ahead_1 * view.cos_pitch + fall)
    right = view.column + view.focal * aside_2 / (ahead_2 * view.cos_pitch + fall)
    if left > right:
        left, right, ahead_1, ahead_2 = right, left, ahead_2, ahead_1
    first, stop = max(math.ceil(left - 0.5), 0), min(math.ceil(right - 0.5), frame.shape[1])
    if first >= stop:
        return
    top_1, top_2 = view.row_of(ahead_1, high), view.row_of(ahead_2, high)
    foot_1, foot_2 = view.row_of(ahead_1, low), view.row_of(ahead_2, low)
    top_step, foot_step = (top_2 - top_1) / (right - left), (foot_2 - foot_1) / (right - left)
    # As many columns at a time as the borders stay level within a pixel.
    steepest = max(abs(top_step), abs(foot_step))
    width = stop - first if steepest * (stop - first) < 1.0 else max(int(1.0 / steepest), 1)
    for column in range(first, stop, width):
        end = min(column + width, stop)
        along = 0.5 * (column + end) - left
        top, foot = (
            math.ceil(top_1 + top_step * along - 0.5),
            math.ceil(foot_1 + foot_step * along - 0.5),
        )
        if foot > 0:
            frame[max(top, 0) : foot, column:end] = brightness


def _clip(face: _Face) -> _Face | None:
    """The part of a wall that lies ahead of the camera; None if there is none."""
    ahead_1, aside_1, ahead_2, aside_2, is_end = face
    if ahead_1 >= _NEAREST_M and ahead_2 >= _NEAREST_M:
        return face
    if ahead_1 < _NEAREST_M and ahead_2 < _NEAREST_M:
        return None
    share = (_NEAREST_M - ahead_1) / (ahead_2 - ahead_1)
    aside = aside_1 + (aside_2 - aside_1) * share
    if ahead_1 < _NEAREST_M:
        return _Face(_NEAREST_M, aside, ahead_2, aside_2, is_end)
    return _Face(ahead_1, aside_1, _NEAREST_M, aside, is_end)


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
        row = int(view.row_of(lamp.real, _LAMP_HEIGHT * box.height_m))
        size = max(round(_LAMP_M * view.focal / lamp.real), 1)
        if column >= 0 and row >= 0:
            frame[row : row + size, column : column + size] = brightness
