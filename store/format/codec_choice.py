"""Which codec suits a camera: measured on its first frames.

A camera without noise compresses to a fifth with lz4hc, which decodes fastest. Sensor noise leaves
lz4hc little to find, and zstd still its statistics. What saves less than a fifth of the bytes is
not worth decoding at each draw.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from avtd3.store.format.codec import FrameCodec

MEASURED_FRAMES = 256
"""Frames that are held back until there is a codec for them: 2 MB of 84x84 grey."""
LEAST_SAVING = 0.2
"""Share of the raw bytes that a codec must save."""
_MOST_CHUNKS = 16


def choose_codec(settings: FrameCodec, frames: NDArray[np.uint8]) -> FrameCodec:
    """The codec for a camera: lz4hc, zstd 1 or raw, the first that saves enough.

    It takes some 10 ms, once for each writer.

    Args:
        settings: Level of lz4hc, and frames per chunk; raw frames are a chunk each, because
            nothing is saved by more.
        frames: uint8 (N, C, H, W), the camera's first, at least one.

    Returns:
        One whose name is not ``auto``.
    """
    size = settings.chunk_frames
    count = max(1, len(frames) // size)
    numbers = np.linspace(0, count - 1, min(count, _MOST_CHUNKS)).astype(int).tolist()
    chunks = [np.ascontiguousarray(frames[n * size : (n + 1) * size]) for n in numbers]
    most = (1.0 - LEAST_SAVING) * sum(chunk.nbytes for chunk in chunks)
    for codec in (
        dataclasses.replace(settings, name="lz4hc"),
        dataclasses.replace(settings, name="zstd", level=1),
    ):
        if sum(len(codec.encode(chunk)) for chunk in chunks) <= most:
            return codec
    return dataclasses.replace(settings, name="raw", chunk_frames=1)
