"""The simulators by name."""

import importlib.metadata
from collections.abc import Callable

from avtd3.collect.road.world import RoadConfig, RoadWorld
from avtd3.collect.world import World
from avtd3.store.errors import ConfigError

__all__ = ["WORLDS", "RoadConfig", "WorldFactory", "build_string", "check_world", "open_world"]


WORLDS = ("road",)
"""Names of the simulators of this version."""

WorldFactory = Callable[[str, RoadConfig], World]
"""``(name, road) -> World``; a function of a module, so that worker processes can call it."""


def check_world(name: str) -> None:
    """Refuse a simulator that does not exist.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in WORLDS:
        raise ConfigError(f"world is {name!r}, expected one of: {', '.join(WORLDS)}")


def build_string(world: World) -> str:
    """What simulated, with versions, for the provenance of the data."""
    parts = [world.name, f"avtd3 {importlib.metadata.version('avtd3')}"]
    if isinstance(world, RoadWorld):
        parts.append(f"carla {importlib.metadata.version('carla')}")
    return ", ".join(parts)


def open_world(name: str, road: RoadConfig) -> World:
    """Make a simulator.

    Args:
        name: One of `WORLDS`.
        road: Settings of the embedded world.

    Raises:
        ConfigError: There is none of this name.
    """
    check_world(name)
    return RoadWorld(road)
