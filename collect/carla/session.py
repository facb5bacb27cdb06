"""`Session`: episodes on one server, in the client process."""

import dataclasses
from typing import Any

import carla
import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.car import Car, Contact, Motion, Pose, Sensors, move_spectator
from avtd3.collect.carla.config import KEPT_WEATHER, SCENARIO_WEATHER, CarlaConfig
from avtd3.collect.carla.packing import Packed, pack
from avtd3.collect.carla.server import ReportPhase, Server, Settings, Town, Towns, asynchronous
from avtd3.collect.carla.traffic import CarlaTraffic, Lights, ground_height
from avtd3.collect.driving.world import Surroundings, VehicleState, WorldFrame, WorldStart
from avtd3.collect.maps.camera_mounting import FrontCamera, Mounting, draw_mounting
from avtd3.collect.maps.contact import Course, Ego, find_nearby, ground_contact, lead_on_route
from avtd3.collect.maps.episode_setup import EpisodeSetup, Start, draw_setup
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.collect.sim.scene import pose_steps
from avtd3.collect.sim.streams import BEV, BirdsEye
from avtd3.store.errors import WorldError, WorldLost
from avtd3.store.spec import IMAGE

_TM_SEEDS = 2**31 - 1
_SEEN_M = 1e4  # farther actors are in no view, and their positions may not fit whole steps
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
    lanes: tuple[int, ...]
    """Lanes of the route."""
    z_m: float
    """Height of the car."""
    distance_m: float
    start_s: float
    """Simulated time of its first frame."""
    last_s: float
    """Simulated time of its newest frame."""
    is_rolling: bool = False


