import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.collect.driving.task import (
    COMMAND_AHEAD_M,
    ObservationConfig,
    VectorBuilder,
    heading_error,
)
from avtd3.collect.maps.route import COMMANDS, Route, Turn
from avtd3.store.errors import ConfigError
from avtd3.tests.collect.point_world import make_vehicle, straight_route, winding_route


def build(config, route, **vehicle):
    car = make_vehicle(**vehicle)
    at = route.project(car.x_m, car.y_m)
    return VectorBuilder(config, route).build(car, at, heading_error(car.yaw_rad, at.yaw_rad))


def test_the_default_vector_has_the_23_numbers_with_units():
    config = ObservationConfig()
    assert len(config.names) == len(config.scales) == 23
    assert config.names[:5] == (
        "speed_mps",
        "lateral_m",
        "heading_rad",
        "waypoint_01_x_m",
        "waypoint_01_y_m",
    )
    assert config.names[-1] == "waypoint_10_y_m"
    assert config.scales[:5] == (10.0, 2.0, math.pi / 4, 25.0, 10.0)


def test_numbers_on_a_straight_road_by_hand():
    config = ObservationConfig(waypoints=2, waypoint_spacing_m=5.0)
    vector = build(config, straight_route(), x_m=10.0, y_m=1.0, yaw_rad=0.0, speed_mps=5.0)
    # 1 m right of the route: the waypoints, 5 and 10 m ahead, lie 1 m to the left.
    np.testing.assert_allclose(vector, [0.5, 0.5, 0.0, 0.5, -0.25, 1.0, -0.25], rtol=1e-6)
    assert vector.dtype == np.float32


def test_the_speed_can_be_all_there_is():
    config = ObservationConfig(vector="speed")
    assert (config.names, config.scales) == (("speed_mps",), (10.0,))
    vector = build(config, straight_route(), x_m=10.0, y_m=1.0, yaw_rad=0.3, speed_mps=5.0)
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, np.array([0.5], np.float32))


def commands_along(turns, **config):
    """Return the command at each metre of a straight road of 100 m with the given turns."""
    points = straight_route().points
    route = Route(points=points, lane_width_m=np.array(3.5), turns=turns)
    found = []
    for x in range(100):
        vector = build(ObservationConfig(command=True, **config), route, x_m=float(x), y_m=1.0)
        assert sorted(vector[-4:].tolist()) == [0.0, 0.0, 0.0, 1.0]
        found.append(COMMANDS[int(vector[-4:].argmax())])
    return found


@pytest.mark.parametrize("vector", ["full", "speed"])
def test_the_command_begins_before_a_junction_and_ends_with_it(vector):
    turn = Turn(command="left", from_m=50.0, to_m=70.0)
    begin = 50 - round(COMMAND_AHEAD_M)
    assert begin == 25
    expected = ["follow"] * begin + ["left"] * (70 - begin) + ["follow"] * 30
    assert commands_along((turn,), vector=vector) == expected


def test_a_command_waits_until_the_junction_before_is_left():
    turns = (
        Turn(command="right", from_m=40.0, to_m=50.0),
        Turn(command="straight", from_m=60.0, to_m=75.0),
    )
    expected = ["follow"] * 15 + ["right"] * 35 + ["straight"] * 25 + ["follow"] * 25
    assert commands_along(turns) == expected


def test_the_command_is_an_option_that_changes_nothing_else():
    names = tuple(f"command_{name}" for name in ("follow", "left", "right", "straight"))
    for kind in ("full", "speed"):
        plain, more = (ObservationConfig(vector=kind, command=on) for on in (False, True))
        assert more.names == (*plain.names, *names)
        assert more.scales == (*plain.scales, 1.0, 1.0, 1.0, 1.0)
        car = {"x_m": 10.0, "y_m": 1.0, "speed_mps": 5.0}
        without = build(plain, straight_route(), **car)
        np.testing.assert_array_equal(build(more, straight_route(), **car)[:-4], without)


def test_waypoints_turn_with_the_car():
    config = ObservationConfig(waypoints=1, waypoint_spacing_m=5.0)
    vector = build(config, straight_route(), x_m=10.0, yaw_rad=math.pi / 2)
    # Facing right (south): the waypoint 5 m east lies 5 m to the left, and heading is 90 degrees.
    np.testing.assert_allclose(vector, [0.0, 0.0, 2.0, 0.0, -2.5], atol=1e-6)


@given(st.floats(-3.0, 3.0), st.floats(-50.0, 50.0), st.floats(-50.0, 50.0))
def test_the_vector_does_not_depend_on_where_the_world_has_its_origin(turn, x, y):
    route = winding_route()
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = np.array([[cos, sin], [-sin, cos]])
    moved = type(route)(points=route.points @ rotation + (x, y), lane_width_m=np.array(3.5))
    car = np.array([20.0, 3.0])
    there = car @ rotation + (x, y)
    config = ObservationConfig()
    here = build(config, route, x_m=car[0], y_m=car[1], yaw_rad=0.1, speed_mps=3.0)
    elsewhere = build(config, moved, x_m=there[0], y_m=there[1], yaw_rad=0.1 + turn, speed_mps=3.0)
    np.testing.assert_allclose(here, elsewhere, atol=1e-5)


def test_waypoints_continue_straight_past_the_goal():
    vector = build(ObservationConfig(), straight_route(100.0), x_m=95.0)
    np.testing.assert_allclose(vector[3::2] * 25.0, np.arange(1, 11) * 2.5, rtol=1e-6)


@given(st.floats(-20.0, 20.0), st.floats(-20.0, 20.0))
def test_heading_error_is_wrapped(yaw, route_yaw):
    error = heading_error(yaw, route_yaw)
    assert -math.pi <= error <= math.pi
    assert math.cos(error) == pytest.approx(math.cos(yaw - route_yaw), abs=1e-9)
    assert math.sin(error) == pytest.approx(math.sin(yaw - route_yaw), abs=1e-9)


def test_bad_values_are_refused():
    with pytest.raises(ConfigError, match="waypoints is 0"):
        ObservationConfig(waypoints=0)
    with pytest.raises(ConfigError, match="vector is 'all'"):
        ObservationConfig(vector="all")
    with pytest.raises(ConfigError, match="waypoint_spacing_m"):
        ObservationConfig(waypoint_spacing_m=math.nan)
    with pytest.raises(ConfigError, match="stack"):
        ObservationConfig(stack=0)
