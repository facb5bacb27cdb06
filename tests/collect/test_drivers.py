import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from avtd3.collect.drivers import NoisyDriver, PolicyDriver, UniformDriver
from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig, TaskStep
from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.mixture import Mixture
from avtd3.collect.rollout import Rollout, check_action, check_frame
from avtd3.store.errors import ConfigError, SpecError, WorldError
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.tests.collect.point_world import PointWorld

SETTING = scenario(0, route_length_m=100.0, time_limit_s=40.0)


def make_environment(world=None, config=None):
    return DrivingEnvironment(
        world or PointWorld(), config or TaskConfig(), (SETTING,), ExpertConfig()
    )


class Spying(DrivingEnvironment):
    """Keeps what the task returned for each step."""

    def __init__(self, world=None, config=None):
        super().__init__(world or PointWorld(), config or TaskConfig(), (SETTING,), ExpertConfig())
        self.results: list[TaskStep] = []
        advance = self.task.advance

        def spy(frame):
            self.results.append(advance(frame))
            return self.results[-1]

        self.task.advance = spy  # type: ignore[method-assign] # to record


def drive(make_driver, seed, environment=None):
    environment = environment or make_environment()
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
    assert steps[-1].end_reason == "goal"
    assert max(abs(result.facts.lateral_m) for result in environment.results) < 1.0
    assert 4.0 < np.mean([result.facts.speed_mps for result in environment.results]) < 9.0
    terms = np.array([t.reward_terms for t in steps])
    shares = np.abs(terms).sum(axis=0) / np.abs(terms).sum()
    assert shares.max() < 0.7
    assert 50 < terms.sum() < 400


def test_the_expert_stops_behind_a_standing_vehicle():
    environment = make_environment(PointWorld(lead=60.0), TaskConfig(stuck_s=100.0))
    steps = drive(expert, 0, environment)
    assert steps[-1].end_reason == "time_limit"
    assert environment.task.frame.vehicle.speed_mps < 0.1
    assert 2.0 < environment.task.frame.lead_gap_m < 8.0


def test_the_expert_is_gentle():
    environment = Spying()
    drive(expert, 1, environment)
    jerk = np.array([abs(result.facts.jerk_mps3) for result in environment.results[1:]])
    assert np.mean(jerk) < 10.0


def test_the_random_driver_moves_and_depends_on_its_generator_alone():
    actions = [np.array([t.action for t in drive(wandering, s)]) for s in (0, 0, 1)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0][:5], actions[2][:5])
    moved = []
    for seed in range(8):
        environment = make_environment()
        drive(wandering, seed, environment)
        moved.append(environment.task.progress_m)
    assert np.median(moved) > 10.0


def test_the_uniform_driver_fills_the_bounds():
    spec = make_spec((-2.0, 0.0, -0.4), (2.0, 1.0, 0.4))
    driver = UniformDriver(spec)
    nothing: Any = None
    driver.reset(np.random.default_rng(0))
    actions = np.array([driver.act(nothing) for _ in range(4000)])
    assert actions.dtype == np.float32
    assert (actions >= np.float32(spec.action_low)).all()
    assert (actions <= np.float32(spec.action_high)).all()
    np.testing.assert_allclose(actions.mean(axis=0), (0.0, 0.5, 0.0), atol=0.1)
    np.testing.assert_allclose(np.ptp(actions, axis=0), (4.0, 1.0, 0.8), rtol=0.01)
    driver.reset(np.random.default_rng(0))
    np.testing.assert_array_equal(driver.act(nothing), actions[0])


class Still:
    """Holds the wheel straight."""

    def __init__(self, size=2):
        self.size = size

    def reset(self, rng):
        pass

    def act(self, observation):
        return np.zeros(self.size, np.float32)


def constant_policy(action, **values) -> Any:
    known = {"action_limit": 1.0, "spec": UNIT, "stack_stride": 1, "version": 1, **values}
    return SimpleNamespace(act=lambda frames, vector: np.array(action, np.float32), **known)


@pytest.mark.parametrize(("time_s", "correlation"), [(0.0, 0.0), (0.5, math.exp(-0.1))])
def test_noise_has_the_stated_deviation_and_memory(time_s, correlation):
    driver: Any = NoisyDriver(Still(), 0.1, time_s=time_s, period_s=0.05, spec=UNIT)
    driver.reset(np.random.default_rng(0))
    values = np.array([driver.act(None)[0] for _ in range(20_000)])
    assert values.std() == pytest.approx(0.1, rel=0.1)
    assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(correlation, abs=0.05)


