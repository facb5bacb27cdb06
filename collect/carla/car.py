"""What each of the road world's weathers is on CARLA, varied by episode."""

import math

import carla
import numpy as np

from avtd3.collect.carla.config import KEPT_WEATHER, SCENARIO_WEATHER
from avtd3.collect.carla.motion import Pose, pose_of
from avtd3.collect.carla.server import ROLE, Server
from avtd3.collect.driving.world import VehicleState
from avtd3.collect.maps.episode_setup import Start
from avtd3.store.errors import ConfigError, WorldError, WorldLost

_Range = tuple[float, float]
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


def weather_parameters(
    choice: str, drawn: str, rng: np.random.Generator
) -> carla.WeatherParameters | None:
    """The `carla.WeatherParameters` of an episode, None to keep what the server has.

    Args:
        choice: `CarlaConfig.weather`.
        drawn: The weather that the episode has drawn from its scenario.
        rng: Varies it.
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


def needs_lamps(weather: carla.WeatherParameters) -> bool:
    """Whether a car drives with its lamps on."""
    return bool(weather.sun_altitude_angle < 12.0 or weather.fog_density > 30.0)


_DROP_M = 0.5
"""Height above the road at which a car appears; it falls, or it would stick in the ground."""
_BACK_M, _UP_M = 8.0, 5.0
_HOLD = carla.VehicleControl(brake=1.0, hand_brake=True)


class Car:
    """The driven vehicle.

    Args:
        server: Connected and synchronous.
        start: Where to put it.
        ground_m: Height of the road there.

    Raises:
        WorldLost: The server did not answer; reason ``spawn_refused``: something stands there.
        ConfigError: The server has no such vehicle.
    """

    def __init__(self, server: Server, start: Start, ground_m: float) -> None:
        self._server = server
        blueprint = self._blueprint()
        place = _transform(start, ground_m + _DROP_M)
        try:
            with server.asking("spawn the car"):
                self.actor: carla.Vehicle = server.world.spawn_actor(blueprint, place)
        except WorldLost:
            raise
        except WorldError as error:
            raise WorldLost(
                f"{error}, at ({start.x_m:.1f}, {start.y_m:.1f}); does something stand there?",
                "spawn_refused",
            ) from error
        with server.asking("measure the car"):
            box = self.actor.bounding_box
        self.ahead_m: float = box.location.x
        """How far its middle lies ahead of its origin."""
        self.length_m: float = 2.0 * box.extent.x
        self.width_m: float = 2.0 * box.extent.y
        self.hold()

    @property
    def id(self) -> int:
        """Number of the actor."""
        return int(self.actor.id)

    def _blueprint(self) -> carla.ActorBlueprint:
        server, name = self._server, self._server.config.vehicle
        with server.asking("list its blueprints"):
            library = server.world.get_blueprint_library()
        if not library.filter(name):
            known = sorted(blueprint.id for blueprint in library.filter("vehicle.*"))
            raise ConfigError(
                f"carla.vehicle {name!r} is no vehicle of CARLA server {server.where}; it has: "
                f"{', '.join(known)}"
            )
        blueprint = library.find(name)
        blueprint.set_attribute("role_name", ROLE)
        return blueprint

    def dress(self, grip: float, weather: carla.WeatherParameters | None) -> None:
        """Set the tyres' grip, which CARLA's weather leaves alone, and the lamps.

        Args:
            grip: Factor on the friction of the tyres; 1 changes nothing.
            weather: The `carla.WeatherParameters` of the episode, None if they were kept.
        """
        with self._server.asking("prepare the car"):
            if grip != 1.0:
                physics = self.actor.get_physics_control()
                wheels = list(physics.wheels)
                for wheel in wheels:
                    wheel.tire_friction *= grip
                physics.wheels = wheels
                self.actor.apply_physics_control(physics)
            if weather is not None and needs_lamps(weather):
                lights = carla.VehicleLightState
                self.actor.set_light_state(
                    carla.VehicleLightState(lights.Position | lights.LowBeam)
                )

    def hold(self) -> None:
        """Stand still. Also the first control of a handle, which is not sent if it is all zero."""
        self.actor.apply_control(_HOLD)

    def place(self, start: Start, snapshot: carla.WorldSnapshot) -> None:
        """Put the car, which has come to rest, exactly on its start."""
        found = self.find(snapshot).get_transform()
        place = _transform(start, found.location.z, self.ahead_m)
        place.rotation.pitch, place.rotation.roll = found.rotation.pitch, found.rotation.roll
        self.actor.set_transform(place)

    def push(self, start: Start) -> None:
        """Let it roll at its start's speed from the next tick on."""
        velocity = start.velocity
        self.actor.set_target_velocity(carla.Vector3D(velocity.real, velocity.imag, 0.0))

    def drive(self, steer: float, pedal: float) -> None:
        """Set the control that holds from the next tick on.

        The client does not send a control equal to the last one of the same handle; no one else
        drives this car, so that one is still in force.

        Args:
            steer: In [-1, 1], positive to the right; values beyond are clipped.
            pedal: Throttle (> 0) or brake (< 0) in [-1, 1]; values beyond are clipped.
        """
        self.actor.apply_control(
            carla.VehicleControl(
                throttle=min(max(pedal, 0.0), 1.0),
                steer=min(max(steer, -1.0), 1.0),
                brake=min(max(-pedal, 0.0), 1.0),
            )
        )

    def find(self, snapshot: carla.WorldSnapshot) -> carla.ActorSnapshot:
        """The car in a snapshot.

        Raises:
            WorldLost: It is not there.
        """
        found = snapshot.find(self.actor.id)
        if found is None:
            raise WorldLost(
                f"CARLA server {self._server.where} has lost the car (actor {self.actor.id}) by "
                f"frame {snapshot.frame}: another client removed it or changed the map; give "
                "each client a server of its own"
            )
        return found

    def pose(self, snapshot: carla.WorldSnapshot) -> Pose:
        """Where the car is in a snapshot.

        Raises:
            WorldLost: It is not there.
            WorldError: Its numbers are not finite.
        """
        pose = pose_of(self.find(snapshot), self.ahead_m)
        values = (pose.x_m, pose.y_m, pose.yaw_rad, pose.velocity.real, pose.velocity.imag)
        if not all(map(math.isfinite, values)):
            raise WorldError(
                f"CARLA server {self._server.where} says that the car is at {values}, expected "
                "finite numbers; restart the server"
            )
        return pose


def follow(spectator: carla.Actor, state: VehicleState) -> None:
    """Have the server's own view look at the car from behind and above."""
    place = carla.Location(
        state.x_m - _BACK_M * math.cos(state.yaw_rad),
        state.y_m - _BACK_M * math.sin(state.yaw_rad),
        _UP_M,
    )
    turn = carla.Rotation(pitch=-20.0, yaw=math.degrees(state.yaw_rad))
    spectator.set_transform(carla.Transform(place, turn))


def _transform(start: Start, height_m: float, ahead_m: float = 0.0) -> carla.Transform:
    return carla.Transform(
        carla.Location(
            x=start.x_m - ahead_m * math.cos(start.yaw_rad),
            y=start.y_m - ahead_m * math.sin(start.yaw_rad),
            z=height_m,
        ),
        carla.Rotation(yaw=math.degrees(start.yaw_rad)),
    )
