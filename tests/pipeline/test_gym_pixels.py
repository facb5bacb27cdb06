"""Gymnasium environments with images: collect, learn, evaluate."""

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.gym_env import GymConfig
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.trainer import train
from avtd3.store.dataset import Dataset
from avtd3.store.replay.config import ReplayConfig
from avtd3.tests.collect import tiny_envs

LEARN = LearnConfig(
    updates=3,
    publish_every=3,
    threads=1,
    network=NetworkConfig(hidden=(16,), features=16),
    replay=ReplayConfig(batch_size=4),
)


def whole_loop(path, world, gym, episodes):
    """Collect at random, learn, collect with the policy, and evaluate."""
    data, policies = path / "data", path / "policies"
    config = CollectConfig(world=world, driver="random", gym=gym, min_free_mb=0)
    collect(data, config, episodes=episodes)
    train(LEARN, datasets=[data], run=path / "run", policies=policies)
    mixed = CollectConfig(
        world=world, driver="policy", gym=gym, min_free_mb=0, seed=1, exploration_noise=0.3
    )
    collect(data, mixed, episodes=1, policies=policies)
    report = evaluate(str(policies), EvaluateConfig(world=world, gym=gym, episodes=1))
    return Dataset.open(data), report


@pytest.mark.parametrize("name", ["TinyImage", "TinyGray", "TinyDict"])
def test_images_work_in_every_step(tmp_path, name):
    world = f"gym:{tiny_envs.__name__}:{name}-v0"
    dataset, report = whole_loop(tmp_path, world, GymConfig(stack=2), 3)
    assert dataset.spec.image is not None
    assert (len(dataset.spec.vector_names) == 0) == (name != "TinyDict")
    drivers = [d for s in dataset.snapshot().segments for d in s.episode_table().texts("driver")]
    assert drivers == ["random"] * 3 + ["policy+gaussian=0.3"]
    assert report.policy_version == 1  # the first is the untrained one
    assert np.isfinite(report.scores[0].episode_return)


def test_carracing_works_in_every_step(tmp_path):
    pytest.importorskip("Box2D")
    dataset, report = whole_loop(tmp_path, "gym:CarRacing-v3", GymConfig(time_limit=8), 1)
    assert dataset.spec.image is not None
    assert dataset.spec.image.observation_shape == (12, 96, 96)
    assert (dataset.spec.action_low, dataset.spec.action_high) == ((-1.0, 0.0, 0.0), (1.0,) * 3)
    assert report.document()["end_reasons"] == {"time_limit": 1}
