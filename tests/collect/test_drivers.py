import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.collect.drivers import BASE_DRIVERS, Mixture, NoisyDriver, PolicyDriver, UniformDriver
from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig, TaskStep
from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.rollout import Rollout, check_action
from avtd3.store.errors import ConfigError, WorldError
from avtd3.store.spec import EpisodeSpec
from avtd3.tests.collect.point_world import PointWorld

SETTING = scenario(0, route_length_m=100.0, time_limit_s=40.0)


def make_arena(world=None, config=None):
    return DrivingEnvironment(
        world or PointWorld(), config or TaskConfig(), (SETTING,), ExpertConfig()
    )


class Spying(DrivingEnvironment):
    """Keeps what the task said of each step."""

    def __init__(self, world=None, config=None):
        super().__init__(world or PointWorld(), config or TaskConfig(), (SETTING,), ExpertConfig())
        self.judged: list[TaskStep] = []
        advance = self.task.advance

        def spy(frame):
            self.judged.append(advance(frame))
            return self.judged[-1]

        self.task.advance = spy  # type: ignore[method-assign] # to look on


def drive(make_driver, seed, environment=None):
    environment = environment or make_arena()
    rollout = Rollout(environment, seed)
    return list(rollout.drive(make_driver(environment), "test", np.random.default_rng(seed)))


def expert(environment):
    return environment.driver("expert")


def wandering(environment):
    return environment.driver("random")


def make_spec(low, high):
    return EpisodeSpec(
        image=None,
        vector_names=("x",),
        vector_scales=(1.0,),
        action_names=tuple(f"a{i}" for i in range(len(low))),
        action_low=low,
        action_high=high,
        reward_terms=("reward",),
        control_period_s=0.05,
    )


UNIT = make_spec((-1.0, -1.0), (1.0, 1.0))


@pytest.mark.parametrize("seed", range(5))
def test_the_expert_reaches_the_goal_in_its_lane_near_the_target_speed(seed):
    environment = Spying()
    steps = drive(expert, seed, environment)
    assert steps[-1].step.reason == "goal"
    assert max(abs(judged.facts.lateral_m) for judged in environment.judged) < 1.0
    assert 4.0 < np.mean([judged.facts.speed_mps for judged in environment.judged]) < 9.0
    terms = np.array([t.step.reward_terms for t in steps])
    shares = np.abs(terms).sum(axis=0) / np.abs(terms).sum()
    assert shares.max() < 0.7
    assert 50 < terms.sum() < 400


def test_the_expert_stops_behind_a_standing_vehicle():
    environment = make_arena(PointWorld(lead=60.0), TaskConfig(stuck_s=100.0))
    steps = drive(expert, 0, environment)
    assert steps[-1].step.reason == "time_limit"
    assert environment.task.frame.vehicle.speed_mps < 0.1
    assert 2.0 < environment.task.frame.lead_gap_m < 8.0


def test_the_expert_is_gentle():
    environment = Spying()
    drive(expert, 1, environment)
    jerk = np.array([abs(judged.facts.jerk_mps3) for judged in environment.judged[1:]])
    assert np.mean(jerk) < 10.0


def test_the_random_driver_moves_and_depends_on_its_generator_alone():
    actions = [np.array([t.action for t in drive(wandering, s)]) for s in (0, 0, 1)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0][:5], actions[2][:5])
    moved = []
    for seed in range(8):
        environment = make_arena()
        drive(wandering, seed, environment)
        moved.append(environment.task.progress_m)
    assert np.median(moved) > 10.0


def test_the_uniform_driver_fills_the_bounds():
    spec = make_spec((-2.0, 0.0, -0.4), (2.0, 1.0, 0.4))
    driver = UniformDriver(spec)
    nothing: Any = None
    driver.begin(np.random.default_rng(0))
    drawn = np.array([driver.act(nothing) for _ in range(4000)])
    assert drawn.dtype == np.float32
    assert (drawn >= np.float32(spec.action_low)).all()
    assert (drawn <= np.float32(spec.action_high)).all()
    np.testing.assert_allclose(drawn.mean(axis=0), (0.0, 0.5, 0.0), atol=0.1)
    np.testing.assert_allclose(np.ptp(drawn, axis=0), (4.0, 1.0, 0.8), rtol=0.01)
    driver.begin(np.random.default_rng(0))
    np.testing.assert_array_equal(driver.act(nothing), drawn[0])


