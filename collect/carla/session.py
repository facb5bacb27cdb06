"""`Session`: episodes on one server, in the client process."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import carla
import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.car import (
    Car,
    Contact,
    Motion,
    Pose,
    Sensors,
    move_spectator,
    spawn_car,
)
from avtd3.collect.carla.client_process import Packed, PackedPictures, pack, pack_pictures
from avtd3.collect.carla.config import KEPT_WEATHER, SCENARIO_WEATHER, CarlaConfig
from avtd3.collect.carla.scene import (
    AWAY_M,
    Body,
    CarlaScene,
    CarlaViews,
    CarlaWeather,
    Recorded,
    draw_climate,
)
from avtd3.collect.carla.server import (
    REJECTED,
    ReportPhase,
    Server,
    Settings,
    Town,
    Towns,
    asynchronous,
)
from avtd3.collect.carla.traffic import CarlaTraffic, Lights, ground_height
from avtd3.collect.driving.world import Surroundings, VehicleState, WorldFrame, WorldStart
from avtd3.collect.maps.contact import Course, Ego, find_nearby, ground_contact, lead_on_route
from avtd3.collect.maps.episode_setup import EpisodeSetup, Start, draw_setup
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import Scenario
from avtd3.collect.sim.scene import random_state
from avtd3.collect.sim.streams import route_steps
from avtd3.store.errors import ConfigError, SpecError, WorldError, WorldLost, abbreviate
from avtd3.store.files import sha256
from avtd3.store.world_record import POSITION_STEPS_PER_M

_TM_SEEDS = 2**31 - 1
_WEATHER = tuple(
    name
    for name in dir(carla.WeatherParameters)
    if isinstance(getattr(carla.WeatherParameters(), name), float)
)
_SPAWN_M, _APART_M = 50.0, 8.0
"""How far above the road recorded actors are spawned, and the distance between two of them."""
_SAME_M, _OFF_M = 0.5, 0.01
"""Distance within which a traffic light is the recorded one, and an actor is at its place."""
_FAR_M, _BELOW_M = 1e6, 500.0
"""What is farther away is put this far below the ground."""
_LIGHT_TICKS = 20


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


class Visit:
    """Work on one server, which has its settings back when `close` returns.

    `report_phase` is called before everything that may block.
    """

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        self.config = config
        self.server = Server(config, port, report_phase)
        self._towns = Towns(self.server)
        self._found: Settings | None = None
        self._car: Car | None = None
        self._sensors: Sensors | None = None

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

    def _release(self) -> None:
        """Remove our actors: first the sensors, then the car."""
        self._close_sensors()
        car, self._car = self._car, None
        if car is not None and not self.server.is_gone:
            self.server.destroy([car.id])

    def _close_sensors(self) -> None:
        sensors, self._sensors = self._sensors, None
        if sensors is not None:
            sensors.close()

    def close(self) -> bool:
        """Remove our actors and restore the server's settings; return whether that succeeded."""
        try:
            self._release()
            if self._found is not None and not self.server.is_gone:
                self.server.apply(self._found)
        except WorldLost:
            return False
        return not self.server.is_gone


