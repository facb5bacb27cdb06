"""`EpisodeSpec`: what a step of an episode consists of; written once into every dataset.

Data with equal specs are compatible. Every segment and every published policy carries the digest of
its spec, so comparing two strings finds a mismatch; `EpisodeSpec.difference` explains it.
"""

import dataclasses
from typing import Any, Self

from avtd3.store.errors import SpecError
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
            _check_count(f"image.{field.name}", getattr(self, field.name), minimum=1)

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
        self._fill_defaults()
        self._use_floats()
        if self.image is None and not self.vector_names:
            raise SpecError("spec has neither an image nor vector_names; it needs one")
        _check_names("vector_names", self.vector_names)
        _check_names("action_names", self.action_names)
        _check_names("reward_terms", self.reward_terms)
        if not self.action_names:
            raise SpecError("spec has no action_names; an action needs at least one component")
        self._check_lengths()
        self._check_values()

    def _fill_defaults(self) -> None:
        for name, like, value in (
            ("vector_scales", self.vector_names, 1.0),
            ("action_low", self.action_names, -1.0),
            ("action_high", self.action_names, 1.0),
        ):
            if not getattr(self, name):
                object.__setattr__(self, name, (value,) * len(like))

    def _use_floats(self) -> None:
        # 1 and 1.0 are equal but are different JSON; equal specs must have equal digests.
        for name in ("vector_scales", "action_low", "action_high"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        object.__setattr__(self, "control_period_s", float(self.control_period_s))

    def _check_lengths(self) -> None:
        for name, like in (
            ("vector_scales", "vector_names"),
            ("action_low", "action_names"),
            ("action_high", "action_names"),
        ):
            have, want = len(getattr(self, name)), len(getattr(self, like))
            if have != want:
                raise SpecError(f"spec {name} has {have} values, expected {want} as in {like}")

    def _check_values(self) -> None:
        for scale in self.vector_scales:
            if not 0.0 < scale < float("inf"):
                raise SpecError(f"spec vector_scales contains {scale}, expected finite and above 0")
        for low, high in zip(self.action_low, self.action_high, strict=True):
            if not float("-inf") < low < high < float("inf"):
                raise SpecError(f"spec action bounds [{low}, {high}] are not a finite interval")
        if not 0.0 < self.control_period_s < float("inf"):
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
            wrong = sorted(set(document) ^ names)
            raise SpecError(f"spec has missing or unknown keys: {', '.join(map(str, wrong))}")
        image = document["image"]
        try:
            spec = cls(
                image=None if image is None else ImageSpec(**image),
                control_period_s=float(document["control_period_s"]),
                vector_names=tuple(map(str, document["vector_names"])),
                vector_scales=tuple(map(float, document["vector_scales"])),
                action_names=tuple(map(str, document["action_names"])),
                action_low=tuple(map(float, document["action_low"])),
                action_high=tuple(map(float, document["action_high"])),
                reward_terms=tuple(map(str, document["reward_terms"])),
            )
        except (TypeError, ValueError) as error:
            raise SpecError(f"spec cannot be read: {error}") from error
        for name in ("vector_scales", "action_low", "action_high"):
            if not document[name] and getattr(spec, name):
                raise SpecError(f"spec {name} is empty, expected {len(getattr(spec, name))} values")
        return spec

    def difference(self, other: "EpisodeSpec") -> str:
        """Return where two specs differ, as ``name: ours against theirs``; empty if equal."""
        mine, theirs = self.to_json(), other.to_json()
        return "; ".join(
            f"{key}: {mine[key]!r} against {theirs[key]!r}"
            for key in mine
            if mine[key] != theirs[key]
        )


def _check_count(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= MAX_AXIS:
        raise SpecError(f"spec {name} is {value!r}, expected a whole number {minimum}..{MAX_AXIS}")


def _check_names(field: str, names: tuple[str, ...]) -> None:
    if len(names) > MAX_AXIS or len(set(names)) != len(names) or not all(names):
        raise SpecError(f"spec {field} must be at most {MAX_AXIS} distinct, non-empty names")
