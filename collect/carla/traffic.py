"""`CarlaTraffic`: the other vehicles, driven by the traffic manager in the client's process.

The traffic manager is seeded, in synchronous mode, and listens on its own port. It lives as long as
its map: the client never frees its memory (0.1 MB for 500 m of road, tens of MB for a town), and
crashes if a map is loaded while one exists.
"""

import math
import socket

import carla
import numpy as np

from avtd3.collect.carla.car import pose_of
from avtd3.collect.carla.server import ROLE, Server
from avtd3.collect.maps.episode_setup import Start
from avtd3.collect.maps.network import RoadNetwork
from avtd3.store.errors import WorldError, WorldLost

_MIN_DISTANCE_M, _MAX_DISTANCE_M = 15.0, 150.0
_EVERY_M = 8.0
_APART_M = 8.0
_DROP_M = 0.5
_MAX_SEED = 2**31 - 1
_AWAY = complex(1e9, 1e9)


class CarlaTraffic:
    """The other vehicles of an episode, including those of other clients of the server.

    Attributes are those of `avtd3.collect.maps.contact.OtherVehicles`: `at`, `heading`,
    `speed_mps`, `length_m`, `width_m`, one entry per vehicle.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._manager: carla.TrafficManager | None = None
        self._ours: list[carla.Vehicle] = []
        self._ids: list[int] = []
        self.unplaced = 0
        """Number of our vehicles that found no room."""
        self._resize([])

    def _resize(self, sizes: list[tuple[float, float]]) -> None:
        count = len(sizes)
        self.at = np.full(count, _AWAY)
        self.heading = np.ones(count, np.complex128)
        self.speed_mps = np.zeros(count)
        self.length_m = np.array([length for length, _ in sizes])
        self.width_m = np.array([width for _, width in sizes])

    def spawn(
        self, network: RoadNetwork, start: Start, count: int, seed: int, rng: np.random.Generator
    ) -> None:
        """Spawn vehicles around the car's start and let them drive.

        Args:
            network: The roads.
            start: Position of the car, which was spawned before.
            count: Number of vehicles.
            seed: Seeds the traffic manager.
            rng: Draws places and models.

        Raises:
            WorldLost: The server did not answer.
        """
        if count:
            models = self._models()
            for place in _places(network, start, rng):
                if len(self._ours) == count:
                    break
                self._spawn_one(models[int(rng.integers(len(models)))], place, rng)
        self.unplaced = count - len(self._ours)
        # Before its first snapshot, the state of an actor is uninitialised memory.
        self._server.tick()
        if self._ours:
            self._start_driving(seed)

    def _models(self) -> list[carla.ActorBlueprint]:
        with self._server.calling("list its vehicles"):
            library = self._server.world.get_blueprint_library().filter("vehicle.*")
        cars = [entry for entry in library if _is_car(entry)]
        return sorted(cars or library, key=lambda entry: str(entry.id))

    def _spawn_one(
        self, model: carla.ActorBlueprint, place: carla.Transform, rng: np.random.Generator
    ) -> None:
        model.set_attribute("role_name", ROLE)
        if model.has_attribute("color"):
            colours = model.get_attribute("color").recommended_values
            if colours:
                model.set_attribute("color", colours[int(rng.integers(len(colours)))])
        try:
            with self._server.calling("spawn a vehicle"):
                self._ours.append(self._server.world.spawn_actor(model, place))
        except WorldLost:
            raise
        except WorldError:
            return  # the place is occupied: try the next one

    def _start_driving(self, seed: int) -> None:
        with self._server.calling("start its traffic", limit_s=self._server.config.load_timeout_s):
            manager = self._manager = self._manager or self._open_manager()
            manager.set_random_device_seed(seed % _MAX_SEED)
            port = manager.get_port()
            for vehicle in self._ours:
                vehicle.set_autopilot(True, port)

    def _open_manager(self) -> carla.TrafficManager:
        port = self._server.config.tm_port or _free_port()
        manager = self._server.client.get_trafficmanager(port)
        manager.set_synchronous_mode(True)
        manager.set_global_distance_to_leading_vehicle(2.5)
        return manager

    def find_all(self, car_id: int) -> None:
        """Find all vehicles on the server, ours or not, and their sizes.

        Args:
            car_id: Id of the driven car, which is excluded.
        """
        with self._server.calling("measure its vehicles"):
            actors = self._server.world.get_actors().filter("vehicle.*")
            vehicles = sorted(
                (actor for actor in actors if actor.id != car_id), key=lambda actor: int(actor.id)
            )
            extents = [vehicle.bounding_box.extent for vehicle in vehicles]
        self._ids = [vehicle.id for vehicle in vehicles]
        self._resize([(2.0 * extent.x, 2.0 * extent.y) for extent in extents])

    def update(self, snapshot: carla.WorldSnapshot) -> None:
        """Update the positions of all vehicles from a snapshot."""
        for number, actor_id in enumerate(self._ids):
            found = snapshot.find(actor_id)
            if found is None:
                self.at[number], self.speed_mps[number] = _AWAY, 0.0
                continue
            pose = pose_of(found)
            heading = complex(math.cos(pose.yaw_rad), math.sin(pose.yaw_rad))
            self.at[number], self.heading[number] = complex(pose.x_m, pose.y_m), heading
            self.speed_mps[number] = (pose.velocity * heading.conjugate()).real

    def release(self) -> list[int]:
        """Remove our vehicles from the traffic manager, and return their ids.

        The tick is necessary: without it, the next step of the traffic manager still asks the
        server about each vehicle, and one that is gone by then crashes the process.

        Raises:
            WorldLost: The server did not answer.
        """
        ours, self._ours, self._ids = self._ours, [], []
        self._resize([])
        if ours and self._manager is not None and not self._server.is_gone:
            with self._server.calling("take vehicles from its traffic"):
                port = self._manager.get_port()
                for vehicle in ours:
                    vehicle.set_autopilot(False, port)
            self._server.tick()
        return [vehicle.id for vehicle in ours]

    def close(self) -> None:
        """End the traffic manager, after `release` and the removal of the vehicles.

        Its `shut_down` is also a step and uses the last snapshot. The tick before it brings one
        without the vehicles.

        Raises:
            WorldLost: The server did not answer.
        """
        manager, self._manager = self._manager, None
        if manager is not None and not self._server.is_gone:
            self._server.tick()
            with self._server.calling("end its traffic"):
                manager.shut_down()


def _is_car(blueprint: carla.ActorBlueprint) -> bool:
    """Return whether a model is a car; without that attribute, whether it has four wheels."""
    if blueprint.has_attribute("base_type"):
        return bool(blueprint.get_attribute("base_type").as_str() == "car")
    return not blueprint.has_attribute("number_of_wheels") or (
        blueprint.get_attribute("number_of_wheels").as_int() == 4
    )


def _places(network: RoadNetwork, start: Start, rng: np.random.Generator) -> list[carla.Transform]:
    """Return places in the lanes around the start, in random order, with a minimum distance."""
    here, found = complex(start.x_m, start.y_m), []
    for lane in network.lanes:
        if lane.is_junction:
            continue
        for along in np.arange(0.5 * _EVERY_M, lane.length_m - 2.0, _EVERY_M).tolist():
            x, y, yaw = (
                float(np.interp(along, lane.distance_m, column))
                for column in (lane.points[:, 0], lane.points[:, 1], lane.yaw_rad)
            )
            if _MIN_DISTANCE_M < abs(complex(x, y) - here) < _MAX_DISTANCE_M:
                found.append((complex(x, y), yaw))
    taken: list[complex] = []
    places = []
    for number in rng.permutation(len(found)).tolist():
        at, yaw = found[number]
        if all(abs(at - other) >= _APART_M for other in taken):
            taken.append(at)
            ground_m = ground_height(network, at.real, at.imag)
            places.append(
                carla.Transform(
                    carla.Location(at.real, at.imag, ground_m + _DROP_M),
                    carla.Rotation(yaw=math.degrees(yaw)),
                )
            )
    return places


def ground_height(network: RoadNetwork, x_m: float, y_m: float) -> float:
    """Return the height of the road nearest to a position."""
    waypoint = network.map.get_waypoint(carla.Location(x_m, y_m, 0.0))
    return float(waypoint.transform.location.z)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
