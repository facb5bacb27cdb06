"""`Batch`: sampled transitions as tensors on the device, and the steps that produce it.

==================== ===================== =========================================
field                dtype                 shape and range
==================== ===================== =========================================
observation.pixels   float32 or bfloat16   (B, K*C, H, W) for each stream of images, 0..255,
                                           channels_last
observation.vector   float32               (B, V), normalised
action               float32               (B, A), within the spec's bounds
reward               float32               (B,), n-step sum
discount             float32               (B,), gamma^m * (1 - terminated), in [0, 1]
next_observation     as observation
weight               float32               (B,), in (0, 1]; only if prioritised
bc_mask              float32               (B,), 0 or 1; only if not all are imitated
bc_action            float32               (B, A), to imitate; only with imitate_expert
==================== ===================== =========================================

Frames are copied to the device once, as bytes, in the sampler's shared window of K + 1 frames. On
the device, both stacks are shifted (if configured) and converted to pixels once for all networks.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtd3.learn.networks import ObservationBatch, to_pixels
from avtd3.learn.ranks import ALONE, Ranks
from avtd3.store.errors import ConfigError
from avtd3.store.replay.cache import FrameArray
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.gather import SequenceBatch, StreamBatch, Transitions
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import ImageSpec

_GROWTH = 1.25  # of the memory of `DeviceFrameCache`, which copies everything when it grows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Transitions ready for an update; see the table above."""

    observation: ObservationBatch
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_observation: ObservationBatch
    """The observations n steps later."""
    weight: Tensor | None = None
    """Importance weights; None if all are 1."""
    bc_mask: Tensor | None = None
    """1 if the imitation term includes the transition, else 0; None if all are 1."""
    bc_action: Tensor | None = None
    """The actions to imitate; None for `action`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RandomShift:
    """Settings of the random shifts of images (DrQ-v2, Yarats et al. 2021)."""

    pad: int
    """Largest shift, in pixels; above 0."""
    generator: torch.Generator
    ranks: Ranks = ALONE
    """All of them draw the shifts of the whole batch."""


def draw_shifts(
    pad: int, size: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return int64 (B, 2) shifts in -pad..pad for the observations, and for the next ones."""
    drawn = torch.randint(-pad, pad + 1, (2, size, 2), generator=generator, device=device)
    return drawn[0], drawn[1]


def shift_frames(frames: Tensor, shift: Tensor, pad: int) -> Tensor:
    """Shift stacks, uint8 (B, K*C, H, W), by int64 (B, 2); the border is repeated.

    The published code samples bilinearly, but at whole pixels, so copying bytes gives the same
    result. On one core, 256 stacks of 84x84x4 take 14 ms; indexing rows and columns takes 60 ms.
    """
    size, planes, height, width = frames.shape
    image = torch.stack(frames.unbind(1), -1)  # (B, H, W, K*C)
    left, right = image[:, :, :1], image[:, :, -1:]
    wide = torch.cat(
        [left.expand(-1, -1, pad, -1), image, right.expand(-1, -1, pad, -1)], dim=2
    )  # (B, H, W + 2 * pad, K*C)
    rows = (torch.arange(height, device=frames.device) + shift[:, :1]).clamp(0, height - 1)
    first = torch.arange(size, device=frames.device)[:, None] * height
    start = (first + rows) * wide.shape[2] + pad + shift[:, 1:]
    # all runs of W consecutive pixels in memory: each row of the result is one of them
    runs = wide.as_strided((size * height * wide.shape[2] - width + 1, width * planes), (planes, 1))
    moved = runs.index_select(0, start.flatten())
    return moved.view(size, height, width, planes).permute(0, 3, 1, 2)


