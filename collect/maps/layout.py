"""Where generated roads run: polylines with rounded corners, in OpenDRIVE's frame.

A corner is a clothoid, an arc and a clothoid back, so curvature never jumps. Because it begins
and ends on the polyline, a closed polyline gives a closed road exactly, and a street meets its
junctions exactly. OpenDRIVE's frame has y to the left and headings anticlockwise.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import RoadError

STRAIGHT_RAD = 1e-3
"""Changes of heading below this are no corner."""
_LINE_M = 1.0  # straight left between two corners, on either side
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_ATTEMPTS = 500
_SAMPLE_M = 6.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch whose curvature changes evenly: a line, an arc or a clothoid."""

    x_m: float
    y_m: float
    heading_rad: float
    length_m: float
    curvature_start: float = 0.0
    """1/m, positive to the left."""
    curvature_end: float = 0.0

    def end(self) -> tuple[float, float, float]:
        """Position and heading at its end; Gauss-Legendre, exact to 1e-9 m for any corner here."""
        at = 0.5 * self.length_m * (_NODES + 1.0)
        slope = (self.curvature_end - self.curvature_start) / self.length_m
        heading = self.heading_rad + at * (self.curvature_start + 0.5 * slope * at)
        scale = 0.5 * self.length_m
        turned = 0.5 * (self.curvature_start + self.curvature_end) * self.length_m
        return (
            self.x_m + scale * float(_WEIGHTS @ np.cos(heading)),
            self.y_m + scale * float(_WEIGHTS @ np.sin(heading)),
            self.heading_rad + turned,
        )


def corner(
    start: tuple[float, float, float], turn_rad: float, radius_m: float, share: float
) -> list[Piece]:
    """A corner from a position and heading on.

    Args:
        start: x, y and heading.
        turn_rad: Change of heading, positive to the left; not 0.
        radius_m: Smallest radius.
        share: Part of the turn that the two clothoids take, in (0, 1).
    """
    bend = math.copysign(1.0 / radius_m, turn_rad)
    ease = share * abs(turn_rad) * radius_m
    hold = (1.0 - share) * abs(turn_rad) * radius_m
    pieces: list[Piece] = []
    for length, first, last in ((ease, 0.0, bend), (hold, bend, bend), (ease, bend, 0.0)):
        pieces.append(
            Piece(
                x_m=start[0],
                y_m=start[1],
                heading_rad=start[2],
                length_m=length,
                curvature_start=first,
                curvature_end=last,
            )
        )
        start = pieces[-1].end()
    return pieces


def unit_tangent(turn_rad: float, share: float) -> float:
    """Distance from a corner's vertex to its ends, for a smallest radius of 1 m."""
    x, y, _ = corner((0.0, 0.0, 0.0), abs(turn_rad), 1.0, share)[-1].end()
    # Both ends lie the same way from the vertex: (x, y) = (t + t cos, t sin).
    return (
        x / (1.0 + math.cos(turn_rad))
        if abs(turn_rad) < math.pi / 2
        else y / math.sin(abs(turn_rad))
    )


def turns_of(vertices: NDArray[np.float64], *, closed: bool = False) -> NDArray[np.float64]:
    """Change of heading at each inner vertex (at every one if closed), in (-pi, pi]."""
    edges = np.diff(vertices, axis=0)
    if closed:
        edges = np.concatenate([[vertices[0] - vertices[-1]], vertices[1:] - vertices[:-1]])
        edges = np.concatenate([edges, edges[:1]])
    heading = np.arctan2(edges[:, 1], edges[:, 0])
    turned: NDArray[np.float64] = np.pi - (np.pi - np.diff(heading)) % (2.0 * np.pi)
    return turned


