"""`Simulation`: actors, time, and the messages of each tick."""

import collections
import itertools
import math
from typing import Any

from avtd3.collect.maps.contact import rectangles_overlap
from avtd3.tests.collect.carla.server import packing
from avtd3.tests.collect.carla.server.actors import Actor, Car, Sensor
from avtd3.tests.collect.carla.server.blueprints import SIZES_M, definitions
from avtd3.tests.collect.carla.server.eyes import Eye
from avtd3.tests.collect.carla.server.maps import DEFAULT, OPENDRIVE

TAKEN = "Spawn failed because of collision at spawn position"
FREE_RUN_S = 0.05
"""Period of an asynchronous server, simulated and real."""
_RECORDED_TICKS = 4000
_CLEAR_NOON = (5.0, 0.0, 0.0, 10.0, 90.0, 60.0, 2.0, 0.75, 0.1, 0.0, 1.0, 0.03, 0.0331, 0.0)
_ASYNCHRONOUS: list[Any] = [False, False, [False], True, 0.01, 10, 0.0, True, 3000.0, 2000.0, True]
_CENTRE = (0.0, 0.0, 30.0, -60.0, 0.0, 0.0)
MEGABYTE = 1 << 20


class Refused(Exception):  # noqa: N818 # an answer to the client, not an error here
    """A call that the server answers with the text of an error."""


