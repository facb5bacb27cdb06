"""Draw the pictures of a recorded episode again: the same ones, or those of another camera.

The live simulator and `SceneRenderer` draw other vehicles from the same whole numbers
(`pose_steps`) by the same function (`visible_boxes`), so that their pictures are equal.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.maps.camera_mounting import draw_mounting
from avtd3.collect.maps.contact import NEAR_M
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.raster import Raster
from avtd3.collect.maps.weather import Weather, draw_weather
from avtd3.collect.sim.boxes import Box
from avtd3.collect.sim.camera import Camera, CameraConfig
from avtd3.store.errors import ConfigError, SpecError, abbreviate
from avtd3.store.maps import read_map
from avtd3.store.world_record import ANGLE_STEPS_PER_RAD, POSITION_STEPS_PER_M, WorldRecord

ROAD = "road"
"""Name of the built-in simulator in a record's setup."""
# The live simulator searches with exact positions up to NEAR_M: a few steps of rounding below it.
_SEEN_M = NEAR_M - 1e-5
_CACHED_MAPS, _CACHED_CAMERAS = 16, 4
_RANDOM_KEYS = ("state", "inc", "has_uint32", "uinteger")


def pose_steps(at: NDArray[np.complex128], heading: NDArray[np.complex128]) -> NDArray[np.int64]:
    """Return poses as whole numbers int64 (..., 3), see `avtd3.store.world_record`."""
    steps = np.empty((*at.shape, 3), np.int64)
    steps[..., 0] = np.rint(at.real * POSITION_STEPS_PER_M)
    steps[..., 1] = np.rint(at.imag * POSITION_STEPS_PER_M)
    steps[..., 2] = np.rint(np.angle(heading) * ANGLE_STEPS_PER_RAD)
    return steps


def visible_boxes(
    car: tuple[float, float, float],
    poses: Sequence[Sequence[int]],
    shapes: Sequence[Sequence[float]],
    numbers: Sequence[int],
    slope: float,
) -> list[Box]:
    """Return the vehicles that a camera may see.

    Args:
        car: x, y in metres and yaw in radians of the car.
        poses: Pose of each vehicle, from `pose_steps`.
        shapes: Length, width, height and reflectance of each vehicle.
        numbers: The vehicles that may be near, at least those within `_SEEN_M` ahead.
        slope: Metres to the side that the camera sees per metre ahead.
    """
    x_m, y_m, yaw_rad = car
    here, back = complex(x_m, y_m), complex(math.cos(yaw_rad), -math.sin(yaw_rad))
    found = []
    for number in numbers:
        x, y, yaw = poses[number]
        at = (complex(x / POSITION_STEPS_PER_M, y / POSITION_STEPS_PER_M) - here) * back
        ahead, aside = at.real, at.imag
        if ahead > -1.0 and abs(aside) < slope * ahead + 5.0 and abs(at) < _SEEN_M:
            found.append(Box(ahead, aside, yaw / ANGLE_STEPS_PER_RAD - yaw_rad, *shapes[number]))
    return found


