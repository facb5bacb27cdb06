"""One episode, step by step: the loop that collecting and evaluating share."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.drivers import Driver, check_action
from avtd3.collect.observation import FrameStack, Observation
from avtd3.collect.task import DrivingTask, TaskStep
from avtd3.collect.world import Scenario, World, WorldFrame, WorldStart
from avtd3.store.spec import EpisodeSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """One action and what came of it."""

    action: NDArray[np.float32]
    """float32 (A,), as applied."""
    frame: WorldFrame
    """The world's answer."""
    step: TaskStep
    """The task's judgement."""


class Rollout:
    """An episode under way.

    Args:
        world: The simulator.
        task: The task; it is begun here.
        spec: Spec of the data, for the length of the stack and of the action.
        scenario: The setting.
        seed: The episode's seed; the driver's generator is derived from it.
    """

    def __init__(
        self, world: World, task: DrivingTask, spec: EpisodeSpec, scenario: Scenario, seed: int
    ) -> None:
        self._world, self._task, self._spec, self.seed = world, task, spec, seed
        self.start: WorldStart = world.reset(scenario, seed)
        self.vector = task.begin(self.start, scenario)
        self._stack = FrameStack(spec.image.stack if spec.image else 1)
        self._stack.begin(self.start.frame.image)

    def drive(self, driver: Driver, name: str, rng: np.random.Generator) -> Iterator[Transition]:
        """Let a driver drive until the episode ends, one transition at a time.

        Args:
            driver: Who drives.
            name: The driver's name, for messages.
            rng: The episode's generator.

        Raises:
            WorldError: The simulator failed, or the driver's action cannot be applied.
        """
        driver.begin(rng, self._task)
        frame, vector, count = self.start.frame, self.vector, 0
        while True:
            seen = Observation(vector, self._stack)
            action = driver.act(seen, frame, self._task)
            where = f"episode seed {self.seed}, step {count}"
            action = check_action(action, self._spec.action_size, name, where)
            frame = self._world.step(action)
            step = self._task.advance(frame)
            self._stack.push(frame.image)
            yield Transition(action, frame, step)
            if step.terminated or step.truncated:
                return
            vector, count = step.vector, count + 1
