"""`RoadWorld`: the built-in simulator, which drives on roads without a server or a GPU.

Roads are lanes of carla.Map. A step takes half a millisecond with 20 vehicles, most of it for the
picture. All random values come from one generator per episode: the same scenario and seed give the
same bytes, whatever ran before.
"""

import collections
import dataclasses
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number
from avtd3.collect.driving.world import Surroundings, WorldFrame, WorldStart
from avtd3.collect.maps.contact import (
    Course,
    Ego,
    Nearby,
    find_nearby,
    ground_contact,
    hits_vehicle,
    lead_on_route,
)
from avtd3.collect.maps.episode_setup import SimulatorConfig, draw_network, draw_setup
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import flatten, read_opendrive
from avtd3.collect.maps.raster import GAP, Raster
from avtd3.collect.maps.scenarios import GENERATED, Scenario
from avtd3.collect.sim.boxes import Box
from avtd3.collect.sim.camera import Camera, CameraConfig
from avtd3.collect.sim.lane_paths import LanePaths
from avtd3.collect.sim.traffic import Traffic
from avtd3.collect.sim.vehicle import Vehicle, VehicleParams
from avtd3.store.errors import RoadError, WorldError

_LINE_M = 0.15
# A wheel on a line counts again only after this many frames off it: wheels often graze lines.
_OFF_LINE_FRAMES = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoadConfig(SimulatorConfig):
    """The built-in simulator: its camera, its car, and the resolution of the roads."""

    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    """The front camera."""
    vehicle: VehicleParams = dataclasses.field(default_factory=VehicleParams)
    """The driven car."""
    pixel_m: float = 0.1
    """Side of a pixel of the painted ground."""
    cached_networks: int = 32
    """Number of networks kept in memory; each takes 5 to 10 MB."""

    def __post_init__(self) -> None:
        self.check("road")
        check_number("road.pixel_m", self.pixel_m, minimum=0.05, maximum=0.5)
        check_number("road.cached_networks", self.cached_networks, minimum=1, maximum=10_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreparedMap:
    """A road network with everything that is prepared once for driving on it."""

    network: RoadNetwork
    """The lanes."""
    raster: Raster
    """The ground that the camera sees and the wheels touch."""
    paths: LanePaths
    """The paths of the traffic."""
    notices: tuple[str, ...]
    """Remarks about the network for the user, in sentences."""


class PreparedMapCache:
    """The maps used last, by the name that scenario and seed give them.

    Args:
        capacity: Number of maps that are kept.
        pixel_m: Side of a fine pixel of the rasters, in metres.
    """

    def __init__(self, capacity: int, pixel_m: float) -> None:
        self._capacity, self._pixel_m = capacity, pixel_m
        self._maps: collections.OrderedDict[str, PreparedMap] = collections.OrderedDict()

    def get(self, scenario: Scenario, seed: int) -> PreparedMap:
        """Return the map of an episode; build it if it is not cached.

        Raises:
            RoadError: The scenario's town is an .xodr file that cannot be used.
            ConfigError: A kind of network of the scenario is unknown.
        """
        kind, number = "", 0
        name = scenario.xodr or scenario.town
        if scenario.town == GENERATED:
            kind, number = draw_network(scenario, seed)
            name = f"{kind}-{number:06d}"
        if name not in self._maps:
            self._maps[name] = self._build(name, kind, number)
            if len(self._maps) > self._capacity:
                self._maps.popitem(last=False)
        self._maps.move_to_end(name)
        return self._maps[name]

    def _build(self, name: str, kind: str, number: int) -> PreparedMap:
        notices: tuple[str, ...] = ()
        if kind:
            # Imported here: importing scenariogeneration takes a second; .xodr files need none.
            from avtd3.collect.maps.generate import generate_network

            xodr = generate_network(kind, number)
        else:
            _check_town(name)
            xodr, changed = flatten(read_opendrive(name))
            name = Path(name).stem
            if changed:
                notices = (
                    f"road {name}: hills and banking were removed; the built-in simulator is flat",
                )
        network = RoadNetwork.from_opendrive(name, xodr, is_trusted=bool(kind))
        return PreparedMap(
            network=network,
            raster=Raster.paint(network, self._pixel_m),
            paths=LanePaths(network),
            notices=notices,
        )

    def clear(self) -> None:
        """Drop all maps."""
        self._maps.clear()


class RoadWorld:
    """A `World` on generated or given OpenDRIVE roads.

    Attributes:
        name: ``road``.
        control_period_s: Simulated seconds per step.
        image_shape: (1, H, W) of the camera's frames.
        config: The settings.
        notices: Remarks about the roads and the traffic of the running episode.

    Example:
        >>> from avtd3.collect.maps.scenarios import scenario
        >>> world = RoadWorld()
        >>> start = world.reset(scenario(1), seed=2)
        >>> frame = world.step(np.array([0.0, 0.5], np.float32))
        >>> frame.image.shape, frame.sim_time_s
        ((1, 84, 84), 0.05)
    """

    name = "road"

    def __init__(self, config: RoadConfig | None = None) -> None:
        self.config = config = config or RoadConfig()
        self.control_period_s = config.control_period_s
        self.notices: tuple[str, ...] = ()
        self._maps = PreparedMapCache(config.cached_networks, config.pixel_m)
        self._camera = Camera(config.camera)
        self.image_shape = (1, config.camera.height, config.camera.width)
        self._vehicle = Vehicle(config.vehicle, config.control_period_s)
        self._map: PreparedMap | None = None

    @property
    def network(self) -> RoadNetwork:
        """Return the network of the running episode."""
        return self._current().network

    @property
    def vehicles(self) -> Traffic:
        """Return the other vehicles of the running episode."""
        self._current()
        return self._traffic

    def _current(self) -> PreparedMap:
        if self._map is None:
            raise WorldError("the simulator has no running episode; call reset() first")
        return self._map

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Start an episode; see `World.reset`.

        Raises:
            RoadError: The scenario's road network cannot be used.
            ConfigError: The scenario's weather or kind of network is unknown.
        """
        prepared = self._maps.get(scenario, seed)
        setup = draw_setup(prepared.network, scenario, seed, self.config)
        route, weather, start = setup.route, setup.weather, setup.start
        self._map, self._route, self._grip = prepared, route, weather.grip
        self._course = Course(route)
        self._vehicle.place(start.x_m, start.y_m, start.yaw_rad, start.speed_mps)
        self._distance_m = route.project(self._vehicle.x_m, self._vehicle.y_m, 0.0).distance_m
        ego = self._ego()
        self._traffic = Traffic(
            prepared.paths, scenario.npcs, ego, self.control_period_s, setup.traffic_rng
        )
        self._camera.reset(prepared.raster, weather, setup.camera_rng)
        self._frame_id = 0
        self._off_line, self._lane_yaw_rad = [0, 0], float(route.yaw_rad[0])
        self._wheels = self._front_wheels()
        town, self.notices = prepared.network.name, prepared.notices
        if unplaced := self._traffic.unplaced:
            crowded = f"{unplaced} of {scenario.npcs} vehicles found no room on {town}"
            self.notices = (*prepared.notices, crowded)
        return WorldStart(route=route, frame=self._frame(ego), town=town, weather=weather.name)

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
        around = find_nearby(ego, traffic)
        gap, speed = lead_on_route(ego, traffic, around)
        raster = self._current().raster
        contact = ground_contact(raster, vehicle.x_m, vehicle.y_m, vehicle.yaw_rad)
        if contact.lane_yaw_rad is not None:
            self._lane_yaw_rad = contact.lane_yaw_rad
        return WorldFrame(
            frame_id=self._frame_id,
            sim_time_s=self._frame_id * self.control_period_s,
            image=self._camera.render(
                vehicle.x_m, vehicle.y_m, vehicle.yaw_rad, self._boxes(around)
            ),
            vehicle=vehicle.state(),
            collision="vehicle" if hits_vehicle(ego, traffic, around) else "",
            off_road=contact.off_road,
            wrong_way=contact.wrong_way,
            lane_invasions=self._lane_invasions(),
            lead_gap_m=gap,
            lead_speed_mps=speed,
        )

    def _boxes(self, around: Nearby) -> list[Box]:
        """Return the vehicles that the camera may see."""
        shapes = self._traffic.shapes
        return [
            Box(at.real, at.imag, math.atan2(heading.imag, heading.real), *shapes[number])
            for number, at, heading in zip(around.numbers, around.at, around.heading, strict=True)
            if at.real > -1.0 and abs(at.imag) < 1.2 * at.real + 5.0
        ]

    def _front_wheels(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the positions of the left and of the right front wheel."""
        vehicle, params = self._vehicle, self.config.vehicle
        forward, right = 0.5 * params.wheelbase_m, 0.5 * params.track_m
        cos_yaw, sin_yaw = math.cos(vehicle.yaw_rad), math.sin(vehicle.yaw_rad)
        x, y = vehicle.x_m + forward * cos_yaw, vehicle.y_m + forward * sin_yaw
        across_x, across_y = -right * sin_yaw, right * cos_yaw
        return (x - across_x, y - across_y), (x + across_x, y + across_y)

    def _lane_invasions(self) -> int:
        """Count the front wheels that came onto a line; the rear wheels follow them."""
        raster, count, wheels = self._current().raster, 0, self._front_wheels()
        sin_lane, cos_lane = math.sin(self._lane_yaw_rad), math.cos(self._lane_yaw_rad)
        for side, ((old_x, old_y), (x, y)) in enumerate(zip(self._wheels, wheels, strict=True)):
            # A fast wheel may skip a line: check positions at most a line's width apart.
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
        """Return the lanes and vehicles around the car; see `World.surroundings`."""
        lanes, traffic = self._current().network.lanes, self._traffic
        at, heading = traffic.at[traffic.placed], traffic.heading[traffic.placed]
        others = np.stack([at.real, at.imag, np.angle(heading)], axis=1)
        return Surroundings(lanes=tuple(lane.points for lane in lanes), others=others)

    def close(self) -> None:
        """Release the networks; safe to call twice."""
        self._map = None
        self._maps.clear()


def _check_town(town: str) -> None:
    """Raise if a town is the name of a CARLA map, not a file."""
    if not Path(town).suffix and not Path(town).exists():
        raise RoadError(
            f"the built-in simulator has no map {town!r}, expected the path of an .xodr file; put "
            f"{town}.xodr beside the scenario file, or drive in CARLA (--world carla)"
        )
