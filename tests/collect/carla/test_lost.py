"""Failures of the server and the client: the error message, and recovery at the next reset."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from avtd3.collect.carla.world import CarlaWorld
from avtd3.store.errors import WorldError, WorldLost
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.worlds import (
    LOOP,
    STRAIGHT_ON,
    drive,
    kinds,
    lose,
    other_car,
    settings,
    until,
    world_on,
)


@pytest.fixture
def world(server):
    """A world on a server whose faults are removed after the test."""
    with world_on(server) as world:
        yield world
    server.fault(**HEALTHY)


HEALTHY = {
    "version": "0.9.16",
    "hang": False,
    "hang_after_ticks": None,
    "refuse_spawns": 0,
    "lost_snapshots": 0,
    "slow": {},
}


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_absent_server_is_reported_with_what_was_tried():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        config = settings(type("Absent", (), {"port": port}), connect_timeout_s=0.3)
        world = CarlaWorld(config, port)
        with pytest.raises(WorldLost) as caught:
            world.reset(LOOP, 2)
        world.close()
    assert caught.value.reason == "server_away"
    message = str(caught.value)
    assert f"no CARLA server at 127.0.0.1:{port}: connection refused" in message
    assert "attempts in" in message
    assert f"-carla-rpc-port={port}" in message
    assert "\n" not in message


@pytest.mark.slow
def test_another_program_on_the_port_is_reported():
    """A server that hangs before its first answer looks the same to the client."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        config = settings(type("Absent", (), {"port": port}), connect_timeout_s=0.5, timeout_s=0.5)
        world = CarlaWorld(config, port)
        with pytest.raises(WorldLost, match="a program listens on this port, but did not answer"):
            world.reset(LOOP, 2)
        world.close()


def test_another_version_is_one_clear_error_and_not_a_loss(server, world):
    server.fault(version="0.9.15")
    with pytest.raises(WorldError, match=r"has version 0\.9\.15, expected 0\.9\.16") as caught:
        world.reset(LOOP, 2)
    assert not isinstance(caught.value, WorldLost)
    server.fault(version="0.9.16-12-gabcdef0")
    world.reset(LOOP, 2)


def test_a_server_that_hangs_is_lost_and_found_again(server):
    with world_on(server, timeout_s=2.0) as world:
        world.reset(LOOP, 2)
        server.fault(hang_after_ticks=2)
        lost = lose(world, 3)
        assert lost.reason == "server_lost"
        assert "did not advance by a step: time-out of 2000ms" in str(lost)
        with pytest.raises(WorldError, match=r"call reset\(\) first"):
            world.step(STRAIGHT_ON)
        server.fault(hang_after_ticks=None, hang=False)
        world.reset(LOOP, 2)
        drive(world, 2)
    assert kinds(server) == []


def test_a_server_that_dies_is_lost_and_one_started_there_again_is_used():
    with CarlaServer(exit_after_ticks=30) as server:
        config = settings(server, timeout_s=2.0)
        world = CarlaWorld(config, server.port)
        world.reset(LOOP, 2)
        lost = lose(world, 40)
        assert lost.reason == "server_lost"
        port = server.port
    with CarlaServer(port=port) as again:
        world.reset(LOOP, 2)
        drive(world, 2)
        world.close()
        assert kinds(again) == []


def test_a_client_that_is_blocked_is_killed_after_the_timeout(server):
    changes = {"timeout_s": 2.0, "sensor_timeout_s": 1.0, "step_timeout_s": 3.0}
    with world_on(server, **changes) as world:
        world.reset(LOOP, 2)
        pid = world.client.pid
        os.kill(pid, signal.SIGSTOP)  # as silent as a lost wake-up inside the client
        lost = lose(world)
        assert lost.reason == "tick_timeout"
        assert "has been blocked for 3 s" in str(lost)
        assert is_gone(pid)
        world.reset(LOOP, 2)
        assert kinds(server).count("vehicle.tesla.model3") == 1  # the leftovers are removed
    assert kinds(server) == []


def test_a_client_that_crashes_is_reported_with_its_last_output(server, world):
    found = server.record()["settings"]
    world.reset(LOOP, 2)
    os.kill(world.client.pid, signal.SIGSEGV)
    lost = lose(world)
    assert lost.reason == "client_crash"
    assert "crashed with signal 11" in str(lost)
    assert "Segmentation fault" in str(lost)
    assert len(kinds(server)) == 4
    # No other episode starts: closing cleans up too, even if the subscription of a new client is
    # not live yet when it ticks.
    server.fault(lost_snapshots=2)
    world.close()
    assert kinds(server) == []
    assert server.record()["settings"] == found


