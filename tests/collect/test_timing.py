"""Several steps per decision, held actions, and delays: what is stored is what happened."""

import dataclasses
import itertools
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from avtd3.collect import CollectConfig, EvaluateConfig, RoadConfig, ScenarioConfig, collect
from avtd3.collect.environment import Environment, ResetResult
from avtd3.collect.evaluator import evaluate
from avtd3.collect.rerender import check_pictures, rerender
from avtd3.collect.sim.camera import CameraConfig
from avtd3.collect.sim.scene import SceneChanges
from avtd3.collect.timing import DelayConfig, TimedEnvironment
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation, Step
from avtd3.store.writer import WriterConfig

pytestmark = pytest.mark.usefixtures("maps_without_own_process")

CONFIG = CollectConfig(
    scenario=ScenarioConfig(number=4, route_length_m=40.0, weather="random", networks=2),
    road=RoadConfig(camera=CameraConfig(height=36, width=36)),
    writer=WriterConfig(segment_steps=100_000, segment_seconds=1e9),
    driver="0.4:expert+noise,0.3:expert,0.3:random",
)
NETWORK = NetworkConfig(hidden=(8,), features=8)


class Counter(Environment):
    """Shows the number of its frame, and remembers the actions that were applied."""

    spec = EpisodeSpec(
        image=ImageSpec(height=1, width=1, stack=1),
        vector_names=("frame",),
        action_names=("push", "pull"),
        reward_terms=("one", "frame"),
    )

    def __init__(self, length=10):
        self.length = length

    def reset(self, seed, index=0):
        self.frame, self.applied, self.image = 0, [], np.zeros((1, 1, 1), np.uint8)
        return ResetResult(observation=self.observe())

    def step(self, action):
        self.frame += 1
        self.applied.append(float(action[0]))
        return Step(
            action=action,
            reward_terms=np.array([1.0, self.frame], np.float32),
            observation=self.observe(),
            terminated=self.frame == self.length,
            end_reason="over" if self.frame == self.length else "",
        )

    def observe(self):
        self.image[:] = self.frame  # worlds may reuse their buffers
        vector = np.array([self.frame], np.float32)
        return Observation(
            image=self.image, vector=vector, frame_id=self.frame, sim_time_s=self.frame * 0.05
        )


def drive(environment, seed=0):
    """Drive an episode with the actions 0.01, 0.02, ...; return its observations and steps."""

    def seen(observation):
        return dataclasses.replace(observation, image=observation.image.copy())

    observations = [seen(environment.reset(seed).observation)]
    steps: list[Step] = []
    while not steps or not steps[-1].is_last:
        action = np.array([0.01 * (len(steps) + 1), 0.0], np.float32)
        steps.append(environment.step(action))
        observations.append(seen(steps[-1].observation))
    return observations, steps


