"""`Car`: the driven vehicle on a CARLA server; `Motion`: its state from successive snapshots.

CARLA's own accelerations jump from frame to frame. `Motion` uses finite differences of the velocity
over the simulated time that has passed. The origin of a CARLA vehicle is on the ground near its
middle; the offset of its bounding box leads to the middle.
"""

import dataclasses
import math

import carla

from avtd3.collect.carla.server import ROLE, Server
from avtd3.collect.driving.world import VehicleState
from avtd3.collect.maps.episode_setup import Start
from avtd3.store.errors import ConfigError, WorldError, WorldLost

_DROP_M = 0.5
"""Height above the road at which a car is spawned; it falls, because it must not touch the
ground."""
_BACK_M, _UP_M = 8.0, 5.0
_HOLD = carla.VehicleControl(brake=1.0, hand_brake=True)
_CLOCK_DIGITS = 9  # decimal digits of a second: nanoseconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Position and velocity of an actor."""

    x_m: float
    """Of the middle of the actor."""
    y_m: float
    """Of the middle of the actor."""
    yaw_rad: float
    """In [-pi, pi], clockwise."""
    velocity: complex
    """In m/s, x + iy in the world."""


class Car:
    """The driven vehicle.

    Args:
        server: Connected and synchronous.
        start: Where to spawn it.
        ground_m: Height of the road there.

    Raises:
        WorldLost: The server did not answer; with reason ``spawn_refused``: the place is occupied.
        ConfigError: The server has no such vehicle.
    """

    def __init__(self, server: Server, start: Start, ground_m: float) -> None:
        self._server = server
        blueprint = self._blueprint()
        place = _transform(start, ground_m + _DROP_M)
        try:
            with server.calling("spawn the car"):
                self.actor: carla.Vehicle = server.world.spawn_actor(blueprint, place)
        except WorldLost:
            raise
        except WorldError as error:
            raise WorldLost(
                f"{error}, at ({start.x_m:.1f}, {start.y_m:.1f}); is the place occupied?",
                "spawn_refused",
            ) from error
        with server.calling("measure the car"):
            box = self.actor.bounding_box
        self.ahead_m: float = box.location.x
        """How far its middle is ahead of its origin."""
        self.length_m: float = 2.0 * box.extent.x
        self.width_m: float = 2.0 * box.extent.y
        self.hold()

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
        blueprint.set_attribute("role_name", ROLE)
        return blueprint

    def set_conditions(self, grip: float, weather: carla.WeatherParameters | None) -> None:
        """Set the grip of the tyres, which CARLA's weather does not change, and the lamps.

        Args:
            grip: Factor on the friction of the tyres; 1 changes nothing.
            weather: The `carla.WeatherParameters` of the episode, None if they were kept.
        """
        with self._server.calling("prepare the car"):
            if grip != 1.0:
                physics = self.actor.get_physics_control()
                wheels = list(physics.wheels)
                for wheel in wheels:
                    wheel.tire_friction *= grip
                physics.wheels = wheels
                self.actor.apply_physics_control(physics)
            if weather is not None and _needs_lamps(weather):
                lights = carla.VehicleLightState
                self.actor.set_light_state(
                    carla.VehicleLightState(lights.Position | lights.LowBeam)
                )

    def hold(self) -> None:
        """Apply the brakes.

        This is also the first control of the actor: the client does not send a first control of
        zeros.
        """
        self.actor.apply_control(_HOLD)

    def place(self, start: Start, snapshot: carla.WorldSnapshot) -> None:
        """Move the car, which has settled, exactly to its start."""
        found = self.find(snapshot).get_transform()
        place = _transform(start, found.location.z, self.ahead_m)
        place.rotation.pitch, place.rotation.roll = found.rotation.pitch, found.rotation.roll
        self.actor.set_transform(place)

    def start_rolling(self, start: Start) -> None:
        """Give the car the speed of its start from the next tick on."""
        velocity = start.velocity
        self.actor.set_target_velocity(carla.Vector3D(velocity.real, velocity.imag, 0.0))

    def drive(self, steer: float, pedal: float) -> None:
        """Set the control from the next tick on.

        The client does not send a control that equals the last one of the same actor. Only avtd3
        drives this car, so that control is still in force.

        Args:
            steer: In [-1, 1], positive to the right; values outside are clipped.
            pedal: Throttle (> 0) or brake (< 0) in [-1, 1]; values outside are clipped.
        """
        self.actor.apply_control(
            carla.VehicleControl(
                throttle=min(max(pedal, 0.0), 1.0),
                steer=min(max(steer, -1.0), 1.0),
                brake=min(max(-pedal, 0.0), 1.0),
            )
        )

    def find(self, snapshot: carla.WorldSnapshot) -> carla.ActorSnapshot:
        """Return the car in a snapshot.

        Raises:
            WorldLost: The car is not in the snapshot.
        """
        found = snapshot.find(self.actor.id)
        if found is None:
            raise WorldLost(
                f"CARLA server {self._server.where} has no car (actor {self.actor.id}) in frame "
                f"{snapshot.frame}: another client removed it or changed the map; use a separate "
                "server for each client"
            )
        return found

    def pose(self, snapshot: carla.WorldSnapshot) -> Pose:
        """Return the pose of the car in a snapshot.

        Raises:
            WorldLost: The car is not in the snapshot.
            WorldError: Its pose is not finite.
        """
        pose = pose_of(self.find(snapshot), self.ahead_m)
        values = (pose.x_m, pose.y_m, pose.yaw_rad, pose.velocity.real, pose.velocity.imag)
        if not all(map(math.isfinite, values)):
            raise WorldError(
                f"CARLA server {self._server.where} reports the car at {values}, expected finite "
                "numbers; restart the server"
            )
        return pose


class Motion:
    """The state of the car within one episode.

    Args:
        pose: Pose at the start.
        at_s: Simulated time there.
    """

    def __init__(self, pose: Pose, at_s: float) -> None:
        self._pose, self._at_s = pose, at_s
        self.state = _state(pose, 0.0, 0.0, 0.0)
        """The newest state; the first has no acceleration."""

    def update(self, pose: Pose, at_s: float, steer: float) -> VehicleState:
        """Return the state at the next frame.

        Args:
            pose: The car.
            at_s: Simulated time.
            steer: Steering in force, in [-1, 1].
        """
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
    place, yaw = transform.location, math.radians(transform.rotation.yaw)
    return Pose(
        x_m=place.x + ahead_m * math.cos(yaw),
        y_m=place.y + ahead_m * math.sin(yaw),
        yaw_rad=math.remainder(yaw, math.tau),
        velocity=complex(velocity.x, velocity.y),
    )


def move_spectator(spectator: carla.Actor, state: VehicleState) -> None:
    """Move the server's own view behind and above the car."""
    place = carla.Location(
        state.x_m - _BACK_M * math.cos(state.yaw_rad),
        state.y_m - _BACK_M * math.sin(state.yaw_rad),
        _UP_M,
    )
    turn = carla.Rotation(pitch=-20.0, yaw=math.degrees(state.yaw_rad))
    spectator.set_transform(carla.Transform(place, turn))


def _needs_lamps(weather: carla.WeatherParameters) -> bool:
    """Return whether a car drives with its lamps on."""
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
    return carla.Transform(
        carla.Location(
            x=start.x_m - ahead_m * math.cos(start.yaw_rad),
            y=start.y_m - ahead_m * math.sin(start.yaw_rad),
            z=height_m,
        ),
        carla.Rotation(yaw=math.degrees(start.yaw_rad)),
    )