@pytest.mark.slow
def test_a_crash_while_loading_names_the_map(server, world):
    world.reset(LOOP, 2)
    server.fault(slow={"load_new_episode": 2.0})
    pid = world.client.pid
    calls = server.record()["calls"].get("load_new_episode", 0)

    def crash():
        until(lambda: server.record()["calls"].get("load_new_episode", 0) > calls)
        os.kill(pid, signal.SIGABRT)

    killer = threading.Thread(target=crash)
    killer.start()
    town = "AvTown02" if "01" in server.record()["map"] else "AvTown01"
    with pytest.raises(WorldLost, match=f"asked to load map {town}") as caught:
        world.reset(dataclasses.replace(LOOP, town=town), 2)
    killer.join()
    assert caught.value.reason == "client_crash"


def test_an_occupied_start_moves_the_episode_along_its_route(server, world):
    plain = world.reset(LOOP, 2)
    server.fault(refuse_spawns=2)
    moved = world.reset(LOOP, 2)
    (notice,) = world.notices
    assert re.fullmatch(
        r"the start was occupied; the episode starts 2[01] m along the route", notice
    )
    assert moved.route.length_m == pytest.approx(plain.route.length_m - 20.0, abs=1.5)
    at = plain.route.project(moved.frame.vehicle.x_m, moved.frame.vehicle.y_m, 20.0)
    assert at.distance_m == pytest.approx(20.0, abs=1.5)
    before = plain.route.project(plain.frame.vehicle.x_m, plain.frame.vehicle.y_m, 0.0)
    assert at.lateral_m == pytest.approx(before.lateral_m, abs=0.02)


def test_a_start_that_stays_occupied_is_a_loss_after_which_the_server_is_used(server, world):
    server.fault(refuse_spawns=50)
    with pytest.raises(WorldLost, match="Spawn failed because of collision") as caught:
        world.reset(LOOP, 2)
    assert caught.value.reason == "spawn_refused"
    server.fault(refuse_spawns=0)
    world.reset(LOOP, 2)


def test_only_our_own_actors_are_removed(server, world):
    world.reset(LOOP, 2)
    world.close()
    with other_car(server, 30.0, -1.75, 0.0):
        with world_on(server) as ours:
            ours.reset(LOOP, 4)
            os.kill(ours.client.pid, signal.SIGKILL)
            lose(ours)
            ours.reset(LOOP, 4)
            assert len(ours.surroundings().others) == 1
        assert kinds(server) == ["sensor.other.collision", "vehicle.audi.tt"]
    assert kinds(server) == []


PARENT = """
import json, signal, sys
from avtd3.tests.collect.carla.worlds import LOOP
from avtd3.tests.collect.carla.worlds import STRAIGHT_ON
from avtd3.tests.collect.carla.worlds import settings
from avtd3.collect.carla.world import CarlaWorld

class Server:
    port = int(sys.argv[1])

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
world = CarlaWorld(settings(Server), Server.port)
world.reset(LOOP, 2)
print(json.dumps(world.client.pid), flush=True)
while True:
    world.step(STRAIGHT_ON)
"""


def test_a_server_that_a_crash_left_synchronous_is_found_and_restored(server, world):
    """Its snapshots are empty until a client ticks, and no other client does."""
    world.reset(LOOP, 2)
    os.kill(world.client.pid, signal.SIGKILL)
    assert server.record()["settings"][0] is True
    assert len(kinds(server)) == 4
    with world_on(server) as fresh:
        fresh.reset(LOOP, 4)
        assert len(kinds(server)) == 4
    assert kinds(server) == []
    assert server.record()["settings"][0] is False


@pytest.mark.slow
def test_a_server_that_avtd3_started_is_restarted_when_it_dies_and_recycled():
    command = f"{sys.executable} -m avtd3.tests.collect.carla.server --serve-while {os.getpid()}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = {"timeout_s": 2.0, "server_command": command, "recycle_episodes": 2}
    world = CarlaWorld(settings(type("Ours", (), {"port": port}), **changes), port)
    simulator = world.simulator
    assert simulator is not None
    try:
        world.reset(LOOP, 2)
        drive(world, 2)
        assert simulator.pid is not None
        os.kill(simulator.pid, signal.SIGKILL)
        assert lose(world).reason == "server_lost"
        for seed, starts in ((4, 2), (6, 2), (8, 3)):
            world.reset(LOOP, seed)
            drive(world, 2)
            assert simulator.starts == starts
        pid = simulator.pid
    finally:
        world.close()
    assert is_gone(pid)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_parent_that_is_killed_leaves_a_clean_server(server, number):
    """Ctrl-C also reaches the child process: it ignores it, and cleans up when its parent ends."""
    found = server.record()["settings"]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(server.port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        child = json.loads(parent.stdout.readline())
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)
        else:
            parent.send_signal(number)
    until(lambda: kinds(server) == [])
    until(lambda: server.record()["settings"] == found)
    until(lambda: is_gone(child))
