"""`CarlaScene`: the setup of a CARLA episode's record; `CarlaRenderer` draws its pictures again.

The rows of `WorldRecord.actors` are those of N vehicles and walkers (`Body`), N + 1 of height,
pitch and roll (the driven car first), and L of traffic lights, whose first number is the state.

Views from above are drawn from the stored numbers, live and later, so that they are equal. For
pictures of cameras, a server shows the states again, see `avtd3.collect.carla.session.Replay`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.client_process import ClientProcess, PackedPictures, unpack_pictures
from avtd3.collect.carla.config import CarlaCamera, CarlaConfig
from avtd3.collect.maps.episode_setup import FrontCamera, Mounting, draw_mounting
from avtd3.collect.maps.raster import Raster
from avtd3.collect.maps.weather import draw_weather
from avtd3.collect.sim.scene import (
    RANDOM_KEYS,
    SceneChanges,
    map_painter,
    parse_route,
    reading_setup,
    stored_generator,
)
from avtd3.collect.sim.streams import FROM_ABOVE, BirdsEye, StreamCamera, route_line
from avtd3.store.errors import WorldLost, abbreviate
from avtd3.store.spec import IMAGE
from avtd3.store.world_record import MAX_ACTORS, POSITION_STEPS_PER_M, WorldRecord, read_map

CARLA = "carla"
"""Name of the world in a record's setup."""
BUILT = "OpenDriveMap"
"""Name of a map that a server built from OpenDRIVE text."""
PIXEL_M = 0.1
"""Side of a pixel of the painted ground."""
MOST_BODIES, MOST_LIGHTS = 400, MAX_ACTORS - 801
"""Most vehicles and walkers, and most traffic lights, that are recorded."""
_MOST_VALUE = 1e38
AWAY_M = 1e7
"""Where actors are that are nowhere."""
_SEEN_M = 1e4
LEVEL_M, SLOPE = 3.0, 0.08
"""Vehicles that are this much above or below, more with the distance, are on another level."""
_TRIES = 3
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


def draw_climate(name: str, rng: np.random.Generator) -> dict[str, float]:
    """Draw the values of `carla.WeatherParameters` for a weather; the others keep their default."""
    values = {"sun_azimuth_angle": rng.uniform(0.0, 360.0)}
    return values | {key: rng.uniform(*limits) for key, limits in _CLIMATES[name].items()}


class Recorded(NamedTuple):
    """The beginning of an episode's record."""

    setup: dict[str, Any]
    map_text: str
    row: bytes
    """Row of the first frame: float64 (3,) of the car, then int64 (R, 3) of the actors."""


class Body(NamedTuple):
    """A vehicle or walker: its blueprint and its box."""

    kind: str
    """Blueprint, such as ``vehicle.tesla.model3``."""
    colour: str
    """Its attribute ``color``; empty without one."""
    length_m: float
    width_m: float
    height_m: float
    ahead_m: float
    """How far its middle, whose position is stored, is ahead of its origin."""


class CarlaWeather(NamedTuple):
    """The weather of an episode."""

    name: str
    """The drawn name of `avtd3.collect.maps.weather`."""
    values: Mapping[str, float]
    """Values of `carla.WeatherParameters`; what is missing has its default."""
    has_lamps: bool
    """Whether the car switches its lamps on in the dark."""


class CarlaScene(NamedTuple):
    """What pictures of an episode need besides the states: the setup of its record."""

    map: str
    """Digest of the OpenDRIVE text that the server returned."""
    town: str
    """Name of the server's map; `BUILT` if it was built from the text."""
    period_s: float
    """Control period."""
    car: Body
    """The driven car."""
    bodies: Sequence[Body]
    lights: Sequence[Sequence[float]]
    """x, y and z of each traffic light, in metres."""
    weather: CarlaWeather
    camera: CarlaCamera
    streams: Mapping[str, StreamCamera]
    random: Mapping[str, str | int]
    """State of the generator that draws where the cameras are mounted."""
    route: Sequence[Sequence[int]] | None
    """See `avtd3.collect.sim.streams.route_steps`."""
    frames: Sequence[int] | None = None
    """Kept for readers, see `avtd3.collect.sim.scene.Scene`; no picture depends on it."""

    def setup(self) -> dict[str, Any]:
        """Return the JSON object that `parse` reads."""
        mountings = {name: each._asdict() for name, each in self.mountings().items()}
        count = len(self.bodies)
        setup = {
            "world": CARLA,
            "map": self.map,
            "town": self.town,
            "period_s": self.period_s,
            "car": self.car._asdict(),
            "weather": {**self.weather._asdict(), "values": dict(self.weather.values)},
            "camera": dataclasses.asdict(self.camera),
            "streams": {name: dataclasses.asdict(each) for name, each in self.streams.items()},
            "mountings": mountings,
            "random": dict(self.random),
            "actors": [
                *(body._asdict() for body in self.bodies),
                *({"tilt_of": number} for number in range(-1, count)),
                *({"light": list(at)} for at in self.lights),
            ],
        }
        optional = {"route": self.route, "frames": self.frames}
        return setup | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def parse(cls, setup: Mapping[str, Any]) -> "CarlaScene":
        """Read the setup of a record; raise SpecError if this version cannot draw it."""
        with reading_setup():
            actors, weather = setup["actors"], setup["weather"]
            scene = cls(
                map=str(setup["map"]),
                town=str(setup["town"]),
                period_s=float(setup["period_s"]),
                car=Body(**setup["car"]),
                bodies=[Body(**actor) for actor in actors if "kind" in actor],
                lights=[[float(at) for at in a["light"]] for a in actors if "light" in a],
                weather=CarlaWeather(**weather),
                camera=CarlaCamera(**setup["camera"]),
                streams={name: StreamCamera(**each) for name, each in setup["streams"].items()},
                random={name: setup["random"][name] for name in RANDOM_KEYS},
                route=parse_route(setup.get("route")),
                frames=setup.get("frames"),
            )
            _check(scene, actors)
            stored_generator(scene.random)
        return scene

    def changed(self, changes: SceneChanges, seed: int) -> "CarlaScene":
        """Return the scene of an episode with changes; the same seed gives the same weather."""
        weather = self.weather
        if changes.weather:
            rng = changes.generator(seed)
            name = draw_weather(changes.weather, rng).name
            weather = CarlaWeather(name, draw_climate(name, rng), has_lamps=True)
        return self._replace(
            weather=weather,
            camera=changes.apply_to_camera(self.camera),
            streams=changes.apply_to_streams(self.camera, self.streams),
        )

    def mountings(self) -> dict[str, Mounting]:
        """Return where each camera of the server is: all as if they were mounted on one frame."""
        cameras: dict[str, FrontCamera] = {
            name: stream
            for name, stream in sorted(self.streams.items())
            if stream.kind not in FROM_ABOVE
        }
        if not self.streams:
            cameras = {IMAGE: self.camera}
        return {
            name: draw_mounting(camera, stored_generator(self.random))
            for name, camera in cameras.items()
        }

    def views(self) -> dict[str, StreamCamera]:
        """Return the streams that are drawn without a server."""
        return {n: each for n, each in sorted(self.streams.items()) if each.kind in FROM_ABOVE}


