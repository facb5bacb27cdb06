"""`GymEnvironment`: any Gymnasium environment whose spaces can be stored."""

import contextlib
import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import check_number
from avtd3.collect.environment import Environment, ResetResult
from avtd3.collect.foreign import ForeignCode, check_actions, check_images
from avtd3.store.errors import (
    Avtd3Error,
    ConfigError,
    WorldError,
    check_integers,
    install_command,
)
from avtd3.store.spec import IMAGE, MAX_AXIS, EpisodeSpec, ImageSpec
from avtd3.store.step import Observation, Step

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.spaces import Box
    from PIL import Image


_KINDS = "a one-dimensional Box, a Box of uint8 (H, W) or (H, W, C), or a Dict of these"


def read_bounds(
    space: "gymnasium.Space[Any]", name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the smallest and the largest value of each action, each float32 (A,)."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(
            f"{name} has actions {space}, expected a Box of floats: TD3 needs continuous actions"
        )
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite
        low, high = space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel()
    check_actions(name, low.tolist(), high.tolist())
    if not (low.size and (low < high).all()):
        raise ConfigError(f"{name} has actions {space}, expected low below high for each")
    return low, high


class ObservationReader:
    """Converts a Gymnasium environment's observations into images and vectors."""

    def __init__(self, space: "gymnasium.Space[Any]", stack: int, name: str) -> None:
        from gymnasium.spaces import Dict

        self._name = name
        self._is_dict = isinstance(space, Dict)
        parts = dict(space.spaces) if isinstance(space, Dict) else {"observation": space}
        kinds = {key: _kind(part, f"{name}: {key}") for key, part in parts.items()}
        self._images = [key for key, kind in kinds.items() if kind == "image"]
        self._vectors = [key for key, kind in kinds.items() if kind == "vector"]
        if not kinds:
            raise ConfigError(f"{name} observes {space}, expected {_KINDS}")
        found: dict[str, ImageSpec] = {}
        for key in self._images:
            height, width, channels = (*(parts[key].shape or ()), 1)[:3]
            found[key] = ImageSpec(channels=channels, height=height, width=width, stack=stack)
        is_one = len(found) == 1
        self.image = next(iter(found.values())) if is_one else None
        self.streams = {} if is_one else found
        self._shapes = {key: image.frame_shape for key, image in found.items()}
        sizes = {key: math.prod(parts[key].shape or ()) for key in self._vectors}
        self.names = tuple(f"{key}_{i}" for key, size in sizes.items() for i in range(size))
        if (count := len(self.names)) > MAX_AXIS:
            raise ConfigError(f"{name} observes {count} numbers, expected at most {MAX_AXIS}")

    def read(self, returned: Any, step: int = 0, time_s: float = 0.0) -> Observation:  # noqa: ANN401 - any space
        """Convert what the environment returned at a step of its episode."""
        parts = returned if self._is_dict else {"observation": returned}
        keys = {*self._images, *self._vectors}
        if not isinstance(parts, Mapping) or not keys <= parts.keys():
            found = sorted(parts) if isinstance(parts, Mapping) else type(parts).__name__
            raise WorldError(f"{self._name} returned {found}, expected a dict of {sorted(keys)}")
        planes = {key: self._to_planes(key, np.asarray(parts[key])) for key in self._images}
        return Observation(
            image=None if self.image is None else planes[self._images[0]],
            streams=planes if self.streams else None,
            vector=self._to_vector(parts) if self._vectors else None,
            frame_id=step,
            sim_time_s=time_s,
        )

    def _to_vector(self, parts: Mapping[str, Any]) -> NDArray[np.float32]:
        expected = f"expected {len(self.names)} finite numbers"
        try:
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite
                # a copy: environments may reuse the arrays that they return
                vector = np.concatenate([parts[k] for k in self._vectors], dtype=np.float32)
        except (TypeError, ValueError) as error:
            found = f"an observation that is not a vector: {error}"
            raise WorldError(f"{self._name} returned {found}; {expected}") from error
        if vector.shape != (len(self.names),) or not np.isfinite(vector).all():
            found = f"the observation {vector.tolist()}"
            raise WorldError(f"{self._name} returned {found}, {expected}")
        return vector

    def _to_planes(self, key: str, frame: NDArray[Any]) -> NDArray[np.uint8]:
        planes = frame[None] if frame.ndim == 2 else np.moveaxis(frame, -1, 0)
        if planes.shape != self._shapes[key] or planes.dtype != np.uint8:
            raise WorldError(
                f"{self._name} returned an image {frame.dtype} {frame.shape}, expected uint8 "
                f"{self._shapes[key]} (planes, rows, columns)"
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


GYM = "gym:"
"""Prefix of the names of these worlds."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GymConfig:
    """Settings of Gymnasium environments."""

    stack: int = 4
    """Frames per observation if the environment returns images (4: Mnih et al. 2015)."""
    time_limit: int | None = None
    """Steps after which an episode is truncated; None keeps the environment's own limit."""

    def __post_init__(self) -> None:
        check_integers(self, "gym.")
        check_number("stack", self.stack, minimum=1, maximum=64)
        check_number("time_limit", 1 if self.time_limit is None else self.time_limit, minimum=1)


def open_gym(identifier: str, config: GymConfig, *, render: bool = False) -> "GymEnvironment":
    """Make a Gymnasium environment by its name."""
    name = f"{GYM}{identifier}"
    try:
        import gymnasium
    except ImportError as error:
        raise ConfigError(
            f"world {name} needs Gymnasium; install it with: {install_command('gym')}"
        ) from error
    code = ForeignCode(name, identifier.partition(":")[0])
    try:
        env = code.call(
            "gymnasium.make()",
            gymnasium.make,
            identifier,
            max_episode_steps=config.time_limit,
            disable_env_checker=True,
            **({"render_mode": "rgb_array"} if render else {}),
        )
    except WorldError as error:
        if not isinstance(error.__cause__, gymnasium.error.Error | ImportError):
            raise
        raise ConfigError(
            f"world {name} cannot be made: {' '.join(str(error.__cause__).split())}; give the name "
            f"of a Gymnasium environment (MuJoCo's need {install_command('gym')}), or MODULE:NAME "
            "of one that a module registers"
        ) from error
    try:
        return GymEnvironment(env, code, config)
    except Avtd3Error:
        code.discard(env)
        raise


class GymEnvironment(Environment):
    """A Gymnasium environment as one of ours: every call is guarded."""

    def __init__(
        self, env: "gymnasium.Env[Any, Any]", code: ForeignCode, config: GymConfig
    ) -> None:
        self._env, self._code, self.name, self._steps = env, code, code.name, 0
        space = code.get(env, "observation_space")
        self._reader = reader = ObservationReader(space, config.stack, self.name)
        self._actions = cast("Box", code.get(env, "action_space"))  # read_bounds refuses others
        low, high = read_bounds(self._actions, self.name)
        self._period_s = code.call("its metadata", _period_s, env)
        self._limit: int | None = getattr(code.get(env, "spec"), "max_episode_steps", None)
        order = "(rows, columns) or (rows, columns, channels)"
        images = reader.streams or ({} if reader.image is None else {IMAGE: reader.image})
        self._notices = check_images(self.name, images, order)
        self.spec = EpisodeSpec(
            image=reader.image,
            streams=reader.streams,
            vector_names=reader.names,
            vector_scales=(1.0,) * len(reader.names),
            action_names=tuple(f"action_{i}" for i in range(low.size)),
            action_low=tuple(low.tolist()),
            action_high=tuple(high.tolist()),
            reward_terms=("reward",),
            control_period_s=self._period_s,
        )

    @property
    def simulator(self) -> str:
        """Name and versions of the software that simulates."""
        parts = [super().simulator]
        for package in ("gymnasium", "mujoco"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                parts.append(f"{package} {importlib.metadata.version(package)}")
        return ", ".join(parts)

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about the environment."""
        return self._notices

    @property
    def has_time_limit(self) -> bool:
        """Whether the environment is registered or made with a limit."""
        return self._limit is not None

    def reset(self, seed: int, index: int = 0) -> ResetResult:
        """Start an episode."""
        self._steps = 0
        returned, _ = self._call(2, "reset", seed=seed)
        return ResetResult(observation=self._observe(returned))

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply an action; raise `WorldError` if it returns something that is not finite."""
        space = self._actions
        # A bound that float32 rounds up would lie outside of a float64 space.
        shaped = action.reshape(space.shape).astype(space.dtype).clip(space.low, space.high)
        returned, reward, terminated, truncated, _ = self._call(5, "step", shaped)
        self._steps += 1
        terminated = self._code.call("step(), ends", bool, terminated)
        truncated = self._code.call("step(), ends", bool, truncated) and not terminated
        cut = "time_limit" if self._limit and self._steps >= self._limit else "truncated"
        return Step(
            action=action,
            observation=self._observe(returned),
            reward_terms=self._to_terms(reward),
            terminated=terminated,
            truncated=truncated,
            end_reason="terminated" if terminated else cut if truncated else "",
        )

    def _observe(self, returned: object) -> Observation:
        time_s = self._steps * self._period_s
        observation: Observation = self._code.call(
            "its observation", self._reader.read, returned, self._steps, time_s
        )
        return observation

    def _to_terms(self, reward: Any) -> NDArray[np.float32]:  # noqa: ANN401 - as an env returns
        try:
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite
                terms = np.asarray(reward, np.float32).reshape(-1)
        except (TypeError, ValueError):
            terms = np.array((np.nan,), np.float32)
        if terms.shape != (1,) or not np.isfinite(terms).all():
            found = f"a reward of {reward!r:.80} at step {self._steps}"
            raise WorldError(f"{self.name} returned {found}, expected one finite number")
        return terms

    def _call(self, parts: int, method: str, *args: object, **options: object) -> Any:  # noqa: ANN401 - as gym
        place = f"{method}() after {self._steps} steps"
        returned = self._code.call(place, getattr(self._env, method), *args, **options)
        if not isinstance(returned, tuple) or len(returned) != parts:
            raise WorldError(
                f"{self.name} returns {type(returned).__name__} from {method}(), expected a tuple "
                f"of {parts}; wrap an environment of the old gym in shimmy"
            )
        return returned

    def picture(self, action: NDArray[np.float32], title: str) -> "Image.Image":
        """Return what the environment renders."""
        from PIL import Image

        rendered = self._code.call("render()", self._env.render)
        if not isinstance(rendered, np.ndarray) or rendered.dtype != np.uint8:
            return super().picture(action, title)
        picture: Image.Image = self._code.call("render(), its array", Image.fromarray, rendered)
        return picture

    def close(self) -> None:
        """Close the environment."""
        self._code.call("close()", self._env.close)


def _period_s(env: "gymnasium.Env[Any, Any]") -> float:
    """Return the simulated seconds per step if the environment states them, else 1."""
    period_s = _positive(getattr(env.unwrapped, "dt", None))
    pictures_per_s = _positive((env.metadata or {}).get("render_fps"))
    return period_s or (1.0 / pictures_per_s if pictures_per_s else 1.0)


def _positive(value: Any) -> float:  # noqa: ANN401 - as an env states it
    """Return a value as a number if it is one that a duration or a rate can have, else 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if 1e-9 <= number <= 1e9 else 0.0
