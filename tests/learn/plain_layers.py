"""Layers with backpropagation spelled out, in numpy and float64, without autograd.

Each function takes the parameters by name (as in the networks' `state_dict`) and an input, and
answers its output with a function from the output's gradient to the input's and the parameters'.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tensors = dict[str, Array]
Back = Callable[[Array], tuple[Array, Tensors]]
Layer = Callable[[Array], tuple[Array, Back]]

EPSILON = 1e-5
MOMENTUM = 0.1


def chain(layers: Sequence[Layer], x: Array) -> tuple[Array, Back]:
    backs = []
    for layer in layers:
        x, back = layer(x)
        backs.append(back)

    def through(gradient: Array) -> tuple[Array, Tensors]:
        found: Tensors = {}
        for back in reversed(backs):
            gradient, mine = back(gradient)
            found |= mine
        return gradient, found

    return x, through


def linear(p: Tensors, name: str) -> Layer:
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]

    def forward(x: Array) -> tuple[Array, Back]:
        def back(g: Array) -> tuple[Array, Tensors]:
            return g @ weight, {f"{name}.weight": g.T @ x, f"{name}.bias": g.sum(0)}

        return x @ weight.T + bias, back

    return forward


def convolution(p: Tensors, name: str, stride: int) -> Layer:
    """Convolve (B, C, H, W) to (B, C', H', W') with a matrix of patches, one row per position."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    outputs, inputs, kernel, _ = weight.shape
    matrix = weight.reshape(outputs, -1)

    def forward(x: Array) -> tuple[Array, Back]:
        size = len(x)
        rows, columns = ((side - kernel) // stride + 1 for side in x.shape[2:])
        patches = np.empty((size, rows, columns, inputs, kernel, kernel))
        for i in range(rows):
            for j in range(columns):
                top, left = i * stride, j * stride
                patches[:, i, j] = x[:, :, top : top + kernel, left : left + kernel]
        flat = patches.reshape(-1, matrix.shape[1])
        y = (flat @ matrix.T + bias).reshape(size, rows, columns, outputs).transpose(0, 3, 1, 2)

        def back(g: Array) -> tuple[Array, Tensors]:
            at_rows = g.transpose(0, 2, 3, 1).reshape(-1, outputs)
            at_patches = (at_rows @ matrix).reshape(patches.shape)
            at_x = np.zeros_like(x)
            for i in range(rows):
                for j in range(columns):
                    top, left = i * stride, j * stride
                    at_x[:, :, top : top + kernel, left : left + kernel] += at_patches[:, i, j]
            at_weight = (at_rows.T @ flat).reshape(weight.shape)
            return at_x, {f"{name}.weight": at_weight, f"{name}.bias": at_rows.sum(0)}

        return y, back

    return forward


def relu(slope: float = 0.0) -> Layer:
    def forward(x: Array) -> tuple[Array, Back]:
        factor = np.where(x > 0.0, 1.0, slope)
        return x * factor, lambda g: (g * factor, {})

    return forward


def tanh(x: Array) -> tuple[Array, Back]:
    y = np.tanh(x)
    return y, lambda g: (g * (1.0 - y**2), {})


def clamp(limit: float) -> Layer:
    def forward(x: Array) -> tuple[Array, Back]:
        inside = np.abs(x) <= limit
        return np.clip(x, -limit, limit), lambda g: (g * inside, {})

    return forward


def flatten_rows_first(x: Array) -> tuple[Array, Back]:
    """Reorder (B, C, H, W) to (B, H * W * C), the order of the linear layer's inputs."""
    size, channels, rows, columns = x.shape

    def back(g: Array) -> tuple[Array, Tensors]:
        return g.reshape(size, rows, columns, channels).transpose(0, 3, 1, 2), {}

    return x.transpose(0, 2, 3, 1).reshape(size, -1), back


def layer_norm(p: Tensors, name: str) -> Layer:
    """Normalise over all axes but the first, with gain and offset per channel (Ba et al. 2016)."""
    return _normalise(p, name, lambda x: tuple(range(1, x.ndim)))


def batch_norm(p: Tensors, name: str, *, training: bool) -> Layer:
    """Normalise each channel by its batch or its running statistics (Ioffe & Szegedy 2015)."""
    if training:
        return _normalise(p, name, lambda _: (0, 2, 3), learn=True)

    def forward(x: Array) -> tuple[Array, Back]:
        mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
        scale = p[f"{name}.weight"] / np.sqrt(var + EPSILON)
        y = (x - mean[:, None, None]) * scale[:, None, None] + p[f"{name}.bias"][:, None, None]
        return y, lambda g: (g * scale[:, None, None], {})

    return forward


def _normalise(
    p: Tensors, name: str, axes_of: Callable[[Array], tuple[int, ...]], *, learn: bool = False
) -> Layer:
    gain, offset = p[f"{name}.weight"], p[f"{name}.bias"]

    def forward(x: Array) -> tuple[Array, Back]:
        axes = axes_of(x)
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        unit = (x - mean) / np.sqrt(var + EPSILON)
        if learn:
            count = x.size / mean.size
            for key, seen in (("mean", mean), ("var", var * count / (count - 1))):
                old = p[f"{name}.running_{key}"]
                p[f"{name}.running_{key}"] = (1 - MOMENTUM) * old + MOMENTUM * seen.ravel()
            p[f"{name}.num_batches_tracked"] = p[f"{name}.num_batches_tracked"] + 1
        shape = (1, -1) + (1,) * (x.ndim - 2)

        def back(g: Array) -> tuple[Array, Tensors]:
            others = (0, *range(2, x.ndim))
            at_unit = g * gain.reshape(shape)
            at_x = at_unit - at_unit.mean(axes, keepdims=True)
            at_x = at_x - unit * (at_unit * unit).mean(axes, keepdims=True)
            found = {f"{name}.weight": (g * unit).sum(others), f"{name}.bias": g.sum(others)}
            return at_x / np.sqrt(var + EPSILON), found

        return unit * gain.reshape(shape) + offset.reshape(shape), back

    return forward