class Session(Visit):
    """Episodes on one server."""

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        super().__init__(config, port, report_phase)
        self._traffic = CarlaTraffic(self.server)
        self._lights = Lights(self.server)
        self._episode: _Episode | None = None
        self._views: CarlaViews | None = None
        self._row = b""
        self._foreign_ticks = 0

    def reset(self, scenario: Scenario, seed: int) -> tuple[WorldStart, tuple[str, ...], Recorded]:
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
        starts = list(setup.starts(self.config.spawn_attempts))
        self._car, number = spawn_car(
            self.server,
            ((at, ground_height(town.network, setup.lanes, at.x_m, at.y_m)) for _, at, _ in starts),
        )
        car, (route, start, moved_m) = self._car, starts[number]
        car.set_conditions(setup.weather.grip, weather)
        scene = self._scene(town, car, route, setup, weather)
        self._sensors = Sensors(self.server, car, scene.mountings())
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
        scene = scene._replace(bodies=self._traffic.bodies, lights=self._lights.places())
        self._views = CarlaViews(scene, town.raster)
        frame = self._settle(town, setup, route, start)
        world_start = WorldStart(
            route=route, frame=frame, town=town.network.name, weather=setup.weather.name
        )
        recorded = Recorded(scene.setup(), town.text, self._row)
        return world_start, self._notices(scenario, car, town, moved_m), recorded

    def _scene(
        self,
        town: Town,
        car: Car,
        route: Route,
        setup: EpisodeSetup,
        weather: carla.WeatherParameters | None,
    ) -> CarlaScene:
        """Return what is recorded of the episode, without the other actors."""
        with self.server.calling("report its weather"):
            found = self.server.world.get_weather() if weather is None else weather
        values = {name: float(getattr(found, name)) for name in _WEATHER}
        return CarlaScene(
            map=sha256(town.text.encode()),
            town=town.name,
            period_s=self.config.control_period_s,
            car=car.body,
            bodies=(),
            lights=(),
            weather=CarlaWeather(setup.weather.name, values, weather is not None),
            camera=self.config.camera,
            streams=self.config.streams,
            random=random_state(setup.camera_rng),
            route=route_steps(route.points),
        )

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
        return self._frame(episode, snapshot, pose)

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

    def step(self, steer: float, pedal: float) -> tuple[Packed, bytes]:
        """Drive for one control period; return the frame after it, and its row of the record."""
        episode = self._running()
        rolls_at = None if episode.is_rolling else episode.start.velocity
        episode.car.drive(steer, pedal, rolls_at)
        episode.is_rolling = True
        snapshot = self.server.tick()
        at_s = snapshot.timestamp.elapsed_seconds
        self._foreign_ticks += at_s - episode.last_s > 1.5 * self.config.control_period_s
        episode.last_s = at_s
        pose = episode.car.pose(snapshot)
        episode.motion.update(pose, at_s, steer)
        return pack(self._frame(episode, snapshot, pose)), self._row

    def _frame(self, episode: _Episode, snapshot: "carla.WorldSnapshot", pose: Pose) -> WorldFrame:
        state, car = episode.motion.state, episode.car
        x_m, y_m = state.x_m, state.y_m
        at = episode.route.project(x_m, y_m, episode.distance_m)
        episode.distance_m, episode.z_m = at.distance_m, pose.z_m
        place = (x_m, y_m, state.yaw_rad, state.speed_mps)
        ego = Ego(*place, car.length_m, car.width_m, episode.course, at.distance_m)
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
        pictures = sensors.pictures(frame)
        if not episode.is_rolling:
            sensors.begin(frame)
        pictures |= self._look_down(state, pose)
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

    def _look_down(self, state: VehicleState, pose: Pose) -> dict[str, NDArray[np.uint8]]:
        """Record what there is around the car, and draw the views from above from that."""
        traffic, lights = self._traffic, self._lights.states()
        places = np.array([*traffic.states[: len(traffic.bodies)], pose.place])
        places = np.nan_to_num(places).clip(-AWAY_M, AWAY_M)
        steps = np.rint(places * POSITION_STEPS_PER_M).astype(np.int64)
        actors = np.zeros((2 * len(steps) - 1 + len(lights), 3), np.int64)
        count = len(steps) - 1
        actors[:count] = steps[:-1, :3]
        actors[count], actors[count + 1 : 2 * count + 1] = steps[-1, 3:], steps[:-1, 3:]
        actors[2 * count + 1 :, 0] = lights
        car = (state.x_m, state.y_m, state.yaw_rad)
        self._row = np.array(car).tobytes() + actors.tobytes()
        assert self._views is not None, "they were opened"
        return self._views.draw(car, actors)

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
        self._close_sensors()
        ids = self._traffic.release()
        car, self._car = self._car, None
        if car is not None:
            ids.append(car.id)
        if ids and not self.server.is_gone:
            self.server.destroy(ids)
            if self._traffic.has_manager:
                self.server.tick()

    def _release(self) -> None:
        self._end()
        self._traffic.close()


