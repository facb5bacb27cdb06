"""What the presets promise, read back from what they do."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from avtd3.collect import Environment, ResetResult, collect
from avtd3.configs.load import load_section, presets
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store import Dataset, EpisodeSpec, Observation, Step

STEPS, EPISODES = 400, 20
SPEC = EpisodeSpec(vector_names=("x",), action_names=("steer", "gas"), control_period_s=0.05)
NONE, GAUSSIAN, CORRELATED = (0.0, 0.0), (0.1, 0.0), (0.2, math.exp(-0.05 / 0.5))
"""Standard deviation of the noise, and its correlation from one step to the next."""
NOISE = {
    "td3_paper": {"policy": GAUSSIAN},
    "spinning_up": {"policy": GAUSSIAN},
    "reports_production": {"policy": GAUSSIAN},
    "mujoco_td3": {"policy": GAUSSIAN},
    "sb3": {"policy": NONE},
    "demo": {"expert": NONE, "expert+gaussian": (0.4, 0.0)},
    "demo_quick": {"expert": NONE, "expert+gaussian": (0.4, 0.0)},
    "vision_only": {"expert": NONE, "expert+gaussian": (0.4, 0.0)},
    "dagger": {"policy": NONE, "takeover": NONE},
    "vision_command": {"expert": NONE, "expert+gaussian": (0.4, 0.0)},
    **{
        name: {"expert": NONE, "expert+noise": CORRELATED}
        for name in (
            *("full_state", "varied_roads", "carla"),
            *("smoke_50", "pipeline_5k", "stability_50k", "extended_200k", "production_1m"),
        )
    },
}
"""Noise on the actions of each driver but random ones, by preset."""
WITHOUT_DATA = {"lane_keeping_ddpg", "rally"}
"""Presets that change the learner only."""


class Still:
    def reset(self, rng):
        pass

    def act(self, observation):
        return np.zeros(2, np.float32)


class Bench(Environment):
    """Nothing happens; the expert does nothing."""

    spec = SPEC
    name = "bench"

    def takeover(self, policy):
        return policy

    def reset(self, seed, index=0):
        self.steps = 0
        return ResetResult(observation=Observation(vector=np.zeros(1, np.float32)))

    def step(self, action):
        self.steps += 1
        after = Observation(vector=np.zeros(1, np.float32))
        return Step(action=action, reward=0.0, observation=after, truncated=self.steps == STEPS)

    def driver(self, base):
        return Still() if base == "expert" else super().driver(base)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A policy that does nothing, of more updates than any preset waits for."""
    network = NetworkConfig(hidden=(4,))
    actor = Actor(SPEC, network)
    with torch.no_grad():
        for parameter in actor.head.parameters():
            parameter.zero_()
    directory = tmp_path_factory.mktemp("policies")
    PolicyStore(directory).publish(actor, SPEC, network, updates=10**9)
    return directory


def test_every_preset_is_listed():
    assert set(presets()) == NOISE.keys() | WITHOUT_DATA


@pytest.mark.parametrize("preset", sorted(NOISE))
def test_the_noise_in_the_data_is_that_of_the_preset(preset, tmp_path, policies):
    settings = [
        "collect.workers=1",
        "collect.world=road",
        "collect.lead.random_steps=0",
    ]
    config = load_section("collect", preset, settings)
    collect(
        tmp_path / "data",
        config,
        episodes=EPISODES,
        policies=policies,
        open_world=lambda config, worker: Bench(),
    )
    actions = defaultdict(list)
    for episode in Dataset.open(tmp_path / "data").episodes():
        driver = str(episode.attributes["driver"]).partition("=")[0]
        actions[driver].append(episode.actions[:, 0].astype(np.float64))
    actions.pop("random", None)
    found = {driver.replace("policy+gaussian", "policy"): each for driver, each in actions.items()}
    assert found.keys() == NOISE[preset].keys()
    for driver, (sigma, correlation) in NOISE[preset].items():
        values = np.concatenate(found[driver])
        assert values.std() == pytest.approx(sigma, rel=0.15, abs=1e-6)
        if sigma:
            pairs = [np.stack([each[:-1], each[1:]]) for each in found[driver]]
            now, after = np.concatenate(pairs, axis=1)
            measured = float((now * after).mean() / values.var())
            assert measured == pytest.approx(correlation, abs=0.07)


def test_learning_starts_as_published():
    starts = {"td3_paper": 10_000, "spinning_up": 1_000, "sb3": 100, "mujoco_td3": 25_000}
    starts |= {"reports_production": 25_000, "production_1m": 25_000}
    for preset, steps in starts.items():
        assert load_section("learn", preset, []).learning_starts == steps


@pytest.mark.parametrize("preset", ["td3_paper", "spinning_up", "sb3", "mujoco_td3"])
def test_published_settings_run_in_full_precision(preset):
    assert load_section("learn", preset, []).precision == "fp32"
