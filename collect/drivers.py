"""Who drives: the expert, a random driver, a policy, noise over any of them, and mixtures.

The grammar, as in ``--driver 0.6:expert,0.3:expert+noise=0.3,0.1:random``::

    mixture = driver | share ":" driver { "," share ":" driver }
    driver  = ( "expert" | "random" | "policy" ) [ ("+noise" | "+gaussian") [ "=" sigma ] ]

Shares are positive and count relative to their sum; each episode draws one driver by its own
generator. ``+noise`` adds an Ornstein-Uhlenbeck process (it wanders, so the data hold
departures and recoveries), ``+gaussian`` independent noise; ``sigma`` is the standard deviation of
what is added to both actions, 0.2 if not given.
"""

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.expert import Expert, ExpertConfig
from avtd3.collect.observation import Observation
from avtd3.collect.task import DrivingTask
from avtd3.collect.world import WorldFrame
from avtd3.store.errors import ConfigError, WorldError

if TYPE_CHECKING:
    from avtd3.learn.policy import Policy

BASE_DRIVERS = ("expert", "random", "policy")
"""Drivers that exist without noise."""
GRAMMAR = "[SHARE:]DRIVER[+noise[=SIGMA]|+gaussian[=SIGMA]],... with DRIVER one of " + ", ".join(
    BASE_DRIVERS
)
DEFAULT_SIGMA = 0.2
_DRIVER = re.compile(r"(?P<base>[a-z]+)(?:\+(?P<noise>noise|gaussian)(?:=(?P<sigma>[0-9.]+))?)?")
_NOISE_TIME_S = 0.5


class Driver(Protocol):
    """Turns what is seen into an action."""

    def begin(self, rng: np.random.Generator, task: DrivingTask) -> None:
        """Start an episode; all randomness comes from the generator."""
        ...

    def act(
        self, observation: Observation, frame: WorldFrame, task: DrivingTask
    ) -> NDArray[np.float32]:
        """The next action, float32 (2,) in [-1, 1]."""
        ...


class RandomDriver:
    """Wanders: smooth random steering, and a pedal that is on the throttle most of the time.

    Two Ornstein-Uhlenbeck processes with a correlation time of 0.8 s: steering with standard
    deviation 0.25 about 0, the pedal with 0.4 about 0.35. White noise would average out in the
    car's inertia and the car would stand still.
    """

    _CENTRE = np.array((0.0, 0.35))
    _SIGMA = np.array((0.25, 0.4))
    _TIME_S = 0.8

    def __init__(self, period_s: float) -> None:
        self._noise = _Wandering(self._SIGMA, self._TIME_S, period_s)

    def begin(self, rng: np.random.Generator, task: DrivingTask) -> None:
        """Start an episode."""
        self._noise.begin(rng)

    def act(
        self, observation: Observation, frame: WorldFrame, task: DrivingTask
    ) -> NDArray[np.float32]:
        """The next action, whatever is seen."""
        return np.clip(self._CENTRE + self._noise.next(), -1.0, 1.0).astype(np.float32)


class PolicyDriver:
    """A learned policy; which one is set between episodes."""

    def __init__(self, policy: "Policy | None" = None) -> None:
        self.policy = policy

    def begin(self, rng: np.random.Generator, task: DrivingTask) -> None:
        """Nothing to prepare: policies have no memory."""
        assert self.policy is not None, "the collector sets the policy before the episode"

    def act(
        self, observation: Observation, frame: WorldFrame, task: DrivingTask
    ) -> NDArray[np.float32]:
        """The policy's action."""
        assert self.policy is not None, "the collector sets the policy before the episode"
        return self.policy.act(observation.frames, observation.vector)