def random_state(rng: np.random.Generator) -> dict[str, str | int]:
    """Return the state of a random generator (PCG64) as JSON values."""
    state: Mapping[str, Any] = rng.bit_generator.state
    numbers = {name: f"{value:x}" for name, value in state["state"].items()}
    return {**numbers, "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def _generator(stored: Mapping[str, Any]) -> np.random.Generator:
    """Return a generator in a stored state."""
    state, inc, has_uint32, uinteger = (stored[name] for name in _RANDOM_KEYS)
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

    def setup(self) -> dict[str, Any]:
        """Return the JSON object that `parse` reads, with the drawn mounting for other readers."""
        mounting = draw_mounting(self.camera, _generator(self.random))
        return {
            "world": ROAD,
            "map": self.map,
            "pixel_m": self.pixel_m,
            "camera": dataclasses.asdict(self.camera),
            "mounting": mounting._asdict(),
            "weather": dataclasses.asdict(self.weather),
            "random": dict(self.random),
            "actors": [list(shape) for shape in self.actors],
            **({} if self.frames is None else {"frames": list(self.frames)}),
        }

    @classmethod
    def parse(cls, setup: Mapping[str, Any]) -> "Scene":
        """Read the setup of a record; raise SpecError if this version cannot draw it."""
        if (world := setup.get("world")) != ROAD:
            raise SpecError(
                f"the state is of world {abbreviate(world)}, expected {ROAD}: only pictures of the "
                "built-in simulator can be drawn again"
            )
        try:
            weather = {
                name: _checked(value, name == "name") for name, value in setup["weather"].items()
            }
            scene = cls(
                map=str(setup["map"]),
                pixel_m=_checked(setup["pixel_m"]),
                camera=CameraConfig(**setup["camera"]),
                weather=Weather(**weather),
                random={name: setup["random"][name] for name in _RANDOM_KEYS},
                actors=[[_checked(size) for size in shape] for shape in setup["actors"]],
                frames=_parse_frames(setup.get("frames")),
            )
            _generator(scene.random)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(
                f"the state cannot be drawn ({error}); it was stored by another version of avtd3, "
                "expected the setup that docs/format.md describes"
            ) from error
        if not 0.05 <= scene.pixel_m <= 0.5 or any(len(shape) != 4 for shape in scene.actors):
            raise SpecError("the state cannot be drawn: its pixel_m or a vehicle is impossible")
        return scene


def _parse_frames(value: Any) -> list[int] | None:  # noqa: ANN401 - any JSON value
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError("frames is no list of whole numbers of 0 or more")
    return value


def _checked(value: Any, is_text: bool = False) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(value, str if is_text else int | float) or value != value:
        raise ValueError(f"{abbreviate(value)} is no {'text' if is_text else 'number'}")
    return value


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

    def __post_init__(self) -> None:
        known = dataclasses.asdict(CameraConfig())
        for name, value in self.camera.items():
            if name not in known:
                raise ConfigError(f"camera has no {name!r}, expected one of: {', '.join(known)}")
            if type(known[name]) is int and type(value) is not int:
                raise ConfigError(f"camera.{name} is {value}, expected a whole number")
        self.apply_to_camera(CameraConfig())  # raises if a value is impossible by itself
        if self.weather:
            draw_weather(self.weather, np.random.default_rng(0))  # raises if it is unknown

    def document(self) -> dict[str, Any]:
        """Return the changes as JSON values."""
        return {"camera": dict(self.camera), "weather": self.weather}

    def apply_to_camera(self, camera: CameraConfig) -> CameraConfig:
        """Return a camera with the changes."""
        return dataclasses.replace(camera, **self.camera)

    def apply(self, scene: Scene, seed: int) -> Scene:
        """Return the scene of an episode with the changes; the same seed gives the same weather."""
        weather = scene.weather
        if self.weather:
            # Another stream than those of the episode itself.
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)).spawn(1)[0])
            weather = draw_weather(self.weather, rng)
        return scene._replace(camera=self.apply_to_camera(scene.camera), weather=weather)


class SceneRenderer:
    """Draws the pictures of recorded episodes of one dataset."""

    def __init__(self, dataset: Path) -> None:
        self._dataset = dataset
        self._raster = functools.lru_cache(_CACHED_MAPS)(self._paint)
        self._camera = functools.lru_cache(_CACHED_CAMERAS)(Camera)

    def _paint(self, digest: str, pixel_m: float) -> Raster:
        text = read_map(self._dataset, digest)
        return Raster.paint(RoadNetwork.from_opendrive(digest[:12], text), pixel_m)

    def frames(self, scene: Scene, record: WorldRecord) -> Iterator[NDArray[np.uint8]]:
        """Draw the pictures of an episode, uint8 (1, H, W), one for each of its observations.

        Raises:
            DatasetError: The dataset lacks the road network's text.
            RoadError: The road network cannot be used.
            SpecError: The scene does not number all pictures.
        """
        drawn = scene.frames or range(len(record.ego))
        if len(drawn) != len(record.ego):
            raise SpecError(f"the state numbers {len(drawn)} frames, expected {len(record.ego)}")
        camera = self._camera(scene.camera)
        raster = self._raster(scene.map, scene.pixel_m)
        camera.reset(raster, scene.weather, _generator(scene.random))
        numbers = range(len(scene.actors))
        for frame, (x_m, y_m, yaw_rad), poses in zip(
            drawn, record.ego.tolist(), record.actors.tolist(), strict=True
        ):
            camera.skip_to(frame)
            car = (x_m, y_m, yaw_rad)
            boxes = visible_boxes(car, poses, scene.actors, numbers, camera.slope)
            yield camera.render(*car, boxes)