class Simulation:
    """The state of the server.

    The streams and the calls read its attributes: `frame`, `elapsed_s`, `delta_s`,
    `episode_id`, `map_changed`, `actors` by id, `settings` and `weather` in the format of the wire.
    """

    def __init__(self, maps, faults, streams):
        self.maps, self.faults, self._streams = maps, faults, streams
        self.blueprints = {entry[1]: entry for entry in definitions()}
        self.frame, self.episode_id = 100, 0
        self.ticks = 0
        self.history: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=_RECORDED_TICKS)
        self._ids, self._ballast = itertools.count(10), []
        self.map = maps.find(OPENDRIVE if maps.opendrive else DEFAULT)
        self.load("", reset_settings=True)

    def load(self, name, *, reset_settings):
        """Start an episode on a map; an empty name keeps the current map."""
        if self.faults.crash_on_map and self.faults.crash_on_map in name:
            raise SystemExit(f"crashed on map {name}, as requested")
        try:
            self.map = self.maps.find(name) if name else self.map
        except KeyError as error:
            raise Refused(f"Map '{name}' not found") from error
        self._ballast_more()
        self.episode_id += 1
        self.elapsed_s, self.map_changed = 0.0, True
        self.weather = _CLEAR_NOON
        if reset_settings:
            self.settings = _ASYNCHRONOUS.copy()
        self.delta_s = self.step_s
        self.actors: dict[int, Actor] = {}
        self._late: collections.deque[tuple[Any, ...]] = collections.deque()
        self._due_s: dict[int, float] = {}
        self._eyes: dict[int, Eye] = {}
        self.spectator = self._add(Actor(next(self._ids), [0, "spectator", []], _CENTRE))

    def _ballast_more(self):
        size = self.faults.grow_mb_per_episode * MEGABYTE
        if size:
            self._ballast.append(bytearray(b"\x01") * size)

    @property
    def is_synchronous(self):
        return self.settings[0]

    @property
    def step_s(self):
        """Return the simulated seconds of a tick."""
        fixed = self.settings[2]
        return fixed[1] if fixed[0] else FREE_RUN_S

    def cars(self):
        return [actor for actor in self.actors.values() if isinstance(actor, Car)]

    def _add(self, actor):
        self.actors[actor.id] = actor
        return actor

    def spawn(self, description, pose, parent_id=0):
        """Create an actor; raise if that is impossible."""
        kind = description[1]
        if kind not in self.blueprints:
            raise Refused(f"unknown blueprint {kind}")
        if kind.startswith("vehicle."):
            if self.faults.refuse_spawns > 0:
                self.faults.refuse_spawns -= 1
                raise Refused(TAKEN)
            return self._add(self._spawn_car(description, pose))
        parent = self.actors.get(parent_id)
        if parent_id and parent is None:
            raise Refused(f"unable to attach: parent {parent_id} not found")
        sensor = Sensor(next(self._ids), description, pose, parent)
        if kind == "sensor.camera.rgb":
            try:
                self._eyes[sensor.id] = Eye(sensor.attributes, pose)
            except ValueError as error:
                raise Refused(str(error)) from error
            self._ballast_more()
        return self._add(sensor)

    def _spawn_car(self, description, pose):
        length, width, _ = SIZES_M[description[1]]
        place = (complex(pose[0], pose[1]), math.radians(pose[4]))
        if any(_touch(*place, (0.5 * length, 0.5 * width), car) for car in self.cars()):
            raise Refused(TAKEN)
        return Car(next(self._ids), description, pose, self.map.height_at)

    def destroy(self, number):
        """Remove an actor, without the actors attached to it; return whether it existed."""
        self._eyes.pop(number, None)
        self._due_s.pop(number, None)
        return number != self.spectator.id and self.actors.pop(number, None) is not None

    def tick(self):
        """Advance by one step and send the data of the sensors."""
        self.delta_s = self.step_s
        self.frame += self.faults.frame_step
        self.elapsed_s += self.delta_s
        self.ticks += 1
        self._cut_streams()
        cars = self.cars()
        self.history.append((self.frame, {car.id: list(car.control) for car in cars}))
        for car in cars:
            car.advance(self.delta_s)
        for actor in self.actors.values():
            if isinstance(actor, Sensor):
                actor.follow()
        self.announce()
        self._collisions(cars)
        self._pictures(cars)

    def _cut_streams(self):
        for fault, snapshots in (
            ("cut_sensors_after_ticks", False),
            ("cut_snapshots_after_ticks", True),
        ):
            if self.faults.is_due(fault):
                self.faults.change({fault: None})
                self._streams.cut(snapshots=snapshots)

    def announce(self):
        """Send the snapshot of this frame."""
        if self.faults.lost_snapshots:
            self.faults.lost_snapshots -= 1
            return
        self._streams.publish(packing.SNAPSHOT_STREAM, packing.snapshot(self))
        self.map_changed = False

    def _collisions(self, cars):
        for sensor in list(self.actors.values()):
            car = self.actors.get(sensor.parent_id)
            if sensor.type_id != "sensor.other.collision" or not isinstance(car, Car):
                continue
            place = (complex(*car.pose[:2]), math.radians(car.pose[4]))
            for other in cars:
                if other is not car and _touch(*place, car.half_m[:2], other):
                    impulse = [-1500.0 * abs(car.body.speed_mps), 0.0, 0.0]
                    value = [car.wire(), other.wire(), impulse]
                    message = packing.event(packing.COLLISION, self, sensor.pose, value)
                    self._streams.publish(sensor.id, message)

    def _pictures(self, cars):
        for number, eye in self._eyes.items():
            sensor = self.actors[number]
            if not self._is_due(sensor) or self.faults.is_due("camera_stops_after_frames"):
                continue
            gray = eye.look(sensor.pose, self.map.raster, self.weather, cars)
            gray = gray[self.faults.camera_rows_lost :]
            message = packing.picture(self, sensor.pose, gray, eye.field_of_view_deg)
            skips = self.faults.camera_skips_every
            if not (skips and self.ticks % skips == 0):
                self._late.append((self.ticks + self.faults.camera_delay_ticks, number, message))
        while self._late and self._late[0][0] <= self.ticks:
            _, number, message = self._late.popleft()
            self._streams.publish(number, message)

    def _is_due(self, sensor):
        """Return whether a camera should take a picture."""
        if self.elapsed_s < self._due_s.get(sensor.id, 0.0) - 1e-6:
            return False
        self._due_s[sensor.id] = self.elapsed_s + float(sensor.attributes["sensor_tick"])
        return True


def _touch(at, yaw, own, car):
    """Return whether a rectangle overlaps a car."""
    back = complex(math.cos(yaw), -math.sin(yaw))
    turn = math.radians(car.pose[4])
    heading = complex(math.cos(turn), math.sin(turn)) * back
    where = (complex(*car.pose[:2]) - at) * back
    return rectangles_overlap(where, heading, car.half_m[:2], own)