class Session:
    """Episodes on one server; `report_phase` is called before everything that may block."""

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        self.config = config
        self.server = Server(config, port, report_phase)
        self._towns = Towns(self.server)
        self._traffic = CarlaTraffic(self.server)
        self._lights = Lights(self.server)
        self._found: Settings | None = None
        self._car: Car | None = None
        self._sensors: Sensors | None = None
        self._episode: _Episode | None = None
        self._views: dict[str, BirdsEye] = {}
        self._foreign_ticks = 0

    def open(self, found: Settings | None) -> Settings:
        """Connect, and remove the actors of a crashed run; return the settings to restore.

        `found` are those settings if an earlier session knows them.
        """
        self.server.connect()
        settings = self.server.settings()
        leftovers = self.server.find_leftovers()
        self.server.destroy(leftovers)
        if found is None:
            # With leftovers, the settings are those of a crashed run: no client would ever tick.
            found = asynchronous(settings) if leftovers else settings
        self._found = found
        return found

    def reset(self, scenario: Scenario, seed: int) -> tuple[WorldStart, tuple[str, ...]]:
        """Start an episode, see `World.reset`; return it with remarks for the user."""
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
        self._views = self._open_views(town)
        self._sensors = Sensors(self.server, car, self._mountings(setup.camera_rng))
        self._sensors.listen()
        self._traffic.spawn(
            town.network,
            start,
            (scenario.npcs, self.config.walkers),
            int(setup.simulator_rng.integers(_TM_SEEDS)),
            setup.traffic_rng,
        )
        self._traffic.find_all(car.id)
        self._lights.begin(car, route)
        frame = self._settle(town, setup, route, start)
        world_start = WorldStart(
            route=route, frame=frame, town=town.network.name, weather=setup.weather.name
        )
        return world_start, self._notices(scenario, car, town, moved_m)

    def _open_views(self, town: Town) -> dict[str, BirdsEye]:
        """Return what draws the views from above, which no sensor of the server takes."""
        streams = sorted(self.config.streams.items())
        views = {name: BirdsEye(stream) for name, stream in streams if stream.kind == BEV}
        for view in views.values():
            view.show(town.raster)
        return views

    def _mountings(self, rng: np.random.Generator) -> dict[str, Mounting]:
        """Draw where each camera is: all as if they were mounted on one frame."""
        cameras: dict[str, FrontCamera] = {
            name: stream
            for name, stream in sorted(self.config.streams.items())
            if stream.kind != BEV
        }
        if not self.config.streams:
            cameras = {IMAGE: self.config.camera}
        before = rng.bit_generator.state
        drawn = {}
        for name, camera in cameras.items():
            rng.bit_generator.state = before
            drawn[name] = draw_mounting(camera, rng)
        return drawn

    def _spawn(self, town: Town, setup: EpisodeSetup) -> tuple[Route, Start, float]:
        """Spawn the car at the start, or further along the route if that is occupied."""
        refused: WorldLost | None = None
        for route, start, moved_m in setup.starts(self.config.spawn_attempts):
            ground_m = ground_height(town.network, setup.lanes, start.x_m, start.y_m)
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

    def _settle(self, town: Town, setup: EpisodeSetup, route: Route, start: Start) -> WorldFrame:
        """Wait until all vehicles stand on the ground, and move the car to its start."""
        car, sensors = self._car, self._sensors
        assert car is not None, "it was spawned"
        assert sensors is not None, "they were mounted"
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
            lanes=setup.lanes,
            z_m=pose.z_m,
            distance_m=route.project(pose.x_m, pose.y_m, 0.0).distance_m,
            start_s=at_s,
            last_s=at_s,
        )
        taken = sensors.pictures(snapshot.frame)
        sensors.begin(snapshot.frame)
        return self._frame(episode, snapshot, pose, episode.motion.state, taken)

    def _notices(self, scenario: Scenario, car: Car, town: Town, moved_m: float) -> tuple[str, ...]:
        found, self._foreign_ticks, foreign = [], 0, self._foreign_ticks
        if moved_m:
            found.append(
                f"the start was occupied; the episode starts {moved_m:.0f} m along the route"
            )
        wanted = ((scenario.npcs, "vehicles"), (self.config.walkers, "walkers"))
        for unplaced, (count, kind) in zip(self._traffic.unplaced, wanted, strict=True):
            if unplaced:
                found.append(f"{unplaced} of {count} {kind} found no room on {town.network.name}")
        if foreign:
            found.append(
                f"{foreign} steps of the previous episode took more than one period of simulation; "
                "check whether another client ticks this server"
            )
        if problem := car.grip_problem():
            found.append(problem)
        return tuple(found)

    def step(self, steer: float, pedal: float) -> Packed:
        """Drive for one control period, and return the frame after it."""
        episode = self._running()
        rolls_at = None if episode.is_rolling else episode.start.velocity
        episode.car.drive(steer, pedal, rolls_at)
        episode.is_rolling = True
        snapshot = self.server.tick()
        at_s = snapshot.timestamp.elapsed_seconds
        self._foreign_ticks += at_s - episode.last_s > 1.5 * self.config.control_period_s
        episode.last_s = at_s
        pose = episode.car.pose(snapshot)
        state = episode.motion.update(pose, at_s, steer)
        return pack(self._frame(episode, snapshot, pose, state, None))

    def _frame(
        self,
        episode: _Episode,
        snapshot: "carla.WorldSnapshot",
        pose: Pose,
        state: VehicleState,
        taken: dict[str, NDArray[np.uint8]] | None,
    ) -> WorldFrame:
        x_m, y_m, car = state.x_m, state.y_m, episode.car
        at = episode.route.project(x_m, y_m, episode.distance_m)
        episode.distance_m, episode.z_m = at.distance_m, pose.z_m
        ego = Ego(
            x_m,
            y_m,
            state.yaw_rad,
            state.speed_mps,
            car.length_m,
            car.width_m,
            episode.course,
            at.distance_m,
        )
        self._traffic.update(snapshot, pose)
        gap_m, lead_mps = lead_on_route(ego, self._traffic, find_nearby(ego, self._traffic))
        stop_m, ran_red_light = self._lights.update(at.distance_m, state.speed_mps)
        if stop_m < gap_m:
            gap_m, lead_mps = stop_m, 0.0
        contact = ground_contact(episode.town.raster, x_m, y_m, state.yaw_rad)
        if self.config.spectator_follows:
            move_spectator(self.server.world.get_spectator(), pose)
        frame, sensors = snapshot.frame, episode.sensors
        # The pictures are the last messages that the server sends for a frame.
        pictures = sensors.pictures(frame) if taken is None else taken
        pictures |= self._look_down((x_m, y_m, state.yaw_rad))
        named = {name: pictures[name] for name in sorted(pictures)}
        hit = sensors.collision() or Contact(frame, "", (0.0, 0.0, 0.0))
        return WorldFrame(
            frame_id=frame,
            sim_time_s=round(snapshot.timestamp.elapsed_seconds - episode.start_s, 9),
            image=next(iter(named.values())),
            streams=named if self.config.streams else None,
            vehicle=state,
            collision=hit.kind.partition(".")[0],
            collision_frame_id=hit.frame if hit.frame < frame else None,
            off_road=contact.off_road,
            wrong_way=contact.wrong_way,
            lane_invasions=sensors.lane_invasions(frame),
            lead_gap_m=gap_m,
            lead_speed_mps=lead_mps,
            ran_red_light=ran_red_light,
            other_control=episode.is_rolling and car.has_other_control(),
        )

    def _look_down(self, car: tuple[float, float, float]) -> dict[str, NDArray[np.uint8]]:
        """Draw the views from above: the map, and the vehicles and walkers around the car."""
        if not self._views:
            return {}
        traffic = self._traffic
        near = np.flatnonzero(np.abs(traffic.at - complex(*car[:2])) < _SEEN_M)
        poses = pose_steps(traffic.at[near], traffic.heading[near])
        shapes = np.stack([traffic.length_m[near], traffic.width_m[near]], axis=1).tolist()
        return {name: view.draw(car, poses, shapes, ()) for name, view in self._views.items()}

    def surroundings(self) -> Surroundings:
        """Return the lanes and vehicles around the car; see `World.surroundings`."""
        lanes, traffic = self._running().town.network.lanes, self._traffic
        others = np.stack([traffic.at.real, traffic.at.imag, np.angle(traffic.heading)], axis=1)
        return Surroundings(lanes=tuple(lane.points for lane in lanes), others=others)

    def vitals(self) -> dict[str, Any]:
        """Return what the doctor wants to know about the running episode, as plain values."""
        episode = self._running()
        road_m = ground_height(
            episode.town.network, episode.lanes, episode.motion.state.x_m, episode.motion.state.y_m
        )
        return {
            "z_error_m": abs(episode.z_m - road_m),
            "lights": self._lights.count,
            "touched": dict(episode.sensors.touched),
            "wakes": self._traffic.wakes,
        }

    def _running(self) -> _Episode:
        if self._episode is None:
            raise WorldError("the simulator has no running episode; call reset() first")
        return self._episode

    def _end(self) -> None:
        """Remove the actors of the episode: first the sensors, then the vehicles.

        Without the tick, the next step of a traffic manager would use the last snapshot, which
        still has the vehicles, and crash the process.
        """
        self._episode = None
        sensors, self._sensors = self._sensors, None
        if sensors is not None:
            sensors.close()
        ids = self._traffic.release()
        car, self._car = self._car, None
        if car is not None:
            ids.append(car.id)
        if ids and not self.server.is_gone:
            self.server.destroy(ids)
            if self._traffic.has_manager:
                self.server.tick()

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


def _weather_parameters(
    choice: str, drawn: str, rng: np.random.Generator
) -> carla.WeatherParameters | None:
    """Return the weather of an episode, as drawn from its scenario; None to keep the server's."""
    if choice == KEPT_WEATHER:
        return None
    if choice != SCENARIO_WEATHER:
        return getattr(carla.WeatherParameters, choice)
    weather = carla.WeatherParameters()
    weather.sun_azimuth_angle = rng.uniform(0.0, 360.0)
    for name, limits in _CLIMATES[drawn].items():
        setattr(weather, name, rng.uniform(*limits))
    return weather
