"""One episode, step by step: the loop that collecting and evaluating share."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.driving.observation import Observation
from avtd3.collect.environment import Driver, Environment, Opening, Step
from avtd3.store.errors import WorldError
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import FrameStack


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """One action and what came of it."""

    action: NDArray[np.float32]
    """float32 (A,), as applied."""
    step: Step
    """The environment's answer."""


class Rollout:
    """An episode under way.

    Args:
        environment: Where it happens; the episode is begun here.
        seed: The episode's seed; the driver's generator is derived from it.
        index: Its number in the plan; settings are taken by turns.
    """

    def __init__(self, environment: Environment, seed: int, index: int = 0) -> None:
        self._arena, self.seed = environment, seed
        self.start: Opening = environment.begin(seed, index)

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
        environment, spec, count = self._arena, self._arena.spec, 0
        vector, stack = self.start.vector, FrameStack(spec.image.stack if spec.image else 1)
        if self.start.image is not None:
            stack.reset(self.start.image)
        while True:
            action = driver.act(Observation(vector, stack if spec.image else None))
            where = f"episode seed {self.seed}, step {count}"
            action = check_action(action, spec, name, where)
            step = environment.step(action)
            if step.image is not None:
                stack.push(step.image)
            yield Transition(action, step)
            if step.terminated or step.truncated:
                return
            vector, count = step.vector, count + 1


def check_action(
    action: NDArray[np.float32], spec: EpisodeSpec, driver: str, where: str
) -> NDArray[np.float32]:
    """Refuse an action that is not finite, of another length, or out of bounds.

    Args:
        action: What a driver answered.
        spec: Wanted length and bounds.
        driver: Its name, for the message.
        where: Which episode and step, for the message.

    Returns:
        The action as float32 (A,).

    Raises:
        WorldError: The action cannot be applied.
    """
    checked = np.asarray(action, np.float32)
    low, high = spec.action_low, spec.action_high
    is_fit = checked.shape == (len(low),) and all(map(_is_between, checked.tolist(), low, high))
    if not is_fit:  # NaN is not within bounds either
        ranges = ", ".join(f"[{a:g}, {b:g}]" for a, b in zip(low, high, strict=True))
        raise WorldError(
            f"driver {driver} answered {checked.tolist()} in {where}, expected {len(low)} finite "
            f"numbers in {ranges}; remove the policy that does this, or choose another driver"
        )
    return checked


def _is_between(value: float, low: float, high: float) -> bool:
    return low <= value <= high
