"""Which episodes are drawn, against a plain reading of the configuration over episodes."""

import dataclasses
import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.errors import ConfigError, NoSegmentsError, SegmentCorruptError
from avtd3.store.replay.config import MixPart, ReplayConfig
from avtd3.store.replay.eligibility import split_positions
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.memory import World, make_spec

TOWNS, REASONS = ("country-1", "country-2", "loop"), ("goal", "collision")


@st.composite
def described(draw):
    """An episode: its length, whether it terminated, and what is known of it."""
    about = {
        "scenario": draw(st.integers(0, 2)),
        "town": draw(st.sampled_from(TOWNS)),
        "end_reason": draw(st.sampled_from(REASONS)),
        "policy_version": draw(st.integers(-1, 4)),
    }
    return draw(st.integers(1, 6)), draw(st.booleans()), about


def meant(episode, texts):
    """Whether all texts hold for an episode: only the keys that these tests use."""
    rules = {
        "scenario=0,2": lambda about: about["scenario"] in (0, 2),
        "town=country-*": lambda about: about["town"].startswith("country-"),
        "end=goal": lambda about: about["end_reason"] == "goal",
        "town=loop": lambda about: about["town"] == "loop",
        "town=nowhere": lambda about: False,
        "end=collision": lambda about: about["end_reason"] == "collision",
        "policy=1..3": lambda about: 1 <= about["policy_version"] <= 3,
        "policy=none": lambda about: about["policy_version"] == -1,
    }
    return all(rules[text](episode.about) for text in texts)


