import functools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.collect.maps.generate import NETWORK_KINDS, generate_network
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.planner import (
    MIN_ROUTE_M,
    LanePart,
    join,
    plan_route,
    plan_through,
)
from avtd3.store.errors import RoadError

carla = pytest.importorskip("carla")


@functools.cache
def network(kind: str, seed: int = 3) -> RoadNetwork:
    return RoadNetwork.from_opendrive(kind, generate_network(kind, seed), is_trusted=True)


def straight_roads(*starts_m: float, length_m: float = 40.0, lanes=((3.5, 0.0),)) -> RoadNetwork:
    """One-way roads along x; a lane is given by the first two coefficients of its width."""
    roads = []
    for number, start in enumerate(starts_m):
        text = "".join(
            f'<lane id="-{n + 1}" type="driving"><link/><width sOffset="0" a="{a}" b="{b}" '
            f'c="0" d="0"/></lane>'
            for n, (a, b) in enumerate(lanes[number % len(lanes)])
        )
        roads.append(
            f'<road id="{number + 1}" length="{length_m}" junction="-1"><planView>'
            f'<geometry s="0" x="{start}" y="0" hdg="0" length="{length_m}"><line/></geometry>'
            f'</planView><lanes><laneSection s="0"><center><lane id="0" type="none"/></center>'
            f"<right>{text}</right></laneSection></lanes></road>"
        )
    place = "<geoReference>+lat_0=0 +lon_0=0</geoReference>"
    xodr = f"<OpenDRIVE><header>{place}</header>{''.join(roads)}</OpenDRIVE>"
    return RoadNetwork.from_opendrive("straight", xodr, is_trusted=True)


ONE = [((3.5, 0.0),)]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NETWORK_KINDS), st.integers(0, 2**32 - 1), st.floats(30.0, 600.0))
def test_routes_follow_linked_lanes_smoothly_for_the_wanted_length(kind, seed, length):
    found = network(kind)
    planned = plan_route(found, np.random.default_rng(seed), length)
    route = planned.route
    assert route.length_m == pytest.approx(length, abs=1.0)
    for before, after in zip(planned.lanes[:-1], planned.lanes[1:], strict=True):
        assert after in found.lanes[before].successors
    step = np.diff(route.distance_m)
    assert step.min() > 0.9
    assert step.max() < 1.1
    assert np.abs(np.diff(route.yaw_rad)).max() < 0.25
    first = found.lanes[planned.lanes[0]]
    # The start is on the line between two points of the lane.
    away = np.hypot(*(first.points - route.points[0]).T).min()
    assert away <= 0.5 * np.diff(first.distance_m).max() + 1e-6


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(NETWORK_KINDS), st.integers(0, 1000))
def test_routes_stay_on_the_centre_lines_of_their_lanes(kind, seed):
    found = network(kind)
    planned = plan_route(found, np.random.default_rng(seed), 300.0)
    centres = np.concatenate([found.lanes[lane].points for lane in planned.lanes])
    gap = np.hypot(*(planned.route.points[:, None] - centres[None]).transpose(2, 0, 1))
    assert gap.min(axis=1).max() < 0.6  # slightly more than half the spacing of the points


def lane_gap(found, lanes, points):
    """Return the distance of each point to the nearest point of some lanes, inf without lanes."""
    centres = [found.lanes[lane].points for lane in lanes]
    if not centres:
        return np.full(len(points), np.inf)
    apart = points[:, None] - np.concatenate(centres)[None]
    return np.hypot(apart[..., 0], apart[..., 1]).min(axis=1)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NETWORK_KINDS), st.integers(0, 1000))
