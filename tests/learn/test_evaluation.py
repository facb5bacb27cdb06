"""Evaluation on held-out episodes: compared with one step at a time, and in a run."""

import dataclasses

import numpy as np
import pytest
import torch

from avtd3.learn import evaluation
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.config import LearnConfig
from avtd3.learn.evaluation import FittedEpisode, HeldOutEvaluator, discounted_returns
from avtd3.learn.metrics import METRICS
from avtd3.learn.networks import NetworkConfig, ObservationBatch, to_pixels
from avtd3.learn.td3 import TD3Config, create_state, scale_reward
from avtd3.learn.trainer import train
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, NoSegmentsError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.spec import ImageSpec
from avtd3.store.step import Observation, Step
from avtd3.store.writer import SegmentWriter

CPU = torch.device("cpu")
IMAGE = ImageSpec(height=36, width=36, stack=2)
FITTED = {"offline/fitted_value", "offline/fitted_value_low", "offline/fitted_value_high"}
CONFIG = TD3Config(reward_scale=2.0, reward_clip=1.5)


@pytest.fixture
def make_episode(tmp_path):
    def make(spec, length, *, terminated, seed=0):
        rng = np.random.default_rng(seed)

        def observe():
            image = None
            if spec.image is not None:
                image = rng.integers(0, 256, spec.image.frame_shape, dtype=np.uint8)
            return Observation(image=image, vector=rng.normal(size=spec.vector_size).astype("f4"))

        dataset = Dataset.create(tmp_path / str(seed), spec)
        with SegmentWriter(dataset) as writer:
            writer.begin(observe())
            for left in range(length, 0, -1):
                action = rng.uniform(-1, 1, 2).astype(np.float32)
                step = Step(
                    action=action,
                    reward=float(rng.normal()),
                    observation=observe(),
                    terminated=terminated and left == 1,
                    truncated=not terminated and left == 1,
                )
                writer.add(step)
        (episode,) = dataset.episodes()
        return episode

    return make


def one_by_one(state, episode, spec, gamma):
    """Return the metrics of every step, each from its own forward passes."""

    def observe(t):
        pixels: tuple[torch.Tensor, ...] = ()
        if spec.image is not None:
            stacked = torch.from_numpy(episode.observations()[t : t + 1])
            pixels = (to_pixels(stacked, torch.float32),)
        return ObservationBatch(pixels=pixels, vector=torch.from_numpy(episode.vectors[t : t + 1]))

    rewards = np.clip(2.0 * episode.rewards, -1.5, 1.5)
    found = []
    for t in range(len(rewards)):
        action = torch.from_numpy(episode.actions[t : t + 1])
        encoded = state.critic.encode(observe(t))
        q, mine = state.critic.first(encoded, action).item(), state.actor(observe(t))
        following = observe(t + 1)
        next_q = state.critic_target.both(
            state.critic_target.encode(following), state.actor_target(following)
        )
        ended = episode.terminated[-1] and t + 1 == len(rewards)
        target = rewards[t] + (0.0 if ended else gamma) * min(x.item() for x in next_q)
        row = {
            "offline/q": q,
            "offline/td_error": abs(q - target),
            "offline/q_actor": state.critic.first(encoded, mine).item(),
            "offline/action_distance": (mine - action).abs().mean().item() / 1.0,
        }
        if episode.terminated[-1]:
            seen = sum(gamma**i * r for i, r in enumerate(rewards[t:]))
            row |= {"offline/return": seen, "offline/q_excess": q - seen}
        row |= {"offline/initial_value": row["offline/q_actor"]} if t == 0 else {}
        if t == 0 and episode.terminated[-1]:
            row["offline/initial_return"] = row["offline/return"]
        found.append(row)
    return found


@pytest.mark.parametrize("image", [IMAGE, None])
def test_the_means_are_those_of_single_steps(
    make_spec, make_episode, small_network, monkeypatch, image
):
    monkeypatch.setattr(evaluation, "_CHUNK", 2)
    spec = make_spec(image=image, vector=3)
    state = create_state(spec, small_network, CONFIG, CPU, seed=1)
    episodes = [
        make_episode(spec, 5, terminated=True, seed=1),
        make_episode(spec, 2, terminated=False, seed=2),
        make_episode(spec, 1, terminated=True, seed=3),
    ]
    before = {name: value.clone() for name, value in state.critic.state_dict().items()}
    judge = HeldOutEvaluator(spec=spec, config=CONFIG, gamma=0.9, device=CPU, autocast=None)
    found = judge(state, iter(episodes))
    assert state.critic.training
    assert all(torch.equal(before[k], v) for k, v in state.critic.state_dict().items())
    with torch.no_grad():
        rows = [row for episode in episodes for row in one_by_one(state, episode, spec, 0.9)]
    assert found.pop("offline/episodes") == 3.0
    known = [row for row in rows if "offline/return" in row]
    pairs = np.array([(row["offline/return"], row["offline/q"]) for row in known])
    assert found.pop("offline/q_correlation") == pytest.approx(np.corrcoef(pairs.T)[0, 1], abs=1e-5)
    assert found.keys() - FITTED == set().union(*rows)
    for name in found.keys() - FITTED:
        expected = np.mean([r[name] for r in rows if name in r])
        assert found[name] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("terminated", [True, False])
