"""`Towns`: brings the server to a scenario's roads, and prepares what driving there needs.

Three kinds of town: networks drawn by seed and .xodr files, which the server builds from their
OpenDRIVE text, and the server's own maps by name. Whatever it is, the lanes are then read from the
text that the server gives back: what is driven on is what routes are planned on.
"""

import collections
import dataclasses
import difflib
from pathlib import Path

import carla
import numpy as np

from avtd3.collect.carla.car import Car, follow, weather_parameters
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.motion import Motion
from avtd3.collect.carla.packing import Packed, pack
from avtd3.collect.carla.sensors import Sensors
from avtd3.collect.carla.server import Phase, Server, Settings, asynchronous
from avtd3.collect.carla.traffic import CarlaTraffic, ground_height
from avtd3.collect.driving.world import (
    GENERATED,
    Scenario,
    Surroundings,
    VehicleState,
    WorldFrame,
    WorldStart,
)
from avtd3.collect.maps.camera_mounting import draw_mounting
from avtd3.collect.maps.contact import Course, Ego, footing, lead_on_route, look_around
from avtd3.collect.maps.episode_setup import EpisodeSetup, Start, draw_opening
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import read_opendrive
from avtd3.collect.maps.prepared_map import draw_network
from avtd3.collect.maps.raster import Raster
from avtd3.collect.maps.route import Route
from avtd3.store.errors import ConfigError, WorldError, WorldLost

_PIXEL_M = 0.1
_CAPACITY = 8
_VERTEX_M = 2.0
_CHUNK_M = 50.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Town:
    """The roads of an episode."""

    network: RoadNetwork
    """The lanes."""
    raster: Raster
    """What is under the wheels."""


class Towns:
    """The towns of one server.

    Args:
        server: Connected.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loaded = ""
        self._known: collections.OrderedDict[str, Town] = collections.OrderedDict()

    def is_loaded(self, scenario: Scenario, seed: int) -> bool:
        """Whether the server is known to be on an episode's roads already."""
        return self._loaded == _key(scenario, seed)

    def open(self, scenario: Scenario, seed: int) -> Town:
        """Bring the server to an episode's roads.

        No traffic manager may be alive: the client dies of it.

        Raises:
            ConfigError: The server has no map of that name.
            RoadError: The roads cannot be used.
            WorldLost: The server did not answer.
        """
        key = _key(scenario, seed)
        if self._loaded != key:
            self._loaded = ""
            self._load(scenario, key)
            self._loaded = key
        if key not in self._known:
            self._known[key] = self._prepare(Path(key).stem)
            if len(self._known) > _CAPACITY:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _load(self, scenario: Scenario, key: str) -> None:
        if scenario.town == GENERATED:
            # Imported here: scenariogeneration takes a second, and other roads do not need it.
            from avtd3.collect.maps.generate import generate_network

            kind, _, number = key.rpartition("-")
            self._build(key, generate_network(kind, int(number)))
        elif _is_file(scenario.town):
            self._build(Path(key).stem, read_opendrive(scenario.town))
        elif scenario.xodr and key not in self._maps():
            self._build(key, read_opendrive(scenario.xodr))
        else:
            self._go_to_map(key)

    def _build(self, name: str, xodr: str) -> None:
        """Have the server build roads, unless it stands on these already."""
        server, limit_s = self._server, self._server.config.load_timeout_s
        with server.asking(f"load roads {name}", limit_s=limit_s):
            if server.world.get_map().to_opendrive() != xodr:
                server.world = server.client.generate_opendrive_world(xodr, _generation())

    def _go_to_map(self, name: str) -> None:
        server, limit_s = self._server, self._server.config.load_timeout_s
        with server.asking("tell its map", limit_s=limit_s):
            current = server.world.get_map().name.rpartition("/")[2]
        if current == name:
            return
        known = self._maps()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(known)}."
            raise ConfigError(
                f"scenario town {name!r} is no map of CARLA server {server.where}; {hint} "
                f"An .xodr file and {GENERATED!r} are towns, too"
            )
        with server.asking(f"load map {name}", limit_s=limit_s):
            server.world = server.client.load_world(name)

    def _maps(self) -> list[str]:
        with self._server.asking("list its maps"):
            paths = self._server.client.get_available_maps()
        return sorted({path.rpartition("/")[2] for path in paths})

    def _prepare(self, name: str) -> Town:
        limit_s = self._server.config.load_timeout_s
        with self._server.asking("give its roads", limit_s=limit_s):
            xodr = self._server.world.get_map().to_opendrive()
            network = RoadNetwork.from_opendrive(name, xodr)
            return Town(network=network, raster=Raster.paint(network, _PIXEL_M))


