"""What Gymnasium's spaces are in a dataset: action bounds, image specs and vectors."""

import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number
from avtd3.collect.drivers import UniformDriver
from avtd3.collect.environment import Driver, Opening, Step
from avtd3.store.errors import ConfigError, WorldError
from avtd3.store.events import Event
from avtd3.store.spec import MAX_AXIS, EpisodeSpec, ImageSpec

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.spaces import Box
    from PIL import Image


_KINDS = (
    "a one-dimensional Box, a Box of uint8 (H, W) or (H, W, C), or a Dict of these with one image "
    "at most"
)


def bounds_of(
    space: "gymnasium.Space[Any]", name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest value of each action, each float32 (A,).

    Args:
        space: The environment's action space.
        name: The environment, for messages.

    Raises:
        ConfigError: The actions are not numbers within finite bounds.
    """
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(
            f"{name} has actions {space}, expected a Box of floats: TD3 acts in numbers only"
        )
    low, high = space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel()
    if not (low.size and np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ConfigError(
            f"{name} has actions {space}, expected finite bounds; wrap it in RescaleAction"
        )
    return low, high


class Reader:
    """Turns an environment's observations into images and vectors.

    Args:
        space: The environment's observation space.
        stack: Frames per observation, for images.
        name: The environment, for messages.

    Raises:
        ConfigError: The observations are of a kind that cannot be stored.
    """

    def __init__(self, space: "gymnasium.Space[Any]", stack: int, name: str) -> None:
        from gymnasium.spaces import Dict

        self._name = name
        self._is_dict = isinstance(space, Dict)
        parts = dict(space.spaces) if isinstance(space, Dict) else {"observation": space}
        kinds = {key: _kind(part, f"{name}: {key}") for key, part in parts.items()}
        self._images = [key for key, kind in kinds.items() if kind == "image"]
        self._vectors = [key for key, kind in kinds.items() if kind == "vector"]
        if len(self._images) > 1 or not kinds:
            raise ConfigError(f"{name} observes {space}, expected {_KINDS}")
        self.image = _image_spec(parts[self._images[0]], stack) if self._images else None
        self.names = tuple(
            f"{key}_{i}" for key in self._vectors for i in range(math.prod(parts[key].shape or ()))
        )
        if len(self.names) > MAX_AXIS:
            raise ConfigError(f"{name} observes {len(self.names)} numbers, at most {MAX_AXIS} fit")

    def read(self, seen: Any) -> tuple[NDArray[np.uint8] | None, NDArray[np.float32] | None]:  # noqa: ANN401 - whatever an environment answers
        """An observation as uint8 (C, H, W) and float32 (V,), each None if there is none.

        Raises:
            WorldError: It is not of the space, or not finite.
        """
        parts = seen if self._is_dict else {"observation": seen}
        keys = {*self._images, *self._vectors}
        if not isinstance(parts, Mapping) or not keys <= parts.keys():
            found = sorted(parts) if isinstance(parts, Mapping) else type(parts).__name__
            raise WorldError(f"{self._name} answered {found}, expected a dict of {sorted(keys)}")
        image = self._as_planes(np.asarray(parts[self._images[0]])) if self._images else None
        vector = self._as_vector([parts[key] for key in self._vectors]) if self._vectors else None
        return image, vector

    def _as_vector(self, parts: list[Any]) -> NDArray[np.float32]:
        try:
            with np.errstate(over="ignore"):  # too large for float32 is not finite either
                # a copy: environments may go on writing into what they answered
                vector = np.concatenate(parts, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise WorldError(
                f"{self._name} answered an observation that is no vector: {error}; expected "
                f"{len(self.names)} finite numbers"
            ) from error
        if vector.shape != (len(self.names),) or not np.isfinite(vector).all():
            raise WorldError(
                f"{self._name} answered the observation {vector.tolist()}, expected "
                f"{len(self.names)} finite numbers"
            )
        return vector

    def _as_planes(self, frame: NDArray[Any]) -> NDArray[np.uint8]:
        assert self.image is not None
        planes = frame[None] if frame.ndim == 2 else np.moveaxis(frame, -1, 0)
        if planes.shape != self.image.frame_shape or planes.dtype != np.uint8:
            raise WorldError(
                f"{self._name} answered an image {frame.dtype} {frame.shape}, expected uint8 "
                f"{self.image.frame_shape} (planes, rows, columns)"
            )
        return np.ascontiguousarray(planes)


def _kind(space: "gymnasium.Space[Any]", name: str) -> str:
    from gymnasium.spaces import Box

    if isinstance(space, Box):
        if space.dtype == np.uint8 and len(space.shape) in (2, 3):
            return "image"
        if space.dtype != np.uint8 and len(space.shape) == 1:
            return "vector"
    raise ConfigError(f"{name} is {space}, expected {_KINDS}")


def _image_spec(space: "gymnasium.Space[Any]", stack: int) -> ImageSpec:
    shape = space.shape or ()
    channels = 1 if len(shape) == 2 else shape[2]
    return ImageSpec(channels=channels, height=shape[0], width=shape[1], stack=stack)


GYM = "gym:"
"""What the names of these worlds begin with."""
_PACKAGES = ("gymnasium", "mujoco")
"""Packages whose versions shape what these worlds do."""
_INSTALL = "pip install 'avtd3[gym]'"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GymConfig:
    """Settings of Gymnasium environments."""

    stack: int = 4
    """Frames per observation where the environment gives images (Mnih et al. 2015)."""
    time_limit: int | None = None
    """Steps after which an episode is truncated; None as registered with the environment."""

    def __post_init__(self) -> None:
        check_number("stack", self.stack, minimum=1, maximum=64)
        check_number("time_limit", 1 if self.time_limit is None else self.time_limit, minimum=1)


def open_gym(identifier: str, config: GymConfig, *, render: bool = False) -> "GymEnvironment":
    """Make an environment by its name.

    Args:
        identifier: As for ``gymnasium.make``: ``Hopper-v5``, or ``module:Name-v0`` to import the
            module that registers it first.
        config: Settings.
        render: Whether `GymEnvironment.picture` will be called.

    Raises:
        ConfigError: Gymnasium is missing, there is no such environment, or its actions or
            observations are of a kind that cannot be stored.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ConfigError(f"world {GYM}{identifier} needs Gymnasium; {_INSTALL}") from error
    try:
        env = gymnasium.make(
            identifier,
            max_episode_steps=config.time_limit,
            render_mode="rgb_array" if render else None,
            disable_env_checker=True,
        )
    except _faults() as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"world {GYM}{identifier} cannot be made: {reason}; name an environment of Gymnasium "
            f"(MuJoCo's need {_INSTALL}), or MODULE:NAME of one that a module registers"
        ) from error
    return GymEnvironment(env, f"{GYM}{identifier}", config)


