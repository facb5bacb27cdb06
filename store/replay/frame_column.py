"""`FrameColumn`: all decoded frames at once, for who keeps a copy of them elsewhere."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.replay.cache import ReplayCache
from avtd3.store.replay.rows import Key


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameColumn:
    """The frames of a replay cache, and where those of each segment lie."""

    frames: NDArray[np.uint8] | None
    """uint8 (rows, C, H, W), the cache's own memory; None while it is empty."""
    placed: Mapping[Key, slice]
    """Rows of each segment that can be drawn from; what lies between them is not for reading."""

    @classmethod
    def of(cls, cache: ReplayCache) -> Self:
        """The column of a cache of images."""
        placed = {}
        for key, segment in cache.segments.items():
            start = cache.start(key)
            placed[key] = slice(start, start + segment.steps + len(segment.first_rows))
        return cls(frames=cache.columns().get("frames"), placed=placed)
