"""CARLA worlds on the test server, with small scenarios."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avtd3.collect.carla.config import CarlaCamera, CarlaConfig
from avtd3.collect.carla.world import CarlaWorld
from avtd3.collect.maps.scenarios import scenario
from avtd3.store.errors import WorldLost

LOOP = scenario(1, town="AvTown01", weather="clear", npcs=0)
"""The server's own loop of two lanes."""
COUNTRY = scenario(1, weather="clear", npcs=0)
"""Generated country roads without traffic."""
STRAIGHT_ON = np.array([0.0, 0.3], np.float32)
WAIT_S = 60.0


def settings(server, **changes):
    """Return settings for a server, with timeouts for a machine that is heavily loaded."""
    usual = {
        "host": "127.0.0.1",
        "ports": (server.port,),
        "timeout_s": 20.0,
        "sensor_timeout_s": 20.0,
        "step_timeout_s": 60.0,
        "connect_timeout_s": 20.0,
        "backoff_s": 0.1,
        "settle_s": 0.1,
        "camera": CarlaCamera(height=24, width=32),
    }
    return CarlaConfig(**{**usual, **changes})


@contextlib.contextmanager
def world_on(server, **changes):
    """Yield a world on a server, and close it."""
    world = CarlaWorld(settings(server, **changes), server.port)
    try:
        yield world
    finally:
        world.close()


def drive(world, steps, action=STRAIGHT_ON):
    """Return the frames of some steps with one action."""
    return [world.step(action) for _ in range(steps)]


def lose(world, steps=1):
    """Return the error of a world that is lost within a number of steps."""
    with pytest.raises(WorldLost) as caught:
        drive(world, steps)
    return caught.value


def kinds(server):
    """Return the types of the actors on a server, without the spectator."""
    actors = server.record()["actors"]
    return sorted(actor["type"] for actor in actors if actor["type"] != "spectator")


def ignored(pid):
    """Return the signals that a process ignores."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = re.findall(r"^SigIgn:\s*(\w+)", status, re.MULTILINE)
    return {number for number in signal.Signals if int(mask, 16) >> (number - 1) & 1}


def until(condition):
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never held"
        time.sleep(0.02)


OTHER_CLIENT = """
import os, sys, carla
port, x, y, yaw_deg = int(sys.argv[1]), *map(float, sys.argv[2:])
client = carla.Client("127.0.0.1", port)
client.set_timeout(60.0)
world = client.get_world()
library = world.get_blueprint_library()
place = carla.Transform(carla.Location(x, y, 0.3), carla.Rotation(yaw=yaw_deg))
car = world.spawn_actor(library.find("vehicle.audi.tt"), place)
sensor = world.spawn_actor(
    library.find("sensor.other.collision"), carla.Transform(), attach_to=car
)
world.wait_for_tick(60.0)
print("spawned", flush=True)
sys.stdin.read()
sensor.destroy()
car.destroy()
os._exit(0)
"""


@contextlib.contextmanager
def other_car(server, x_m, y_m, yaw_deg):
    """Put a car with a sensor of another client on an asynchronous server."""
    numbers = map(str, (server.port, x_m, y_m, yaw_deg))
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_CLIENT, *numbers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        while other.stdout.readline() != "spawned\n":
            assert other.poll() is None
        yield
        other.communicate("")
