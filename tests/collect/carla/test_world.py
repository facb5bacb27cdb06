"""`CarlaWorld` with the real client, over the wire."""

import dataclasses
import math
import signal
import subprocess
import sys

import numpy as np
import pytest

from avtd3.collect.carla.config import CarlaCamera
from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.sim.world import RoadWorld
from avtd3.store.errors import ConfigError, RoadError, WorldError, WorldLost
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.worlds import (
    COUNTRY,
    LOOP,
    STRAIGHT_ON,
    drive,
    ignored,
    kinds,
    other_car,
    world_on,
)

SENSORS = ["sensor.camera.rgb", "sensor.other.collision", "sensor.other.lane_invasion"]


@pytest.fixture(scope="module")
def world(server):
    with world_on(server) as world:
        yield world


def test_an_episode_has_consecutive_frames_of_one_period(server, world):
    start = world.reset(LOOP, 2)
    frames = [start.frame, *drive(world, 5)]
    assert (start.town, start.weather, world.notices) == ("AvTown01", "clear", ())
    assert np.diff([frame.frame_id for frame in frames]).tolist() == [1] * 5
    np.testing.assert_allclose([f.sim_time_s for f in frames], np.arange(6) * 0.05, atol=1e-9)
    for frame in frames:
        assert frame.image.shape == world.image_shape == (1, 24, 32)
        assert frame.image.dtype == np.uint8
        seen = (frame.off_road, frame.wrong_way, frame.collision, frame.lane_invasions)
        assert seen == (False, False, "", 0)
        assert frame.lead_gap_m == math.inf
    assert len(np.unique(frames[-1].image)) > 10
    assert kinds(server) == [*SENSORS, "vehicle.tesla.model3"]


def test_an_episode_is_the_same_as_in_the_built_in_simulator(server, world):
    """The same roads, seed and actions give the same route, start and motion, to float32."""
    road = RoadWorld()
    placed = server.record()["commands"].get("set_actor_transform", 0)
    start, same = world.reset(COUNTRY, 4), road.reset(COUNTRY, 4)
    # The car settles on the ground near its start, and is then moved exactly to it.
    assert server.record()["commands"]["set_actor_transform"] == placed + 1
    assert (start.town, start.weather) == (same.town, same.weather)
    np.testing.assert_array_equal(start.route.points, same.route.points)
    pairs = [(start.frame, same.frame)]
    for steer in np.linspace(-0.1, 0.1, 20):
        action = np.array([steer, 0.4], np.float32)
        pairs.append((world.step(action), road.step(action)))
    for ours, theirs in pairs:
        for name in ("x_m", "y_m", "yaw_rad", "speed_mps"):
            found, expected = getattr(ours.vehicle, name), getattr(theirs.vehicle, name)
            assert found == pytest.approx(expected, rel=1e-6, abs=2e-4), name
        assert ours.vehicle.acceleration_mps2 == pytest.approx(
            theirs.vehicle.acceleration_mps2, abs=2e-3
        )
        assert (ours.off_road, ours.wrong_way) == (theirs.off_road, theirs.wrong_way)


def test_the_turns_of_a_route_come_from_the_planner_as_in_the_built_in_simulator(world):
    town = scenario(2, networks=4, npcs=0, weather="clear")
    turns = world.reset(town, 4).route.turns
    assert turns
    assert turns == RoadWorld().reset(town, 4).route.turns


def test_scenario_and_seed_repeat_an_episode_whatever_was_before(world):
    def episode():
        frames = [world.reset(COUNTRY, 6).frame, *drive(world, 4)]
        return [(f.image.tobytes(), f.vehicle, f.lane_invasions, f.off_road) for f in frames]

    first = episode()
    world.reset(LOOP, 8)
    assert episode() == first


def test_every_episode_starts_with_a_picture_without_new_settings_or_connections(server, world):
    """A subscription is not live at once, and each change of settings takes ticks."""
    world.reset(LOOP, 2)
    before = server.record()
    for seed in range(4, 44, 2):
        start = world.reset(LOOP, seed)
        assert len(np.unique(start.frame.image)) > 10
        assert start.frame.sim_time_s == 0.0
    after = server.record()
    assert after["calls"]["set_episode_settings"] == before["calls"]["set_episode_settings"]
    assert after["clients"] == before["clients"]
    assert kinds(server) == [*SENSORS, "vehicle.tesla.model3"]
    # Snapshots, camera and collisions.
    assert sum(after["streams"].values()) == sum(before["streams"].values()) == 3


