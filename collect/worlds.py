"""The worlds by name, and the arenas made of them."""

from collections.abc import Callable
from typing import Protocol

from avtd3.collect.arena import Arena
from avtd3.collect.driving import DrivingArena
from avtd3.collect.expert import ExpertConfig
from avtd3.collect.gym_world import GYM, GymConfig, open_gym
from avtd3.collect.road.world import RoadConfig, RoadWorld
from avtd3.collect.scenarios import ScenarioConfig
from avtd3.collect.task import TaskConfig
from avtd3.collect.world import World
from avtd3.store.errors import ConfigError

__all__ = [
    "WORLDS",
    "RoadConfig",
    "WorldFactory",
    "WorldSettings",
    "check_world",
    "open_arena",
    "open_world",
]

WORLDS = ("road",)
"""Names of the driving worlds of this version."""


class WorldSettings(Protocol):
    """What collections and evaluations say about where they happen."""

    @property
    def world(self) -> str:
        """One of `WORLDS`, or ``gym:ID``."""
        ...

    @property
    def scenario(self) -> ScenarioConfig:
        """Roads, traffic, weather and route of a driving world."""
        ...

    @property
    def task(self) -> TaskConfig:
        """Observation, reward and ends on a driving world."""
        ...

    @property
    def expert(self) -> ExpertConfig:
        """How the expert drives on a driving world."""
        ...

    @property
    def road(self) -> RoadConfig:
        """The embedded world."""
        ...

    @property
    def gym(self) -> GymConfig:
        """Gymnasium environments."""
        ...


WorldFactory = Callable[[WorldSettings, int], World]
"""``(settings, worker) -> World`` for the worker of this number, from 0; a function of a module, so
that worker processes can call it."""


def check_world(name: str) -> None:
    """Refuse a world that cannot exist.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in WORLDS and not (name.startswith(GYM) and name.removeprefix(GYM).strip()):
        raise ConfigError(
            f"world is {name!r}, expected one of: {', '.join(WORLDS)}, or {GYM}ID with the name of "
            f"a Gymnasium environment, such as {GYM}Hopper-v5"
        )


def open_world(settings: WorldSettings, worker: int) -> World:
    """Make a driving world.

    Args:
        settings: Which world, and how.
        worker: Number of the worker that drives there, from 0.
    """
    assert settings.world in WORLDS, "settings are checked"
    return RoadWorld(settings.road)


def open_arena(
    settings: WorldSettings, factory: WorldFactory, worker: int = 0, *, render: bool = False
) -> Arena:
    """Make the place that the settings name.

    Args:
        settings: Which world, and how.
        factory: Makes driving worlds.
        worker: Number of the worker that drives there, from 0.
        render: Whether pictures of it will be asked for.

    Raises:
        ConfigError: It cannot be made as wanted.
        WorldError: The simulator does not start.
    """
    if settings.world.startswith(GYM):
        return open_gym(settings.world.removeprefix(GYM), settings.gym, render=render)
    world = factory(settings, worker)
    return DrivingArena(world, settings.task, settings.scenario.resolve(), settings.expert)