class NoisyDriver:
    """Any driver with noise on both actions, clipped to [-1, 1]."""

    def __init__(self, driver: Driver, sigma: float, *, time_s: float, period_s: float) -> None:
        self._driver = driver
        self._noise = _Wandering(np.full(2, sigma), time_s, period_s)

    def begin(self, rng: np.random.Generator, task: DrivingTask) -> None:
        """Start an episode."""
        self._driver.begin(rng, task)
        self._noise.begin(rng)

    def act(
        self, observation: Observation, frame: WorldFrame, task: DrivingTask
    ) -> NDArray[np.float32]:
        """The driver's action and the noise."""
        action = self._driver.act(observation, frame, task) + self._noise.next()
        return np.clip(action, -1.0, 1.0).astype(np.float32)


class _Wandering:
    """Ornstein-Uhlenbeck noise of a given stationary deviation; independent for time 0."""

    def __init__(self, sigma: NDArray[np.float64], time_s: float, period_s: float) -> None:
        self._keep = math.exp(-period_s / time_s) if time_s > 0.0 else 0.0
        self._drive = sigma * math.sqrt(1.0 - self._keep**2)
        self._value = np.zeros(2)
        self._rng = np.random.default_rng(0)

    def begin(self, rng: np.random.Generator) -> None:
        self._rng, self._value = rng, np.zeros(2)

    def next(self) -> NDArray[np.float64]:
        self._value = self._keep * self._value + self._drive * self._rng.standard_normal(2)
        return self._value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DriverSpec:
    """One driver of a mixture."""

    share: float
    """Share of the episodes, in (0, 1]."""
    base: str
    """One of `BASE_DRIVERS`."""
    noise: str
    """``noise``, ``gaussian``, or empty."""
    sigma: float
    """Standard deviation of the noise; 0 without noise."""

    @property
    def name(self) -> str:
        """The driver as recorded with each episode: ``expert+noise=0.2``."""
        return f"{self.base}+{self.noise}={self.sigma:g}" if self.noise else self.base

    def build(self, expert: ExpertConfig, policy: PolicyDriver, period_s: float) -> Driver:
        """Make the driver.

        Args:
            expert: How the expert drives.
            policy: Holds the policy, for the drivers that are one.
            period_s: Simulated seconds per action.
        """
        driver: Driver
        if self.base == "expert":
            driver = Expert(expert)
        elif self.base == "random":
            driver = RandomDriver(period_s)
        else:
            driver = policy
        if not self.noise:
            return driver
        time_s = _NOISE_TIME_S if self.noise == "noise" else 0.0
        return NoisyDriver(driver, self.sigma, time_s=time_s, period_s=period_s)


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
            dataclasses.replace(driver, noise="gaussian", sigma=sigma)
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
        sigma = float(match["sigma"] or DEFAULT_SIGMA) if match["noise"] else 0.0
    except ValueError as error:
        raise ConfigError(problem) from error
    if not (math.isfinite(share) and share > 0.0):
        raise ConfigError(f"driver {text!r}: share {share_text!r} of {driver!r} must be above 0")
    if match["noise"] and not 0.0 < sigma <= 2.0:
        raise ConfigError(
            f"driver {text!r}: sigma {sigma:g} of {driver!r} must be above 0, at most 2"
        )
    return DriverSpec(share=share, base=match["base"], noise=match["noise"] or "", sigma=sigma)


def check_action(
    action: NDArray[np.float32], size: int, driver: str, where: str
) -> NDArray[np.float32]:
    """Refuse an action that is not finite, of another length, or out of bounds.

    Args:
        action: What a driver answered.
        size: Wanted length.
        driver: Its name, for the message.
        where: Which episode and step, for the message.

    Returns:
        The action as float32 (size,).

    Raises:
        WorldError: The action cannot be applied.
    """
    checked = np.asarray(action, np.float32)
    is_fit = checked.shape == (size,) and all(-1.0 <= v <= 1.0 for v in checked.tolist())
    if not is_fit:  # NaN is not within bounds either
        raise WorldError(
            f"driver {driver} answered {checked.tolist()} in {where}, expected {size} finite "
            "numbers in [-1, 1]; remove the policy that does this, or choose another driver"
        )
    return checked
