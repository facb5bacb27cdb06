"""Procedural road networks: a kind and a seed in, OpenDRIVE text out.

The text is ordinary OpenDRIVE: carla.Map takes it, and a CARLA server through
`generate_opendrive_world`. Roads are lines, arcs and clothoids of varied radius, with lane
widths, shoulders and markings that vary with the seed.
"""

import math
from collections.abc import Callable

import numpy as np

from avtd3.collect.maps.builder import NetworkBuilder, Profile
from avtd3.collect.maps.layout import Piece, Winding, closed_road, winding_road
from avtd3.collect.maps.town import add_town
from avtd3.store.errors import ConfigError

_COUNTRY = Winding(
    length_m=(1000.0, 1800.0),
    edge_m=(70.0, 180.0),
    turn_rad=(math.radians(10.0), math.radians(105.0)),
    radius_m=(25.0, 260.0),
)
_LOOP = Winding(
    length_m=(560.0, 1260.0),
    edge_m=(60.0, 400.0),
    turn_rad=(0.0, math.radians(115.0)),
    radius_m=(20.0, 200.0),
)
_MOTORWAY = Winding(
    length_m=(1500.0, 2000.0),
    edge_m=(300.0, 520.0),
    turn_rad=(math.radians(3.0), math.radians(32.0)),
    radius_m=(350.0, 1500.0),
)


def generate_network(kind: str, seed: int) -> str:
    """Make up a road network.

    Args:
        kind: One of `NETWORK_KINDS`: ``country`` is one winding road between two dead ends,
            ``loop`` a closed one, ``town`` streets with T-junctions and crossings and no dead
            end, ``motorway`` two or three lanes a side on gentle curves between dead ends.
        seed: Any number from 0; the same kind and seed give the same bytes.

    Returns:
        OpenDRIVE text.

    Raises:
        ConfigError: The kind is unknown, or the seed negative.
    """
    if kind not in _MAKERS:
        raise ConfigError(f"network kind is {kind!r}, expected one of {', '.join(NETWORK_KINDS)}")
    if seed < 0:
        raise ConfigError(f"network seed is {seed}, expected at least 0")
    rng = np.random.default_rng([NETWORK_KINDS.index(kind), seed])
    builder = NetworkBuilder(f"{kind}-{seed:06d}")
    _MAKERS[kind](builder, rng)
    return builder.text()


def _country(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    pieces = winding_road(rng, _COUNTRY)
    builder.add_road(pieces, _two_lanes(rng))


def _loop(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    pieces = closed_road(rng, _LOOP)
    cut = _middle_line(pieces)
    profile = _two_lanes(rng)
    first = builder.add_road(pieces[:cut], profile)
    second = builder.add_road(pieces[cut:], profile)
    builder.join(first, second)
    builder.join(second, first)


def _motorway(builder: NetworkBuilder, rng: np.random.Generator) -> None:
    pieces = winding_road(rng, _MOTORWAY)
    profile = Profile(
        lane_width_m=round(rng.uniform(3.5, 3.75), 2),
        lanes=int(rng.integers(2, 4)),
        centre_marks=("solid_solid",),
        shoulder_m=round(rng.uniform(1.5, 3.0), 2),
    )
    builder.add_road(pieces, profile)


def _middle_line(pieces: list[Piece]) -> int:
    """Number of the straight piece nearest to the middle of a list."""
    lines = [n for n, piece in enumerate(pieces) if n and not piece.curvature_start]
    straight = [n for n in lines if not pieces[n].curvature_end]
    return min(straight, key=lambda n: abs(n - len(pieces) // 2))


def _two_lanes(rng: np.random.Generator) -> Profile:
    return Profile(
        lane_width_m=round(rng.uniform(3.0, 3.75), 2),
        centre_marks=tuple(rng.permutation(["broken", "solid", "solid_solid"]).tolist()),
        mark_length_m=float(rng.uniform(150.0, 400.0)),
        edge_mark=str(rng.choice(["solid", "solid", "broken"])),
        shoulder_m=round(rng.uniform(0.4, 1.6), 2) if rng.random() < 0.7 else 0.0,
    )


_MAKERS: dict[str, Callable[[NetworkBuilder, np.random.Generator], None]] = {
    "country": _country,
    "loop": _loop,
    "town": add_town,
    "motorway": _motorway,
}
NETWORK_KINDS: tuple[str, ...] = tuple(_MAKERS)
"""Kinds of network that `generate_network` makes."""