def test_turns_are_where_the_route_is_inside_junctions_and_say_its_way(kind, seed):
    found = network(kind)
    planned = plan_route(found, np.random.default_rng(seed), 300.0)
    route = planned.route
    inside = lane_gap(found, [n for n in planned.lanes if found.lanes[n].is_junction], route.points)
    outside = lane_gap(
        found, [n for n in planned.lanes if not found.lanes[n].is_junction], route.points
    )
    is_clear = np.abs(inside - outside) > 0.7  # near an edge, both are near
    in_turn = np.zeros(len(route.points), bool)
    for turn in route.turns:
        in_turn |= (route.distance_m >= turn.from_m) & (route.distance_m <= turn.to_m)
        if turn.to_m < route.length_m:
            ends = np.interp((turn.from_m, turn.to_m), route.distance_m, route.yaw_rad)
            turned = math.degrees(ends[1] - ends[0])
            expected = "left" if turned < -35.0 else "right" if turned > 35.0 else "straight"
            # The points of a route only sample the lanes, so near the limit both are right.
            assert turn.command == expected or abs(abs(turned) - 35.0) < 1.0
    np.testing.assert_array_equal(in_turn[is_clear], (inside < outside)[is_clear])
    assert [t.from_m for t in route.turns] == sorted(t.from_m for t in route.turns)


def test_all_commands_occur_in_towns_and_none_without_junctions():
    def commands(kind):
        routes = [plan_route(network(kind), np.random.default_rng(s), 300.0) for s in range(10)]
        return {turn.command for planned in routes for turn in planned.route.turns}

    assert commands("town") == {"left", "right", "straight"}
    assert commands("country") == set()


def test_a_route_that_starts_inside_a_junction_has_the_command_of_the_whole_way():
    found = network("town")
    lanes = next(
        planned.lanes
        for planned in (plan_route(found, np.random.default_rng(s), 300.0) for s in range(50))
        if any(turn.command == "left" for turn in planned.route.turns)
    )
    whole = join(found, [LanePart(lane, 0.0) for lane in lanes])
    number = [t.command for t in whole.turns].index("left")
    junctions = [n for n, lane in enumerate(lanes) if found.lanes[lane].is_junction]
    place = junctions[number]
    last_m = 0.9 * found.lanes[lanes[place]].length_m
    late = join(found, [LanePart(lanes[place], last_m), LanePart(lanes[place + 1], 0.0)])
    assert [(t.command, t.from_m) for t in late.turns] == [("left", 0.0)]
    assert late.turns[0].to_m == pytest.approx(
        whole.turns[number].to_m - (whole.turns[number].from_m + last_m), abs=0.1
    )
    early = join(found, [LanePart(lanes[place - 1], 0.0), LanePart(lanes[place], 0.0, 2.0)])
    assert [(t.command, t.to_m) for t in early.turns] == [("left", early.length_m)]


def test_the_same_generator_gives_the_same_route_and_others_differ():
    routes = [
        plan_route(network("town"), np.random.default_rng(seed), 200.0) for seed in (5, 5, 6, 7)
    ]
    np.testing.assert_array_equal(routes[0].route.points, routes[1].route.points)
    assert routes[0].lanes == routes[1].lanes
    assert len({route.lanes for route in routes}) == 3


def test_all_ways_over_a_junction_are_taken_by_some_seed():
    found = network("town")
    taken = set()
    for seed in range(300):
        taken |= set(plan_route(found, np.random.default_rng(seed), 400.0).lanes)
    assert len(taken) > 0.95 * len(found.lanes)


def test_a_loop_may_be_driven_more_than_once():
    found = network("loop")
    lap = max(lane.length_m for lane in found.lanes) * len(found.lanes)
    planned = plan_route(found, np.random.default_rng(0), 2.0 * lap)
    assert planned.route.length_m == pytest.approx(2.0 * lap, abs=1.0)
    assert len(set(planned.lanes)) < len(planned.lanes)
    turned = abs(planned.route.yaw_rad[-1] - planned.route.yaw_rad[0])
    assert turned > 2.0 * math.pi


def test_a_short_network_gives_its_longest_way():
    planned = plan_route(straight_roads(0.0, 40.0, lanes=ONE), np.random.default_rng(1), 500.0)
    assert planned.lanes == (0, 1)
    assert planned.route.length_m == pytest.approx(80.0, abs=0.1)


