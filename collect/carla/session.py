"""The work of the client process: `Session` runs episodes, `Checkup` the checks of the doctor."""

import dataclasses
import itertools
import time

import carla
import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.car import Car, Motion, move_spectator
from avtd3.collect.carla.config import KEPT_WEATHER, SCENARIO_WEATHER, CarlaConfig
from avtd3.collect.carla.doctor import FAILED, OK, WARNING, Finding
from avtd3.collect.carla.packing import Packed, pack
from avtd3.collect.carla.sensors import Sensors
from avtd3.collect.carla.server import (
    ROLE,
    ReportPhase,
    Server,
    Settings,
    Town,
    Towns,
    asynchronous,
)
from avtd3.collect.carla.traffic import CarlaTraffic, ground_height
from avtd3.collect.driving.world import Surroundings, VehicleState, WorldFrame, WorldStart
from avtd3.collect.maps.camera_mounting import draw_mounting
from avtd3.collect.maps.contact import Course, Ego, find_nearby, ground_contact, lead_on_route
from avtd3.collect.maps.episode_setup import EpisodeSetup, Start, draw_setup
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.errors import WorldError, WorldLost

CheckResult = tuple[Finding, NDArray[np.uint8] | None]
"""A finding and its picture uint8 (1, H, W), if it has one."""
_CHECK_STEPS = 20
_SPEED_STEPS, _SPEED_S = 200, 5.0
_PLACES = 10
_LISTEN_S = 1.0
_MIN_CONTRAST = 1.0
_TM_SEEDS = 2**31 - 1
_Range = tuple[float, float]
# Values of `carla.WeatherParameters` for the weathers of `avtd3.collect.maps.weather`.
_CLIMATES: dict[str, dict[str, _Range]] = {
    "clear": {"cloudiness": (0, 20), "sun_altitude_angle": (30, 80)},
    "overcast": {"cloudiness": (60, 95), "sun_altitude_angle": (20, 70), "fog_density": (0, 5)},
    "rain": {
        "cloudiness": (70, 100),
        "precipitation": (30, 90),
        "precipitation_deposits": (30, 80),
        "wetness": (50, 100),
        "wind_intensity": (20, 80),
        "sun_altitude_angle": (15, 60),
        "fog_density": (0, 15),
    },
    "fog": {
        "cloudiness": (40, 90),
        "sun_altitude_angle": (15, 60),
        "fog_density": (30, 70),
        "fog_distance": (0, 20),
    },
    "dusk": {"cloudiness": (0, 60), "sun_altitude_angle": (1, 10)},
    "night": {"cloudiness": (0, 60), "sun_altitude_angle": (-60, -10)},
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResetResult:
    """An episode that has started."""

    start: WorldStart
    """The result of `World.reset`."""
    notices: tuple[str, ...]
    """Remarks about the episode for the user."""


@dataclasses.dataclass(slots=True, kw_only=True)
class _Episode:
    """State of a running episode."""

    town: Town
    car: Car
    sensors: Sensors
    start: Start
    route: Route
    course: Course
    motion: Motion
    distance_m: float
    start_s: float
    """Simulated time of its first frame."""
    last_s: float
    """Simulated time of its newest frame."""
    is_rolling: bool = False


class Session:
    """Episodes on one server.

    Args:
        config: The settings.
        port: The server's RPC port.
        report_phase: Called before everything that may block.
    """

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        self.config = config
        self.server = Server(config, port, report_phase)
        self._towns = Towns(self.server)
        self._traffic = CarlaTraffic(self.server)
        self._found: Settings | None = None
        self._car: Car | None = None
        self._sensors: Sensors | None = None
        self._episode: _Episode | None = None
        self._foreign_ticks = 0

    def open(self, found: Settings | None) -> Settings:
        """Connect, and remove the actors of a crashed run.

        Args:
            found: Settings to restore at the end, known from an earlier session; None to restore
                the current ones.

        Returns:
            The settings that will be restored.

        Raises:
            WorldLost: There is no server, or it did not answer.
            WorldError: The server has another version.
        """
        self.server.connect()
        settings = self.server.settings()
        leftovers = self.server.remove_leftovers()
        if found is None:
            # With leftovers, the settings are those of a crashed run: no client would ever tick.
            found = asynchronous(settings) if leftovers else settings
        self._found = found
        return found

    def reset(self, scenario: Scenario, seed: int) -> ResetResult:
        """Start an episode; see `avtd3.collect.driving.world.World.reset`."""
        self._end()
        if not self._towns.is_loaded(scenario, seed):
            self._traffic.close()
        town = self._towns.open(scenario, seed)
        self.server.synchronise()
        setup = draw_setup(town.network, scenario, seed, self.config)
        weather = _weather_parameters(self.config.weather, setup.weather.name, setup.simulator_rng)
        if weather is not None:
            self.server.world.set_weather(weather)
        route, start, moved_m = self._spawn(town, setup)
        assert self._car is not None
        car = self._car
        car.set_conditions(setup.weather.grip, weather)
        mounting = draw_mounting(self.config.camera, setup.camera_rng)
        self._sensors = Sensors(self.server, car.actor, mounting, car.ahead_m)
        self._sensors.listen()
        self._traffic.spawn(
            town.network,
            start,
            scenario.npcs,
            int(setup.simulator_rng.integers(_TM_SEEDS)),
            setup.traffic_rng,
        )
        self._traffic.find_all(car.id)
        frame = self._settle(town, car, self._sensors, route, start)
        world_start = WorldStart(
            route=route, frame=frame, town=town.network.name, weather=setup.weather.name
        )
        return ResetResult(start=world_start, notices=self._notices(scenario, town, moved_m))

    def _spawn(self, town: Town, setup: EpisodeSetup) -> tuple[Route, Start, float]:
        """Spawn the car at the start, or further along the route if that is occupied."""
        refused: WorldLost | None = None
        for route, start, moved_m in setup.starts(self.config.spawn_attempts):
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
        """Wait until all vehicles stand on the ground, and move the car to its start."""
        self.server.phase("let the car come to rest")
        snapshot = self.server.tick()
        for _ in range(round(self.config.settle_s / self.config.control_period_s)):
            snapshot = self.server.tick()
        car.place(start, snapshot)
        snapshot = self.server.tick()
        at_s = snapshot.timestamp.elapsed_seconds
        # The car still stands: it gets its speed with the first control.
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
            start_s=at_s,
            last_s=at_s,
        )
        image = sensors.picture(snapshot.frame)
        sensors.discard_until(snapshot.frame)
        return self._frame(episode, snapshot, episode.motion.state, image)

    def _notices(self, scenario: Scenario, town: Town, moved_m: float) -> tuple[str, ...]:
        found, self._foreign_ticks, foreign = [], 0, self._foreign_ticks
        if moved_m:
            found.append(
                f"the start was occupied; the episode starts {moved_m:.0f} m along the route"
            )
        if unplaced := self._traffic.unplaced:
            found.append(
                f"{unplaced} of {scenario.npcs} vehicles found no room on {town.network.name}"
            )
        if foreign:
            found.append(
                f"{foreign} steps of the previous episode took more than one period of simulation; "
                "check whether another client ticks this server"
            )
        return tuple(found)

    def step(self, steer: float, pedal: float) -> Packed:
        """Drive for one control period, and return the frame after it.

        Raises:
            WorldLost: The server or a sensor did not answer.
            WorldError: No episode is running.
        """
        episode = self._running()
        if not episode.is_rolling:
            episode.car.start_rolling(episode.start)
            episode.is_rolling = True
        episode.car.drive(steer, pedal)
        snapshot = self.server.tick()
        at_s = snapshot.timestamp.elapsed_seconds
        self._foreign_ticks += at_s - episode.last_s > 1.5 * self.config.control_period_s
        episode.last_s = at_s
        state = episode.motion.update(episode.car.pose(snapshot), at_s, steer)
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
        self._traffic.update(snapshot)
        gap_m, lead_mps = lead_on_route(ego, self._traffic, find_nearby(ego, self._traffic))
        contact = ground_contact(episode.town.raster, x_m, y_m, state.yaw_rad)
        if self.config.spectator_follows:
            move_spectator(self.server.world.get_spectator(), state)
        frame, sensors = snapshot.frame, episode.sensors
        # The picture is the last message that the server sends for a frame.
        picture = sensors.picture(frame) if image is None else image
        return WorldFrame(
            frame_id=frame,
            sim_time_s=round(snapshot.timestamp.elapsed_seconds - episode.start_s, 9),
            image=picture,
            vehicle=state,
            collision=sensors.collision(frame),
            off_road=contact.off_road,
            wrong_way=contact.wrong_way,
            lane_invasions=sensors.lane_invasions(frame),
            lead_gap_m=gap_m,
            lead_speed_mps=lead_mps,
        )

    def surroundings(self) -> Surroundings:
        """Return the lanes and vehicles around the car; see `World.surroundings`."""
        lanes, traffic = self._running().town.network.lanes, self._traffic
        others = np.stack([traffic.at.real, traffic.at.imag, np.angle(traffic.heading)], axis=1)
        return Surroundings(lanes=tuple(lane.points for lane in lanes), others=others)

    def _running(self) -> _Episode:
        if self._episode is None:
            raise WorldError("the simulator has no running episode; call reset() first")
        return self._episode

    def _end(self) -> None:
        """Remove the actors of the episode: first the sensors, then the vehicles."""
        self._episode = None
        sensors, self._sensors = self._sensors, None
        if sensors is not None:
            sensors.close()
        ids = self._traffic.release()
        car, self._car = self._car, None
        if car is not None:
            ids.append(car.id)
        if not self.server.is_gone:
            self.server.destroy(ids)

    def close(self) -> bool:
        """Remove our actors and restore the server's settings; return whether that succeeded."""
        try:
            self._end()
            self._traffic.close()
        except WorldLost:
            return False
        if self._found is not None and not self.server.is_gone:
            self.server.restore(self._found)
        return not self.server.is_gone


