"""`DrivingEnvironment`: a driving world with the task on it."""

import importlib.metadata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.drivers import WanderingDriver
from avtd3.collect.driving.events import EventRecorder, Moment
from avtd3.collect.driving.expert import Expert, ExpertConfig
from avtd3.collect.driving.measures import DriveMeasures, DriveMeter
from avtd3.collect.driving.task import DrivingTask, TaskConfig
from avtd3.collect.driving.world import Scenario, World, WorldStart
from avtd3.collect.environment import Driver, Opening, Step
from avtd3.store.events import Event
from avtd3.store.spec import ImageSpec

if TYPE_CHECKING:
    from PIL import Image


class DrivingEnvironment:
    """Follows the route of a scenario on a driving world.

    Args:
        world: The simulator; closed with the environment.
        config: Observation, reward and ends.
        scenarios: The settings that the episodes take by turns, at least one.
        expert: How the expert drives.
    """

    def __init__(
        self,
        world: World,
        config: TaskConfig,
        scenarios: Sequence[Scenario],
        expert: ExpertConfig,
    ) -> None:
        channels, height, width = world.image_shape
        stack = config.observation.stack
        self.world = world
        self.task = DrivingTask(config, world.control_period_s)
        self.spec = self.task.spec(
            ImageSpec(channels=channels, height=height, width=width, stack=stack)
        )
        self.name = world.name
        self.setting = _setting([scenario.number for scenario in scenarios])
        self._scenarios, self._scenario, self._expert = tuple(scenarios), scenarios[0], expert
        self._start: WorldStart | None = None
        self._recorder: EventRecorder | None = None
        self._meter = DriveMeter(world.control_period_s)
        self._steps = 0

    @property
    def simulator(self) -> str:
        """What simulates, with versions."""
        parts = [self.name, f"avtd3 {importlib.metadata.version('avtd3')}"]
        if self.name in ("road", "carla"):
            parts.append(f"carla {importlib.metadata.version('carla')}")
        return ", ".join(parts)

    @property
    def scenario(self) -> int:
        """Number of the running episode's setting."""
        return self._scenario.number

    @property
    def notices(self) -> tuple[str, ...]:
        """What is to be said about the running episode's setting, roads and traffic."""
        return (*self._scenario.remarks, *self.world.notices)

    def driver(self, base: str) -> Driver:
        """The expert, or a random driver that wanders."""
        if base == "expert":
            return Expert(self._expert, self.task)
        return WanderingDriver(self.world.control_period_s)

    def begin(self, seed: int, index: int = 0) -> Opening:
        """Begin an episode, in the setting whose turn it is."""
        self._scenario = self._scenarios[index % len(self._scenarios)]
        start = self.world.reset(self._scenario, seed)
        vector = self.task.begin(start, self._scenario)
        self._start, self._steps = start, 0
        self._meter = DriveMeter(self.world.control_period_s)
        frame = start.frame
        self._recorder = EventRecorder(start.route.length_m, self.task.best_m, frame)
        return Opening(
            frame.image, vector, frame.frame_id, frame.sim_time_s, start.town, start.weather
        )

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply steering, and throttle or brake."""
        frame = self.world.step(action)
        judged = self.task.advance(frame)
        self._meter.watch(judged.facts)
        moment = Moment(
            frame=frame,
            facts=judged.facts,
            reason=judged.reason,
            best_m=self.task.best_m,
            standing_s=self.task.standing_s,
        )
        assert self._recorder is not None, "begin() comes first"
        self._recorder.watch(moment)
        self._steps += 1
        return Step(
            frame.image,
            judged.vector,
            frame.frame_id,
            frame.sim_time_s,
            judged.reward_terms,
            judged.terminated,
            judged.truncated,
            judged.reason,
        )

    def measures(self) -> DriveMeasures:
        """How the running episode was driven so far."""
        return self._meter.measures(self.task.completion)

    def events(self) -> tuple[Event, ...]:
        """What happened in the running episode so far."""
        return () if self._recorder is None else self._recorder.events()

    def picture(self, action: NDArray[np.float32], title: str) -> "Image.Image":
        """The camera's picture beside a map, above a caption."""
        from avtd3.collect.pictures import Scene, draw_scene

        assert self._start is not None, "begin() comes first"
        task, vehicle = self.task, self.task.frame.vehicle
        end = f"   {task.reason}" if task.reason else ""
        where = f"{self._start.town}, {self._start.weather}"
        seconds = (self._steps - 1) * self.world.control_period_s
        return draw_scene(
            Scene(
                frame=task.frame,
                route=task.route,
                action=action,
                surroundings=self.world.surroundings(),
                caption=(
                    f"{title} on {where}   {seconds:4.1f} s   {3.6 * vehicle.speed_mps:4.1f} km/h"
                    f"   {task.lateral_m:+.2f} m{end}"
                ),
            )
        )

    def close(self) -> None:
        """Release the simulator."""
        self.world.close()


def _setting(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"scenario {numbers[0]}"
    named = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"{len(numbers)} scenarios by turns ({named})"
