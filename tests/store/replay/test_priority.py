"""Prioritised draws against plain dictionaries of priorities, through refreshes and restores."""

import dataclasses
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from avtd3.store.errors import CheckpointError, ConfigError
from avtd3.store.replay.config import MixPart, PriorityConfig, ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.memory import TWO, World, make_spec

ALPHA, EPSILON = 0.7, 0.01


def config_of(**settings_):
    priority = PriorityConfig(alpha=ALPHA, beta=0.5, beta_batches=4, epsilon=EPSILON)
    plain = ReplayConfig(batch_size=6, prioritised=True, priority=priority)
    return dataclasses.replace(plain, **settings_)


class PrioritisedSampling(RuleBasedStateMachine):
    """Draws, updates, publications, removals and restores, in any order."""

    def __init__(self):
        super().__init__()
        self.world = World(make_spec(image=False))
        self.dataset = self.world.dataset("/d", ("s00", [(3, True), (2, False)]))
        self.model: dict[tuple[int, int], float] = {}
        self.batches: list[tuple[Any, list[tuple[int, int] | None]]] = []
        self.largest, self.count = 1.0, 0

    @initialize(
        scratch=st.just("/tmp"), n=st.sampled_from([1, 3]), capacity=st.sampled_from([12, 1000])
    )
    def open(self, scratch, n, capacity):
        self.n = n
        self.config = config_of(n_step=n, capacity=capacity, scratch=scratch)
        self.sampler = Sampler([self.dataset], self.config, seed=1)
        self.follow()

    def teardown(self):
        if hasattr(self, "sampler"):
            self.sampler.close()

    def follow(self):
        """New transitions enter with the largest priority, others keep theirs."""
        held: dict[tuple[int, int], float] = {}
        steps = 0
        for segment in sorted(self.dataset.segments, key=lambda s: s.id, reverse=True):
            steps += segment.steps
            if held and steps > self.config.capacity:
                break
            for number, step in segment.arrays["action"].astype(int).tolist():
                held[number, step] = self.model.get((number, step), self.largest)
        self.model = held
        # What was let go of is new if it comes back: older indexes do not name it.
        self.batches = [
            (index, [pair if pair in held else None for pair in drawn])
            for index, drawn in self.batches
        ]

    @rule(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3))
    def publish(self, lengths):
        self.count += 1
        name = f"s{self.count:02}"
        segment = self.world.segment(name, [(length, True) for length in lengths])
        self.dataset.segments.append(segment)
        self.sampler.refresh()
        self.follow()

    @rule(place=st.integers(0, 9))
    def remove(self, place):
        if len(self.dataset.segments) > 1:
            del self.dataset.segments[place % len(self.dataset.segments)]
            self.sampler.refresh()
            self.follow()

    @rule()
    def draw(self):
        batch = self.sampler.sample()
        drawn = self.world.check(batch, self.n, 0.99)
        assert set(drawn) <= self.model.keys()
        priority = np.array([self.model[pair] for pair in drawn])
        assert batch.weight is not None
        assert batch.weight.max() == 1.0
        assert batch.weight == pytest.approx((priority.min() / priority) ** (ALPHA * self.beta()))
        self.batches.append((batch.index, [*drawn]))

    def beta(self):
        """As of the batch that was just drawn."""
        drawn = self.sampler.state()["priorities"]["drawn"] - 1
        return 0.5 + 0.5 * min(drawn / 4, 1.0)

    @rule(
        age=st.integers(0, 5), errors=st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6)
    )
    def learn(self, age, errors):
        if not self.batches:
            return
        index, drawn = self.batches[-1 - age % len(self.batches)]
        errors[3] = float("nan") if errors[3] > 10 else errors[3]
        self.sampler.update_priorities(index, np.array(errors, np.float32))
        for pair, error in zip(drawn, errors, strict=True):
            if pair is not None and not np.isnan(error):
                self.model[pair] = abs(error) + EPSILON
                self.largest = max(self.largest, self.model[pair])

    @rule()
    def reopen(self):
        state = json.loads(json.dumps(self.sampler.state()))
        arrays = self.sampler.arrays()
        fresh = Sampler([self.dataset], self.config, seed=9)
        assert fresh.restore(state, arrays)
        assert fresh.state() == state
        assert all((fresh.arrays()[k] == v).all() for k, v in arrays.items())
        ours, theirs = fresh.sample(), self.sampler.sample()
        for name in ("action", "reward", "discount", "weight", "observation_vector"):
            assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()
        self.sampler.close()
        self.sampler = fresh
        self.batches.clear()  # indexes live as long as their sampler

    @invariant()
    def priorities_are_those_of_the_model(self):
        if not hasattr(self, "sampler"):
            return
        priorities = self.sampler._priorities
        assert priorities is not None
        held = np.arange(self.sampler.steps)
        lookup = self.sampler._gather.look_up(held[None])
        pairs = [(int(number), int(step)) for number, step in lookup.action[0]]
        assert sorted(pairs) == sorted(self.model)
        expected = np.array([self.model[pair] for pair in pairs])
        assert priorities._priority == pytest.approx(expected, rel=1e-5)
        assert priorities._tree.values(held) == pytest.approx(expected**ALPHA, rel=1e-5)