def largest_radii(
    turns: NDArray[np.float64], lengths: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """Radii at which neighbouring corners just fit on their edges.

    Args:
        turns: (N,), changes of heading.
        lengths: (N + 1,), lengths of the edges before and after each corner.
        share: See `corner`.
    """
    room = np.minimum(lengths[:-1], lengths[1:]) / 2.0 - _LINE_M
    tangents = [unit_tangent(turn, share) for turn in np.abs(turns).clip(STRAIGHT_RAD).tolist()]
    return np.asarray(room / np.array(tangents), np.float64)


def rounded(vertices: NDArray[np.float64], radii: Sequence[float], share: float) -> list[Piece]:
    """A road along a polyline whose inner vertices are rounded with the given radii."""
    pieces: list[Piece] = []
    place = vertices[0]
    turns = [*turns_of(vertices).tolist(), 0.0]
    for index, turn in enumerate(turns):
        edge = vertices[index + 1] - vertices[index]
        direction = edge / math.hypot(*edge)
        bends = abs(turn) > STRAIGHT_RAD
        tangent = radii[index] * unit_tangent(turn, share) if bends else 0.0
        stop = vertices[index + 1] - tangent * direction
        heading = math.atan2(direction[1], direction[0])
        straight = math.hypot(*(stop - place))
        pieces.append(Piece(x_m=place[0], y_m=place[1], heading_rad=heading, length_m=straight))
        place = stop
        if bends:
            pieces += corner((stop[0], stop[1], heading), turn, radii[index], share)
            place = np.array(pieces[-1].end()[:2])
    return pieces


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Winding:
    """How a winding road winds."""

    length_m: tuple[float, float]
    """Length of the polyline before its corners are rounded; of a closed road, the smallest and
    largest circumference of the circle that a vertex may lie on."""
    edge_m: tuple[float, float]
    turn_rad: tuple[float, float]
    radius_m: tuple[float, float]
    """Smallest radius that is built, and the largest."""
    share: float = 0.6


def winding_road(rng: np.random.Generator, winding: Winding) -> list[Piece]:
    """A road that winds, keeps away from itself and ends somewhere else."""
    target = rng.uniform(*winding.length_m)
    vertices = [np.zeros(2)]
    headings = [rng.uniform(-math.pi, math.pi)]
    length = 0.0
    for _ in range(_ATTEMPTS):
        edge = rng.uniform(*winding.edge_m)
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(*winding.turn_rad)
        heading = headings[-1] + (turn if len(vertices) > 1 else 0.0)
        new = vertices[-1] + edge * np.array([math.cos(heading), math.sin(heading)])
        if not _may_follow(vertices, new, heading - headings[0], winding):
            continue
        vertices.append(new)
        headings.append(heading)
        length += edge
        if length >= target:
            break
    line = np.array(vertices)
    lengths = np.hypot(*np.diff(line, axis=0).T)
    return rounded(line, _drawn_radii(rng, turns_of(line), lengths, winding), winding.share)


def _may_follow(
    vertices: list[NDArray[np.float64]], new: NDArray[np.float64], veer: float, winding: Winding
) -> bool:
    if len(vertices) < 2:
        return True
    line = np.array([*vertices[-2:], new])
    lengths = np.hypot(*np.diff(line, axis=0).T)
    radius = largest_radii(turns_of(line), lengths, winding.share)[0]
    return bool(
        radius >= winding.radius_m[0]
        and abs(veer) <= 0.7 * math.pi
        and _is_clear(vertices, new, winding.edge_m[0] / 2.0)
    )


def _is_clear(vertices: list[NDArray[np.float64]], new: NDArray[np.float64], away_m: float) -> bool:
    """Whether the edge to a new vertex stays away from all edges but the one before it."""
    earlier = [_along(a, b) for a, b in itertools.pairwise(vertices[:-1])]
    if not earlier:
        return True
    here = _along(vertices[-1], new)
    gap = here[:, None] - np.concatenate(earlier)[None]
    return bool((gap**2).sum(axis=-1).min() > away_m**2)


def _along(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    count = max(math.ceil(math.hypot(*(end - start)) / _SAMPLE_M), 1) + 1
    return np.linspace(start, end, count)


def _drawn_radii(
    rng: np.random.Generator,
    turns: NDArray[np.float64],
    lengths: NDArray[np.float64],
    winding: Winding,
) -> list[float]:
    """Radii between the smallest allowed and the largest that fit, wide sweeps more often."""
    low, high = winding.radius_m
    fits = np.clip(largest_radii(turns, lengths, winding.share), low, high)
    return [
        float(low * (top / low) ** part)
        for top, part in zip(fits, np.sqrt(rng.random(len(fits))), strict=True)
    ]


def closed_road(rng: np.random.Generator, winding: Winding) -> list[Piece]:
    """A road that comes back to its beginning: a star-shaped polygon with rounded corners."""
    for _ in range(_ATTEMPTS):
        count = int(rng.integers(5, 10))
        step = 2.0 * math.pi / count
        angle = step * (np.arange(count) + rng.uniform(-0.3, 0.3, count))
        radius = rng.uniform(*winding.length_m, count) / (2.0 * math.pi)
        polygon = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        if rng.random() < 0.5:
            polygon = polygon[::-1].copy()
        lengths = np.hypot(*(polygon - np.roll(polygon, 1, axis=0)).T)
        around = np.append(lengths, lengths[0])
        turns = turns_of(polygon, closed=True)
        fits = largest_radii(turns, around, winding.share)
        if fits.min() < winding.radius_m[0] or np.abs(turns).max() > winding.turn_rad[1]:
            continue
        seam = 0.5 * (polygon[0] + polygon[-1])
        radii = _drawn_radii(rng, turns, around, winding)
        return rounded(np.concatenate([[seam], polygon, [seam]]), radii, winding.share)
    raise RoadError(f"no closed road found in {_ATTEMPTS} draws; use another seed")
