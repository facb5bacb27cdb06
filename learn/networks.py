"""The networks: the CNNs, the actor and the twin critic.

Small images have a Nature CNN (Mnih et al. 2015), larger ones a residual CNN as in IMPALA (Espeholt
et al. 2018), see `NetworkConfig.encoder`. With several streams, each has a CNN of its own, and
their features are joined in the order of the streams' names.

`to_pixels` converts the uint8 frames of a batch to floating-point pixels in 0..255 once. The first
convolution of a Nature CNN includes the scaling to [-1, 1]: ``conv(x / 127.5 - 1) =
conv_w/127.5(x) - sum(w)``.
"""

import contextlib
import copy
import dataclasses
import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from avtd3.store.errors import ConfigError, abbreviate, check_settings
from avtd3.store.spec import EpisodeSpec, ImageSpec

ACTIVATIONS = ("relu", "leaky_relu")
FEATURE_ACTIVATIONS = ("same", "tanh")
CONV_NORMS = ("none", "layer", "batch")
ENCODERS = ("auto", "nature", "impala")
NATURE_SIDE = 100
"""Largest side of an image, in pixels, for which ``auto`` selects a Nature CNN."""
MAX_LAYERS = 64
"""Most hidden layers of an MLP."""
MAX_WIDTH = 65_536
"""Largest width of a layer."""
MIN_IMAGE_SIDE = 36
"""Smallest side of an image, in pixels, that the three convolutions accept."""
LEAKY_SLOPE = 0.01
_CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
_STAGES = (16, 32, 32, 32, 32, 32, 32, 32)  # channels of the stages of a residual CNN
_FEWEST_STAGES, _LAST_SIDE = 3, 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Shape of the actor and the critic.

    Example:
        >>> NetworkConfig(hidden=(64, 64)).features
        512
    """

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of each MLP."""
    features: int = 512
    """Number of features that a CNN computes from a stack of frames; each stream has so many."""
    encoder: str = "auto"
    """CNN: ``nature`` (Mnih et al. 2015); ``impala``, a residual one (Espeholt et al. 2018) whose
    number of stages follows from the size of the image: at least three, until its longer side is
    at most 16; or ``auto``: ``impala`` for streams of more than 100 pixels a side, else ``nature``.
    The image of a dataset without named streams is always small for ``auto``."""
    activation: str = "relu"
    """Activation in the CNNs and the MLPs: ``relu``, or ``leaky_relu`` with slope 0.01."""
    conv_norm: str = "none"
    """Normalisation after each convolution: ``none``, ``layer`` or ``batch``."""
    feature_norm: bool = True
    """Whether to apply LayerNorm to the features, before their activation."""
    feature_activation: str = "same"
    """Activation of the features: ``same`` as `activation`, or ``tanh``. With ``tanh``,
    `feature_norm` and 50 features, this is the trunk of DrQ-v2 (Yarats et al. 2021)."""
    feature_clamp: float = 0.0
    """Limit on the absolute value of each feature; 0 is no limit."""
    critic_norm: bool = False
    """Whether to apply LayerNorm after each hidden layer of the critics, as ReBRAC does for fixed
    data (Tarasov et al. 2023)."""
    shared_encoder: bool = False
    """Whether the actor reads the features of the critics' CNN, which only the critics train, as in
    DrQ-v2 (Yarats et al. 2021); otherwise the actor has a CNN of its own."""

    vector_statistics: bool = False
    """Whether to normalise the vector by its mean and standard deviation (plus 0.05) in the data,
    as TD3+BC does (Fujimoto & Gu 2021), after the scales of the spec. The first update measures
    them."""
    actor_inputs: tuple[str, ...] = ()
    """Names of the numbers of the vector that the actor sees, such as ``speed_mps`` or
    ``waypoint_*``; ``image`` alone for none of them. Images are always seen, but of named streams
    only those that are named here, if any is. Policies have only these inputs. Empty: all."""
    critic_inputs: tuple[str, ...] = ()
    """Names of the numbers of the vector and of the streams that the critics see, as for
    `actor_inputs`; empty: all. Critics that see more than the actor are privileged (Pinto et al.
    2018)."""

    def __post_init__(self) -> None:
        # a policy's header may have values of any type
        widths, clamp = f"whole numbers 1..{MAX_WIDTH}", self.feature_clamp
        is_clamp = type(clamp) in (int, float) and 0.0 <= clamp < float("inf")
        check_settings(
            self,
            "network.",
            ("hidden", 1 <= len(self.hidden) <= MAX_LAYERS, f"1..{MAX_LAYERS} layers"),
            ("hidden", all(map(_is_width, self.hidden)), widths),
            ("features", _is_width(self.features), widths),
            ("activation", self.activation in ACTIVATIONS, f"one of {ACTIVATIONS}"),
            ("conv_norm", self.conv_norm in CONV_NORMS, f"one of {CONV_NORMS}"),
            ("encoder", self.encoder in ENCODERS, f"one of {ENCODERS}"),
            (
                "feature_activation",
                self.feature_activation in FEATURE_ACTIVATIONS,
                f"one of {FEATURE_ACTIVATIONS}",
            ),
            ("feature_norm", type(self.feature_norm) is bool, "true or false"),
            ("feature_clamp", is_clamp, "0 or above"),
            ("critic_norm", type(self.critic_norm) is bool, "true or false"),
            ("shared_encoder", type(self.shared_encoder) is bool, "true or false"),
            ("vector_statistics", type(self.vector_statistics) is bool, "true or false"),
            ("actor_inputs", _are_names(self.actor_inputs), "a list of names"),
            ("critic_inputs", _are_names(self.critic_inputs), "a list of names"),
        )