class Checkup:
    """Checks of one server, in the order of `avtd3.collect.carla.doctor.CHECKS`.

    Args:
        config: The settings that episodes would use.
        port: The server's RPC port.
        report_phase: Called before everything that may block.
    """

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        self.server = Server(config, port, report_phase)
        self._period_s = config.control_period_s
        self._found: Settings | None = None
        self._car: Car | None = None
        self._sensors: Sensors | None = None

    def connection(self) -> CheckResult:
        """Check that there is a server, of the client's version.

        Raises:
            WorldLost: There is no server, or it does not answer.
            WorldError: The server has another version.
        """
        begun_s = time.monotonic()
        self.server.connect()
        took_s = time.monotonic() - begun_s
        version = self.server.client.get_server_version()
        return _ok("connection", f"answers after {took_s:.1f} s; version {version} is supported")

    def use(self) -> CheckResult:
        """Check that no other client drives on the server.

        Raises:
            WorldLost: The server does not answer.
        """
        server = self.server
        found = server.settings()
        if found["synchronous_mode"] and self._hears_a_tick():
            return _finding(
                "use",
                FAILED,
                "another client drives here: it ticks the server, which is in synchronous mode",
                "stop the other client, or start another server and give its --port",
            )
        self._found = found
        if leftovers := self._count_leftovers():
            text = f"a crashed run has left {leftovers} actors"
            return _finding("use", WARNING, text, "the next avtd3 collect removes them")
        if found["synchronous_mode"]:
            return _finding(
                "use",
                WARNING,
                "the server was left in synchronous mode, and does not advance",
                "avtd3 can use it; restart it for other programs",
            )
        return _ok("use", "free: asynchronous, and without actors of avtd3")

    def _hears_a_tick(self) -> bool:
        self.server.phase("wait for a tick of another client", _LISTEN_S)
        try:
            self.server.world.wait_for_tick(_LISTEN_S)
        except RuntimeError:
            return False
        return True

    def _count_leftovers(self) -> int:
        actors = self.server.actors()
        return sum(actor.attributes.get("role_name") == ROLE for actor in actors)

    def map(self) -> CheckResult:
        """Check that there are roads, and places for cars.

        Raises:
            WorldLost: The server does not answer.
        """
        server = self.server
        with server.calling("return its map", limit_s=server.config.load_timeout_s):
            found = server.world.get_map()
            self._places = found.get_spawn_points()[:_PLACES]
            roads, count = len(found.get_topology()), len(found.get_spawn_points())
        if not roads or not count:
            return _finding(
                "map",
                FAILED,
                f"{found.name} has {roads} roads and {count} places for cars",
                "load another map, such as Town01",
            )
        return _ok("map", f"{found.name}, {roads} stretches of road, {count} places for cars")

    def steps(self) -> CheckResult:
        """Check that the server advances by our steps, one frame each.

        Raises:
            WorldLost: The server does not answer.
        """
        self.server.synchronise()
        frames, periods = [], []
        for _ in range(_CHECK_STEPS):
            snapshot = self.server.tick()
            frames.append(snapshot.frame)
            periods.append(snapshot.timestamp.delta_seconds)
        worst_s = max(abs(period - self._period_s) for period in periods)
        gaps = sum(b - a != 1 for a, b in itertools.pairwise(frames))
        if worst_s > 1e-3 * self._period_s or gaps:
            return _finding(
                "steps",
                FAILED,
                f"{_CHECK_STEPS} steps of {self._period_s:g} s: {gaps} gaps between frames, "
                f"periods up to {worst_s:.3g} s off",
                "another client may tick the server too: stop it, or start another server",
            )
        return _ok("steps", f"{_CHECK_STEPS} steps of {self._period_s:g} s in synchronous mode")

    def camera(self) -> CheckResult:
        """Check that a car's camera sends a picture for every frame.

        Raises:
            WorldLost: The server does not answer, or sends no pictures.
            ConfigError: The server has no such vehicle.
        """
        self._car = car = self._spawn()
        # Assigned before it listens, so that `close` also removes a camera that stalls.
        mounting = draw_mounting(self.server.config.camera, np.random.default_rng(0))
        self._sensors = sensors = Sensors(self.server, car.actor, mounting, car.ahead_m)
        sensors.listen()
        for _ in range(_CHECK_STEPS):
            picture = sensors.picture(self.server.tick().frame)
        _, height, width = picture.shape
        text = f"{_CHECK_STEPS} pictures of {width} x {height}, one for each frame"
        if picture.std() < _MIN_CONTRAST:
            return (
                Finding(
                    "camera",
                    WARNING,
                    f"{text}, but without contrast",
                    "view --image; start the server with -RenderOffScreen, not with -nullrhi",
                ),
                picture,
            )
        return Finding("camera", OK, text), picture

    def _spawn(self) -> Car:
        refused: WorldLost | None = None
        for place in self._places:
            spot, yaw_rad = place.location, float(np.radians(place.rotation.yaw))
            start = Start(x_m=spot.x, y_m=spot.y, yaw_rad=yaw_rad, speed_mps=0.0)
            try:
                return Car(self.server, start, spot.z)
            except WorldLost as error:
                if error.reason != "spawn_refused":
                    raise
                refused = error
        assert refused is not None, "there are places"
        raise refused

    def speed(self) -> CheckResult:
        """Measure how fast the server advances, with a camera.

        Raises:
            WorldLost: The server does not answer, or sends no pictures.
        """
        assert self._sensors is not None, "comes after the camera"
        begun_s, steps = time.monotonic(), 0
        while steps < _SPEED_STEPS and time.monotonic() - begun_s < _SPEED_S:
            self.server.phase("advance by a step")
            self._sensors.picture(self.server.tick().frame)
            steps += 1
        per_s = steps / (time.monotonic() - begun_s)
        text = f"{per_s:.0f} steps/s with a camera, {per_s * self._period_s:.1f} x real time"
        if per_s * self._period_s < 1.0:
            fix = "collection is slower than real time: try -quality-level=Low or fewer vehicles"
            return _finding("speed", WARNING, text, fix)
        return _ok("speed", text)

    def close(self) -> bool:
        """Remove our actors and restore the server's settings; return whether that succeeded."""
        server = self.server
        try:
            if self._sensors is not None:
                self._sensors.close()
            if self._car is not None and not server.is_gone:
                server.destroy([self._car.id])
            if self._found is not None:
                server.restore(self._found)
        except WorldLost:
            return False
        return not server.is_gone


def _weather_parameters(
    choice: str, drawn: str, rng: np.random.Generator
) -> carla.WeatherParameters | None:
    """Return the `carla.WeatherParameters` of an episode, None to keep those of the server.

    Args:
        choice: `CarlaConfig.weather`.
        drawn: The weather that the episode drew from its scenario.
        rng: Varies the parameters.
    """
    if choice == KEPT_WEATHER:
        return None
    if choice != SCENARIO_WEATHER:
        return getattr(carla.WeatherParameters, choice)
    weather = carla.WeatherParameters()
    weather.sun_azimuth_angle = rng.uniform(0.0, 360.0)
    for name, limits in _CLIMATES[drawn].items():
        setattr(weather, name, rng.uniform(*limits))
    return weather


def _ok(check: str, text: str) -> CheckResult:
    return Finding(check, OK, text), None


def _finding(check: str, state: str, text: str, fix: str) -> CheckResult:
    return Finding(check, state, text, fix), None
