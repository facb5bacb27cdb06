import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.collect.maps.contact import (
    Course,
    Ego,
    find_nearby,
    hits_vehicle,
    lead_on_route,
    rectangles_overlap,
)
from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.route import Route
from avtd3.collect.sim.traffic import PATH_POINTS, Claims, LanePaths, Scene, Traffic, find_leads
from avtd3.tests.collect.maps.road_networks import ring_network, straight_network

STEP_S = 0.05


def make_ego(x=50.0, y=1.75, yaw=0.0, speed=0.0, route=None, distance=0.0):
    if route is None:
        points = np.array([x, y]) + np.arange(100.0)[:, None] * [math.cos(yaw), math.sin(yaw)]
        route = Route(points=points, lane_width_m=np.full(len(points), 3.5))
    return Ego(x, y, yaw, speed, 4.6, 1.85, Course(route), distance)


def make_traffic(network, count, ego, seed=0):
    return Traffic(LanePaths(network), count, ego, STEP_S, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def town():
    return RoadNetwork.from_opendrive("town", generate_network("town", 0), is_trusted=True)


@pytest.fixture(scope="module")
def ring():
    return ring_network()


def put(traffic, number, at, heading=1.0 + 0.0j, speed=0.0):
    traffic.at[number], traffic.heading[number] = at, heading
    traffic.speed_mps[number] = speed
    traffic.length_m[number], traffic.width_m[number] = 4.6, 1.8


def overlapping(traffic):
    """Return pairs of vehicles whose bodies overlap."""
    found = []
    numbers = traffic.placed.nonzero()[0].tolist()
    for one in numbers:
        for two in numbers[numbers.index(one) + 1 :]:
            offset = complex(traffic.at[two] - traffic.at[one])
            if abs(offset) < 6.0:
                back = complex(traffic.heading[one]).conjugate()
                half, own = (
                    (traffic.length_m.item(n) / 2, traffic.width_m.item(n) / 2) for n in (two, one)
                )
                heading = complex(traffic.heading[two]) * back
                if rectangles_overlap(offset * back, heading, half, own):
                    found.append((one, two))
    return found


def test_vehicles_drive_along_their_lanes_and_do_not_touch(town):
    x, y = town.lanes[0].points[5].tolist()
    ego = make_ego(x, y, float(town.lanes[0].yaw_rad[5]))
    traffic = make_traffic(town, 20, ego)
    lanes = np.concatenate([lane.points for lane in town.lanes]) @ [1, 1j]
    assert traffic.unplaced == 0
    for step in range(500):
        traffic.advance(ego)
        if step % 10 == 0:
            assert overlapping(traffic) == []
            away = np.abs(traffic.at[:, None] - lanes).min(axis=1)
            assert away.max() < 0.9
            np.testing.assert_allclose(np.abs(traffic.heading), 1.0)
    assert traffic.speed_mps.mean() > 3.0


def test_positions_advance_by_the_speed(ring):
    ego = make_ego(1000.0, 1000.0)
    traffic = make_traffic(ring, 6, make_ego(0.0, 1.75))
    for _ in range(60):
        before, speed = traffic.at.copy(), traffic.speed_mps.copy()
        traffic.advance(ego)
        mean = 0.5 * (speed + traffic.speed_mps)
        stayed = np.abs(traffic.at - before) < 2.0
        moved = np.abs(traffic.at - before)[stayed]
        np.testing.assert_allclose(moved, mean[stayed] * STEP_S, atol=0.03)


def test_vehicles_stop_behind_the_standing_car():
    # No vehicle can overtake: the lane fills up behind the car.
    network = straight_network(length=400.0)
    ego = make_ego(300.0, 1.75)
    traffic = make_traffic(network, 12, ego)
    closest = math.inf
    for _ in range(400):
        traffic.advance(ego)
        around = find_nearby(ego, traffic)
        assert not hits_vehicle(ego, traffic, around)
        same = (np.abs(traffic.at.imag - 1.75) < 1.0) & (traffic.at.real < 300.0)
        if same.any():
            closest = min(closest, float((300.0 - traffic.at.real[same]).min()))
    assert 4.6 < closest < 10.0


@pytest.mark.parametrize("braking", [2.0, 4.0, 6.0])
def test_a_follower_does_not_ram_a_car_that_brakes(braking):
    network = straight_network(length=600.0)
    x, speed = 100.0, 8.0
    traffic = make_traffic(network, 10, make_ego(x, speed=speed))
    for step in range(300):
        if step > 100:
            speed = max(speed - braking * STEP_S, 0.0)
        x += speed * STEP_S
        ego = make_ego(x, speed=speed)
        traffic.advance(ego)
        assert not hits_vehicle(ego, traffic, find_nearby(ego, traffic))


def test_same_seed_gives_the_same_traffic_and_another_seed_another(town):
    x, y = town.lanes[0].points[5].tolist()
    ego = make_ego(x, y)

    def drive(seed):
        traffic = make_traffic(town, 15, ego, seed)
        for _ in range(120):
            traffic.advance(ego)
        return traffic.at

    np.testing.assert_array_equal(drive(3), drive(3))
    assert (drive(3) != drive(4)).any()


def test_small_networks_hold_fewer_vehicles_and_say_so():
    traffic = make_traffic(straight_network(length=80.0), 40, make_ego(40.0))
    assert 0 < traffic.unplaced < 40
    assert traffic.unplaced == 40 - traffic.placed.sum()
    for _ in range(100):
        traffic.advance(make_ego(40.0))
    assert np.isfinite(traffic.at).all()
    assert overlapping(traffic) == []


def test_no_vehicles_are_no_trouble():
    ego = make_ego()
    traffic = make_traffic(straight_network(), 0, ego)
    traffic.advance(ego)
    around = find_nearby(ego, traffic)
    assert around.numbers == []
    assert lead_on_route(ego, traffic, around) == (math.inf, 0.0)


def test_vehicles_at_a_dead_end_come_back_where_the_camera_does_not_look():
    network = straight_network(length=500.0)
    ego = make_ego(250.0)
    traffic = make_traffic(network, 8, ego)
    returned = 0
    for _ in range(900):
        before = traffic.at.copy()
        traffic.advance(ego)
        for number in (np.abs(traffic.at - before) > 5.0).nonzero()[0].tolist():
            if traffic.placed[number]:
                returned += 1
                offset = complex(traffic.at[number]) - complex(250.0, 1.75)
                assert abs(offset) > 85.0 or abs(math.atan2(offset.imag, offset.real)) > 1.2
                assert 55.0 < abs(offset) < 155.0
    assert returned > 3


def test_paths_continue_through_successors(town):
    paths = LanePaths(town)
    rng = np.random.default_rng(0)
    for lane in town.lanes[::5]:
        lanes = [lane.index]
        path = paths.path(lanes, 1.0, 10.0, rng)
        assert path.length_m == PATH_POINTS
        steps = np.abs(np.diff(path.points))
        assert steps.min() > 0.5
        assert steps.max() < 2.6  # there may be a small gap where lanes join
        for one, two in itertools.pairwise(lanes):
            assert two in town.lanes[one].successors
        assert path.speed_mps.max() <= 10.0
        assert (np.diff(path.speed_mps**2) >= -2 * 1.5 - 1e-6).all()
        # The same lanes from a later start give the same path.
        later = paths.path(lanes, 41.0, 10.0, rng)
        np.testing.assert_allclose(later.points[:100], path.points[40:140], atol=1e-9)


def make_scene(at, heading, speed, sight, **values):
    count = len(at) - 1
    ways = np.exp(1j * np.angle(np.diff(sight, axis=1)))
    scene = {
        "at": np.array(at, np.complex128),
        "heading": np.array(heading, np.complex128),
        "speed_mps": np.array(speed, np.float64),
        "length_m": np.full(count + 1, 4.0),
        "width_m": np.full(count + 1, 2.0),
        "sight": sight,
        "directions": np.concatenate([ways, ways[:, -1:]], axis=1),
        "claims": None,
        "in_junction": np.zeros(sight.shape, np.bool_),
        "priority": np.arange(count + 1, dtype=np.float64),
    }
    return Scene(**{**scene, **values})


EAST = np.arange(0.0, 54.0, 2.0) + 0j


def test_gap_and_speed_of_a_vehicle_ahead_in_the_lane():
    scene = make_scene([0, 20.5], [1, 1], [8.0, 3.0], EAST[None])
    gap, speed = find_leads(scene)
    assert (gap.tolist(), speed.tolist()) == ([16.5], [3.0])


@pytest.mark.parametrize("other", [20 + 2.5j, -8.0 + 0j, 70.0 + 0j])
def test_vehicles_beside_behind_and_far_off_are_no_obstacle(other):
    gap, _ = find_leads(make_scene([0, other], [1, 1], [8.0, 3.0], EAST[None]))
    assert gap.tolist() == [math.inf]


def test_a_crossing_vehicle_blocks_by_its_length_and_counts_as_standing():
    # A vehicle across the path extends 2 m to both sides.
    scene = make_scene([0, 20 + 2.8j], [1, 1j], [8.0, 6.0], EAST[None])
    gap, speed = find_leads(scene)
    assert gap.tolist() == [pytest.approx(20 - 1 - 2)]
    assert speed.tolist() == [pytest.approx(0.0, abs=1e-9)]
    assert find_leads(make_scene([0, 20 + 3.5j], [1, 1j], [8.0, 6.0], EAST[None]))[0][0] == math.inf


def crossing_scene(priority, speed=5.0):
    north = 20.0 + 1j * np.arange(-20.0, 34.0, 2.0)
    sight = np.stack([EAST, north])
    claims = Claims(
        points=np.stack([EAST[:12], north[:12], np.full(12, -99.0 + 0j)]),
        directions=np.stack([np.full(12, 1.0 + 0j), np.full(12, 1j), np.full(12, 1.0 + 0j)]),
    )
    return make_scene(
        [0, 20 - 20j, -99],
        [1, 1j, 1],
        [speed, speed, 0.0],
        sight,
        claims=claims,
        in_junction=np.broadcast_to(np.arange(27) > 6, sight.shape) & (np.arange(27) < 12),
        priority=np.array(priority, np.float64),
    )


def test_only_the_lower_priority_gives_way_to_a_claim():
    gap, _ = find_leads(crossing_scene([1, 2, 3]))
    assert 10.0 < gap[0] < 16.0
    assert gap[1] == math.inf
    gap, _ = find_leads(crossing_scene([2, 1, 3]))
    assert gap[0] == math.inf
    assert 10.0 < gap[1] < 16.0


def test_a_vehicle_that_cannot_stop_drives_on():
    gap, _ = find_leads(crossing_scene([1, 2, 3], speed=20.0))
    assert gap.tolist() == [math.inf, math.inf]


def test_no_vehicle_enters_a_junction_that_it_cannot_leave():
    inside = (np.arange(27) > 6) & (np.arange(27) < 12)  # from 14 m to 24 m
    claims = Claims(points=np.full((2, 12), -99.0 + 0j), directions=np.ones((2, 12), np.complex128))

    def gap_behind(lead):
        scene = make_scene(
            [0, lead], [1, 1], [5.0, 0.0], EAST[None], claims=claims, in_junction=inside[None]
        )
        return float(find_leads(scene)[0][0])

    assert gap_behind(27.0) == pytest.approx(14.0 - 2.0)
    assert gap_behind(40.0) == pytest.approx(40.0 - 4.0)


angles = st.floats(-math.pi, math.pi)


@given(st.floats(-6, 6), st.floats(-6, 6), angles)
def test_rectangles_overlap_like_their_points_do(x, y, yaw):
    at, heading = complex(x, y), complex(math.cos(yaw), math.sin(yaw))
    grid = np.linspace(-1, 1, 81)
    points = at + heading * (2.3 * grid[:, None] + 0.9j * grid)
    inside = ((np.abs(points.real) <= 2.3) & (np.abs(points.imag) <= 0.9)).any()
    if inside:
        assert rectangles_overlap(at, heading, (2.3, 0.9), (2.3, 0.9))
    elif rectangles_overlap(at, heading, (2.3, 0.9), (2.3, 0.9)):
        # Only a corner may fall between the points of the grid.
        shrunk = (2.3 - 0.06, 0.9 - 0.06)
        assert not rectangles_overlap(at, heading, shrunk, shrunk)


def test_lead_on_the_route_is_the_nearest_in_the_corridor():
    ego = make_ego(0.0, 0.0)
    traffic = make_traffic(straight_network(), 4, make_ego())
    put(traffic, 0, 30.0 + 0.3j, speed=4.0)
    put(traffic, 1, 20.0 + 3.5j, speed=9.0)  # the next lane
    put(traffic, 2, 45.0 + 0j, speed=1.0)
    put(traffic, 3, -15.0 + 0j, speed=1.0)
    gap, speed = lead_on_route(ego, traffic, find_nearby(ego, traffic))
    assert gap == pytest.approx(30.0 - 4.6, abs=0.01)
    assert speed == pytest.approx(4.0)
    put(traffic, 1, 12.0 + 2.5j, heading=1j, speed=5.0)  # now crossing
    gap, speed = lead_on_route(ego, traffic, find_nearby(ego, traffic))
    assert gap == pytest.approx(12.0 - 2.3 - 0.9, abs=0.01)
    assert speed == pytest.approx(0.0, abs=1e-9)


def test_lead_follows_the_route_around_a_bend():
    turn = np.linspace(0.0, math.pi / 2, 41)
    bend = 25.0 * np.stack([np.sin(turn), 1.0 - np.cos(turn)], axis=1)
    route = Route(points=bend, lane_width_m=np.full(len(bend), 3.5))
    ego = make_ego(0.0, 0.0, route=route)
    traffic = make_traffic(straight_network(), 2, make_ego())
    put(traffic, 0, 25.0 + 25.0j, heading=1j, speed=3.0)  # the end of the bend
    put(traffic, 1, 25.0 + 0j, speed=3.0)  # straight ahead, off the route
    gap, speed = lead_on_route(ego, traffic, find_nearby(ego, traffic))
    assert gap == pytest.approx(25.0 * math.pi / 2 - 4.6, abs=0.1)
    assert speed == pytest.approx(3.0, abs=0.01)
