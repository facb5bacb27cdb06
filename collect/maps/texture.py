"""The texture of the ground: soft patches and a little grain, from a pixel's place in the world."""

import functools

import numpy as np
from numpy.typing import NDArray

TEXTURES = 16
"""Texture levels, the lower four bits of a ground code."""
_SEED = 20200513  # any constant: the texture belongs to no episode
_LAYERS_PX = ((0.7, 4.0), (0.3, 14.0))
"""Share of each layer of patches, and the smallest period of its waves in pixels."""


@functools.cache
def ground_texture(size: int) -> NDArray[np.uint8]:
    """Texture levels uint8 (size, size) in [0, `TEXTURES`), equally frequent; one per pixel.

    Patches are smooth, so pictures of them compress; they repeat seamlessly after `size` pixels.
    """
    rng = np.random.default_rng(_SEED)
    wave = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))  # cycles per pixel
    field = np.zeros((size, size))
    for share, period in _LAYERS_PX:
        white = np.fft.rfft2(rng.standard_normal((size, size)))
        layer = np.fft.irfft2(white * np.exp(-((wave * period) ** 2)), s=(size, size))
        field += share * layer / layer.std()
    # Of equal numbers of pixels: the limits are quantiles of a part of the field.
    part = np.sort(field[::4, ::4], axis=None)
    limits = part[len(part) * np.arange(1, TEXTURES) // TEXTURES]
    texture = np.searchsorted(limits, field).astype(np.uint8)
    texture.flags.writeable = False
    return texture
