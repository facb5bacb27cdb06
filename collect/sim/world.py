"""`RoadWorld`: the built-in simulator, which drives a `Vehicle` on roads without a server or a GPU.

Roads are lanes of carla.Map. A step takes half a millisecond with 20 vehicles, most of it for the
picture. All random values come from one generator per episode: the same scenario and seed give the
same bytes, whatever ran before.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number, check_positive
from avtd3.collect.driving.world import (
    Surroundings,
    VehicleState,
    WorldFrame,
    WorldStart,
    action_values,
)
from avtd3.collect.maps.contact import (
    Course,
    Ego,
    find_nearby,
    ground_contact,
    hits_vehicle,
    lead_on_route,
)
from avtd3.collect.maps.episode_setup import FrontCamera, SimulatorConfig, draw_network, draw_setup
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import flatten, read_opendrive
from avtd3.collect.maps.raster import GAP, Raster
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import GENERATED, Scenario
from avtd3.collect.sim.camera import CameraConfig
from avtd3.collect.sim.scene import Scene, SceneCameras, random_state
from avtd3.collect.sim.streams import StreamCamera, route_steps
from avtd3.collect.sim.traffic import LanePaths, Traffic
from avtd3.store.errors import RoadError, WorldError, check_integers
from avtd3.store.files import sha256
from avtd3.store.world_record import WorldRecord

GRAVITY_MPS2 = 9.81
AIR_DENSITY = 1.2
_KINEMATIC_BELOW_MPS, _DYNAMIC_ABOVE_MPS = 1.5, 3.5
# Traction and brake control use at most this share of the friction, so that the car still steers.
_LONGITUDINAL_SHARE = 0.95
_CRAWL_MPS = 3.0
_LINE_M = 0.15
# A wheel on a line counts again only after this many frames off it: wheels often graze lines.
_OFF_LINE_FRAMES = 5
BARE_ROAD = "avtd3.collect.sim.world:BareRoad"
"""Its name for ``--world``."""
_LANE_M, _PAVED_M = 3.5, 6.0
_SWING_M, _BEND_M, _START_MPS = 4.0, 15.0, 5.0
_GRASS, _ASPHALT, _PAINT, _SKY = 120, 70, 230, 190


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VehicleParams:
    """Parameters of a car; the defaults are a middle-class sedan with front-wheel drive."""

    length_m: float = 4.6
    """Length of the body."""
    width_m: float = 1.85
    """Width of the body."""
    wheelbase_m: float = 2.7
    """Distance between the axles; the centre of mass is in the middle."""
    track_m: float = 1.6
    """Distance between the wheels of an axle."""
    mass_kg: float = 1500.0
    """Mass with the driver."""
    yaw_inertia_kgm2: float = 2500.0
    """Moment of inertia about the vertical axis."""
    mass_height_m: float = 0.55
    """Height of the centre of mass; braking shifts load to the front axle in proportion."""
    front_stiffness_n: float = 90_000.0
    """Cornering stiffness of the front axle, in N per rad of slip."""
    rear_stiffness_n: float = 105_000.0
    """Cornering stiffness of the rear axle; above the front's, so that the car understeers."""
    friction: float = 0.95
    """Coefficient of friction of the tyres on dry asphalt."""
    front_grip: float = 0.88
    """Share of its grip that the front axle can use sideways; below 1 the car understeers, not
    spins."""
    max_wheel_angle_rad: float = 0.45
    """Angle of the front wheels at steer 1; the turning radius is 5.6 m at the rear axle."""
    wheel_rate_radps: float = 1.2
    """Maximum rate of change of the angle of the front wheels."""
    power_w: float = 90_000.0
    """Engine power at the wheels."""
    drive_force_n: float = 6000.0
    """Maximum driving force (at low speed, where power does not limit it)."""
    brake_force_n: float = 13_000.0
    """Braking force at full brake, limited by friction."""
    drag_area_m2: float = 0.65
    """Drag coefficient times frontal area."""
    rolling_resistance: float = 0.013
    """Rolling resistance as a share of the weight."""
    substeps: int = 4
    """Integration steps per control period."""

    def __post_init__(self) -> None:
        check_integers(self, "vehicle.")
        for field in dataclasses.fields(self):
            check_positive(f"vehicle.{field.name}", getattr(self, field.name))
        check_number("vehicle.substeps", self.substeps, minimum=1, maximum=1000)
        check_number("vehicle.max_wheel_angle_rad", self.max_wheel_angle_rad, maximum=1.2)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoadConfig(SimulatorConfig):
    """The built-in simulator: its camera, its car, and the resolution of the roads.

    Example:
        >>> RoadConfig(camera=CameraConfig(height=64, width=96)).camera.width
        96
    """

    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    """The front camera."""
    streams: Mapping[str, StreamCamera] = dataclasses.field(default_factory=dict)
    """Named streams, such as ``{rgb: {kind: rgb, height: 144, width: 256}}``, see docs/streams.md.
    With any, the dataset has format 2 and only these streams, and `camera` is not used."""
    vehicle: VehicleParams = dataclasses.field(default_factory=VehicleParams)
    """The driven car."""
    pixel_m: float = 0.1
    """Side of a pixel of the painted ground."""
    cached_networks: int = 32
    """Number of networks kept in memory; each takes 5 to 10 MB."""

    def __post_init__(self) -> None:
        check_integers(self, "road.")
        self.check("road")
        check_number("road.pixel_m", self.pixel_m, minimum=0.05, maximum=0.5)
        check_number("road.cached_networks", self.cached_networks, minimum=1, maximum=10_000)


