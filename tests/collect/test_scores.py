import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from avtd3.collect.driving.driving_env import DriveMeter
from avtd3.collect.driving.reward import StepFacts
from avtd3.collect.scores import (
    EpisodeScore,
    Scorer,
    bootstrap_interval,
    summarise,
    wilson_interval,
)
from avtd3.store.step import Observation, Step

NAMES = ("steer", "throttle_brake")


def make_step(lateral_m=0.0, speed_mps=10.0, action=(0.0, 0.0), reward=1.0, **facts):
    known = {
        "progress_m": 0.5,
        "speed_mps": speed_mps,
        "lateral_m": lateral_m,
        "heading_rad": 0.0,
        "lane_width_m": 3.5,
        "jerk_mps3": 0.0,
        "collision": False,
        "off_road": False,
        "wrong_way": False,
        "lane_invasions": 0,
        "goal": False,
    }
    terms = np.array([reward, 0.5], np.float32)
    step = Step(
        action=np.array(action, np.float32),
        observation=Observation(vector=np.zeros(3, np.float32)),
        reward_terms=terms,
    )
    return step, StepFacts(**{**known, **facts})


def score(steps, *, reason="goal", completion=1.0, index=0, drives=True):
    scorer, meter = Scorer(), DriveMeter(0.05)
    for step, facts in steps:
        scorer.record(step)
        meter.record(facts)
    return scorer.score(
        measures=meter.measures(completion) if drives else {},
        index=index,
        seed=1,
        scenario=0,
        route=None,
        town="t",
        weather="w",
        driver="expert",
        end_reason=reason,
    )


def test_an_episode_by_hand():
    found = score(
        [
            make_step(action=(0.5, 1.0)),
            make_step(lateral_m=-2.0, action=(-0.5, 1.0), lane_invasions=2),
            make_step(lateral_m=-2.0, speed_mps=4.0, wrong_way=True),
            make_step(lateral_m=1.0, speed_mps=0.0, action=(0.0, 0.0)),
            make_step(lateral_m=1.8),
        ]
    )
    assert found.steps == 5
    assert found.episode_return == pytest.approx(7.5)
    assert found.measures["distance_m"] == pytest.approx((10 + 10 + 4 + 0 + 10) * 0.05)
    assert found.measures["lane_departures"] == 2
    assert found.measures["lane_invasions"] == 2
    assert found.measures["wrong_way_steps"] == 1
    assert found.measures["lateral_deviation_m"] == pytest.approx((0 + 2 + 2 + 1 + 1.8) / 5)
    assert found.measures["speed_mps"] == pytest.approx(34 / 5)
    assert found.action_variance == pytest.approx((0.1, np.var([1, 1, 0, 0, 0])))
    assert found.end_reason == "goal"


def test_the_summary_by_hand():
    good = score([make_step()] * 300)
    bad = score([make_step(lateral_m=1.0, speed_mps=5.0)] * 100, reason="collision", completion=0.5)
    found = summarise([good, bad], NAMES)
    assert found["episodes"] == 2
    assert found["success_rate"] == 0.5
    assert found["route_completion"] == 0.75
    assert found["distance_km"] == pytest.approx(0.175)
    assert found["collisions_per_km"] == pytest.approx(1 / 0.175)
    assert found["lateral_deviation_m"] == pytest.approx(0.25)  # by steps: 300 at 0, 100 at 1
    assert found["speed_mps"] == pytest.approx(8.75)
    assert found["return_mean"] == pytest.approx(300.0)
    assert found["episode_length"] == 200
    assert found["end_reasons"] == {"collision": 1, "goal": 1}
    low, high = found["return_interval"]
    assert 150 <= low < 300 < high <= 450


def test_the_share_in_the_wrong_lane_is_of_all_steps():
    wrong, right = make_step(wrong_way=True), make_step()
    found = summarise([score([wrong] * 30 + [right] * 70), score([right] * 300)], NAMES)
    assert found["wrong_way_share"] == pytest.approx(30 / 400)


def test_what_is_no_car_has_returns_and_lengths_alone():
    rows = [score([make_step(reward=r)] * n, drives=False) for r, n in ((1.0, 10), (3.0, 30))]
    found = summarise(rows, NAMES)
    assert found["return_mean"] == pytest.approx((15.0 + 105.0) / 2)
    assert found["return_std"] == pytest.approx(45.0)
    assert found["episode_length"] == 20.0
    assert found["length_interval"] == [10.0, 30.0]
    assert "success_rate" not in found
    assert "speed_mps" not in found
    assert "drive" not in rows[0].row()


def test_rows_are_flat():
    row = score([make_step()]).row()
    assert row["speed_mps"] == 10.0
    assert row["route_completion"] == 1.0


def test_no_episode_is_no_division_by_zero():
    found = summarise([], NAMES)
    assert found["episodes"] == 0
    assert found["success_interval"] == [0.0, 1.0]
    assert found["return_mean"] == 0.0


@pytest.mark.parametrize(
    ("successes", "count", "interval"),
    [
        # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29 by the score method.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_interval_as_published(successes, count, interval):
    assert wilson_interval(successes, count) == pytest.approx(interval, abs=5e-5)


@given(st.integers(1, 200), st.data())
def test_wilson_interval_holds_the_share(count, data):
    successes = data.draw(st.integers(0, count))
    low, high = wilson_interval(successes, count)
    assert 0.0 <= low <= successes / count + 1e-12
    assert successes / count - 1e-12 <= high <= 1.0


@pytest.mark.parametrize(("successes", "count"), [(0, 5), (3, 7), (7, 7), (40, 100)])
def test_wilson_interval_is_that_of_scipy(successes, count):
    interval = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson_interval(successes, count) == pytest.approx(tuple(interval))


def test_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(1).exponential(3.0, 60)
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0)
    width = np.ptp(found.confidence_interval)
    assert bootstrap_interval(values) == pytest.approx(
        tuple(found.confidence_interval), abs=0.06 * width
    )


def test_bootstrap_interval_is_about_the_normal_one():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(np.array([])) == (0.0, 0.0)


def test_rows_are_small():
    assert not hasattr(score([make_step()]), "__dict__")
    assert isinstance(score([make_step()]), EpisodeScore)
