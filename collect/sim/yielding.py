"""What a vehicle must keep away from: bodies in its corridor, and claims across its path.

Pure functions on arrays over N vehicles and, last, the driven car: N + 1 bodies. Positions are
complex, x + iy in metres; directions are unit complex numbers.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]

SIGHT_M = 54.0
"""How far along its path a vehicle looks."""
SIGHT_STEP_M = 2
"""Metres between the points of a path that are looked at."""
_CLEARANCE_M, _SQUEEZE_M = 0.3, 0.05
_BEHIND_M = -3.0
# Sine of the angle from which two ways cross rather than run along each other.
_CROSSING = 0.3
_STOP_BEFORE_M = 1.5
_HARD_MPS2 = 6.0
_CRAWL_MPS = 3.0
_NEAR_JUNCTION = 15  # points of the sight


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Claims:
    """The ways that everyone is about to take."""

    points: Complex
    """complex128 (N + 1, C)."""
    ways: Complex
    """complex128 (N + 1, C), directions there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """Where everyone is and means to go."""

    at: Complex
    """complex128 (N + 1,), centres."""
    heading: Complex
    """complex128 (N + 1,), directions."""
    speed_mps: Real
    """float64 (N + 1,)."""
    length_m: Real
    """float64 (N + 1,)."""
    width_m: Real
    """float64 (N + 1,)."""
    sight: Complex
    """complex128 (N, K), points along each path from the centre on, `SIGHT_STEP_M` apart."""
    ways: Complex
    """complex128 (N, K), directions there."""
    claims: Claims | None
    """What everyone claims; None if no path crosses a junction within sight."""
    in_junction: NDArray[np.bool_]
    """bool (N, K), whether these points lie in a junction."""
    rank: Real
    """float64 (N + 1,), distinct; the higher one need not give way."""


def find_leads(scene: Scene) -> tuple[Real, Real]:
    """The obstacle that limits each vehicle most.

    Returns:
        Free metres to it, float64 (N,), infinite without one; and its speed along the
        vehicle's path, float64 (N,).
    """
    count = len(scene.sight)
    offset = (scene.at - scene.at[:count, None]) * scene.heading[:count, None].conj()
    near = (offset.real > _BEHIND_M) & (np.abs(offset) < SIGHT_M)
    rows = np.arange(count)
    near[rows, rows] = False
    who, whom = near.nonzero()
    gaps, speeds = np.full(near.shape, np.inf), np.zeros(near.shape)
    gaps[who, whom], speeds[who, whom] = _body_gaps(scene, who, whom)
    nearest = gaps.argmin(axis=1)
    gap, speed = gaps[rows, nearest], speeds[rows, nearest]
    if scene.claims is None:
        return gap, speed
    stop = _box_gaps(scene, gap, speed)
    crossing = scene.in_junction[who, :_NEAR_JUNCTION].any(axis=1)
    crossing &= scene.rank[whom] > scene.rank[who]
    who, whom = who[crossing], whom[crossing]
    if who.size:
        gaps.fill(np.inf)
        gaps[who, whom] = _claim_gaps(scene, scene.claims, who, whom)
        stop = np.minimum(stop, gaps.min(axis=1))
    # Who is too fast to stop, or past the place, drives on.
    stop[stop < scene.speed_mps[:count] ** 2 / (2.0 * _HARD_MPS2)] = np.inf
    return np.minimum(gap, stop), np.where(stop < gap, 0.0, speed)


def _body_gaps(scene: Scene, who: NDArray[np.intp], whom: NDArray[np.intp]) -> tuple[Real, Real]:
    """Gap float64 (Q,) and speed float64 (Q,) along the path of `who` to the body of `whom`."""
    sight = scene.sight[who]  # (Q, K)
    offset = scene.at[whom, None] - sight
    nearest = (offset.real**2 + offset.imag**2).argmin(axis=1)
    rows = np.arange(len(who))
    way = scene.ways[who, nearest]
    local = offset[rows, nearest] * way.conj()
    turn = scene.heading[whom] * way.conj()
    cosine, sine = np.abs(turn.real), np.abs(turn.imag)
    length, width = scene.length_m[whom], scene.width_m[whom]
    half_length = 0.5 * (cosine * length + sine * width)
    half_width = 0.5 * (sine * length + cosine * width)
    along = SIGHT_STEP_M * nearest + local.real
    # Side by side where ways merge, each would wait for the other: who ranks higher squeezes by.
    clear = np.where(scene.rank[who] > scene.rank[whom], _SQUEEZE_M, _CLEARANCE_M)
    beside = half_width + 0.5 * scene.width_m[who] + clear
    blocked = (np.abs(local.imag) < beside) & (along > 0.0)
    gap = np.where(blocked, along - half_length - 0.5 * scene.length_m[who], np.inf)
    return gap, np.maximum(scene.speed_mps[whom] * turn.real, 0.0)


def _claim_gaps(scene: Scene, made: Claims, who: NDArray[np.intp], whom: NDArray[np.intp]) -> Real:
    """Free metres float64 (Q,) before the path of `who` crosses the way that `whom` claims."""
    offset = made.points[whom][:, :, None] - scene.sight[who][:, None, :]  # (Q, C, K)
    turn = made.ways[whom][:, :, None] * scene.ways[who].conj()[:, None, :]
    crossing = (np.abs(turn.imag) > _CROSSING) | (turn.real < 0.0)
    reach = 0.5 * (scene.width_m[who] + scene.width_m[whom]) + 2.0 * _CLEARANCE_M
    apart = offset.real**2 + offset.imag**2
    touches = (apart < (reach * reach)[:, None, None]) & crossing
    conflict = touches.any(axis=1)  # (Q, K)
    gap = SIGHT_STEP_M * np.argmax(conflict, axis=1) - 0.5 * scene.length_m[who] - _STOP_BEFORE_M
    return np.where(np.any(conflict, axis=1), gap, np.inf)


def _box_gaps(scene: Scene, gap_m: Real, lead_mps: Real) -> Real:
    """Free metres float64 (N,) to a junction that the vehicle ahead would not let it leave."""
    length, inside = scene.length_m[: len(gap_m)], scene.in_junction
    tight = (gap_m < SIGHT_M) & (lead_mps < _CRAWL_MPS)
    if not tight.any():
        return np.full(len(gap_m), np.inf)
    begin = inside.argmax(axis=1)
    beyond = ~inside & (np.arange(inside.shape[1]) > begin[:, None])
    end_m = SIGHT_STEP_M * beyond.argmax(axis=1) + 0.5 * length
    full = tight & (gap_m < end_m + _STOP_BEFORE_M) & np.any(beyond, axis=1)
    full &= (begin > 0) & np.any(inside, axis=1)
    return np.where(full, SIGHT_STEP_M * begin - 0.5 * length, np.inf)
