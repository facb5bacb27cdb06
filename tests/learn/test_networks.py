import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from avtd3.collect.driving.task import DrivingTask, TaskConfig
from avtd3.learn.networks import (
    Actor,
    Encoder,
    NetworkConfig,
    ObservationBatch,
    TwinCritic,
    move_targets,
    to_pixels,
)
from avtd3.learn.policy import SingleActor
from avtd3.store.errors import ConfigError
from avtd3.store.spec import ImageSpec

OPTIONS = [
    NetworkConfig(),
    NetworkConfig(activation="leaky_relu", feature_norm=False),
    NetworkConfig(conv_norm="layer", feature_clamp=0.3),
    NetworkConfig(conv_norm="batch", feature_norm=False, feature_clamp=0.2),
    NetworkConfig(feature_activation="tanh", features=50, activation="leaky_relu"),
]


def plain_features(encoder, frames, config):
    """The textbook formula: scale to [-1, 1] first, convolve in NCHW."""
    slope = 0.01 if config.activation == "leaky_relu" else 0.0
    x = frames.double() / 127.5 - 1.0
    for convolution, norm in zip(encoder.convolutions, encoder.norms, strict=True):
        x = functional.leaky_relu(norm(convolution(x)), slope)
    x = encoder.feature_norm(encoder.linear(x.permute(0, 2, 3, 1).flatten(1)))
    x = torch.tanh(x) if config.feature_activation == "tanh" else functional.leaky_relu(x, slope)
    return x.clamp(-config.feature_clamp, config.feature_clamp) if config.feature_clamp else x


def make_frames(image, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (size, *image.observation_shape)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("config", OPTIONS)
@pytest.mark.parametrize("sides", [(84, 84), (36, 51)])
def test_the_folded_scaling_equals_the_plain_formula(config, sides):
    image = ImageSpec(height=sides[0], width=sides[1])
    encoder = Encoder(image, config).double()
    frames = make_frames(image)
    ours = encoder(to_pixels(frames, torch.float64))
    assert ours.shape == (3, config.features)
    torch.testing.assert_close(ours, plain_features(encoder, frames, config))


@pytest.mark.parametrize("sides", [(84, 84), (36, 51)])
def test_bfloat16_gradients_equal_those_of_plain_convolutions(sides):
    torch.manual_seed(0)
    encoder = Encoder(ImageSpec(height=sides[0], width=sides[1]), NetworkConfig())
    pixels = to_pixels(make_frames(ImageSpec(height=sides[0], width=sides[1])), torch.bfloat16)

    def plain():
        first = functional.relu(functional.conv2d(pixels, *encoder.scaled_first(), 4))
        x = functional.relu(encoder.convolutions[1](first))
        x = functional.relu(encoder.convolutions[2](x))
        return encoder.finish(encoder.linear(x.permute(0, 2, 3, 1).flatten(1)))

    def run(features_of):
        with torch.autocast("cpu", torch.bfloat16):
            features = features_of()
        loss = features.float().square().sum()
        return features.detach().float(), torch.autograd.grad(loss, list(encoder.parameters()))

    ours, expected = run(lambda: encoder(pixels)), run(plain)
    torch.testing.assert_close(ours[0], expected[0], rtol=0.02, atol=0.02)
    for gradient, wanted in zip(ours[1], expected[1], strict=True):
        assert (gradient - wanted).norm() < 0.03 * wanted.norm()


def test_it_is_the_nature_cnn():
    encoder = Encoder(ImageSpec(), NetworkConfig())
    assert [
        tuple(w.shape) for n, w in encoder.named_parameters() if "tions" in n and w.ndim == 4
    ] == [
        (32, 4, 8, 8),
        (64, 32, 4, 4),
        (64, 64, 3, 3),
    ]
    assert tuple(encoder.linear.weight.shape) == (512, 3136)


def test_pixels_are_the_bytes_in_channels_last_memory():
    frames = make_frames(ImageSpec())
    pixels = to_pixels(frames, torch.bfloat16)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels.to(torch.uint8), frames)
    window = make_frames(ImageSpec(stack=5))[:, 1:]
    assert torch.equal(to_pixels(window, torch.float32).to(torch.uint8), window)


def test_an_image_too_small_for_the_cnn_is_refused():
    with pytest.raises(ConfigError, match="36"):
        Encoder(ImageSpec(height=35, width=84), NetworkConfig())