class Still:
    """Holds the wheel straight."""

    def __init__(self, size=2):
        self.size = size

    def begin(self, rng):
        pass

    def act(self, observation):
        return np.zeros(self.size, np.float32)


@pytest.mark.parametrize(("time_s", "correlation"), [(0.0, 0.0), (0.5, math.exp(-0.1))])
def test_noise_has_the_stated_deviation_and_memory(time_s, correlation):
    driver: Any = NoisyDriver(Still(), 0.1, time_s=time_s, period_s=0.05, spec=UNIT)
    driver.begin(np.random.default_rng(0))
    values = np.array([driver.act(None)[0] for _ in range(20_000)])
    assert values.std() == pytest.approx(0.1, rel=0.1)
    assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(correlation, abs=0.05)


def test_noise_scales_with_half_the_range_of_each_action():
    spec = make_spec((-2.0, -0.4, -1.0), (2.0, 0.4, 3.0))
    driver: Any = NoisyDriver(Still(3), 0.1, time_s=0.0, period_s=0.05, spec=spec)
    driver.begin(np.random.default_rng(0))
    values = np.array([driver.act(None) for _ in range(5000)])
    np.testing.assert_allclose(values.std(axis=0), (0.2, 0.04, 0.2), rtol=0.05)


def test_noise_may_be_another_for_each_action():
    still: Any = SimpleNamespace(
        act=lambda frames, vector: np.array([0.0, 1.0], np.float32), action_limit=1.0
    )
    spec = make_spec((-1.0, 0.0), (1.0, 2.0))
    environment: Any = SimpleNamespace(spec=spec)
    wanted = Mixture.parse("policy+gaussian=0.2/0").drivers[0]
    driver = wanted.build(environment, PolicyDriver(still))
    driver.begin(np.random.default_rng(0))
    seen: Any = SimpleNamespace(frames=None, vector=None)
    values = np.array([driver.act(seen) for _ in range(5000)])
    np.testing.assert_allclose(values.std(axis=0), (0.2, 0.0), rtol=0.05)
    assert wanted.sigma == 0.2
    other = Mixture.parse("policy+gaussian=0.2/0.1/0.1").drivers[0]
    with pytest.raises(ConfigError, match="3 sigmas, expected 1, or 2 for"):
        other.build(environment, PolicyDriver(still))


def test_noise_stays_within_bounds():
    def noisy(environment):
        return NoisyDriver(
            expert(environment), 1.0, time_s=0.5, period_s=0.05, spec=environment.spec
        )

    actions = np.array([t.action for t in drive(noisy, 3)])
    assert np.abs(actions).max() == 1.0


def test_noise_over_a_policy_that_is_held_back_keeps_to_its_limit():
    still: Any = SimpleNamespace(
        act=lambda frames, vector: np.array([0.5, 0.1], np.float32), action_limit=0.6
    )
    spec = make_spec((-1.0, 0.0), (1.0, 1.0))
    driver = NoisyDriver(PolicyDriver(still), 1.0, time_s=0.0, period_s=0.05, spec=spec)
    driver.begin(np.random.default_rng(0))
    seen: Any = SimpleNamespace(frames=None, vector=None)
    actions = np.array([driver.act(seen) for _ in range(200)])
    np.testing.assert_allclose(actions.min(axis=0), (-0.6, 0.2), rtol=1e-6)
    np.testing.assert_allclose(actions.max(axis=0), (0.6, 0.8), rtol=1e-6)


def test_a_policy_driver_sees_the_stack_and_the_vector():
    seen = []

    class Fake:
        def act(self, frames, vector):
            seen.append((frames, vector))
            return np.array((0.0, 0.5), np.float32)

    policy: Any = Fake()
    steps = drive(lambda _: PolicyDriver(policy), 0)
    frames, vector = seen[2]
    assert frames.shape == (4, 8, 8)
    np.testing.assert_array_equal(frames[3], steps[1].step.image[0])
    np.testing.assert_array_equal(frames[2], steps[0].step.image[0])
    np.testing.assert_array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(vector, steps[1].step.vector)


