import dataclasses
import math

import numpy as np
import pytest

from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.plan import GROUP
from avtd3.collect.sim.camera import CameraConfig
from avtd3.collect.sim.traffic import DECIDE_EVERY
from avtd3.collect.sim.world import BareRoad, RoadConfig, RoadWorld
from avtd3.store.errors import ConfigError, RoadError, WorldError
from avtd3.tests.collect.maps.road_networks import straight_document

EMPTY = scenario(0, npcs=0, weather="clear")
COAST = np.array([0.0, 0.0], np.float32)


@pytest.fixture(scope="module")
def world():
    return RoadWorld()


@pytest.fixture
def straight(tmp_path):
    path = tmp_path / "straight.xodr"
    path.write_text(straight_document(length=300.0))
    return scenario(1, town=str(path), npcs=0)


def actions(count=12):
    step = np.arange(count)
    return np.stack([0.1 * np.sin(step), 0.5 * np.cos(step / 4)], axis=1).astype(np.float32)


def episode(world, setting, seed):
    start = world.reset(setting, seed)
    return start, [start.frame, *(world.step(action) for action in actions())]


def same_frames(one, two):
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        assert dataclasses.replace(first, image=0) == dataclasses.replace(second, image=0)


def test_same_scenario_and_seed_give_the_same_bytes_whatever_came_before():
    setting = scenario(0, weather="random", network_kinds=("town",))
    fresh, used = RoadWorld(), RoadWorld(RoadConfig(cached_networks=1))
    episode(used, setting, 0)
    episode(used, scenario(4, network_kinds=("loop",)), 7)
    (start, frames), (again, repeated) = episode(fresh, setting, 0), episode(used, setting, 0)
    assert (start.town, start.weather) == (again.town, again.weather)
    np.testing.assert_array_equal(start.route.points, again.route.points)
    same_frames(frames, repeated)
    same_frames(frames, episode(used, setting, 0)[1])
    assert (episode(used, setting, 2)[1][0].image != frames[0].image).any()


def test_frames_are_numbered_and_timed(world):
    _, frames = episode(world, EMPTY, 0)
    assert [frame.frame_id for frame in frames] == list(range(13))
    np.testing.assert_allclose([f.sim_time_s for f in frames], np.arange(13) * 0.05)
    assert all(f.image.shape == world.image_shape == (1, 84, 84) for f in frames)
    assert all(f.image.dtype == np.uint8 for f in frames)


def test_an_episode_begins_on_its_route_rolling_a_little_askew(world):
    speeds, sides = [], []
    for seed in range(0, 16, 2):
        start = world.reset(EMPTY, seed)
        car = start.frame.vehicle
        at = start.route.project(car.x_m, car.y_m, 0.0)
        assert at.distance_m < 0.1
        assert abs(at.lateral_m) <= 0.31
        assert abs(math.remainder(car.yaw_rad - at.yaw_rad, math.tau)) < 0.06
        assert not start.frame.off_road
        assert not start.frame.wrong_way
        assert start.frame.lane_invasions == 0
        speeds.append(car.speed_mps)
        sides.append(at.lateral_m)
    assert 0.0 <= min(speeds) < max(speeds) <= 6.0
    assert min(sides) < 0.0 < max(sides)


def test_odd_seeds_drive_on_networks_that_even_seeds_never_see(world):
    setting = scenario(0, npcs=0, weather="clear", networks=2)
    towns = {
        parity: {
            world.reset(setting, seed).town for seed in range(parity, 6 * GROUP, 2 * GROUP - 2)
        }
        for parity in (0, 1)
    }
    assert not towns[0] & towns[1]
    assert len(towns[0]) == len(towns[1]) == 2
    for parity, names in towns.items():
        assert all(int(name.rsplit("-", 1)[1]) % 2 == parity for name in names)


def test_towns_are_named_after_kind_and_number(world):
    assert world.reset(scenario(2, npcs=0, network_kinds=("loop",)), 0).town == "loop-000000"
    assert world._map.network.name == "loop-000000"


def test_vehicles_do_not_change_the_route_or_the_light(world):
    crowded = scenario(0, npcs=12, weather="random")
    alone = dataclasses.replace(crowded, npcs=0)
    one, two = world.reset(crowded, 4), world.reset(alone, 4)
    np.testing.assert_array_equal(one.route.points, two.route.points)
    assert one.weather == two.weather
    assert one.frame.vehicle == two.frame.vehicle


def drive(world, steer, pedal, steps):
    return [world.step(np.array([steer, pedal], np.float32)) for _ in range(steps)]


def test_crossing_the_middle_is_an_invasion_then_the_wrong_way_then_off_the_road(straight):
    world = RoadWorld(RoadConfig(start_lateral_m=0.0, start_heading_deg=0.0))
    start = world.reset(straight, 0)
    drive(world, 0.0, 0.6, 30)
    left = drive(world, -0.25, 0.3, 60)  # across the broken centre line and beyond
    invaded = [frame.frame_id for frame in left if frame.lane_invasions]
    astray = [frame for frame in left if frame.off_road]
    assert invaded[0] < astray[0].frame_id
    assert sum(frame.lane_invasions for frame in left) in (3, 4)
    across = start.route.project(astray[0].vehicle.x_m, astray[0].vehicle.y_m).lateral_m
    assert across == pytest.approx(-(1.75 + 3.5 + 0.5), abs=0.6)