def test_noise_scales_with_half_the_range_of_each_action():
    spec = make_spec((-2.0, -0.4, -1.0), (2.0, 0.4, 3.0))
    driver: Any = NoisyDriver(Still(3), 0.1, time_s=0.0, period_s=0.05, spec=spec)
    driver.reset(np.random.default_rng(0))
    values = np.array([driver.act(None) for _ in range(5000)])
    np.testing.assert_allclose(values.std(axis=0), (0.2, 0.04, 0.2), rtol=0.05)


def test_noise_may_be_another_for_each_action():
    still = constant_policy([0.0, 1.0])
    spec = make_spec((-1.0, 0.0), (1.0, 2.0))
    environment: Any = SimpleNamespace(spec=spec)
    wanted = Mixture.parse("policy+gaussian=0.2/0").drivers[0]
    driver = wanted.build(environment, PolicyDriver(still))
    driver.reset(np.random.default_rng(0))
    seen = Observation()
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


def test_noise_over_a_policy_with_a_limit_keeps_to_it():
    still = PolicyDriver(constant_policy([0.5, 0.1], action_limit=0.6))
    spec = make_spec((-1.0, 0.0), (1.0, 1.0))
    driver = NoisyDriver(still, 1.0, time_s=0.0, period_s=0.05, spec=spec)
    driver.reset(np.random.default_rng(0))
    seen = Observation()
    actions = np.array([driver.act(seen) for _ in range(200)])
    np.testing.assert_allclose(actions.min(axis=0), (-0.6, 0.2), rtol=1e-6)
    np.testing.assert_allclose(actions.max(axis=0), (0.6, 0.8), rtol=1e-6)


def test_a_policy_driver_sees_the_stack_and_the_vector():
    seen = []

    class Fake:
        spec, stack_stride, version = make_environment().spec, 1, 1

        def act(self, frames, vector):
            seen.append((frames, vector))
            return np.array((0.0, 0.5), np.float32)

    policy: Any = Fake()
    steps = drive(lambda _: PolicyDriver(policy), 0)
    frames, vector = seen[2]
    assert frames.shape == (4, 8, 8)
    np.testing.assert_array_equal(frames[3], steps[1].observation.image[0])
    np.testing.assert_array_equal(frames[2], steps[0].observation.image[0])
    np.testing.assert_array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(vector, steps[1].observation.vector)


@pytest.mark.parametrize("kind", ["expert", "random", "expert+noise", "policy+gaussian"])
def test_each_driver_can_be_built(kind):
    policy = PolicyDriver(constant_policy([0.0, 0.0], spec=make_environment().spec))
    spec = Mixture.parse(kind).drivers[0]
    assert (
        drive(lambda environment: spec.build(environment, policy), 0)[0].action.dtype == np.float32
    )


@pytest.mark.parametrize(
    "action", [[math.nan, 0.0], [0.0, math.inf], [1.1, 0.0], [0.0], [0.0, 0.0, 0.0], 0.0]
)
def test_actions_that_cannot_be_applied_are_one_clear_error(action):
    with pytest.raises(WorldError, match=r"driver policy returned .* in episode seed 3"):
        check_action(np.array(action), UNIT, "policy", 3, 0)


def test_the_bounds_are_the_spec_s():
    spec = make_spec((-2.0, 0.0), (2.0, 1.0))
    assert check_action(np.array([-2.0, 1.0]), spec, "policy", 3, 0).tolist() == [-2.0, 1.0]
    for action in ([0.0, -0.1], [2.1, 0.5]):
        with pytest.raises(WorldError, match=r"2 finite numbers in \[-2, 2\], \[0, 1\]"):
            check_action(np.array(action), spec, "policy", 3, 0)


def test_a_camera_frame_of_another_shape_is_refused():
    with pytest.raises(SpecError, match=r"expected uint8 \(1, 84, 84\)"):
        check_frame(np.zeros((3, 84, 84), np.uint8), ImageSpec(), "point")


def test_expert_settings_are_checked():
    with pytest.raises(ConfigError, match="wheelbase_m"):
        ExpertConfig(wheelbase_m=0.0)