def _key(scenario: Scenario, seed: int) -> str:
    """What tells towns apart; its stem is the town's name."""
    if scenario.town == GENERATED:
        kind, number = draw_network(scenario, seed)
        return f"{kind}-{number:06d}"
    return scenario.town


def _is_file(town: str) -> bool:
    return town.endswith(".xodr")


def _generation() -> carla.OpendriveGenerationParameters:
    # No walls: whoever leaves the road shall leave it, not hit something.
    return carla.OpendriveGenerationParameters(
        vertex_distance=_VERTEX_M,
        max_road_length=_CHUNK_M,
        wall_height=0.0,
        additional_width=0.6,
        smooth_junctions=True,
        enable_mesh_visibility=True,
    )


_TM_SEEDS = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """An episode that has begun."""

    start: WorldStart
    """What a world's reset answers."""
    notices: tuple[str, ...]
    """What a person should know about it."""


@dataclasses.dataclass(slots=True, kw_only=True)
class _Episode:
    """What a running episode needs."""

    town: Town
    car: Car
    sensors: Sensors
    start: Start
    route: Route
    course: Course
    motion: Motion
    distance_m: float
    began_s: float
    seen_s: float
    is_rolling: bool = False


class Session:
    """Episodes on one server.

    Args:
        config: The settings.
        port: The server's RPC port.
        phase: Told before whatever may block.
    """

    def __init__(self, config: CarlaConfig, port: int, phase: Phase) -> None:
        self.config = config
        self.server = Server(config, port, phase)
        self._towns = Towns(self.server)
        self._traffic = CarlaTraffic(self.server)
        self._found: Settings | None = None
        self._car: Car | None = None
        self._sensors: Sensors | None = None
        self._episode: _Episode | None = None
        self._foreign_ticks = 0

    def open(self, found: Settings | None) -> Settings:
        """Connect, and remove what a crashed run has left.

        Args:
            found: Settings to restore in the end, known from an earlier session; None for those
                that are found now.

        Returns:
            The settings that will be restored.

        Raises:
            WorldLost: There is no server, or it did not answer.
            WorldError: It is of another version.
        """
        self.server.connect()
        settings = self.server.settings()
        left = self.server.sweep()
        if found is None:
            # With our actors the settings are those of a crashed run: nobody would ever tick.
            found = asynchronous(settings) if left else settings
        self._found = found
        return found

    def reset(self, scenario: Scenario, seed: int) -> Begun:
        """Begin an episode; see `avtd3.collect.driving.world.World.reset`."""
        self._end()
        if not self._towns.is_loaded(scenario, seed):
            self._traffic.close()
        town = self._towns.open(scenario, seed)
        self.server.synchronise()
        opening = draw_opening(town.network, scenario, seed, self.config)
        weather = weather_parameters(
            self.config.weather, opening.weather.name, opening.simulator_rng
        )
        if weather is not None:
            self.server.world.set_weather(weather)
        route, start, moved = self._spawn(town, opening)
        assert self._car is not None
        car = self._car
        car.dress(opening.weather.grip, weather)
        mounting = draw_mounting(self.config.camera, opening.camera_rng)
        self._sensors = Sensors(self.server, car.actor, mounting, car.ahead_m)
        self._sensors.listen()
        self._traffic.begin(
            town.network,
            start,
            scenario.npcs,
            int(opening.simulator_rng.integers(_TM_SEEDS)),
            opening.traffic_rng,
        )
        self._traffic.look(car.id)
        frame = self._settle(town, car, self._sensors, route, start)
        begun = WorldStart(
            route=route, frame=frame, town=town.network.name, weather=opening.weather.name
        )
        return Begun(start=begun, notices=self._notices(scenario, town, moved))

    def _spawn(self, town: Town, opening: EpisodeSetup) -> tuple[Route, Start, float]:
        """Put the car on the route: at its start, or further on if that is taken."""
        refused: WorldLost | None = None
        for route, start, moved_m in opening.starts(self.config.spawn_attempts):
            ground_m = ground_height(town.network, start.x_m, start.y_m)
            try:
                self._car = Car(self.server, start, ground_m)
            except WorldLost as error:
                if error.reason != "spawn_refused":
                    raise
                refused = error
            else:
                return route, start, moved_m
        assert refused is not None, "there is at least one start"
        raise refused

    def _settle(
        self, town: Town, car: Car, sensors: Sensors, route: Route, start: Start
    ) -> WorldFrame:
        """Wait until all stand on the ground, and put the car on its start."""
        self.server.phase("let the car come to rest")
        snapshot = self.server.tick()
        for _ in range(round(self.config.settle_s / self.config.control_period_s)):
            snapshot = self.server.tick()
        car.place(start, snapshot)
        snapshot = self.server.tick()
        at_s = snapshot.timestamp.elapsed_seconds
        # It stands as yet: the speed comes with the first control.
        pose = dataclasses.replace(car.pose(snapshot), velocity=start.velocity)
        self._episode = episode = _Episode(
            town=town,
            car=car,
            sensors=sensors,
            start=start,
            route=route,
            course=Course(route),
            motion=Motion(pose, at_s),
            distance_m=route.project(pose.x_m, pose.y_m, 0.0).distance_m,
            began_s=at_s,
            seen_s=at_s,
        )
        image = sensors.picture(snapshot.frame)
        sensors.forget(snapshot.frame)
        return self._frame(episode, snapshot, episode.motion.state, image)

    def _notices(self, scenario: Scenario, town: Town, moved_m: float) -> tuple[str, ...]:
        found, self._foreign_ticks, foreign = [], 0, self._foreign_ticks
        if moved_m:
            found.append(f"the start was taken, the episode begins {moved_m:.0f} m further on")
        if unplaced := self._traffic.unplaced:
            found.append(
                f"{unplaced} of {scenario.npcs} vehicles found no room on {town.network.name}"
            )
        if foreign:
            found.append(
                f"{foreign} steps of the episode before took more than a period of simulation: "
                "does another client tick this server?"
            )
        return tuple(found)

    def step(self, steer: float, pedal: float) -> Packed:
        """Drive for one control period; the frame after it.

        Raises:
            WorldLost: The server or a sensor did not answer.
            WorldError: No episode is running.
        """
        episode = self._running()
        if not episode.is_rolling:
            episode.car.push(episode.start)
            episode.is_rolling = True
        episode.car.drive(steer, pedal)
        snapshot = self.server.tick()
        at_s = snapshot.timestamp.elapsed_seconds
        self._foreign_ticks += at_s - episode.seen_s > 1.5 * self.config.control_period_s
        episode.seen_s = at_s
        state = episode.motion.follow(episode.car.pose(snapshot), at_s, steer)
        return pack(self._frame(episode, snapshot, state, None))

    def _frame(
        self,
        episode: _Episode,
        snapshot: "carla.WorldSnapshot",
        state: VehicleState,
        image: np.ndarray | None,
    ) -> WorldFrame:
        x_m, y_m = state.x_m, state.y_m
        at = episode.route.project(x_m, y_m, episode.distance_m)
        episode.distance_m = at.distance_m
        ego = Ego(
            x_m,
            y_m,
            state.yaw_rad,
            state.speed_mps,
            episode.car.length_m,
            episode.car.width_m,
            episode.course,
            at.distance_m,
        )
        self._traffic.follow(snapshot)
        gap_m, lead_mps = lead_on_route(ego, self._traffic, look_around(ego, self._traffic))
        stands = footing(episode.town.raster, x_m, y_m, state.yaw_rad)
        if self.config.spectator_follows:
            follow(self.server.world.get_spectator(), state)
        frame, sensors = snapshot.frame, episode.sensors
        # The picture comes last of all that the server sends for a frame.
        picture = sensors.picture(frame) if image is None else image
        return WorldFrame(
            frame_id=frame,
            sim_time_s=round(snapshot.timestamp.elapsed_seconds - episode.began_s, 9),
            image=picture,
            vehicle=state,
            collision=sensors.collision(frame),
            off_road=stands.off_road,
            wrong_way=stands.wrong_way,
            lane_invasions=sensors.lane_invasions(frame),
            lead_gap_m=gap_m,
            lead_speed_mps=lead_mps,
        )

    def surroundings(self) -> Surroundings:
        """What lies around the car; see `avtd3.collect.driving.world.World.surroundings`."""
        lanes, traffic = self._running().town.network.lanes, self._traffic
        others = np.stack([traffic.at.real, traffic.at.imag, np.angle(traffic.heading)], axis=1)
        return Surroundings(lanes=tuple(lane.points for lane in lanes), others=others)

    def _running(self) -> _Episode:
        if self._episode is None:
            raise WorldError("carla world has no running episode, expected reset() before this")
        return self._episode

    def _end(self) -> None:
        """Remove the actors of the episode: sensors, then vehicles."""
        self._episode = None
        sensors, self._sensors = self._sensors, None
        if sensors is not None:
            sensors.close()
        ids = self._traffic.end()
        car, self._car = self._car, None
        if car is not None:
            ids.append(car.id)
        if not self.server.is_gone:
            self.server.destroy(ids)

    def close(self) -> bool:
        """Remove what is ours and restore the server's settings; whether that went well."""
        try:
            self._end()
            self._traffic.close()
        except WorldLost:
            return False
        if self._found is not None and not self.server.is_gone:
            self.server.leave(self._found)
        return not self.server.is_gone
