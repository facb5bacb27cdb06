"""`Mixture`: which driver drives which episode, and `DriverPool`, which holds those drivers."""

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from avtd3.collect.drivers import Driver, HeldDriver, NoisyDriver, PolicyDriver
from avtd3.collect.environment import Environment
from avtd3.store.errors import ConfigError
from avtd3.store.spec import EpisodeSpec

if TYPE_CHECKING:
    from avtd3.learn.policy import Policy
    from avtd3.learn.policy_store import PolicyStore

TAKEOVER = "takeover"
BASE_DRIVERS = ("expert", "random", "policy", TAKEOVER)
GRAMMAR = "[SHARE:]DRIVER[+noise[=SIGMA[/SIGMA]]|+gaussian[=SIGMA[/SIGMA]]],... with DRIVER one of "
GRAMMAR += ", ".join(BASE_DRIVERS)
DEFAULT_SIGMA = 0.2
_DRIVER = re.compile(r"(?P<base>[a-z]+)(?:\+(?P<noise>noise|gaussian)(?:=(?P<sigmas>[0-9./]+))?)?")
_NOISE_TIME_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DriverSpec:
    """One driver of a mixture."""

    share: float
    """Share of the episodes, in (0, 1]."""
    base: str
    noise: str
    """``noise`` (correlated over 0.5 s), ``gaussian`` (independent), or empty for none."""
    sigmas: tuple[float, ...] = ()
    """Standard deviation of the noise, in half ranges of the actions: one for all, or one for each;
    empty without noise."""

    @property
    def sigma(self) -> float:
        """The largest of `sigmas`, recorded with each episode; 0 without noise."""
        return max(self.sigmas, default=0.0)

    @property
    def name(self) -> str:
        """The driver as recorded with each episode: ``expert+noise=0.2``."""
        sigmas = "/".join(f"{sigma:g}" for sigma in self.sigmas)
        return f"{self.base}+{self.noise}={sigmas}" if self.noise else self.base

    @property
    def is_policy(self) -> bool:
        """Whether this is a policy, with or without noise, or with an expert that takes over."""
        return self.base in ("policy", TAKEOVER)

    def build(self, environment: Environment, policy: PolicyDriver, hold: int = 1) -> Driver:
        """Make the driver, which holds each action for so many steps."""
        driver: Driver = policy if self.is_policy else environment.driver(self.base)
        if self.noise:
            driver = self._noisy(driver, environment.spec, hold)
        if self.base == TAKEOVER:
            driver = environment.takeover(driver)
        if hold == 1 and not self.is_policy:
            return driver
        return HeldDriver(driver, hold, policy if self.is_policy else None)

    def _noisy(self, driver: Driver, spec: EpisodeSpec, hold: int) -> Driver:
        if len(self.sigmas) not in (1, spec.action_size):
            raise ConfigError(
                f"driver {self.name} has {len(self.sigmas)} sigmas, expected 1, or "
                f"{spec.action_size} for {', '.join(spec.action_names)}"
            )
        time_s, period_s = _NOISE_TIME_S * (self.noise == "noise"), hold * spec.control_period_s
        return NoisyDriver(driver, self.sigmas, time_s=time_s, period_s=period_s, spec=spec)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Drivers with their shares of the episodes.

    Example:
        >>> Mixture.parse("3:expert+noise,1:random").text
        '0.75:expert+noise=0.2,0.25:random'
    """

    drivers: tuple[DriverSpec, ...]
    """The drivers; their shares sum to 1."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a mixture; see `GRAMMAR`."""
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == 1 and ":" not in parts[0]:
            parts = [f"1:{parts[0]}"]
        drivers = [_parse_part(part, text) for part in parts]
        total = sum(driver.share for driver in drivers)
        return cls(drivers=tuple(dataclasses.replace(d, share=d.share / total) for d in drivers))

    @property
    def text(self) -> str:
        """The mixture in its own grammar, the same for equal mixtures."""
        return ",".join(f"{driver.share:g}:{driver.name}" for driver in self.drivers)

    @property
    def needs_policy(self) -> bool:
        """Whether any of the drivers is a policy."""
        return any(driver.is_policy for driver in self.drivers)

    def exploring(self, sigma: float) -> Self:
        """Return the mixture with Gaussian noise on every policy that has no noise of its own."""
        if sigma == 0.0:
            return self
        drivers = list(self.drivers)
        for place, driver in enumerate(drivers):
            if driver.is_policy and not driver.noise:
                drivers[place] = dataclasses.replace(driver, noise="gaussian", sigmas=(sigma,))
        return dataclasses.replace(self, drivers=tuple(drivers))

    def sample(self, rng: np.random.Generator) -> int:
        """Return the index in `drivers` of an episode's driver, sampled by share."""
        edges = np.cumsum([driver.share for driver in self.drivers])
        return min(int(np.searchsorted(edges, rng.random(), side="right")), len(edges) - 1)


def _parse_part(part: str, text: str) -> DriverSpec:
    share_text, colon, driver = part.partition(":")
    problem = f"driver {text!r}: cannot parse {part!r}; expected {GRAMMAR}"
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


class DriverPool:
    """The drivers of a mixture, made once, and the newest policy for those that are one."""

    def __init__(
        self, mixture: Mixture, environment: Environment, policies: Path | None, hold: int = 1
    ) -> None:
        self._mixture, self._spec = mixture, environment.spec
        self._policy_driver = policy = PolicyDriver(spec=environment.spec)
        self._drivers = [driver.build(environment, policy, hold) for driver in mixture.drivers]
        random = Mixture.parse("random").drivers[0]
        self._random = random.build(environment, policy, hold), random
        self._store = _open_policy_store(policies) if mixture.needs_policy else None
        self._before: Policy | None = None

    def choose(
        self, rng: np.random.Generator, *, use_random: bool = False
    ) -> tuple[Driver, DriverSpec]:
        """Return the driver of an episode, and its entry in the mixture."""
        place = self._mixture.sample(rng)
        if use_random:
            return self._random
        return self._drivers[place], self._mixture.drivers[place]

    def poll(self) -> "Policy | None":
        """Use the newest policy from now on, if it can be used; return None if there is none."""
        assert self._store is not None, "only called when a policy was chosen"
        current = self._policy_driver.policy
        newest = self._store.poll(current, self._spec)
        if newest is not current:
            self._before, self._policy_driver.policy = current, newest
        return newest

    def reject(self, reason: str) -> None:
        """Return to the policy that drove before the one in use, which cannot act."""
        policy = self._policy_driver.policy
        assert self._store is not None
        assert policy is not None
        self._store.reject(policy, reason)
        self._policy_driver.policy, self._before = self._before, None

    @property
    def policy(self) -> "Policy | None":
        """The policy in use, if any."""
        return self._policy_driver.policy

    @property
    def warning(self) -> str:
        """Why the last poll did not take the newest policy, or an empty string."""
        return self._store.warning if self._store else ""


def _open_policy_store(policies: Path | None) -> "PolicyStore":
    if policies is None:
        raise ConfigError(
            "driver policy needs the directory that a learner publishes into; give --policies DIR"
        )
    from avtd3.learn.policy_store import PolicyStore

    return PolicyStore(policies)
