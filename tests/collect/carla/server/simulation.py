"""`Simulation`: actors, time, and the messages of each tick."""

import collections
import itertools
import math
from typing import Any

from avtd3.collect.maps.contact import rectangles_overlap
from avtd3.tests.collect.carla.server import packing
from avtd3.tests.collect.carla.server.actors import NO_LIGHT, Actor, Car, Light, Sensor, Walker
from avtd3.tests.collect.carla.server.blueprints import SIZES_M, definitions
from avtd3.tests.collect.carla.server.eyes import CAMERAS, TAGGED, Eye
from avtd3.tests.collect.carla.server.maps import DEFAULT, OPENDRIVE

TAKEN = "Spawn failed because of collision at spawn position"
FREE_RUN_S = 0.05
"""Period of an asynchronous server, simulated and real."""
_RECORDED_TICKS = 4000
_CLEAR_NOON = (5.0, 0.0, 0.0, 10.0, 90.0, 60.0, 2.0, 0.75, 0.1, 0.0, 1.0, 0.03, 0.0331, 0.0)
_ASYNCHRONOUS: list[Any] = [False, False, [False], True, 0.01, 10, 0.0, True, 3000.0, 2000.0, True]
_CENTRE = (0.0, 0.0, 30.0, -60.0, 0.0, 0.0)
_LEVEL_M = 3.0
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
        self.poses: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=_RECORDED_TICKS)
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
        self.lights_are_frozen = False
        self.weather = _CLEAR_NOON
        if reset_settings:
            self.settings = _ASYNCHRONOUS.copy()
        self.delta_s = self.step_s
        self.actors: dict[int, Actor] = {}
        self._late: collections.deque[tuple[Any, ...]] = collections.deque()
        self._late_events: collections.deque[tuple[Any, ...]] = collections.deque()
        self._last_pictures: dict[int, bytes] = {}
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
        return self._of(Car)

    def _of(self, kind):
        return [actor for actor in self.actors.values() if isinstance(actor, kind)]

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
        if kind.startswith("walker."):
            return self._add(Walker(next(self._ids), description, pose))
        parent = self.actors.get(parent_id)
        if parent_id and parent is None:
            raise Refused(f"unable to attach: parent {parent_id} not found")
        sensor = Sensor(next(self._ids), description, pose, parent)
        if kind in CAMERAS:
            try:
                self._eyes[sensor.id] = Eye(sensor.attributes, pose, sees_tags=kind == TAGGED)
            except ValueError as error:
                raise Refused(str(error)) from error
            self._ballast_more()
        return self._add(sensor)

    def _spawn_car(self, description, pose):
        length, width, _ = SIZES_M[description[1]]
        if any(_touch(pose, (0.5 * length, 0.5 * width), car) for car in self.cars()):
            raise Refused(TAKEN)

        def height_at(*place):
            return self.map.height_at(*place) - self.faults.sinks_m

        return Car(next(self._ids), description, pose, height_at)

    def destroy(self, number):
        """Remove an actor, without the actors attached to it; return whether it existed."""
        self._eyes.pop(number, None)
        self._due_s.pop(number, None)
        self._last_pictures.pop(number, None)
        return number != self.spectator.id and self.actors.pop(number, None) is not None

    def tick(self):
        """Advance by one step and send the data of the sensors."""
        self.delta_s = self.step_s
        self.frame += self.faults.frame_step
        self.elapsed_s += self.delta_s
        self.ticks += 1
        self._cut_streams()
        cars, walkers = self.cars(), self._of(Walker)
        if self.faults.control_changes:
            self.faults.control_changes -= 1
            for car in cars:
                car.control[1] += 0.1
        self.history.append((self.frame, {car.id: list(car.control) for car in cars}))
        for mover in (*cars, *walkers):
            mover.advance(self.delta_s)
        self._show_lights(cars)
        for actor in self.actors.values():
            if isinstance(actor, Sensor):
                actor.follow()
        shown = [*cars, *walkers, *self._of(Light)]
        states = {light.id: light.light_state for light in self._of(Light)}
        poses = {actor.id: (actor.type_id, *actor.pose) for actor in shown}
        self.poses.append((self.frame, poses, states))
        self.announce()
        self._collisions([*cars, *walkers])
        self._pictures(cars)

    def _show_lights(self, cars):
        lights = self._of(Light)
        if len(lights) != len(self.faults.lights):
            for light in lights:
                self.destroy(light.id)
            lights = [self._add(Light(next(self._ids), *at)) for at in self.faults.lights]
        for light in lights:
            if not self.lights_are_frozen:
                light.light_state = self.faults.light_state
        for car in cars:
            near = [light for light in lights if light.holds(*car.pose[:2])]
            car.light = (near[0].light_state, 1, near[0].id) if near else NO_LIGHT

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

    def _collisions(self, movers):
        for sensor in list(self.actors.values()):
            car = self.actors.get(sensor.parent_id)
            if sensor.type_id != "sensor.other.collision" or not isinstance(car, Car):
                continue
            contacts = [
                (other.wire(), [-1500.0 * abs(car.body.speed_mps), 0.0, 0.0])
                for other in movers
                if other is not car and _touch(car.pose, car.half_m[:2], other)
            ]
            if self.faults.contact:
                kind, impulse = self.faults.contact
                scenery = Actor(0, [0, kind, []], car.pose)
                contacts.append((scenery.wire(), impulse))
            for other, impulse in contacts:
                value = [car.wire(), other, impulse]
                message = packing.event(packing.COLLISION, self, sensor.pose, value)
                due = self.ticks + self.faults.late_events_ticks
                self._late_events.append((due, sensor.id, message))
        self._send_due(self._late_events)

    def _send_due(self, messages):
        while messages and messages[0][0] <= self.ticks:
            _, number, message = messages.popleft()
            self._streams.publish(number, message)

    def _pictures(self, cars):
        for number, eye in self._eyes.items():
            sensor = self.actors[number]
            if not self._is_due(sensor) or self.faults.is_due("camera_stops_after_frames"):
                continue
            gray = eye.look(sensor.pose, self.map.raster, self.weather, cars)
            gray = gray[self.faults.camera_rows_lost :]
            message = packing.picture(self, sensor.pose, gray, eye)
            if self.faults.camera_repeats and number in self._last_pictures:
                self._late.append((self.ticks, number, self._last_pictures[number]))
            self._last_pictures[number] = message
            skips = self.faults.camera_skips_every
            if not (skips and self.ticks % skips == 0):
                self._late.append((self.ticks + self.faults.camera_delay_ticks, number, message))
        self._send_due(self._late)

    def _is_due(self, sensor):
        """Return whether a camera should take a picture."""
        if self.elapsed_s < self._due_s.get(sensor.id, 0.0) - 1e-6:
            return False
        self._due_s[sensor.id] = self.elapsed_s + float(sensor.attributes["sensor_tick"])
        return True


def _touch(pose, own, other):
    """Return whether a rectangle with a pose overlaps an actor on its level."""
    if abs(pose[2] - other.pose[2]) > _LEVEL_M:
        return False
    yaw = math.radians(pose[4])
    back = complex(math.cos(yaw), -math.sin(yaw))
    turn = math.radians(other.pose[4])
    heading = complex(math.cos(turn), math.sin(turn)) * back
    where = (complex(*other.pose[:2]) - complex(*pose[:2])) * back
    return rectangles_overlap(where, heading, other.half_m[:2], own)
