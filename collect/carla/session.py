"""`Session`: episodes on one CARLA server, driven from within the child process.

A beginning goes in this order, each step for a reason that the client gives:

1. The map; no traffic manager may be alive while it loads.
2. Synchronous mode, which takes one or two ticks.
3. The car, held by its brakes, and its sensors: ticks until the first picture comes, because a
   subscription is not live at once.
4. The other vehicles; a tick before the traffic manager looks at them.
5. A fixed number of ticks in which all come to rest on the ground. The number of ticks before is
   not the same every time, but then nothing has moved yet.
6. The car is put exactly on its start, one tick, and the picture of that frame is the first. The
   speed of the start is given to the car together with the first control.
"""

import dataclasses

import carla
import numpy as np

from avtd3.collect.carla.car import Car, follow
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.motion import Motion
from avtd3.collect.carla.packing import Packed, pack
from avtd3.collect.carla.sensors import Sensors
from avtd3.collect.carla.server import Phase, Server, Settings, asynchronous
from avtd3.collect.carla.town import Town, Towns
from avtd3.collect.carla.traffic import CarlaTraffic, ground_height
from avtd3.collect.carla.weather import weather_parameters
from avtd3.collect.driving.world import Scenario, Surroundings, VehicleState, WorldFrame, WorldStart
from avtd3.collect.maps.contact import lead_on_route, look_around
from avtd3.collect.maps.course import Course, Ego
from avtd3.collect.maps.footing import footing
from avtd3.collect.maps.mounting import draw_mounting
from avtd3.collect.maps.opening import Opening, Start, draw_opening
from avtd3.collect.maps.route import Route
from avtd3.store.errors import WorldError, WorldLost

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

    def _spawn(self, town: Town, opening: Opening) -> tuple[Route, Start, float]:
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