def position(episode):
    about = episode.about
    identity = [about[name] for name in ("world", "town", "scenario", "seed", "index")]
    digest = hashlib.sha256(json.dumps(identity).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def episodes_of(world, segment):
    return [world.episodes[int(number)] for number in np.unique(segment.arrays["action"][:, 0])]


class Model:
    """What the configuration means, by loops over episodes."""

    def __init__(self, world, sets, config):
        self.config = config
        parts = [part for part in config.mix if part.weight] or [MixPart()]
        groups = [
            (segment.id, number, episodes_of(world, segment))
            for number, dataset in enumerate(sets)
            for segment in dataset.segments
        ]
        seen = [
            episode
            for *_, episodes in groups
            for episode in episodes
            if meant(episode, config.filter) and any(meant(episode, p.filter) for p in parts)
        ]
        self.newest = max((e.about["policy_version"] for e in seen), default=-1)
        self.held_out = {e.number for e in seen if position(e) < config.held_out}
        allowed = {e.number for e in seen if self.is_young(e)} - self.held_out
        self.drawable = self.newest_segments(groups, allowed)

    def is_young(self, episode):
        version, limit = episode.about["policy_version"], self.config.max_policy_lag
        return limit is None or version == -1 or self.newest - version <= limit

    def newest_segments(self, groups, allowed):
        kept: dict[int, tuple[Any, int]] = {}
        steps = 0
        for _, number, episodes in sorted(groups, key=lambda g: (g[0], g[1]), reverse=True):
            chosen = [e for e in episodes if e.number in allowed]
            if not chosen:
                continue
            steps += sum(e.length for e in chosen)
            if kept and steps > self.config.capacity:
                break
            kept |= {e.number: (e, number) for e in chosen}
        return kept

    def shares(self):
        """Probability of each episode: number to share."""
        config = self.config
        found: dict[int, float] = dict.fromkeys(self.drawable, 0.0)
        for part in config.mix or (MixPart(),):
            weights = config.weights or (1.0,)
            held: dict[int, dict[int, float]] = {}
            for episode, dataset in self.drawable.values():
                if meant(episode, part.filter):
                    place = dataset if config.weights else 0
                    held.setdefault(place, {})[episode.number] = self.mass(episode)
            live = {place: masses for place, masses in held.items() if weights[place]}
            total = sum(weights[place] for place in live)
            for place, masses in live.items():
                for number, mass in masses.items():
                    share = weights[place] / total * mass / sum(masses.values())
                    found[number] += part.weight * share
        total = sum(found.values())
        return {number: share / total for number, share in found.items() if share}

    def mass(self, episode):
        version, half_life = episode.about["policy_version"], self.config.policy_lag_half_life
        if not half_life or version == -1:
            return episode.length
        return episode.length * 0.5 ** ((self.newest - version) / half_life)


TEXTS = st.sampled_from(
    [(), ("scenario=0,2",), ("town=country-*", "end=collision"), ("policy=1..3",)]
)
MIXES = st.sampled_from(
    [
        (),
        (MixPart(filter=("end=collision",), weight=0.3), MixPart(weight=0.7)),
        (MixPart(filter=("policy=none",), weight=2.0), MixPart(filter=("town=country-*",))),
        (MixPart(filter=("scenario=0,2",)), MixPart(weight=0.0)),
    ]
)


@settings(deadline=None, max_examples=60)
@given(
    data=st.lists(
        st.lists(st.lists(described(), min_size=1, max_size=4), max_size=4),
        min_size=1,
        max_size=2,
    ),
    texts=TEXTS,
    mix=MIXES,
    held_out=st.sampled_from([0.0, 0.3]),
    lag=st.sampled_from([None, 0, 2]),
    half_life=st.sampled_from([0.0, 1.5]),
    capacity=st.integers(1, 40),
    imitate=TEXTS,
)
def test_only_eligible_episodes_are_drawn(
    tmp_path_factory, data, texts, mix, held_out, lag, half_life, capacity, imitate
):
    world = World(make_spec(image=False))
    sets = [
        world.dataset(f"/{i}", *((f"{j}-{i}", episodes) for j, episodes in enumerate(segments)))
        for i, segments in enumerate(data)
    ]
    config = ReplayConfig(
        capacity=capacity,
        batch_size=40,
        filter=texts,
        mix=mix,
        held_out=held_out,
        max_policy_lag=lag,
        policy_lag_half_life=half_life,
        imitate=imitate,
    )
    model = Model(world, sets, config)
    with Sampler(sets, config, seed=1, scratch=tmp_path_factory.getbasetemp()) as sampler:
        assert sampler.steps == sum(e.length for e, _ in model.drawable.values())
        assert sampler.opening.steps_added == sampler.steps
        assert len(sampler.opening.episodes) == len(model.drawable)
        held = [int(episode.actions[0, 0]) for episode in sampler.held_out()]
        assert held == sorted(model.held_out, key=lambda n: position(world.episodes[n]))
        if not model.drawable:
            with pytest.raises(NoSegmentsError):
                sampler.sample()
            return
        for _ in range(2):
            batch = sampler.sample()
            drawn = [number for number, _ in world.check(batch, 1, 0.99)]
            assert set(drawn) <= model.drawable.keys()
            marks = [meant(world.episodes[number], imitate) for number in drawn]
            assert (None if batch.bc_mask is None else batch.bc_mask.tolist()) == (
                marks if imitate else None
            )


def three_sets(world):
    """Two datasets with all kinds of episodes, and an empty one."""
    about = [
        {"end_reason": reason, "town": town, "policy_version": version}
        for reason in REASONS
        for town in TOWNS
        for version in (-1, 2, 4)
    ]
    kinds = [(3 + i % 4, True, each) for i, each in enumerate(about)]
    return [
        world.dataset("/d", ("a", kinds[::4]), ("b", kinds[1::4])),
        world.dataset("/e", ("c", kinds[2::4] + kinds[3::4])),
        world.dataset("/f"),
    ]


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"filter": ("end=collision",)},
        {"weights": (3.0, 1.0, 5.0)},
        {"weights": (0.0, 1.0, 0.0), "policy_lag_half_life": 2.0},
        {"policy_lag_half_life": 1.0},
        {"max_policy_lag": 1, "held_out": 0.3},
        {"mix": (MixPart(filter=("end=collision",), weight=0.3), MixPart(weight=0.7))},
        {
            "mix": (
                MixPart(filter=("town=loop",), weight=1.0),
                MixPart(filter=("policy=none",), weight=3.0),
                MixPart(filter=("town=nowhere",), weight=9.0),
            ),
            "weights": (1.0, 4.0, 1.0),
            "policy_lag_half_life": 3.0,
            "filter": ("end=goal",),
        },
    ],
    ids=lambda value: ",".join(value) or "plain",
)
def test_shares_are_exact(tmp_path, settings_):
    world = World(make_spec(image=False))
    sets = three_sets(world)
    config = ReplayConfig(batch_size=20_000, **settings_)
    model = Model(world, sets, config)
    expected = {
        (number, step): share / world.episodes[number].length
        for number, share in model.shares().items()
        for step in range(world.episodes[number].length)
    }
    with Sampler(sets, config, seed=3, scratch=tmp_path) as sampler:
        batch = sampler.sample()
    drawn = Counter(map(tuple, batch.action.astype(int).tolist()))
    assert drawn.keys() <= expected.keys()
    assert chi_square(drawn, expected, 20_000) < limit(len(expected) - 1)


