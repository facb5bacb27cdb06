"""Collections say what the expert would have done and who drove; learners imitate that."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from avtd3.collect import CollectConfig, RoadConfig, ScenarioConfig, collect
from avtd3.collect.driving.expert import TakeoverConfig
from avtd3.collect.driving.task import ObservationConfig, TaskConfig
from avtd3.collect.sim.camera import CameraConfig
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.td3 import TD3Config
from avtd3.learn.trainer import train
from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation
from avtd3.store.step_labels import StepLabels
from avtd3.store.writer import SegmentWriter
from avtd3.tests.collect import line_world

pytestmark = pytest.mark.usefixtures("maps_without_own_process")

CONFIG = CollectConfig(
    scenario=ScenarioConfig(number=1, route_length_m=60.0),
    road=RoadConfig(camera=CameraConfig(height=36, width=36)),
    task=TaskConfig(observation=ObservationConfig(stack=1)),
    exploration_noise=0.0,
)
NETWORK = NetworkConfig(hidden=(8,), features=8)


def episodes(path):
    return list(Dataset.open(path).episodes())


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A policy that always steers a little to the right, at full throttle."""
    path = tmp_path_factory.mktemp("policies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avtd3.collect.maps.network.check_native", lambda *_: None)
        collect(path / "data", dataclasses.replace(CONFIG, driver="random"), episodes=1)
    spec = Dataset.open(path / "data").spec
    actor = Actor(spec, NETWORK)
    with torch.no_grad():
        for parameter in actor.head.parameters():
            parameter.zero_()
        last: Any = actor.head.layers[-1]
        last.bias.copy_(torch.tensor([0.15, 0.5]))
    PolicyStore(path / "policies").publish(actor, spec, NETWORK, updates=0)
    return path / "policies"


def test_an_experts_own_actions_are_its_labels(tmp_path):
    collect(tmp_path / "data", dataclasses.replace(CONFIG, driver="expert"), episodes=1)
    (episode,) = episodes(tmp_path / "data")
    np.testing.assert_array_equal(episode.labels.expert_action, episode.actions)
    assert episode.labels.expert_drove.all()


def test_noise_and_chance_are_not_part_of_the_labels(tmp_path):
    collect(tmp_path / "data", dataclasses.replace(CONFIG, driver="expert+noise"), episodes=1)
    config = dataclasses.replace(CONFIG, driver="random", seed=3)
    collect(tmp_path / "data", config, episodes=1)
    by_driver = {e.attributes["driver"]: e for e in episodes(tmp_path / "data")}
    noisy, random = by_driver["expert+noise=0.2"], by_driver["random"]
    assert noisy.labels.expert_drove.all()
    assert not random.labels.expert_drove.any()
    for episode in (noisy, random):
        assert np.isfinite(episode.labels.expert_action).all()
        assert (episode.labels.expert_action != episode.actions).any()
    smooth = np.abs(np.diff(noisy.labels.expert_action[:, 1]))
    assert smooth.max() < 0.5 * np.abs(np.diff(noisy.actions[:, 1])).max()


def test_labels_can_be_turned_off_and_change_nothing_else(tmp_path):
    for record in (True, False):
        config = dataclasses.replace(CONFIG, record_expert=record, driver="expert+noise")
        collect(tmp_path / f"{record}", config, episodes=2)
    labelled, plain = (Dataset.open(tmp_path / f"{record}") for record in (True, False))
    for one, other in zip(labelled.episodes(), plain.episodes(), strict=True):
        assert one.labels is not None
        assert other.labels is None
        assert one.frames.tobytes() == other.frames.tobytes()
        assert one.actions.tobytes() == other.actions.tobytes()
    orders = [[s.content_digest for s in d.snapshot().segments] for d in (labelled, plain)]
    assert orders[0] == orders[1]


def test_the_expert_takes_over_and_the_drive_says_when(tmp_path, policies):
    config = dataclasses.replace(CONFIG, driver="takeover", takeover=TakeoverConfig(lateral_m=0.6))
    collect(tmp_path / "data", config, episodes=2, policies=policies)
    wanted = np.array([np.tanh(0.15), np.tanh(0.5)], np.float32)
    for episode in episodes(tmp_path / "data"):
        drove, label = episode.labels.expert_drove, episode.labels.expert_action
        assert 0.0 < drove.mean() < 1.0
        assert not drove[0]
        np.testing.assert_array_equal(episode.actions[drove], label[drove])
        own = np.tile(wanted, ((~drove).sum(), 1))
        np.testing.assert_allclose(episode.actions[~drove], own, rtol=1e-6)
        assert episode.policy_version == 0
        assert episode.attributes["driver"] == "takeover"
        assert np.flatnonzero(np.diff(drove.astype(int)) < 0).size  # it gave back
    shares: Any = audit([tmp_path / "data"]).document()["expert"]
    assert shares["takeovers"] >= 2
    assert shares["compared"] == sum(
        (~e.labels.expert_drove).sum() for e in episodes(tmp_path / "data")
    )
    # The policy alone leaves the road.
    config = dataclasses.replace(CONFIG, driver="policy")
    collect(tmp_path / "alone", config, episodes=1, policies=policies)
    (alone,) = episodes(tmp_path / "alone")
    assert alone.end_reason != "goal"
    assert not alone.labels.expert_drove.any()


