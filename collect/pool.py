"""`DriverPool`: the drivers of a mixture, and the policy that drives next."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avtd3.collect.arena import Arena, Driver
from avtd3.collect.drivers import RANDOM, DriverSpec, Mixture, PolicyDriver
from avtd3.store.errors import ConfigError

if TYPE_CHECKING:
    from avtd3.learn.policy import Policy, PolicyDirectory


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The driver of one episode."""

    driver: Driver
    """Who drives."""
    spec: DriverSpec
    """Its place in the mixture."""

    @property
    def is_policy(self) -> bool:
        """Whether it is a policy, with noise or without."""
        return self.spec.base == "policy"


class DriverPool:
    """The drivers of a mixture, made once, and the newest policy for those that are one.

    Args:
        mixture: The drivers.
        arena: Where they drive; policies must observe what its spec says.
        policies: Directory in which policies are published; only needed if one drives.

    Raises:
        ConfigError: The mixture has a policy, and there is no directory; or a driver that is not
            at home in the arena.
    """

    def __init__(self, mixture: Mixture, arena: Arena, policies: Path | None) -> None:
        self._mixture = mixture
        self._spec = arena.spec
        self._policy_driver = PolicyDriver()
        self._drivers = [driver.build(arena, self._policy_driver) for driver in mixture.drivers]
        self._random = Choice(arena.driver(RANDOM.base), RANDOM)
        self._directory: PolicyDirectory | None = None
        if mixture.needs_policy:
            self._directory = _open_directory(policies)

    def draw(self, rng: np.random.Generator, *, at_random: bool = False) -> Choice:
        """The driver of an episode, by the episode's generator.

        Args:
            rng: The episode's generator.
            at_random: Take the random driver, whatever was drawn.
        """
        place = self._mixture.draw(rng)
        if at_random:
            return self._random
        return Choice(self._drivers[place], self._mixture.drivers[place])

    def poll(self) -> "Policy | None":
        """Take the newest policy, for all episodes from now on; None while there is none.

        A torn newest policy leaves the one that drove so far, see `warning`.

        Raises:
            SpecError: The newest policy observes something else.
        """
        assert self._directory is not None, "only called when a policy was drawn"
        current = self._policy_driver.policy
        self._policy_driver.policy = (
            self._directory.latest(self._spec)
            if current is None
            else self._directory.poll(current, self._spec)
        )
        return self._policy_driver.policy

    @property
    def policy(self) -> "Policy | None":
        """The policy that drives now, if any."""
        return self._policy_driver.policy

    @property
    def warning(self) -> str:
        """Why the newest policy was not taken at the last poll, or an empty string."""
        return self._directory.warning if self._directory else ""

    @property
    def path(self) -> Path | None:
        """Directory that policies come from."""
        return self._directory.path if self._directory else None


def _open_directory(policies: Path | None) -> "PolicyDirectory":
    if policies is None:
        raise ConfigError(
            "driver policy needs the directory that a learner publishes into; give --policies DIR"
        )
    from avtd3.learn.policy import PolicyDirectory

    return PolicyDirectory(policies)
