"""`Wandering`: noise that drivers add to their actions."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.driving.observation import Observation
from avtd3.collect.environment import Driver, Environment
from avtd3.store.errors import ConfigError
from avtd3.store.spec import EpisodeSpec

if TYPE_CHECKING:
    from avtd3.learn.policy import Policy
    from avtd3.learn.policy_store import PolicyStore


class Wandering:
    """Ornstein-Uhlenbeck noise of a given stationary deviation; independent for time 0.

    Args:
        sigma: Standard deviation of each action's noise, float64 (A,).
        time_s: Correlation time.
        period_s: Seconds between two values.
    """

    def __init__(self, sigma: NDArray[np.float64], time_s: float, period_s: float) -> None:
        self._keep = math.exp(-period_s / time_s) if time_s > 0.0 else 0.0
        self._drive = sigma * math.sqrt(1.0 - self._keep**2)
        self._value = np.zeros_like(sigma)
        self._rng = np.random.default_rng(0)

    def begin(self, rng: np.random.Generator) -> None:
        """Start at 0, and draw from a generator from now on."""
        self._rng, self._value = rng, np.zeros_like(self._drive)

    def next(self) -> NDArray[np.float64]:
        """The next value, float64 (A,)."""
        drawn = self._rng.standard_normal(self._drive.size)
        self._value = self._keep * self._value + self._drive * drawn
        return self._value


BASE_DRIVERS = ("expert", "random", "policy")
"""Drivers that exist without noise."""
GRAMMAR = "[SHARE:]DRIVER[+noise[=SIGMA[/SIGMA]]|+gaussian[=SIGMA[/SIGMA]]],... with DRIVER one of "
GRAMMAR += ", ".join(BASE_DRIVERS)
DEFAULT_SIGMA = 0.2
_DRIVER = re.compile(r"(?P<base>[a-z]+)(?:\+(?P<noise>noise|gaussian)(?:=(?P<sigmas>[0-9./]+))?)?")
_NOISE_TIME_S = 0.5


class WanderingDriver:
    """Wanders: smooth random steering, and a pedal that is on the throttle most of the time.

    Two Ornstein-Uhlenbeck processes with a correlation time of 0.8 s: steering with standard
    deviation 0.25 about 0, the pedal with 0.4 about 0.35. White noise would average out in the
    car's inertia and the car would stand still.

    Args:
        period_s: Simulated seconds per action.
    """

    _CENTRE = np.array((0.0, 0.35))
    _SIGMA = np.array((0.25, 0.4))
    _TIME_S = 0.8

    def __init__(self, period_s: float) -> None:
        self._noise = Wandering(self._SIGMA, self._TIME_S, period_s)

    def begin(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self._noise.begin(rng)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The next action, whatever is seen."""
        return np.clip(self._CENTRE + self._noise.next(), -1.0, 1.0).astype(np.float32)


class UniformDriver:
    """Draws every action anew, evenly between the bounds."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self._low, self._high = bounds(spec)
        self._rng = np.random.default_rng(0)

    def begin(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self._rng = rng

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The next action, whatever is seen."""
        drawn = self._rng.uniform(self._low, self._high).astype(np.float32)
        return np.clip(drawn, self._low, self._high)  # rounding may step over a bound


class PolicyDriver:
    """A learned policy; which one is set between episodes."""

    def __init__(self, policy: "Policy | None" = None) -> None:
        self.policy = policy

    def begin(self, rng: np.random.Generator) -> None:
        """Nothing to prepare: policies have no memory."""
        assert self.policy is not None, "the collector sets the policy before the episode"

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The policy's action."""
        assert self.policy is not None, "the collector sets the policy before the episode"
        return self.policy.act(observation.frames, observation.vector)

    @property
    def action_limit(self) -> float:
        """Share of each half range that the policy keeps to."""
        return 1.0 if self.policy is None else self.policy.action_limit


