"""`RoadWorld`: the embedded simulator, roads as carla.Map sees them, no server and no GPU.

One step costs half a millisecond with 20 vehicles, most of it the picture. Everything that varies
comes from one generator per episode, so the same scenario and seed give the same bytes, whatever
the world did before.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number
from avtd3.collect.driving.world import Scenario, Surroundings, WorldFrame, WorldStart
from avtd3.collect.maps.contact import (
    Course,
    Ego,
    Nearby,
    footing,
    hits_vehicle,
    lead_on_route,
    look_around,
)
from avtd3.collect.maps.episode_setup import draw_opening
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.prepared_map import PreparedMap, PreparedMapCache
from avtd3.collect.maps.raster import GAP
from avtd3.collect.sim.boxes import Box
from avtd3.collect.sim.camera import Camera, CameraConfig
from avtd3.collect.sim.traffic import Traffic
from avtd3.collect.sim.vehicle import Vehicle, VehicleParams
from avtd3.store.errors import WorldError

_LINE_M = 0.15
# A wheel on a line counts again only after so many frames off it: lines are often grazed.
_OFF_LINE_FRAMES = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoadConfig:
    """The embedded world: its camera, its car, and how exactly the roads are drawn."""

    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    """The front camera."""
    vehicle: VehicleParams = dataclasses.field(default_factory=VehicleParams)
    """The car that is driven."""
    control_period_s: float = 0.05
    """Simulated seconds per step; the reports' 20 Hz."""
    pixel_m: float = 0.1
    """Side of a pixel of the painted ground."""
    start_speed_mps: float = 6.0
    """Largest speed at which an episode begins."""
    start_lateral_m: float = 0.3
    """Largest distance from the lane's middle at which an episode begins."""
    start_heading_deg: float = 3.0
    """Largest deviation from the lane's heading with which an episode begins."""
    cached_networks: int = 32
    """Networks kept ready; one takes 5 to 10 MB."""

    def __post_init__(self) -> None:
        check_number("road.control_period_s", self.control_period_s, minimum=0.01, maximum=0.5)
        check_number("road.pixel_m", self.pixel_m, minimum=0.05, maximum=0.5)
        check_number("road.start_speed_mps", self.start_speed_mps, maximum=30.0)
        check_number("road.start_lateral_m", self.start_lateral_m, maximum=2.0)
        check_number("road.start_heading_deg", self.start_heading_deg, maximum=30.0)
        check_number("road.cached_networks", self.cached_networks, minimum=1, maximum=10_000)


