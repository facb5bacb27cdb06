"""Draw the pictures of a recorded episode again: the same ones, or those of another camera.

The live simulator and `SceneRenderer` draw other vehicles from the same whole numbers
(`pose_steps`) by the same function (`visible_boxes`) and the same cameras, so that their pictures
are equal.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.episode_setup import FrontCamera, draw_mounting
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.raster import Raster
from avtd3.collect.maps.weather import Weather, draw_weather
from avtd3.collect.sim.boxes import CarPose, Shapes
from avtd3.collect.sim.camera import CameraConfig
from avtd3.collect.sim.streams import StreamCamera, StreamDrawer, open_drawer, route_line
from avtd3.store.errors import ConfigError, SpecError, abbreviate
from avtd3.store.spec import IMAGE
from avtd3.store.world_record import (
    ANGLE_STEPS_PER_RAD,
    POSITION_STEPS_PER_M,
    WorldRecord,
    read_map,
)

ROAD = "road"
"""Name of the built-in simulator in a record's setup."""
_CACHED_MAPS, _CACHED_CAMERAS = 16, 16
_FAR_STEPS = 1 << 40
_MOST = 1e6
RANDOM_KEYS = ("state", "inc", "has_uint32", "uinteger")


def pose_steps(at: NDArray[np.complex128], heading: NDArray[np.complex128]) -> NDArray[np.int64]:
    """Return poses as whole numbers int64 (..., 3), see `avtd3.store.world_record`."""
    steps = np.empty((*at.shape, 3), np.int64)
    steps[..., 0] = np.rint(at.real * POSITION_STEPS_PER_M)
    steps[..., 1] = np.rint(at.imag * POSITION_STEPS_PER_M)
    steps[..., 2] = np.rint(np.angle(heading) * ANGLE_STEPS_PER_RAD)
    return steps


def random_state(rng: np.random.Generator) -> dict[str, str | int]:
    """Return the state of a random generator (PCG64) as JSON values."""
    state: Mapping[str, Any] = rng.bit_generator.state
    numbers = {name: f"{value:x}" for name, value in state["state"].items()}
    return {**numbers, "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def stored_generator(stored: Mapping[str, Any]) -> np.random.Generator:
    """Return a generator in a stored state."""
    state, inc, has_uint32, uinteger = (stored[name] for name in RANDOM_KEYS)
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(state, 16), "inc": int(inc, 16)},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)


class Scene(NamedTuple):
    """What the camera of an episode needs besides the states: the setup of its record."""

    map: str
    """Digest of the road network's text."""
    pixel_m: float
    """Side of a pixel of the painted ground."""
    camera: CameraConfig
    weather: Weather
    random: Mapping[str, str | int]
    """State of the generator that draws the camera's mounting, light and noise."""
    actors: Sequence[Sequence[float]]
    """Length, width, height and reflectance of each vehicle."""
    frames: Sequence[int] | None = None
    """Number of each picture among those that the simulator drew; None for 0, 1, 2, ..."""
    streams: Mapping[str, StreamCamera] = MappingProxyType({})
    """Cameras of named streams; with any, nothing is drawn with `camera`."""
    route: Sequence[Sequence[int]] | None = None
    """The route, as `route_steps` returns it; None if it is not known."""

    def setup(self) -> dict[str, Any]:
        """Return the JSON object that `parse` reads, with the drawn mounting for other readers."""
        mounting = draw_mounting(self.camera, stored_generator(self.random))
        streams = {name: dataclasses.asdict(camera) for name, camera in self.streams.items()}
        setup = {
            "world": ROAD,
            "map": self.map,
            "pixel_m": self.pixel_m,
            "camera": dataclasses.asdict(self.camera),
            "mounting": mounting._asdict(),
            "weather": dataclasses.asdict(self.weather),
            "random": dict(self.random),
            "actors": [list(shape) for shape in self.actors],
        }
        optional = {"frames": self.frames, "route": self.route, "streams": streams or None}
        return setup | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def parse(cls, setup: Mapping[str, Any]) -> "Scene":
        """Read the setup of a record; raise SpecError if this version cannot draw it."""
        if (world := setup.get("world")) != ROAD:
            raise SpecError(
                f"the state is of world {abbreviate(world)}, expected {ROAD}: only pictures of the "
                "built-in simulator can be drawn again"
            )
        with reading_setup():
            weather: dict[str, Any] = {
                name: value if name == "name" and isinstance(value, str) else _number(value)
                for name, value in setup["weather"].items()
            }
            scene = cls(
                map=str(setup["map"]),
                pixel_m=_number(setup["pixel_m"]),
                camera=CameraConfig(**setup["camera"]),
                weather=Weather(**weather),
                random={name: setup["random"][name] for name in RANDOM_KEYS},
                actors=[[_number(size) for size in shape] for shape in setup["actors"]],
                streams={
                    name: StreamCamera(**camera)
                    for name, camera in setup.get("streams", {}).items()
                },
                frames=_parse_frames(setup.get("frames")),
                route=parse_route(setup.get("route")),
            )
            stored_generator(scene.random)
        if not 0.05 <= scene.pixel_m <= 0.5 or any(len(shape) != 4 for shape in scene.actors):
            raise SpecError("the state cannot be drawn: its pixel_m or a vehicle is impossible")
        return scene

    def changed(self, changes: "SceneChanges", seed: int) -> "Scene":
        """Return the scene of an episode with changes; the same seed gives the same weather."""
        weather = self.weather
        if changes.weather:
            weather = draw_weather(changes.weather, changes.generator(seed))
        return self._replace(
            camera=changes.apply_to_camera(self.camera),
            weather=weather,
            streams=changes.apply_to_streams(self.camera, self.streams),
        )