def marks_of(batch):
    """What a batch says of imitation."""
    assert batch.bc_mask.dtype == np.float32
    return batch.bc_mask.tolist()


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("prioritised", [False, True])
def test_what_is_not_imitated_is_drawn_all_the_same(tmp_path, n_step, prioritised):
    world = World(make_spec(image=False))
    shown, own = {"policy_version": -1}, {"policy_version": 3}
    dataset = world.dataset(
        "/d", ("a", [(4, True, shown), (4, True, own)]), ("b", [(4, False, own)])
    )
    plain = ReplayConfig(batch_size=64, n_step=n_step, prioritised=prioritised)
    marked = dataclasses.replace(plain, imitate=("policy=none",))
    with (
        Sampler([dataset], plain, seed=1, scratch=tmp_path) as left,
        Sampler([dataset], marked, seed=1, scratch=tmp_path) as right,
    ):
        for _ in range(20):
            ours, theirs = left.sample(), right.sample()
            assert np.array_equal(ours.action, theirs.action)
            assert marks_of(theirs) == (ours.action[:, 0] == 0).tolist()


def test_a_newly_published_segment_is_marked_too(tmp_path):
    world = World(make_spec(image=False))
    dataset = world.dataset("/d", ("a", [(4, True, {"policy_version": -1})]))
    config = ReplayConfig(batch_size=64, imitate=("policy=none",))
    with Sampler([dataset], config, seed=1, scratch=tmp_path) as sampler:
        assert marks_of(sampler.sample()) == [1.0] * 64
        dataset.segments.append(world.segment("b", [(4, True, {"policy_version": 0})]))
        sampler.refresh()
        batch = sampler.sample()
        assert marks_of(batch) == (batch.action[:, 0] == 0).tolist()
        assert set(marks_of(batch)) == {0.0, 1.0}


def chi_square(drawn, expected, count):
    return sum((drawn[k] - count * p) ** 2 / (count * p) for k, p in expected.items())


