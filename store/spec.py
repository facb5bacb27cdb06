"""`EpisodeSpec`: what a step of an episode consists of; written once into every dataset.

Data with equal specs are compatible. Every segment and every published policy carries the digest of
its spec, so comparing two strings finds a mismatch; `EpisodeSpec.difference` explains it.
"""

import dataclasses
import math
import numbers
from typing import Any, Self

from avtd3.store.errors import SpecError, abbreviate
from avtd3.store.files import canonical_json, sha256

MAX_AXIS = 4096
"""Largest image side, stack, vector or action length that a spec may claim."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """Shape of one stored camera frame, and how many frames an observation stacks.

    Example:
        >>> ImageSpec(channels=3, height=96, width=96).observation_shape
        (12, 96, 96)
    """

    channels: int = 1
    """Planes per frame: 1 for grayscale, 3 for planar RGB."""
    height: int = 84
    """Rows, in pixels."""
    width: int = 84
    """Columns, in pixels."""
    stack: int = 4
    """Frames per observation, oldest first."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or not 1 <= value <= MAX_AXIS:
                raise SpecError(
                    f"spec image.{field.name} is {abbreviate(value)}, expected a whole number "
                    f"1..{MAX_AXIS}"
                )

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape of one stored frame, ``(C, H, W)``."""
        return (self.channels, self.height, self.width)

    @property
    def observation_shape(self) -> tuple[int, int, int]:
        """Shape of one stacked observation, ``(K * C, H, W)``."""
        return (self.stack * self.channels, self.height, self.width)

    @property
    def frame_bytes(self) -> int:
        """Size of one raw frame in bytes."""
        return self.channels * self.height * self.width


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSpec:
    """Names, shapes, scales and timing of the data in a dataset.

    A spec has an image, a vector, or both. Vectors are stored normalised: the physical value
    divided by its scale.

    Example:
        >>> spec = EpisodeSpec(image=ImageSpec(stack=1), action_names=("steer", "gas"))
        >>> spec.action_low, spec.action_high
        ((-1.0, -1.0), (1.0, 1.0))
    """

    image: ImageSpec | None = None
    """The camera, or None for vector-only data."""
    vector_names: tuple[str, ...] = ()
    """Name with unit of each number in ``vector``; empty if there is none."""
    vector_scales: tuple[float, ...] = ()
    """Physical value that is stored as 1.0, one per name; not given: 1.0 for each."""
    action_names: tuple[str, ...]
    """Name of each action component, at least one."""
    action_low: tuple[float, ...] = ()
    """Smallest value of each action component; not given: -1.0 for each."""
    action_high: tuple[float, ...] = ()
    """Largest value of each action component; not given: 1.0 for each."""
    reward_terms: tuple[str, ...] = ()
    """Names of the terms whose sum is the reward; empty if the reward has no parts."""
    control_period_s: float = 0.05
    """Simulated seconds between two observations; the default is 20 Hz."""

    def __post_init__(self) -> None:
        for name in ("vector_names", "action_names", "reward_terms"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        if self.image is None and not self.vector_names:
            raise SpecError("spec has neither an image nor vector_names; it needs one")
        if not self.action_names:
            raise SpecError("spec has no action_names; an action needs at least one component")
        # 1 and 1.0 are equal but are different JSON; equal specs must have equal digests.
        (period,) = _floats("control_period_s", (self.control_period_s,))
        object.__setattr__(self, "control_period_s", period)
        for name, (like, default) in _PER_NAME.items():
            want = len(getattr(self, like))
            values = _floats(name, getattr(self, name)) or (default,) * want
            if len(values) != want:
                raise SpecError(f"spec {name} has {len(values)} values, expected {want} as {like}")
            object.__setattr__(self, name, values)
        self._check_values()

    def _check_values(self) -> None:
        for scale in self.vector_scales:
            if not 0.0 < scale < math.inf:
                raise SpecError(f"spec vector_scales contains {scale}, expected finite and above 0")
        for low, high in zip(self.action_low, self.action_high, strict=True):
            if not -math.inf < low < high < math.inf:
                raise SpecError(f"spec action bounds [{low}, {high}] are not a finite interval")
        if not 0.0 < self.control_period_s < math.inf:
            raise SpecError(f"spec control_period_s is {self.control_period_s}, expected above 0")

    @property
    def vector_size(self) -> int:
        """Length of the vector part of an observation; 0 if there is none."""
        return len(self.vector_names)

    @property
    def action_size(self) -> int:
        """Length of an action."""
        return len(self.action_names)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the spec, in hexadecimal."""
        return sha256(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the spec as a JSON document of plain lists and numbers."""
        document = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in document.items()}

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Return the spec that a JSON document describes.

        Args:
            document: What `to_json` returned; it may come from an untrusted file.

        Raises:
            SpecError: A key is missing, unknown, or of the wrong kind.
        """
        if not isinstance(document, dict):
            raise SpecError(f"spec is {type(document).__name__}, expected a JSON object")
        names = {field.name for field in dataclasses.fields(cls)}
        if set(document) != names:
            wrong = sorted(map(str, set(document) ^ names))
            raise SpecError(f"spec has missing or unknown keys: {abbreviate(wrong)}")
        image = document["image"]
        sizes = {field.name for field in dataclasses.fields(ImageSpec)}
        if image is not None and not (isinstance(image, dict) and image.keys() <= sizes):
            raise SpecError(f"spec image is {abbreviate(image)}, expected null or {sorted(sizes)}")
        spec = cls(**{**document, "image": None if image is None else ImageSpec(**image)})
        for name in _PER_NAME:
            if not document[name] and getattr(spec, name):
                raise SpecError(f"spec {name} is empty, expected {len(getattr(spec, name))} values")
        return spec

    def difference(self, other: "EpisodeSpec") -> str:
        """Return where two specs differ, as ``name: ours against theirs``; empty if equal."""
        mine, theirs = self.to_json(), other.to_json()
        return "; ".join(
            f"{key}: {abbreviate(mine[key])} against {abbreviate(theirs[key])}"
            for key in mine
            if mine[key] != theirs[key]
        )


_PER_NAME = {
    "vector_scales": ("vector_names", 1.0),
    "action_low": ("action_names", -1.0),
    "action_high": ("action_names", 1.0),
}
"""Fields with a number for each name in another field, and the default of that number."""


def _names(field: str, names: Any) -> tuple[str, ...]:  # noqa: ANN401 - may be from a file
    is_list = isinstance(names, list | tuple) and len(names) <= MAX_AXIS
    if not (is_list and all(name and isinstance(name, str) for name in names)) or len(
        set(names)
    ) != len(names):
        raise SpecError(
            f"spec {field} is {abbreviate(names)}, expected at most {MAX_AXIS} distinct, "
            "non-empty names"
        )
    return tuple(names)


def _floats(field: str, values: Any) -> tuple[float, ...]:  # noqa: ANN401 - as above
    try:
        if len(values) <= MAX_AXIS and all(
            isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values
        ):
            return tuple(map(float, values))
    except (OverflowError, TypeError):
        pass
    raise SpecError(f"spec {field} is {abbreviate(values)}, expected numbers")