def test_every_step_drives_with_its_own_control(server, world):
    """The client does not send a control equal to the last one; it must still be in force."""
    start = world.reset(LOOP, 2)
    (car,) = (actor["id"] for actor in server.record()["actors"] if "vehicle" in actor["type"])
    actions = [(0.0, 0.0), (0.0, 0.0), (0.25, 0.5), (0.25, 0.5), (0.0, -1.0), (2.0, 3.0), (0.0, 0)]
    frames = [world.step(np.array(action, np.float32)) for action in actions]
    in_force = {frame: controls.get(str(car)) for frame, controls in server.record()["controls"]}
    expected = [
        (0, 0, 0),
        (0, 0, 0),
        (0.5, 0.25, 0),
        (0.5, 0.25, 0),
        (0, 0, 1),
        (1, 1, 0),
        (0,) * 3,
    ]
    for frame, control in zip(frames, expected, strict=True):
        assert in_force[frame.frame_id] == [*control, False, False, False, 0]
    # Held by its brakes until the first step.
    assert in_force[start.frame.frame_id][2:4] == [1.0, True]


def test_a_wheel_over_a_line_and_a_car_off_the_road_are_seen(world):
    world.reset(LOOP, 2)
    frames = drive(world, 60, np.array([0.35, 0.6], np.float32))
    crossed = sum(frame.lane_invasions for frame in frames)
    assert 1 <= crossed <= 4
    assert frames[-1].off_road
    assert not frames[0].off_road
    fresh = world.reset(LOOP, 2)
    assert not fresh.frame.off_road
    assert sum(frame.lane_invasions for frame in drive(world, 5)) == 0


def test_the_lane_of_the_other_direction_is_the_wrong_way(world):
    world.reset(LOOP, 2)
    frames = drive(world, 70, np.array([-0.25, 0.4], np.float32))
    assert not frames[0].wrong_way
    assert frames[-1].wrong_way
    assert not frames[-1].off_road


def test_the_server_loads_each_town_once(server, world):
    world.reset(LOOP, 2)
    before = server.record()["calls"]
    world.reset(LOOP, 4)
    world.reset(LOOP, 6)
    assert server.record()["calls"]["load_new_episode"] == before["load_new_episode"]
    assert server.record()["map"] == "Carla/Maps/AvTown01"
    town = world.reset(dataclasses.replace(LOOP, town="AvTown02"), 2).town
    assert town == "AvTown02"
    assert server.record()["calls"]["load_new_episode"] == before["load_new_episode"] + 1


def test_roads_come_from_files_too(server, world, tmp_path):
    path = tmp_path / "hill.xodr"
    path.write_text(generate_network("loop", 3), "utf-8")
    start = world.reset(scenario(1, town=str(path), npcs=0, weather="clear"), 2)
    assert start.town == "hill"
    assert server.record()["map"] == "OpenDriveMap"
    elsewhere = dataclasses.replace(LOOP, town="NoSuchTown", xodr=str(path))
    assert world.reset(elsewhere, 2).town == "NoSuchTown"
    at_home = dataclasses.replace(LOOP, xodr=str(path))
    world.reset(at_home, 2)
    assert server.record()["map"] == "Carla/Maps/AvTown01"


def test_missing_maps_and_weathers_are_named_and_the_world_continues(server, world):
    with pytest.raises(ConfigError, match=r"'AvTown1' is not a map .* did you mean AvTown01\?"):
        world.reset(dataclasses.replace(LOOP, town="AvTown1"), 2)
    with pytest.raises(RoadError, match="does not exist"):
        world.reset(dataclasses.replace(LOOP, town="nowhere.xodr"), 2)
    with pytest.raises(ConfigError, match="weather is 'hail'"):
        world.reset(dataclasses.replace(LOOP, weather="hail"), 2)
    pid = world.client.pid
    # The parent decides, whatever reaches all processes of a terminal or a job.
    assert ignored(pid) >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
    world.reset(LOOP, 2)
    assert world.client.pid == pid


def test_misuse_is_named(world):
    world.reset(LOOP, 2)
    with pytest.raises(WorldError, match="two finite numbers"):
        world.step(np.array([np.nan, 0.0], np.float32))
    with pytest.raises(WorldError, match="two finite numbers"):
        world.step(np.zeros(3, np.float32))
    assert world.step(STRAIGHT_ON).frame_id


def test_other_vehicles_drive_and_are_seen_ahead(server, world):
    busy = dataclasses.replace(LOOP, npcs=20)
    world.reset(busy, 8)
    before = world.surroundings()
    roles = {actor["role"] for actor in server.record()["actors"] if "vehicle" in actor["type"]}
    assert {role.partition(" ")[0] for role in roles} == {"hero", "avtd3"}
    gaps = [frame.lead_gap_m for frame in drive(world, 40)]
    after = world.surroundings()
    assert len(before.others) == len(after.others) == 20
    moved = np.hypot(*(after.others[:, :2] - before.others[:, :2]).T)
    assert (moved > 1.0).sum() >= 10
    assert len(before.lanes) == 8
    assert min(gaps) < 60.0
    # The map may change after an episode with traffic. The client may crash then, see
    # test_wire_crashes.py; the next reset starts a new one.
    try:
        world.reset(dataclasses.replace(COUNTRY, npcs=3), 12)
    except WorldLost as error:
        if error.reason != "client_crash":
            raise
        world.reset(dataclasses.replace(COUNTRY, npcs=3), 12)
    world.reset(LOOP, 2)
    assert kinds(server) == [*SENSORS, "vehicle.tesla.model3"]
    assert len(world.surroundings().others) == 0