def test_a_takeover_needs_a_policy_and_the_driving_task(tmp_path, policies):
    with pytest.raises(ConfigError, match="--policies"):
        collect(tmp_path / "a", dataclasses.replace(CONFIG, driver="takeover"), episodes=1)
    gym = CollectConfig(world="avtd3.tests.collect.line_world:Line", driver="takeover")
    with pytest.raises(ConfigError, match="no driver 'takeover'"):
        collect(tmp_path / "b", gym, episodes=1, policies=policies)


def test_worlds_without_an_expert_have_no_labels(tmp_path):
    config = CollectConfig(world="avtd3.tests.collect.line_world:Line", driver="random")
    collect(tmp_path / "data", config, episodes=2)
    assert [episode.labels for episode in episodes(tmp_path / "data")] == [None, None]


def test_a_world_of_a_user_may_have_a_teacher_and_takeovers(tmp_path):
    spec = Dataset.create(tmp_path / "any", line_world.SPEC).spec
    torch.manual_seed(0)
    PolicyStore(tmp_path / "p").publish(Actor(spec, NETWORK), spec, NETWORK, updates=0)
    config = CollectConfig(
        world="avtd3.tests.collect.line_world:Taught",
        driver="0.5:expert,0.5:takeover",
        exploration_noise=0.0,
    )
    collect(tmp_path / "data", config, episodes=8, policies=tmp_path / "p")
    for episode in episodes(tmp_path / "data"):
        drove, x = episode.labels.expert_drove, episode.vectors[:-1, 0]
        np.testing.assert_array_equal(episode.labels.expert_action[:, 0], -np.sign(x))
        is_expert = episode.attributes["driver"] == "expert"
        np.testing.assert_array_equal(drove, is_expert | (np.abs(x) > 0.5))


SPEC = EpisodeSpec(vector_names=("x",), action_names=("a",))


def write_labelled(path, count=20, length=8, seed=0):
    """Drives at random, in which the expert would have done -x / 2; it is known in most steps."""
    rng, dataset = np.random.default_rng(seed), Dataset.create(path, SPEC)
    with SegmentWriter(dataset) as writer:
        for number in range(count):
            x = rng.uniform(-1.0, 1.0, (length + 1, 1)).astype(np.float32)
            writer.begin(Observation(vector=x[0]), seed=number, policy_version=number % 2 - 1)
            for t in range(length):
                action = rng.uniform(-1.0, 1.0, 1).astype(np.float32)
                writer.step(action, 0.0, Observation(vector=x[t + 1]), terminated=t + 1 == length)
            label = -0.5 * x[:-1]
            label[rng.random(length) < 0.2] = np.nan
            label[:] = np.nan if number % 5 == 4 else label
            writer.end(labels=StepLabels(expert_action=label))
    return dataset


@pytest.mark.parametrize("mode", ["cache", "direct"])
@pytest.mark.parametrize("imitate", [(), ("policy=none",)])
def test_labels_replace_the_action_where_they_are_known(tmp_path, mode, imitate):
    dataset = write_labelled(tmp_path / "data")
    config = ReplayConfig(batch_size=256, imitate_expert=True, imitate=imitate, mode=mode)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        batch: Any = sampler.sample()
    steps = {
        (float(e.vectors[t, 0]), float(e.actions[t, 0])): (e, t)
        for e in dataset.episodes()
        for t in range(e.length)
    }
    known = 0
    for row in range(256):
        key = (float(batch.observation_vector[row, 0]), float(batch.action[row, 0]))
        episode, t = steps[key]
        label = None if episode.labels is None else float(episode.labels.expert_action[t, 0])
        has_label = label is not None and not np.isnan(label)
        known += has_label
        assert batch.bc_action[row, 0] == (label if has_label else key[1])
        if imitate:
            assert batch.bc_mask[row] == float(has_label or episode.policy_version < 0)
    assert 100 < known < 256
    assert imitate or batch.bc_mask is None


def test_cloning_the_labels_gives_the_expert_whoever_drove(tmp_path):
    write_labelled(tmp_path / "data", count=40)
    config = LearnConfig(
        algorithm="bc",
        updates=400,
        threads=1,
        network=NetworkConfig(hidden=(32,)),
        td3=TD3Config(actor_lr=0.01, policy_delay=1),
        replay=ReplayConfig(batch_size=64, imitate_expert=True, imitate=("policy=100",)),
    )
    train(config, datasets=tmp_path / "data", run=tmp_path / "run")
    policy = PolicyStore(tmp_path / "run" / "policies").latest(SPEC)
    assert policy is not None
    for x in (-0.8, 0.1, 0.6):
        assert policy.act(None, np.array([x], np.float32))[0] == pytest.approx(-0.5 * x, abs=0.05)


def test_labels_need_imitation():
    with pytest.raises(ConfigError, match=r"imitate_expert is True.*bc_alpha"):
        LearnConfig(replay=ReplayConfig(imitate_expert=True))
    with pytest.raises(ConfigError, match="imitate_expert"):
        ReplayConfig(imitate_expert=True, sequence_length=8)
