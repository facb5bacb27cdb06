"""`EnvironmentConfig`: which world to drive in, and its settings; and how to open that world."""

import contextlib
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.checks import check_number, require_carla
from avtd3.collect.custom_world import (
    REFERENCE,
    as_environment,
    installed_worlds,
    open_custom_world,
)
from avtd3.collect.driving.expert import ExpertConfig, TakeoverConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.driving.world import World
from avtd3.collect.environment import Environment
from avtd3.collect.gym_env import GYM, GymConfig, open_gym
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.recovery import RecoveryConfig
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.collect.timing import DelayConfig, TimedEnvironment
from avtd3.store.errors import ConfigError, WorldError, check_integers

WORLDS = ("road", "carla")  # part of avtd3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentConfig:
    """The settings that a collection and an evaluation share: where to drive, and how.

    Example:
        >>> EnvironmentConfig(world="gym:Hopper-v5").world
        'gym:Hopper-v5'
    """

    world: str = "road"
    """Simulator: ``road`` (built in), ``carla``, ``gym:ID`` for a Gymnasium environment, or your
    own: ``module:factory``, or the name of an installed world (docs/worlds.md)."""
    world_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the factory of a world of your own: JSON values."""
    workers: int | None = None
    """Processes; each drives in a world of its own. None: one, or one for each port of CARLA, which
    is also the maximum there. The scores of an evaluation do not depend on it."""
    scenario: ScenarioConfig = dataclasses.field(default_factory=ScenarioConfig)
    """Roads, traffic, weather and route."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    """Observation, reward and episode ends; a policy needs the observation that it was trained
    with."""
    expert: ExpertConfig = dataclasses.field(default_factory=ExpertConfig)
    """How the expert drives."""
    takeover: TakeoverConfig = dataclasses.field(default_factory=TakeoverConfig)
    """Where the driver ``takeover`` lets the expert take over."""
    road: RoadConfig = dataclasses.field(default_factory=RoadConfig)
    """The built-in simulator."""
    gym: GymConfig = dataclasses.field(default_factory=GymConfig)
    """Gymnasium environments."""
    carla: CarlaConfig = dataclasses.field(default_factory=CarlaConfig)
    """CARLA servers."""
    action_repeat: int = 1
    """Steps of the world per decision. Only decisions are stored: their rewards are summed, and the
    control period of the data is so many times that of the world. See docs/timing.md."""
    hold_actions: int = 1
    """Stored steps for which every driver holds its action, so that the data can be seen as
    decisions of that many steps (`learn.replay.action_repeat`). A policy that was trained for such
    decisions holds its actions without it."""
    delay: DelayConfig = dataclasses.field(default_factory=DelayConfig)
    """Delays of the camera and of the actions, which are stored with every step."""
    recovery: RecoveryConfig = dataclasses.field(default_factory=RecoveryConfig)
    """What to do when a simulator is lost."""

    def __post_init__(self) -> None:
        check_integers(self)
        check_number("action_repeat", self.action_repeat, minimum=1, maximum=1000)
        check_number("hold_actions", self.hold_actions, minimum=1, maximum=1000)
        if self.workers is not None:
            check_number("workers", self.workers, minimum=1, maximum=256)
        is_gym = self.world.startswith(GYM)
        is_known = bool(self.world.removeprefix(GYM).strip()) if is_gym else self.world in WORLDS
        if not (is_known or self.is_custom):
            installed = sorted(installed_worlds())
            raise ConfigError(
                f"world is {self.world!r}, expected one of: {', '.join((*WORLDS, *installed))}; or "
                f"{GYM}ID with the name of a Gymnasium environment, such as {GYM}Hopper-v5; or "
                "MODULE:FACTORY for a world of your own (docs/worlds.md)"
            )
        try:
            json.dumps(self.world_options, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"world_options must be JSON values: {error}") from error

    @property
    def is_custom(self) -> bool:
        """Whether the world is a user's: ``module:factory`` or an installed one."""
        if self.world in WORLDS or self.world.startswith(GYM):
            return False
        return bool(REFERENCE.fullmatch(self.world)) or self.world in installed_worlds()

    @property
    def worker_count(self) -> int:
        """Number of worker processes; on CARLA never more than there are servers."""
        if self.world != "carla":
            return self.workers or 1
        servers = len(self.carla.ports)
        return min(self.workers or servers, servers)

    def world_document(self) -> dict[str, Any]:
        """Return the settings of the environment that affect the data, as JSON values."""
        document = dataclasses.asdict(self)
        # Plans from before these settings lack them.
        timing = {n: document[n] for n in ("action_repeat", "hold_actions") if document[n] != 1}
        if self.takeover != TakeoverConfig():
            timing["takeover"] = document["takeover"]
        if not self.delay.is_none:
            timing["delay"] = document["delay"]
        if self.world.startswith(GYM):
            return timing | {name: document[name] for name in ("world", "gym")}
        found = timing | {name: document[name] for name in ("world", "task", "expert")}
        if not self.task.observation.command:
            del found["task"]["observation"]["command"]  # as in plans from before this setting
        found["scenario"] = self.scenario.plan_document()
        if self.world == "carla":
            found["carla"] = self.carla.plan_document()
        elif self.world == "road":
            found["road"] = document["road"]
            if not self.road.streams:
                del found["road"]["streams"]  # as in plans from before this setting
        else:
            found["world_options"] = document["world_options"]
        return found


def use_current_directory(config: EnvironmentConfig) -> None:
    """Make the modules of the current directory importable if the world is a user's.

    The directory comes last in `sys.path`, so it hides no installed package.
    """
    if config.is_custom and (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


WorldFactory = Callable[[EnvironmentConfig, int], World | Environment]
"""``(config, worker) -> world`` for the worker with this number, from 0; a function of a module, so
that worker processes can call it."""


def open_world(config: EnvironmentConfig, worker: int) -> World | Environment:
    """Make the world that a configuration names, unless it is a Gymnasium environment."""
    if config.world not in WORLDS:
        return open_custom_world(config.world, config.world_options, worker)
    require_carla(f"the world {config.world}")
    if config.world == "road":
        return RoadWorld(config.road)
    from avtd3.collect.carla.world import CarlaWorld

    return CarlaWorld(config.carla, config.carla.port_of(worker))


@contextlib.contextmanager
def open_environment(
    config: EnvironmentConfig, factory: WorldFactory, worker: int = 0, *, render: bool = False
) -> Iterator[Environment]:
    """Make the environment that a configuration names, and close it at the end, or warn."""
    if config.world_options and not config.is_custom:  # not in __post_init__: --world comes later
        raise ConfigError(
            f"world_options are {dict(config.world_options)}, expected none for world "
            f"{config.world}: only a world of your own has them"
        )
    made: World | Environment
    if config.world.startswith(GYM):
        made = open_gym(config.world.removeprefix(GYM), config.gym, render=render)
    else:
        made = factory(config, worker)
    try:
        made = as_environment(made, config.task, config.scenario, config.expert, config.takeover)
        if config.action_repeat > 1 or not config.delay.is_none:
            made = TimedEnvironment(made, config.action_repeat, config.delay)
        yield made
    finally:
        try:
            made.close()
        except WorldError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=1)
