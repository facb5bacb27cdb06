import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.collect.maps.route import SEARCH_AHEAD_M, SEARCH_BEHIND_M, Route, Turn, resample
from avtd3.store.errors import RoadError


def arc_route(radius_m: float = 30.0, turns: float = 0.5) -> Route:
    """A right-hand circle (clockwise seen from above, so yaw increases in CARLA's frame)."""
    angle = np.linspace(0.0, 2 * math.pi * turns, 2 + int(2 * math.pi * radius_m * turns))
    points = radius_m * np.stack([np.sin(angle), 1.0 - np.cos(angle)], axis=1)
    return Route(points=points, lane_width_m=np.array(3.5))


def straight_route(length_m: int = 100) -> Route:
    points = np.stack([np.arange(length_m + 1.0), np.zeros(length_m + 1)], axis=1)
    return Route(points=points, lane_width_m=np.full(length_m + 1, 3.5))


def brute_force(route: Route, x: float, y: float) -> float:
    """Return the distance from a position to the nearest segment, checked one by one."""
    best = math.inf
    for (ax, ay), (bx, by) in zip(route.points[:-1], route.points[1:], strict=True):
        dx, dy = bx - ax, by - ay
        share = ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)
        share = min(max(share, 0.0), 1.0)
        best = min(best, math.hypot(x - ax - share * dx, y - ay - share * dy))
    return best


headings = st.lists(st.floats(-0.35, 0.35), min_size=5, max_size=120)


def winding_route(turns: list[float]) -> Route:
    yaw = np.cumsum(turns)
    step = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    return Route(points=np.cumsum(step, axis=0), lane_width_m=np.array(3.0))


def test_lateral_is_positive_to_the_right_of_the_route():
    found = straight_route().project(40.25, 1.5)  # y increases to the right
    assert (found.distance_m, found.lateral_m, found.yaw_rad) == (40.25, 1.5, 0.0)
    assert straight_route().project(40.25, -1.5, near_m=41.0).lateral_m == -1.5


def test_circle_has_its_curvature_heading_and_distance():
    route = arc_route(radius_m=30.0, turns=0.5)
    assert route.length_m == pytest.approx(30.0 * math.pi, rel=1e-4)
    np.testing.assert_allclose(route.curvature, 1.0 / 30.0, rtol=1e-3)
    np.testing.assert_allclose(route.yaw_rad, route.distance_m / 30.0, atol=1e-3)
    found = route.project(32.0, 30.0, near_m=45.0)  # 2 m outside, after a quarter turn
    assert found.lateral_m == pytest.approx(-2.0, abs=1e-2)
    assert found.yaw_rad == pytest.approx(math.pi / 2, abs=2e-3)


def test_yaw_is_continuous_over_two_rounds():
    route = arc_route(turns=2.0)
    assert route.yaw_rad[-1] == pytest.approx(4 * math.pi, abs=1e-2)
    assert np.abs(np.diff(route.yaw_rad)).max() < 0.1


def test_window_keeps_to_the_lap_being_driven():
    route = arc_route(radius_m=30.0, turns=2.0)
    lap = 60.0 * math.pi
    x, y = route.points[40]
    first = route.project(x, y, near_m=40.0).distance_m
    second = route.project(x, y, near_m=40.0 + lap).distance_m
    assert second - first == pytest.approx(lap, abs=0.5)


def position(route, distance_m):
    return [np.interp(distance_m, route.distance_m, route.points[:, axis]) for axis in (0, 1)]


@given(headings, st.floats(-60, 60), st.floats(-60, 60))
def test_projection_is_the_nearest_point_of_all_segments(turns, x, y):
    route = winding_route(turns)
    found = route.project(x, y)
    px, py = position(route, found.distance_m)
    nearest = brute_force(route, x, y)
    assert math.hypot(x - px, y - py) == pytest.approx(nearest, abs=1e-9)
    assert abs(found.lateral_m) <= nearest + 1e-9
    assert 0.0 <= found.distance_m <= route.length_m


@given(headings, st.floats(-40, 40), st.floats(-40, 40), st.floats(-20, 150))
def test_window_search_is_exact_within_its_window(turns, x, y, near):
    route = winding_route(turns)
    ends = route.distance_m
    low, high = near - SEARCH_BEHIND_M, near + SEARCH_AHEAD_M
    inside = np.flatnonzero((ends[1:] > low) & (ends[:-1] < high)).tolist()
    if not inside:  # far beyond an end: the last segment there
        inside = [0] if near < 0.0 else [len(ends) - 2]
    part = Route(points=route.points[inside[0] : inside[-1] + 2], lane_width_m=np.array(3.0))
    found = route.project(x, y, near_m=near)
    px, py = position(route, found.distance_m)
    assert math.hypot(x - px, y - py) == pytest.approx(brute_force(part, x, y), abs=1e-6)


@given(headings, st.data())
def test_window_search_finds_a_car_near_its_route(turns, data):
    route = winding_route(turns)
    true = data.draw(st.floats(0.0, route.length_m))
    near = true + data.draw(st.floats(-SEARCH_AHEAD_M + 3.0, SEARCH_BEHIND_M - 3.0))
    x, y = position(route, true)
    found = route.project(x, y, near_m=near)
    px, py = position(route, found.distance_m)
    assert math.hypot(x - px, y - py) == pytest.approx(0.0, abs=1e-9)
    assert found.lateral_m == pytest.approx(0.0, abs=1e-9)


