"""The complete path on the built-in simulator: drive with the expert, store, evaluate."""

import numpy as np

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.store.dataset import Dataset

SCENARIO = ScenarioConfig(route_length_m=60.0)


def stored(path):
    (segment,) = Dataset.open(path).snapshot().segments
    assert "carla 0.9" in segment.provenance["simulator"]
    names = ("frames", "vector", "action", "reward_terms", "frame_id", "sim_time")
    return segment.episode_table(), {name: segment.read(name) for name in names}


def test_an_episode_of_the_main_scenario_is_stored_the_same_twice(tmp_path):
    config = CollectConfig(driver="expert+noise=0.1", scenario=SCENARIO, min_free_mb=0)
    collect(tmp_path / "a", config, episodes=2)
    collect(tmp_path / "b", config, episodes=2)
    (table, data), (_, again) = stored(tmp_path / "a"), stored(tmp_path / "b")
    for name, values in data.items():
        np.testing.assert_array_equal(values, again[name])
    assert data["frames"].shape[1:] == (1, 84, 84)
    assert data["frames"].std() > 10
    assert all(seed % 2 == 0 for seed in table.seed.tolist())
    np.testing.assert_array_equal(data["frame_id"][:5], np.arange(5))
    np.testing.assert_allclose(np.diff(data["sim_time"][:5]), 0.05)
    # Groups of episodes share a network.
    assert len(set(table.texts("town"))) == 1


def test_the_expert_reaches_held_out_goals_among_20_vehicles():
    report = evaluate("expert", EvaluateConfig(episodes=3, scenario=SCENARIO))
    found = report.document()
    assert found["success_rate"] == 1.0
    assert found["lateral_deviation_m"] < 0.3
    assert 4.0 < found["speed_mps"] < 9.0
    assert all(score.seed % 2 for score in report.scores)
    numbers = [int(score.town.rsplit("-", 1)[1]) for score in report.scores]
    assert all(number % 2 for number in numbers)


def test_no_term_of_the_experts_reward_drowns_the_others(tmp_path):
    config = CollectConfig(scenario=SCENARIO, min_free_mb=0)
    collect(tmp_path / "d", config, episodes=3)
    _, data = stored(tmp_path / "d")
    terms = np.abs(data["reward_terms"]).sum(axis=0)
    assert terms.max() / terms.sum() < 0.7
    rewards = data["reward_terms"].sum(axis=1)
    assert -10 < rewards.min() <= rewards.max() < 15
