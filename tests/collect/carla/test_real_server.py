"""What a real server does and simple ones do not: late messages, bridges, odd answers, lights."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from typing import cast

import msgpack
import numpy as np
import pytest

from avtd3.collect.carla.server import Server
from avtd3.collect.carla.traffic import CarlaTraffic
from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.errors import WorldLost
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.worlds import (
    COUNTRY,
    LOOP,
    STRAIGHT_ON,
    drive,
    kinds,
    settings,
    until,
    world_on,
)
from avtd3.tests.collect.maps.road_networks import document, road
from avtd3.tests.pipeline.conftest import avtd3

BRIDGE_M = 8.0
HEALTHY = {
    "late_calls_every": 0,
    "late_controls_every": 0,
    "float_settings": False,
    "nan_snapshots": 0,
    "refuse_loads": 0,
    "camera_rows_lost": 0,
    "late_events_ticks": 0,
    "contact": [],
    "camera_repeats": False,
    "crlf": False,
    "foreign_ticks_every": 0,
    "ignore_physics": False,
    "sinks_m": 0.0,
    "lights": [],
    "light_state": 2,
}


@pytest.fixture(scope="module")
def one_world(server):
    with world_on(server) as world:
        yield world


@pytest.fixture
def world(server, one_world):
    """A world on a server whose faults are removed after the test."""
    yield one_world
    server.fault(**HEALTHY)


def in_force(server):
    """Return throttle, steering and brake by frame, of the driven car."""
    (car,) = (a["id"] for a in server.record()["actors"] if a["role"] == "hero")
    return {frame: found.get(str(car)) for frame, found in server.record()["controls"]}


def wave(steps):
    """Return actions that all differ."""
    return [np.array([0.2 * np.sin(n), 0.5 + 0.01 * n], np.float32) for n in range(steps)]


def test_each_step_has_its_own_control_in_whatever_order_messages_are_handled(server, world):
    world.reset(LOOP, 2)
    server.fault(late_calls_every=2)
    actions = wave(20)
    frames = [world.step(action) for action in actions]
    driven = in_force(server)
    for action, frame in zip(actions, frames, strict=True):
        assert driven[frame.frame_id][1] == pytest.approx(float(action[0]), abs=1e-6)
    assert not any(frame.other_control for frame in frames)
    # The car starts at its place and with its speed, which are sent like controls.
    fresh = world.reset(LOOP, 2)
    at = fresh.route.project(fresh.frame.vehicle.x_m, fresh.frame.vehicle.y_m, 0.0)
    assert abs(at.lateral_m) < 0.31
    assert world.step(STRAIGHT_ON).vehicle.speed_mps == pytest.approx(
        fresh.frame.vehicle.speed_mps, abs=0.3
    )


def test_steps_with_another_control_are_stored_and_found_by_the_audit(carla_server, tmp_path):
    short = ScenarioConfig(
        number=1, town="AvTown01", weather="clear", npcs=0, route_length_m=30.0, time_limit_s=2.0
    )
    config = CollectConfig(
        world="carla", scenario=short, carla=settings(carla_server), min_free_mb=0, driver="random"
    )
    carla_server.fault(late_controls_every=4)
    collect(tmp_path / "d", config, episodes=1)
    carla_server.fault(late_controls_every=0)
    report = audit([tmp_path / "d"], AuditConfig(scheduler="sync"))
    (finding,) = [f for f in report.findings if f.check == "other-control"]
    assert "steps driven with another action than the stored one" in finding.message
    found = audit([tmp_path / "d"], AuditConfig(scheduler="sync")).log.counts
    collect(tmp_path / "good", config, episodes=1)
    assert found.keys() - audit([tmp_path / "good"], AuditConfig(scheduler="sync")).log.counts == {
        "other-control"
    }


@pytest.fixture
def two_levels(tmp_path):
    """A road, and another exactly above it."""
    rise = f'<elevation s="0" a="{BRIDGE_M}" b="0" c="0" d="0"/>'
    above = road(2, length=300.0).replace(
        "<lanes>", f"<elevationProfile>{rise}</elevationProfile><lanes>"
    )
    path = tmp_path / "bridge.xodr"
    path.write_text(document(road(length=300.0), above))
    return str(path)


def test_cars_start_and_are_seen_on_the_level_of_their_lanes(server, world, two_levels):
    setting = dataclasses.replace(LOOP, town=two_levels, npcs=8)
    heights, others = set(), set()
    for seed in (2, 4, 16, 26):
        frame = world.reset(setting, seed).frame
        poses = {a["id"]: a["pose"] for a in server.record()["actors"] if "vehicle" in a["type"]}
        (own,) = (a["id"] for a in server.record()["actors"] if a["role"] == "hero")
        x, y, z, _, yaw, _ = poses.pop(own)
        heights.add(round(z, 3))
        others |= {round(pose[2], 3) for pose in poses.values()}
        way = 1.0 if abs(yaw) < 90.0 else -1.0
        ahead = [
            way * (pose[0] - x) - 4.5
            for pose in poses.values()
            if abs(pose[1] - y) < 1.5 and abs(pose[2] - z) < 1.0 and way * (pose[0] - x) > 0.0
        ]
        gap = min((gap for gap in ahead if gap < 59.0), default=np.inf)
        assert frame.lead_gap_m == pytest.approx(gap, abs=2.0)
        assert not world.step(STRAIGHT_ON).collision
    assert heights == others == {0.0, BRIDGE_M}


def test_a_car_without_ground_is_one_lost_episode(server, world):
    server.fault(sinks_m=5.0)
    with pytest.raises(WorldLost, match=r"at a height of -5\.0 m, expected the road's 0\.0 m"):
        world.reset(LOOP, 2)
    server.fault(sinks_m=0.0)
    world.reset(LOOP, 2)


def test_settings_that_come_back_rounded_are_not_applied_again(server, world):
    server.fault(float_settings=True)
    world.reset(LOOP, 2)
    before = server.record()["calls"]["set_episode_settings"]
    for seed in (4, 6):
        world.reset(LOOP, seed)
    assert server.record()["calls"]["set_episode_settings"] == before


OTHER_SETTINGS = """
import os, sys, carla
client = carla.Client("127.0.0.1", int(sys.argv[1]))
client.set_timeout(60.0)
world = client.get_world()
settings = world.get_settings()
settings.fixed_delta_seconds = 0.1
world.apply_settings(settings)
os._exit(0)
"""


def test_other_settings_between_episodes_with_traffic_do_not_crash_the_client(server, world):
    """The traffic manager steps when settings are applied, with the last snapshot."""
    busy = dataclasses.replace(LOOP, npcs=5)
    world.reset(busy, 2)
    pid = world.client.pid
    drive(world, 3)
    subprocess.run([sys.executable, "-c", OTHER_SETTINGS, str(server.port)], check=True)
    world.reset(busy, 4)
    assert world.client.pid == pid
    assert server.record()["settings"][2] == [True, 0.05]


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        ({"nan_snapshots": 1}, "reports the car at .*nan.*, expected finite numbers"),
        ({"camera_rows_lost": 1}, "sent a picture of 64 x 47, expected 12288 bytes"),
        ({"refuse_loads": 1}, "failed to load map AvTown02: the map could not be loaded"),
    ],
)
def test_one_bad_answer_is_one_lost_episode(server, world, faults, text):
    world.reset(LOOP, 2)
    server.fault(**faults)

    def drive_on():
        drive(world, 1)
        world.reset(dataclasses.replace(LOOP, town="AvTown02"), 2)

    with pytest.raises(WorldLost, match=text) as caught:
        drive_on()
    assert caught.value.reason == "bad_answer"
    server.fault(**HEALTHY)
    world.reset(LOOP, 2)
    drive(world, 2)


def test_a_server_with_bad_answers_stops_one_worker_and_the_document_is_printed(tmp_path):
    with CarlaServer() as good, CarlaServer(nan_snapshots=10**6) as bad:
        code, out, err = avtd3(
            "collect", tmp_path / "d", "--world=carla", "--host=127.0.0.1",
            f"--port={good.port},{bad.port}", "--town=AvTown01", "--scenario=1", "--npcs=0",
            "--episodes=4", "--set=collect.scenario.route_length_m=30", "--json",
            "--set=collect.carla.settle_s=0.1", "--set=collect.recovery.failures=2",
        )  # fmt: skip
    document = json.loads(out)
    assert code == 3, err
    assert document["episodes"] == 2
    (lost,) = document["lost_workers"]
    assert f"127.0.0.1:{bad.port} reports the car at" in lost


def test_a_late_collision_names_its_frame(server, world):
    # Contacts from before the episode are reported after its start.
    server.fault(contact=["static.wall", [900.0, 0.0, 0.0]], late_events_ticks=12)
    first = world.reset(LOOP, 2).frame
    server.fault(contact=[])
    frames = [first, *drive(world, 14)]
    assert not any(frame.collision for frame in frames)
    server.fault(contact=["static.wall", [900.0, 0.0, 0.0]], late_events_ticks=2)
    frames = drive(world, 6)
    hits = [frame for frame in frames if frame.collision]
    assert {frame.collision for frame in hits} == {"static"}
    # The client may pass an event on one step later still.
    assert hits[0].collision_frame_id == frames[0].frame_id
    assert hits[0].frame_id >= frames[2].frame_id


@pytest.mark.parametrize(
    ("kind", "impulse", "collision"),
    [
        ("static.unknown", [10.0, 5.0, 4000.0], ""),
        ("static.road", [900.0, 0.0, 0.0], ""),
        ("static.unknown", [900.0, 0.0, 100.0], "static"),
        ("static.building", [0.0, 0.0, 0.0], "static"),
        ("vehicle.audi.tt", [0.0, 0.0, 900.0], "vehicle"),
    ],
)
def test_untagged_ground_and_a_wall_differ_by_the_impulse(server, world, kind, impulse, collision):
    world.reset(LOOP, 2)
    server.fault(contact=[kind, impulse])
    found = {frame.collision for frame in drive(world, 6)}
    assert found - {""} == ({collision} if collision else set())


def test_pictures_that_come_twice_are_skipped(server, world):
    clean = [world.reset(LOOP, 2).frame, *drive(world, 5)]
    server.fault(camera_repeats=True)
    again = [world.reset(LOOP, 2).frame, *drive(world, 5)]
    for one, other in zip(clean, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_roads_with_other_ends_of_lines_are_built_once(server, world):
    server.fault(crlf=True)
    world.reset(COUNTRY, 2)
    built = server.record()["calls"]["copy_opendrive_to_file"]
    world.reset(LOOP, 2)
    world.reset(COUNTRY, 2)
    assert server.record()["calls"]["copy_opendrive_to_file"] == built + 1
    server.fault(refuse_spawns=99)
    with pytest.raises(WorldLost):
        world.reset(COUNTRY, 4)  # ends the client; the next one finds the roads there
    server.fault(refuse_spawns=0)
    world.reset(COUNTRY, 2)
    assert server.record()["calls"]["copy_opendrive_to_file"] == built + 1


def test_ticks_that_nobody_asked_for_are_visible_and_reported(server, world):
    world.reset(LOOP, 2)
    server.fault(foreign_ticks_every=3)
    frames = drive(world, 9)
    server.fault(foreign_ticks_every=0)
    assert sorted(np.diff([frame.frame_id for frame in frames]).tolist())[-2:] == [2, 2]
    world.reset(LOOP, 2)
    (notice,) = world.notices
    assert "took more than one period of simulation" in notice


def test_a_grip_that_the_server_ignores_is_reported(server, world):
    rain = dataclasses.replace(LOOP, weather="rain")
    world.reset(rain, 2)
    assert world.notices == ()
    server.fault(ignore_physics=True)
    world.reset(rain, 2)
    (notice,) = world.notices
    assert "the tyres have a friction of [3.5, 3.5, 3.5, 3.5], expected" in notice


def expert_drive(world, setting, seed, steps):
    """Drive with the expert; return the environment and the speeds."""
    environment = DrivingEnvironment(world, TaskConfig(), (setting,), ExpertConfig())
    observation = environment.reset(seed).observation
    driver = environment.driver("expert")
    driver.reset(np.random.default_rng(0))
    speeds = []
    for _ in range(steps):
        step = environment.step(driver.act(observation))
        observation = step.observation
        speeds.append(environment.task.frame.vehicle.speed_mps)
        if step.terminated or step.truncated:
            break
    return environment, speeds


def test_the_expert_stops_at_a_red_light_and_who_does_not_is_recorded(server, world):
    start = world.reset(LOOP, 2)
    at = int(np.searchsorted(start.route.distance_m, 22.0))
    place = [*start.route.points[at].tolist(), float(np.degrees(start.route.yaw_rad[at]))]
    server.fault(lights=[place], light_state=0)
    environment, speeds = expert_drive(world, LOOP, 2, 200)
    assert speeds[-1] == pytest.approx(0.0, abs=0.1)
    front_m = environment.task.progress_m + 2.3
    assert 15.0 < front_m < 22.0
    assert environment.task.reason == ""  # waiting at a light is not being stuck
    server.fault(light_state=2)
    frames = drive(world, 80, np.array([0.0, 0.6], np.float32))
    assert not any(frame.ran_red_light for frame in frames)
    # A car that drives on is recorded, once.
    world.reset(LOOP, 2)
    server.fault(light_state=0)
    frames = drive(world, 120, np.array([0.0, 0.5], np.float32))
    assert sum(frame.ran_red_light for frame in frames) == 1


def test_walkers_walk_and_are_removed(carla_server):
    with world_on(carla_server, walkers=6) as world:
        world.reset(LOOP, 2)
        before = world.surroundings().others
        drive(world, 20)
        after = world.surroundings().others
        assert len(before) == len(after) == 6
        moved = np.hypot(*(after[:, :2] - before[:, :2]).T)
        assert moved.min() > 1.0
        assert moved.max() < 2.0
        assert sum(kind.startswith("walker.") for kind in kinds(carla_server)) == 6
    assert kinds(carla_server) == []


def test_two_runs_on_one_server_leave_each_others_cars_alone(carla_server):
    with world_on(carla_server) as first, world_on(carla_server) as second:
        first.reset(LOOP, 2)
        pid = first.client.pid
        with pytest.raises(WorldLost, match=rf"is in use: process {pid} on ") as caught:
            second.reset(LOOP, 4)
        assert caught.value.reason == "server_busy"
        drive(first, 3)  # nothing was removed, and no tick is missing
        os.kill(pid, signal.SIGKILL)
        second.reset(LOOP, 4)
        assert kinds(carla_server).count("vehicle.tesla.model3") == 1
        drive(second, 3)


class BlockedManager:
    """A manager that has lost a wake-up, and its server: a tick that waits for another one."""

    def __init__(self):
        self.ticks_from, self.world, self.calls = None, self, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._is_woken = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def get_port(self):
        return self._listener.getsockname()[1]

    def get_snapshot(self):
        return types.SimpleNamespace(frame=8)

    def _serve(self):
        link, _ = self._listener.accept()
        with link, self._listener:
            while data := link.recv(100):
                self.calls.append(msgpack.unpackb(data))
                link.sendall(msgpack.packb([1, 1, None, None]))
                self._is_woken.set()

    def tick(self):
        """Return whether the tick was woken."""
        self.ticks_from = 7
        return self._is_woken.wait(60.0)


def test_a_traffic_manager_that_lost_a_wake_up_is_woken():
    blocked = BlockedManager()
    traffic = CarlaTraffic(cast(Server, blocked))
    traffic.keep_awake(blocked)
    assert blocked.tick()
    until(lambda: len(blocked.calls) == 2)
    assert [call[2:] for call in blocked.calls] == [
        ["set_synchronous_mode", [False]],
        ["set_synchronous_mode", [True]],
    ]
    assert traffic.wakes == 1