class PreparedMap(NamedTuple):
    """A road network with everything that is prepared once for driving on it."""

    text: str
    """Its OpenDRIVE text."""
    digest: str
    """SHA-256 of the text."""
    network: RoadNetwork
    raster: Raster
    paths: LanePaths
    notices: tuple[str, ...]


def _prepare_map(pixel_m: float, name: str, kind: str, number: int) -> PreparedMap:
    """Prepare a generated network, or an .xodr file whose path is the name, without a kind."""
    notices: tuple[str, ...] = ()
    if kind:
        # Imported here: importing scenariogeneration takes a second; .xodr files need none.
        from avtd3.collect.maps.generate import generate_network

        xodr = generate_network(kind, number)
    else:
        path = Path(name)
        if not path.suffix and not os.path.exists(path):  # noqa: PTH110 - never raises
            raise RoadError(
                f"the built-in simulator has no map {name!r}, expected the path of an .xodr file; "
                f"put {name}.xodr beside the scenario file, or drive in CARLA (--world carla)"
            )
        xodr, changed = flatten(read_opendrive(name))
        name = os.fsencode(path.stem).decode("utf-8", "backslashreplace")
        flat = f"road {name}: hills and banking were removed; the built-in simulator is flat"
        notices = (flat,) if changed else ()
    network = RoadNetwork.from_opendrive(name, xodr, is_trusted=bool(kind))
    raster = Raster.paint(network, pixel_m)
    return PreparedMap(xodr, sha256(xodr.encode()), network, raster, LanePaths(network), notices)


