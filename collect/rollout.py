"""One episode, step by step: the loop that collecting and evaluating share."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.arena import Arena, Driver, Opening, Step
from avtd3.collect.drivers import check_action
from avtd3.collect.observation import FrameStack, Observation


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """One action and what came of it."""

    action: NDArray[np.float32]
    """float32 (A,), as applied."""
    step: Step
    """The arena's answer."""


class Rollout:
    """An episode under way.

    Args:
        arena: Where it happens; the episode is begun here.
        seed: The episode's seed; the driver's generator is derived from it.
    """

    def __init__(self, arena: Arena, seed: int) -> None:
        self._arena, self.seed = arena, seed
        self.start: Opening = arena.begin(seed)

    def drive(self, driver: Driver, name: str, rng: np.random.Generator) -> Iterator[Transition]:
        """Let a driver drive until the episode ends, one transition at a time.

        Args:
            driver: Who drives.
            name: The driver's name, for messages.
            rng: The episode's generator.

        Raises:
            WorldError: The simulator failed, or the driver's action cannot be applied.
        """
        driver.begin(rng)
        arena, spec, count = self._arena, self._arena.spec, 0
        vector, stack = self.start.vector, FrameStack(spec.image.stack if spec.image else 1)
        if self.start.image is not None:
            stack.begin(self.start.image)
        while True:
            action = driver.act(Observation(vector, stack if spec.image else None))
            where = f"episode seed {self.seed}, step {count}"
            action = check_action(action, spec, name, where)
            step = arena.step(action)
            if step.image is not None:
                stack.push(step.image)
            yield Transition(action, step)
            if step.terminated or step.truncated:
                return
            vector, count = step.vector, count + 1