@contextlib.contextmanager
def reading_setup() -> Iterator[None]:
    """Raise SpecError where the block finds that the setup of a record is impossible."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SpecError(
            f"the state cannot be drawn ({error}); it was stored by another version of avtd3, "
            "expected the setup that docs/format.md describes"
        ) from error


def _parse_frames(value: Any) -> list[int] | None:  # noqa: ANN401 - any JSON value
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError("frames is no list of whole numbers of 0 or more")
    return value


def parse_route(value: Any) -> list[list[int]] | None:  # noqa: ANN401 - any JSON value
    """Read the route of a setup; raise ValueError if it is none."""
    if value is None:
        return None
    is_pair = isinstance(value, list) and [type(axis) for axis in value] == [list, list]
    if not is_pair or not 2 <= len(value[0]) == len(value[1]):
        raise ValueError("route is no pair of equally long lists")
    if not all(type(step) is int and abs(step) < _FAR_STEPS for axis in value for step in axis):
        raise ValueError("route has a step that is no whole number of millimetres")
    if not np.abs(np.diff(route_line(value))).sum() < _MOST:
        raise ValueError(f"route is longer than {_MOST:g} m")
    return [list(axis) for axis in value]


def _number(value: Any) -> float:  # noqa: ANN401 - any JSON value
    if not isinstance(value, int | float) or not abs(value) < _MOST:
        raise ValueError(f"{abbreviate(value)} is no number between -{_MOST:g} and {_MOST:g}")
    return value


CameraT = TypeVar("CameraT", bound=FrontCamera)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SceneChanges:
    """How pictures differ from the recorded ones; without arguments, not at all.

    Example:
        >>> SceneChanges(camera={"width": 144}, weather="night").document()
        {'camera': {'width': 144}, 'weather': 'night'}
    """

    camera: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """New values of settings of the camera by name, see `CameraConfig`."""
    weather: str = ""
    """Name of a weather or of a group of them; empty keeps the recorded weather."""
    streams: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Named streams to draw, and for each the settings that differ, see `StreamCamera`, from the
    recorded stream of that name or else from the recorded camera. Empty: what was recorded."""

    def __post_init__(self) -> None:
        _check_settings(self.camera, CameraConfig())
        for settings in self.streams.values():
            _check_settings(settings, StreamCamera())
        if self.streams and self.camera:
            raise ConfigError(
                "named streams and settings of the only camera were given; give each stream its own"
            )
        self.apply_to_camera(CameraConfig())  # raises if a value is impossible by itself
        self.apply_to_streams(CameraConfig(), {})
        if self.weather:
            draw_weather(self.weather, np.random.default_rng(0))  # raises if it is unknown

    def document(self) -> dict[str, Any]:
        """Return the changes as JSON values."""
        streams = {name: dict(settings) for name, settings in self.streams.items()}
        document = {"camera": dict(self.camera), "weather": self.weather}
        return {**document, "streams": streams} if streams else document

    def apply_to_camera(self, camera: CameraT) -> CameraT:
        """Return a camera with the changes; raise ConfigError if it lacks such a setting."""
        known = {field.name for field in dataclasses.fields(camera)}
        if unknown := self.camera.keys() - known:
            raise ConfigError(
                f"camera.{min(unknown)} cannot be changed: the camera of this simulator does not "
                f"have it, expected one of: {', '.join(sorted(known))}"
            )
        return dataclasses.replace(camera, **self.camera)

    def apply_to_streams(
        self, camera: FrontCamera, recorded: Mapping[str, StreamCamera]
    ) -> dict[str, StreamCamera]:
        """Return the cameras of all streams to draw; none without named streams."""
        if not self.streams:
            return dict(recorded)
        base = StreamCamera(**dataclasses.asdict(camera))
        return {
            name: dataclasses.replace(recorded.get(name, base), **settings)
            for name, settings in sorted(self.streams.items())
        }

    @staticmethod
    def generator(seed: int) -> np.random.Generator:
        """Return what draws the weather: another stream than those of the episode itself."""
        bits = seed & (1 << 64) - 1  # a stored seed may be negative
        return np.random.default_rng(np.random.SeedSequence(bits, spawn_key=(1,)).spawn(1)[0])


