"""Environments for tests that a user could have written."""

import time

import numpy as np

from avtd3.collect.environment import Environment, ResetResult
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation, Step
from avtd3.tests.collect import point_world


class PointWorld(point_world.PointWorld):
    image_shape = (1, 36, 36)


SPEC = EpisodeSpec(vector_names=("x", "t"), action_names=("push",), control_period_s=0.1)


class Line(Environment):
    """A point on a line; every part of it can be replaced to break it."""

    spec = SPEC

    def __init__(self, limit=12, **parts):
        self.limit = limit
        for name, part in parts.items():
            setattr(self, name, part)

    def reset(self, seed, index=0):
        self.steps, self.x = 0, np.random.default_rng(seed).uniform(-1.0, 1.0)
        return ResetResult(observation=self.observe(), attributes={"friction": 0.5, "town": "line"})

    def step(self, action):
        self.steps, self.x = self.steps + 1, self.x + 0.2 * float(action[0])
        return self.made(action)

    def made(self, pushed, **changes):
        values = {
            "action": pushed,
            "reward": -abs(self.x),
            "observation": self.observe(),
            "truncated": self.steps == self.limit,
        }
        return Step(**(values | changes))

    def observe(self):
        return Observation(vector=np.array((self.x, self.steps), np.float32))

    def measures(self):
        return {"distance": abs(self.x)}


class Rule:
    """Pushes to the middle."""

    expert_drove = True

    def __init__(self, world):
        self.world = world

    def reset(self, rng):
        pass

    def act(self, observation):
        return np.array((-np.sign(self.world.x),), np.float32)


class Guarded(Rule):
    """A policy, unless it is far from the middle."""

    def __init__(self, world, policy):
        super().__init__(world)
        self.policy = policy

    def reset(self, rng):
        self.policy.reset(rng)

    def act(self, observation):
        own = self.policy.act(observation)
        self.expert_drove = abs(self.world.x) > 0.5
        return super().act(observation) if self.expert_drove else own


class Taught(Line):
    """Has an expert, which says what it would do and takes over."""

    def driver(self, base):
        return Rule(self) if base == "expert" else super().driver(base)

    def teacher(self):
        return Rule(self)

    def takeover(self, policy):
        return Guarded(self, policy)


class Duck:
    """An environment that is no subclass of ours."""

    spec = SPEC

    def __init__(self):
        self.inner = Line()

    def reset(self, seed, index):
        return self.inner.reset(seed)

    def step(self, action):
        return self.inner.step(action)


class Numbered(Line):
    """Remembers the number of its worker."""

    def __init__(self, worker):
        super().__init__()
        self.worker = worker

    def reset(self, seed, index=0):
        return ResetResult(
            observation=super().reset(seed).observation, attributes={"worker": self.worker}
        )


NOT_CALLABLE = 3


class FailsLater(Line):
    def step(self, action):
        if self.steps == 4:
            raise RuntimeError("the\nspring broke")
        return super().step(action)


def identity(made):
    return made


class Paced(Line):
    """Takes time for each step, as a simulator that runs in real time."""

    def step(self, action):
        time.sleep(0.1)
        return super().step(action)
