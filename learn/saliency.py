"""What a policy looks at: the gradients of its actions with respect to its observations.

The gradient of the output before tanh is used, because that of a saturated action is almost 0
(Simonyan et al. 2013, "Deep Inside Convolutional Networks").
"""

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from avtd3.learn.networks import Actor, ObservationBatch, evaluating
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

    pixels: NDArray[np.float32] | None
    """float32 (B, A, K, H, W), by frame of the stack, the colours summed; None without a camera."""
    vector: NDArray[np.float32] | None
    """float32 (B, A, V); None if the spec has no vector."""

    @classmethod
    def of(cls, actor: Actor, observation: ObservationBatch, image: ImageSpec | None) -> Self:
        """Compute the gradients; the actor's own gradients and statistics stay as they are."""
        given = (observation.pixels, observation.vector)
        inputs = [None if x is None else x.detach().float().requires_grad_() for x in given]
        wanted = [x for x in inputs if x is not None]
        found: list[list[Tensor]] = []
        with torch.enable_grad(), evaluating(actor):
            state = actor.encode(ObservationBatch(pixels=inputs[0], vector=inputs[1]))
            outputs = actor.head(state).sum(dim=0)
            for n in range(len(outputs)):
                parts = torch.autograd.grad(outputs[n], wanted, retain_graph=True)
                found.append([part.abs().nan_to_num(0.0).clamp(max=LARGEST) for part in parts])
        sizes = [torch.stack(parts, dim=1) for parts in zip(*found, strict=True)]  # (B, A, ...)
        pixels = None
        if image is not None:
            stacks = sizes.pop(0)
            shape = (*stacks.shape[:2], image.stack, -1, *stacks.shape[-2:])
            pixels = stacks.reshape(shape).sum(dim=3).cpu().numpy()
        return cls(pixels=pixels, vector=sizes[0].cpu().numpy() if sizes else None)


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
    actor: Actor, observation: ObservationBatch, image: ImageSpec
) -> dict[str, NDArray[np.uint8]]:
    """Draw a few observations of a batch, one in each row, as frames uint8 (3, H, W) by tag.

    ``images/observations`` has all frames of the stack, oldest first; ``images/saliency`` has the
    newest frame, and the gradient of each action over it.
    """
    pixels, vector = observation.pixels, observation.vector
    assert pixels is not None
    few = ObservationBatch(
        pixels=pixels[:PICTURES], vector=None if vector is None else vector[:PICTURES]
    )
    shape = (-1, image.stack, image.channels, image.height, image.width)
    stacks = pixels[:PICTURES].float().round().to(torch.uint8).reshape(shape).cpu().numpy()
    gradients = ActionGradients.of(actor, few, image)
    assert gradients.pixels is not None
    rows = [
        [stack[-1], *(heat_frame(stack[-1], heat) for heat in maps)]
        for stack, maps in zip(stacks, heat_maps(gradients.pixels), strict=True)
    ]
    return {"images/observations": tile(stacks), "images/saliency": tile(rows)}


def tile(rows: Iterable[Iterable[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Join rows of frames, all of one height and width, into one frame uint8 (3, H, W)."""
    strips = [np.concatenate([colour_planes(frame) for frame in row], axis=2) for row in rows]
    return np.concatenate(strips, axis=1)