def limit(degrees):
    """The 0.999 quantile of chi-square, after Wilson and Hilferty (1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.09 * spread**0.5) ** 3


def test_excluded_segments_are_not_decoded(tmp_path):
    world = World(make_spec())
    dataset = world.dataset("/d", *(three_segments()))
    config = ReplayConfig(filter=("end=collision",), capacity=4)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        assert [segment.reads for segment in dataset.segments] == [1, 0, 1]
        assert sampler.steps == 4  # the goals' steps do not count for the capacity


def three_segments():
    crash = {"end_reason": "collision"}
    return (
        ("a", [(2, True, crash), (9, True)]),
        ("b", [(5, True)]),
        ("c", [(8, True), (2, True, crash)]),
    )


def test_the_split_grows_with_its_share_and_forgets_time_place_and_driver():
    world = World(make_spec(image=False))
    many = [(1, True, {"seed": n, "town": f"t{n % 7}"}) for n in range(2000)]
    table = world.segment("a", many).episode_table()
    positions = split_positions(table)
    assert abs((positions < 0.1).mean() - 0.1) < 4 * (0.09 / 2000) ** 0.5
    assert len(set(positions.tolist())) == 2000
    order = np.random.default_rng(0).permutation(2000)
    moved = dataclasses.replace(
        table,
        offset=table.offset + 5,
        wall_time=table.wall_time + 1e6,
        policy_version=table.policy_version + 1,
        seed=table.seed[order],
        attributes={
            **table.attributes,
            "driver": ["expert"] * 2000,
            "town": [table.texts("town")[i] for i in order],
        },
    )
    assert split_positions(moved).tolist() == positions[order].tolist()


def test_the_split_never_changes():
    world = World(make_spec(image=False))
    table = world.segment("a", [(1, True, {"seed": 7, "town": "loop", "world": "road"})])
    assert split_positions(table.episode_table()).tolist() == [0.7099260482693343]


def test_held_out_episodes_are_whole_and_read_in_order(tmp_path):
    world = World(make_spec(stack=3))
    dataset = world.dataset("/d", ("a", [(4, True), (3, False), (5, True)]), ("b", [(2, True)]))
    config = ReplayConfig(held_out=0.999)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        found = list(sampler.held_out())
        assert [e.number for e in sampler.held_out(2)] == [e.number for e in found[:2]]
        assert list(sampler.held_out(0)) == []
    assert sorted(int(e.actions[0, 0]) for e in found) == [0, 1, 2, 3]
    for episode in found:
        original = world.episodes[int(episode.actions[0, 0])]
        assert np.array_equal(episode.actions, original.action)
        assert np.array_equal(episode.frames, original.frames)
        assert np.array_equal(episode.vectors, original.vector)
        assert np.array_equal(episode.rewards, original.reward)
        assert episode.terminated[-1] == original.terminated
        assert np.array_equal(episode.observations(start=1, stop=2)[0], world.stack(original, 1))
        for t, stacked in enumerate(episode.observations()):
            assert np.array_equal(stacked, world.stack(original, t))


def test_a_damaged_held_out_segment_is_refused_and_the_rest_is_read(tmp_path):
    world = World(make_spec())
    dataset = world.dataset("/d", ("a", [(4, True)]), ("b", [(2, True)]))
    with Sampler([dataset], ReplayConfig(held_out=0.999), seed=0, scratch=tmp_path) as sampler:
        dataset.segments[0].fault = SegmentCorruptError("crc32c of chunk 3")
        assert [episode.segment.id for episode in sampler.held_out()] == ["b"]
        assert [episode.segment.id for episode in sampler.held_out()] == ["b"], (
            "also before a refresh"
        )
        assert [refusal.segment_id for refusal in sampler.refused] == ["a"]


def test_a_newer_policy_makes_older_episodes_rare_and_then_excludes_them(tmp_path):
    world = World(make_spec(image=False))
    dataset = world.dataset("/d", ("a", [(4, True, {"policy_version": 1})]))
    config = ReplayConfig(max_policy_lag=3, batch_size=16)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        for version, steps in ((2, 8), (4, 12), (5, 12), (9, 4)):
            segment = world.segment(f"b{version}", [(4, True, {"policy_version": version})])
            dataset.segments.append(segment)
            state = sampler.state()
            assert sampler.refresh().steps_added == 4
            assert sampler.steps == steps
            assert not sampler.restore(state)
            world.check(sampler.sample(), 1, 0.99)


def test_a_refresh_re_weighs_what_is_held(tmp_path):
    world = World(make_spec(image=False))
    dataset = world.dataset("/d", ("a", [(5, True, {"policy_version": 0})]))
    config = ReplayConfig(policy_lag_half_life=1.0, batch_size=3000, held_out=0.4)
    hidden, shown = (
        next(seed for seed in range(1000) if (position_of(seed) < 0.4) is wanted)
        for wanted in (True, False)
    )
    dataset.segments[0].about[0]["seed"] = shown
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        for seed, version in ((shown, -1), (hidden, 2)):
            about = {"policy_version": version, "seed": seed}
            dataset.segments.append(world.segment(f"b{version}", [(5, True, about)]))
            sampler.refresh()
        drawn = Counter(number for number, _ in world.check(sampler.sample(), 1, 0.99))
    assert drawn.keys() == {0, 1}  # the third is held out, yet has the newest policy
    assert abs(drawn[0] / 3000 - 0.2) < 4 * (0.16 / 3000) ** 0.5


def position_of(seed):
    world = World(make_spec(image=False))
    (episode,) = world.add_episodes([(1, True, {"seed": seed})])
    return position(episode)


def test_a_state_of_another_choice_is_not_exact(tmp_path):
    world = World(make_spec(image=False))
    dataset = world.dataset("/d", *three_segments())
    with (
        Sampler([dataset], ReplayConfig(filter=("end=goal",)), seed=0, scratch=tmp_path) as left,
        Sampler([dataset], ReplayConfig(filter=("end=*",)), seed=0, scratch=tmp_path) as right,
        Sampler([dataset], ReplayConfig(filter=("end=goal",)), seed=4, scratch=tmp_path) as third,
    ):
        assert not right.restore(left.state())
        assert third.restore(left.state())


def test_nothing_is_eligible(tmp_path):
    world = World(make_spec(image=False))
    dataset = world.dataset("/d", *three_segments())
    config = ReplayConfig(filter=("end=goal",), mix=(MixPart(filter=("town=x",)),))
    with (
        Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler,
        pytest.raises(NoSegmentsError, match=r"of 5 episodes, 5 are excluded by replay.filter"),
    ):
        sampler.sample()


def test_a_table_that_cannot_be_read_refuses_its_segment(tmp_path, monkeypatch):
    world = World(make_spec(image=False))
    dataset = world.dataset("/d", *three_segments())

    def fail():
        raise SegmentCorruptError("crc32c of episode_seed")

    monkeypatch.setattr(dataset.segments[1], "episode_table", fail)
    with Sampler([dataset], ReplayConfig(held_out=0.01), seed=0, scratch=tmp_path) as sampler:
        assert [refusal.segment_id for refusal in sampler.opening.refused] == ["b"]
        assert sampler.steps == 21


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("held_out", 1.0),
        ("held_out", -0.1),
        ("max_policy_lag", -1),
        ("max_policy_lag", 1.5),
        ("policy_lag_half_life", -1.0),
        ("policy_lag_half_life", float("inf")),
        ("mix", (MixPart(weight=0.0),)),
    ],
)
def test_config_is_checked(field, value):
    with pytest.raises(ConfigError, match=f"replay.{field}"):
        ReplayConfig(**{field: value})


def test_filters_in_a_config_are_checked():
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        ReplayConfig(filter=("nonsense",))
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        MixPart(filter=("nonsense",))
    with pytest.raises(ConfigError, match=r"replay\.mix weight"):
        MixPart(weight=-1.0)