IMAGE_INPUT = "image"
"""Name of the images among the inputs."""


def input_columns(spec: EpisodeSpec, config: NetworkConfig, setting: str) -> tuple[int, ...]:
    """Return the places in the vector of a network's inputs, in the order of the spec.

    `setting` is ``actor_inputs`` or ``critic_inputs``. Raise `ConfigError` if one of its names
    matches nothing, or if the network would see nothing.
    """
    names, inputs = spec.vector_names, getattr(config, setting)
    if not inputs:
        return tuple(range(len(names)))
    images = dict.fromkeys((IMAGE_INPUT, *spec.images)) if spec.images else {}
    for wanted in inputs:
        if not fnmatch.filter((*images, *names), wanted):
            raise ConfigError(
                f"learn.network.{setting} has {abbreviate(wanted)}, which is nothing in the data; "
                f"expected names out of {abbreviate(', '.join((*images, *names)), 400)}"
            )
    places = tuple(
        n for n, name in enumerate(names) if any(fnmatch.fnmatch(name, i) for i in inputs)
    )
    if not places and not spec.images:
        raise ConfigError(f"learn.network.{setting} selects no number; name at least one")
    return places


def input_streams(spec: EpisodeSpec, inputs: Sequence[str]) -> tuple[int, ...]:
    """Return the places of the streams of a network's inputs, in the order of their names.

    If no stream is named, they are all streams; see `input_columns`.
    """
    chosen = [
        n
        for n, name in enumerate(spec.images)
        if any(fnmatch.fnmatch(name, wanted) for wanted in inputs)
    ]
    return tuple(chosen or range(len(spec.images)))


def actor_spec(spec: EpisodeSpec, config: NetworkConfig) -> EpisodeSpec:
    """Return the spec of what the actor sees, which is that of its policies."""
    places = input_columns(spec, config, "actor_inputs")
    streams = input_streams(spec, config.actor_inputs)
    spec = spec.select([list(spec.images)[n] for n in streams])
    if len(places) == spec.vector_size:
        return spec
    names = tuple(spec.vector_names[n] for n in places)
    scales = tuple(spec.vector_scales[n] for n in places)
    return dataclasses.replace(spec, vector_names=names, vector_scales=scales)


def _are_names(value: object) -> bool:
    return isinstance(value, tuple) and all(name and isinstance(name, str) for name in value)


