"""What Gymnasium's spaces are in a dataset: action bounds, image specs and vectors."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import ConfigError, WorldError
from avtd3.store.spec import MAX_AXIS, ImageSpec

if TYPE_CHECKING:
    import gymnasium

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