def _check(scene: CarlaScene, actors: object) -> None:
    """Raise ValueError if a value has another type than a server or a drawing needs."""
    if scene.setup()["actors"] != actors:
        raise ValueError("its actors are in another order")
    for body in (scene.car, *scene.bodies):
        texts, numbers = body[:2], body[2:]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{abbreviate(texts)} is no blueprint and colour")
        if not all(isinstance(number, int | float) and abs(number) < 1e3 for number in numbers):
            raise ValueError(f"{abbreviate(numbers)} is no box")
    values = scene.weather.values.values()
    if not all(isinstance(value, int | float) and abs(value) < _MOST_VALUE for value in values):
        raise ValueError("the weather has a value that is no number of single precision")
    if not 0.01 <= scene.period_s <= 0.5 or any(len(at) != 3 for at in scene.lights):
        raise ValueError("its period or a traffic light is impossible")


class CarlaViews:
    """Draws the views from above of an episode, which no sensor of the server takes."""

    def __init__(self, scene: CarlaScene, raster: Raster) -> None:
        self._views = {name: BirdsEye(stream) for name, stream in scene.views().items()}
        line = None if scene.route is None else route_line(scene.route)
        for view in self._views.values():
            view.reset(raster, None, None, line)
        self._shapes = np.array([body[2:4] for body in scene.bodies]).reshape(-1, 2)

    def draw(
        self, car: tuple[float, float, float], actors: NDArray[np.int64]
    ) -> dict[str, NDArray[np.uint8]]:
        """Draw each view from the car's pose and the rows of a record at one time.

        What is far away or on another level than the car is not shown.
        """
        if not self._views:
            return {}
        count = len(self._shapes)
        poses, height_m = actors[:count], actors[count : 2 * count + 1, 0] / POSITION_STEPS_PER_M
        apart_m = np.hypot(*(poses[:, :2] / POSITION_STEPS_PER_M - car[:2]).T)
        level = np.abs(height_m[1:] - height_m[0]) < LEVEL_M + SLOPE * apart_m
        near = np.flatnonzero(level & (apart_m < _SEEN_M))
        shapes = self._shapes[near].tolist()
        return {name: view.draw(car, poses[near], shapes, ()) for name, view in self._views.items()}


class CarlaRenderer:
    """Draws the pictures of recorded episodes of one dataset; a server takes those of cameras."""

    def __init__(self, dataset: Path, config: CarlaConfig, port: int) -> None:
        self._dataset, self._client = dataset, ClientProcess(config, port, "replay")
        self._raster = map_painter(dataset)

    def frames(
        self, scene: CarlaScene, record: WorldRecord
    ) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """Draw the frames of an episode, one of each stream for each of its observations.

        Raise ConfigError if the server has another map, or lacks a blueprint.
        """
        views = CarlaViews(scene, self._raster(scene.map, PIXEL_M)) if scene.views() else None
        taken = self._taken(scene, record) if scene.mountings() else None
        for (x_m, y_m, yaw_rad), actors in zip(record.ego.tolist(), record.actors, strict=True):
            pictures = dict(next(taken)) if taken else {}
            if views is not None:
                pictures |= views.draw((x_m, y_m, yaw_rad), actors)
            yield pictures

    def _taken(
        self, scene: CarlaScene, record: WorldRecord
    ) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """Let the server take the pictures; after a loss, continue with a new client."""
        done = lost = 0
        while done < len(record.ego):
            try:
                for pictures in self._shown(scene, record, done):
                    yield pictures
                    done, lost = done + 1, 0
            except WorldLost:
                self._client.end()
                lost += 1
                if lost == _TRIES:
                    raise

    def _shown(
        self, scene: CarlaScene, record: WorldRecord, first: int
    ) -> Iterator[dict[str, NDArray[np.uint8]]]:
        client, rows = self._client, [*zip(record.ego, record.actors, strict=True)][first:]
        client.connect()
        client.ask("begin", scene.setup(), read_map(self._dataset, scene.map), *rows[0])
        for row in rows:
            packed: PackedPictures = client.ask("show", *row, limit_s=client.config.step_timeout_s)
            yield unpack_pictures(packed)

    def close(self) -> None:
        """Remove our actors and restore the server's settings; safe to call twice."""
        self._client.end()
