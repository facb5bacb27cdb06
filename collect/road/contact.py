"""What the car meets: bodies that overlap its own, and the vehicle ahead on its route."""

import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.road.traffic import Ego, Traffic

LEAD_WITHIN_M = 60.0
"""How far ahead on the route a vehicle counts."""
_CLEARANCE_M = 0.2
_TOUCH_M = 8.0


def hits_vehicle(ego: Ego, traffic: Traffic, seen: NDArray[np.complex128]) -> bool:
    """Whether the car's body overlaps another vehicle's.

    Args:
        ego: The car.
        traffic: The others.
        seen: complex128 (n,), their centres seen from the car, forward + i right, in metres.
    """
    back = complex(math.cos(ego.yaw_rad), -math.sin(ego.yaw_rad))
    for number in np.flatnonzero(np.abs(seen) < _TOUCH_M).tolist():
        other = complex(traffic.heading[number]) * back
        half = (0.5 * float(traffic.length_m[number]), 0.5 * float(traffic.width_m[number]))
        own = (0.5 * ego.length_m, 0.5 * ego.width_m)
        if rectangles_overlap(complex(seen[number]), other, half, own):
            return True
    return False


def rectangles_overlap(
    at: complex, heading: complex, half: tuple[float, float], own: tuple[float, float]
) -> bool:
    """Whether a rectangle overlaps one that lies at the origin, heading along the real axis.

    Two convex shapes are apart if and only if the direction of one of their sides separates
    them (the separating axis theorem).

    Args:
        at: Centre of the first rectangle.
        heading: Its direction, a unit number.
        half: Half its length and half its width.
        own: Half the length and half the width of the rectangle at the origin.
    """
    cosine, sine = abs(heading.real), abs(heading.imag)
    if abs(at.real) > own[0] + half[0] * cosine + half[1] * sine:
        return False
    if abs(at.imag) > own[1] + half[0] * sine + half[1] * cosine:
        return False
    turned = at * heading.conjugate()
    if abs(turned.real) > half[0] + own[0] * cosine + own[1] * sine:
        return False
    return abs(turned.imag) <= half[1] + own[0] * sine + own[1] * cosine


def lead_on_route(ego: Ego, traffic: Traffic, seen: NDArray[np.complex128]) -> tuple[float, float]:
    """The nearest vehicle in the corridor that the car needs along its route.

    Args:
        ego: The car.
        traffic: The others.
        seen: As in `hits_vehicle`.

    Returns:
        Free metres to it, infinite if there is none within `LEAD_WITHIN_M`, and its speed along
        the route, 0 if there is none.
    """
    near = np.flatnonzero((np.abs(seen) < LEAD_WITHIN_M + 6.0) & (seen.real > -6.0))
    if not near.size:
        return math.inf, 0.0
    route = ego.route
    first = int(np.searchsorted(route.distance_m, ego.route_distance_m))
    stop = int(np.searchsorted(route.distance_m, ego.route_distance_m + LEAD_WITHIN_M + 6.0))
    first = max(min(first, stop - 1), 0)
    points = route.points[first:stop].view(np.complex128)[:, 0]
    offset = traffic.at[near, None] - points  # (n, K)
    nearest = np.argmin(offset.real**2 + offset.imag**2, axis=1)
    way = np.exp(-1j * route.yaw_rad[first + nearest])
    local = offset[np.arange(near.size), nearest] * way
    turn = traffic.heading[near] * way
    cosine, sine = np.abs(turn.real), np.abs(turn.imag)
    length, width = traffic.length_m[near], traffic.width_m[near]
    along = route.distance_m[first + nearest] - ego.route_distance_m + local.real
    beside = 0.5 * (sine * length + cosine * width + ego.width_m) + _CLEARANCE_M
    gap = along - 0.5 * (cosine * length + sine * width + ego.length_m)
    gap[(np.abs(local.imag) > beside) | (along <= 0.0)] = np.inf
    lead = int(np.argmin(gap))
    if gap[lead] > LEAD_WITHIN_M:
        return math.inf, 0.0
    return max(float(gap[lead]), 0.0), float(traffic.speed_mps[near[lead]] * turn[lead].real)
