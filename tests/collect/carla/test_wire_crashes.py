"""Calls that crash the real client's process, and a safe alternative to each.

They are the reason why the client of a CARLA world runs in a process of its own.
"""

import signal
import subprocess
import sys
import textwrap

import pytest

from avtd3.tests.collect.carla.launch import CarlaServer

WITHIN_S = 120
TRIES = 40
BEGIN = """
import os, sys, carla
client = carla.Client("127.0.0.1", int(sys.argv[1]))
client.set_timeout(60.0)
world = client.get_world()
settings = world.get_settings()
settings.synchronous_mode, settings.fixed_delta_seconds = True, 0.05
world.apply_settings(settings)
manager = client.get_trafficmanager(0)
manager.set_synchronous_mode(True)
place = world.get_map().get_spawn_points()[0]
car = world.spawn_actor(world.get_blueprint_library().filter("vehicle.*")[0], place)
world.tick()
car.set_autopilot(True, manager.get_port())
world.tick()
"""


def exit_code_of(script, server):
    """Return the exit code of a script that starts with a car driven by the traffic manager."""
    code = BEGIN + textwrap.dedent(script) + "\nos._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(server.port), str(server.pid)],
        capture_output=True,
        timeout=WITHIN_S,
        check=False,
    )
    return done.returncode


@pytest.mark.slow
def test_loading_a_map_under_a_traffic_manager_sometimes_crashes():
    for _ in range(TRIES):
        with CarlaServer() as server:
            if exit_code_of('client.load_world("AvTown02")', server) == -signal.SIGSEGV:
                return
    # A race in the client: it does not always show within these attempts.
    pytest.skip(f"no crash in {TRIES} attempts: the race did not show")


def test_loading_a_map_after_the_traffic_manager_is_shut_down(carla_server):
    assert exit_code_of('manager.shut_down()\nclient.load_world("AvTown02")', carla_server) == 0


@pytest.mark.slow
def test_a_server_that_dies_under_an_asynchronous_traffic_manager_crashes_the_client(carla_server):
    script = """
    manager.set_synchronous_mode(False)
    settings.synchronous_mode, settings.fixed_delta_seconds = False, None
    world.apply_settings(settings)
    world.wait_for_tick(60.0)
    client.set_timeout(1.0)
    os.kill(int(sys.argv[2]), 9)
    import threading
    threading.Event().wait(60.0)
    """
    assert exit_code_of(script, carla_server) == -signal.SIGABRT
