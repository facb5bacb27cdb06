"""`TimedEnvironment`: another environment with several steps per decision, and with delays.

A real car is seen and driven late: a camera needs time to deliver a picture, and a command to take
effect. `DelayConfig` draws such delays, and they are stored with every step.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number
from avtd3.collect.drivers import action_bounds
from avtd3.collect.environment import Environment, ResetResult
from avtd3.collect.scores import total_reward
from avtd3.store.errors import ConfigError
from avtd3.store.events import Event
from avtd3.store.spec import IMAGE
from avtd3.store.step import Observation, Step
from avtd3.store.step_labels import StepLabels
from avtd3.store.world_record import WorldRecord

PER = ("episode", "step")
_STREAM = 0xDE1A7
"""Separates the random numbers of the delays from those of the driver."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DelayConfig:
    """Delays of the camera and of the actions, in simulated seconds; none by default.

    Each delay is a whole number of periods of the world, drawn uniformly from its range.
    """

    camera_s: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest time between an observation and the camera frame in it. The vector is
    not delayed. A frame never goes back in time: the newest one that has arrived is seen."""
    action_s: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest time between an action and its effect. Until then, the newest action
    that has arrived is applied, and before the first one a neutral action (0)."""
    per: str = "episode"
    """``episode`` draws both delays once for each episode, ``step`` for each decision."""

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise ConfigError(f"delay.per is {self.per!r}, expected one of {PER}")
        for name in ("camera_s", "action_s"):
            limits = getattr(self, name)
            if len(limits) != 2:
                raise ConfigError(f"delay.{name} is {limits}, expected smallest and largest")
            low, high = limits
            check_number(f"delay.{name}", low, maximum=60.0)
            check_number(f"delay.{name}", high, minimum=low, maximum=60.0)

    @property
    def is_none(self) -> bool:
        """Whether nothing is delayed."""
        return not any((*self.camera_s, *self.action_s))


def _periods(name: str, limits: tuple[float, float], period_s: float) -> tuple[int, int]:
    """Return the smallest and the largest delay in periods of the world."""
    low, high = math.ceil(limits[0] / period_s - 1e-6), math.floor(limits[1] / period_s + 1e-6)
    if low > high:
        raise ConfigError(
            f"delay.{name} is {limits}, expected a range with a multiple of the world's period, "
            f"{period_s:g} s"
        )
    return low, high


def _of_inner(name: str) -> Any:  # noqa: ANN401 - as in `Environment`
    """Return a property whose value is that of the inner environment."""
    return property(operator.attrgetter(f"_inner.{name}"))


