"""`Environment`: where episodes happen. All that collecting and evaluating know of what simulates.

A driving world with the task on it is one (`avtd3.collect.driving.driving_env`), a Gymnasium
environment is another (`avtd3.collect.gym_env`). The loop, the drivers, the workers and the
evaluation are written against this file alone.
"""

import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.driving.measures import DriveMeasures
from avtd3.collect.driving.observation import Observation
from avtd3.store.events import Event
from avtd3.store.spec import EpisodeSpec

if TYPE_CHECKING:
    from PIL import Image

STOP_REASON = "collector_stop"
"""End reason of an episode that was cut because the collector had to stop."""
FAULT_REASON = "world_error"
"""End reason of an episode that was cut because the simulator failed."""
SUCCESS_REASON = "goal"
"""End reason of an episode that reached its goal."""


@dataclasses.dataclass(frozen=True, slots=True)
class Opening:
    """An episode's first observation, and what is known of the episode."""

    image: NDArray[np.uint8] | None
    """uint8 (C, H, W), or None without a camera."""
    vector: NDArray[np.float32] | None
    """float32 (V,), or None if the spec has none."""
    frame_id: int
    """The simulator's number of this observation."""
    sim_time_s: float
    """Simulated seconds."""
    town: str
    """Where it happens; empty where there is one place only."""
    weather: str
    """In what weather; empty where there is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What came of an action."""

    image: NDArray[np.uint8] | None
    """uint8 (C, H, W), or None without a camera."""
    vector: NDArray[np.float32] | None
    """float32 (V,), or None if the spec has none."""
    frame_id: int
    """The simulator's number of this observation."""
    sim_time_s: float
    """Simulated seconds."""
    reward_terms: NDArray[np.float32]
    """float32 (R,), the terms of the reward as the spec names them."""
    terminated: bool
    """Whether the episode ended for good: no future to bootstrap from."""
    truncated: bool
    """Whether it was cut while it could have gone on."""
    reason: str
    """Why it ended, or an empty string."""


class Driver(Protocol):
    """Turns what is seen into an action."""

    def begin(self, rng: np.random.Generator) -> None:
        """Start an episode; all randomness comes from the generator."""
        ...

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The next action, float32 (A,) within the spec's bounds."""
        ...


class Environment(Protocol):
    """One place in which one episode at a time is driven."""

    spec: EpisodeSpec
    """What a step holds."""
    name: str
    """Name recorded with every episode: ``road``, ``gym:Hopper-v5``."""
    setting: str
    """What a person calls it: ``scenario 0``, ``gym:Hopper-v5``."""

    @property
    def scenario(self) -> int:
        """Number of the running episode's scenario, recorded with it; 0 where there are none."""
        ...

    @property
    def simulator(self) -> str:
        """What simulates, with versions, for the provenance of the data."""
        ...

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know about the running episode, in sentences."""
        ...

    def driver(self, base: str) -> Driver:
        """Make a driver that is at home here: ``expert`` or ``random``.

        Raises:
            ConfigError: There is no such driver here.
        """
        ...

    def begin(self, seed: int, index: int = 0) -> Opening:
        """Begin an episode; the same seed and setting give the same bytes.

        Args:
            seed: The episode's seed.
            index: Its number in the plan, where settings are taken by turns.

        Raises:
            RoadError: A road network cannot be used.
            WorldError: The simulator failed.
        """
        ...

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply an action for one control period.

        Raises:
            WorldError: The simulator failed.
        """
        ...

    def measures(self) -> DriveMeasures | None:
        """How a car was driven in the episode so far; None where nothing is a car."""
        ...

    def events(self) -> tuple[Event, ...]:
        """What happened in the episode so far, by step; empty where that is not recorded."""
        ...

    def picture(self, action: NDArray[np.float32], title: str) -> "Image.Image":
        """The present moment as a picture, after an action that led to it.

        Raises:
            WorldError: The simulator has no picture of itself.
        """
        ...

    def close(self) -> None:
        """Release the simulator; safe to call twice."""
        ...
