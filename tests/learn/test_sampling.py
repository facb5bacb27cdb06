"""Training with prioritised sampling and with sequences."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy
import torch

from avtd3.learn.batch import flatten_sequences, to_batch
from avtd3.learn.checkpoints import list_checkpoints
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.td3 import TD3Config, create_state, critic_loss, update
from avtd3.learn.trainer import train
from avtd3.store.errors import NoSegmentsError
from avtd3.store.replay.config import MixPart, ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import ImageSpec

CPU = torch.device("cpu")
IMAGE = ImageSpec(height=36, width=36, stack=2)


@pytest.fixture
def config():
    return LearnConfig(
        updates=24,
        checkpoint_every=10,
        keep_checkpoints=1,
        network=NetworkConfig(hidden=(16, 16), features=24),
        replay=ReplayConfig(batch_size=8, prioritised=True),
    )


def tensors_of(run):
    newest = list_checkpoints(run / "checkpoints")[-1]
    return safetensors.numpy.load_file(newest / "tensors.safetensors")


def test_importance_weighs_each_square(make_spec, make_batch, small_network):
    spec = make_spec(vector=3)
    state = create_state(spec, small_network, TD3Config(), CPU, seed=1)
    batch, noise = make_batch(spec), torch.zeros(8, 2)
    weight = torch.linspace(0.1, 1.0, 8)
    terms = critic_loss(
        state, dataclasses.replace(batch, weight=weight), batch.reward, noise, TD3Config()
    )
    squares = [
        (w * ((q1 - y) ** 2 + (q2 - y) ** 2)).item()
        for w, q1, q2, y in zip(weight, terms.q1, terms.q2, terms.target, strict=True)
    ]
    assert terms.loss.item() == pytest.approx(sum(squares) / 8, rel=1e-5)
    ones = dataclasses.replace(batch, weight=torch.ones(8))
    plain = critic_loss(state, batch, batch.reward, noise, TD3Config())
    same = critic_loss(state, ones, batch.reward, noise, TD3Config())
    torch.testing.assert_close(same.loss, plain.loss)


def test_the_larger_error_of_the_two_critics_counts(make_spec, make_batch, small_network):
    spec = make_spec(vector=3)
    state = create_state(spec, small_network, TD3Config(), CPU, seed=1)
    critic = update(state, make_batch(spec), torch.zeros(8, 2), TD3Config()).critic
    expected = [
        max(abs((q1 - y).item()), abs((q2 - y).item()))
        for q1, q2, y in zip(critic.q1, critic.q2, critic.target, strict=True)
    ]
    assert critic.td_error().tolist() == pytest.approx(expected)


def test_a_batch_has_the_weights_of_its_draws(tmp_path, make_spec, publish_episodes):
    dataset = publish_episodes(tmp_path / "data", make_spec())
    config = ReplayConfig(batch_size=8, prioritised=True)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        for _ in range(10):
            first = sampler.sample()
            assert first.index is not None
            sampler.update_priorities(first.index, np.arange(8, dtype=np.float32))
        drawn = sampler.sample()
        batch = to_batch(drawn, CPU, torch.float32)
    assert batch.weight is not None
    assert drawn.weight is not None
    np.testing.assert_array_equal(batch.weight.numpy(), drawn.weight)
    assert len(set(drawn.weight.tolist())) > 1


@pytest.mark.parametrize("image", [None, IMAGE], ids=["numbers", "images"])
def test_a_resumed_prioritised_run_equals_one_that_never_stopped(
    tmp_path, make_spec, publish_episodes, config, image
):
    data = tmp_path / "data"
    publish_episodes(data, make_spec(image=image))
    train(config, datasets=[data], run=tmp_path / "whole")
    train(dataclasses.replace(config, updates=13), datasets=[data], run=tmp_path / "parts")
    report = train(config, datasets=[data], run=tmp_path / "parts", resume=True)
    assert report.resumed_exactly is True
    whole, parts = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert value.tobytes() == parts[name].tobytes(), name
    assert len(whole["sampler/priority"]) == report.steps
    assert len(np.unique(whole["sampler/priority"])) > report.steps // 2


def test_a_batch_has_the_marks_of_its_draws(tmp_path, make_spec, publish_episodes):
    dataset = publish_episodes(tmp_path / "data", make_spec())
    config = ReplayConfig(batch_size=8, imitate=("scenario=1",))
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        batch = to_batch(sampler.sample(), CPU, torch.float32)
    assert batch.bc_mask is not None
    assert batch.bc_mask.tolist() == [0.0] * 8
    config = dataclasses.replace(config, sequence_length=4, imitate=("scenario=0",))
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        batch = flatten_sequences(sampler.sample_sequences(), 0.9, CPU, torch.float32)
    assert batch.bc_mask is not None
    assert batch.bc_mask.tolist() == [1.0] * 8


def test_a_run_may_become_prioritised_and_stop_being_so(
    tmp_path, make_spec, publish_episodes, config
):
    data, run = tmp_path / "data", tmp_path / "run"
    publish_episodes(data, make_spec())
    plain = dataclasses.replace(config, replay=ReplayConfig(batch_size=8))
    train(dataclasses.replace(plain, updates=5), datasets=[data], run=run)
    assert "sampler/priority" not in tensors_of(run)
    train(dataclasses.replace(config, updates=10), datasets=[data], run=run, resume=True)
    assert "sampler/priority" in tensors_of(run)
    report = train(dataclasses.replace(plain, updates=15), datasets=[data], run=run, resume=True)
    assert report.resumed_exactly is True
    assert "sampler/priority" not in tensors_of(run)


@pytest.mark.parametrize("image", [None, IMAGE], ids=["numbers", "images"])
def test_a_flattened_sequence_holds_its_transitions(tmp_path, make_spec, publish_episodes, image):
    dataset = publish_episodes(tmp_path / "data", make_spec(image=image), length=6)
    config = ReplayConfig(batch_size=12, sequence_length=3, gamma=0.9)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        for _ in range(4):
            drawn = sampler.sample_sequences()
            batch = flatten_sequences(drawn, 0.9, CPU, torch.float32)
            for place in range(12):
                s, step = divmod(place, 3)
                assert batch.reward[place] == drawn.reward[s, step]
                assert batch.discount[place] == np.float32(
                    0.0 if drawn.terminated[s, step] else 0.9
                )
                np.testing.assert_array_equal(batch.action[place], drawn.action[s, step])
                for seen, at in ((batch.observation, step), (batch.next_observation, step + 1)):
                    assert seen.vector is not None
                    assert drawn.vector is not None
                    np.testing.assert_array_equal(seen.vector[place], drawn.vector[s, at])
                    if image is not None:
                        frames = drawn.observation_frames(at)[s]
                        np.testing.assert_array_equal(seen.pixels[0][place], frames)


def test_a_resumed_run_of_sequences_equals_one_that_never_stopped(
    tmp_path, make_spec, publish_episodes, config
):
    data = tmp_path / "data"
    publish_episodes(data, make_spec())
    config = dataclasses.replace(config, replay=ReplayConfig(batch_size=8, sequence_length=4))
    train(config, datasets=[data], run=tmp_path / "whole")
    train(dataclasses.replace(config, updates=13), datasets=[data], run=tmp_path / "parts")
    assert (
        train(config, datasets=[data], run=tmp_path / "parts", resume=True).resumed_exactly is True
    )
    whole, parts = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "parts")
    for name, value in whole.items():
        assert value.tobytes() == parts[name].tobytes(), name


def test_a_run_without_an_episode_as_long_as_its_sequences_says_so(
    tmp_path, make_spec, publish_episodes, config
):
    publish_episodes(tmp_path / "data", make_spec(), length=5)
    config = dataclasses.replace(config, replay=ReplayConfig(batch_size=8, sequence_length=8))
    with pytest.raises(NoSegmentsError, match="no episode has 8 steps"):
        train(config, datasets=[tmp_path / "data"], run=tmp_path / "run")


@pytest.mark.parametrize(
    "replay",
    [
        ReplayConfig(batch_size=8, held_out=0.4, mix=(MixPart(filter=("scenario=0",)),)),
        ReplayConfig(batch_size=8, prioritised=True),
        ReplayConfig(batch_size=8, sequence_length=4),
    ],
    ids=["chosen", "prioritised", "sequences"],
)
def test_the_mode_of_replay_does_not_change_what_is_drawn(
    tmp_path, make_spec, publish_episodes, replay
):
    dataset = publish_episodes(tmp_path / "data", make_spec(image=IMAGE), episodes=5, length=9)
    cache, direct = (dataclasses.replace(replay, mode=mode) for mode in ("cache", "direct"))
    with (
        Sampler([dataset], cache, seed=3, scratch=tmp_path) as left,
        Sampler([dataset], direct, seed=3, scratch=tmp_path) as right,
    ):
        assert 0 < left.steps == right.steps
        for _ in range(3):
            draws = [
                each.sample_sequences() if replay.sequence_length else each.sample()
                for each in (left, right)
            ]
            for name in ("frames", "action", "reward"):
                ours, theirs = (getattr(draw, name) for draw in draws)
                np.testing.assert_array_equal(ours, theirs)