def _weather_parameters(
    choice: str, drawn: str, rng: np.random.Generator
) -> carla.WeatherParameters | None:
    """Return the weather of an episode, as drawn from its scenario; None to keep the server's."""
    if choice == KEPT_WEATHER:
        return None
    if choice != SCENARIO_WEATHER:
        return getattr(carla.WeatherParameters, choice)
    return _weather_of(draw_climate(drawn, rng))


def _weather_of(values: Mapping[str, float]) -> carla.WeatherParameters:
    weather = carla.WeatherParameters()
    for name, value in values.items():
        if name not in _WEATHER:
            raise SpecError(f"the state has a weather with {abbreviate(name)}, which CARLA lacks")
        setattr(weather, name, value)
    return weather


class Replay(Visit):
    """Shows recorded states on one server, and takes pictures of them.

    No actor has physics: before each tick, all are moved to where they were.
    """

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        super().__init__(config, port, report_phase)
        self._actors: list[tuple[int, float]] = []
        self._lights: list[carla.TrafficLight] = []

    def begin(
        self,
        setup: Mapping[str, Any],
        text: str,
        car: NDArray[np.float64],
        actors: NDArray[np.int64],
    ) -> None:
        """Prepare an episode, given the setup and the first row of its record and its map."""
        self._release()
        scene, server = CarlaScene.parse(setup), self.server
        server.config = dataclasses.replace(
            self.config,
            vehicle=scene.car.kind,
            camera=scene.camera,
            streams=scene.streams,
            control_period_s=scene.period_s,
        )
        self._towns.show(scene.town, text)
        server.synchronise()
        self._check_blueprints(scene)
        weather = _weather_of(scene.weather.values)
        server.world.set_weather(weather)
        height_m = _SPAWN_M + float(actors[len(scene.bodies), 0]) / POSITION_STEPS_PER_M
        start = Start(x_m=car.item(0), y_m=car.item(1), yaw_rad=car.item(2), speed_mps=0.0)
        self._car = Car(server, start, height_m, scene.car.colour)
        self._car.set_conditions(1.0, weather if scene.weather.has_lamps else None)
        self._actors = [(self._car.id, scene.car.ahead_m)]
        for number, body in enumerate(scene.bodies):
            self._spawn(body, actors[number], height_m + _APART_M * (number + 1))
        fixed = [carla.command.SetSimulatePhysics(number, False) for number, _ in self._actors]
        server.command(*fixed, what="switch physics off")
        server.tick()  # before its first snapshot, the state of an actor is uninitialised memory
        self._find_lights(scene)
        self._place(car, actors)
        self._sensors = Sensors(server, self._car, scene.mountings(), has_events=False)
        self._sensors.listen()

    def _check_blueprints(self, scene: CarlaScene) -> None:
        with self.server.calling("list its blueprints"):
            known = {entry.id for entry in self.server.world.get_blueprint_library()}
        missing = {body.kind for body in (scene.car, *scene.bodies)} - known
        if missing:
            raise ConfigError(
                f"CARLA server {self.server.where} has no blueprint {', '.join(sorted(missing))}, "
                "which the recorded episode shows; start a server with the same content"
            )

    def _spawn(self, body: Body, pose: NDArray[np.int64], height_m: float) -> None:
        """Spawn an actor above its place, where nothing is in the way."""
        with self.server.calling("spawn traffic"):
            blueprint = self.server.world.get_blueprint_library().find(body.kind)
            blueprint.set_attribute("role_name", self.server.mark)
            if body.colour and blueprint.has_attribute("color"):
                blueprint.set_attribute("color", body.colour)
            x_m, y_m = (pose[:2] / POSITION_STEPS_PER_M).clip(-_FAR_M, _FAR_M).tolist()
            place = carla.Transform(carla.Location(x_m, y_m, height_m))
            actor = self.server.world.spawn_actor(blueprint, place)
        self._actors.append((actor.id, body.ahead_m))

    def _find_lights(self, scene: CarlaScene) -> None:
        """Find the recorded lights by their places, and keep them from changing by themselves."""
        with self.server.calling("list its traffic lights"):
            found = list(self.server.world.get_actors().filter("traffic.traffic_light*"))
        self._lights = []
        for at in scene.lights:
            place = carla.Location(*at)
            near = [light for light in found if light.get_location().distance(place) < _SAME_M]
            if not near:
                raise ConfigError(
                    f"CARLA server {self.server.where} has no traffic light at {at}, where the "
                    "recorded episode has one; start a server with the same maps"
                )
            self._lights.append(near[0])
        if self._lights:
            self._lights[0].freeze(True)  # all of the map

    def _place(self, car: NDArray[np.float64], actors: NDArray[np.int64]) -> None:
        """Move all actors to where they are in a row, and set the traffic lights."""
        count = len(self._actors) - 1
        values = actors / POSITION_STEPS_PER_M
        poses = np.vstack([car, values[:count]])
        tilts = values[count : 2 * count + 1]
        self._wanted = [
            (number, origin_of(pose, tilt, ahead_m))
            for (number, ahead_m), pose, tilt in zip(self._actors, poses, tilts, strict=True)
        ]
        self._states = actors[2 * count + 1 :, 0].tolist()
        for light, state in zip(self._lights, self._states, strict=True):
            if int(light.state) != state:
                light.set_state(carla.TrafficLightState.values[state])
        moves = [carla.command.ApplyTransform(*each) for each in self._wanted]
        self.server.command(*moves, what="move the actors")

    def show(self, car: NDArray[np.float64], actors: NDArray[np.int64]) -> PackedPictures:
        """Return the pictures of a row: of the car's pose and of the other rows of the record."""
        assert self._sensors is not None, "begin comes first"
        self._place(car, actors)
        snapshot = self.server.tick()
        for _ in range(_LIGHT_TICKS):
            # Nothing confirms the state of a light, which may come into force one tick late.
            if [int(light.state) for light in self._lights] == self._states:
                break
            snapshot = self.server.tick()
        else:
            raise WorldLost(
                f"CARLA server {self.server.where} does not set its traffic lights to the recorded "
                f"states in {_LIGHT_TICKS} ticks; check its log",
                REJECTED,
            )
        for number, wanted in self._wanted:
            found = snapshot.find(number)
            off_m = found.get_transform().location.distance(wanted.location) if found else math.inf
            if not off_m < _OFF_M:
                raise WorldLost(
                    f"CARLA server {self.server.where} has actor {number} {off_m:.3g} m off its "
                    "recorded place; check whether another client uses it",
                    REJECTED,
                )
        return pack_pictures(self._sensors.pictures(snapshot.frame))

    def _release(self) -> None:
        """Remove the actors of the episode, and let the traffic lights change again."""
        super()._release()
        lights, others = self._lights, self._actors[1:]  # the first is the car
        self._lights, self._actors = [], []
        if not self.server.is_gone:
            for light in lights[:1]:
                light.freeze(False)
            self.server.destroy([number for number, _ in others])


def origin_of(
    pose: NDArray[np.float64], tilt: NDArray[np.float64], ahead_m: float
) -> carla.Transform:
    """Return where the origin of an actor is, whose middle is `ahead_m` ahead of it."""
    (x_m, y_m, yaw), (z_m, pitch, roll) = pose.tolist(), tilt.tolist()
    if abs(x_m) > _FAR_M or abs(y_m) > _FAR_M:  # it was nowhere
        x_m = y_m = 0.0
        z_m = -_BELOW_M
    x_m, y_m = x_m - ahead_m * math.cos(yaw), y_m - ahead_m * math.sin(yaw)
    pitch_deg, yaw_deg, roll_deg = map(math.degrees, (pitch, yaw, roll))
    return carla.Transform(
        carla.Location(x_m, y_m, z_m), carla.Rotation(pitch_deg, yaw_deg, roll_deg)
    )
