"""Helpers for tests with the real client, which may crash the process."""

import contextlib
import queue
from typing import Any

import carla

WAIT_S = 60.0
MODEL3, TT = "vehicle.tesla.model3", "vehicle.audi.tt"
FRONT = carla.Transform(carla.Location(1.4, 0.0, 1.6), carla.Rotation(pitch=-6.0))


def connect(server, timeout_s=WAIT_S):
    client = carla.Client("127.0.0.1", server.port)
    client.set_timeout(timeout_s)
    return client


def synchronous(world):
    """Set synchronous mode with steps of 0.05 s."""
    settings = world.get_settings()
    settings.synchronous_mode, settings.fixed_delta_seconds = True, 0.05
    world.apply_settings(settings)
    return world


def first_tick(world):
    """Tick until a snapshot comes: a subscription is live only some time after `get_world`."""
    for _ in range(int(WAIT_S)):
        with contextlib.suppress(RuntimeError):
            return world.tick(1.0)
    return world.tick(1.0)


def spawn(world, kind, place, parent=None, **attributes):
    blueprint = world.get_blueprint_library().find(kind)
    for name, value in attributes.items():
        blueprint.set_attribute(name, str(value))
    return world.spawn_actor(blueprint, place, attach_to=parent)


def kinds(world):
    """Return the types of the actors in the last snapshot."""
    return sorted(actor.type_id for actor in world.get_actors())


class ListeningSensor:
    """A sensor with a listener; stopped and destroyed at the end."""

    def __init__(self, sensor):
        self.sensor, self._frames = sensor, queue.Queue[Any]()
        sensor.listen(self._frames.put)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sensor.stop()
        self.sensor.destroy()

    def first(self, world):
        """Tick until data arrives: the subscription is live only some time after `listen`."""
        while True:
            frame = world.tick()
            with contextlib.suppress(queue.Empty):
                return self.until(frame, wait_s=0.2)

    def until(self, frame, wait_s=WAIT_S):
        """Wait for the data of a frame or a later one; raise `queue.Empty` if none arrives."""
        while (data := self._frames.get(timeout=wait_s)).frame < frame:
            pass
        return data

    def has_any(self, wait_s=0.0):
        """Return whether there is data that was not fetched yet."""
        try:
            self._frames.get(timeout=wait_s)
        except queue.Empty:
            return False
        return True


def camera(world, car, **attributes):
    size = {"image_size_x": 40, "image_size_y": 30}
    return ListeningSensor(spawn(world, "sensor.camera.rgb", FRONT, car, **size | attributes))


def sensor(world, car, kind):
    return ListeningSensor(spawn(world, f"sensor.other.{kind}", carla.Transform(), car))
