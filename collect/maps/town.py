"""Towns: a jittered grid of streets without dead ends, T-junctions and crossings between them.

Where only two streets meet they are one street with a rounded corner, so that every junction
has three or four arms.
"""

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.builder import Arm, NetworkBuilder, Profile
from avtd3.collect.maps.layout import Piece, largest_radii, rounded, turns_of
from avtd3.store.errors import RoadError

_ATTEMPTS = 200
_SHARE = 0.5
_SHARPEST_RAD = math.radians(62.0)
_RADIUS_M = (12.0, 40.0)

_Streets = dict[int, list[int]]


def add_town(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    """Draw a town and add its roads and junctions."""
    places, streets = _drawn(rng)
    reach = float(rng.uniform(14.0, 18.0))
    profile = Profile(
        lane_width_m=round(rng.uniform(3.0, 3.6), 2),
        centre_marks=(str(rng.choice(["broken", "broken", "solid"])),),
        edge_mark=str(rng.choice(["solid", "none", "broken"])),
    )
    arms: dict[int, list[Arm]] = {node: [] for node, ends in streets.items() if len(ends) > 2}
    for chain in _chains(streets):
        pieces = _street(rng, places[chain], reach)
        road_id = builder.add_road(pieces, profile)
        for node, beyond, at_end in (
            (chain[0], chain[1], False),
            (chain[-1], chain[-2], True),
        ):
            leaving = places[beyond] - places[node]
            angle = math.atan2(leaving[1], leaving[0])
            arms[node].append(Arm(road_id=road_id, at_end=at_end, angle_rad=angle))
    for number, (node, ends) in enumerate(arms.items()):
        centre = (float(places[node][0]), float(places[node][1]))
        builder.add_junction(number + 1, centre, ends, reach, profile.lane_width_m)


def _drawn(rng: np.random.Generator) -> tuple[NDArray[np.float64], _Streets]:
    """Places float64 (N, 2) of the nodes, and the nodes that each is joined to."""
    for _ in range(_ATTEMPTS):
        across, along = int(rng.integers(3, 5)), 3
        spacing = rng.uniform(85.0, 125.0, 2)
        grid = np.stack(np.meshgrid(np.arange(across), np.arange(along)), axis=-1).reshape(-1, 2)
        places = (grid + rng.uniform(-0.1, 0.1, grid.shape)) * spacing
        streets = _grid_streets(across, along)
        _thin_out(rng, streets, int(rng.integers(0, 4)))
        if _is_fit(places, streets):
            return places, streets
    raise RoadError(f"no town found in {_ATTEMPTS} draws; use another seed")


def _grid_streets(across: int, along: int) -> _Streets:
    streets: _Streets = {node: [] for node in range(across * along)}
    for node in streets:
        for beyond, fits in (
            (node + 1, (node + 1) % across != 0),
            (node + across, node + across < across * along),
        ):
            if fits:
                streets[node].append(beyond)
                streets[beyond].append(node)
    return streets


def _thin_out(rng: np.random.Generator, streets: _Streets, count: int) -> None:
    """Take streets away where that leaves no dead end and no island."""
    for _ in range(count):
        start = int(rng.integers(len(streets)))
        end = int(rng.choice(streets[start]))
        if min(len(streets[start]), len(streets[end])) <= 2:
            continue
        streets[start].remove(end)
        streets[end].remove(start)
        if len(_reached(streets, start)) < len(streets):
            streets[start].append(end)
            streets[end].append(start)


def _reached(streets: _Streets, start: int) -> set[int]:
    found, front = {start}, deque([start])
    while front:
        for beyond in streets[front.popleft()]:
            if beyond not in found:
                found.add(beyond)
                front.append(beyond)
    return found


def _is_fit(places: NDArray[np.float64], streets: _Streets) -> bool:
    """Whether no two streets meet too sharply, and no street leads back to its own junction."""
    for node, ends in streets.items():
        leaving = places[ends] - places[node]
        angles = np.sort(np.arctan2(leaving[:, 1], leaving[:, 0]))
        if np.diff(angles, append=angles[0] + 2.0 * math.pi).min() < _SHARPEST_RAD:
            return False
    return all(chain[0] != chain[-1] for chain in _chains(streets))


def _chains(streets: _Streets) -> list[list[int]]:
    """Streets from junction to junction, through the nodes where only two ends meet."""
    found = []
    for node in (node for node, ends in streets.items() if len(ends) > 2):
        for beyond in streets[node]:
            chain = [node, beyond]
            while len(streets[chain[-1]]) == 2:
                before, after = streets[chain[-1]]
                chain.append(after if before == chain[-2] else before)
            # Each street is met from both of its ends; one of them builds it.
            if (chain[0], chain[1]) <= (chain[-1], chain[-2]):
                found.append(chain)
    return found


def _street(rng: np.random.Generator, nodes: NDArray[np.float64], reach_m: float) -> list[Piece]:
    """The street between two junctions, cut short of both, with its corners rounded."""
    line = nodes.copy()
    for end, beyond in ((0, 1), (-1, -2)):
        leaving = nodes[beyond] - nodes[end]
        line[end] = nodes[end] + reach_m * leaving / math.hypot(*leaving)
    lengths = np.hypot(*np.diff(line, axis=0).T)
    radii = [
        min(float(fit), float(rng.uniform(*_RADIUS_M)))
        for fit in largest_radii(turns_of(line), lengths, _SHARE)
    ]
    return rounded(line, radii, _SHARE)
