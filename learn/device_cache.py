"""`DeviceFrameCache`: the replay's frames in the memory of the device that learns.

A batch of 256 needs 9 MB of frames. Gathered on the host they cross to the device for every update;
from a copy that lies there, only their numbers do. The copy follows the replay cache: what is new
is copied once, and what left the cache is overwritten by what comes.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtd3.store.errors import ConfigError
from avtd3.store.replay.backend import FrameArray
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import ImageSpec

_ROOM = 1.25
"""How much more room is taken than is needed, when more is needed: growing copies everything."""


class DeviceFrameCache:
    """A copy of a sampler's frames.

    Args:
        image: The spec's image.
        device: Where the copy lies.
    """

    def __init__(self, image: ImageSpec, device: torch.device) -> None:
        self._planes = image.observation_shape[0]
        self._device = device
        self._frames = torch.empty((0, *image.frame_shape), dtype=torch.uint8, device=device)
        self._column: FrameArray | None = None

    def stacks(self, sampler: Sampler, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The images of a batch, from frames that are on the device.

        Args:
            sampler: Who drew the rows, and has not drawn again since.
            rows: int64 (B, W), `Transitions.frame_rows`.

        Returns:
            uint8 (B, K*C, H, W), those of the observations and of the next ones.

        Raises:
            ConfigError: The device has no room for the frames.
        """
        column = sampler.frame_array()
        if column is not self._column:
            self._follow(column)
        numbers = torch.from_numpy(rows).reshape(-1).to(self._device)
        window = self._frames.index_select(0, numbers)
        window = window.view(*rows.shape, *window.shape[1:]).flatten(1, 2)
        return window[:, : self._planes], window[:, -self._planes :]

    def _follow(self, column: FrameArray) -> None:
        """Copy what is new, or lies elsewhere now."""
        assert column.frames is not None, "rows were drawn from it"
        if len(column.frames) > len(self._frames):
            self._grow(len(column.frames))
        frames = torch.from_numpy(column.frames)
        held = {} if self._column is None else self._column.placed
        for key, rows in column.placed.items():
            if held.get(key) != rows:
                self._frames[rows] = frames[rows].to(self._device)
        self._column = column

    def _grow(self, rows: int) -> None:
        before = self._frames
        shape = (round(_ROOM * rows), *before.shape[1:])
        try:
            self._frames = torch.empty(shape, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"learn.device_frames: {self._device} has no room for {rows:,} frames "
                f"({math.prod(shape) / 2**30:.1f} GiB); set it to false, or lower "
                "learn.replay.capacity"
            ) from error
        self._frames[: len(before)] = before


def open_device_cache(
    image: ImageSpec | None, device: torch.device, *, wanted: bool
) -> DeviceFrameCache | None:
    """A ring if it is wanted and of use: of images, on a device with memory of its own."""
    if not wanted or image is None or device.type == "cpu":
        return None
    return DeviceFrameCache(image, device)
