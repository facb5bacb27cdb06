"""The learning rate of a CNN: halved down to the floor, and doubled again."""

import dataclasses

import pytest

from avtd3.learn.guards.config import CnnRateConfig
from avtd3.learn.guards.monitor import CnnRate

CONFIG = CnnRateConfig(cool_down=100, recover_after=300, floor=0.2)


def shares(rate, readings):
    found = []
    for at, norm in readings:
        rate.read(norm, at, CONFIG)
        found.append(rate.share)
    return found


def test_it_is_halved_once_per_cool_down_and_not_below_the_floor():
    rate = CnnRate()
    readings = [(at, 60.0) for at in range(0, 500, 50)]
    assert shares(rate, readings) == [0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    assert rate.read(60.0, 900, CONFIG) == ""  # at the floor nothing changes


def test_it_comes_back_by_doubling_after_each_calm_time_up_to_the_whole():
    rate = CnnRate()
    shares(rate, [(0, 60.0), (100, 60.0)])
    readings = [(200, 10.0), (450, 10.0), (500, 10.0), (750, 10.0), (800, 10.0), (1200, 10.0)]
    assert shares(rate, readings) == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]


def test_between_the_two_limits_nothing_happens_and_the_calm_ends():
    rate = CnnRate()
    rate.read(60.0, 0, CONFIG)
    assert shares(rate, [(100, 10.0), (350, 40.0), (450, 10.0), (700, 10.0)]) == [0.5] * 4
    assert shares(rate, [(750, 10.0)]) == [1.0]


def test_what_was_done_is_said_in_words():
    rate = CnnRate()
    text = rate.read(60.0, 0, CONFIG)
    assert "60" in text
    assert "0.5" in text
    shares(rate, [(100, 10.0)])
    assert "again" in rate.read(10.0, 400, CONFIG)


def test_switched_off_or_without_a_number_it_stays():
    off = CnnRate()
    assert off.read(1e9, 0, CnnRateConfig(enabled=False)) == ""
    rate = CnnRate()
    assert [rate.read(norm, 0, CONFIG) for norm in (float("nan"), float("inf"))] == ["", ""]
    assert (off.share, rate.share) == (1.0, 1.0)


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_restored_one_continues_alike(stop):
    readings = [(at * 50, 60.0 if at < 4 else 10.0) for at in range(20)]
    whole, first = CnnRate(), CnnRate()
    expected = shares(whole, readings)
    begun = shares(first, readings[:stop])
    second = dataclasses.replace(first)
    assert begun + shares(second, readings[stop:]) == expected