def test_a_fit_sees_the_features_of_all_states_in_order(
    make_spec, make_episode, small_network, monkeypatch, terminated
):
    monkeypatch.setattr(evaluation, "_CHUNK", 2)
    seen: list[FittedEpisode] = []
    monkeypatch.setattr(evaluation, "fitted_value", seen.extend)
    spec = make_spec(vector=3)
    state = create_state(spec, small_network, CONFIG, CPU, seed=1)
    episode = make_episode(spec, 5, terminated=terminated)
    judge = HeldOutEvaluator(spec=spec, config=CONFIG, gamma=0.9, device=CPU, autocast=None)
    judge(state, [episode])
    (fitted,) = seen
    with torch.no_grad():
        vector = torch.from_numpy(episode.vectors)
        own = state.actor(ObservationBatch(pixels=(), vector=vector))
        expected = state.critic.hidden(vector, own)
        given = state.critic.hidden(vector[:-1], torch.from_numpy(episode.actions))
    known = 5 if terminated else 6  # the state after the end has no value
    np.testing.assert_allclose(fitted.own[:known], expected[:known], atol=1e-6)
    np.testing.assert_allclose(fitted.features, given, atol=1e-6)
    assert len(fitted.own) == 6
    assert fitted.discount.tolist() == [0.9] * 4 + [0.0 if terminated else 0.9]
    reward = scale_reward(torch.from_numpy(episode.rewards), CONFIG)
    np.testing.assert_allclose(fitted.reward, reward)


def test_returns_of_episodes_that_were_cut_off_are_not_known(
    make_spec, make_episode, small_network
):
    spec = make_spec(vector=3)
    state = create_state(spec, small_network, TD3Config(), CPU, seed=1)
    judge = HeldOutEvaluator(spec=spec, config=TD3Config(), gamma=0.9, device=CPU, autocast=None)
    found = judge(state, [make_episode(spec, 4, terminated=False)])
    assert "offline/return" not in found
    assert "offline/initial_return" not in found
    assert "offline/q_correlation" not in found
    assert "offline/q" in found
    assert judge(state, []) == {}


def test_a_critic_that_says_one_number_has_no_correlation(make_spec, make_episode, small_network):
    spec = make_spec(vector=3)
    state = create_state(spec, small_network, TD3Config(), CPU, seed=1)
    with torch.no_grad():
        for p in state.critic.parameters():
            p.zero_()
    judge = HeldOutEvaluator(spec=spec, config=TD3Config(), gamma=0.9, device=CPU, autocast=None)
    found = judge(state, [make_episode(spec, 4, terminated=True)])
    assert found["offline/q_excess"] == pytest.approx(-found["offline/return"])
    assert "offline/q_correlation" not in found


def test_discounted_returns_by_hand():
    assert discounted_returns(np.array([1, 2, 4], np.float32), 0.5).tolist() == [3.0, 4.0, 4.0]


@pytest.fixture
def config():
    return LearnConfig(
        updates=12,
        evaluate_every=5,
        evaluate_episodes=2,
        network=NetworkConfig(hidden=(16, 16), features=24),
        replay=ReplayConfig(batch_size=8, held_out=0.5),
    )


def test_a_run_evaluates_itself_on_episodes_that_it_never_samples(
    tmp_path, make_spec, publish_episodes, config
):
    dataset = publish_episodes(tmp_path / "data", make_spec(image=IMAGE), episodes=8, length=10)
    report = train(config, datasets=[dataset.path], run=tmp_path / "run")
    assert 0 < report.steps < 80
    curves = read_log(tmp_path / "run" / "events").curves
    assert curves["offline/td_error"].updates.tolist() == [5, 10]
    assert curves["offline/episodes"].values.tolist() == [2.0, 2.0]
    names = {name for name in curves if name.startswith("offline/")}
    expected = {name for name in METRICS if name.startswith("offline/")}
    assert names | FITTED == expected  # twenty steps may have no fitted value


def test_a_run_whose_filter_leaves_nothing_says_so(tmp_path, make_spec, publish_episodes, config):
    dataset = publish_episodes(tmp_path / "data", make_spec())
    nothing = dataclasses.replace(config, replay=ReplayConfig(filter=("end=collision",)))
    with pytest.raises(NoSegmentsError, match=r"of 3 episodes, 3 are excluded by replay\.filter"):
        train(nothing, datasets=[dataset.path], run=tmp_path / "run")


def test_config_is_checked():
    with pytest.raises(ConfigError, match=r"learn\.evaluate_every"):
        LearnConfig(evaluate_every=0)
    with pytest.raises(ConfigError, match=r"learn\.evaluate_episodes"):
        LearnConfig(evaluate_episodes=0)
