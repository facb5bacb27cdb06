"""A world of your own: push a cart along a line towards the origin."""

import numpy as np

from avtd3.collect import Environment, ResetResult, check_environment
from avtd3.store import EpisodeSpec, Observation, Step


class Cart(Environment):
    spec = EpisodeSpec(vector_names=("x_m", "v_mps"), action_names=("push",), control_period_s=0.1)

    def __init__(self, limit=100):
        self.limit = limit  # steps; set it with --set collect.world_options.limit=50

    def reset(self, seed, index=0):
        self.state, self.steps = np.random.default_rng(seed).uniform(-1.0, 1.0, 2), 0
        return ResetResult(observation=self.observe())

    def step(self, action):
        self.steps += 1
        self.state += 0.1 * np.array((self.state[1], action[0]))
        reward, is_cut = -abs(self.state[0]), self.steps == self.limit
        return Step(action=action, reward=reward, observation=self.observe(), truncated=is_cut)

    def observe(self):
        return Observation(vector=self.state.astype(np.float32))


if __name__ == "__main__":
    check_environment(Cart())