def _is_width(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_WIDTH


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ObservationBatch:
    """A batch of observations, ready for the networks."""

    pixels: tuple[Tensor, ...]
    """float (B, K*C, H, W) in 0..255, channels_last in memory, for each stream of images in the
    order of their names; empty without a camera."""
    vector: Tensor | None
    """float (B, V), normalised; None if the spec has no vector."""

    def first(self, count: int) -> Self:
        """Return the first observations, with pixels in float32."""
        return type(self)(
            pixels=tuple(part[:count].float() for part in self.pixels),
            vector=None if self.vector is None else self.vector[:count],
        )


def to_pixels(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert frames uint8 (B, K*C, H, W) to pixels 0..255, channels_last in memory."""
    # reordering bytes touches a quarter of the memory that reordering floats does
    if frames.is_contiguous(memory_format=torch.channels_last):
        return frames.to(dtype)
    return torch.stack(frames.unbind(1), -1).to(dtype).permute(0, 3, 1, 2)


class _Cnn(nn.Module):
    """Base of the CNNs: a linear layer from the last convolution to the features."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self._config, self._slope = config, _slope(config)

    def add_head(self, inputs: int) -> None:
        """Add the last layers; their parameters follow those of the convolutions."""
        features, has_norm = self._config.features, self._config.feature_norm
        self.linear = nn.Linear(inputs, features)
        self.feature_norm = nn.LayerNorm(features) if has_norm else nn.Identity()

    def activate(self, x: Tensor) -> Tensor:
        """Apply the activation between layers."""
        return _activate(x, self._slope)

    def project(self, x: Tensor) -> Tensor:
        """Return features (B, F) of the last convolution's output (B, C', H', W')."""
        # (B, H', W', C'): in channels_last memory, this order of the features needs no copy
        return self.finish(self.linear(x.permute(0, 2, 3, 1).flatten(1)))

    def finish(self, x: Tensor) -> Tensor:
        """Return features (..., F) from the output of the linear layer (..., F)."""
        x, clamp = self.feature_norm(x), self._config.feature_clamp
        uses_tanh = self._config.feature_activation == "tanh"
        features = torch.tanh(x) if uses_tanh else self.activate(x)
        return features.clamp(-clamp, clamp) if clamp else features


class Encoder(_Cnn):
    """Nature CNN: 32@8x8/4, 64@4x4/2, 64@3x3/1, then a linear layer to the features."""

    def __init__(self, image: ImageSpec, config: NetworkConfig) -> None:
        super().__init__(config)
        if min(image.height, image.width) < MIN_IMAGE_SIDE:
            raise ConfigError(
                f"image is {image.height}x{image.width} pixels, expected at least "
                f"{MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE} for the CNN; collect larger frames"
            )
        inputs, height, width = image.observation_shape
        convolutions: list[nn.Conv2d] = []
        norms: list[nn.Module] = []
        for outputs, kernel, stride in _CONVOLUTIONS:
            convolutions.append(nn.Conv2d(inputs, outputs, kernel, stride))
            norms.append(_conv_norm(config.conv_norm, outputs))
            inputs = outputs
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(norms)
        self.add_head(height * width * inputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features (B, F) of float pixels (B, K*C, H, W) in 0..255."""
        weight, bias = self.scaled_first()
        x = _convolve(pixels, weight, bias, _CONVOLUTIONS[0][2])
        x = self.activate(self.norms[0](x))
        for convolution, norm in zip(self.convolutions[1:], self.norms[1:], strict=True):
            assert isinstance(convolution, nn.Conv2d)
            x = _convolve(x, convolution.weight, convolution.bias, convolution.stride[0])
            x = self.activate(norm(x))
        return self.project(x)

    def scaled_first(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the first convolution for pixels in 0..255, not -1..1."""
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        assert first.bias is not None
        return first.weight / 127.5, first.bias - first.weight.sum((1, 2, 3))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Return the convolution of x (B, C, H, W), channels_last in memory.

    For bfloat16 on a CPU, the pixels of a stride become channels of one, if gradients follow: then
    oneDNN computes them 1.2 (first layer) and 1.3 times (second layer) as fast.
    """
    width, columns = x.shape[3], weight.shape[3]
    is_slow = x.dtype is torch.bfloat16 and not x.is_cuda and weight.requires_grad
    if not is_slow or stride == 1 or width % stride or columns % stride:
        return functional.conv2d(x, weight, bias, stride)
    rows, kernel = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
    rows, kernel = (e.reshape(*e.shape[:2], -1, stride * e.shape[3]) for e in (rows, kernel))
    wide, kernel = rows.permute(0, 3, 1, 2), kernel.permute(0, 3, 1, 2)
    return functional.conv2d(wide, kernel, bias, (stride, 1))


class ResidualEncoder(_Cnn):
    """IMPALA's CNN: stages of a convolution, a maximum over 3x3/2 and two residual blocks.

    ``conv_norm`` applies to the first convolution of each stage.
    """

    def __init__(self, image: ImageSpec, config: NetworkConfig) -> None:
        super().__init__(config)
        inputs, height, width = image.observation_shape
        stages: list[nn.Module] = []
        for outputs in _STAGES[: residual_stages(image)]:
            stages.append(_Stage(inputs, outputs, config))
            inputs, height, width = outputs, -(-height // 2), -(-width // 2)
        self.stages = nn.ModuleList(stages)
        self.add_head(height * width * inputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features (B, F) of float pixels (B, K*C, H, W) in 0..255."""
        x = pixels / 127.5 - 1.0
        for stage in self.stages:
            x = stage(x)
        return self.project(self.activate(x))


class _Stage(nn.Module):
    """One stage of a `ResidualEncoder`; halves height and width."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self._slope = _slope(config)
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = _conv_norm(config.conv_norm, outputs)
        # Two residual blocks of two convolutions each.
        self.residual = nn.ModuleList(nn.Conv2d(outputs, outputs, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', H / 2, W / 2), rounded up, for (B, C, H, W)."""
        x = functional.max_pool2d(self.norm(self.convolution(x)), 3, stride=2, padding=1)
        for first, second in (self.residual[:2], self.residual[2:]):
            # Not in place: the sum needs the block's input.
            inside = _activate(first(functional.leaky_relu(x, self._slope)), self._slope)
            x = x + second(inside)
        return x


class StreamEncoders(nn.Module):
    """One CNN for each of several streams; the features are joined in the order of their names."""

    def __init__(self, images: Mapping[str, ImageSpec], config: NetworkConfig) -> None:
        super().__init__()
        self.streams = nn.ModuleDict({n: _encoder(image, config) for n, image in images.items()})

    def forward(self, *pixels: Tensor) -> Tensor:
        """Return features (B, F * streams) of the pixels of each stream."""
        parts = zip(self.streams.values(), pixels, strict=True)
        return torch.cat([encoder(each) for encoder, each in parts], dim=1)


def residual_stages(image: ImageSpec) -> int:
    """Return how many stages a `ResidualEncoder` has for an image."""
    stages, side = 0, max(image.height, image.width)
    while stages < len(_STAGES) and (stages < _FEWEST_STAGES or side > _LAST_SIDE):
        stages, side = stages + 1, -(-side // 2)
    return stages


def _encoder(image: ImageSpec, config: NetworkConfig, *, is_named: bool = True) -> nn.Module:
    # Without a name, as in all versions: so old checkpoints and policies keep their networks.
    is_small = not is_named or max(image.height, image.width) <= NATURE_SIDE
    kind = config.encoder if config.encoder != "auto" else "nature" if is_small else "impala"
    return Encoder(image, config) if kind == "nature" else ResidualEncoder(image, config)


def make_encoder(spec: EpisodeSpec, config: NetworkConfig) -> nn.Module | None:
    """Return what turns the pixels of each stream into features; None without a camera."""
    images = list(spec.images.values())
    if len(images) > 1:
        return StreamEncoders(spec.images, config)
    return _encoder(images[0], config, is_named=bool(spec.streams)) if images else None


def encoders_of(encoder: nn.Module | None) -> list[nn.Module]:
    """Return the CNN of each stream in what `make_encoder` returned."""
    if isinstance(encoder, StreamEncoders):
        return list(encoder.streams.values())
    return [] if encoder is None else [encoder]


def feature_size(spec: EpisodeSpec, config: NetworkConfig) -> int:
    """Return how many features the CNNs of all streams compute together.

    If actor and critics see different streams, it is the smaller number of both.
    """
    inputs = (config.actor_inputs, config.critic_inputs)
    return min(len(input_streams(spec, each)) for each in inputs) * config.features


class Mlp(nn.Module):
    """Linear layers with activations between them, in PyTorch's default initialisation.

    With `norm`, LayerNorm follows each activation. Under autocast, the last layer keeps its type:
    at a value of 70, bfloat16 has steps of 0.5.
    """

    def __init__(
        self, inputs: int, outputs: int, config: NetworkConfig, *, norm: bool = False
    ) -> None:
        super().__init__()
        widths = (inputs, *config.hidden, outputs)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        norms = [nn.LayerNorm(width) if norm else nn.Identity() for width in config.hidden]
        self.norms = nn.ModuleList(norms)
        self._slope = _slope(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, outputs) for inputs (B, inputs)."""
        x = self.hidden(x)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = last(x.to(last.weight.dtype))
        return result

    def hidden(self, x: Tensor) -> Tensor:
        """Return the outputs of the last hidden layer for inputs (B, inputs)."""
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            x = norm(self.activate(layer(x)))
        return x

    def activate(self, x: Tensor) -> Tensor:
        """Apply the activation between layers."""
        return _activate(x, self._slope)


class _Network(nn.Module):
    """Base of the actor and the critic: an optional CNN, and the state that the MLPs read."""

    columns: Tensor | None
    """int64, places in the vector of the numbers that the network sees; None if it sees all."""

    def __init__(
        self,
        spec: EpisodeSpec,
        config: NetworkConfig,
        setting: str,
    ) -> None:
        super().__init__()
        places = input_columns(spec, config, setting)
        self.streams = input_streams(spec, getattr(config, setting))
        """Places of the streams that the network sees, in the order of their names."""
        seen = spec.select([list(spec.images)[n] for n in self.streams])
        self.encoder = make_encoder(seen, config)
        size = len(places)
        self.state_size = size + len(self.streams) * config.features
        chosen = None if size == spec.vector_size else torch.tensor(places, dtype=torch.int64)
        self.register_buffer("columns", chosen, persistent=False)
        self.vector_mean: Tensor | None
        self.vector_std: Tensor | None
        has_statistics = config.vector_statistics and size > 0
        self.register_buffer("vector_mean", torch.zeros(size) if has_statistics else None)
        self.register_buffer("vector_std", torch.ones(size) if has_statistics else None)

    def encode(self, observation: ObservationBatch) -> Tensor:
        """Return the state, float (B, F + V): this network's own features, then the vector."""
        parts: list[Tensor] = []
        if self.encoder is not None:
            parts.append(self.encoder(*(observation.pixels[n] for n in self.streams)))
        if observation.vector is not None:
            parts.append(self.normalise(self.seen(observation.vector)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def seen(self, vector: Tensor) -> Tensor:
        """Return the numbers that this network sees of vectors (..., V)."""
        return vector if self.columns is None else vector.index_select(-1, self.columns)

    def normalise(self, vector: Tensor) -> Tensor:
        """Normalise vectors (..., V) by the statistics of the data, if the network has them."""
        if self.vector_mean is None or self.vector_std is None:
            return vector
        return (vector - self.vector_mean) / self.vector_std

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the CNN that this network trains; empty without a camera."""
        return [] if self.encoder is None else list(self.encoder.parameters())

    def mlp_parameters(self) -> list[nn.Parameter]:
        """Return all parameters outside the CNN."""
        return [p for name, p in self.named_parameters() if not name.startswith("encoder.")]

    def target_copy(self) -> Self:
        """Return a frozen copy in evaluation mode, for use as target network."""
        target = copy.deepcopy(self)
        return target.requires_grad_(requires_grad=False).eval()


class Actor(_Network):
    """Deterministic policy: ``centre + scale * tanh(MLP(state))``, within the spec's bounds."""

    critic_columns: Tensor | None
    """int64, places of the actor's state in that of the critics, if it shares their CNN and sees
    fewer numbers; None if both states are the same."""

    def __init__(self, spec: EpisodeSpec, config: NetworkConfig) -> None:
        super().__init__(spec, config, "actor_inputs")
        self.head = Mlp(self.state_size, spec.action_size, config)
        self._shares_encoder = config.shared_encoder
        shared = _shared_columns(spec, config) if config.shared_encoder else None
        self.register_buffer("critic_columns", shared, persistent=False)
        # Not with torch: on the meta device it would import its compiler, which takes a second.
        low, high = (np.asarray(b, np.float32) for b in (spec.action_low, spec.action_high))
        self.action_centre: Tensor
        self.action_scale: Tensor
        self.register_buffer("action_centre", torch.tensor((high + low) / 2), persistent=False)
        self.register_buffer("action_scale", torch.tensor((high - low) / 2), persistent=False)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the actor's own CNN; empty if it reads the critics' features."""
        return [] if self._shares_encoder else super().encoder_parameters()

    @torch.no_grad()
    def folded_state(self) -> dict[str, Tensor]:
        """Return the weights of an actor without statistics that acts the same."""
        state = dict(self.state_dict())
        mean, std = state.pop("vector_mean", None), state.pop("vector_std", None)
        if mean is not None and std is not None:
            name = "head.layers.0."
            weight = state[name + "weight"].clone()
            weight[:, -len(std) :] /= std  # the vector comes last in the state
            state[name + "bias"] = state[name + "bias"] - weight[:, -len(std) :] @ mean
            state[name + "weight"] = weight
        return state

    def own_state(self, critic_state: Tensor) -> Tensor:
        """Return this actor's state (B, F + V), given that of the critics whose CNN it shares."""
        if self.critic_columns is None:
            return critic_state
        return critic_state.index_select(1, self.critic_columns)

    def squash(self, pre_tanh: Tensor) -> Tensor:
        """Return actions (B, A) for outputs of the MLP (B, A)."""
        return self.action_centre + self.action_scale * torch.tanh(pre_tanh)

    def forward(self, observation: ObservationBatch) -> Tensor:
        """Return actions, float (B, A), for a batch of observations."""
        return self.squash(self.head(self.encode(observation)))


class TwinCritic(_Network):
    """Two estimates of an action's value; both MLPs read the features of the same CNN."""

    def __init__(self, spec: EpisodeSpec, config: NetworkConfig) -> None:
        super().__init__(spec, config, "critic_inputs")
        inputs = self.state_size + spec.action_size
        self.head1 = Mlp(inputs, 1, config, norm=config.critic_norm)
        self.head2 = Mlp(inputs, 1, config, norm=config.critic_norm)

    def first(self, state: Tensor, action: Tensor) -> Tensor:
        """Return Q1 (B,) of states (B, F + V) and actions (B, A)."""
        q: Tensor = self.head1(torch.cat([state, action], dim=1))
        return q.squeeze(1)

    def both(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return Q1 and Q2, each (B,), of states (B, F + V) and actions (B, A)."""
        inputs = torch.cat([state, action], dim=1)
        return self.head1(inputs).squeeze(1), self.head2(inputs).squeeze(1)

    def hidden(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the last hidden layers of both critics side by side, (B, 2 H)."""
        inputs = torch.cat([state, action], dim=1)
        return torch.cat([self.head1.hidden(inputs), self.head2.hidden(inputs)], dim=1)


def _shared_columns(spec: EpisodeSpec, config: NetworkConfig) -> Tensor | None:
    """Return the places of an actor's state in that of the critics; None if they are the same."""
    columns = input_columns(spec, config, "actor_inputs")
    critic = input_columns(spec, config, "critic_inputs")
    streams = [input_streams(spec, each) for each in (config.actor_inputs, config.critic_inputs)]
    if streams[0] != streams[1]:
        raise ConfigError(
            "learn.network.shared_encoder is true, but actor_inputs and critic_inputs name other "
            "streams, expected the same"
        )
    if not spec.images or critic == columns:
        return None
    if hidden := set(columns).difference(critic):
        names = ", ".join(spec.vector_names[n] for n in sorted(hidden))
        raise ConfigError(
            f"learn.network.critic_inputs lacks {names}, which the actor sees; with shared_encoder "
            "the critics must see all that the actor sees"
        )
    features = len(streams[0]) * config.features
    places = [features + critic.index(n) for n in columns]
    return torch.tensor([*range(features), *places], dtype=torch.int64)


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Switch networks to evaluation mode within a ``with`` block."""
    before = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, before, strict=True):
            network.train(training)


@torch.no_grad()
def move_targets(pairs: Iterable[tuple[nn.Module, nn.Module]], tau: float) -> None:
    """Move target networks, with buffers, by ``target += tau * (online - target)``."""
    targets: list[Tensor] = []
    onlines: list[Tensor] = []
    for target, online in pairs:
        online_values = online.state_dict()
        for name, value in target.state_dict().items():
            if value.is_floating_point():
                targets.append(value)
                onlines.append(online_values[name])
            else:
                value.copy_(online_values[name])  # BatchNorm's counter
    torch._foreach_lerp_(targets, onlines, tau)


def _slope(config: NetworkConfig) -> float:
    return LEAKY_SLOPE if config.activation == "leaky_relu" else 0.0


def _activate(x: Tensor, slope: float) -> Tensor:
    # in place, because nothing else needs the input, and the activations of a batch take megabytes
    if slope:
        return functional.leaky_relu(x, slope, inplace=True)
    return functional.relu(x, inplace=True)


def _conv_norm(kind: str, channels: int) -> nn.Module:
    if kind == "layer":
        return nn.GroupNorm(1, channels)  # normalises over channels, rows and columns of a sample
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()