@given(headings, st.floats(0, 1), st.floats(-0.3, 0.3))
def test_position_offset_to_the_right_comes_back(turns, share, lateral):
    route = winding_route(turns)
    segment = int(share * (len(route.points) - 2))
    middle = route.points[segment : segment + 2].mean(axis=0)
    yaw = math.atan2(*(route.points[segment + 1] - route.points[segment])[::-1])
    found = route.project(
        middle[0] - lateral * math.sin(yaw), middle[1] + lateral * math.cos(yaw), segment + 0.5
    )
    assert found.lateral_m == pytest.approx(lateral, abs=1e-9)
    assert found.distance_m == pytest.approx(segment + 0.5, abs=1e-9)


@given(st.floats(-1e6, 1e6))
def test_any_hint_is_survived(near):
    found = straight_route().project(50.0, 1.0, near_m=near)
    assert 0.0 <= found.distance_m <= 100.0


def test_past_the_ends_lateral_is_measured_across_them():
    route = straight_route()
    assert route.project(107.0, 0.5).lateral_m == pytest.approx(0.5)
    assert route.project(107.0, 0.5).distance_m == 100.0
    assert route.project(-7.0, -0.5, near_m=0.0).lateral_m == pytest.approx(-0.5)


def test_speed_profile_obeys_curves_and_braking():
    # 100 m straight, then a quarter circle of 20 m radius.
    angle = np.linspace(0.0, math.pi / 2, 32)[1:]
    bend = np.stack([100 + 20 * np.sin(angle), 20 - 20 * np.cos(angle)], axis=1)
    route = Route(
        points=np.concatenate([straight_route().points, bend]), lane_width_m=np.array(3.5)
    )
    speed = route.speed_profile(max_lateral_mps2=2.0, max_braking_mps2=3.0, max_speed_mps=15.0)
    assert speed[0] == pytest.approx(15.0)
    assert speed[115] == pytest.approx(math.sqrt(2.0 * 20.0), rel=1e-2)
    assert np.all(np.diff(speed[:100] ** 2) / np.diff(route.distance_m[:100]) >= -6.0 - 1e-9)


@settings(max_examples=50)
@given(headings)
def test_speed_profile_is_the_largest_that_brakes_in_time(turns):
    route = winding_route(turns)
    speed = route.speed_profile(max_lateral_mps2=2.0, max_braking_mps2=3.0, max_speed_mps=9.0)
    cap = np.minimum(9.0, np.sqrt(2.0 / np.maximum(np.abs(route.curvature), 1e-9)))
    slow = cap.copy()
    for i in range(len(slow) - 2, -1, -1):
        step = route.distance_m[i + 1] - route.distance_m[i]
        slow[i] = min(cap[i], math.sqrt(slow[i + 1] ** 2 + 2 * 3.0 * step))
    np.testing.assert_allclose(speed, slow, rtol=1e-9)


@given(headings, st.floats(0.3, 3.0))
def test_resample_keeps_ends_and_spaces_evenly(turns, spacing):
    route = winding_route(turns)
    repeated = np.repeat(route.points, 2, axis=0)
    found = resample(repeated, spacing)
    np.testing.assert_allclose(found[[0, -1]], route.points[[0, -1]], atol=1e-9)
    assert len(found) == max(round(route.length_m / spacing), 1) + 1
    Route(points=found, lane_width_m=np.array(3.0))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[0.0, 0.0]], "shape"),
        ([[0.0, 0.0, 1.0]], "shape"),
        ([[0.0, 0.0], [math.nan, 1.0]], "finite"),
        ([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], "repeats point 1"),
    ],
)
def test_impossible_points_are_refused(points, message):
    with pytest.raises(RoadError, match=message):
        Route(points=np.array(points), lane_width_m=np.array(3.5))


def test_resample_refuses_a_line_without_length():
    with pytest.raises(RoadError, match="no length"):
        resample(np.ones((4, 2)))


def test_arrays_are_read_only_and_the_repr_is_short():
    route = straight_route()
    with pytest.raises(ValueError, match="read-only"):
        route.points[0, 0] = 1.0
    assert repr(route) == "Route(101 points, 100.0 m)"


def test_the_rest_of_a_route_keeps_the_turns_that_are_not_behind():
    turns = (
        Turn(command="left", from_m=10.0, to_m=20.0),
        Turn(command="straight", from_m=28.0, to_m=40.0),
        Turn(command="right", from_m=60.0, to_m=70.0),
    )
    x = np.arange(101.0)
    points = np.stack([x, 0.0 * x], axis=1)
    route = Route(points=points, lane_width_m=np.array(3.5), turns=turns)
    rest = route.rest(30)
    assert rest.length_m == 70.0
    assert rest.turns == (
        Turn(command="straight", from_m=-2.0, to_m=10.0),
        Turn(command="right", from_m=30.0, to_m=40.0),
    )
    for along in range(70):
        assert rest.command_at(along, 15.0) == route.command_at(along + 30.0, 15.0)


def test_impossible_turns_are_refused():
    with pytest.raises(RoadError, match="command of a turn is 'follow', expected left, right or"):
        Turn(command="follow", from_m=0.0, to_m=1.0)
    for from_m, to_m in ((2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(RoadError, match="expected finite numbers in ascending order"):
            Turn(command="left", from_m=from_m, to_m=to_m)
