"""The driven car on a CARLA server: `Car` with its `Motion` and its `Sensors`.

CARLA's own accelerations jump from frame to frame, so `Motion` uses finite differences of the
velocity over the simulated time that has passed. The origin of a CARLA vehicle is on the ground
near its middle; the offset of its bounding box leads to the middle.
"""

import cmath
import collections
import dataclasses
import functools
import math
import queue
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import carla
import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.scene import Body
from avtd3.collect.carla.server import REJECTED, Server
from avtd3.collect.driving.world import VehicleState
from avtd3.collect.maps.episode_setup import FrontCamera, Mounting, Start
from avtd3.store.errors import ConfigError, WorldLost

EGO_ROLE = "hero"
"""Role name of the driven car; the tiles of large maps follow the vehicle with this name."""
_DROP_M = 0.5
"""Height above the road at which a car is spawned; it falls, because it must not touch the
ground."""
_OTHER_LEVEL_M = 2.0
"""Difference between the heights of car and road that only another level explains."""
_BACK_M, _UP_M = 8.0, 5.0
_HOLD = carla.VehicleControl(brake=1.0, hand_brake=True)
_CLOCK_DIGITS = 9  # decimal digits of a second: nanoseconds
_CONTROL_TOLERANCE = 1e-4  # float32, and a steering that the server rounds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Position and velocity of an actor."""

    x_m: float
    """Of the middle of the actor."""
    y_m: float
    """Of the middle of the actor."""
    z_m: float
    """Of its origin, which is on the ground."""
    yaw_rad: float
    """In [-pi, pi], clockwise."""
    velocity: complex
    """In m/s, x + iy in the world."""
    pitch_rad: float = 0.0
    roll_rad: float = 0.0

    @property
    def place(self) -> tuple[float, float, float, float, float, float]:
        """Return x, y, yaw, z, pitch and roll, as they are recorded."""
        return (self.x_m, self.y_m, self.yaw_rad, self.z_m, self.pitch_rad, self.roll_rad)