TestPrioritisedSampling = PrioritisedSampling.TestCase
TestPrioritisedSampling.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)


def test_draws_are_in_proportion_to_priority_and_share(tmp_path):
    world = World(make_spec(image=False))
    kinds = [(4, True, {"end_reason": reason}) for reason in ("goal", "collision", "goal")]
    dataset = world.dataset("/d", ("a", kinds))
    mix = (MixPart(filter=("end=collision",), weight=3.0), MixPart(weight=1.0))
    for parts in ((), mix):
        config = config_of(batch_size=3000, mix=parts)
        with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
            first = sampler.sample()
            errors = first.action[:, 1] ** 2  # by the step
            assert first.index is not None
            sampler.update_priorities(first.index, errors)
            batches = [sampler.sample() for _ in range(4)]
        drawn = Counter(
            (int(number), int(t)) for batch in batches for number, t in batch.action.tolist()
        )
        mass = {
            (number, t): ((10.0 if number == 1 else 1.0) if parts else 1.0)
            * (t**2 + EPSILON) ** ALPHA
            for number in range(3)
            for t in range(4)
        }
        total = sum(mass.values())
        expected = {pair: 12_000 * m / total for pair, m in mass.items()}
        assert sum((drawn[k] - e) ** 2 / e for k, e in expected.items()) < 31.3  # 11 degrees, 0.999


def test_a_batch_is_stratified(world, tmp_path):
    dataset = world.dataset("/d", ("a", [(8, True)]))
    with Sampler([dataset], config_of(batch_size=8), seed=0, scratch=tmp_path) as sampler:
        for _ in range(5):
            assert sampler.sample().action[:, 1].tolist() == list(range(8))


def test_uniform_draws_have_neither_weight_nor_index(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    with Sampler([dataset], ReplayConfig(batch_size=4), seed=0, scratch=tmp_path) as sampler:
        batch = sampler.sample()
        assert (batch.weight, batch.index, sampler.arrays()) == (None, None, {})
        assert "priorities" not in sampler.state()


def test_priorities_outlive_a_change_of_the_data(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    with (
        Sampler([dataset], config_of(), seed=0, scratch=tmp_path) as left,
        Sampler([dataset], config_of(), seed=5, scratch=tmp_path) as right,
    ):
        batch = left.sample()
        assert batch.index is not None
        left.update_priorities(batch.index, np.linspace(2, 9, 6, dtype=np.float32))
        state, arrays = left.state(), left.arrays()
        del dataset.segments[0]
        dataset.segments.append(world.segment("c", [(3, True)]))
        left.refresh(), right.refresh()
        assert not right.restore(state, arrays)
        for name, values in right.arrays().items():
            assert values.tolist() == left.arrays()[name].tolist()


def test_a_state_of_uniform_draws_begins_with_equal_priorities(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    with (
        Sampler([dataset], ReplayConfig(batch_size=6), seed=0, scratch=tmp_path) as left,
        Sampler([dataset], config_of(), seed=5, scratch=tmp_path) as right,
    ):
        assert right.restore(left.state(), left.arrays())
        assert right.arrays()["priority"].tolist() == [1.0] * 9


@pytest.mark.parametrize(
    "damage",
    [
        lambda state, _: state.pop("largest"),
        lambda state, _: state.update(segments=3),
        lambda state, _: state.update(generator={}),
        lambda _, arrays: arrays.pop("priority"),
        lambda _, arrays: arrays.update(priority=np.zeros(3, np.float32)),
        lambda _, arrays: arrays.update(priority_episodes=np.full((3, 3), 7)),
        lambda _, arrays: arrays.update(priority_episodes=np.zeros(3)),
    ],
    ids=("no largest", "no names", "no generator", "none", "too few", "no segment", "no table"),
)
def test_damaged_priorities_are_refused(world, tmp_path, damage):
    with Sampler([world.dataset("/d", *TWO)], config_of(), seed=7, scratch=tmp_path) as sampler:
        state, arrays = sampler.state(), sampler.arrays()
        damage(state["priorities"], arrays)
        with pytest.raises(CheckpointError, match="sampler priorities"):
            sampler.restore(state, arrays)


@pytest.mark.parametrize(
    ("field", "value"),
    [("alpha", 1.1), ("beta", -0.1), ("beta_batches", 0), ("epsilon", 0.0)],
)
def test_config_is_checked(field, value):
    with pytest.raises(ConfigError, match=rf"replay\.priority\.{field}"):
        PriorityConfig(**{field: value})
