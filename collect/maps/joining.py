"""Stretches of lanes laid end to end as one `Route`, at one point per metre."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.network import Lane, RoadNetwork
from avtd3.collect.maps.route import Route, resample

_OVERLAP_M = 0.3  # a join closer than this is a join, not a lane beside
_CHANGE_PER_M = 8.0  # metres before and after a join, per metre that the lanes lie apart
_NARROWEST_M = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a lane, driven in the lane's direction."""

    lane: int
    """Index into `RoadNetwork.lanes`."""
    from_m: float
    """Metres along the lane where it begins."""
    to_m: float = math.inf
    """Metres along the lane where it ends; infinite for the lane's own end."""


def join(network: RoadNetwork, pieces: Sequence[Piece], length_m: float = math.inf) -> Route:
    """One polyline over the pieces, cut to a length.

    Args:
        network: Whose lanes they are.
        pieces: At least one, in driving order.
        length_m: Where to cut it, in metres from its beginning.
    """
    table = _table(network.lanes[pieces[0].lane], pieces[0])
    for piece in pieces[1:]:
        table = _append(table, _table(network.lanes[piece.lane], piece))
    distance = _distance(table)
    end = min(length_m, float(distance[-1]))
    at = np.concatenate((distance[distance < end], [end]))
    cut = np.stack([np.interp(at, distance, table[:, axis]) for axis in (0, 1)], axis=1)
    even = resample(cut)
    along = np.linspace(0.0, end, len(even))
    # A lane that begins or ends as a wedge is no narrower than a car's way through it.
    width = np.maximum(np.interp(along, distance, table[:, 3]), _NARROWEST_M)
    return Route(points=even, lane_width_m=width)


def _table(lane: Lane, piece: Piece) -> NDArray[np.float64]:
    """Columns x, y, yaw and width of the piece's points, float64 (N, 4)."""
    inner = lane.distance_m[lane.distance_m > piece.from_m + _OVERLAP_M]
    at = np.concatenate(([piece.from_m], inner))
    if piece.to_m < lane.length_m:
        at = np.concatenate((at[at < piece.to_m - _OVERLAP_M], [piece.to_m]))
    columns = (lane.points[:, 0], lane.points[:, 1], lane.yaw_rad, lane.width_m)
    return np.stack([np.interp(at, lane.distance_m, column) for column in columns], axis=1)


def _append(table: NDArray[np.float64], more: NDArray[np.float64]) -> NDArray[np.float64]:
    """Join two lanes; where they lie beside each other, change over on a smooth curve."""
    gap = math.hypot(*(more[0, :2] - table[-1, :2]))
    if gap <= _OVERLAP_M:
        return np.concatenate([table, more[1:] if len(more) > 1 else more])
    room = gap * _CHANGE_PER_M
    before, after = _distance(table), _distance(more)
    # The last stretch before the join and the first behind it give way, at most half of each.
    head = table[before <= max(before[-1] - room, 0.5 * before[-1])]
    tail = more[after >= min(room, 0.5 * after[-1])]
    return np.concatenate([head, _bridge(head[-1], tail[0]), tail])


def _bridge(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """A cubic Hermite curve between two rows, both left out, about a point per metre."""
    chord = math.hypot(*(end[:2] - start[:2]))
    share = np.linspace(0.0, 1.0, max(math.ceil(chord), 1) + 1)[1:-1, None]
    way = [chord * np.array([math.cos(row[2]), math.sin(row[2])]) for row in (start, end)]
    place = (
        (1.0 + 2.0 * share) * (1.0 - share) ** 2 * start[:2]
        + share**2 * (3.0 - 2.0 * share) * end[:2]
        + share * (1.0 - share) ** 2 * way[0]
        - share**2 * (1.0 - share) * way[1]
    )
    return np.concatenate([place, (1.0 - share) * start[2:] + share * end[2:]], axis=1)


def _distance(table: NDArray[np.float64]) -> NDArray[np.float64]:
    step = np.hypot(*np.diff(table[:, :2], axis=0).T)
    return np.concatenate(([0.0], np.cumsum(step)))
