import pytest

from avtd3.learn.metrics import FAMILIES, METRICS, REWARD_TERMS, metric


def test_every_metric_has_a_unit_and_a_direction_that_readers_know():
    for name, found in {**METRICS, **FAMILIES}.items():
        assert found.meaning, name
        assert found.unit, name
        assert found.better in ("higher", "lower", ""), name


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("critic/loss", "lower"),
        ("episode/return", "higher"),
        ("episode/collision", "lower"),
        ("run/sampler_wait", "lower"),
        ("critic/q1_mean", ""),
        (REWARD_TERMS + "safety/collision", "higher"),
    ],
)
def test_the_good_direction(name, better):
    found = metric(name)
    assert found is not None
    assert found.better == better


def test_an_unknown_metric_has_no_description():
    assert metric("train/actor_loss") is None