@pytest.mark.parametrize(
    ("text", "names", "shares"),
    [
        ("expert", ["expert"], [1.0]),
        ("random", ["random"], [1.0]),
        ("policy+gaussian=0.1", ["policy+gaussian=0.1"], [1.0]),
        ("expert+noise", ["expert+noise=0.2"], [1.0]),
        ("policy+gaussian=0.20/0.05", ["policy+gaussian=0.2/0.05"], [1.0]),
        ("3:expert,1:random", ["expert", "random"], [0.75, 0.25]),
        (
            "0.6:expert, 0.3:expert+noise=0.30,0.1:random",
            ["expert", "expert+noise=0.3", "random"],
            [0.6, 0.3, 0.1],
        ),
    ],
)
def test_mixtures_are_read(text, names, shares):
    mixture = Mixture.parse(text)
    assert [driver.name for driver in mixture.drivers] == names
    assert [driver.share for driver in mixture.drivers] == pytest.approx(shares)
    assert Mixture.parse(mixture.text) == mixture


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("", "''"),
        ("export", "'1:export'"),
        ("expert,random", "'expert'"),
        ("0.5:expert,", "''"),
        ("0:expert", "above 0"),
        ("-1:expert", "above 0"),
        ("nan:expert", "above 0"),
        ("half:expert", "'half:expert'"),
        ("1:expert+wind", "'1:expert\\+wind'"),
        ("1:expert+noise=0", "above 0"),
        ("1:expert+noise=9", "at most 2"),
        ("1:expert+noise=1.2.3", "1.2.3"),
        ("1:expert+noise=0.1/", "0.1/"),
        ("1:expert+noise=0/0", "above 0"),
        ("1:expert+noise=0.1/3", "at most 2"),
        ("1:expert=0.2", "'1:expert=0.2'"),
    ],
)
def test_bad_mixtures_name_the_bad_part(text, bad):
    with pytest.raises(ConfigError, match=bad):
        Mixture.parse(text)


def test_bad_drivers_are_told_the_valid_ones():
    with pytest.raises(ConfigError, match=", ".join(BASE_DRIVERS)):
        Mixture.parse("autopilot")


@given(st.integers(0, 2**62))
def test_drawing_depends_on_the_generator_alone(seed):
    mixture = Mixture.parse("1:expert,2:random,3:expert+noise")
    draws = [mixture.draw(np.random.default_rng(seed)) for _ in range(2)]
    assert draws[0] == draws[1]
    assert draws[0] in range(3)


def test_shares_are_kept():
    mixture = Mixture.parse("1:expert,3:random")
    rng = np.random.default_rng(0)
    assert np.mean([mixture.draw(rng) for _ in range(4000)]) == pytest.approx(0.75, abs=0.03)


def test_exploration_noise_goes_on_plain_policies_only():
    explored = Mixture.parse("1:expert,1:policy,1:policy+noise=0.5").exploring(0.1)
    names = [driver.name for driver in explored.drivers]
    assert names == ["expert", "policy+gaussian=0.1", "policy+noise=0.5"]
    assert explored.needs_policy
    assert Mixture.parse("policy").exploring(0.0).drivers[0].name == "policy"
    assert not Mixture.parse("expert").needs_policy


@pytest.mark.parametrize("kind", ["expert", "random", "expert+noise", "policy+gaussian"])
def test_each_driver_can_be_built(kind):
    still: Any = SimpleNamespace(
        act=lambda frames, vector: np.zeros(2, np.float32), action_limit=1.0
    )
    policy = PolicyDriver(still)
    spec = Mixture.parse(kind).drivers[0]
    assert (
        drive(lambda environment: spec.build(environment, policy), 0)[0].action.dtype == np.float32
    )


@pytest.mark.parametrize(
    "action", [[math.nan, 0.0], [0.0, math.inf], [1.1, 0.0], [0.0], [0.0, 0.0, 0.0], 0.0]
)
def test_actions_that_cannot_be_applied_are_one_clear_error(action):
    with pytest.raises(WorldError, match=r"driver policy answered .* in episode 3"):
        check_action(np.array(action), UNIT, "policy", "episode 3")


def test_the_bounds_are_the_spec_s():
    spec = make_spec((-2.0, 0.0), (2.0, 1.0))
    assert check_action(np.array([-2.0, 1.0]), spec, "policy", "here").tolist() == [-2.0, 1.0]
    for action in ([0.0, -0.1], [2.1, 0.5]):
        with pytest.raises(WorldError, match=r"2 finite numbers in \[-2, 2\], \[0, 1\]"):
            check_action(np.array(action), spec, "policy", "here")


def test_expert_settings_are_checked():
    with pytest.raises(ConfigError, match="wheelbase_m"):
        ExpertConfig(wheelbase_m=0.0)
