"""`CarlaTraffic`: the other vehicles and the walkers; `Lights`: the traffic lights of a route.

The traffic manager is seeded, in synchronous mode, and listens on its own port. It lives as long as
its map: the client never frees its memory (0.1 MB for 500 m of road, tens of MB for a town), and
crashes if a map is loaded while one exists.
"""

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import carla
import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.car import Car, Pose, body_of, pose_of
from avtd3.collect.carla.scene import AWAY_M, LEVEL_M, MOST_BODIES, MOST_LIGHTS, SLOPE, Body
from avtd3.collect.carla.server import REJECTED, Server
from avtd3.collect.maps.episode_setup import Start
from avtd3.collect.maps.network import Lane, RoadNetwork
from avtd3.collect.maps.route import Route
from avtd3.store.errors import WorldLost

_MIN_DISTANCE_M, _MAX_DISTANCE_M = 15.0, 150.0
_EVERY_M = 8.0
_APART_M = 8.0
_DROP_M, _WALKER_DROP_M = 0.5, 1.0  # the origin of a walker is in its middle
_ON_LANE_M = 3.0
_MAX_SEED = 2**31 - 1
_POLL_S, _BLOCKED_S = 0.2, 1.0
"""How often to look at a running tick, and after how long without its end the manager is woken."""
_WAKE_S = 2.0
# msgpack-RPC of `set_synchronous_mode(False)` and of `set_synchronous_mode(True)`.
_LEAVE = b"\x94\x00\x01\xb4set_synchronous_mode\x91\xc2"
_ENTER = b"\x94\x00\x02\xb4set_synchronous_mode\x91\xc3"
_AWAY, _NOWHERE = complex(1e9, 1e9), (AWAY_M, AWAY_M, 0.0, 0.0, 0.0, 0.0)
_KERB_M = 1.0
_CROSSING_SHARE = 0.3
_WALK_MPS = (1.0, 1.8)


