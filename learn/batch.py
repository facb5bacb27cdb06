"""Random shifts of images (Yarats et al. 2021, DrQ-v2), on bytes.

Each stack of frames is moved by up to `pad` pixels up or down and left or right, its border
replicated into what is uncovered; observation and next observation are moved by draws of their own.
The published code samples bilinearly, but draws whole pixels, so that each sample lies on a pixel's
centre: a copy of bytes is the same (`tests/learn/test_augment.py`). On one core a batch of 256
stacks of 84x84x4 takes 14 ms, a gather by row and column 60 ms.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtd3.learn.networks import Observation, to_pixels
from avtd3.store.replay.gather import SequenceBatch, Transitions


def draw_shifts(
    pad: int, size: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Shifts for the observations and for the next ones.

    Args:
        pad: Largest shift, in pixels.
        size: Stacks in a batch.
        generator: Of that device.
        device: Where the frames are.

    Returns:
        Two of int64 (B, 2), rows and columns, each uniform in -pad..pad.
    """
    drawn = torch.randint(-pad, pad + 1, (2, size, 2), generator=generator, device=device)
    return drawn[0], drawn[1]


def shift_frames(frames: Tensor, shift: Tensor, pad: int) -> Tensor:
    """Move each stack: what it shows at (y, x) was at (y + dy, x + dx), or at the nearest border.

    Args:
        frames: uint8 (B, K*C, H, W), any strides.
        shift: int64 (B, 2), dy and dx in -pad..pad.
        pad: Largest shift, in pixels.

    Returns:
        uint8 (B, K*C, H, W), channels_last in memory.
    """
    size, planes, height, width = frames.shape
    image = torch.stack(frames.unbind(1), -1)  # (B, H, W, K*C)
    left, right = image[:, :, :1], image[:, :, -1:]
    wide = torch.cat(
        [left.expand(-1, -1, pad, -1), image, right.expand(-1, -1, pad, -1)], dim=2
    )  # (B, H, W + 2 * pad, K*C)
    rows = torch.arange(height, device=frames.device) + shift[:, :1]
    rows = rows.clamp(0, height - 1)  # (B, H)
    first = torch.arange(size, device=frames.device)[:, None] * height
    start = (first + rows) * wide.shape[2] + pad + shift[:, 1:]
    # every stretch of W pixels that lies in memory: a row of the result is one of them
    stretches = wide.as_strided(
        (size * height * wide.shape[2] - width + 1, width * planes), (planes, 1)
    )
    moved = stretches.index_select(0, start.flatten())
    return moved.view(size, height, width, planes).permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Transitions ready for an update; see the table above."""

    observation: Observation
    """What was seen."""
    action: Tensor
    """float (B, A), what was done."""
    reward: Tensor
    """float (B,), n-step reward."""
    discount: Tensor
    """float (B,), weight of the next observation's value."""
    next_observation: Observation
    """What was seen n steps later."""
    weight: Tensor | None = None
    """float (B,), importance weights in (0, 1]; None if all are 1."""
    bc_mask: Tensor | None = None
    """float (B,), 1 where the imitation term looks at the action, else 0; None if all are 1."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shifting:
    """Random shifts of the images."""

    pad: int
    """Largest shift, in pixels; above 0."""
    generator: torch.Generator
    """Of the learner's device."""


