"""TD3 and TD3+BC against the plain reference of `plain_td3`, in float64, to 1e-6.

Losses, gradients and all weights (targets too) over 20 updates from the same weights with the same
batches and noise, for a vector alone and with the CNNs, for each option that claims to be standard.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import Actor, NetworkConfig, TwinCritic
from avtd3.learn.td3 import ClipConfig, TD3Config, state_of, update
from avtd3.learn.trainer import cpu_threads
from avtd3.store.spec import ImageSpec
from avtd3.tests.learn.plain_td3 import Drawn, Network, PlainTD3, Seen

UPDATES = 20
IMAGE = ImageSpec(height=36, width=40, stack=1)
PLAIN = TD3Config(
    tau=0.01,
    actor_lr=1e-3,
    critic_lr=2e-3,
    actor_cnn_lr=5e-4,
    critic_cnn_lr=7e-4,
    cnn_weight_decay=0.0,
    clip=ClipConfig(enabled=False),
)
SMALL = NetworkConfig(hidden=(32, 24), features=16, feature_norm=False)
BOUNDS: dict[str, Any] = {"low": (-1.0, 0.0), "high": (1.0, 3.0)}

LEARNING: dict[str, dict[str, Any]] = {
    "td3": {},
    "td3+bc": {"bc_alpha": 2.5},
    "td3+bc, weighted": {"bc_alpha": 1.0, "bc_weight": 0.3, "pre_tanh_weight": 1e-2},
    "every update": {"policy_delay": 1},
    "every third update": {"policy_delay": 3, "tau": 0.1, "target_policy_noise": 0.6},
    "rewards": {"reward_scale": 2.0, "reward_clip": 1.5},
    "decay": {"mlp_weight_decay": 1e-2, "cnn_weight_decay": 3e-2},
    "decoupled decay": {
        "weight_decay_kind": "decoupled",
        "mlp_weight_decay": 3.0,
        "cnn_weight_decay": 10.0,
    },
    "fading": {"bc_alpha": 2.5, "bc_fade_from": 4, "bc_fade_until": 13, "bc_final_weight": 0.2},
    "range of targets": {"target_clip_every": 3},
    "clipping": {"clip": ClipConfig(actor_max_norm=0.05, critic_max_norm=0.5)},
    "clipping parts": {
        "clip": ClipConfig(actor_max_norm=0.02, critic_max_norm=0.3, scope="per_module")
    },
    "together": {
        "bc_alpha": 1.5,
        "policy_delay": 3,
        "reward_scale": 0.5,
        "cnn_weight_decay": 10.0,
        "weight_decay_kind": "decoupled",
        "target_clip_every": 4,
        "clip": ClipConfig(actor_max_norm=0.05, critic_max_norm=0.5),
    },
    "clipping by another norm": {"clip": ClipConfig(critic_max_norm=0.3, norm_type=3.0)},
}
SHAPES: dict[str, dict[str, Any]] = {
    "layer norms": {"conv_norm": "layer", "feature_norm": True},
    "trunk": {"feature_norm": True, "feature_activation": "tanh"},
    "batch norms": {"conv_norm": "batch", "activation": "leaky_relu", "feature_clamp": 0.1},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Beside other work, threads wait for each other longer than these small products take."""
    with cpu_threads(1):
        yield


def numbers(module):
    found = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    return {name: value for name, value in found.items() if not name.startswith("action_")}


def gradients(module):
    return {name: p.grad.numpy().copy() for name, p in module.named_parameters()}


def seen(observation):
    pixels, vector = observation.pixels, observation.vector
    return Seen(
        pixels=pixels[0].numpy() if pixels else None,
        vector=None if vector is None else vector.numpy(),
    )


def drawn(batch):
    return Drawn(
        seen=seen(batch.observation),
        action=batch.action.numpy(),
        reward=batch.reward.numpy(),
        discount=batch.discount.numpy(),
        then=seen(batch.next_observation),
        weight=None if batch.weight is None else batch.weight.numpy(),
        bc_mask=None if batch.bc_mask is None else batch.bc_mask.numpy(),
    )


def assert_same(ours, theirs, what):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # relative to the tensor's size: a single entry may be the rest of a sum that cancels
        scale = max(float(np.abs(value).max()), 1e-8)
        np.testing.assert_allclose(
            value / scale, theirs[name] / scale, rtol=0, atol=1e-6, err_msg=f"{what} {name}"
        )


def assert_networks_same(state, plain, number):
    for name in ("actor", "critic", "actor_target", "critic_target"):
        network: Network = getattr(plain, name)
        assert_same(numbers(getattr(state, name)), network.p, f"update {number} {name}")


