"""The arrays of a segment: names, shapes, dtypes, files.

This is the only place that names the arrays of the format; the writer and the reader use it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avtd3.store.spec import EpisodeSpec

FORMAT_VERSION = 2
"""Newest version of the dataset format; this code reads and writes it and all earlier ones. The
spec says which one a dataset has, see `EpisodeSpec.format_version`."""
SEGMENTS, STAGING, QUARANTINE, MAPS = "segments", ".staging", "quarantine", "maps"
"""Directories of a dataset."""
GROUP_FILE = "zarr.json"
MANIFEST_FILE = "MANIFEST.json"
MAX_STEPS = 1_000_000
"""Most steps that a segment may have."""
FRAMES = "frames"
"""Name of the array with the frames of a spec's image, and beginning of those of its streams."""
_FRAME_DIMENSIONS = ("channel", "row", "column")

EPISODE_NUMBERS: Mapping[str, str] = {
    "episode_offset": "int64",
    "episode_length": "int64",
    "episode_index": "int64",
    "episode_seed": "int64",
    "episode_return": "float64",
    "episode_scenario": "int64",
    "episode_policy_version": "int64",
    "episode_exploration_noise": "float32",
    "episode_wall_time": "float64",
}
"""Numeric columns with one row per episode, and their dtypes."""

EPISODE_STRINGS = (
    "episode_world",
    "episode_town",
    "episode_weather",
    "episode_driver",
    "episode_end_reason",
    "episode_policy_digest",
)
"""Columns of int32 codes into the array's attribute ``categories``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """Shape, dtype and dimensions of one array of a segment."""

    name: str
    """Name of the array's directory in the segment's."""
    shape: tuple[int, ...]
    """Number of rows, then the shape of a row."""
    dtype: str
    """Name in Zarr and numpy."""
    dimensions: tuple[str, ...]
    """Name of each axis."""
    is_packed: bool = False
    """Whether the chunk is compressed, see `avtd3.store.format.codec.pack`."""
    is_sharded: bool = False
    """Whether the array is a shard of compressed chunks: the frames."""

    @property
    def chunk_path(self) -> str:
        """Path of the array's only chunk or shard, below the segment's directory."""
        return "/".join((self.name, "c", *("0" for _ in self.shape)))

    @property
    def metadata_path(self) -> str:
        """Path of the array's ``zarr.json``, below the segment's directory."""
        return f"{self.name}/{GROUP_FILE}"

    @property
    def nbytes(self) -> int:
        """Size of the array's values in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


Column: TypeAlias = NDArray[Any] | Sequence[str]
"""Values of an array: numbers, or texts that are stored as codes into categories."""


def column_layout(name: str, column: Column, dimension: str) -> ArrayLayout:
    """Return the layout of an optional array of one dimension."""
    dtype = column.dtype.name if isinstance(column, np.ndarray) else "int32"
    return ArrayLayout(name=name, shape=(len(column),), dtype=dtype, dimensions=(dimension,))


def frames_array(spec: EpisodeSpec, stream: str | None = None) -> str:
    """Return the name of the array with the frames of a stream, or of the only one."""
    name = spec.stream_name(stream)
    return FRAMES if spec.image is not None else f"{FRAMES}_{name}"


def segment_arrays(
    spec: EpisodeSpec, *, episodes: int, steps: int, observations: int
) -> dict[str, ArrayLayout]:
    """Return the arrays of a segment with these counts, by name."""
    found: dict[str, ArrayLayout] = {}

    def add(name: str, dtype: str, shape: tuple[int, ...], *dimensions: str) -> None:
        found[name] = ArrayLayout(name=name, shape=shape, dtype=dtype, dimensions=dimensions)

    for stream, image in spec.images.items():
        name = frames_array(spec, stream)
        found[name] = ArrayLayout(
            name=name,
            shape=(observations, *image.frame_shape),
            dtype="uint8",
            dimensions=("observation", *_FRAME_DIMENSIONS),
            is_sharded=True,
        )
    if spec.vector_size:
        vector_shape = (observations, spec.vector_size)
        add("vector", "float32", vector_shape, "observation", "vector_component")
    add("frame_id", "int64", (observations,), "observation")
    add("sim_time", "float64", (observations,), "observation")
    add("action", "float32", (steps, spec.action_size), "step", "action_component")
    add("reward", "float32", (steps,), "step")
    if spec.reward_terms:
        add("reward_terms", "float32", (steps, len(spec.reward_terms)), "step", "term")
    add("terminated", "bool", (steps,), "step")
    add("truncated", "bool", (steps,), "step")
    for name, dtype in EPISODE_NUMBERS.items():
        add(name, dtype, (episodes,), "episode")
    for name in EPISODE_STRINGS:
        add(name, "int32", (episodes,), "episode")
    return found


def raw_bytes(spec: EpisodeSpec, *, episodes: int, steps: int, observations: int) -> int:
    """Return the size in memory of all `segment_arrays`, in bytes, without creating them."""
    frame_bytes = sum(image.frame_bytes for image in spec.images.values())
    return (
        observations * (frame_bytes + 4 * spec.vector_size + 8 + 8)
        + steps * (4 * spec.action_size + 4 + 4 * len(spec.reward_terms) + 2)
        + episodes * (8 * 8 + 4 + 4 * len(EPISODE_STRINGS))
    )