def test_driving_against_the_lane_is_the_wrong_way(straight):
    world = RoadWorld()
    world.reset(straight, 0)
    car = world._vehicle
    assert not world.step(COAST).wrong_way
    car.place(car.x_m, -car.y_m, car.yaw_rad, 5.0)
    assert world.step(COAST).wrong_way
    car.place(car.x_m, car.y_m, car.yaw_rad + math.pi, 5.0)
    assert not world.step(COAST).wrong_way


def test_running_into_a_vehicle_is_a_collision_after_its_gap_has_closed(straight):
    world = RoadWorld(RoadConfig(start_speed_mps=0.0))
    world.reset(dataclasses.replace(straight, npcs=1), 0)
    traffic, car = world._traffic, world._vehicle
    route = world._route
    (x, y), yaw = route.points[20].tolist(), float(route.yaw_rad[20])
    traffic.at = traffic._ats = np.full((DECIDE_EVERY, 1), complex(x, y))
    traffic.at, traffic._alongs = traffic._ats[0], np.zeros((DECIDE_EVERY, 1))
    traffic._headings, traffic._speeds = (
        np.full((DECIDE_EVERY, 1), np.exp(1j * yaw)),
        np.zeros((DECIDE_EVERY, 1)),
    )
    traffic._decide = traffic._replace_paths = lambda ego: None  # type: ignore[method-assign]  # a standing vehicle
    frames = drive(world, 0.0, 0.8, 80)
    gaps = [frame.lead_gap_m for frame in frames]
    assert gaps[0] == pytest.approx(20.0 - 2.3 - traffic.length_m[0] / 2, abs=0.2)
    crash = next(frame for frame in frames if frame.collision)
    assert (np.diff(gaps[: crash.frame_id]) <= 1e-9).all()
    assert crash.collision == "vehicle"
    assert crash.lead_gap_m == pytest.approx(0.0, abs=0.1)
    assert frames[crash.frame_id - 2].lead_gap_m > 0.0
    assert car.speed_mps > 3.0


def test_traffic_does_not_hit_a_car_that_stops_in_it(world):
    for seed in (0, 1):
        world.reset(scenario(2, npcs=25, network_kinds=("town",)), seed)
        assert not any(frame.collision for frame in drive(world, 0.0, -0.3, 150))


@pytest.mark.parametrize("action", [[np.nan, 0.0], [0.0, np.inf], [0.0], [0.0, 0.0, 0.0]])
def test_impossible_actions_are_refused(world, action):
    for each in (world, BareRoad()):
        each.reset(EMPTY, 0)
        with pytest.raises(WorldError, match="expected two finite numbers"):
            each.step(np.array(action, np.float32))


def test_steps_and_networks_need_an_episode():
    world = RoadWorld()
    with pytest.raises(WorldError, match="reset"):
        world.step(COAST)
    with pytest.raises(WorldError, match="reset"):
        world.surroundings()
    world.close()
    world.close()


def test_unusable_scenarios_are_refused(world, tmp_path):
    with pytest.raises(RoadError, match="missing"):
        world.reset(scenario(1, town=str(tmp_path / "missing.xodr")), 0)
    with pytest.raises(ConfigError, match="hail"):
        world.reset(dataclasses.replace(EMPTY, weather="hail"), 0)
    with pytest.raises(ConfigError, match="moon"):
        world.reset(dataclasses.replace(EMPTY, network_kinds=("moon",)), 0)


def test_an_opendrive_file_is_a_town_and_its_hills_are_noticed(straight, tmp_path):
    world = RoadWorld()
    assert world.reset(straight, 0).town == "straight"
    assert world.notices == ()
    hilly = tmp_path / "hilly.xodr"
    profile = '<elevationProfile><elevation s="0" a="5" b="0.1" c="0" d="0"/></elevationProfile>'
    hilly.write_text(straight_document(300.0).replace("<lanes>", profile + "<lanes>", 1))
    world.reset(dataclasses.replace(straight, town=str(hilly)), 0)
    assert len(world.notices) == 1
    assert "flat" in world.notices[0]


def test_vehicles_without_room_are_noticed(straight):
    world = RoadWorld()
    world.reset(dataclasses.replace(straight, npcs=200), 0)
    assert "found no room" in world.notices[0]
    assert 0 < world._traffic.unplaced < 200
    others = world.surroundings().others
    assert others.shape == (200 - world._traffic.unplaced, 3)


def test_rain_lengthens_the_way_to_a_stop():
    world = RoadWorld(RoadConfig(start_speed_mps=0.0))
    stops = []
    for weather in ("clear", "rain"):
        world.reset(scenario(1, weather=weather), 0)
        world._vehicle.speed_mps = 15.0
        frames = drive(world, 0.0, -1.0, 80)
        first, last = frames[0].vehicle, frames[-1].vehicle
        stops.append(math.hypot(last.x_m - first.x_m, last.y_m - first.y_m))
    assert stops[1] > 1.1 * stops[0]


def test_pictures_have_the_configured_size():
    camera = CameraConfig(height=48, width=64)
    world = RoadWorld(RoadConfig(camera=camera))
    assert world.reset(EMPTY, 0).frame.image.shape == world.image_shape == (1, 48, 64)


@pytest.mark.parametrize("values", [{"control_period_s": 0.0}, {"pixel_m": 3.0}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        RoadConfig(**values)