def _check_settings(settings: Mapping[str, Any], camera: CameraConfig) -> None:
    known = dataclasses.asdict(camera)
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"camera has no {name!r}, expected one of: {', '.join(known)}")
        if type(known[name]) is int and type(value) is not int:
            raise ConfigError(f"camera.{name} is {value}, expected a whole number")
        # A float may be given as a whole number.
        if type(value) is not type(known[name]) and type(value) is not int:
            raise ConfigError(f"camera.{name} is {value}, expected {known[name]!r} or the like")


class SceneCameras:
    """Draws the frames of all streams of one scene after another; keeps cameras for later ones."""

    def __init__(self) -> None:
        # Streams have drawers of their own, even if their settings are equal: each counts frames.
        self._opened = functools.lru_cache(_CACHED_CAMERAS)(
            lambda _name, config: open_drawer(config)
        )
        self._drawers: dict[str, StreamDrawer] = {}

    def reset(self, scene: Scene, raster: Raster) -> None:
        """Prepare the episode of a scene: each camera makes the same random draws."""
        streams: Mapping[str, CameraConfig] = scene.streams or {IMAGE: scene.camera}
        self._drawers = {name: self._opened(name, config) for name, config in streams.items()}
        route = None if scene.route is None else route_line(scene.route)
        for drawer in self._drawers.values():
            drawer.reset(raster, scene.weather, stored_generator(scene.random), route)

    def skip_to(self, frame: int) -> None:
        """Draw a frame of the episode next, counted from 0."""
        for drawer in self._drawers.values():
            drawer.skip_to(frame)

    def draw(
        self, car: CarPose, poses: NDArray[np.int64], shapes: Shapes, numbers: Sequence[int]
    ) -> dict[str, NDArray[np.uint8]]:
        """Draw a frame uint8 (C, H, W) of each stream, see `Camera.draw`."""
        return {n: each.draw(car, poses, shapes, numbers) for n, each in self._drawers.items()}


def map_painter(dataset: Path) -> Callable[[str, float], Raster]:
    """Return a function of digest and side of a pixel that paints a stored map, with a cache."""

    def paint(digest: str, pixel_m: float) -> Raster:
        text = read_map(dataset, digest)
        return Raster.paint(RoadNetwork.from_opendrive(digest[:12], text), pixel_m)

    return functools.lru_cache(_CACHED_MAPS)(paint)


class SceneRenderer:
    """Draws the pictures of recorded episodes of one dataset."""

    def __init__(self, dataset: Path) -> None:
        self._raster = map_painter(dataset)
        self._cameras = SceneCameras()

    def frames(self, scene: Scene, record: WorldRecord) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """Draw the frames of an episode, one of each stream for each of its observations."""
        drawn = scene.frames or range(len(record.ego))
        if len(drawn) != len(record.ego):
            raise SpecError(f"the state numbers {len(drawn)} frames, expected {len(record.ego)}")
        self._cameras.reset(scene, self._raster(scene.map, scene.pixel_m))
        numbers = range(len(scene.actors))
        for frame, (x_m, y_m, yaw_rad), poses in zip(
            drawn, record.ego.tolist(), record.actors, strict=True
        ):
            self._cameras.skip_to(frame)
            yield self._cameras.draw((x_m, y_m, yaw_rad), poses, scene.actors, numbers)