def to_batch(
    transitions: Transitions,
    device: torch.device,
    dtype: torch.dtype,
    shift: RandomShift | None = None,
    stacks: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Batch:
    """Move sampled transitions to the device, unless their `stacks` of images are there already.

    `stacks` are those of each stream. On the CPU, the small arrays are copied, because the sampler
    reuses its buffers.
    """
    if stacks is None:
        stacks = [_send_stacks(stream, device) for stream in transitions.streams.values()]
    before, after = _convert_all(stacks, dtype, shift)
    vector = _send_if_any(transitions.observation_vector, device)
    next_vector = _send_if_any(transitions.next_observation_vector, device)
    return Batch(
        observation=ObservationBatch(pixels=before, vector=vector),
        action=_send(transitions.action, device, copy=True),
        reward=_send(transitions.reward, device, copy=True),
        discount=_send(transitions.discount, device, copy=True),
        next_observation=ObservationBatch(pixels=after, vector=next_vector),
        weight=_send_if_any(transitions.weight, device),
        bc_mask=_send_if_any(transitions.bc_mask, device),
        bc_action=_send_if_any(transitions.bc_action, device),
    )


def flatten_sequences(
    sequences: SequenceBatch,
    gamma: float,
    device: torch.device,
    dtype: torch.dtype,
    shift: RandomShift | None = None,
) -> Batch:
    """Move S sequences of L steps to the device as S * L transitions, one after another."""
    length = sequences.action.shape[1]
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, windows in sequences.streams.items():
        frames = _send(windows, device)  # (S, (K - 1) stride + L + 1, C, H, W)
        reach, stride = frames.shape[1] - length, sequences.strides[name]
        stacks = frames.unfold(1, reach, 1)[..., ::stride].movedim(-1, 2)  # (S, L + 1, K, C, H, W)
        before, after = (
            each.flatten(0, 1).flatten(1, 2) for each in (stacks[:, :-1], stacks[:, 1:])
        )
        pairs.append((before, after))
    pixels = _convert_all(pairs, dtype, shift)
    vectors: list[Tensor | None] = [None, None]
    if sequences.vector is not None:
        vector = _send(sequences.vector, device, copy=True)
        vectors = [each.flatten(0, 1) for each in (vector[:, :-1], vector[:, 1:])]
    bc_mask = _send_if_any(sequences.bc_mask, device)
    discount = np.where(sequences.terminated, np.float32(0.0), np.float32(gamma))
    return Batch(
        observation=ObservationBatch(pixels=pixels[0], vector=vectors[0]),
        action=_send(sequences.action, device, copy=True).flatten(0, 1),
        reward=_send(sequences.reward, device, copy=True).flatten(0, 1),
        discount=_send(discount, device, copy=True).flatten(0, 1),
        next_observation=ObservationBatch(pixels=pixels[1], vector=vectors[1]),
        bc_mask=None if bc_mask is None else bc_mask.repeat_interleave(length),
    )


class DeviceFrameCache:
    """A copy of the replay's frames of one stream on the device, to gather batches there.

    For a batch, only row numbers are copied, not 9 MB of frames. The copy follows the replay cache:
    new frames are copied once, and replace frames that left the cache.
    """

    def __init__(self, stream: str, image: ImageSpec, device: torch.device) -> None:
        self._stream = stream
        self._planes = image.observation_shape[0]
        self._device = device
        self._frames = torch.empty((0, *image.frame_shape), dtype=torch.uint8, device=device)
        self._source: FrameArray | None = None

    def stacks(self, sampler: Sampler, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Gather the images (B, K*C, H, W) before and after, of `Transitions.frame_rows` (B, W)."""
        source = sampler.frame_array(self._stream)
        if source is not self._source:
            self._copy_new(source)
        numbers = torch.from_numpy(rows).reshape(-1).to(self._device)
        window = self._frames.index_select(0, numbers)
        window = window.view(*rows.shape, *window.shape[1:]).flatten(1, 2)
        return window[:, : self._planes], window[:, -self._planes :]

    def _copy_new(self, source: FrameArray) -> None:
        """Copy the frames that are new or have moved."""
        assert source.frames is not None, "the sampler returned rows of it"
        if len(source.frames) > len(self._frames):
            self._grow(len(source.frames))
        frames = torch.from_numpy(source.frames)
        copied = {} if self._source is None else self._source.placed
        for key, rows in source.placed.items():
            if copied.get(key) != rows:
                self._frames[rows] = frames[rows].to(self._device)
        self._source = source

    def _grow(self, rows: int) -> None:
        before = self._frames
        shape = (round(_GROWTH * rows), *before.shape[1:])
        try:
            self._frames = torch.empty(shape, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"learn.device_frames: {self._device} has no room for {rows:,} frames "
                f"({math.prod(shape) / 2**30:.1f} GiB); set it to false, or lower "
                "learn.replay.capacity"
            ) from error
        self._frames[: len(before)] = before


def open_device_caches(
    images: Mapping[str, ImageSpec], device: torch.device, *, enabled: bool
) -> dict[str, DeviceFrameCache]:
    """Return a cache for each stream, if enabled, and if the device has its own memory."""
    if not enabled or device.type == "cpu":
        return {}
    return {name: DeviceFrameCache(name, image, device) for name, image in images.items()}


class BatchLoader:
    """Sample batches and move them to the device."""

    def __init__(
        self,
        replay: ReplayConfig,
        device: torch.device,
        dtype: torch.dtype,
        *,
        shift: RandomShift | None = None,
        device_caches: Mapping[str, DeviceFrameCache] | None = None,
    ) -> None:
        self._replay, self._device, self._dtype = replay, device, dtype
        self._shift, self._device_caches = shift, device_caches or {}
        self.sampling_s = 0.0
        """Time spent in the sampler so far, in seconds."""

    @property
    def gathers_on_host(self) -> bool:
        """Whether the sampler has to gather the frames."""
        return not self._device_caches

    def load(self, sampler: Sampler) -> tuple[Batch, NDArray[np.int64] | None]:
        """Return a batch, and if prioritised its index for `Sampler.update_priorities`."""
        before_s = time.monotonic()
        if self._replay.sequence_length:
            sequences = sampler.sample_sequences()
            self.sampling_s += time.monotonic() - before_s
            gamma = self._replay.gamma
            return flatten_sequences(sequences, gamma, self._device, self._dtype, self._shift), None
        transitions = sampler.sample()
        self.sampling_s += time.monotonic() - before_s
        stacks = None
        streams = transitions.streams
        if self._device_caches and all(stream.frames is None for stream in streams.values()):
            stacks = [self._device_caches[n].stacks(sampler, streams[n].rows) for n in streams]
        batch = to_batch(transitions, self._device, self._dtype, self._shift, stacks)
        return batch, transitions.index


def _send_stacks(stream: StreamBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the stacks (B, K*C, H, W) before and after on the device."""
    assert stream.frames is not None
    assert stream.observation is not None
    planes = stream.observation.shape[1]
    window = _send(stream.frames, device).flatten(1, 2)  # (B, W*C, H, W)
    return window[:, :planes], window[:, -planes:]


def _convert_all(
    stacks: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype, shift: RandomShift | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Convert the stacks before and after of each stream to pixels."""
    pairs = [_convert(*pair, dtype, shift) for pair in stacks]
    return tuple(before for before, _ in pairs), tuple(after for _, after in pairs)


def _convert(
    frames: Tensor, next_frames: Tensor, dtype: torch.dtype, shift: RandomShift | None
) -> tuple[Tensor, Tensor]:
    """Convert two batches of stacks, uint8 (B, K*C, H, W) each, to pixels."""
    if shift is not None:
        pad, size = shift.pad, len(frames)
        drawn = draw_shifts(pad, shift.ranks.size * size, shift.generator, frames.device)
        first, second = map(shift.ranks.own, drawn)
        frames = shift_frames(frames, first, pad)
        next_frames = shift_frames(next_frames, second, pad)
    return to_pixels(frames, dtype), to_pixels(next_frames, dtype)


def _send(
    array: NDArray[np.uint8] | NDArray[np.float32], device: torch.device, *, copy: bool = False
) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # the allocator of pinned memory keeps a block until the copy from it has finished
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, copy=copy)


def _send_if_any(array: NDArray[np.float32] | None, device: torch.device) -> Tensor | None:
    return None if array is None else _send(array, device, copy=True)
