import dataclasses
import math

import numpy as np
import pytest

from avtd3.collect.driving.reward import REWARD_TERMS
from avtd3.collect.driving.task import DrivingTask, TaskConfig
from avtd3.collect.driving.world import WorldStart
from avtd3.collect.maps.scenarios import scenario
from avtd3.store.errors import ConfigError
from avtd3.store.spec import ImageSpec
from avtd3.tests.collect.point_world import make_frame, straight_route

SETTING = scenario(0, time_limit_s=60.0)


def started(config=None, setting=SETTING, route=None, **vehicle):
    task = DrivingTask(config or TaskConfig(), 0.05)
    start = WorldStart(
        route=route or straight_route(100.0), frame=make_frame(**vehicle), town="t", weather="w"
    )
    return task, task.reset(start, setting)


def test_the_spec_names_what_is_stored():
    spec = DrivingTask(TaskConfig(), 0.05).spec(ImageSpec())
    assert spec.vector_size == 23
    assert spec.action_names == ("steer", "throttle_brake")
    assert spec.reward_terms == REWARD_TERMS
    assert spec.control_period_s == 0.05
    assert spec.image == ImageSpec(channels=1, height=84, width=84, stack=4)


def test_an_ordinary_step():
    task, vector = started(speed_mps=5.0)
    step = task.advance(make_frame(x_m=0.25, y_m=0.5, speed_mps=5.0, yaw_rad=0.1))
    assert vector.shape == step.vector.shape == (23,)
    assert (step.terminated, step.truncated, step.reason) == (False, False, "")
    assert task.progress_m == pytest.approx(0.25)
    assert step.facts.lateral_m == pytest.approx(0.5)
    assert step.facts.heading_rad == pytest.approx(0.1)
    assert step.facts.lane_width_m == 3.5
    assert step.reward_terms[0] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("frame", "terminated", "reason"),
    [
        ({"collision": "vehicle"}, True, "collision"),
        ({"collision": "vehicle", "off_road": True, "x_m": 39.0}, True, "collision"),
        ({"off_road": True}, True, "off_road"),
        ({"y_m": 8.1}, True, "off_route"),
        ({"y_m": -8.1, "off_road": True}, True, "off_road"),
        ({"x_m": 37.0}, True, "goal"),
        ({"x_m": 36.9}, False, ""),
        ({"y_m": 7.9}, False, ""),
        ({"wrong_way": True}, False, ""),
    ],
)
def test_what_terminates(frame, terminated, reason):
    task, _ = started(route=straight_route(40.0), x_m=20.0)
    # near_m follows the car: the route is searched around its last place.
    task.advance(make_frame(x_m=30.0, speed_mps=1.0))
    step = task.advance(make_frame(**{"x_m": 30.0, "speed_mps": 1.0, **frame}))
    assert (step.terminated, step.truncated, step.reason) == (terminated, False, reason)
    assert step.facts.off_road == (reason in ("off_road", "off_route") or "off_road" in frame)
    assert step.facts.goal == (reason == "goal")


def test_the_time_limit_truncates_after_exactly_its_steps():
    setting = scenario(0, time_limit_s=3.0)
    task, _ = started(setting=setting)
    ends = [task.advance(make_frame(speed_mps=1.0, lead_gap_m=5.0)) for _ in range(60)]
    assert [step.truncated for step in ends] == [False] * 59 + [True]
    assert ends[-1].reason == "time_limit"
    assert not ends[-1].terminated


def test_standing_without_a_lead_is_stuck_and_behind_one_is_not():
    task, _ = started(TaskConfig(stuck_s=1.0))
    for _ in range(30):
        assert not task.advance(make_frame(lead_gap_m=5.0)).truncated
    ends = [task.advance(make_frame()).truncated for _ in range(20)]
    assert ends == [False] * 19 + [True]
    task, _ = started(TaskConfig(stuck_s=1.0))
    for _ in range(5):  # moving now and then starts the count again
        assert not any(task.advance(make_frame()).truncated for _ in range(15))
        task.advance(make_frame(speed_mps=1.0))


def test_jerk_is_the_change_of_the_acceleration_vector():
    task, _ = started()
    step = task.advance(make_frame(acceleration_mps2=0.3, lateral_acceleration_mps2=0.4))
    assert step.facts.jerk_mps3 == pytest.approx(0.5 / 0.05)
    step = task.advance(make_frame(acceleration_mps2=0.3, lateral_acceleration_mps2=0.4))
    assert step.facts.jerk_mps3 == 0.0


def test_progress_stays_on_its_branch_where_the_route_crosses_itself():
    angle = np.linspace(0.0, 2.0 * math.pi, 200)
    loop = np.stack([40 * np.sin(angle), 40 * np.sin(angle) * np.cos(angle)], axis=1)
    route = dataclasses.replace(straight_route(), points=loop, lane_width_m=np.array(3.5))
    task, _ = started(route=route, x_m=loop[0, 0], y_m=loop[0, 1])
    progress = []
    for x, y in loop[1:190]:
        task.advance(make_frame(x_m=x, y_m=y, speed_mps=5.0))
        progress.append(task.progress_m)
    gained = np.diff(progress)
    assert gained.min() > 0.0
    assert gained.max() < 3.0
    assert task.completion == pytest.approx(progress[-1] / (route.length_m - 3.0))


def test_driving_back_costs_progress_but_not_completion():
    task, _ = started(x_m=20.0)
    task.advance(make_frame(x_m=30.0, speed_mps=5.0))
    best = task.completion
    step = task.advance(make_frame(x_m=28.0, speed_mps=-5.0))
    assert step.facts.progress_m == pytest.approx(-2.0)
    assert task.completion == best


def test_a_started_task_forgets_the_episode_before():
    setting = scenario(0, time_limit_s=1.0)
    task = DrivingTask(TaskConfig(), 0.05)
    for _ in range(2):
        start = WorldStart(
            route=straight_route(), frame=make_frame(acceleration_mps2=1.0), town="t", weather="w"
        )
        task.reset(start, setting)
        assert task.completion == 0.0
        steps = [
            task.advance(make_frame(x_m=i * 0.1, acceleration_mps2=1.0, speed_mps=2.0))
            for i in range(20)
        ]
        assert steps[0].facts.jerk_mps3 == 0.0
        assert [s.truncated for s in steps] == [False] * 19 + [True]


def test_bad_values_are_refused():
    with pytest.raises(ConfigError, match="stuck_s is 0"):
        TaskConfig(stuck_s=0.0)
