import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.collect.driving.reward import REWARD_TERMS, RewardConfig, reward_terms
from avtd3.store.errors import ConfigError
from avtd3.tests.collect.plain import CRUISE, PERIOD_S

CONFIG = RewardConfig()


def terms(config=CONFIG, **changes):
    values = reward_terms(dataclasses.replace(CRUISE, **changes), config, PERIOD_S)
    assert values.dtype == np.float32
    return dict(zip(REWARD_TERMS, values.tolist(), strict=True))


def test_a_perfect_step_earns_progress_and_speed():
    earned = terms()
    assert earned["efficiency/progress"] == pytest.approx(0.41667, abs=1e-4)
    assert earned["efficiency/speed"] == pytest.approx(0.25)
    others = [v for k, v in earned.items() if k not in ("efficiency/progress", "efficiency/speed")]
    assert not any(others)
    # No term above 70 % of the absolute sum; 20 s return a moderate number.
    assert earned["efficiency/progress"] / sum(map(abs, earned.values())) < 0.7
    assert 200 < 400 * sum(earned.values()) < 400


@pytest.mark.parametrize(
    ("change", "term", "value"),
    [
        ({"progress_m": -1.0}, "efficiency/progress", -1.0),
        ({"speed_mps": 0.0}, "efficiency/speed", 0.0),
        ({"speed_mps": 60 / 3.6}, "efficiency/speed", 0.0),
        ({"speed_mps": 200.0}, "efficiency/speed", -0.25),
        ({"goal": True}, "efficiency/goal", 10.0),
        ({"lateral_m": 1.75}, "lane_keeping/lateral", -0.3),
        ({"lateral_m": -0.875}, "lane_keeping/lateral", -0.075),
        ({"lateral_m": 50.0}, "lane_keeping/lateral", -1.2),
        ({"heading_rad": -math.pi / 4}, "lane_keeping/heading", -0.2),
        ({"heading_rad": math.pi}, "lane_keeping/heading", -0.8),
        ({"jerk_mps3": 10.0}, "comfort/jerk", -0.05),
        ({"jerk_mps3": 1e9}, "comfort/jerk", -0.15),
        ({"off_road": True}, "safety/off_road", -25.0),
        ({"wrong_way": True}, "safety/wrong_way", -1.0),
        ({"lane_invasions": 1}, "safety/lane_invasion", -0.5),
        ({"lane_invasions": 9}, "safety/lane_invasion", -1.0),
    ],
)
def test_each_term_by_hand(change, term, value):
    changed, plain = terms(**change), terms()
    assert changed[term] == pytest.approx(value, abs=1e-6)
    assert {k: v for k, v in changed.items() if k != term} == {
        k: v for k, v in plain.items() if k != term
    }


def test_a_collision_lands_near_minus_50():
    total = sum(terms(collision=True, jerk_mps3=500.0, speed_mps=1.0).values())
    assert -52 < total < -48


@given(
    st.floats(-1.0, 2.0),
    st.floats(-5.0, 30.0),
    st.floats(-8.0, 8.0),
    st.floats(-math.pi, math.pi),
    st.floats(0.0, 500.0),
    st.booleans(),
    st.integers(0, 4),
    st.booleans(),
)
def test_ordinary_steps_stay_within_bounds(
    progress, speed, lateral, heading, jerk, wrong, marks, goal
):
    values = terms(
        progress_m=progress,
        speed_mps=speed,
        lateral_m=lateral,
        heading_rad=heading,
        jerk_mps3=jerk,
        wrong_way=wrong,
        lane_invasions=marks,
        goal=goal,
    )
    assert -10 <= sum(values.values()) <= 15


def test_a_weight_of_zero_switches_off_one_term_only():
    config = RewardConfig(lateral_per_s=0.0)
    assert terms(config, lateral_m=1.0)["lane_keeping/lateral"] == 0.0
    assert terms(config)["efficiency/progress"] > 0.0


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RewardConfig)])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_weights_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        RewardConfig(**{name: value})
