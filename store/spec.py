"""`EpisodeSpec`: what a step of an episode consists of; written once into every dataset.

Data with equal specs are compatible. Every segment and every published policy carries the digest of
its spec, so comparing two strings finds a mismatch; `EpisodeSpec.difference` explains it.

A spec with named streams of images is written in format 2, every other spec in format 1.
"""

import dataclasses
import math
import numbers
import re
from collections.abc import Collection, Mapping
from typing import Any, Self

from avtd3.store.errors import SpecError, abbreviate
from avtd3.store.files import canonical_json, sha256

MAX_AXIS = 4096
"""Largest image side, stack, vector or action length that a spec may claim."""
MAX_STREAMS = 32
"""Most streams of a spec."""
IMAGE = "image"
"""Name of the only stream of a spec with an `image`."""
_STREAM_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


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
    stride: int = 1
    """Observations between two frames of a stack; above 1 only in a named stream."""

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

    A spec has an image or several named streams of images, a vector, or both. Vectors are stored
    normalised: the physical value divided by its scale.

    Example:
        >>> spec = EpisodeSpec(image=ImageSpec(stack=1), action_names=("steer", "gas"))
        >>> spec.action_low, spec.action_high
        ((-1.0, -1.0), (1.0, 1.0))
        >>> streams = {"gray": ImageSpec(), "rgb": ImageSpec(channels=3, height=144, width=256)}
        >>> several = EpisodeSpec(streams=streams, action_names=("steer",))
        >>> several.format_version, list(several.select(["rgb"]).images)
        (2, ['rgb'])
    """

    image: ImageSpec | None = None
    """The only camera; None for vector-only data, and with `streams`."""
    streams: Mapping[str, ImageSpec] = dataclasses.field(default_factory=dict, hash=False)
    """Named streams of images, in the order of their names. A name has up to 32 lower-case letters,
    digits and `_`, and starts with a letter."""
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
        self._check_streams()
        if not self.images and not self.vector_names:
            raise SpecError("spec has neither an image nor streams nor vector_names; it needs one")
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

    def _check_streams(self) -> None:
        streams = self.streams
        if not isinstance(streams, Mapping) or len(streams) > MAX_STREAMS:
            raise SpecError(f"spec streams is {abbreviate(streams)}, expected up to {MAX_STREAMS}")
        for name, image in streams.items():
            if not (isinstance(name, str) and _STREAM_NAME.fullmatch(name)):
                raise SpecError(
                    f"spec has a stream named {abbreviate(name)}, expected up to 32 lower-case "
                    "letters, digits and _, the first one a letter"
                )
            if not isinstance(image, ImageSpec):
                raise SpecError(f"spec stream {name} is {abbreviate(image)}, expected an ImageSpec")
        object.__setattr__(self, "streams", dict(sorted(streams.items())))
        if self.image is not None and streams:
            raise SpecError("spec has an image and streams; make the image a stream, too")
        if self.image is not None and self.image.stride != 1:
            raise SpecError(
                f"spec image.stride is {self.image.stride}, expected 1; a stride needs a named "
                "stream (streams={'front': ImageSpec(stride=2)})"
            )

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
    def format_version(self) -> int:
        """Version of the format in which datasets of this spec are written: 2 with streams."""
        return 2 if self.streams else 1

    @property
    def images(self) -> Mapping[str, ImageSpec]:
        """All streams by name; that of a spec with an `image` is called ``image``."""
        return self.streams if self.image is None else {IMAGE: self.image}

    def image_of(self, stream: str | None = None) -> ImageSpec:
        """Return a stream, which need not be named if it is the only one.

        Raises:
            SpecError: There is no such stream, or several and none is named.
        """
        return self.images[self.stream_name(stream)]

    def stream_name(self, stream: str | None = None) -> str:
        """Return the name of a stream, or of the only one; see `image_of`."""
        images = self.images
        if stream is None and len(images) == 1:
            return next(iter(images))
        if stream is None or stream not in images:
            asked = "no stream was named" if stream is None else f"there is no stream {stream!r}"
            known = f"one of: {', '.join(images)}" if images else "none, as the spec has no image"
            raise SpecError(f"{asked}, expected {known}")
        return stream

    def select(self, names: Collection[str] = ()) -> "EpisodeSpec":
        """Return the spec with only some of its streams; with all of them if none is named.

        Raises:
            SpecError: There is no stream of that name.
        """
        if not names:
            return self
        chosen = {self.stream_name(name): self.images[name] for name in names}
        return self if self.image else dataclasses.replace(self, streams=chosen)

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
        if self.image is not None:
            del document["image"]["stride"]
        del document["image" if self.streams else "streams"]
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
        names.remove("image" if "streams" in document else "streams")
        if set(document) != names:
            wrong = sorted(map(str, set(document) ^ names))
            raise SpecError(f"spec has missing or unknown keys: {abbreviate(wrong)}")
        spec = cls(**{**document, **_read_images(document)})
        for name in _PER_NAME:
            if not document[name] and getattr(spec, name):
                raise SpecError(f"spec {name} is empty, expected {len(getattr(spec, name))} values")
        return spec

    def difference(self, other: "EpisodeSpec") -> str:
        """Return where two specs differ, as ``name: ours against theirs``; empty if equal."""
        mine, theirs = self.to_json(), other.to_json()
        return "; ".join(
            f"{key}: {abbreviate(mine.get(key))} against {abbreviate(theirs.get(key))}"
            for key in mine | theirs
            if mine.get(key) != theirs.get(key)
        )

    def lacks(self, needed: "EpisodeSpec") -> str:
        """Return why observations of this spec do not have what another one needs; empty if so.

        A policy needs only the streams that it reads.
        """
        if self.streams.keys() >= needed.streams.keys() and needed.streams:
            return self.select(list(needed.streams)).difference(needed)
        return self.difference(needed)


def _read_images(document: dict[str, Any]) -> dict[str, Any]:
    """Return the images of a spec's JSON document as the arguments of `EpisodeSpec`."""
    if "streams" not in document:
        image = document["image"]
        return {"image": None if image is None else _read_image("image", image, "null or ")}
    streams = document["streams"]
    if not isinstance(streams, dict) or not streams:
        raise SpecError(f"spec streams is {abbreviate(streams)}, expected at least one by name")
    return {"streams": {name: _read_image(f"stream {name}", streams[name]) for name in streams}}


def _read_image(name: str, image: object, other: str = "") -> ImageSpec:
    sizes = {field.name for field in dataclasses.fields(ImageSpec)}
    if other:
        sizes.remove("stride")
    if not (isinstance(image, dict) and image.keys() <= sizes):
        raise SpecError(f"spec {name} is {abbreviate(image)}, expected {other}{sorted(sizes)}")
    return ImageSpec(**image)


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
