import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.memory import World, make_spec

episodes = st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=3)
datasets = st.lists(st.lists(episodes, min_size=0, max_size=5), min_size=1, max_size=3)


@settings(deadline=None)
@given(
    data=datasets,
    stack=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    n=st.integers(1, 6),
    image=st.booleans(),
    vector=st.integers(0, 2),
    capacity=st.integers(1, 60),
    weighted=st.booleans(),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_batches_agree_with_the_slow_formula(
    tmp_path_factory, data, stack, channels, n, image, vector, capacity, weighted, gamma
):
    vector = vector if image else 2
    world = World(make_spec(image, vector, channels=channels, stack=stack))
    sets = [
        world.dataset(f"/{i}", *((f"{j}-{i}", episodes) for j, episodes in enumerate(segments)))
        for i, segments in enumerate(data)
    ]
    config = ReplayConfig(
        capacity=capacity,
        batch_size=37,
        n_step=n,
        gamma=gamma,
        weights=tuple(range(1, len(sets) + 1)) if weighted else (),
    )
    with Sampler(sets, config, seed=1, scratch=tmp_path_factory.getbasetemp()) as sampler:
        held = expected_episodes(sets, config)
        assert sampler.steps == sum(world.episodes[number].length for number in held)
        if not held:
            return
        for _ in range(4):
            assert {number for number, _ in world.check(sampler.sample(), n, gamma)} <= held


def expected_episodes(sets, config):
    """Numbers of the episodes in the newest segments that the capacity holds."""
    groups, shares = [sets], [1.0]
    if config.weights:
        groups = [[dataset] for dataset in sets]
        shares = [weight / sum(config.weights) for weight in config.weights]
    held = set()
    for group, share in zip(groups, shares, strict=True):
        room = int(config.capacity * share)
        everything = [segment for dataset in group for segment in dataset.segments]
        for i, segment in enumerate(sorted(everything, key=lambda s: s.id, reverse=True)):
            room -= segment.steps
            if room < 0 and i:
                break
            held |= set(segment.arrays["episode_policy_version"].tolist())
    return held


def test_numbers_by_hand(tmp_path):
    world = World(make_spec())
    dataset = world.dataset("/d", ("a", [(3, True)]))
    dataset.segments[0].arrays["reward"][:] = [1.0, 10.0, 100.0]
    config = ReplayConfig(batch_size=64, n_step=2, gamma=0.5)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        batch = sampler.sample()
        by_step = {
            int(step): (reward, discount)
            for step, reward, discount in zip(
                batch.action[:, 1], batch.reward.tolist(), batch.discount.tolist(), strict=True
            )
        }
    assert by_step == {0: (6.0, 0.25), 1: (60.0, 0.0), 2: (100.0, 0.0)}


@pytest.mark.parametrize("n", [1, 3])
def test_observations_are_views_of_the_window(tmp_path, n):
    world = World(make_spec(channels=3, stack=2))
    dataset = world.dataset("/d", ("a", [(5, True)]))
    config = ReplayConfig(batch_size=4, n_step=n)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        batch = sampler.sample()
    assert batch.frames is not None
    assert batch.observation_frames is not None
    assert batch.frames.shape == (4, 3 if n == 1 else 4, 3, 3, 2)
    assert batch.observation_frames.shape == (4, 6, 3, 2)
    assert np.shares_memory(batch.frames, batch.observation_frames)
    assert np.shares_memory(batch.frames, batch.next_observation_frames)
    assert "observation_frames=uint8(4, 6, 3, 2)" in repr(batch)


@pytest.mark.parametrize("n", [100, 4000, 10**9, 10**30])
def test_any_number_of_steps_is_summed_in_memory_that_the_episodes_bound(tmp_path, n):
    world = World(make_spec(image=False))
    dataset = world.dataset("/d", ("a", [(3, True), (2500, False), (70, True)]))
    config = ReplayConfig(batch_size=64, n_step=n, gamma=0.999)
    tracemalloc.start()
    try:
        with Sampler([dataset], config, seed=1, scratch=tmp_path) as sampler:
            batch = sampler.sample()
            assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()
    world.check(batch, min(n, 2500), 0.999)


def test_a_batch_that_no_memory_holds_is_refused():
    with pytest.raises(ConfigError, match=r"replay\.batch_size is 1000000000, expected at most"):
        ReplayConfig(batch_size=10**9)
