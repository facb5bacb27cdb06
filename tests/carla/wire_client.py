"""Scripts for the real client: ``python -m avtd3.tests.carla.wire_client SCRIPT PORT``.

Each runs in a process of its own, because the client can crash or block its process, and ends with
one line of JSON.
"""

import json
import os
import queue
import sys
from collections.abc import Callable
from typing import Any

import carla

WAIT_S = 60.0
MODEL3, TT = "vehicle.tesla.model3", "vehicle.audi.tt"
FRONT = carla.Transform(carla.Location(1.4, 0.0, 1.6), carla.Rotation(pitch=-6.0))
SCRIPTS: dict[str, Callable[..., Any]] = {}


def script(function):
    """A function of a client that is connected; what it returns is written as JSON."""
    SCRIPTS[function.__name__] = function
    return function


def connect(port):
    client = carla.Client("127.0.0.1", port)
    client.set_timeout(WAIT_S)
    return client


def synchronous(world):
    """Put a world into steps of 0.05 s."""
    settings = world.get_settings()
    settings.synchronous_mode, settings.fixed_delta_seconds = True, 0.05
    world.apply_settings(settings)
    return world


def spawn(world, kind, place, parent=None, **attributes):
    blueprint = world.get_blueprint_library().find(kind)
    for name, value in attributes.items():
        blueprint.set_attribute(name, str(value))
    return world.spawn_actor(blueprint, place, attach_to=parent)


class Watched:
    """A sensor that is listened to."""

    def __init__(self, sensor):
        self.sensor, self._frames = sensor, queue.Queue[Any]()
        sensor.listen(self._frames.put)

    def first(self, world):
        """Tick until something comes: the subscription is live a little after `listen`."""
        while True:
            frame = world.tick()
            try:
                return self.until(frame, wait_s=1.0)
            except queue.Empty:
                continue

    def until(self, frame, wait_s=WAIT_S):
        """Wait for the data of a frame."""
        while (data := self._frames.get(timeout=wait_s)).frame < frame:
            pass
        return data

    def end(self):
        self.sensor.stop()
        self.sensor.destroy()


@script
def look_around(client):
    world = client.get_world()
    world_map = world.get_map()
    return {
        "version": client.get_server_version(),
        "map": world_map.name,
        "spawn_points": len(world_map.get_spawn_points()),
        "topology": len(world_map.get_topology()),
        "vehicles": sorted(b.id for b in world.get_blueprint_library().filter("vehicle.*")),
        "runs_by_itself": world.wait_for_tick(WAIT_S).frame > 0,
        "settings": world.get_settings().synchronous_mode,
        "actors": [actor.type_id for actor in world.get_actors()],
    }


@script
def drive(client):
    world = synchronous(client.get_world())
    first, second = world.get_map().get_spawn_points()[:2]
    car = spawn(world, MODEL3, first, role_name="hero")
    taken = world.try_spawn_actor(world.get_blueprint_library().find(MODEL3), first)
    other = spawn(world, TT, second)
    camera = Watched(
        spawn(world, "sensor.camera.rgb", FRONT, car, image_size_x=40, image_size_y=30, fov=80)
    )
    hit = Watched(spawn(world, "sensor.other.collision", carla.Transform(), car))
    camera.first(world)
    contact, frames, pictures = None, [], []
    car.apply_control(carla.VehicleControl(throttle=0.6, steer=0.25))
    frames.append(world.tick())
    steered = car.get_control()
    car.apply_control(carla.VehicleControl(throttle=0.6))
    for _ in range(120):
        frames.append(world.tick())
        picture = camera.until(frames[-1])
        pictures.append(picture.frame)
        try:
            contact = hit.until(0, wait_s=0.001)
            break
        except queue.Empty:
            continue
    assert contact is not None, "the car met nothing"
    answer = {
        "taken": taken is None,
        "frames": frames[1:],
        "pictures": pictures,
        "size": [picture.width, picture.height, len(picture.raw_data), picture.fov],
        "levels": len(set(bytes(picture.raw_data)[0::4])),
        "is_gray": bytes(picture.raw_data)[0::4] == bytes(picture.raw_data)[2::4],
        "steer": steered.steer,
        "hit": [contact.actor.id == car.id, contact.other_actor.id == other.id],
        "speed": car.get_velocity().length(),
        "box": [other.bounding_box.extent.x, other.bounding_box.location.z],
    }
    for sensor in (camera, hit):
        sensor.end()
    answer["destroyed"] = [car.destroy(), other.destroy()]
    world.tick()
    answer["left"] = [actor.type_id for actor in world.get_actors()]
    return answer


def main(name, port):
    answer = SCRIPTS[name](connect(int(port)))
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    # The client may abort while the interpreter ends; what was to be found out is written.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
