"""Limits and levels of findings, just below and just above each edge."""

import dataclasses
import math

import pytest

from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.guards.limits import History, check_layers, check_reading
from avtd3.learn.guards.readings import Reading, Rows

CONFIG = GuardConfig()
HEALTHY = {"loss": 1.0, "q_min": -1.0, "q_max": 1.0, "grad_norm": 1.0, "finite": 1.0}
HISTORY = History(actor_losses=[2.0], return_min=-10.0, return_max=90.0)
LAST = {
    "actor_cnn/feature_norm": 20.0,
    "critic_cnn/feature_norm": 20.0,
    "actor_cnn/dead_units": 0.5,
    "critic_cnn/dead_units": 0.5,
    "actor/saturation": 0.1,
    "actor/action_std": 0.3,
}


def reading(*, critic=None, actor=None, last=None):
    """Return three updates after the warm-up; the second one has the given values."""

    def rows(changes):
        columns = {name: [value] * 3 for name, value in HEALTHY.items()}
        for name, value in (changes or {}).items():
            columns[name][1] = value
        return Rows(updates=[2001, 2002, 2003], columns=columns)

    return Reading(critic=rows(critic), actor=rows(actor), last=LAST | (last or {}))


def levels(found):
    return {finding.name: finding.level for finding in found}


def test_healthy_numbers_are_over_nothing():
    assert check_reading(reading(), HISTORY, CONFIG) == []
    assert check_reading(Reading(), History(), CONFIG) == []


@pytest.mark.parametrize("network", ["actor", "critic"])
@pytest.mark.parametrize(
    ("column", "guard", "edges"),
    [
        ("grad_norm", "grad_norm", {"warn": 1e4, "serious": 5e4, "stop": 1e5}),
        ("q_max", "q_bound", {"warn": 90.0 + 10.0, "serious": 90.0 + 100.0, "stop": 90.0 + 1000.0}),
        ("q_min", "q_bound", {"warn": -20.0, "serious": -110.0, "stop": -1010.0}),
        ("loss", "loss", {"actor": {"warn": 90.0, "serious": 900.0}, "critic": {"warn": 1e3}}),
    ],
)
def test_each_level_begins_above_its_edge(network, column, guard, edges):
    name = guard if (guard, network) == ("q_bound", "critic") else f"{network}_{guard}"
    below = ""
    for level, edge in edges.get(network, edges).items():
        for factor, expected in ((0.9999, below), (1.0001, level)):
            changed = {network: {column: edge * factor}}
            assert (
                levels(check_reading(reading(**changed), HISTORY, CONFIG)).get(name, "") == expected
            )
        below = level


def test_a_finding_names_value_limit_and_fix():
    (found,) = check_reading(reading(critic={"grad_norm": 6e4}), HISTORY, CONFIG)
    assert (found.update, found.value, found.limit, found.count) == (2002, 6e4, 5e4, 1)
    assert "before clipping is 6e+04, expected at most 5e+04" in found.reason
    assert "critic_lr" in found.fix


def test_large_values_of_q_count_whatever_the_data_allow():
    memory = dataclasses.replace(HISTORY, return_max=1e6)
    assert check_reading(reading(critic={"q_max": 9_999.0}), memory, CONFIG) == []
    assert levels(check_reading(reading(critic={"q_max": 10_001.0}), memory, CONFIG)) == {
        "q_size": "serious"
    }


def test_the_baseline_of_the_actor_s_loss_is_its_median_or_what_the_data_allow():
    memory = dataclasses.replace(HISTORY, actor_losses=[20.0, 30.0, 1e6])
    assert check_reading(reading(actor={"loss": -299.0}), memory, CONFIG) == []
    assert levels(check_reading(reading(actor={"loss": -301.0}), memory, CONFIG)) == {
        "actor_loss": "warn"
    }


def test_without_rewards_there_is_no_bound_on_q():
    assert check_reading(reading(critic={"q_max": 500.0}), History(), CONFIG) == []


@pytest.mark.parametrize(
    ("metric", "edge", "name", "level"),
    [
        ("actor_cnn/feature_norm", 100.0, "actor_feature_norm", "serious"),
        ("critic_cnn/feature_norm", 100.0, "critic_feature_norm", "serious"),
        ("actor_cnn/dead_units", 0.9, "actor_dead_units", "warn"),
        ("critic_cnn/dead_units", 0.9, "critic_dead_units", "warn"),
        ("actor/saturation", 0.9, "saturation", "warn"),
    ],
)
def test_limits_on_the_newest_update(metric, edge, name, level):
    assert check_reading(reading(last={metric: 0.999 * edge}), HISTORY, CONFIG) == []
    assert levels(check_reading(reading(last={metric: 1.001 * edge}), HISTORY, CONFIG)) == {
        name: level
    }


def test_actions_must_vary_once_it_is_warm():
    still = reading(last={"actor/action_std": 0.0009})
    assert levels(check_reading(still, HISTORY, CONFIG)) == {"constant_action": "warn"}
    early = dataclasses.replace(CONFIG, warm_up=3000)
    assert check_reading(still, HISTORY, early) == []


def test_skipped_updates_count_in_a_row_over_readings():
    left_out = reading(critic={"finite": 0.0, "loss": math.nan, "grad_norm": math.inf})
    (found,) = check_reading(left_out, HISTORY, CONFIG)
    assert (found.name, found.level, found.value, found.count) == (
        "critic_not_finite",
        "warn",
        1,
        1,
    )
    columns = {name: [math.nan] * 2 for name in HEALTHY} | {"finite": [0.0, 0.0]}
    gone = Reading(critic=Rows(updates=[1, 2], columns=columns))
    memory = dataclasses.replace(HISTORY, skipped_in_a_row=97)
    (found,) = check_reading(gone, memory, CONFIG)
    assert (found.level, found.value) == ("warn", 99.0)
    assert memory.after(gone, CONFIG).skipped_in_a_row == 99
    (found,) = check_reading(gone, memory.after(gone, CONFIG), CONFIG)
    assert (found.level, found.value) == ("stop", 101.0)


def test_layers():
    scalars = {"weights/a": 1.0, "update_ratio/a": 0.09, "update_ratio/b": math.nan}
    assert list(check_layers(scalars, 7, CONFIG)) == []
    (found,) = check_layers(scalars | {"update_ratio/c": 0.2}, 7, CONFIG)
    assert (found.name, found.level, found.update) == ("update_ratio", "warn", 7)
    assert "one update of c" in found.reason
    (found,) = check_layers({"weights/a": math.inf}, 7, CONFIG)
    assert (found.name, found.level) == ("weights", "stop")
