"""`Rollout`: one episode, step by step; the loop that collecting and evaluating share."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.drivers import Driver
from avtd3.collect.environment import Environment, ResetResult
from avtd3.store.errors import SpecError, WorldError
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Step


class Rollout:
    """One episode in an environment.

    Args:
        environment: Where it happens; reset here.
        seed: The episode's seed.
        index: The episode's number in the plan; scenarios are taken in turn by it.

    Raises:
        SpecError: If the first camera frame does not have the shape in the spec.
    """

    def __init__(self, environment: Environment, seed: int, index: int = 0) -> None:
        self._environment, self.seed = environment, seed
        self.start: ResetResult = environment.reset(seed, index)
        if environment.spec.image is not None:
            image = self.start.observation.image
            check_frame(image, environment.spec.image, environment.name)

    def drive(self, driver: Driver, name: str, rng: np.random.Generator) -> Iterator[Step]:
        """Drive until the episode ends, and yield each step.

        Args:
            driver: The driver; reset here.
            name: The driver's name, for messages.
            rng: The episode's generator.

        Raises:
            WorldError: If the simulator failed or the driver's action is invalid.
        """
        driver.reset(rng)
        environment, observation, count = self._environment, self.start.observation, 0
        while True:
            where = f"episode seed {self.seed}, step {count}"
            action = check_action(driver.act(observation), environment.spec, name, where)
            step = environment.step(action)
            if step.is_last and not step.end_reason:
                reason = "terminated" if step.terminated else "truncated"
                step = dataclasses.replace(step, end_reason=reason)
            yield step
            if step.is_last:
                return
            observation, count = step.observation, count + 1


def check_frame(image: NDArray[np.uint8] | None, expected: ImageSpec, world: str) -> None:
    """Check a world's camera frame against the spec.

    Raises:
        SpecError: If the frame has another shape or dtype.
    """
    found = "none" if image is None else f"{image.dtype} {image.shape}"
    if found != f"uint8 {expected.frame_shape}":
        raise SpecError(
            f"world {world} returned a frame {found}, expected uint8 "
            f"{expected.frame_shape} as in the spec; use another dataset or set the camera's size"
        )


def check_action(
    action: NDArray[np.float32], spec: EpisodeSpec, driver: str, where: str
) -> NDArray[np.float32]:
    """Check that an action is finite, within its bounds and of the right length.

    Args:
        action: What a driver returned.
        spec: Expected length and bounds.
        driver: The driver's name, for the message.
        where: Which episode and step, for the message.

    Returns:
        The action as float32 (A,).

    Raises:
        WorldError: If the action cannot be applied.
    """
    checked = np.asarray(action, np.float32)
    low, high = spec.action_low, spec.action_high
    is_valid = checked.shape == (len(low),) and all(map(_is_between, checked.tolist(), low, high))
    if not is_valid:  # NaN is not within bounds either
        ranges = ", ".join(f"[{a:g}, {b:g}]" for a, b in zip(low, high, strict=True))
        raise WorldError(
            f"driver {driver} returned {checked.tolist()} in {where}, expected {len(low)} finite "
            f"numbers in {ranges}; remove the policy that does this, or choose another driver"
        )
    return checked


def _is_between(value: float, low: float, high: float) -> bool:
    return low <= value <= high