class NoisyDriver:
    """Any driver with noise on every action, clipped to the bounds, or to a policy's limit.

    Args:
        driver: Who drives.
        sigma: Standard deviation of the noise, in half ranges of each action: one for all, or one
            for each.
        time_s: Correlation time of the noise; 0 for independent noise.
        period_s: Simulated seconds per action.
        spec: Bounds of the actions.
    """

    def __init__(
        self,
        driver: Driver,
        sigma: float | Sequence[float],
        *,
        time_s: float,
        period_s: float,
        spec: EpisodeSpec,
    ) -> None:
        self._driver = driver
        self._low, self._high = bounds(spec)
        self._half = half = 0.5 * (self._high.astype(np.float64) - self._low)
        self._noise = Wandering(np.asarray(sigma) * half, time_s, period_s)

    def begin(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self._driver.begin(rng)
        self._noise.begin(rng)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The driver's action and the noise."""
        action = self._driver.act(observation) + self._noise.next()
        limit = self._driver.action_limit if isinstance(self._driver, PolicyDriver) else 1.0
        held_back = ((1.0 - limit) * self._half).astype(np.float32)
        action = action.astype(np.float32)
        return np.clip(action, self._low + held_back, self._high - held_back)


def bounds(spec: EpisodeSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest value of each action, each float32 (A,)."""
    return np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DriverSpec:
    """One driver of a mixture."""

    share: float
    """Share of the episodes, in (0, 1]."""
    base: str
    """One of `BASE_DRIVERS`."""
    noise: str
    """``noise``, ``gaussian``, or empty."""
    sigmas: tuple[float, ...] = ()
    """Standard deviation of the noise, in half ranges of the actions: one for all, or one for each;
    empty without noise."""

    @property
    def sigma(self) -> float:
        """The largest of them, as recorded with each episode; 0 without noise."""
        return max(self.sigmas, default=0.0)

    @property
    def name(self) -> str:
        """The driver as recorded with each episode: ``expert+noise=0.2``."""
        sigmas = "/".join(f"{sigma:g}" for sigma in self.sigmas)
        return f"{self.base}+{self.noise}={sigmas}" if self.noise else self.base

    def build(self, environment: Environment, policy: PolicyDriver) -> Driver:
        """Make the driver.

        Args:
            environment: Where it drives.
            policy: Holds the policy, for the drivers that are one.

        Raises:
            ConfigError: There is no such driver in this environment, or it has other actions.
        """
        driver: Driver = policy if self.base == "policy" else environment.driver(self.base)
        if not self.noise:
            return driver
        spec = environment.spec
        if len(self.sigmas) not in (1, spec.action_size):
            raise ConfigError(
                f"driver {self.name} has {len(self.sigmas)} sigmas, expected 1, or "
                f"{spec.action_size} for {', '.join(spec.action_names)}"
            )
        time_s = _NOISE_TIME_S if self.noise == "noise" else 0.0
        period_s = spec.control_period_s
        return NoisyDriver(driver, self.sigmas, time_s=time_s, period_s=period_s, spec=spec)


RANDOM = DriverSpec(share=1.0, base="random", noise="")
"""The random driver, alone."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Drivers with their shares of the episodes."""

    drivers: tuple[DriverSpec, ...]
    """The drivers; their shares sum to 1."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a mixture; see the module for the grammar.

        Raises:
            ConfigError: The text does not follow the grammar; names the bad part.
        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == 1 and ":" not in parts[0]:
            parts = [f"1:{parts[0]}"]
        drivers = [_parse_part(part, text) for part in parts]
        total = sum(driver.share for driver in drivers)
        shared = (dataclasses.replace(d, share=d.share / total) for d in drivers)
        return cls(drivers=tuple(shared))

    @property
    def text(self) -> str:
        """The mixture in its own grammar, the same for equal mixtures."""
        return ",".join(f"{driver.share:g}:{driver.name}" for driver in self.drivers)

    @property
    def needs_policy(self) -> bool:
        """Whether any of the drivers is a policy."""
        return any(driver.base == "policy" for driver in self.drivers)

    def exploring(self, sigma: float) -> Self:
        """The mixture with Gaussian noise on every policy that has no noise of its own.

        Args:
            sigma: Standard deviation; 0 leaves the mixture as it is.
        """
        if sigma == 0.0:
            return self
        explored = tuple(
            dataclasses.replace(driver, noise="gaussian", sigmas=(sigma,))
            if driver.base == "policy" and not driver.noise
            else driver
            for driver in self.drivers
        )
        return dataclasses.replace(self, drivers=explored)

    def draw(self, rng: np.random.Generator) -> int:
        """Place in `drivers` of the one that drives an episode."""
        edges = np.cumsum([driver.share for driver in self.drivers])
        return min(int(np.searchsorted(edges, rng.random(), side="right")), len(edges) - 1)


def _parse_part(part: str, text: str) -> DriverSpec:
    share_text, colon, driver = part.partition(":")
    problem = f"driver {text!r}: {part!r} is not understood; expected {GRAMMAR}"
    match = _DRIVER.fullmatch(driver)
    if not colon or match is None or match["base"] not in BASE_DRIVERS:
        raise ConfigError(problem)
    try:
        share = float(share_text)
        given = match["sigmas"] or f"{DEFAULT_SIGMA:g}"
        sigmas = tuple(map(float, given.split("/"))) if match["noise"] else ()
    except ValueError as error:
        raise ConfigError(problem) from error
    if not (math.isfinite(share) and share > 0.0):
        raise ConfigError(f"driver {text!r}: share {share_text!r} of {driver!r} must be above 0")
    if sigmas and not 0.0 < max(sigmas) <= 2.0:
        raise ConfigError(
            f"driver {text!r}: the largest sigma of {driver!r} must be above 0, at most 2"
        )
    return DriverSpec(share=share, base=match["base"], noise=match["noise"] or "", sigmas=sigmas)


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
        environment: Where they drive; policies must observe what its spec says.
        policies: Directory in which policies are published; only needed if one drives.

    Raises:
        ConfigError: The mixture has a policy, and there is no directory; or a driver that is not
            at home in the environment.
    """

    def __init__(self, mixture: Mixture, environment: Environment, policies: Path | None) -> None:
        self._mixture = mixture
        self._spec = environment.spec
        self._policy_driver = PolicyDriver()
        self._drivers = [
            driver.build(environment, self._policy_driver) for driver in mixture.drivers
        ]
        self._random = Choice(environment.driver(RANDOM.base), RANDOM)
        self._directory: PolicyStore | None = None
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


def _open_directory(policies: Path | None) -> "PolicyStore":
    if policies is None:
        raise ConfigError(
            "driver policy needs the directory that a learner publishes into; give --policies DIR"
        )
    from avtd3.learn.policy_store import PolicyStore

    return PolicyStore(policies)