class Vehicle:
    """A dynamic bicycle model with tyre limits: the state of the car and its motion.

    Lateral and yaw motion follow Rajamani (2012), *Vehicle Dynamics and Control*, chapter 2, in
    CARLA's frame (y to the right, yaw clockwise), where the equations keep their form. Tyres follow
    Pacejka (2012), *Tire and Vehicle Dynamics*, the magic formula with C = 1 and E = 0: ``Fy = D
    sin(atan(B alpha))``, with what the friction ellipse leaves after the longitudinal force: ``D =
    sqrt((mu Fz)^2 - Fx^2)``. Slip angles are not meaningful near standstill; there the model blends
    into the kinematic bicycle. Plain floats take a tenth of the time of numpy scalars.

    Attributes are in SI units, at the centre of mass, which is the centre of the body: `x_m`,
    `y_m`, `yaw_rad`, `speed_mps` along the axis, `side_speed_mps` across it (positive to the
    right), `yaw_rate_radps`, and `wheel_rad`, the angle of the front wheels.
    """

    def __init__(self, params: VehicleParams, control_period_s: float) -> None:
        self.params = params
        self._period_s = control_period_s
        self.place(0.0, 0.0, 0.0, 0.0)

    def place(self, x_m: float, y_m: float, yaw_rad: float, speed_mps: float) -> None:
        """Set the position of the car; it rolls straight ahead."""
        self.x_m, self.y_m, self.yaw_rad, self.speed_mps = x_m, y_m, yaw_rad, speed_mps
        self.side_speed_mps = self.yaw_rate_radps = self.wheel_rad = 0.0
        self.acceleration_mps2 = self.lateral_acceleration_mps2 = 0.0

    def advance(self, steer: float, pedal: float, grip: float = 1.0) -> None:
        """Drive for one control period.

        `steer` (positive to the right) and `pedal` (throttle above 0, brake below) are clipped to
        [-1, 1]; the brake never drives the car backwards. `grip` is a factor on the friction.
        """
        params = self.params
        step_s = self._period_s / params.substeps
        target = min(max(steer, -1.0), 1.0) * params.max_wheel_angle_rad
        turn = params.wheel_rate_radps * step_s
        forces = self._forces(min(max(pedal, -1.0), 1.0), params.friction * grip)
        before = self.speed_mps
        for _ in range(params.substeps):
            gap = target - self.wheel_rad
            self.wheel_rad += gap if -turn <= gap <= turn else math.copysign(turn, gap)
            self._substep(forces, step_s)
        self.acceleration_mps2 = (self.speed_mps - before) / self._period_s

    def _forces(self, pedal: float, friction: float) -> tuple[float, float, float, float]:
        """Return forces in N: drive, resistances, and the lateral limits of front and rear axle."""
        p, speed = self.params, abs(self.speed_mps)
        weight = p.mass_kg * GRAVITY_MPS2
        shift = p.mass_kg * self.acceleration_mps2 * p.mass_height_m / p.wheelbase_m
        front = friction * min(max(0.5 * weight - shift, 0.1 * weight), 0.9 * weight)
        total = friction * weight
        drive = min(p.drive_force_n, p.power_w / max(speed, _CRAWL_MPS)) * max(pedal, 0.0)
        drive = min(drive, _LONGITUDINAL_SHARE * front)
        # The brakes distribute their force over the axles by load, as brake controllers do.
        brake = min(p.brake_force_n * max(-pedal, 0.0), _LONGITUDINAL_SHARE * total)
        left = math.sqrt(1.0 - (brake / total) ** 2)
        front_left = math.sqrt(front * front - drive * drive) if drive > 0.0 else front * left
        drag = 0.5 * AIR_DENSITY * p.drag_area_m2 * speed * speed
        resistance = brake + drag + p.rolling_resistance * weight
        return drive, resistance, front_left * p.front_grip, (total - front) * left

    def _substep(self, forces: tuple[float, float, float, float], step_s: float) -> None:
        p = self.params
        drive, resistance, front_limit, rear_limit = forces
        vx, vy, rate = self.speed_mps, self.side_speed_mps, self.yaw_rate_radps
        delta = self.wheel_rad
        half, mass = 0.5 * p.wheelbase_m, p.mass_kg
        sin_delta, cos_delta = math.sin(delta), math.cos(delta)
        ahead = max(abs(vx), 0.1)
        steered = delta if vx >= 0.0 else -delta
        # Pacejka's formula: limit * sin(atan(force / limit)) = force / sqrt(1 + (force / limit)^2).
        linear = p.front_stiffness_n * (steered - math.atan2(vy + half * rate, ahead))
        front = linear / math.sqrt(1.0 + (linear / front_limit) ** 2)
        linear = -p.rear_stiffness_n * math.atan2(vy - half * rate, ahead)
        rear = linear / math.sqrt(1.0 + (linear / rear_limit) ** 2)

        front_across = front * cos_delta + drive * sin_delta
        across = (front_across + rear) / mass
        # The axes turn with the car. To second order: otherwise a spin would gain energy.
        turn = rate * step_s
        stay = 1.0 - 0.5 * turn * turn
        along = stay * vx + turn * vy + (drive * cos_delta - front * sin_delta) / mass * step_s
        # Resistances act against the motion; they can stop it but not reverse it.
        new_vx = math.copysign(max(abs(along) - resistance / mass * step_s, 0.0), along)
        new_vy = stay * vy - turn * vx + across * step_s
        new_rate = rate + half * (front_across - rear) / p.yaw_inertia_kgm2 * step_s

        if (rolling := math.hypot(new_vx, new_vy)) < _DYNAMIC_ABOVE_MPS:
            share = (rolling - _KINEMATIC_BELOW_MPS) / (_DYNAMIC_ABOVE_MPS - _KINEMATIC_BELOW_MPS)
            share = max(share, 0.0)
            kinematic = new_vx * sin_delta / cos_delta / p.wheelbase_m
            new_rate = share * new_rate + (1.0 - share) * kinematic
            new_vy = share * new_vy + (1.0 - share) * kinematic * half
            across = share * across + (1.0 - share) * new_vx * kinematic
        self.lateral_acceleration_mps2 = across

        middle = self.yaw_rad + 0.5 * new_rate * step_s
        cos_yaw, sin_yaw = math.cos(middle), math.sin(middle)
        self.x_m += (new_vx * cos_yaw - new_vy * sin_yaw) * step_s
        self.y_m += (new_vx * sin_yaw + new_vy * cos_yaw) * step_s
        self.yaw_rad = math.remainder(self.yaw_rad + new_rate * step_s, math.tau)
        self.speed_mps, self.side_speed_mps, self.yaw_rate_radps = new_vx, new_vy, new_rate

    def state(self) -> VehicleState:
        """Return the state of the car for the rest of the collector."""
        return VehicleState(
            x_m=self.x_m,
            y_m=self.y_m,
            yaw_rad=self.yaw_rad,
            speed_mps=self.speed_mps,
            acceleration_mps2=self.acceleration_mps2,
            lateral_acceleration_mps2=self.lateral_acceleration_mps2,
            steer=self.wheel_rad / self.params.max_wheel_angle_rad,
        )