class Car:
    """The driven vehicle, spawned at a start where the road has a height of `ground_m`.

    `colour` is its attribute ``color``; None for that of the blueprint. `WorldLost` with the reason
    ``spawn_refused`` says that the place is occupied.
    """

    def __init__(
        self, server: Server, start: Start, ground_m: float, colour: str | None = None
    ) -> None:
        self._server, self._ground_m = server, ground_m
        blueprint = self._blueprint()
        if colour and blueprint.has_attribute("color"):
            blueprint.set_attribute("color", colour)
        place = _transform(start, ground_m + _DROP_M)
        try:
            with server.calling("spawn the car"):
                self.actor: carla.Vehicle = server.world.spawn_actor(blueprint, place)
        except WorldLost as error:
            if error.reason != REJECTED:
                raise
            raise WorldLost(
                f"{error}, at ({start.x_m:.1f}, {start.y_m:.1f}); is the place occupied?",
                "spawn_refused",
            ) from error
        with server.calling("measure the car"):
            box = self.actor.bounding_box
        self.ahead_m: float = box.location.x
        """How far its middle is ahead of its origin."""
        self.length_m, self.width_m = 2.0 * box.extent.x, 2.0 * box.extent.y
        self.body = body_of(self.actor, box)
        """What is recorded of it."""
        self._commanded = _HOLD
        server.command(carla.command.ApplyVehicleControl(self.id, _HOLD))

    @property
    def id(self) -> int:
        """Return the id of the actor."""
        return int(self.actor.id)

    def _blueprint(self) -> carla.ActorBlueprint:
        server, name = self._server, self._server.config.vehicle
        with server.calling("list its blueprints"):
            library = server.world.get_blueprint_library()
        if not library.filter(name):
            known = sorted(blueprint.id for blueprint in library.filter("vehicle.*"))
            raise ConfigError(
                f"carla.vehicle is {name!r}, expected a vehicle of CARLA server {server.where}: "
                f"{', '.join(known)}"
            )
        blueprint = library.find(name)
        blueprint.set_attribute("role_name", EGO_ROLE)
        return blueprint

    def set_conditions(self, grip: float, weather: carla.WeatherParameters | None) -> None:
        """Multiply the friction of the tyres by `grip`, and switch the lamps on if necessary.

        CARLA's weather changes neither. `weather` is None if the server's own was kept.
        """
        commands = []
        with self._server.calling("describe the physics of the car"):
            physics = self.actor.get_physics_control()
        wheels = list(physics.wheels)
        for wheel in wheels:
            wheel.tire_friction *= grip
        physics.wheels = wheels
        self._friction = [wheel.tire_friction for wheel in wheels]
        if grip != 1.0:
            commands.append(carla.command.ApplyVehiclePhysicsControl(self.id, physics))
        if weather is not None and _needs_lamps(weather):
            lights = carla.VehicleLightState
            lamps = carla.VehicleLightState(lights.Position | lights.LowBeam)
            commands.append(carla.command.SetVehicleLightState(self.id, lamps))
        self._server.command(*commands)

    def grip_problem(self) -> str:
        """Return what differs from the friction that `set_conditions` set, or an empty string."""
        with self._server.calling("describe the physics of the car"):
            wheels = self.actor.get_physics_control().wheels
        found = [round(wheel.tire_friction, 3) for wheel in wheels]
        if np.allclose(found, self._friction, rtol=0.01):
            return ""
        expected = [round(friction, 3) for friction in self._friction]
        return f"the tyres have a friction of {found}, expected {expected}: the server ignored it"

    def place(self, start: Start, snapshot: carla.WorldSnapshot) -> None:
        """Move the car, which has settled, exactly to its start; raise if it is not on the road."""
        found = self.find(snapshot).get_transform()
        if not abs(found.location.z - self._ground_m) < _OTHER_LEVEL_M:
            raise WorldLost(
                f"CARLA server {self._server.where} has the car at a height of "
                f"{found.location.z:.1f} m, expected the road's {self._ground_m:.1f} m: the ground "
                "is missing there, or differs from the map's OpenDRIVE text; choose other routes",
                REJECTED,
            )
        place = _transform(start, found.location.z, self.ahead_m)
        place.rotation.pitch, place.rotation.roll = found.rotation.pitch, found.rotation.roll
        self._server.command(carla.command.ApplyTransform(self.id, place))

    def drive(self, steer: float, pedal: float, rolls_at: complex | None = None) -> None:
        """Set the control from the next tick on; return when the server has it.

        Steering and pedal (throttle above 0, brake below) are clipped to [-1, 1]. `rolls_at` is a
        velocity to set, x + iy in m/s.
        """
        self._commanded = carla.VehicleControl(
            throttle=min(max(pedal, 0.0), 1.0),
            steer=min(max(steer, -1.0), 1.0),
            brake=min(max(-pedal, 0.0), 1.0),
        )
        commands = [carla.command.ApplyVehicleControl(self.id, self._commanded)]
        if rolls_at is not None:
            velocity = carla.Vector3D(rolls_at.real, rolls_at.imag, 0.0)
            commands.append(carla.command.ApplyTargetVelocity(self.id, velocity))
        self._server.command(*commands)

    def has_other_control(self) -> bool:
        """Return whether the newest frame was driven with another control than commanded."""
        found, wanted = self.actor.get_control(), self._commanded  # no call: the last snapshot
        return not (
            abs(found.steer - wanted.steer) < _CONTROL_TOLERANCE
            and abs(found.throttle - wanted.throttle) < _CONTROL_TOLERANCE
            and abs(found.brake - wanted.brake) < _CONTROL_TOLERANCE
            and found.hand_brake == wanted.hand_brake
            and not found.reverse
        )

    def find(self, snapshot: carla.WorldSnapshot) -> carla.ActorSnapshot:
        """Return the car in a snapshot."""
        found = snapshot.find(self.actor.id)
        if found is None:
            raise WorldLost(
                f"CARLA server {self._server.where} has no car (actor {self.actor.id}) in frame "
                f"{snapshot.frame}: another client removed it or changed the map; use a separate "
                "server for each client"
            )
        return found

    def pose(self, snapshot: carla.WorldSnapshot) -> Pose:
        """Return the pose of the car in a snapshot."""
        pose = pose_of(self.find(snapshot), self.ahead_m)
        values = (pose.x_m, pose.y_m, pose.z_m, pose.yaw_rad, pose.velocity)
        if not all(map(cmath.isfinite, values)):
            raise WorldLost(
                f"CARLA server {self._server.where} reports the car at {values}, expected finite "
                "numbers; restart the server if this happens again",
                REJECTED,
            )
        return pose


