import numpy as np
import pytest

from avtd3.collect.driving.reward import REWARD_TERMS
from avtd3.collect.driving.task import ObservationConfig
from avtd3.collect.environment import SUCCESS_REASON
from avtd3.learn.evaluation import END_REASONS, TERM_SHARES, VECTOR_COLUMNS, EpisodeMetrics
from avtd3.store.replay.cache import EpisodeSummary
from avtd3.store.spec import EpisodeSpec

SPEC = EpisodeSpec(
    image=None,
    vector_names=("speed_mps", "other", "lateral_m"),
    vector_scales=(10.0, 1.0, 2.0),
    action_names=("steer",),
    action_low=(-1.0,),
    action_high=(1.0,),
    reward_terms=("progress", "safety/lane_invasion"),
    control_period_s=0.05,
)


def summarise(returns, reasons, terms, vector, versions):
    return EpisodeSummary(
        returns=np.array(returns, np.float64),
        lengths=np.full(len(returns), 10),
        policy_versions=np.array(versions),
        end_reasons=tuple(reasons),
        reward_term_sums=np.array(terms, np.float64),
        vector_mean_abs=np.array(vector, np.float64),
    )


@pytest.fixture
def episodes():
    episodes = EpisodeMetrics(SPEC)
    episodes.add(summarise([4.0], ["goal"], [[5.0, 0.0]], [[0.4, 9.0, 0.1]], [-1]))
    episodes.add(
        summarise(
            [1.0, -3.0, 2.0],
            ["collision", "off_road", "goal"],
            [[1.0, -8.0], [1.0, 0.0], [1.0, 0.0]],
            [[0.8, 9.0, 0.3]] * 3,
            [3, 5, 4],
        )
    )
    return episodes


def test_the_newest_episodes_in_the_units_of_driving(episodes):
    found = episodes.read(6)
    assert found == pytest.approx(
        {
            "episode/return": 1.0,
            "episode/length": 10.0,
            "episode/success": 0.5,
            "episode/collision": 0.25,
            "episode/collision_streak": 1.0,
            "episode/off_road": 0.25,
            "episode/lateral_deviation": 0.5,
            "episode/speed": 7.0,
            "reward/progress": 2.0,
            "reward/safety/lane_invasion": -2.0,
            "episode/lane_invasion": 0.25,
            "run/policy_lag": 2.0,
            "run/policy_lag_min": 1.0,
            "run/policy_lag_max": 3.0,
        }
    )


def test_nothing_is_logged_twice_and_the_newest_return_is_kept(episodes):
    episodes.read(6)
    assert episodes.read(6) == {}
    assert episodes.newest_return == 0.0
    episodes.add(EpisodeSummary.join([], SPEC))
    assert episodes.read(6) == {}
    assert episodes.newest_return == 0.0


def test_a_streak_of_collisions_continues_from_the_episodes_before():
    episodes, found = EpisodeMetrics(SPEC), []
    for reasons in (
        ["collision", "goal", "collision", "collision"],
        ["collision", "goal"],
        ["goal"],
    ):
        count = len(reasons)
        row = [[0.0, 0.0]] * count, [[0.0, 0.0, 0.0]] * count
        episodes.add(summarise([0.0] * count, reasons, *row, [-1] * count))
        found.append(episodes.read(None)["episode/collision_streak"])
    assert found == [2.0, 3.0, 0.0]


def test_no_lag_without_a_policy(episodes):
    assert not any("lag" in name for name in episodes.read(None))


def test_the_names_are_those_of_the_driving_task():
    assert END_REASONS["episode/success"] == SUCCESS_REASON
    assert set(TERM_SHARES.values()) <= set(REWARD_TERMS)
    assert set(VECTOR_COLUMNS.values()) <= set(ObservationConfig().names)
