import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.errors import CheckpointError
from avtd3.store.replay import draws
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.draws import BATCHES_AT_ONCE
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.memory import TWO, World, copy, make_spec, same


def test_all_transitions_are_equally_likely(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    with Sampler([dataset], ReplayConfig(batch_size=9000), seed=0, scratch=tmp_path) as sampler:
        drawn = world.check(sampler.sample(), 1, 0.99)
    counts = [drawn.count(pair) for pair in set(drawn)]
    assert len(counts) == 9
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 26.1  # chi2, 8 degrees, 0.999


def test_weights_set_the_share_of_each_dataset(world, tmp_path):
    sets = [
        world.dataset("/d", *TWO),
        world.dataset("/e", ("c", [(40, True)])),
    ]
    sets.append(world.dataset("/f", ("d", [(4, True)])))
    config = ReplayConfig(batch_size=10_000, weights=(3.0, 1.0, 0.0))
    with Sampler(sets, config, seed=0, scratch=tmp_path) as sampler:
        assert sampler.steps == 49
        first = sum(number < 3 for number, _ in world.check(sampler.sample(), 1, 0.99))
    assert abs(first - 7500) < 4 * 43.3  # four standard deviations


def test_weight_of_an_empty_dataset_goes_to_the_others(world, tmp_path):
    sets = [world.dataset("/d", *TWO), world.dataset("/e")]
    config = ReplayConfig(batch_size=8, weights=(1.0, 9.0))
    with Sampler(sets, config, seed=0, scratch=tmp_path) as sampler:
        world.check(sampler.sample(), 1, 0.99)
        sets[1].segments.append(world.segment("c", [(3, True)]))
        sampler.refresh()
        assert any(number == 3 for number, _ in world.check(sampler.sample(), 1, 0.99))


def test_same_seed_same_batches_and_restore_continues(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    config = ReplayConfig(batch_size=5)
    with (
        Sampler([dataset], config, seed=7, scratch=tmp_path) as left,
        Sampler([dataset], config, seed=7, scratch=tmp_path) as right,
        Sampler([dataset], config, seed=8, scratch=tmp_path) as other,
    ):
        for _ in range(3):
            batch = copy(left.sample())
            assert same(batch, copy(right.sample()))
        assert not same(batch, copy(other.sample()))
        state = json.loads(json.dumps(left.state()))
        expected = [copy(left.sample()) for _ in range(5)]
        assert other.restore(state)
        assert all(same(copy(other.sample()), batch) for batch in expected)


@settings(deadline=None, max_examples=30)
@given(
    before=st.integers(0, 2 * BATCHES_AT_ONCE + 1),
    weights=st.sampled_from([(), (1.0, 3.0)]),
    n=st.sampled_from([1, 2]),
)
def test_restore_continues_from_any_batch(tmp_path_factory, before, weights, n):
    world, scratch = World(make_spec()), tmp_path_factory.getbasetemp()
    sets = [world.dataset("/d", *TWO), world.dataset("/e", *TWO)]
    config = ReplayConfig(batch_size=3, weights=weights, n_step=n)
    with (
        Sampler(sets, config, seed=1, scratch=scratch) as left,
        Sampler(sets, config, seed=2, scratch=scratch) as right,
    ):
        for _ in range(before):
            left.sample()
        state = left.state()
        assert left.state() == state
        right.sample()
        assert right.restore(state)
        assert right.state() == state
        for _ in range(BATCHES_AT_ONCE + 2):
            assert same(copy(left.sample()), copy(right.sample()))
        assert left.state() == right.state()


def test_refresh_without_news_changes_nothing(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    config = ReplayConfig(batch_size=5)
    with (
        Sampler([dataset], config, seed=7, scratch=tmp_path) as left,
        Sampler([dataset], config, seed=7, scratch=tmp_path) as right,
    ):
        for _ in range(20):
            assert same(copy(left.sample()), copy(right.sample()))
            assert right.refresh().segments_added == 0


def test_resume_after_following_draws_the_same(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    config = ReplayConfig(batch_size=6, capacity=8)
    with Sampler([dataset], config, seed=7, scratch=tmp_path) as first:
        for number in range(5):
            dataset.segments.append(world.segment(f"c{number}", [(3 + number % 2, True)]))
            first.refresh()
        # a late arrival: written before the others, copied here after them
        dataset.segments.append(world.segment("c3-late", [(1, True)]))
        first.refresh()
        with Sampler([dataset], config, seed=0, scratch=tmp_path) as second:
            assert second.restore(first.state())
            assert same(copy(first.sample()), copy(second.sample()))


def test_restore_reports_that_the_data_has_changed(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    with Sampler([dataset], ReplayConfig(), seed=7, scratch=tmp_path) as sampler:
        state = sampler.state()
        dataset.segments.append(world.segment("c", [(3, True)]))
        sampler.refresh()
        assert not sampler.restore(state)


@pytest.mark.parametrize(
    "damage",
    [{"state": "x"}, {"has_uint32": None}, {"taken": 16}, {"taken": -1}, {"state": str(1 << 200)}],
)
def test_damaged_state_is_refused(world, tmp_path, damage):
    with Sampler([world.dataset("/d")], ReplayConfig(), seed=7, scratch=tmp_path) as sampler:
        with pytest.raises(CheckpointError, match="sampler state"):
            sampler.restore({**sampler.state(), **damage})
        with pytest.raises(CheckpointError, match="sampler state"):
            sampler.restore({})


@given(
    ahead=st.integers(2, 5),
    size=st.sampled_from([1, 3, 40]),
    moves=st.lists(
        st.one_of(st.integers(1, 70), st.lists(st.integers(0, 9), min_size=1, max_size=4)),
        max_size=12,
    ),
    weighted=st.booleans(),
)
def test_drawing_blocks_ahead_changes_no_batch(ahead, size, moves, weighted):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "_BLOCKS_AHEAD", 1)
        one = draws.Draws(seed=3, batch_size=size)
        patch.setattr(draws, "_BLOCKS_AHEAD", ahead)
        several = draws.Draws(seed=3, batch_size=size)
    for move in [[5], *moves]:
        if isinstance(move, list):  # the data change
            counts = np.array([1, *move])
            shares = (counts > 0) / counts.size if weighted else None
            one.bind(counts, shares)
            several.bind(counts, shares)
            continue
        for _ in range(move):
            (block, place), (blocks, place_of_several) = one.next(), several.next()
            assert block[place].tolist() == blocks[place_of_several].tolist()
        assert one.state() == several.state()
        several.restore(json.loads(json.dumps(one.state())))
