"""What the car meets: bodies that overlap its own, and the vehicle ahead on its route."""

import math
from typing import NamedTuple

import numpy as np

from avtd3.collect.road.traffic import Ego, Traffic

LEAD_WITHIN_M = 60.0
"""How far ahead on the route a vehicle counts."""
_CLEARANCE_M = 0.2
_TOUCH_M = 8.0
_NEAR_M = 80.0


class Nearby(NamedTuple):
    """The vehicles about a car, as seen from it."""

    numbers: list[int]
    """Their places in the traffic's arrays."""
    at: list[complex]
    """Their centres, forward + i right, in metres."""
    heading: list[complex]
    """Their directions, unit numbers; 1 is the car's own."""


def look_around(ego: Ego, traffic: Traffic) -> Nearby:
    """The vehicles that the car may touch, see or follow."""
    back = complex(math.cos(ego.yaw_rad), -math.sin(ego.yaw_rad))
    seen = (traffic.at - complex(ego.x_m, ego.y_m)) * back
    numbers = ((np.abs(seen) < _NEAR_M) & (seen.real > -_TOUCH_M)).nonzero()[0]
    heading = traffic.heading[numbers] * back
    return Nearby(numbers.tolist(), seen[numbers].tolist(), heading.tolist())


def hits_vehicle(ego: Ego, traffic: Traffic, around: Nearby) -> bool:
    """Whether the car's body overlaps another vehicle's."""
    own = (0.5 * ego.length_m, 0.5 * ego.width_m)
    for number, at, heading in zip(*around, strict=True):
        if abs(at) < _TOUCH_M:
            half = (0.5 * traffic.length_m.item(number), 0.5 * traffic.width_m.item(number))
            if rectangles_overlap(at, heading, half, own):
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


def lead_on_route(ego: Ego, traffic: Traffic, around: Nearby) -> tuple[float, float]:
    """The nearest vehicle in the corridor that the car needs along its route.

    Returns:
        Free metres to it, infinite if there is none within `LEAD_WITHIN_M`, and its speed along
        the route, 0 if there is none.
    """
    if not around.numbers:
        return math.inf, 0.0
    course, near = ego.course, np.array(around.numbers)
    first = course.index(ego.course_m)
    stop = course.index(ego.course_m + LEAD_WITHIN_M) + 1
    offset = traffic.at[near, None] - course.points[first:stop]  # (n, K)
    nearest = (offset.real**2 + offset.imag**2).argmin(axis=1)
    way = course.ways[first + nearest].conj()
    local = offset[np.arange(near.size), nearest] * way
    turn = traffic.heading[near] * way
    cosine, sine = np.abs(turn.real), np.abs(turn.imag)
    length, width = traffic.length_m[near], traffic.width_m[near]
    along = course.distance_m[first + nearest] - ego.course_m + local.real
    beside = 0.5 * (sine * length + cosine * width + ego.width_m) + _CLEARANCE_M
    gap = along - 0.5 * (cosine * length + sine * width + ego.length_m)
    gap[(np.abs(local.imag) > beside) | (along <= 0.0)] = np.inf
    lead = int(gap.argmin())
    if gap[lead] > LEAD_WITHIN_M:
        return math.inf, 0.0
    return max(float(gap[lead]), 0.0), float(traffic.speed_mps[near[lead]] * turn[lead].real)