class TimedEnvironment(Environment):
    """Steps another environment several times per decision, and delays what is seen and done.

    The rewards of a decision are summed. An episode may end within a decision. What does not depend
    on time is that of the inner environment.
    """

    setting = _of_inner("setting")
    scenario = _of_inner("scenario")
    scenario_count = _of_inner("scenario_count")
    simulator = _of_inner("simulator")
    notices = _of_inner("notices")
    has_time_limit = _of_inner("has_time_limit")
    legend = _of_inner("legend")
    driver = _of_inner("driver")
    teacher = _of_inner("teacher")
    takeover = _of_inner("takeover")
    measures = _of_inner("measures")
    picture = _of_inner("picture")
    close = _of_inner("close")

    def __init__(self, inner: Environment, action_repeat: int, delay: DelayConfig) -> None:
        self._inner, self._repeat, self._delay = inner, action_repeat, delay
        self._period_s = period_s = inner.spec.control_period_s
        self._camera = _periods("camera_s", delay.camera_s, period_s)
        self._command = _periods("action_s", delay.action_s, period_s)
        self.name = inner.name
        self.spec = dataclasses.replace(inner.spec, control_period_s=period_s * action_repeat)
        low, high = action_bounds(inner.spec)
        self._neutral = np.clip(np.zeros_like(low), low, high)
        self._images: dict[int, Mapping[str, NDArray[np.uint8]]] = {}

    def reset(self, seed: int, index: int = 0) -> ResetResult:
        """Start an episode; the same seed and index give the same delays."""
        self._rng = np.random.default_rng((seed, _STREAM))
        self._now = 0
        self._shown: list[int] = []
        self._command_delays: list[int] = []
        self._drawn = self._draw()
        self._arriving: list[tuple[int, NDArray[np.float32]]] = []
        self._applied = self._neutral
        start = self._inner.reset(seed, index)
        self._images = {}
        self._keep(start.observation)
        attributes = dict(start.attributes)
        if self._delay.per == "episode" and not self._delay.is_none:
            camera, command = self._drawn
            attributes["camera_delay_s"] = camera * self._period_s
            attributes["action_delay_s"] = command * self._period_s
        return ResetResult(observation=self._see(start.observation), attributes=attributes)

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply an action, or those that arrive meanwhile, until the next decision."""
        if self._delay.per == "step":
            self._drawn = self._draw()
        self._command_delays.append(self._drawn[1])
        self._arriving.append((self._now + self._drawn[1], action.copy()))
        reward, terms = 0.0, np.zeros(len(self.spec.reward_terms), np.float64)
        has_terms = bool(self.spec.reward_terms)
        for _ in range(self._repeat):
            step = self._inner.step(self._arrived())
            self._now += 1
            self._keep(step.observation)
            reward += total_reward(step)
            if step.reward_terms is not None:
                terms += step.reward_terms
            if step.is_last:
                break
        return dataclasses.replace(
            step,
            action=action,
            observation=self._see(step.observation),
            reward=None if has_terms else reward,
            reward_terms=terms.astype(np.float32) if has_terms else None,
        )

    def _draw(self) -> tuple[int, int]:
        """Return new delays of camera and actions, in periods of the world."""
        camera, command = (
            int(self._rng.integers(low, high + 1)) for low, high in (self._camera, self._command)
        )
        return camera, command

    def _arrived(self) -> NDArray[np.float32]:
        """Return the newest action that has arrived; forget it and all older ones."""
        for place in range(len(self._arriving) - 1, -1, -1):
            arrival, action = self._arriving[place]
            if arrival <= self._now:
                self._applied = action
                del self._arriving[: place + 1]
                break
        return self._applied

    def _keep(self, observation: Observation) -> None:
        """Remember the newest frames; copies if they are shown later, see `FrameStack.push`."""
        images = observation.images
        if self._camera[1] > 0:
            images = {name: image.copy() for name, image in images.items()}
        self._images[self._now] = images

    def _see(self, observation: Observation) -> Observation:
        """Return an observation with the newest camera frame that has arrived."""
        oldest = self._shown[-1] if self._shown else 0
        shown = max(oldest, self._now - self._drawn[0])
        self._shown.append(shown)
        self._images = {n: image for n, image in self._images.items() if n >= shown}
        images = self._images[shown]
        if observation.streams is not None:
            return dataclasses.replace(observation, streams=images)
        return dataclasses.replace(observation, image=images.get(IMAGE))

    def labels(self) -> StepLabels | None:
        """Return the delays of the episode so far; None if none are configured."""
        if self._delay.is_none:
            return None
        ends = np.minimum(np.arange(len(self._shown)) * self._repeat, self._now)
        camera = (ends - np.array(self._shown)) * self._period_s
        command = np.array(self._command_delays) * self._period_s
        return StepLabels(
            camera_delay_s=camera.astype(np.float32), action_delay_s=command.astype(np.float32)
        )

    def events(self) -> tuple[Event, ...]:
        """Return those of the inner environment, at the decisions in which they happened."""
        if self._repeat == 1:
            return self._inner.events()
        found = self._inner.events()
        return tuple(dataclasses.replace(each, step=each.step // self._repeat) for each in found)

    def world_record(self) -> WorldRecord | None:
        """Return the state of the world in the camera frame of each observation."""
        record, shown = self._inner.world_record(), self._shown
        if record is None or shown == list(range(len(shown))):
            return record
        return dataclasses.replace(
            record,
            setup={**record.setup, "frames": shown},
            ego=record.ego[shown],
            actors=record.actors[shown],
        )
