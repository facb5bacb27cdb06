"""The worlds by name, and the environments made of them."""

import importlib.util
from collections.abc import Callable
from typing import Protocol

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.checks import check_number
from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.driving.world import World
from avtd3.collect.environment import Environment
from avtd3.collect.gym_env import GYM, GymConfig, open_gym
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.store.errors import ConfigError, WorldError

__all__ = [
    "WORLDS",
    "CarlaConfig",
    "RoadConfig",
    "WorldFactory",
    "WorldSettings",
    "check_world",
    "count_workers",
    "open_environment",
    "open_world",
]

WORLDS = ("road", "carla")
"""Names of the driving worlds of this version."""
_MAX_WORKERS = 256


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

    @property
    def carla(self) -> CarlaConfig:
        """CARLA servers."""
        ...

    @property
    def workers(self) -> int | None:
        """Processes; None for one, or one for each CARLA server."""
        ...


WorldFactory = Callable[[WorldSettings, int], World]
"""``(settings, worker) -> World`` for the worker of this number, from 0; a function of a module, so
that worker processes can call it."""


def check_world(settings: WorldSettings) -> None:
    """Refuse a world that cannot exist, and a number of workers that cannot be.

    Raises:
        ConfigError: There is no world of this name, or the number is out of bounds.
    """
    name = settings.world
    if name not in WORLDS and not (name.startswith(GYM) and name.removeprefix(GYM).strip()):
        raise ConfigError(
            f"world is {name!r}, expected one of: {', '.join(WORLDS)}, or {GYM}ID with the name of "
            f"a Gymnasium environment, such as {GYM}Hopper-v5"
        )
    if settings.workers is not None:
        check_number("workers", settings.workers, minimum=1, maximum=_MAX_WORKERS)


def count_workers(settings: WorldSettings) -> int:
    """How many processes drive: on CARLA never more than there are servers."""
    if settings.world != "carla":
        return settings.workers or 1
    servers = len(settings.carla.ports)
    return min(settings.workers or servers, servers)


def open_world(settings: WorldSettings, worker: int) -> World:
    """Make a driving world.

    Args:
        settings: Which world, and how.
        worker: Number of the worker that drives there, from 0; each has a CARLA server of its own.

    Raises:
        WorldError: There is no such program as the server's command, or no CARLA client.
    """
    assert settings.world in WORLDS, "settings are checked"
    if settings.world == "road":
        return RoadWorld(settings.road)
    if importlib.util.find_spec("carla") is None:  # looked for only: it may crash a process
        raise WorldError(
            "world carla needs the package carla 0.9.16, which has wheels for Python 3.10 to 3.12 "
            "on x86-64 Linux and Windows; collect on such a machine"
        )
    from avtd3.collect.carla.world import CarlaWorld

    return CarlaWorld(settings.carla, settings.carla.port_of(worker))


def open_environment(
    settings: WorldSettings, factory: WorldFactory, worker: int = 0, *, render: bool = False
) -> Environment:
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
    return DrivingEnvironment(world, settings.task, settings.scenario.resolve(), settings.expert)
