"""Drivers: what turns an observation into an action, and the noise on top of it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import CheckpointError, ConfigError
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation
from avtd3.store.step_labels import StepLabels

if TYPE_CHECKING:
    from avtd3.learn.policy import Policy, PolicyActor


_POLICY_FAULTS = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What the weights of a policy may make torch and numpy raise."""


class Driver(Protocol):
    """Something that drives: a policy, an expert, or a random number generator.

    Example:
        >>> class Coast:
        ...     def reset(self, rng: np.random.Generator) -> None: ...
        ...     def act(self, observation: Observation) -> NDArray[np.float32]:
        ...         return np.zeros(2, np.float32)
        >>> driver: Driver = Coast()
        >>> driver.act(Observation(vector=np.ones(3, np.float32)))
        array([0., 0.], dtype=float32)
    """

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode; take all random numbers from the generator."""
        ...

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the next action, float32 (A,) within the spec's bounds.

        Args:
            observation: The newest one; called once for each observation of the episode.
        """
        ...


class OrnsteinUhlenbeckNoise:
    """Noise with a given standard deviation and correlation time; independent for time 0."""

    def __init__(self, sigma: NDArray[np.float64], time_s: float, period_s: float) -> None:
        self._decay = math.exp(-period_s / time_s) if time_s > 0.0 else 0.0
        self._scale = sigma * math.sqrt(1.0 - self._decay**2)
        self._value = np.zeros_like(sigma)
        self._rng = np.random.default_rng(0)

    def reset(self, rng: np.random.Generator) -> None:
        """Start at 0, and take random numbers from a generator."""
        self._rng, self._value = rng, np.zeros_like(self._scale)

    def next(self) -> NDArray[np.float64]:
        """Return the next value, float64 (A,)."""
        normal = self._rng.standard_normal(self._scale.size)
        self._value = self._decay * self._value + self._scale * normal
        return self._value


class WanderingDriver:
    """A random driver for cars: smooth random steering, and throttle most of the time.

    White noise would average out in the car's inertia, and the car would stand still.
    """

    _CENTRE = np.array((0.0, 0.35))
    _SIGMA = np.array((0.25, 0.4))
    _TIME_S = 0.8

    def __init__(self, period_s: float) -> None:
        self._noise = OrnsteinUhlenbeckNoise(self._SIGMA, self._TIME_S, period_s)

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self._noise.reset(rng)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the next random action, float32 (2,); the observation is ignored."""
        return np.clip(self._CENTRE + self._noise.next(), -1.0, 1.0).astype(np.float32)


class UniformDriver:
    """A random driver for any environment: independent actions, uniform between the bounds."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self._low, self._high = action_bounds(spec)
        self._rng = np.random.default_rng(0)

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self._rng = rng

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the next random action, float32 (A,); the observation is ignored."""
        action = self._rng.uniform(self._low, self._high).astype(np.float32)
        return np.clip(action, self._low, self._high)  # rounding may exceed a bound


class PolicyDriver:
    """A learned policy, which stacks the camera frames itself; it is set between episodes.

    `spec` is that of the observations; None for the policy's own.
    """

    def __init__(self, policy: "Policy | None" = None, spec: EpisodeSpec | None = None) -> None:
        self.policy, self._spec = policy, spec
        self._actor: PolicyActor | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode with the current policy."""
        from avtd3.learn.policy import PolicyActor

        assert self.policy is not None, "the policy is set before the episode"
        self._actor = PolicyActor(self.policy, self._spec)

    @property
    def steps_per_decision(self) -> int:
        """Steps for which the policy was trained to hold its actions."""
        from avtd3.learn.policy import fit_spec

        assert self.policy is not None, "the policy is set before the episode"
        fit = None if self._spec is None else fit_spec(self.policy.spec, self._spec)
        return 1 if fit is None else fit.steps

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the policy's action, float32 (A,)."""
        assert self._actor is not None, "reset() comes first"
        assert self.policy is not None
        try:
            action = self._actor.act(observation)
        except _POLICY_FAULTS as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            if np.isfinite(action).all():
                return action
            reason = f"it returned {action}, expected finite numbers"
        raise CheckpointError(f"policy {self.policy.version} cannot act: {reason}")


class NoisyDriver:
    """Any driver with noise on every action, clipped to the bounds or to a policy's limit."""

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
        self._low, self._high = action_bounds(spec)
        self._half = half = 0.5 * (self._high.astype(np.float64) - self._low)
        self._noise = OrnsteinUhlenbeckNoise(np.asarray(sigma) * half, time_s, period_s)

    @property
    def expert_drove(self) -> bool:
        """Whether an expert decided on the last action, before the noise."""
        return is_expert_driving(self._driver)

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self._driver.reset(rng)
        self._noise.reset(rng)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the driver's action plus the noise, float32 (A,)."""
        action = self._driver.act(observation) + self._noise.next()
        policy = self._driver.policy if isinstance(self._driver, PolicyDriver) else None
        limit = 1.0 if policy is None else policy.action_limit
        margin = ((1.0 - limit) * self._half).astype(np.float32)
        action = action.astype(np.float32)
        return np.clip(action, self._low + margin, self._high - margin)


class HeldDriver:
    """Any driver, which decides once in several steps and holds its action in between.

    A policy that was trained for several control periods per decision holds its actions for these.
    """

    def __init__(self, driver: Driver, steps: int, policy: PolicyDriver | None = None) -> None:
        self._driver, self._wanted, self._policy = driver, steps, policy

    @property
    def expert_drove(self) -> bool:
        """Whether an expert decided on the last action."""
        return is_expert_driving(self._driver)

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode; raise ConfigError if the policy holds actions for another time."""
        self._driver.reset(rng)
        trained = self._wanted if self._policy is None else self._policy.steps_per_decision
        if self._wanted not in (1, trained):
            raise ConfigError(
                f"hold_actions is {self._wanted}, but the policy was trained for decisions of "
                f"{trained} control periods; omit hold_actions: policies hold their actions as "
                "they were trained"
            )
        self._count, self._steps = 0, trained

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the action of the last decision, float32 (A,)."""
        if self._count % self._steps == 0:
            self._held = self._driver.act(observation)
        self._count += 1
        return self._held


class LabelledDriver:
    """Any driver, and in every step what an expert would have done."""

    def __init__(self, driver: Driver, expert: Driver) -> None:
        self._driver, self._expert = driver, expert

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode; the expert takes no numbers from the driver's generator."""
        self._driver.reset(rng)
        self._expert.reset(np.random.default_rng(0))
        self._labels: list[NDArray[np.float32]] = []
        self._drove: list[bool] = []

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return the driver's action, and record the expert's."""
        self._labels.append(self._expert.act(observation))
        action = self._driver.act(observation)
        self._drove.append(is_expert_driving(self._driver))
        return action

    def labels(self, spec: EpisodeSpec) -> StepLabels:
        """Return what the expert would have done in the steps so far, and who drove."""
        low, high = action_bounds(spec)
        action = np.array(self._labels, np.float32).reshape(-1, spec.action_size)
        is_possible = ((action >= low) & (action <= high)).all(axis=1, keepdims=True)
        return StepLabels(
            expert_action=np.where(is_possible, action, np.float32(np.nan)),
            expert_drove=np.array(self._drove, np.bool_),
        )


def is_expert_driving(driver: Driver) -> bool:
    """Return whether a driver is an expert, or an expert decided on its last action."""
    return bool(getattr(driver, "expert_drove", False))


def action_bounds(spec: EpisodeSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the smallest and the largest value of each action, each float32 (A,)."""
    return np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