@pytest.mark.parametrize("image", [None, ImageSpec(height=36, width=40, channels=3, stack=2)])
@pytest.mark.parametrize("vector", [0, 4])
def test_actions_are_in_bounds_for_every_kind_of_observation(make_spec, image, vector):
    if image is None and vector == 0:
        return
    spec = make_spec(image=image, vector=vector, low=(-3.0, 0.0), high=(-1.0, 10.0))
    actor = Actor(spec, NetworkConfig(hidden=(8,), features=16))
    nn.init.normal_(list(actor.head.parameters())[-2], std=20.0)
    pixels = () if image is None else (to_pixels(make_frames(image, 64), torch.float32),)
    vectors = torch.randn(64, vector) if vector else None
    action = actor(ObservationBatch(pixels=pixels, vector=vectors))
    assert action.shape == (64, 2)
    assert (action >= torch.tensor([-3.0, 0.0])).all()
    assert (action <= torch.tensor([-1.0, 10.0])).all()
    critic = TwinCritic(spec, NetworkConfig(hidden=(8,), features=16))
    state = critic.encode(ObservationBatch(pixels=pixels, vector=vectors))
    q1, q2 = critic.both(state, action)
    assert q1.shape == q2.shape == (64,)
    assert torch.equal(critic.first(state, action), q1)
    assert not torch.equal(q1, q2)


def test_parameters_are_split_into_cnn_and_mlp(make_spec, small_network):
    critic = TwinCritic(make_spec(image=ImageSpec(height=36, width=36)), small_network)
    both = critic.encoder_parameters() + critic.mlp_parameters()
    assert {id(p) for p in both} == {id(p) for p in critic.parameters()}
    assert len(both) == len(list(critic.parameters()))
    assert TwinCritic(make_spec(), small_network).encoder_parameters() == []


def test_targets_take_batch_norms_statistics_along(make_spec):
    spec = make_spec(image=ImageSpec(height=36, width=36))
    online = Actor(spec, NetworkConfig(conv_norm="batch", features=8))
    target = online.target_copy()
    assert not any(p.requires_grad for p in target.parameters())
    name = "encoder.norms.0."
    before, after = online.state_dict(), target.state_dict()
    before[name + "running_mean"].fill_(4.0)
    before[name + "num_batches_tracked"].fill_(9)
    move_targets([(target, online)], 0.25)
    assert torch.equal(after[name + "running_mean"], torch.full((32,), 1.0))
    assert after[name + "num_batches_tracked"].item() == 9
    assert not target.training


@pytest.mark.parametrize("config", OPTIONS)
@pytest.mark.parametrize(
    ("image", "vector"), [(ImageSpec(height=36, width=51), 4), (ImageSpec(), 0), (None, 4)]
)
def test_driving_equals_the_modules(make_spec, config, image, vector):
    spec = make_spec(image=image, vector=vector, low=(-2.0,), high=(5.0,))
    actor = Actor(spec, config)
    for name, value in actor.state_dict().items():
        if ".norms." in name and value.is_floating_point():
            nn.init.uniform_(value, 0.5, 2.0)
    actor.eval()
    frames = None if image is None else make_frames(image, 1)
    vectors = torch.randn(1, vector) if vector else None
    pixels = () if frames is None else (to_pixels(frames, torch.float32),)
    with torch.no_grad():
        expected = actor(ObservationBatch(pixels=pixels, vector=vectors))[0]
    ours = SingleActor(actor)(
        [] if frames is None else [frames[0]], None if vectors is None else vectors[0]
    )
    np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "bad",
    [
        {"activation": "gelu"},
        {"conv_norm": "group"},
        {"feature_activation": "relu"},
        {"hidden": ()},
        {"features": 0},
        {"feature_clamp": -1.0},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        NetworkConfig(**bad)


def test_values_keep_their_digits_under_bf16(make_spec, make_batch, small_network):
    spec = make_spec()
    critic = TwinCritic(spec, small_network)
    with torch.no_grad():
        for head in (critic.head1, critic.head2):
            *_, bias = head.parameters()
            bias.fill_(70.0)
    batch = make_batch(spec, size=64)
    with torch.autocast("cpu", torch.bfloat16):
        q, _ = critic.both(critic.encode(batch.observation), batch.action)
    assert q.dtype is torch.float32
    rounded = q.to(torch.bfloat16).float()  # steps of 0.5
    assert len(q.unique()) > 32 > len(rounded.unique())


def test_a_state_of_the_default_task_has_535_numbers():
    spec = DrivingTask(TaskConfig(), 0.05).spec(ImageSpec())
    assert Actor(spec, NetworkConfig()).state_size == 512 + 23 == 535