class GymEnvironment:
    """A Gymnasium environment.

    Args:
        env: The environment; closed with the environment.
        name: Name recorded with the data.
        config: Settings.

    Raises:
        ConfigError: Its actions or observations are of a kind that cannot be stored.
    """

    def __init__(self, env: "gymnasium.Env[Any, Any]", name: str, config: GymConfig) -> None:
        self._env = env
        self._reader = Reader(env.observation_space, config.stack, name)
        low, high = bounds_of(env.action_space, name)
        self._actions = cast("Box", env.action_space)  # bounds_of refuses others
        self._period_s = _period_s(env)
        limit = None if env.spec is None else env.spec.max_episode_steps
        self._limit = limit
        self.spec = EpisodeSpec(
            image=self._reader.image,
            vector_names=self._reader.names,
            vector_scales=(1.0,) * len(self._reader.names),
            action_names=tuple(f"action_{i}" for i in range(low.size)),
            action_low=tuple(low.tolist()),
            action_high=tuple(high.tolist()),
            reward_terms=("reward",),
            control_period_s=self._period_s,
        )
        self.name = self.setting = name
        self.scenario = 0
        self.notices: tuple[str, ...] = ()
        self._steps = 0

    @property
    def simulator(self) -> str:
        """What simulates, with versions."""
        parts = [self.name, f"avtd3 {importlib.metadata.version('avtd3')}"]
        for package in _PACKAGES:
            try:
                parts.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                continue
        return ", ".join(parts)

    def driver(self, base: str) -> Driver:
        """The random driver, which draws evenly between the bounds.

        Raises:
            ConfigError: Another is asked for.
        """
        if base != "random":
            raise ConfigError(
                f"driver {base!r} does not know {self.name}; expected random or policy (--driver)"
            )
        return UniformDriver(self.spec)

    def begin(self, seed: int, index: int = 0) -> Opening:
        """Begin an episode.

        Raises:
            WorldError: The environment failed.
        """
        self._steps = 0
        seen, _ = self._answer(2, "reset", seed=seed)
        image, vector = self._reader.read(seen)
        return Opening(image, vector, 0, 0.0, "", "")

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply an action.

        Raises:
            WorldError: The environment failed, or answered something that is not finite.
        """
        space = self._actions
        # A bound that float32 rounds up would lie outside of a float64 space.
        shaped = action.reshape(space.shape).astype(space.dtype).clip(space.low, space.high)
        seen, reward, terminated, truncated, _ = self._answer(5, "step", shaped)
        self._steps += 1
        image, vector = self._reader.read(seen)
        terms = self._as_terms(reward)
        terminated, truncated = bool(terminated), bool(truncated) and not terminated
        reason = "terminated" if terminated else self._cut() if truncated else ""
        time_s = self._steps * self._period_s
        return Step(image, vector, self._steps, time_s, terms, terminated, truncated, reason)

    def _as_terms(self, reward: Any) -> NDArray[np.float32]:  # noqa: ANN401 - as an env answers
        try:
            with np.errstate(over="ignore"):  # too large for float32 is not finite either
                terms = np.asarray(reward, np.float32).reshape(-1)
        except (TypeError, ValueError):
            terms = np.array((np.nan,), np.float32)
        if terms.shape != (1,) or not np.isfinite(terms).all():
            raise WorldError(
                f"{self.name} answered a reward of {reward} at step {self._steps}, expected one "
                "finite number"
            )
        return terms

    def _cut(self) -> str:
        return "time_limit" if self._limit and self._steps >= self._limit else "truncated"

    def _answer(self, parts: int, method: str, *args: object, **options: object) -> Any:  # noqa: ANN401 - as gym
        answer = self._ask(method, *args, **options)
        if not isinstance(answer, tuple) or len(answer) != parts:
            raise WorldError(
                f"{self.name} answers {method}() with {type(answer).__name__}, expected a tuple of "
                f"{parts}; wrap an environment of the old gym in shimmy"
            )
        return answer

    def _ask(self, method: str, *args: object, **options: object) -> Any:  # noqa: ANN401 - as gym
        try:
            return getattr(self._env, method)(*args, **options)
        except _faults() as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise WorldError(
                f"{self.name} failed in {method}() after {self._steps} steps: {reason}"
            ) from error

    def events(self) -> tuple[Event, ...]:
        """Nothing is recorded of what is no road."""
        return ()

    def measures(self) -> None:
        """Nothing beside the reward."""
        return

    def picture(self, action: NDArray[np.float32], title: str) -> "Image.Image":
        """What the environment draws of itself.

        Raises:
            WorldError: It draws nothing.
        """
        from PIL import Image

        drawn = self._ask("render")
        if not isinstance(drawn, np.ndarray) or drawn.dtype != np.uint8:
            raise WorldError(f"{self.name} draws no picture of itself; leave --gif out")
        return Image.fromarray(drawn)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _faults() -> tuple[type[Exception], ...]:
    """What an environment, somebody else's code, may raise."""
    import gymnasium

    return (
        *(gymnasium.error.Error, ArithmeticError, AssertionError, AttributeError),
        *(ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    )


def _period_s(env: "gymnasium.Env[Any, Any]") -> float:
    """Simulated seconds per step, as far as the environment says; else 1."""
    period = getattr(env.unwrapped, "dt", None)
    if isinstance(period, int | float) and period > 0.0:
        return float(period)
    pictures_per_s = env.metadata.get("render_fps")
    return 1.0 / pictures_per_s if pictures_per_s else 1.0
