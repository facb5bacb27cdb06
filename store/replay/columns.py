"""What a row of the replay cache holds: one observation, and the step that begins with it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.replay.scratch import RowType
from avtd3.store.spec import EpisodeSpec

REWARD, ALIVE, ACTION = 0, 1, 2
"""Where the column ``numbers`` has a step's reward, 1 - terminated, and the first number of the
action; the observation's vector follows."""


def row_types(spec: EpisodeSpec, *, frames: bool) -> dict[str, RowType]:
    """The columns: ``numbers``, and with frames, if the spec has an image, ``frames``."""
    width = ACTION + spec.action_size + spec.vector_size
    types = {"numbers": RowType(dtype=np.float32, shape=(width,))}
    if frames and spec.image is not None:
        types["frames"] = RowType(dtype=np.uint8, shape=spec.image.frame_shape)
    return types


def row_bytes(spec: EpisodeSpec) -> int:
    """Scratch that one row takes in a cache with frames."""
    return sum(kind.size_bytes for kind in row_types(spec, frames=True).values())


def write_numbers(
    out: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]], spec: EpisodeSpec
) -> None:
    """Write the small arrays of a segment of S steps in E episodes.

    Args:
        out: float32 (S + E, 2 + A + V), the segment's rows of the column ``numbers``.
        arrays: From `read_checked`.
        spec: What the segment holds.
    """
    vector = ACTION + spec.action_size
    out[:, :vector] = 0.0
    if spec.vector_size:
        out[:, vector:] = arrays["vector"]
    lengths = arrays["episode_length"]
    rows = np.arange(lengths.sum()) + np.repeat(np.arange(len(lengths)), lengths)
    out[rows, REWARD] = arrays["reward"]
    out[rows, ALIVE] = ~arrays["terminated"]
    out[rows, ACTION:vector] = arrays["action"]