class RoadWorld:
    """A `World` on generated or given OpenDRIVE roads.

    Attributes:
        name: ``road``.
        control_period_s: Simulated seconds per step.
        image_shape: (1, H, W) of the camera's frames.
        config: As given.
        notices: What a person should know about the current episode's roads and traffic.
    """

    name = "road"

    def __init__(self, config: RoadConfig | None = None) -> None:
        self.config = config = config or RoadConfig()
        self.control_period_s = config.control_period_s
        self.notices: tuple[str, ...] = ()
        self._sites = PreparedMapCache(config.cached_networks, config.pixel_m)
        self._camera = Camera(config.camera)
        self.image_shape = (1, config.camera.height, config.camera.width)
        self._vehicle = Vehicle(config.vehicle, config.control_period_s)
        self._site: PreparedMap | None = None

    @property
    def network(self) -> RoadNetwork:
        """The network of the current episode."""
        return self._current().network

    @property
    def vehicles(self) -> Traffic:
        """The other vehicles of the current episode."""
        self._current()
        return self._traffic

    def _current(self) -> PreparedMap:
        if self._site is None:
            raise WorldError("road world has no running episode, expected reset() before this")
        return self._site

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Begin an episode; see `World.reset`.

        Raises:
            RoadError: The scenario's road network cannot be used.
            ConfigError: The scenario's weather or kind of network is unknown.
        """
        site = self._sites.site(scenario, seed)
        opening = draw_opening(site.network, scenario, seed, self.config)
        route, weather, start = opening.route, opening.weather, opening.start
        self._site, self._route, self._grip = site, route, weather.grip
        self._course = Course(route)
        self._vehicle.place(start.x_m, start.y_m, start.yaw_rad, start.speed_mps)
        self._distance_m = route.project(self._vehicle.x_m, self._vehicle.y_m, 0.0).distance_m
        ego = self._ego()
        self._traffic = Traffic(
            site.paths, scenario.npcs, ego, self.control_period_s, opening.traffic_rng
        )
        self._camera.begin(site.raster, weather, opening.camera_rng)
        self._frame_id = 0
        self._off_line, self._lane_yaw = [0, 0], float(route.yaw_rad[0])
        self._wheels = self._front_wheels()
        unplaced = self._traffic.unplaced
        crowded = f"{unplaced} of {scenario.npcs} vehicles found no room on {site.network.name}"
        self.notices = (*site.notices, crowded) if unplaced else site.notices
        return WorldStart(
            route=route, frame=self._frame(ego), town=site.network.name, weather=weather.name
        )

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Drive for one control period; see `World.step`.

        Raises:
            WorldError: No episode is running, or the action is not two finite numbers.
        """
        self._current()
        values = action.tolist()
        if len(values) != 2 or not all(map(math.isfinite, values)):
            raise WorldError(
                f"action is {values}, expected two finite numbers (steer, throttle or brake); "
                "check the driver"
            )
        vehicle = self._vehicle
        vehicle.advance(values[0], values[1], self._grip)
        at = self._route.project(vehicle.x_m, vehicle.y_m, self._distance_m)
        self._distance_m = at.distance_m
        ego = self._ego()
        self._traffic.advance(ego)
        self._frame_id += 1
        return self._frame(ego)

    def _ego(self) -> Ego:
        vehicle, params = self._vehicle, self.config.vehicle
        return Ego(
            vehicle.x_m,
            vehicle.y_m,
            vehicle.yaw_rad,
            vehicle.speed_mps,
            params.length_m,
            params.width_m,
            self._course,
            self._distance_m,
        )

    def _frame(self, ego: Ego) -> WorldFrame:
        vehicle, traffic = self._vehicle, self._traffic
        around = look_around(ego, traffic)
        gap, speed = lead_on_route(ego, traffic, around)
        raster = self._current().raster
        stands = footing(raster, vehicle.x_m, vehicle.y_m, vehicle.yaw_rad)
        if stands.lane_yaw_rad is not None:
            self._lane_yaw = stands.lane_yaw_rad
        return WorldFrame(
            frame_id=self._frame_id,
            sim_time_s=self._frame_id * self.control_period_s,
            image=self._camera.render(
                vehicle.x_m, vehicle.y_m, vehicle.yaw_rad, self._boxes(around)
            ),
            vehicle=vehicle.state(),
            collision="vehicle" if hits_vehicle(ego, traffic, around) else "",
            off_road=stands.off_road,
            wrong_way=stands.wrong_way,
            lane_invasions=self._lane_invasions(),
            lead_gap_m=gap,
            lead_speed_mps=speed,
        )

    def _boxes(self, around: Nearby) -> list[Box]:
        """The vehicles that the camera may see."""
        looks = self._traffic.looks
        return [
            Box(at.real, at.imag, math.atan2(heading.imag, heading.real), *looks[number])
            for number, at, heading in zip(around.numbers, around.at, around.heading, strict=True)
            if at.real > -1.0 and abs(at.imag) < 1.2 * at.real + 5.0
        ]

    def _front_wheels(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Positions of the left and of the right front wheel."""
        vehicle, params = self._vehicle, self.config.vehicle
        forward, right = 0.5 * params.wheelbase_m, 0.5 * params.track_m
        cos_yaw, sin_yaw = math.cos(vehicle.yaw_rad), math.sin(vehicle.yaw_rad)
        x, y = vehicle.x_m + forward * cos_yaw, vehicle.y_m + forward * sin_yaw
        across_x, across_y = -right * sin_yaw, right * cos_yaw
        return (x - across_x, y - across_y), (x + across_x, y + across_y)

    def _lane_invasions(self) -> int:
        """Count the front wheels that came onto a line; the rear ones follow them."""
        raster, count, wheels = self._current().raster, 0, self._front_wheels()
        sin_lane, cos_lane = math.sin(self._lane_yaw), math.cos(self._lane_yaw)
        for side, ((old_x, old_y), (x, y)) in enumerate(zip(self._wheels, wheels, strict=True)):
            # A fast wheel may step over a line: look at as many places as lines would fit between.
            across = (y - old_y) * cos_lane - (x - old_x) * sin_lane
            places = int(abs(across) / _LINE_M) + 1
            on_line = raster.ground_at(x, y) >= GAP or any(
                raster.ground_at(x + (old_x - x) * place / places, y + (old_y - y) * place / places)
                >= GAP
                for place in range(1, places)
            )
            if on_line:
                count += self._off_line[side] >= _OFF_LINE_FRAMES
                self._off_line[side] = 0
            else:
                self._off_line[side] += 1
        self._wheels = wheels
        return count

    def surroundings(self) -> Surroundings:
        """What lies around the car; see `World.surroundings`."""
        lanes, traffic = self._current().network.lanes, self._traffic
        at, heading = traffic.at[traffic.placed], traffic.heading[traffic.placed]
        others = np.stack([at.real, at.imag, np.angle(heading)], axis=1)
        return Surroundings(lanes=tuple(lane.points for lane in lanes), others=others)

    def close(self) -> None:
        """Forget the networks; safe to call twice."""
        self._site = None
        self._sites.clear()
