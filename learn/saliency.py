"""What a policy looks at: the gradients of its actions with respect to its observations.

The gradient of the output before tanh is used, because that of a saturated action is almost 0
(Simonyan et al. 2013, "Deep Inside Convolutional Networks").
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from avtd3.learn.networks import (
    Actor,
    ObservationBatch,
    evaluating,
)
from avtd3.store.render.media import colour_planes, heat_frame
from avtd3.store.spec import ImageSpec

BRIGHTEST = 0.995
"""Quantile of a gradient's pixels that is drawn in full colour."""
LARGEST = 1e20
"""Gradients beyond are cut off, so that their sums are finite; those that are no number are 0."""
SMOOTHING = 0.02
"""Distance over which maps are smoothed, as a share of the width."""
PICTURES = 4
"""Observations of a batch that a run logs as pictures."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActionGradients:
    """Absolute gradients of each of A actions, before tanh, for a batch of observations."""

    pixels: tuple[NDArray[np.float32], ...]
    """float32 (B, A, K, H, W) for each stream of images, by frame of the stack, the colours summed;
    0 where the actor does not see a stream."""
    vector: NDArray[np.float32] | None
    """float32 (B, A, V); None if the spec has no vector."""

    @classmethod
    def of(cls, actor: Actor, observation: ObservationBatch, images: Collection[ImageSpec]) -> Self:
        """Compute the gradients; the actor's own gradients and statistics stay as they are."""
        streams = tuple(x.detach().float().requires_grad_() for x in observation.pixels)
        vector = observation.vector
        wanted = [*streams]
        if vector is not None:
            vector = vector.detach().float().requires_grad_()
            wanted.append(vector)
        found: list[list[Tensor]] = []
        with torch.enable_grad(), evaluating(actor):
            state = actor.encode(ObservationBatch(pixels=streams, vector=vector))
            outputs = actor.head(state).sum(dim=0)
            for n in range(len(outputs)):
                parts = torch.autograd.grad(
                    outputs[n], wanted, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                found.append([part.abs().nan_to_num(0.0).clamp(max=LARGEST) for part in parts])
        sizes = [torch.stack(parts, dim=1) for parts in zip(*found, strict=True)]  # (B, A, ...)
        pixels = []
        for image, stacks in zip(images, sizes[: len(streams)], strict=True):
            shape = (*stacks.shape[:2], image.stack, -1, *stacks.shape[-2:])
            pixels.append(stacks.reshape(shape).sum(dim=3).cpu().numpy())
        return cls(pixels=tuple(pixels), vector=None if vector is None else sizes[-1].cpu().numpy())


def heat_maps(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 (B, A, H, W) in 0..1 for gradients (B, A, K, H, W): each map's own scale.

    The maps are smoothed, since those of single pixels are noisy.
    """
    reach = round(SMOOTHING * pixels.shape[-1])
    smooth = torch.from_numpy(pixels.sum(axis=2))
    for _ in range(2):
        smooth = functional.avg_pool2d(smooth, 2 * reach + 1, stride=1, padding=reach)
    sums = smooth.numpy()
    most = np.quantile(sums, BRIGHTEST, axis=(2, 3), keepdims=True)
    heat: NDArray[np.float32] = np.clip(sums / np.maximum(most, 1e-30), 0.0, 1.0).astype(np.float32)
    return heat


def batch_pictures(
    actor: Actor, observation: ObservationBatch, images: Mapping[str, ImageSpec]
) -> dict[str, NDArray[np.uint8]]:
    """Draw a few observations of a batch, one in each row, as frames uint8 (3, H, W) by tag.

    ``images/observations`` has all frames of the stack, oldest first; ``images/saliency`` has the
    newest frame, and the gradient of each action over it. Of several streams, each has its name
    after these.
    """
    few = observation.first(PICTURES)
    gradients = ActionGradients.of(actor, few, images.values())
    found: dict[str, NDArray[np.uint8]] = {}
    for (name, image), pixels, parts in zip(
        images.items(), few.pixels, gradients.pixels, strict=True
    ):
        shape = (-1, image.stack, image.channels, image.height, image.width)
        stacks = pixels.round().to(torch.uint8).reshape(shape).cpu().numpy()
        rows = [
            [stack[-1], *(heat_frame(stack[-1], heat) for heat in maps)]
            for stack, maps in zip(stacks, heat_maps(parts), strict=True)
        ]
        end = f"/{name}" if len(images) > 1 else ""
        found |= {f"images/observations{end}": tile(stacks), f"images/saliency{end}": tile(rows)}
    return found


def tile(rows: Iterable[Iterable[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Join rows of frames, all of one height and width, into one frame uint8 (3, H, W)."""
    strips = [np.concatenate([colour_planes(frame) for frame in row], axis=2) for row in rows]
    return np.concatenate(strips, axis=1)