def to_batch(
    transitions: Transitions,
    device: torch.device,
    dtype: torch.dtype,
    shifting: Shifting | None = None,
    stacks: tuple[Tensor, Tensor] | None = None,
) -> Batch:
    """Move a draw to the device.

    On the CPU the small arrays are copied: the sampler overwrites its buffers.

    Args:
        transitions: What `Sampler.sample` returned.
        device: Where the networks are.
        dtype: Floating type of the pixels.
        shifting: How the images are shifted; None leaves them alone.
        stacks: uint8 (B, K*C, H, W), the images of the observations and of the next ones, if they
            are on the device already.
    """
    if stacks is None and transitions.frames is not None:
        assert transitions.observation_frames is not None
        planes = transitions.observation_frames.shape[1]
        window = _send(transitions.frames, device).flatten(1, 2)  # (B, W*C, H, W)
        stacks = window[:, :planes], window[:, -planes:]
    pixels = (None, None) if stacks is None else _widen(*stacks, dtype, shifting)
    vectors = [
        _send_if_any(vector, device)
        for vector in (transitions.observation_vector, transitions.next_observation_vector)
    ]
    return Batch(
        observation=Observation(pixels=pixels[0], vector=vectors[0]),
        action=_send(transitions.action, device, copy=True),
        reward=_send(transitions.reward, device, copy=True),
        discount=_send(transitions.discount, device, copy=True),
        next_observation=Observation(pixels=pixels[1], vector=vectors[1]),
        weight=_send_if_any(transitions.weight, device),
        bc_mask=_send_if_any(transitions.bc_mask, device),
    )


def flatten_sequences(
    sequences: SequenceBatch,
    gamma: float,
    device: torch.device,
    dtype: torch.dtype,
    shifting: Shifting | None = None,
) -> Batch:
    """Move sequences to the device, each of their steps as a transition of its own.

    Args:
        sequences: What `Sampler.sample_sequences` returned, S of L steps.
        gamma: Discount per step.
        device: Where the networks are.
        dtype: Floating type of the pixels.
        shifting: How the images of each step are shifted; None leaves them alone.

    Returns:
        S * L transitions, those of a sequence one after another.
    """
    length = sequences.action.shape[1]
    pixels: tuple[Tensor | None, Tensor | None] = (None, None)
    if sequences.frames is not None:
        frames = _send(sequences.frames, device)  # (S, K + L, C, H, W)
        stack = frames.shape[1] - length
        stacks = frames.unfold(1, stack, 1).movedim(-1, 2)  # (S, L + 1, K, C, H, W)
        before, after = (
            each.flatten(0, 1).flatten(1, 2) for each in (stacks[:, :-1], stacks[:, 1:])
        )
        pixels = _widen(before, after, dtype, shifting)
    vectors: list[Tensor | None] = [None, None]
    if sequences.vector is not None:
        vector = _send(sequences.vector, device, copy=True)
        vectors = [each.flatten(0, 1) for each in (vector[:, :-1], vector[:, 1:])]
    bc_mask = _send_if_any(sequences.bc_mask, device)
    alive = np.where(sequences.terminated, np.float32(0.0), np.float32(gamma))
    return Batch(
        observation=Observation(pixels=pixels[0], vector=vectors[0]),
        action=_send(sequences.action, device, copy=True).flatten(0, 1),
        reward=_send(sequences.reward, device, copy=True).flatten(0, 1),
        discount=_send(alive, device, copy=True).flatten(0, 1),
        next_observation=Observation(pixels=pixels[1], vector=vectors[1]),
        bc_mask=None if bc_mask is None else bc_mask.repeat_interleave(length),
    )


def _widen(
    frames: Tensor, next_frames: Tensor, dtype: torch.dtype, shifting: Shifting | None
) -> tuple[Tensor, Tensor]:
    """Pixels of two batches of stacks, uint8 (B, K*C, H, W) each."""
    if shifting is not None:
        pad, size = shifting.pad, len(frames)
        one, other = draw_shifts(pad, size, shifting.generator, frames.device)
        frames = shift_frames(frames, one, pad)
        next_frames = shift_frames(next_frames, other, pad)
    return to_pixels(frames, dtype), to_pixels(next_frames, dtype)


def _send(
    array: NDArray[np.uint8] | NDArray[np.float32], device: torch.device, *, copy: bool = False
) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # the allocator of pinned memory keeps a block until the copy out of it has ended
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, copy=copy)


def _send_if_any(array: NDArray[np.float32] | None, device: torch.device) -> Tensor | None:
    return None if array is None else _send(array, device, copy=True)
