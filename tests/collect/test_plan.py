import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.collect.plan import (
    GROUP,
    Amount,
    Share,
    digest,
    episode_generator,
    evaluation_seed,
    training_seed,
)
from avtd3.store.errors import ConfigError

SEEDS = st.integers(0, 2**62 - 1)


@given(SEEDS, st.integers(0, 10**9))
def test_training_seeds_are_even_and_evaluation_seeds_odd(seed, index):
    assert training_seed(seed, index) % 2 == 0
    assert evaluation_seed(seed, index) % 2 == 1
    for value in (training_seed(seed, index), evaluation_seed(seed, index)):
        assert 0 <= value < 2**62


def test_seeds_are_fixed_for_ever():
    # A change of these numbers would make --resume repeat episodes under new seeds.
    assert [training_seed(7, i) for i in range(2)] == [4230073846445415312, 4230073846445415314]
    assert len({training_seed(s, i) for s in range(30) for i in range(100)}) == 3000


def test_groups_of_training_episodes_share_their_network_and_evaluations_do_not():
    places = [training_seed(3, i) // (2 * GROUP) for i in range(4 * GROUP)]
    assert len(set(places)) == 4
    assert places == sorted(places, key=places.index)
    assert len({evaluation_seed(3, i) // (2 * GROUP) for i in range(32)}) == 32


def test_the_driver_generator_is_not_the_worlds():
    world = np.random.default_rng(training_seed(0, 0)).random(4)
    assert not np.array_equal(episode_generator(training_seed(0, 0)).random(4), world)


@pytest.mark.parametrize("amount", [{}, {"steps": 1, "episodes": 1}, {"seconds": -1.0}])
def test_exactly_one_amount(amount):
    with pytest.raises(ConfigError, match=r"one of steps, episodes and seconds|seconds is -1"):
        Amount(**amount)


def share(amount, worker=0, workers=1, held=(), held_steps=0):
    return Share(
        amount=amount,
        held=frozenset(held),
        held_steps=held_steps,
        worker=worker,
        workers=workers,
    )


@given(st.integers(0, 40), st.integers(1, 5), st.frozensets(st.integers(0, 50), max_size=30))
def test_workers_share_the_missing_episodes_without_overlap(episodes, workers, held):
    parts = [
        list(share(Amount(episodes=episodes), w, workers, held).indices()) for w in range(workers)
    ]
    assert all(part == sorted(part) for part in parts)
    together = list(itertools.chain(*parts))
    assert sorted(together) == [i for i in range(episodes) if i not in held]


@given(st.integers(0, 10_000), st.integers(0, 12_000), st.integers(1, 7))
def test_workers_share_the_missing_steps(steps, held_steps, workers):
    amount = Amount(steps=steps)
    parts = [share(amount, w, workers, held_steps=held_steps).steps for w in range(workers)]
    assert sum(parts) == max(steps - held_steps, 0)
    assert max(parts) - min(parts) <= 1


def test_steps_and_seconds_have_endless_indices():
    part = share(Amount(seconds=1.0), worker=1, workers=3, held={GROUP, 12 * GROUP})
    assert part.steps is None
    groups = [range(group * GROUP, (group + 1) * GROUP) for group in (1, 4, 7)]
    expected = [index for group in groups for index in group][1:]
    assert list(itertools.islice(part.indices(), len(expected))) == expected


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