@pytest.mark.parametrize(("length", "repeat"), [(10, 1), (10, 2), (10, 3), (7, 10)])
def test_a_decision_is_several_steps_of_the_world(length, repeat):
    inner = Counter(length)
    environment = TimedEnvironment(inner, repeat, DelayConfig())
    assert environment.spec.control_period_s == pytest.approx(0.05 * repeat)
    observations, steps = drive(environment)
    frames = [*range(0, length, repeat), length]
    assert [o.frame_id for o in observations] == frames
    pairs = list(itertools.pairwise(frames))
    sums = [[b - a, sum(range(a + 1, b + 1))] for a, b in pairs]
    assert [step.reward_terms.tolist() for step in steps] == sums
    assert (steps[-1].terminated, steps[-1].end_reason) == (True, "over")
    decided = [float(np.float32(0.01 * (n // repeat + 1))) for n in range(length)]
    assert inner.applied == decided
    assert environment.labels() is None


def test_what_does_not_depend_on_time_is_that_of_the_inner_environment():
    class Shown(Counter):
        name, scenario_count, legend = "shown", 3, (((1, 2, 3), "a car"),)

    timed = TimedEnvironment(Shown(), 2, DelayConfig())
    assert (timed.name, timed.scenario_count, timed.legend) == ("shown", 3, Shown.legend)
    for name in sorted(vars(Environment).keys() - vars(TimedEnvironment).keys() - {"name"}):
        assert name.startswith("_"), f"{name} is that of the base class"


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    camera=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    command=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    repeat=st.integers(1, 3),
    per=st.sampled_from(["episode", "step"]),
    length=st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_delays_are_stored_as_they_were(camera, command, repeat, per, length, seed):
    delay = DelayConfig(
        camera_s=tuple(0.05 * n for n in sorted(camera)),
        action_s=tuple(0.05 * n for n in sorted(command)),
        per=per,
    )
    inner = Counter(length)
    environment = TimedEnvironment(inner, repeat, delay)
    observations, steps = drive(environment, seed)
    if delay.is_none:
        assert environment.labels() is None
        return
    labels: Any = environment.labels()
    shown = [int(o.image[0, 0, 0]) for o in observations]
    late = np.rint(labels.camera_delay_s / 0.05).astype(int)
    assert shown == [o.frame_id - n for o, n in zip(observations, late, strict=True)]
    assert shown == sorted(shown)  # a camera never goes back
    assert late.max() <= max(camera)
    for t in range(len(shown)):  # the frame is too late only if a newer one has been seen before
        assert late[t] >= min(camera) or shown[t] in (0, *shown[:t])
    # Each command applies from its arrival until a newer one arrives.
    arrivals = np.rint(labels.action_delay_s / 0.05).astype(int) + repeat * np.arange(len(steps))
    assert all(min(command) <= n <= max(command) for n in arrivals - repeat * np.arange(len(steps)))
    for now, applied in enumerate(inner.applied):
        known = [n for n, at in enumerate(arrivals) if at <= now and n * repeat <= now]
        expected = float(np.float32(0.01 * (max(known) + 1))) if known else 0.0
        assert applied == expected
    if per == "episode":
        assert len(set(labels.action_delay_s.tolist())) == 1
    _, again = drive(TimedEnvironment(Counter(length), repeat, delay), seed)
    assert [float(s.reward_terms[1]) for s in again] == [float(s.reward_terms[1]) for s in steps]


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Data of decisions of two steps of the world."""
    path = tmp_path_factory.mktemp("native") / "data"
    collect(path, dataclasses.replace(CONFIG, action_repeat=2), episodes=4)
    return path


def test_held_actions_seen_as_decisions_equal_native_data(native, tmp_path):
    collect(tmp_path / "held", dataclasses.replace(CONFIG, hold_actions=2), episodes=4)
    held, coarse = Dataset.open(tmp_path / "held"), Dataset.open(native)
    assert held.spec.control_period_s == 0.05
    assert coarse.spec.control_period_s == 0.1
    lengths = [[e.length for e in dataset.episodes()] for dataset in (held, coarse)]
    assert [-(-length // 2) for length in lengths[0]] == lengths[1]
    assert any(length % 2 for length in lengths[0])
    plain = ReplayConfig(batch_size=64, n_step=3, stack_stride=2)
    view = dataclasses.replace(plain, action_repeat=2)
    with (
        Sampler([held], view, seed=3, scratch=tmp_path) as ours,
        Sampler([coarse], plain, seed=3, scratch=tmp_path) as theirs,
    ):
        assert (ours.spec, ours.steps) == (theirs.spec, theirs.steps)
        for one, other in zip(ours.batches(20), theirs.batches(20), strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
            for name in ("observation_vector", "next_observation_vector", "action", "discount"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            np.testing.assert_allclose(one.reward, other.reward, rtol=1e-6, atol=1e-6)
    events = [[(x.kind, x.step) for e in d.episodes() for x in e.events] for d in (held, coarse)]
    assert [(kind, step // 2) for kind, step in events[0]] == events[1]


def test_states_of_decisions_give_the_same_pictures(native, tmp_path):
    assert check_pictures(native).differing == 0
    rerender(native, tmp_path / "new", SceneChanges(camera={"height": 20, "width": 24}))
    assert check_pictures(tmp_path / "new").differing == 0
    assert [f for f in audit([native]).findings if f.severity == "error"] == []


@pytest.mark.parametrize("per", ["episode", "step"])
def test_delays_are_stored_with_the_episode(tmp_path, per):
    delay = DelayConfig(camera_s=(0.0, 0.15), action_s=(0.05, 0.1), per=per)
    config = dataclasses.replace(CONFIG, delay=delay, driver="expert")
    for name in ("one", "two"):
        collect(tmp_path / name, config, episodes=2)
    one, two = (list(Dataset.open(tmp_path / name).episodes()) for name in ("one", "two"))
    for episode, again in zip(one, two, strict=True):
        labels: Any = episode.labels
        assert episode.frames.tobytes() == again.frames.tobytes()
        assert set(np.round(labels.action_delay_s, 6)) <= {np.float32(0.05), np.float32(0.1)}
        if per == "episode":
            late = labels.camera_delay_s
            known = 0.0 if late is None else float(late.max())
            assert episode.attributes["camera_delay_s"] == pytest.approx(known)
            assert episode.attributes["action_delay_s"] == pytest.approx(labels.action_delay_s[0])
    assert check_pictures(tmp_path / "one").differing == 0
    assert [f for f in audit([tmp_path / "one"]).findings if f.severity == "error"] == []


@pytest.fixture
def policies(native, tmp_path):
    """A directory with a policy for decisions of 0.1 s."""
    torch.manual_seed(0)
    spec = Dataset.open(native).spec
    PolicyStore(tmp_path / "policies").publish(Actor(spec, NETWORK), spec, NETWORK, updates=0)
    return tmp_path / "policies"


def test_a_policy_decides_as_often_as_it_was_trained_to(policies, tmp_path):
    config = dataclasses.replace(CONFIG, driver="policy")
    collect(tmp_path / "fast", config, episodes=2, policies=policies)
    repeated = dataclasses.replace(config, action_repeat=2)
    collect(tmp_path / "slow", repeated, episodes=2, policies=policies)
    fast, slow = (list(Dataset.open(tmp_path / name).episodes()) for name in ("fast", "slow"))
    for one, other in zip(fast, slow, strict=True):
        assert one.spec.control_period_s == 0.05
        np.testing.assert_array_equal(one.actions[::2], other.actions)
        np.testing.assert_array_equal(one.actions[1::2], other.actions[: len(one.actions) // 2])
    drives = EvaluateConfig(episodes=2, scenario=CONFIG.scenario, road=CONFIG.road)
    at_once = evaluate(policies, drives)
    half_as_often = evaluate(policies, dataclasses.replace(drives, action_repeat=2))
    for ours, theirs in zip(at_once.scores, half_as_often.scores, strict=True):
        assert ours.episode_return == pytest.approx(theirs.episode_return, rel=1e-5)
        assert ours.end_reason == theirs.end_reason


def test_actions_are_not_held_for_longer_than_a_policy_was_trained_for(policies, tmp_path):
    config = dataclasses.replace(CONFIG, driver="policy", hold_actions=3)
    with pytest.raises(ConfigError, match="trained for decisions of 2"):
        collect(tmp_path / "data", config, episodes=1, policies=policies)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"per": "hour"}, "per is 'hour'"),
        ({"camera_s": (0.2, 0.1)}, "camera_s"),
        ({"action_s": (-0.1, 0.1)}, "action_s"),
        ({"camera_s": (0.1,)}, "smallest and largest"),
        ({"camera_s": (0.0, float("nan"))}, "camera_s"),
    ],
)
def test_impossible_delays_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        DelayConfig(**settings)


def test_a_delay_must_contain_a_multiple_of_the_period():
    with pytest.raises(ConfigError, match=r"multiple of the world's period, 0.05 s"):
        TimedEnvironment(Counter(), 1, DelayConfig(camera_s=(0.01, 0.04)))


def test_plans_from_before_these_settings_keep_their_name():
    document = CollectConfig().plan_document()
    assert not {"action_repeat", "hold_actions", "delay", "takeover"} & document.keys()
    assert CollectConfig(action_repeat=2).plan_document() == document | {"action_repeat": 2}
    assert CollectConfig(hold_actions=2).plan_document() == document | {"hold_actions": 2}
    assert CollectConfig(record_expert=False).plan_document() == document