def spawn_car(server: Server, places: Iterable[tuple[Start, float]]) -> tuple[Car, int]:
    """Spawn the car at the first place that is free, of starts with their heights; return which."""
    refused: WorldLost | None = None
    for number, (start, ground_m) in enumerate(places):
        try:
            return Car(server, start, ground_m), number
        except WorldLost as error:
            if error.reason != "spawn_refused":
                raise
            refused = error
    assert refused is not None, "there is at least one place"
    raise refused


class Motion:
    """The state of the car within one episode, from a pose and the simulated time there."""

    def __init__(self, pose: Pose, at_s: float) -> None:
        self._pose, self._at_s = pose, at_s
        self.state = _state(pose, 0.0, 0.0, 0.0)
        """The newest state; the first has no acceleration."""

    def update(self, pose: Pose, at_s: float, steer: float) -> VehicleState:
        """Return the state at the next frame, with the steering in force in [-1, 1]."""
        # The last digits depend on how long the clock has run: round, so that the same drive
        # always gives the same state.
        passed_s, before = round(at_s - self._at_s, _CLOCK_DIGITS), self._pose
        along = across = 0.0
        if passed_s > 0.0:
            along = (_relative(pose, pose.velocity).real - self.state.speed_mps) / passed_s
            across = _relative(pose, pose.velocity - before.velocity).imag / passed_s
        self._pose, self._at_s = pose, at_s
        self.state = _state(pose, along, across, steer)
        return self.state


def pose_of(actor: "carla.ActorSnapshot", ahead_m: float = 0.0) -> Pose:
    """Return the pose of an actor whose middle is `ahead_m` ahead of its origin."""
    transform, velocity = actor.get_transform(), actor.get_velocity()
    place, turn = transform.location, transform.rotation
    yaw = math.radians(turn.yaw) if math.isfinite(turn.yaw) else math.nan
    return Pose(
        x_m=place.x + ahead_m * math.cos(yaw),
        y_m=place.y + ahead_m * math.sin(yaw),
        z_m=place.z,
        yaw_rad=math.remainder(yaw, math.tau),
        velocity=complex(velocity.x, velocity.y),
        pitch_rad=math.radians(turn.pitch),
        roll_rad=math.radians(turn.roll),
    )


def body_of(actor: carla.Actor, box: "carla.BoundingBox") -> Body:
    """Return what is recorded of a vehicle or walker."""
    return Body(
        kind=actor.type_id,
        colour=actor.attributes.get("color", ""),
        length_m=2.0 * box.extent.x,
        width_m=2.0 * box.extent.y,
        height_m=2.0 * box.extent.z,
        ahead_m=box.location.x,
    )


def move_spectator(spectator: carla.Actor, pose: Pose) -> None:
    """Move the server's own view behind and above the car."""
    behind = complex(pose.x_m, pose.y_m) - cmath.rect(_BACK_M, pose.yaw_rad)
    place = carla.Location(behind.real, behind.imag, pose.z_m + _UP_M)
    turn = carla.Rotation(pitch=-20.0, yaw=math.degrees(pose.yaw_rad))
    spectator.set_transform(carla.Transform(place, turn))


def _needs_lamps(weather: carla.WeatherParameters) -> bool:
    return bool(weather.sun_altitude_angle < 12.0 or weather.fog_density > 30.0)


def _relative(pose: Pose, vector: complex) -> complex:
    """Return a vector of the world relative to the car: forward + i right."""
    return vector * complex(math.cos(pose.yaw_rad), -math.sin(pose.yaw_rad))


def _state(pose: Pose, along: float, across: float, steer: float) -> VehicleState:
    return VehicleState(
        x_m=pose.x_m,
        y_m=pose.y_m,
        yaw_rad=pose.yaw_rad,
        speed_mps=_relative(pose, pose.velocity).real,
        acceleration_mps2=along,
        lateral_acceleration_mps2=across,
        steer=steer,
    )


