"""Every fault of the test server, as the real client experiences it."""

import contextlib
import subprocess
import sys

import pytest

from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.own_process import own_process

with contextlib.suppress(ImportError):
    from avtd3.tests.collect.carla import client as real

SOON_S = 1.0
"""Timeout of a client, set only just before it calls a dead server."""
TIMED_OUT = "time-out of 1000ms while waiting for the simulator"


def started(server):
    """Return a client, its synchronous world, and a car on the first spawn point."""
    client = real.connect(server)
    world = real.synchronous(client.get_world())
    car = real.spawn(world, real.MODEL3, world.get_map().get_spawn_points()[0])
    world.tick()
    return client, world, car


@contextlib.contextmanager
def streaming():
    """Yield a server, its synchronous world, and a camera whose first picture has arrived."""
    with CarlaServer() as server:
        _, world, car = started(server)
        with real.camera(world, car) as camera:
            camera.first(world)
            yield server, world, camera


@own_process
def test_a_server_exits_on_a_tick():
    with CarlaServer() as server:
        client, world, car = started(server)
        server.fault(exit_after_ticks=2)
        world.tick()
        world.tick()
        client.set_timeout(SOON_S)
        with pytest.raises(RuntimeError, match=TIMED_OUT):
            world.tick()
        assert server.wait() == 1
        # The client does not notice: it answers from its own state.
        assert car.is_alive


@own_process
def test_a_server_hangs_and_wakes_up():
    with CarlaServer() as server:
        client, world, _ = started(server)
        server.fault(hang_after_ticks=1)
        world.tick()
        client.set_timeout(SOON_S)
        with pytest.raises(RuntimeError, match=TIMED_OUT):
            world.tick()
        assert server.is_alive
        server.fault(hang=False)
        client.set_timeout(real.WAIT_S)
        assert world.tick() == server.record()["frame"]


@own_process
def test_a_camera_stops():
    with streaming() as (server, world, camera):
        server.fault(camera_stops_after_frames=2)
        frames = [world.tick() for _ in range(6)]
        assert [camera.until(frame).frame for frame in frames[:2]] == frames[:2]
        assert not camera.has_any(0.3)


@own_process
def test_pictures_are_late_but_complete():
    with streaming() as (server, world, camera):
        server.fault(camera_delay_ticks=3)
        frames = [world.tick() for _ in range(6)]
        assert [camera.until(0).frame for _ in range(3)] == frames[:3]
        assert not camera.has_any(0.3)


@own_process
def test_pictures_are_skipped():
    with streaming() as (server, world, camera):
        server.fault(camera_skips_every=4)
        frames = [world.tick() for _ in range(9)]
        server.fault(camera_skips_every=0)
        frames.append(world.tick())
        seen = [camera.until(0).frame]
        while seen[-1] < frames[-1]:
            seen.append(camera.until(0).frame)
        assert set(seen) < set(frames)
        assert len(frames) - len(seen) in (2, 3)


@own_process
def test_cut_streams_come_back():
    with CarlaServer() as server:
        _, world, car = started(server)
        with real.camera(world, car) as camera:
            camera.first(world)
            server.fault(cut_sensors_after_ticks=1)
            kept, lost = world.tick(), world.tick()
            assert camera.until(0).frame == kept
            assert camera.first(world).frame > lost
        # A tick whose snapshot is lost does not return until another snapshot arrives.
        server.fault(cut_snapshots_after_ticks=0)
        with pytest.raises(RuntimeError, match="time-out"):
            world.tick(1.0)
        frame = None
        while frame is None:
            with contextlib.suppress(RuntimeError):
                frame = world.tick(1.0)
        assert frame == server.record()["frame"]


@own_process
def test_spawns_are_refused():
    with CarlaServer() as server:
        _, world, _ = started(server)
        server.fault(refuse_spawns=2)
        place = world.get_map().get_spawn_points()[9]
        with pytest.raises(RuntimeError, match="collision at spawn position"):
            real.spawn(world, real.TT, place)
        assert world.try_spawn_actor(world.get_blueprint_library().find(real.TT), place) is None
        assert real.spawn(world, real.TT, place).id


@own_process
def test_calls_are_slow():
    with CarlaServer() as server:
        client, world, _ = started(server)
        server.fault(slow={"tick_cue": 3.0 * SOON_S})
        client.set_timeout(SOON_S)
        with pytest.raises(RuntimeError, match=TIMED_OUT):
            world.tick()


@own_process
def test_memory_grows_with_every_episode():
    with CarlaServer() as server:
        _, world, car = started(server)
        before = server.rss_bytes()
        server.fault(grow_mb_per_episode=20)
        for _ in range(3):
            real.camera(world, car).__exit__()
        assert server.rss_bytes() - before > 55 << 20


@own_process
def test_a_map_crashes_the_server():
    with CarlaServer(crash_on_map="AvTown02") as server:
        client = real.connect(server)
        client.load_world("AvTown01")
        client.set_timeout(SOON_S)
        with pytest.raises(RuntimeError, match="time-out"):
            client.load_world("AvTown02")
        assert server.wait() != 0


@own_process
def test_frame_numbers_are_skipped():
    with CarlaServer() as server:
        _, world, car = started(server)
        with real.camera(world, car) as camera:
            frame = camera.first(world).frame
            server.fault(frame_step=3)
            assert [world.tick() for _ in range(3)] == [frame + 3, frame + 6, frame + 9]
            assert camera.until(frame + 9).frame == frame + 9


def test_another_version_is_only_a_warning():
    code = (
        "import os, sys, carla; client = carla.Client('127.0.0.1', int(sys.argv[1])); "
        "client.set_timeout(60); print(client.get_world().get_map().name, flush=True); os._exit(0)"
    )
    with CarlaServer(version="0.9.15") as server:
        done = subprocess.run(
            [sys.executable, "-c", code, str(server.port)],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert "AvTown01" in done.stdout
    assert "0.9.15" in done.stderr


def test_an_unknown_fault_is_named():
    with (
        pytest.raises(AssertionError, match="fault 'explode' is unknown"),
        CarlaServer(explode=True),
    ):
        pass