class RoadWorld:
    """The built-in simulator: a `World` on generated or given OpenDRIVE roads.

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
        prepare = functools.partial(_prepare_map, config.pixel_m)
        self._prepared = functools.lru_cache(config.cached_networks)(prepare)
        self._cameras = SceneCameras()
        self.image_shape = (1, config.camera.height, config.camera.width)
        self.streams = {n: config.streams[n].image for n in sorted(config.streams)}
        """The named streams of its frames; none if they have only an image."""
        self._vehicle = Vehicle(config.vehicle, config.control_period_s)
        self._map: PreparedMap | None = None
        self._cars: list[tuple[float, float, float]] = []
        self._others: list[NDArray[np.int64]] = []

    def _current(self) -> PreparedMap:
        if self._map is None:
            raise WorldError("the simulator has no running episode; call reset() first")
        return self._map

    def prepare_map(self, scenario: Scenario, seed: int) -> PreparedMap:
        """Return the map of an episode, perhaps one that was prepared before."""
        if scenario.town != GENERATED:
            return self._prepared(scenario.xodr or scenario.town, "", 0)
        kind, number = draw_network(scenario, seed)
        return self._prepared(f"{kind}-{number:06d}", kind, number)

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Start an episode; see `World.reset`."""
        prepared = self.prepare_map(scenario, seed)
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
        self._scene = Scene(
            map=prepared.digest,
            pixel_m=self.config.pixel_m,
            camera=self.config.camera,
            weather=weather,
            random=random_state(setup.camera_rng),
            actors=self._traffic.shapes,
            streams={name: self.config.streams[name] for name in self.streams},
            route=route_steps(route.points),
        )
        self._cars, self._others = [], []
        self._cameras.reset(self._scene, prepared.raster)
        self._frame_id = 0
        self._off_line, self._lane_yaw_rad = [0, 0], float(route.yaw_rad[0])
        self._wheels = self._front_wheels()
        town, self.notices = prepared.network.name, prepared.notices
        if unplaced := self._traffic.unplaced:
            crowded = f"{unplaced} of {scenario.npcs} vehicles found no room on {town}"
            self.notices = (*prepared.notices, crowded)
        return WorldStart(route=route, frame=self._frame(ego), town=town, weather=weather.name)

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Drive for one control period; see `World.step`."""
        self._current()
        vehicle = self._vehicle
        vehicle.advance(*action_values(action), self._grip)
        at = self._route.project(vehicle.x_m, vehicle.y_m, self._distance_m)
        self._distance_m = at.distance_m
        ego = self._ego()
        self._traffic.advance(ego)
        self._frame_id += 1
        return self._frame(ego)

    def _ego(self) -> Ego:
        vehicle, params = self._vehicle, self.config.vehicle
        place = (vehicle.x_m, vehicle.y_m, vehicle.yaw_rad, vehicle.speed_mps)
        return Ego(*place, params.length_m, params.width_m, self._course, self._distance_m)

    def _frame(self, ego: Ego) -> WorldFrame:
        vehicle, traffic = self._vehicle, self._traffic
        around = find_nearby(ego, traffic)
        gap, speed = lead_on_route(ego, traffic, around)
        raster = self._current().raster
        contact = ground_contact(raster, vehicle.x_m, vehicle.y_m, vehicle.yaw_rad)
        if contact.lane_yaw_rad is not None:
            self._lane_yaw_rad = contact.lane_yaw_rad
        # Record what the pictures show, and draw them from what is recorded.
        car = (ego.x_m, ego.y_m, ego.yaw_rad)
        self._cars.append(car)
        self._others.append(traffic.poses)
        pictures = self._cameras.draw(car, traffic.poses, traffic.shapes, around.numbers)
        return WorldFrame(
            frame_id=self._frame_id,
            sim_time_s=self._frame_id * self.control_period_s,
            image=next(iter(pictures.values())),
            streams=pictures if self.streams else None,
            vehicle=vehicle.state(),
            collision="vehicle" if hits_vehicle(ego, traffic, around) else "",
            off_road=contact.off_road,
            wrong_way=contact.wrong_way,
            lane_invasions=self._lane_invasions(),
            lead_gap_m=gap,
            lead_speed_mps=speed,
        )

    def world_record(self) -> WorldRecord:
        """Return the state in each observation of the episode so far."""
        prepared = self._current()
        return WorldRecord(
            setup=self._scene.setup(),
            ego=np.array(self._cars),
            # np.stack takes ten times as long.
            actors=np.concatenate(self._others).reshape(len(self._others), self._traffic.count, 3),
            map_text=prepared.text,
        )

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
        """Release the networks."""
        self._map = None
        self._prepared.cache_clear()


class BareRoad:
    """One winding road without junctions or traffic: a `World` that needs no package carla.

    `avtd3 demo --quick` drives here where `RoadWorld` cannot run. The road is a sine curve, whose
    phase the seed sets.

    Example:
        >>> from avtd3.collect.maps.scenarios import scenario
        >>> BareRoad().reset(scenario(1), seed=2).route.length_m > 200
        True
    """

    name = "bare road"
    control_period_s = 0.05

    def __init__(self) -> None:
        camera = FrontCamera()
        self.image_shape = (1, camera.height, camera.width)
        self._vehicle = Vehicle(VehicleParams(), self.control_period_s)
        self._right_m, self._ahead_m = _ground_rays(camera)

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Start an episode; see `World.reset`."""
        self._phase = np.random.default_rng(seed).uniform(0.0, math.tau)
        x_m = np.arange(0.0, scenario.route_length_m + 1.0)
        points = np.stack([x_m, self._middle_m(x_m)], axis=1)
        route = Route(points=points, lane_width_m=np.array(_LANE_M))
        self._vehicle.place(0.0, float(points[0, 1]), float(route.yaw_rad[0]), _START_MPS)
        self._steps = 0
        return WorldStart(route=route, frame=self._frame(), town="bare road", weather="clear")

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Drive for one control period; see `World.step`."""
        self._vehicle.advance(*action_values(action))
        self._steps += 1
        return self._frame()

    def _middle_m(self, x_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return y of the middle of the lane at some x."""
        return _SWING_M * np.sin(x_m / _BEND_M + self._phase)

    def _frame(self) -> WorldFrame:
        car = self._vehicle
        aside_m = car.y_m - float(self._middle_m(np.array(car.x_m)))
        return WorldFrame(
            frame_id=self._steps,
            sim_time_s=self._steps * self.control_period_s,
            image=self._picture(),
            vehicle=car.state(),
            off_road=abs(aside_m) > _PAVED_M / 2.0,
        )

    def _picture(self) -> NDArray[np.uint8]:
        """Return the picture uint8 (1, H, W) from the pose of the car."""
        car, ahead, right = self._vehicle, self._ahead_m, self._right_m
        cos, sin = math.cos(car.yaw_rad), math.sin(car.yaw_rad)
        x_m = car.x_m + cos * ahead - sin * right
        aside_m = np.abs(car.y_m + sin * ahead + cos * right - self._middle_m(x_m))
        grey = np.where(aside_m < _PAVED_M / 2.0, _ASPHALT, _GRASS)
        grey[np.abs(aside_m - _LANE_M / 2.0) < 0.1] = _PAINT
        grey[np.isnan(ahead)] = _SKY
        return grey.astype(np.uint8)[None]


def _ground_rays(camera: FrontCamera) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the ray of each pixel meets the ground, in metres to the right and ahead.

    Both are float64 (H, W); NaN where the ray meets the sky.
    """
    pitch = math.radians(camera.pitch_deg)
    size_px = camera.width / (2.0 * math.tan(math.radians(camera.field_of_view_deg / 2.0)))
    down, right = np.mgrid[: camera.height, : camera.width] + 0.5
    down, right = down - camera.height / 2.0, right - camera.width / 2.0
    fall = size_px * math.sin(pitch) + down * math.cos(pitch)
    reach = camera.height_m / np.where(fall > 0.0, fall, np.nan)
    ahead = size_px * math.cos(pitch) - down * math.sin(pitch)
    return right * reach, camera.forward_m + ahead * reach