def compare(spec, make_batch, network, config, *, size, weighted=False, falling=None, bc_mask=None):
    torch.manual_seed(3)
    state = state_of(Actor(spec, network).double(), TwinCritic(spec, network).double(), config)
    plain = PlainTD3(spec, numbers(state.actor), numbers(state.critic), network, config)
    generator = torch.Generator().manual_seed(5)
    turns = 0
    for number in range(UPDATES):
        batch = make_batch(spec, size, number, torch.float64)
        if weighted:
            weight = torch.rand(size, generator=generator, dtype=torch.float64)
            batch = dataclasses.replace(batch, weight=weight)
        if bc_mask is not None:
            marks = torch.rand(size, generator=generator) < bc_mask[number % len(bc_mask)]
            batch = dataclasses.replace(batch, bc_mask=marks.double())
        noise = torch.randn(size, 2, generator=generator, dtype=torch.float64)
        if falling is not None:
            state.scale_rates(falling.rate_share(number))
            plain.share = float(np.interp(number, (falling.decay_from, UPDATES), (1.0, 0.1)))
        ours = update(state, batch, noise, config)
        loss, actor_loss = plain.update(drawn(batch), noise.numpy())
        assert ours.critic.loss.item() == pytest.approx(loss, rel=1e-6)
        assert_same(gradients(state.critic), plain.critic.gradients, f"update {number} critic")
        assert (ours.actor is None) == (actor_loss is None)
        if ours.actor is not None:
            turns += 1
            assert ours.actor.loss.item() == pytest.approx(actor_loss, rel=1e-6)
            assert_same(gradients(state.actor), plain.actor.gradients, f"update {number} actor")
        assert_networks_same(state, plain, number)
    assert turns == UPDATES // config.policy_delay


@pytest.mark.parametrize("option", LEARNING)
def test_updates_from_a_vector_are_those_of_the_papers(make_spec, make_batch, option):
    config = dataclasses.replace(PLAIN, **LEARNING[option])
    compare(make_spec(vector=7, **BOUNDS), make_batch, SMALL, config, size=32)


IN_IMAGES = [
    pytest.param(option, marks=() if option in ("td3", "together") else pytest.mark.slow)
    for option in LEARNING
]


@pytest.mark.parametrize("option", IN_IMAGES)
def test_updates_from_images_are_those_of_the_papers(make_spec, make_batch, option):
    config = dataclasses.replace(PLAIN, **LEARNING[option])
    spec = make_spec(image=IMAGE, vector=3, **BOUNDS)
    compare(spec, make_batch, SMALL, config, size=4)


OF_SHAPES = [pytest.param(s, marks=pytest.mark.slow if s == "trunk" else ()) for s in SHAPES]


@pytest.mark.parametrize("option", OF_SHAPES)
def test_each_shape_of_network_learns_by_its_own_formulas(make_spec, make_batch, option):
    network = dataclasses.replace(SMALL, **SHAPES[option])
    spec = make_spec(image=IMAGE, vector=0, **BOUNDS)
    compare(spec, make_batch, network, PLAIN, size=4)


@pytest.mark.parametrize("image", [None, pytest.param(IMAGE, marks=pytest.mark.slow)])
def test_prioritised_draws_are_weighed_by_importance(make_spec, make_batch, image):
    spec = make_spec(image=image, vector=3)
    compare(spec, make_batch, SMALL, PLAIN, size=8, weighted=True)


@pytest.mark.parametrize("image", [None, pytest.param(IMAGE, marks=pytest.mark.slow)])
def test_demonstrations_alone_are_imitated(make_spec, make_batch, image):
    config = dataclasses.replace(PLAIN, bc_alpha=2.5, bc_weight=0.7, policy_delay=1)
    spec = make_spec(image=image, vector=3)
    shares = (0.5, 0.0, 1.0)  # of the batch: some, none, all
    compare(spec, make_batch, SMALL, config, size=8, bc_mask=shares)


@pytest.mark.parametrize("image", [None, pytest.param(IMAGE, marks=pytest.mark.slow)])
def test_learning_rates_fall_linearly(make_spec, make_batch, image):
    falling = LearnConfig(updates=UPDATES, decay_from=6, decay_to=0.1)
    config = dataclasses.replace(PLAIN, weight_decay_kind="decoupled", mlp_weight_decay=3.0)
    spec = make_spec(image=image, vector=3)
    compare(spec, make_batch, SMALL, config, size=8, falling=falling)


def test_leaky_units_learn_by_their_own_formula(make_spec, make_batch):
    network = dataclasses.replace(SMALL, activation="leaky_relu")
    compare(make_spec(vector=7, **BOUNDS), make_batch, network, PLAIN, size=16)