def test_traffic_starts_in_the_same_places_with_its_seed(world):
    """avtd3 draws the places; the threads of the traffic manager may race after that."""
    busy = dataclasses.replace(LOOP, npcs=10)

    def places(seed):
        world.reset(busy, seed)
        return world.surroundings().others[:, :2]

    first = places(8)
    np.testing.assert_allclose(places(8), first, atol=3.0)
    world.reset(dataclasses.replace(LOOP, town="AvTown02", npcs=2), 4)
    np.testing.assert_allclose(places(8), first, atol=3.0)
    assert np.abs(places(10) - first).max() > 10.0


def test_a_car_that_stands_ahead_is_seen_and_then_hit(carla_server):
    with world_on(carla_server) as world:
        route = world.reset(LOOP, 2).route
    at = int(np.searchsorted(route.distance_m, 25.0))
    place = (*route.points[at].tolist(), math.degrees(route.yaw_rad[at]))
    with other_car(carla_server, *place), world_on(carla_server) as world:
        start = world.reset(LOOP, 2)
        assert start.frame.lead_gap_m == pytest.approx(25.0 - 4.4, abs=1.0)
        assert start.frame.lead_speed_mps == 0.0
        frames = [start.frame]
        while not frames[-1].collision:
            assert len(frames) < 200
            steer = -0.3 * start.route.project(*at_of(frames[-1]), 10.0).lateral_m
            frames.append(world.step(np.array([steer, 0.5], np.float32)))
        assert frames[-1].collision == "vehicle"
        assert frames[-1].lead_gap_m < 1.0


def at_of(frame):
    return frame.vehicle.x_m, frame.vehicle.y_m


def test_vehicles_without_room_are_reported(world):
    world.reset(dataclasses.replace(LOOP, npcs=500), 2)
    (notice,) = world.notices
    assert "of 500 vehicles found no room on AvTown01" in notice


def test_steps_that_skip_frame_numbers_keep_their_own(server, world):
    world.reset(LOOP, 2)
    server.fault(frame_step=3)
    frames = drive(world, 4)
    server.fault(frame_step=1)
    assert np.diff([frame.frame_id for frame in frames]).tolist() == [3, 3, 3]
    np.testing.assert_allclose(np.diff([frame.sim_time_s for frame in frames]), 0.05, atol=1e-9)


FOREIGN_TICK = """
import os, sys, carla
client = carla.Client("127.0.0.1", int(sys.argv[1]))
client.set_timeout(60.0)
client.get_world().tick()
os._exit(0)
"""


def test_ticks_of_another_client_are_visible_and_reported(server, world):
    world.reset(LOOP, 2)
    before = world.step(STRAIGHT_ON)
    subprocess.run([sys.executable, "-c", FOREIGN_TICK, str(server.port)], check=True)
    after = world.step(STRAIGHT_ON)
    assert after.frame_id - before.frame_id == 2
    assert after.sim_time_s - before.sim_time_s == pytest.approx(0.1)
    world.reset(LOOP, 2)
    (notice,) = world.notices
    assert notice.startswith("1 steps of the previous episode took more than one period")


def spectator_distance(record, frame):
    (spectator,) = (actor for actor in record["actors"] if actor["type"] == "spectator")
    return math.dist(spectator["pose"][:2], at_of(frame))


def test_weather_camera_spectator_and_settings_are_set_and_the_settings_restored():
    with CarlaServer() as server:
        found = server.record()["settings"]
        camera = CarlaCamera(height=16, width=48, supersample=3, field_of_view_deg=70.0)
        with world_on(
            server,
            weather="WetNoon",
            spectator_follows=True,
            camera=camera,
            control_period_s=0.1,
            vehicle="vehicle.audi.tt",
        ) as world:
            start = world.reset(LOOP, 2)
            frame = world.step(STRAIGHT_ON)
            assert frame.image.shape == (1, 16, 48)
            # The client does not wait for an answer when it moves the spectator.
            record = server.record_when(
                lambda record: spectator_distance(record, frame) == pytest.approx(8.0, abs=0.1)
            )
            assert record["weather"][2] == 50.0  # its puddles
            assert record["settings"][:3] == [True, False, [True, 0.1]]
            assert frame.sim_time_s - start.frame.sim_time_s == pytest.approx(0.1)
            assert "vehicle.audi.tt" in kinds(server)
        assert server.record()["settings"] == found
        assert kinds(server) == []
        world.close()  # closing again does nothing
        with pytest.raises(WorldError, match="closed"):
            world.reset(LOOP, 2)
