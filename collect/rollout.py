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

MAX_EPISODE_STEPS = 108_000
"""Steps at which any episode is truncated: those of an Atari game (30 min at 60 Hz, Machado et al.
2018). Without this, an environment that never ends would fill the memory."""
LIMIT_REASON = "step_limit"


class Rollout:
    """One episode in an environment."""

    def __init__(self, environment: Environment, seed: int, index: int = 0) -> None:
        self._environment, self.seed = environment, seed
        self.start: ResetResult = environment.reset(seed, index)
        images = self.start.observation.images
        for name, expected in environment.spec.images.items():
            check_frame(images.get(name), expected, environment.name)

    def drive(
        self, driver: Driver, name: str, rng: np.random.Generator, most: int = MAX_EPISODE_STEPS
    ) -> Iterator[Step]:
        """Drive until the episode ends, and yield each step."""
        driver.reset(rng)
        environment, observation = self._environment, self.start.observation
        act, advance, spec = driver.act, environment.step, environment.spec
        for count in range(most):
            action = check_action(act(observation), spec, name, self.seed, count)
            step = advance(action)
            if step.is_last:
                if not step.end_reason:
                    reason = "terminated" if step.terminated else "truncated"
                    step = dataclasses.replace(step, end_reason=reason)
                yield step
                return
            if count == most - 1:
                step = dataclasses.replace(step, truncated=True, end_reason=LIMIT_REASON)
            yield step
            observation = step.observation


def check_frame(image: NDArray[np.uint8] | None, expected: ImageSpec, world: str) -> None:
    """Raise `SpecError` if a world's camera frame has another shape or dtype than in the spec."""
    found = "none" if image is None else f"{image.dtype} {image.shape}"
    if found != f"uint8 {expected.frame_shape}":
        raise SpecError(
            f"world {world} returned a frame {found}, expected uint8 "
            f"{expected.frame_shape} as in the spec; use another dataset or set the camera's size"
        )


def check_action(
    action: NDArray[np.float32], spec: EpisodeSpec, driver: str, seed: int, step: int
) -> NDArray[np.float32]:
    """Return a driver's action as float32 (A,), if it can be applied."""
    checked = np.asarray(action, np.float32)
    low, high = spec.action_low, spec.action_high
    values = checked.tolist()
    if checked.shape != (len(low),) or not all(map(_is_between, values, low, high)):
        ranges = ", ".join(f"[{a:g}, {b:g}]" for a, b in zip(low, high, strict=True))
        raise WorldError(
            f"driver {driver} returned {values} in episode seed {seed}, step {step}, expected "
            f"{len(low)} finite numbers in {ranges}; remove the policy that does this, or choose "
            "another driver"
        )
    return checked


def _is_between(value: float, low: float, high: float) -> bool:
    return low <= value <= high  # NaN is not
