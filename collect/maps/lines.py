"""Painted lines: which ones a network's lanes describe, each of them once."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.lanes import Strip
from avtd3.collect.maps.network import Lane

_LINE_M = 0.15
_LINE_APART_M = 0.2
_BARE = ("none", "grass", "curb")


@dataclasses.dataclass(frozen=True, slots=True)
class Band:
    """A band along a strip: its left and right border, in metres right of the centre line."""

    along: Strip
    left_m: NDArray[np.float64]
    right_m: NDArray[np.float64]


def painted_lines(lanes: Sequence[Lane]) -> Iterator[tuple[Band, bool]]:
    """Each painted line once, with whether it is dashed.

    Neighbouring lanes describe the line between them twice, opposite ones even with dashes
    counted from opposite ends, so a line is known by its road, section and lane boundary.
    """
    drawn: set[tuple[int, int, int]] = set()
    for lane in lanes:
        inner = lane.lane_id - (1 if lane.lane_id > 0 else -1)
        for boundary, kind, side in (
            (inner, lane.left_marking, -1.0),
            (lane.lane_id, lane.right_marking, 1.0),
        ):
            key = (lane.road_id, lane.section_id, boundary)
            if key in drawn or kind in _BARE:
                continue
            drawn.add(key)
            middle = side * lane.width_m / 2
            for shift, dashed in _line_parts(kind):
                at = middle + side * shift
                yield Band(lane, at - _LINE_M / 2, at + _LINE_M / 2), dashed


def _line_parts(kind: str) -> tuple[tuple[float, bool], ...]:
    """Outward shift and dashing of each line that a marking consists of, inner line first."""
    parts = [name == "broken" for name in kind.split("_")]
    if len(parts) == 1:
        return ((0.0, parts[0]),)
    return ((-_LINE_APART_M, parts[0]), (_LINE_APART_M, parts[1]))


def sample_band(band: Band, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """x, y, yaw, left and right border of a band, float64 (5, n), at distances along it."""
    strip = band.along
    knots = np.stack([*strip.points.T, strip.yaw_rad, band.left_m, band.right_m])
    # One search for all five, which np.interp would repeat for each.
    last = len(strip.distance_m) - 1
    place = np.interp(at, strip.distance_m, np.arange(last + 1.0))
    whole = np.minimum(place.astype(np.intp), last - 1)
    found: NDArray[np.float64] = np.diff(knots).take(whole, axis=1, mode="clip")
    found *= place - whole
    found += knots.take(whole, axis=1, mode="clip")
    return found
