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
def ground_texture(size: int, every: int = 1) -> NDArray[np.uint8]:
    """Texture levels uint8 (size / every, size / every) in [0, `TEXTURES`), equally frequent.

    Patches are smooth, so pictures of them compress; they repeat seamlessly after `size` pixels.

    Args:
        size: Pixels after which the texture repeats.
        every: Take only every so many-th pixel.
    """
    rng = np.random.default_rng(_SEED)
    wave = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))  # cycles per pixel
    field = np.zeros((size, size))
    for share, period in _LAYERS_PX:
        white = np.fft.rfft2(rng.standard_normal((size, size)))
        layer = np.fft.irfft2(white * np.exp(-((wave * period) ** 2)), s=(size, size))
        field += share * layer / layer.std()
    limits = np.quantile(field, np.linspace(0.0, 1.0, TEXTURES + 1)[1:-1])
    levels = np.searchsorted(limits, field[every // 2 :: every, every // 2 :: every])
    texture = levels.astype(np.uint8)
    texture.flags.writeable = False
    return texture
