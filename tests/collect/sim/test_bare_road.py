"""The road of `avtd3 demo --quick` without carla: a valid world, whose picture shows the road."""

import importlib
import math

import numpy as np
import pytest

from avtd3.collect import check_environment
from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.sim.world import BARE_ROAD, BareRoad


def test_it_is_a_valid_world_of_the_command_line():
    module, _, factory = BARE_ROAD.partition(":")
    assert getattr(importlib.import_module(module), factory) is BareRoad
    check_environment(BareRoad(), steps=60)


def test_the_car_stands_on_the_route_and_leaves_the_road_when_it_turns_away():
    world = BareRoad()
    start = world.reset(scenario(1), seed=3)
    at = start.route.project(start.frame.vehicle.x_m, start.frame.vehicle.y_m, 0.0)
    assert at.lateral_m == pytest.approx(0.0, abs=1e-9)
    assert not start.frame.off_road
    frames = [world.step(np.array([1.0, 0.3], np.float32)) for _ in range(60)]
    assert frames[-1].off_road
    assert frames[-1].sim_time_s == pytest.approx(3.0)


def test_the_picture_has_the_lines_where_a_pinhole_camera_sees_them(monkeypatch):
    """Bottom row: 47.5 px below a horizon 42 - 42 tan(6 deg) px down, so 2.65 m ahead."""
    world = BareRoad()
    world.reset(scenario(1), seed=3)
    monkeypatch.setattr(world, "_middle_m", lambda x_m: 0.0 * x_m)
    world._vehicle.place(0.0, 0.0, 0.0, 5.0)
    (picture,) = world.step(np.zeros(2, np.float32)).image
    assert (picture[0] == 190).all(), "sky"
    assert (picture == picture[:, ::-1]).all(), "a straight road is symmetrical"
    row, pitch = 70, math.radians(6.0)
    below, size = row + 0.5 - 42.0, 42.0
    reach = 1.6 / (size * math.sin(pitch) + below * math.cos(pitch))
    line = 42.0 + 1.75 / reach
    assert picture[row, int(line)] == 230
    assert picture[row, 42] == 70
    assert picture[row, int(42.0 + 1.2 / reach)] == 70
