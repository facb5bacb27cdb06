"""Gymnasium environments for tests, registered under `Tiny...` by importing this module."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LIMIT = 12
LOW = np.array((-2.0, 0.0), np.float32)


class Tiny(gymnasium.Env):
    """A point that is pushed along a line; it ends for good beyond 3."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as gymnasium
    action_space: spaces.Space[Any] = spaces.Box(LOW, np.array((2.0, 1.0), np.float32))
    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1.0, 1.0)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.x += 0.3 * float(action[0]) + 0.1 * float(action[1]) + 0.01 * self.np_random.normal()
        self.steps += 1
        return self.observe(), self.reward(), abs(self.x) > 3.0, False, {}

    def reward(self):
        return -abs(self.x)

    def observe(self):
        return np.array((self.x, self.steps / LIMIT))

    def picture(self):
        """uint8 (40, 44, 3) with the point as a bright column."""
        image = np.zeros((40, 44, 3), np.uint8)
        image[:, int(np.clip(self.x * 5 + 22, 0, 43))] = (10, 20, self.steps)
        return image

    def render(self):
        return self.picture() if self.render_mode == "rgb_array" else None


class TinyImage(Tiny):
    observation_space = spaces.Box(0, 255, (40, 44, 3), np.uint8)

    def observe(self):
        return self.picture()


class TinyGray(Tiny):
    observation_space = spaces.Box(0, 255, (40, 44), np.uint8)

    def observe(self):
        return self.picture().sum(axis=2, dtype=np.uint8)


class TinyDict(Tiny):
    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (40, 44, 3), np.uint8),
            "pose": spaces.Box(-9.0, 9.0, (1,), np.float32),
            "clock": spaces.Box(0, LIMIT, (1,), np.int64),
        }
    )

    def observe(self):
        return {
            "pose": np.array((self.x,), np.float32),
            "clock": np.array((self.steps,), np.int64),
            "camera": self.picture(),
        }


class TinyBroken(Tiny):
    """Answers a number that is none after its third step."""

    def observe(self):
        return np.array((np.nan if self.steps == 3 else self.x, 0.0))


class TinyBoundless(Tiny):
    """Gives a reward that no float32 holds."""

    def reward(self):
        return 1e300


class TinyPrecise(Tiny):
    """Its bounds are not numbers of float32: the nearest of those lies outside."""

    action_space = spaces.Box(np.array((-2.0, 0.0)), np.array((0.1, 0.7)), dtype=np.float64)


class TinyOld(Tiny):
    """Answers as the old gym did."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class TinyFailing(Tiny):
    """Fails in its third step."""

    def step(self, action):
        if self.steps == 2:
            raise RuntimeError("the spring\nis broken")
        return super().step(action)


class TinyCut(Tiny):
    """Truncates by itself, and ends for good with the time limit."""

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self.steps == 4, info


class TinyBoth(Tiny):
    """Ends for good in the very step of the time limit."""

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.steps == LIMIT, False, info


for made in (
    *("Tiny", "TinyImage", "TinyGray", "TinyDict", "TinyBroken", "TinyBoundless", "TinyPrecise"),
    *("TinyOld", "TinyFailing", "TinyCut", "TinyBoth"),
):
    gymnasium.register(f"{made}-v0", f"{__name__}:{made}", max_episode_steps=LIMIT)
