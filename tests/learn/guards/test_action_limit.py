"""The limit on the actions of published policies, and the conditions that remove it."""

import pytest

from avtd3.learn.guards.config import ActionLimitConfig
from avtd3.learn.guards.monitor import ActionLimit

CONFIG = ActionLimitConfig(share=0.6, for_updates=100)
CALM = {"actor_cnn/feature_norm": 20.0, "actor/action_std": 0.2}


def test_it_is_lifted_once_all_three_conditions_hold():
    limit = ActionLimit(is_lifted=False)
    assert [limit.read(CALM, 150.0, at, CONFIG) for at in (0, 50, 99)] == [""] * 3
    assert not limit.is_lifted
    text = limit.read(CALM, 150.0, 100, CONFIG)
    assert "no longer limited" in text
    assert limit.is_lifted
    assert limit.read(CALM, 150.0, 200, CONFIG) == ""  # said once


@pytest.mark.parametrize(
    ("last", "length"),
    [
        (CALM | {"actor_cnn/feature_norm": 30.0}, 150.0),
        (CALM | {"actor_cnn/feature_norm": float("nan")}, 150.0),
        (CALM | {"actor/action_std": 0.05}, 150.0),
        (CALM, 100.0),
        (CALM, None),
        ({}, 150.0),
    ],
)
def test_one_that_does_not_holds_it(last, length):
    limit = ActionLimit(is_lifted=False)
    assert [limit.read(last, length, at, CONFIG) for at in range(0, 500, 50)] == [""] * 10
    assert not limit.is_lifted


def test_one_large_feature_norm_starts_the_count_anew():
    limit = ActionLimit(is_lifted=False)
    for at, norm in ((0, 20.0), (50, 31.0), (60, 20.0), (100, 20.0), (159, 20.0)):
        limit.read(CALM | {"actor_cnn/feature_norm": norm}, 150.0, at, CONFIG)
        assert not limit.is_lifted
    limit.read(CALM, 150.0, 160, CONFIG)
    assert limit.is_lifted


def test_without_a_camera_there_is_no_feature_norm_to_wait_for():
    limit = ActionLimit(is_lifted=False)
    for at in (0, 100):
        limit.read({"actor/action_std": 0.2}, 150.0, at, CONFIG)
    assert limit.is_lifted
