"""`Environment`: where episodes happen, one at a time.

Collecting and evaluating use this interface alone. The driving task on a simulator is one
environment (`avtd3.collect.driving.driving_env`), a Gymnasium environment is another
(`avtd3.collect.gym_env`), and users bring their own (`avtd3.collect.custom_world`).
"""

import abc
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.drivers import Driver, UniformDriver
from avtd3.store.episode_table import Attribute
from avtd3.store.errors import ConfigError, WorldError
from avtd3.store.events import Event
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation, Step
from avtd3.store.step_labels import StepLabels
from avtd3.store.world_record import WorldRecord

if TYPE_CHECKING:
    from PIL import Image

FAULT_REASON, POLICY_REASON = "world_error", "policy_error"
"""End reasons of an episode that was cut: the simulator failed, or the policy could not act."""
SUCCESS_REASON = "goal"
"""End reason of an episode that reached its goal."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResetResult:
    """The start of an episode, as `Environment.reset` returns it.

    Example:
        >>> import numpy as np
        >>> ResetResult(observation=Observation(vector=np.zeros(3, np.float32)))
        ResetResult(observation=Observation(vector float32 (3,)), attributes={})
    """

    observation: Observation
    """The first observation."""
    attributes: Mapping[str, Attribute] = dataclasses.field(default_factory=dict)
    """Facts to record with the episode, such as ``town`` and ``weather``."""


class Environment(abc.ABC):
    """One place in which one episode at a time happens.

    Subclass it to bring an environment of your own, see docs/worlds.md. Only `spec`, `reset` and
    `step` have no default.

    Example:
        >>> import numpy as np
        >>> class Counter(Environment):
        ...     spec = EpisodeSpec(vector_names=("count",), action_names=("push",))
        ...     def reset(self, seed, index=0):
        ...         self.count = 0
        ...         return ResetResult(observation=self.observe())
        ...     def step(self, action):
        ...         self.count += 1
        ...         return Step(action=action, reward=float(action[0]),
        ...                     observation=self.observe(), truncated=self.count == 10)
        ...     def observe(self):
        ...         return Observation(vector=np.array([self.count], np.float32))
        >>> Counter().reset(seed=0).observation.vector
        array([0.], dtype=float32)
    """

    spec: EpisodeSpec
    """What an observation, an action and a reward hold."""
    name: str = "environment"
    """Name recorded with every episode: ``road``, ``gym:Hopper-v5``."""

    @property
    def setting(self) -> str:
        """Name for people: ``scenario 0``, ``gym:Hopper-v5``."""
        return self.name

    @property
    def scenario(self) -> int:
        """Number of the current episode's scenario, recorded with it; 0 without scenarios."""
        return 0

    @property
    def scenario_count(self) -> int:
        """Number of scenarios that episodes take in turn."""
        return 1

    @property
    def simulator(self) -> str:
        """Name and versions of the software that simulates, for the provenance of the data."""
        return f"{self.name}, avtd3 {importlib.metadata.version('avtd3')}"

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences to show to the user about the current episode."""
        return ()

    @property
    def has_time_limit(self) -> bool:
        """Whether every episode ends by itself after a number of steps.

        If not, the collector cuts the episode in which it reaches the number of steps to collect.
        """
        return False

    @property
    def legend(self) -> Sequence[tuple[tuple[int, int, int], str]]:
        """Colours of `picture`, red, green and blue in 0..255, and what they mean."""
        return ()

    def driver(self, base: str) -> Driver:
        """Make a driver for this environment.

        Args:
            base: ``expert`` or ``random``. The default makes the random driver only.

        Raises:
            ConfigError: If there is no such driver here.
        """
        if base != "random":
            raise ConfigError(
                f"{self.name} has no driver {base!r}; choose random or policy (--driver)"
            )
        return UniformDriver(self.spec)

    def teacher(self) -> Driver | None:
        """Make the expert that says in every step what it would have done; None, the default.

        It is called once for each observation, also while another driver drives.
        """
        return None

    def takeover(self, policy: Driver) -> Driver:
        """Make a driver that replaces a policy by an expert where the policy leaves its bounds.

        Args:
            policy: Drives within the bounds.

        Raises:
            ConfigError: If there are no such bounds here, which is the default.
        """
        raise ConfigError(
            f"{self.name} has no driver 'takeover', which needs the driving task; choose another "
            "one (--driver)"
        )

    @abc.abstractmethod
    def reset(self, seed: int, index: int = 0) -> ResetResult:
        """Start an episode; the same seed and index give the same bytes.

        Args:
            seed: The episode's seed.
            index: The episode's number in the plan; scenarios are taken in turn by it.

        Raises:
            RoadError: If a road network cannot be used.
            WorldError: If the simulator failed.
        """

    @abc.abstractmethod
    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply an action for one control period.

        Args:
            action: float32 (A,), within the spec's bounds.

        Raises:
            WorldError: If the simulator failed.
        """

    def measures(self) -> Mapping[str, float]:
        """Return measurements of the episode so far, by name; empty by default.

        An environment with a car returns those of `avtd3.collect.driving.driving_env.DriveMeter`.
        """
        return {}

    def events(self) -> tuple[Event, ...]:
        """Return what happened in the episode so far, by step; empty by default."""
        return ()

    def world_record(self) -> WorldRecord | None:
        """Return the state of the world in each observation so far; None, the default, if unknown.

        `avtd3 store render` draws other pictures from it.
        """
        return None

    def labels(self) -> StepLabels | None:
        """Return what else is known of each step so far, such as delays; None by default."""
        return None

    def picture(self, action: NDArray[np.float32], title: str) -> "Image.Image":
        """Draw the present moment for people.

        Args:
            action: float32 (A,), the action that led here.
            title: Who drives, for a caption; empty for none.

        Raises:
            WorldError: If the environment cannot draw itself, which is the default.
        """
        raise WorldError(f"{self.name} draws no picture of itself; run without --gif")

    def close(self) -> None:  # noqa: B027 - most environments hold nothing
        """Release the simulator; safe to call twice."""
