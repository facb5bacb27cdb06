"""Sequences against the episodes they were cut from, and their shares."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.errors import ConfigError, NoSegmentsError
from avtd3.store.replay.config import MixPart, ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.memory import World, make_spec

episodes = st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=3)


def check(world, batch, length):
    """Every sequence is the run of steps that its actions name; returns their starts."""
    starts = []
    for s, actions in enumerate(batch.action.astype(int).tolist()):
        (number, start), episode = actions[0], world.episodes[actions[0][0]]
        assert actions == [[number, start + i] for i in range(length)]
        steps = slice(start, start + length)
        assert batch.reward[s].tolist() == episode.reward[steps].tolist()
        ends = [start + i + 1 == episode.length for i in range(length)]
        assert batch.terminated[s].tolist() == [end and episode.terminated for end in ends]
        assert batch.truncated[s].tolist() == [end and not episode.terminated for end in ends]
        if world.spec.vector_size:
            assert (batch.vector[s] == episode.vector[start : start + length + 1]).all()
        if world.spec.image is not None:
            for i in range(length + 1):
                stack = world.stack(episode, start + i)
                assert (batch.observation_frames(i)[s] == stack).all()
        starts.append((number, start))
    return starts


@settings(deadline=None, max_examples=50)
@given(
    data=st.lists(episodes, min_size=1, max_size=4),
    length=st.integers(1, 5),
    stack=st.integers(1, 4),
    image=st.booleans(),
    vector=st.integers(0, 2),
    mixed=st.booleans(),
    imitate=st.sampled_from([(), ("scenario=0",), ("scenario=1",)]),
)
def test_sequences_are_runs_of_one_episode(
    tmp_path_factory, data, length, stack, image, vector, mixed, imitate
):
    world = World(make_spec(image, vector if image else 2, stack=stack))
    dataset = world.dataset("/d", *((f"s{i}", each) for i, each in enumerate(data)))
    config = ReplayConfig(
        batch_size=7 * length,
        sequence_length=length,
        mix=(MixPart(),) if mixed else (),
        imitate=imitate,
    )
    possible = {
        (episode.number, start)
        for episode in world.episodes
        for start in range(episode.length - length + 1)
    }
    with Sampler([dataset], config, seed=1, scratch=tmp_path_factory.getbasetemp()) as sampler:
        if not possible:
            with pytest.raises(NoSegmentsError, match=f"no episode has {length} steps"):
                sampler.sample_sequences()
            return
        drawn = set()
        for _ in range(17):
            batch = sampler.sample_sequences()
            assert batch.reward.shape == (7, length)
            marks = [1.0 if imitate == ("scenario=0",) else 0.0] * 7 if imitate else None
            assert (None if batch.bc_mask is None else batch.bc_mask.tolist()) == marks
            drawn |= set(check(world, batch, length))
        assert drawn <= possible
        world.check(sampler.sample(), 1, 0.99)


def test_all_starts_are_equally_likely_and_weights_hold(tmp_path):
    world = World(make_spec(image=False))
    sets = [world.dataset("/d", ("a", [(5, True), (2, True), (9, False)]))]
    sets.append(world.dataset("/e", ("b", [(6, True)])))
    for weights in ((), (1.0, 3.0)):
        config = ReplayConfig(batch_size=3000, sequence_length=3, weights=weights)
        with Sampler(sets, config, seed=2, scratch=tmp_path) as sampler:
            batches = [sampler.sample_sequences() for _ in range(5)]
        drawn = Counter(start for batch in batches for start in check(world, batch, 3))
        share = {0: 1 / 14, 2: 1 / 14, 3: 1 / 14}
        if weights:
            share = {0: 0.25 / 10, 2: 0.25 / 10, 3: 0.75 / 4}
        expected = {
            (number, start): 5000 * share[number]
            for number in share
            for start in range(world.episodes[number].length - 2)
        }
        assert drawn.keys() == expected.keys()
        chi_square = sum((drawn[k] - e) ** 2 / e for k, e in expected.items())
        assert chi_square < 34.5  # 13 degrees, 0.999


def test_a_restored_sampler_continues_and_transitions_do_not_disturb_it(tmp_path):
    world = World(make_spec())
    dataset = world.dataset("/d", ("a", [(9, True), (5, False)]))
    config = ReplayConfig(batch_size=8, sequence_length=4)
    with (
        Sampler([dataset], config, seed=1, scratch=tmp_path) as left,
        Sampler([dataset], config, seed=2, scratch=tmp_path) as right,
    ):
        for _ in range(3):
            left.sample_sequences()
        state = json.loads(json.dumps(left.state()))
        left.sample()
        right.sample_sequences()
        assert right.restore(state)
        for _ in range(20):
            ours, theirs = left.sample_sequences(), right.sample_sequences()
            assert np.array_equal(ours.action, theirs.action)
            assert ours.frames is not None
            assert theirs.frames is not None
            assert np.array_equal(ours.frames, theirs.frames)


def test_new_segments_are_drawn_from(tmp_path):
    world = World(make_spec())
    dataset = world.dataset("/d")
    config = ReplayConfig(batch_size=32, sequence_length=4)
    with Sampler([dataset], config, seed=1, scratch=tmp_path) as sampler:
        with pytest.raises(NoSegmentsError, match="no segment is published yet"):
            sampler.sample_sequences()
        for name in "abc":
            dataset.segments.append(world.segment(name, [(4, True)]))
            sampler.refresh()
            check(world, sampler.sample_sequences(), 4)
        assert repr(sampler.sample_sequences()) == "SequenceBatch(sequences=8, steps=4)"


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_length": -1},
        {"sequence_length": 1.5},
        {"sequence_length": 10},
        {"sequence_length": 4, "n_step": 3},
        {"sequence_length": 4, "prioritised": True},
    ],
    ids=str,
)
def test_config_is_checked(changes):
    with pytest.raises(ConfigError, match=r"replay\.sequence_length"):
        ReplayConfig(**changes)