def test_starts_from_which_the_length_can_be_driven_are_preferred():
    found = straight_roads(0.0, 40.0, 200.0, lanes=ONE)
    for seed in range(10):
        assert plan_route(found, np.random.default_rng(seed), 75.0).lanes == (0, 1)


def test_a_dead_end_makes_the_search_turn_back():
    # Two roads start where the first ends; only one of them continues into a last road.
    fork = straight_roads(0.0, 40.0, 40.0, 80.0, lanes=ONE)
    lanes = list(fork.lanes)
    assert lanes[0].successors == (1, 2)
    for seed in range(10):
        planned = plan_route(fork, np.random.default_rng(seed), 110.0)
        assert planned.lanes[-1] == 3


def test_a_lane_that_ends_as_a_wedge_is_left_on_a_smooth_curve():
    # The right lane narrows to nothing over 100 m and only the left lane continues.
    found = straight_roads(
        0.0, 100.0, length_m=100.0, lanes=[((3.5, 0.0), (3.5, -0.035)), ((3.5, 0.0),)]
    )
    wedge = next(lane for lane in found.lanes if lane.lane_id == -2)
    onward = next(lane for lane in found.lanes if lane.road_id == 2)
    object.__setattr__(wedge, "successors", (onward.index,))
    object.__setattr__(found.lanes[0], "successors", ())
    routes = [plan_route(found, np.random.default_rng(seed), 180.0) for seed in range(12)]
    crossing = [planned for planned in routes if planned.lanes == (wedge.index, onward.index)]
    assert crossing
    for planned in crossing:
        assert np.abs(planned.route.curvature).max() < 0.05
        assert planned.route.lane_width_m.min() >= 2.0


def test_turns_back_over_a_junction_are_not_used():
    # The converted map has two such turns of 6 m, where a street changes its name at a bend.
    osm = (Path(__file__).parents[2] / "data" / "hamlet.osm").read_text()
    xodr = carla.Osm2Odr.convert(osm, carla.Osm2OdrSettings())
    found = RoadNetwork.from_opendrive("hamlet", xodr, is_trusted=True)
    for seed in range(60):
        planned = plan_route(found, np.random.default_rng(seed), 250.0)
        assert planned.route.length_m > 240.0
        assert np.abs(np.diff(planned.route.yaw_rad)).max() < 0.6
        for lane, over, beyond in zip(
            planned.lanes, planned.lanes[1:], planned.lanes[2:], strict=False
        ):
            if found.lanes[over].is_junction:
                turn = found.lanes[beyond].yaw_rad[0] - found.lanes[lane].yaw_rad[-1]
                assert math.cos(turn) > -0.87


@pytest.mark.parametrize("length", [15.0, 15.7, 20.0, 30.0])
def test_roads_of_fifteen_metres_and_more_are_driven(length):
    found = straight_roads(0.0, length_m=length, lanes=ONE)
    planned = plan_route(found, np.random.default_rng(0), 100.0)
    assert planned.route.length_m == pytest.approx(length, abs=0.01)
    ends = ((0.0, 1.75), (length, 1.75))
    assert plan_through(found, ends).route.length_m == pytest.approx(length, abs=0.01)


@pytest.mark.parametrize(("length", "shown"), [(14.94, "14.9"), (10.0, "10.0"), (0.6, "0.6")])
def test_a_network_too_short_for_any_route_is_refused_with_its_length(length, shown):
    found = straight_roads(0.0, length_m=length, lanes=ONE)
    with pytest.raises(RoadError, match=rf"no route of 15 m \(longest found: {shown} m\)"):
        plan_route(found, np.random.default_rng(0), 100.0)


@pytest.mark.parametrize("length", [MIN_ROUTE_M - 1.0, math.nan])
def test_a_route_too_short_is_not_planned(length):
    with pytest.raises(RoadError, match="at least"):
        plan_route(network("loop"), np.random.default_rng(0), length)