class CarlaTraffic:
    """The other vehicles and walkers of an episode, including those of other clients.

    Attributes are those of `avtd3.collect.maps.contact.OtherVehicles`: `at`, `heading`,
    `speed_mps`, `length_m`, `width_m`, one entry per vehicle or walker. `states`, float64 (N, 6),
    has x, y, yaw, z, pitch and roll of each, also on another level.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._manager: carla.TrafficManager | None = None
        self._vehicles: list[carla.Vehicle] = []
        self._walkers: list[carla.Walker] = []
        self.unplaced = (0, 0)
        """Number of our vehicles and of our walkers that found no room."""
        self.wakes = 0
        """Times that the traffic manager had to be woken."""
        self.bodies: list[Body] = []
        """What is recorded of them, in the same order, of the first."""
        self._resize([])

    @property
    def has_manager(self) -> bool:
        """Return whether there is a traffic manager, which crashes on a map change."""
        return self._manager is not None

    def _resize(self, actors: list[tuple[int, "carla.BoundingBox"]]) -> None:
        count = len(actors)
        self._ids = [number for number, _ in actors]
        self._ahead_m = [box.location.x for _, box in actors]
        self.at = np.full(count, _AWAY)
        self.heading = np.ones(count, np.complex128)
        self.speed_mps = np.zeros(count)
        self.length_m = np.array([2.0 * box.extent.x for _, box in actors])
        self.width_m = np.array([2.0 * box.extent.y for _, box in actors])
        self.states = np.zeros((count, 6))

    def spawn(
        self,
        network: RoadNetwork,
        start: Start,
        counts: tuple[int, int],
        seed: int,
        rng: np.random.Generator,
    ) -> None:
        """Spawn `counts` vehicles and walkers around the car, which was spawned before.

        The seed is that of the traffic manager; `rng` draws places and models.
        """
        vehicles, walkers = counts
        if vehicles:
            models = self._models("vehicle.*")
            places = [_in_lane(*place) for place in _places(network, start, rng)]
            self._vehicles = self._spawn(places, models, vehicles, rng)
        directions: dict[int, carla.Vector3D] = {}
        if walkers:
            models = self._models("walker.pedestrian.*")
            for lane, along in _places(network, start, rng):
                if len(self._walkers) == walkers:
                    break
                place, direction = _kerb(lane, along, rng)
                for walker in self._spawn([place], models, 1, rng):
                    self._walkers.append(walker)
                    directions[walker.id] = direction
        self.unplaced = (vehicles - len(self._vehicles), walkers - len(self._walkers))
        # Before its first snapshot, the state of an actor is uninitialised memory.
        self._server.tick()
        if self._vehicles:
            self._start_driving(seed)
        self._server.command(
            *(
                carla.command.ApplyWalkerControl(
                    number, carla.WalkerControl(direction, float(rng.uniform(*_WALK_MPS)), False)
                )
                for number, direction in directions.items()
            ),
            what="start the walkers",
        )

    def _models(self, pattern: str) -> list[carla.ActorBlueprint]:
        with self._server.calling("list its models"):
            library = self._server.world.get_blueprint_library().filter(pattern)
        cars = [entry for entry in library if _is_car(entry)]
        return sorted(cars or library, key=lambda entry: str(entry.id))

    def _spawn(
        self,
        places: Sequence[carla.Transform],
        models: list[carla.ActorBlueprint],
        count: int,
        rng: np.random.Generator,
    ) -> list[carla.Actor]:
        """Spawn up to `count` actors; a place that is occupied is skipped."""
        found: list[carla.Actor] = []
        for place in places if models else ():
            if len(found) == count:
                break
            model = models[int(rng.integers(len(models)))]
            model.set_attribute("role_name", self._server.mark)
            if model.has_attribute("color"):
                colours = model.get_attribute("color").recommended_values
                if colours:
                    model.set_attribute("color", colours[int(rng.integers(len(colours)))])
            try:
                with self._server.calling("spawn traffic"):
                    found.append(self._server.world.spawn_actor(model, place))
            except WorldLost as error:
                if error.reason != REJECTED:
                    raise
        return found

    def _start_driving(self, seed: int) -> None:
        with self._server.calling("start its traffic", limit_s=self._server.config.load_timeout_s):
            manager = self._manager or self._open_manager()
            manager.set_random_device_seed(seed % _MAX_SEED)
            port = manager.get_port()
            for vehicle in self._vehicles:
                vehicle.set_autopilot(True, port)

    def _open_manager(self) -> carla.TrafficManager:
        port = self._server.config.tm_port or _free_port()
        manager = self._server.client.get_trafficmanager(port)
        manager.set_synchronous_mode(True)
        manager.set_global_distance_to_leading_vehicle(2.5)
        self.keep_awake(manager)
        return manager

    def keep_awake(self, manager: carla.TrafficManager) -> None:
        """Wake the traffic manager whenever it has lost the wake-up of a step.

        The client announces a step without the lock of its condition variable. If the manager is
        just about to wait, it misses that, and the tick never returns although its snapshot has
        arrived. Leaving synchronous mode announces the step again. The client's own methods cannot
        do that, because the blocked tick holds their lock; the manager's port for others can.
        """
        self._manager = manager
        threading.Thread(
            target=self._watch, args=(manager, manager.get_port()), daemon=True
        ).start()

    def _watch(self, manager: carla.TrafficManager, port: int) -> None:
        blocked_s, before = 0.0, self._server.ticks_from
        while self._manager is manager:
            time.sleep(_POLL_S)
            last, before = before, self._server.ticks_from
            is_new = before is None or before != last
            if is_new or self._server.world.get_snapshot().frame <= before:
                blocked_s = 0.0
                continue
            blocked_s += _POLL_S
            if blocked_s >= _BLOCKED_S:
                self.wakes, blocked_s = self.wakes + 1, 0.0
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", port), _WAKE_S) as link,
                ):
                    for call in (_LEAVE, _ENTER):
                        link.sendall(call)
                        link.recv(64)

    def find_all(self, car_id: int) -> None:
        """Find all vehicles and walkers on the server, ours or not, except the driven car."""
        with self._server.calling("measure its traffic"):
            actors = self._server.world.get_actors()
            movers = [*actors.filter("vehicle.*"), *actors.filter("walker.*")]
            movers = sorted((a for a in movers if a.id != car_id), key=lambda actor: int(actor.id))
            boxes = [actor.bounding_box for actor in movers]
        self._resize([(actor.id, box) for actor, box in zip(movers, boxes, strict=True)])
        self.bodies = [*map(body_of, movers, boxes)][:MOST_BODIES]

    def update(self, snapshot: carla.WorldSnapshot, car: Pose) -> None:
        """Update all positions from a snapshot; what is on another level than the car is away."""
        for number, actor_id in enumerate(self._ids):
            found = snapshot.find(actor_id)
            self.at[number], self.speed_mps[number] = _AWAY, 0.0
            self.states[number] = _NOWHERE
            if found is None:
                continue
            pose = pose_of(found, self._ahead_m[number])
            if all(map(math.isfinite, pose.place)):
                self.states[number] = pose.place
            apart = math.hypot(pose.x_m - car.x_m, pose.y_m - car.y_m)
            if not abs(pose.z_m - car.z_m) < LEVEL_M + SLOPE * apart:
                continue  # also if a number is not finite
            heading = complex(math.cos(pose.yaw_rad), math.sin(pose.yaw_rad))
            self.at[number], self.heading[number] = complex(pose.x_m, pose.y_m), heading
            self.speed_mps[number] = (pose.velocity * heading.conjugate()).real

    def release(self) -> list[int]:
        """Remove our vehicles from the traffic manager; return the ids of all our actors.

        The tick is necessary: without it, the next step of the traffic manager still asks the
        server about each vehicle, and one that is gone by then crashes the process.
        """
        vehicles, self._vehicles = self._vehicles, []
        walkers, self._walkers = self._walkers, []
        self._resize([])
        if vehicles and self._manager is not None and not self._server.is_gone:
            with self._server.calling("take vehicles from its traffic"):
                port = self._manager.get_port()
                for vehicle in vehicles:
                    vehicle.set_autopilot(False, port)
            self._server.tick()
        return [actor.id for actor in (*vehicles, *walkers)]

    def close(self) -> None:
        """End the traffic manager, after `release`, the removal of the vehicles and a tick."""
        manager, self._manager = self._manager, None
        if manager is not None and not self._server.is_gone:
            with self._server.calling("end its traffic"):
                manager.shut_down()


def _is_car(blueprint: carla.ActorBlueprint) -> bool:
    """Return whether a model is a car; without that attribute, whether it has four wheels."""
    if blueprint.has_attribute("base_type"):
        return bool(blueprint.get_attribute("base_type").as_str() == "car")
    return not blueprint.has_attribute("number_of_wheels") or (
        blueprint.get_attribute("number_of_wheels").as_int() == 4
    )


def _places(
    network: RoadNetwork, start: Start, rng: np.random.Generator
) -> Iterator[tuple[Lane, float]]:
    """Yield places in the lanes around the start, in random order, with a minimum distance."""
    here, found = complex(start.x_m, start.y_m), []
    for lane in network.lanes:
        if lane.is_junction:
            continue
        for along in np.arange(0.5 * _EVERY_M, lane.length_m - 2.0, _EVERY_M).tolist():
            at = complex(*_point(lane, along)[:2])
            if _MIN_DISTANCE_M < abs(at - here) < _MAX_DISTANCE_M:
                found.append((at, lane, along))
    taken: list[complex] = []
    for number in rng.permutation(len(found)).tolist():
        at, lane, along = found[number]
        if all(abs(at - other) >= _APART_M for other in taken):
            taken.append(at)
            yield lane, along


def _point(lane: Lane, along_m: float) -> tuple[float, float, float, float]:
    """Return x, y, height and yaw of the centre line of a lane at a distance."""
    columns = (lane.points[:, 0], lane.points[:, 1], lane.height_m, lane.yaw_rad)
    x, y, z, yaw = (float(np.interp(along_m, lane.distance_m, column)) for column in columns)
    return x, y, z, yaw


def _in_lane(lane: Lane, along_m: float) -> carla.Transform:
    x, y, z, yaw = _point(lane, along_m)
    place = carla.Location(x, y, z + _DROP_M)
    return carla.Transform(place, carla.Rotation(yaw=math.degrees(yaw)))


def _kerb(
    lane: Lane, along_m: float, rng: np.random.Generator
) -> tuple[carla.Transform, "carla.Vector3D"]:
    """Return a place for a walker beside a lane, and the direction along or across the road."""
    x, y, z, yaw = _point(lane, along_m)
    aside = 0.5 * float(lane.width_m.max()) + _KERB_M
    place = carla.Location(x - aside * math.sin(yaw), y + aside * math.cos(yaw), z + _WALKER_DROP_M)
    is_crossing = rng.uniform() < _CROSSING_SHARE
    turn = yaw - 0.5 * math.pi if is_crossing else yaw + math.pi * float(rng.integers(2))
    direction = carla.Vector3D(math.cos(turn), math.sin(turn), 0.0)
    return carla.Transform(place, carla.Rotation(yaw=math.degrees(turn))), direction


def ground_height(network: RoadNetwork, lanes: Sequence[int], x_m: float, y_m: float) -> float:
    """Return the height at a position of the first of some lanes that is there, or the nearest.

    The lanes of the route distinguish a bridge from the road under it.
    """
    best, height = math.inf, 0.0
    for number in lanes:
        lane = network.lanes[number]
        away: NDArray[np.float64] = np.hypot(lane.points[:, 0] - x_m, lane.points[:, 1] - y_m)
        nearest = int(away.argmin())
        if away[nearest] < best:
            best, height = float(away[nearest]), float(lane.height_m[nearest])
        if best < _ON_LANE_M:
            break
    return height


_STOP_REACH_M, _SAME_WAY = 2.5, 0.7
_COMFORT_MPS2 = 3.0
_UNKNOWN_STOP_M = 2.0
_STANDING_MPS = 0.3
_LIGHT = "traffic.traffic_light*"


class Lights:
    """The traffic lights along a route, as the driven car meets them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: dict[int, list[tuple[complex, complex]]] = {}
        self._recorded: list[carla.TrafficLight] = []
        self._stops: list[tuple[float, carla.TrafficLight]] = []
        self._inside: carla.TrafficLight | None = None

    @property
    def count(self) -> int:
        """Return the number of stop lines across the route."""
        return len(self._stops)

    def begin(self, car: Car, route: Route) -> None:
        """Find the lights of a route: those with a stop line across it."""
        self._car, self._inside, self._front_m = car, None, math.nan
        points = route.points.view(np.complex128)[:, 0]
        self._stops = []
        with self._server.calling("describe its traffic lights"):
            lights = self._server.world.get_actors().filter(_LIGHT)
            self._recorded = sorted(lights, key=lambda light: _away(light, points[0]))[:MOST_LIGHTS]
            for light in lights:
                if light.id not in self._known:
                    self._known[light.id] = [*map(_stop_line, light.get_stop_waypoints())]
                for at, way in self._known[light.id]:
                    away = np.abs(points - at)
                    nearest = int(away.argmin())
                    along = math.cos(route.yaw_rad[nearest] - math.atan2(way.imag, way.real))
                    if away[nearest] < _STOP_REACH_M and along > _SAME_WAY:
                        self._stops.append((float(route.distance_m[nearest]), light))
        self._stops.sort(key=lambda stop: stop[0])

    def places(self) -> list[list[float]]:
        """Return x, y and z of the lights that are recorded: those nearest to the start."""
        found = [light.get_location() for light in self._recorded]
        return [[place.x, place.y, place.z] for place in found]

    def states(self) -> list[int]:
        """Return the states of the same lights, as numbers of `carla.TrafficLightState`."""
        return [int(light.state) for light in self._recorded]

    def update(self, distance_m: float, speed_mps: float) -> tuple[float, bool]:
        """Return free metres to a stop line that is closed, and whether a red light was run.

        `distance_m` is where the middle of the car is along the route.
        """
        # At the start there is no place before: comparisons with NaN are false.
        front_m, before_m = distance_m + 0.5 * self._car.length_m, self._front_m
        self._front_m = max(front_m, before_m)
        gap_m, ran = self._without_a_line(speed_mps)
        for stop_m, light in self._stops:
            if before_m <= stop_m < front_m:
                ran = ran or _is_red(light)
            elif stop_m >= front_m:
                if _is_closed(light, stop_m - front_m, speed_mps):
                    gap_m = min(gap_m, stop_m - front_m)
                break
        return gap_m, ran

    def _without_a_line(self, speed_mps: float) -> tuple[float, bool]:
        """Return the same for lights that only the car's own record names, in whose area it is."""
        actor = self._car.actor
        inside = actor.get_traffic_light() if actor.is_at_traffic_light() else None
        if inside is not None and any(light.id == inside.id for _, light in self._stops):
            inside = None
        left, self._inside = self._inside, inside
        has_left = left is not None and (inside is None or inside.id != left.id)
        ran = has_left and _is_red(left) and speed_mps > _STANDING_MPS
        is_red = inside is not None and _is_red(inside)
        return (_UNKNOWN_STOP_M if is_red else math.inf), ran


def _away(light: carla.TrafficLight, start: complex) -> float:
    place = light.get_location()
    return abs(complex(place.x, place.y) - start)


def _is_red(light: carla.TrafficLight) -> bool:
    return bool(light.state == carla.TrafficLightState.Red)


def _stop_line(waypoint: "carla.Waypoint") -> tuple[complex, complex]:
    place, yaw = waypoint.transform.location, math.radians(waypoint.transform.rotation.yaw)
    return complex(place.x, place.y), complex(math.cos(yaw), math.sin(yaw))


def _is_closed(light: carla.TrafficLight, gap_m: float, speed_mps: float) -> bool:
    """Return whether to stop: at red always, at yellow if that is comfortable."""
    can_stop = speed_mps * speed_mps < 2.0 * _COMFORT_MPS2 * gap_m
    return _is_red(light) or (can_stop and light.state == carla.TrafficLightState.Yellow)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
