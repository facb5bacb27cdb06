"""Routes through given waypoints, on roads with a known answer and on generated roads."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.collect.maps.episode_setup import SimulatorConfig, draw_setup
from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.planner import plan_route, plan_through
from avtd3.collect.maps.scenarios import scenario
from avtd3.store.errors import RoadError
from avtd3.tests.collect.maps.road_networks import ring_network, straight_network
from avtd3.tests.collect.maps.test_planner import straight_roads

pytest.importorskip("carla")


@functools.cache
def network(kind: str, seed: int = 3) -> RoadNetwork:
    return RoadNetwork.from_opendrive(kind, generate_network(kind, seed), is_trusted=True)


def two_lanes() -> RoadNetwork:
    """200 m along x with two lanes of one direction; without a marking between them."""
    return straight_roads(0.0, length_m=200.0, lanes=[((3.5, 0.0), (3.5, 0.0))])


def test_a_route_on_one_lane_runs_from_the_first_waypoint_to_the_last():
    planned = plan_through(straight_network(), [(20.0, 1.7), (60.0, 2.0), (150.0, 1.0)])
    route = planned.route
    assert route.points[0] == pytest.approx([20.0, 1.75], abs=0.02)
    assert route.points[-1] == pytest.approx([150.0, 1.75], abs=0.02)
    assert route.length_m == pytest.approx(130.0, abs=0.05)
    assert len(planned.lanes) == 1


def test_the_lane_of_a_waypoint_gives_the_direction():
    there = plan_through(straight_network(), [(20.0, 1.75), (150.0, 1.75)]).route
    back = plan_through(straight_network(), [(150.0, -1.75), (20.0, -1.75)]).route
    assert np.cos(there.yaw_rad[0]) == pytest.approx(1.0, abs=1e-3)
    assert np.cos(back.yaw_rad[0]) == pytest.approx(-1.0, abs=1e-3)


def test_a_waypoint_behind_leads_round_the_ring():
    found = ring_network(radius=40.0)
    lane = found.lanes[0]
    first, second = lane.points[60], lane.points[20]
    planned = plan_through(found, [tuple(first), tuple(second)])
    assert planned.route.length_m == pytest.approx(lane.length_m - 40.0, abs=2.0)
    assert planned.route.points[-1] == pytest.approx(second, abs=0.1)


def test_a_route_changes_lanes_smoothly():
    found = two_lanes()
    (right, left) = sorted((lane.points[0, 1] for lane in found.lanes), reverse=True)
    planned = plan_through(found, [(5.0, right), (190.0, left)])
    route = planned.route
    assert len(planned.lanes) == 2
    assert route.points[0] == pytest.approx([5.0, right], abs=0.05)
    assert route.points[-1] == pytest.approx([190.0, left], abs=0.05)
    assert np.abs(route.yaw_rad).max() < 0.25
    assert np.abs(route.curvature).max() < 0.05


def without_changes(network):
    """The same lanes, with markings between them that forbid a change."""
    lanes = tuple(
        dataclasses.replace(lane, left_lane=None, right_lane=None) for lane in network.lanes
    )
    return dataclasses.replace(network, lanes=lanes)


def test_a_marking_that_forbids_is_crossed_where_there_is_no_other_way():
    found = two_lanes()
    (right, left) = sorted((lane.points[0, 1] for lane in found.lanes), reverse=True)
    planned = plan_through(without_changes(found), [(5.0, right), (190.0, left)])
    assert planned.route.points[-1] == pytest.approx([190.0, left], abs=0.05)


def test_a_waypoint_in_a_lane_too_late_to_change_is_passed_in_the_lane_beside():
    found = two_lanes()
    (right, left) = sorted((lane.points[0, 1] for lane in found.lanes), reverse=True)
    route = plan_through(found, [(5.0, right), (190.0, left), (198.0, right)]).route
    assert np.abs(route.points[:, 1] - right).max() < 0.05
    early = plan_through(found, [(5.0, right), (90.0, left), (198.0, right)]).route
    assert early.project(90.0, left).lateral_m == pytest.approx(0.0, abs=0.05)


def test_the_middle_waypoints_decide_the_way():
    """Two routes lead around a block; the waypoint in between selects one."""
    found = network("town")
    rng = np.random.default_rng(5)
    for _ in range(5):
        wanted = plan_route(found, rng, 300.0).route
        points = [tuple(point) for point in wanted.points[::15]]
        route = plan_through(found, points).route
        away = [abs(wanted.project(*point).lateral_m) for point in route.points]
        assert max(away) < 1.0
        assert route.length_m == pytest.approx(wanted.distance_m[15 * (len(points) - 1)], abs=3.0)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["town", "loop", "country", "motorway"]), st.integers(0, 2**32 - 1))
def test_any_random_route_is_found_again_from_its_ends(kind, seed):
    found = network(kind)
    wanted = plan_route(found, np.random.default_rng(seed), 150.0).route
    planned = plan_through(found, [tuple(wanted.points[0]), tuple(wanted.points[-1])])
    route = planned.route
    assert route.length_m <= wanted.length_m + 60.0  # the search may find a shorter route
    assert np.hypot(*(route.points[-1] - wanted.points[-1])) < 3.0
    step = np.diff(route.distance_m)
    assert step.min() > 0.9
    assert step.max() < 1.1
    for before, after in zip(planned.lanes[:-1], planned.lanes[1:], strict=True):
        lane = found.lanes[before]
        beside = found.lanes[after]
        changes = (beside.road_id, beside.section_id) == (lane.road_id, lane.section_id)
        assert after in lane.successors or (changes and beside.lane_id * lane.lane_id > 0)


def test_the_same_waypoints_give_the_same_route():
    points = [
        tuple(p)
        for p in plan_route(network("town"), np.random.default_rng(1), 200.0).route.points[::40]
    ]
    first, second = (plan_through(network("town"), points).route.points for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(20.0, 1.75), (150.0, 60.0)], r"waypoint 2 \(150, 60\) is more than 5 m"),
        ([(150.0, 1.75), (20.0, 1.75)], r"no lanes lead from waypoint 1 .* check their order"),
        ([(20.0, 1.75), (150.0, -1.75)], r"no lanes lead from waypoint 1 "),
        ([(20.0, 1.75), (30.0, 1.75)], "is 10.0 m long, expected at least 15 m"),
    ],
)
def test_waypoints_that_cannot_be_driven_are_named(points, message):
    with pytest.raises(RoadError, match=message):
        plan_through(straight_network(), points)


def test_a_scenario_without_waypoints_gets_the_random_route_of_its_seed():
    def route(seed, **changes):
        setting = scenario(0, route_length_m=80.0, **changes)
        return draw_setup(network("loop"), setting, seed, SimulatorConfig()).route

    assert route(3).points.tobytes() == route(3).points.tobytes()
    assert route(3).points.tobytes() != route(4).points.tobytes()
    points = tuple(map(tuple, route(3).points[::20].tolist()))
    fixed = [route(seed, waypoints=points).points for seed in (9, 10)]
    assert fixed[0].tobytes() == fixed[1].tobytes()
    assert len(fixed[0]) < 85