def _transform(start: Start, height_m: float, ahead_m: float = 0.0) -> carla.Transform:
    origin = complex(start.x_m, start.y_m) - cmath.rect(ahead_m, start.yaw_rad)
    place = carla.Location(origin.real, origin.imag, height_m)
    return carla.Transform(place, carla.Rotation(yaw=math.degrees(start.yaw_rad)))


_LUMA_BGRA = (0.114, 0.587, 0.299, 0.0)  # ITU-R BT.601
# Numbers of the semantic camera of version 0.9.16, by plane of `avtd3.collect.sim.streams.PLANES`:
# roads; their lines; sidewalks, vegetation, terrain and ground; sky; pedestrians and vehicles.
_TAGS = ((1,), (24,), (2, 9, 10, 25), (11,), (12, 13, 14, 15, 16, 17, 18, 19))
_MASKS = np.array([255 * np.isin(np.arange(256), tags) for tags in _TAGS], np.uint8)


def gray(bgra: NDArray[np.uint8], supersample: int) -> NDArray[np.uint8]:
    """Convert a picture uint8 (H * s, W * s, 4) to uint8 (1, H, W): means of squares, rounded."""
    height, width = (side // supersample for side in bgra.shape[:2])
    # Rows first: adding whole rows is faster than adding pixels. Sums of 8 rows fit 16 bits.
    rows = bgra.reshape(height, supersample, -1)
    columns = rows[:, 0].astype(np.uint16)  # (H, W * s * 4)
    for number in range(1, supersample):
        columns += rows[:, number]
    means = columns.astype(np.float32).reshape(height * width, -1) @ _gray_weights(supersample)
    means += 0.5
    return means.astype(np.uint8).reshape(1, height, width)


@functools.cache
def _gray_weights(supersample: int) -> NDArray[np.float32]:
    return (np.tile(np.array(_LUMA_BGRA), supersample) / supersample**2).astype(np.float32)


def colour(bgra: NDArray[np.uint8], supersample: int) -> NDArray[np.uint8]:
    """Convert a picture to planes of red, green and blue, uint8 (3, H, W); see `gray`."""
    means = _cells(bgra, supersample).mean(axis=(1, 3), dtype=np.float32)
    return np.ascontiguousarray((means[..., 2::-1] + 0.5).astype(np.uint8).transpose(2, 0, 1))


def semantic(bgra: NDArray[np.uint8], supersample: int) -> NDArray[np.uint8]:
    """Convert a picture with tags as red to the shares of the classes, uint8 (5, H, W)."""
    tags = _cells(bgra, supersample)[..., 2]
    masks = [table[tags].mean(axis=(1, 3), dtype=np.float32) + 0.5 for table in _MASKS]
    return np.stack(masks).astype(np.uint8)


def _cells(bgra: NDArray[np.uint8], supersample: int) -> NDArray[np.uint8]:
    height, width = (side // supersample for side in bgra.shape[:2])
    return bgra.reshape(height, supersample, width, supersample, 4)


_RGB, _TAGGED = "sensor.camera.rgb", "sensor.camera.semantic_segmentation"
_CAMERAS = {"gray": (_RGB, gray), "rgb": (_RGB, colour), "semantic": (_TAGGED, semantic)}
"""Sensor and converter of each kind of stream that a camera of the server takes."""
_GROUND = ("static.road", "static.sidewalk", "static.ground", "static.terrain", "static.bridge",
           "static.railtrack", "static.roadline")  # fmt: skip
"""Ground that a car stands on; contact with it is not a collision."""
_GROUND_SLOPE = 2.0
"""An impulse of scenery that is this much more vertical than horizontal comes from the ground."""
_LISTENING_S = 0.05


class _Shot(NamedTuple):
    """A picture that the camera sent."""

    frame: int
    size: tuple[int, int]
    """Width and height."""
    planes: NDArray[np.uint8] | None
    """uint8 (C, H, W); None if the size is wrong."""


class Eye:
    """One camera sensor: its converter, and the pictures that have arrived."""

    def __init__(self, camera: FrontCamera, kind: str) -> None:
        self.sensor, self._convert = _CAMERAS[kind]
        self.camera = camera
        self._shape = (camera.height * camera.supersample, camera.width * camera.supersample, 4)
        self.size_bytes = math.prod(self._shape)
        self._shots: queue.SimpleQueue[_Shot] = queue.SimpleQueue()

    def receive(self, image: carla.Image) -> None:
        """Store a picture; called by a thread of the client."""
        data = np.frombuffer(image.raw_data, np.uint8)
        planes = None
        if data.size == self.size_bytes:
            planes = self._convert(data.reshape(self._shape), self.camera.supersample)
        self._shots.put(_Shot(image.frame, (image.width, image.height), planes))

    def next(self, within_s: float) -> _Shot | None:
        """Return the next picture; None if none arrives in time."""
        try:
            return self._shots.get(timeout=max(within_s, 0.0))
        except queue.Empty:
            return None


class Contact(NamedTuple):
    """A collision as the sensor reported it."""

    frame: int
    """Frame in which it happened; the report may come later."""
    kind: str
    """Type of the other actor, such as ``vehicle.audi.tt``."""
    impulse: tuple[float, float, float]
    """Normal impulse in N s, x, y, z in the world."""

    @property
    def is_ground(self) -> bool:
        """Return whether the car only touched what it drives on.

        Meshes of roads that are built from OpenDRIVE text may have no tag (``static.unknown``):
        what pushes mostly upwards is ground.
        """
        x, y, z = self.impulse
        is_below = abs(z) > _GROUND_SLOPE * math.hypot(x, y)
        return self.kind.startswith(_GROUND) or (self.kind.startswith("static.") and is_below)


class Sensors:
    """Cameras and, with `has_events`, a collision and a lane invasion sensor, mounted on a car.

    `mountings` say where each camera is, by name of its stream; ``image`` is the only one of a
    configuration without streams.
    """

    def __init__(
        self,
        server: Server,
        car: Car,
        mountings: Mapping[str, Mounting],
        *,
        has_events: bool = True,
    ) -> None:
        self._server, streams = server, server.config.streams
        self._eyes = {
            name: Eye(streams[name], streams[name].kind)
            if name in streams
            else Eye(server.config.camera, "gray")
            for name in mountings
        }
        self._wait_s = server.config.sensor_timeout_s
        self._contacts: queue.SimpleQueue[Contact] = queue.SimpleQueue()
        self._markings: collections.deque[int] = collections.deque()
        self._crossed, self._reported, self._first_frame = 0, 0, 0
        self.late = 0
        """Pictures of other frames than the expected one."""
        self.touched: collections.Counter[str] = collections.Counter()
        """Contacts that are no collisions, by type of the other actor."""
        self._mounted: list[carla.Sensor] = []
        for name, eye in self._eyes.items():
            place = _mounted_at(mountings[name], car.ahead_m)
            self._mount(car, eye.sensor, place, _lens(eye.camera))
        if has_events:
            self._mount(car, "sensor.other.collision", carla.Transform(), {})
            self._mount(car, "sensor.other.lane_invasion", carla.Transform(), {})

    def _mount(
        self, car: Car, kind: str, place: carla.Transform, attributes: dict[str, str]
    ) -> None:
        with self._server.calling(f"mount {kind}"):
            blueprint = self._server.world.get_blueprint_library().find(kind)
            for name, value in {**attributes, "role_name": self._server.mark}.items():
                if blueprint.has_attribute(name):
                    blueprint.set_attribute(name, value)
            self._mounted.append(
                self._server.world.spawn_actor(blueprint, place, attach_to=car.actor)
            )

    def listen(self) -> carla.WorldSnapshot:
        """Start to listen, tick until the first picture arrives, and return the last snapshot.

        A subscription is live some milliseconds after `listen`; data sent before is lost.
        """
        receivers: list[Callable[[Any], None]] = [eye.receive for eye in self._eyes.values()]
        if len(self._mounted) > len(receivers):
            receivers += [self._touch, lambda event: self._markings.append(event.frame)]
        with self._server.calling("start its sensors", limit_s=None):
            for sensor, receive in zip(self._mounted, receivers, strict=True):
                sensor.listen(receive)
        deadline_s = time.monotonic() + self._wait_s
        waiting = list(self._eyes.values())
        snapshot = self._server.tick()
        while waiting := [eye for eye in waiting if eye.next(_LISTENING_S) is None]:
            if time.monotonic() > deadline_s:
                raise self._stall(snapshot.frame, "first picture")
            snapshot = self._server.tick()
        return snapshot

    def _touch(self, event: carla.CollisionEvent) -> None:
        """Store a contact; called by a thread of the client."""
        push = event.normal_impulse
        kind = event.other_actor.type_id
        self._contacts.put(Contact(event.frame, kind, (push.x, push.y, push.z)))

    def pictures(self, frame: int) -> dict[str, NDArray[np.uint8]]:
        """Return each camera's picture of a frame, uint8 (C, H, W), by name of its stream."""
        return {name: self._picture(eye, frame) for name, eye in self._eyes.items()}

    def _picture(self, eye: Eye, frame: int) -> NDArray[np.uint8]:
        deadline_s = time.monotonic() + self._wait_s
        while (shot := eye.next(deadline_s - time.monotonic())) is not None:
            if shot.frame == frame:
                return self._checked(shot, eye)
            self.late += 1
            if shot.frame > frame:
                break
        raise self._stall(frame, f"picture of frame {frame}")

    def _checked(self, shot: _Shot, eye: Eye) -> NDArray[np.uint8]:
        if shot.planes is None:
            width, height = shot.size
            raise WorldLost(
                f"CARLA server {self._server.where} sent a picture of {width} x {height}, "
                f"expected {eye.size_bytes} bytes; restart it if this happens again",
                REJECTED,
            )
        return shot.planes

    def _stall(self, frame: int, what: str) -> WorldLost:
        others = f"; {self.late} pictures of other frames arrived" if self.late else ""
        return WorldLost(
            f"CARLA server {self._server.where} ticks (frame {frame}), but its camera sent no "
            f"{what} within {self._wait_s:g} s (sensor_timeout_s){others}; check whether it is "
            "overloaded or was started without rendering",
            "sensor_stall",
        )

    def begin(self, frame: int) -> None:
        """Ignore all events up to a frame: a teleport crosses every marking on its way."""
        self.late, self._first_frame = 0, frame
        self._take_markings(frame)
        self._reported = (self._crossed + 1) // 2

    def collision(self) -> Contact | None:
        """Return the first collision that was reported since the last call; None if none was."""
        found = None
        while not self._contacts.empty():
            contact = self._contacts.get()
            if contact.frame <= self._first_frame:
                continue  # of the time before the episode, however late it comes
            if contact.is_ground:
                self.touched[contact.kind] += 1
            else:
                found = found or contact
        return found

    def lane_invasions(self, frame: int) -> int:
        """Return how many markings the front of the car crossed up to a frame, since the last call.

        CARLA reports every marking for each of the four corners of the car. The rear corners repeat
        the front ones, so that two reports are one crossing.
        """
        self._take_markings(frame)
        total = (self._crossed + 1) // 2
        new, self._reported = total - self._reported, total
        return new

    def _take_markings(self, frame: int) -> None:
        while self._markings and self._markings[0] <= frame:
            self._markings.popleft()
            self._crossed += 1

    def close(self) -> None:
        """Stop all sensors, then remove them from the server.

        A sensor that is stopped but not destroyed may abort the process later, and so may one that
        is destroyed but not stopped. Therefore all sensors are stopped first. If the server is
        gone, they are only stopped.
        """
        for sensor in self._mounted:
            if sensor.is_listening():
                sensor.stop()
        mounted, self._mounted = self._mounted, []
        for sensor in mounted:
            if not self._server.is_gone and not sensor.destroy():
                # Either the sensor or the server is gone; the next call will show which.
                return


def _mounted_at(mounting: Mounting, middle_m: float) -> carla.Transform:
    return carla.Transform(
        carla.Location(x=middle_m + mounting.forward_m, y=mounting.right_m, z=mounting.height_m),
        carla.Rotation(pitch=-math.degrees(mounting.pitch_rad), yaw=math.degrees(mounting.yaw_rad)),
    )


def _lens(camera: FrontCamera) -> dict[str, Any]:
    return {
        "image_size_x": str(camera.width * camera.supersample),
        "image_size_y": str(camera.height * camera.supersample),
        "fov": str(camera.field_of_view_deg),
        "sensor_tick": "0.0",
        # Motion blur depends on the frame rate: disable it.
        "motion_blur_intensity": "0.0",
    }
