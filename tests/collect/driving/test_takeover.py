"""The expert takes over outside the bounds, and gives back well inside them."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from avtd3.collect.driving.expert import TakeoverConfig, TakeoverDriver
from avtd3.store.errors import ConfigError
from avtd3.store.step import Observation

INSIDE = {
    "lateral_m": 0.0,
    "heading_rad": 0.0,
    "speed_mps": 8.0,
    "gap_m": math.inf,
    "standing_s": 0,
}


def place(task, **changes):
    """Put the car of a task somewhere."""
    at = INSIDE | changes
    vehicle = SimpleNamespace(speed_mps=at["speed_mps"])
    task.frame = SimpleNamespace(
        vehicle=vehicle, lead_gap_m=at["gap_m"], lead_speed_mps=at.get("lead_mps", 0.0)
    )
    for name in ("lateral_m", "heading_rad", "standing_s"):
        setattr(task, name, at[name])


def make(**config):
    task: Any = SimpleNamespace(period_s=0.05)
    drivers: list[Any] = []
    for action in (0.1, 0.2):
        calls: list[int] = []
        drivers.append(
            SimpleNamespace(
                calls=calls,
                reset=lambda rng: None,
                act=lambda seen, calls=calls, action=action: (
                    calls.append(1) or np.full(2, action, np.float32)
                ),
            )
        )
    policy, expert = drivers
    driver = TakeoverDriver(policy, expert, task, TakeoverConfig(**config))
    driver.reset(np.random.default_rng(0))
    return driver, task, drivers


def drives(driver, task, **where):
    place(task, **where)
    action = driver.act(Observation())
    assert driver.expert_drove == (action[0] == np.float32(0.2))
    return driver.expert_drove


@pytest.mark.parametrize(
    ("outside", "between", "inside"),
    [
        ({"lateral_m": -1.05}, {"lateral_m": -0.9}, {"lateral_m": -0.7}),
        ({"heading_rad": 0.4}, {"heading_rad": 0.3}, {"heading_rad": 0.2}),
        ({"gap_m": 11.9}, {"gap_m": 14.0}, {"gap_m": 16.0}),  # at 8 m/s: 1.49, 1.75 and 2 s
        ({"speed_mps": 12.5}, {"speed_mps": 10.0}, {"speed_mps": 9.0}),
        ({"standing_s": 5.1}, {"standing_s": 4.5}, {"standing_s": 3.0}),
    ],
    ids=lambda case: min(case),
)
def test_the_expert_drives_from_a_bound_until_the_car_has_been_inside_for_a_while(
    outside, between, inside
):
    driver, task, drivers = make(release_s=0.15)
    assert not drives(driver, task, **between)
    assert drives(driver, task, **outside)
    assert all(drives(driver, task, **between) for _ in range(10))
    assert [drives(driver, task, **inside) for _ in range(4)] == [True, True, True, False]
    assert not drives(driver, task, **between)
    assert drives(driver, task, **outside)
    # What leaves the smaller bounds in between starts the time again.
    assert [drives(driver, task, **w) for w in (inside, inside, between)] == [True] * 3
    assert [drives(driver, task, **inside) for _ in range(4)] == [True, True, True, False]
    assert len(drivers[0].calls) == len(drivers[1].calls)  # both see every observation


def test_a_vehicle_that_is_not_approached_is_no_reason():
    driver, task, _ = make()
    assert not drives(driver, task, gap_m=2.0, lead_mps=9.0)
    assert drives(driver, task, gap_m=2.0, lead_mps=6.0)


def test_an_episode_starts_with_the_policy():
    driver, task, _ = make()
    assert drives(driver, task, lateral_m=3.0)
    driver.reset(np.random.default_rng(0))
    assert not drives(driver, task)


@pytest.mark.parametrize(
    "name", ["lateral_m", "heading_rad", "time_to_collision_s", "speed_mps", "release", "release_s"]
)
def test_impossible_bounds_are_refused(name):
    with pytest.raises(ConfigError, match=f"takeover.{name}"):
        dataclasses.replace(TakeoverConfig(), **{name: -1.0})
    with pytest.raises(ConfigError, match=r"takeover\.release"):
        TakeoverConfig(release=1.5)
