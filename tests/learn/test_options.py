"""Options of the networks and losses that other papers found to help with fixed data."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from avtd3.learn.callbacks import TrainCallback
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import NetworkConfig, ObservationBatch, TwinCritic
from avtd3.learn.policy import PolicyActor
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.td3 import (
    TD3Config,
    actor_loss,
    create_state,
    critic_loss,
    update,
)
from avtd3.learn.trainer import train
from avtd3.store import Dataset, EpisodeSpec, SegmentWriter
from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.spec import ImageSpec
from avtd3.store.step import Observation

CPU = torch.device("cpu")


@pytest.fixture
def spec(make_spec):
    return make_spec(image=ImageSpec(height=36, width=36, channels=1, stack=2))


@pytest.fixture
def shared(spec):
    network = NetworkConfig(hidden=(16, 16), features=8, shared_encoder=True)
    return create_state(spec, network, TD3Config(tau=0.1), CPU, seed=0), network


def noise(batch):
    return torch.randn(batch.action.shape, generator=torch.Generator().manual_seed(0))


def test_critic_norm_is_layer_norm_after_each_activation(spec):
    torch.manual_seed(0)
    critic = TwinCritic(spec, NetworkConfig(hidden=(16, 12), features=8, critic_norm=True))
    x = torch.randn(5, critic.state_size + spec.action_size)
    expected = x.numpy().astype(np.float64)
    *hidden, last = critic.head1.layers
    for layer in hidden:
        weight, bias = (p.detach().numpy().astype(np.float64) for p in layer.parameters())
        expected = np.maximum(expected @ weight.T + bias, 0.0)
        expected -= expected.mean(axis=1, keepdims=True)
        expected /= np.sqrt((expected**2).mean(axis=1, keepdims=True) + 1e-5)
    weight, bias = (p.detach().numpy().astype(np.float64) for p in last.parameters())
    expected = expected @ weight.T + bias
    np.testing.assert_allclose(critic.head1(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_without_critic_norm_the_weights_have_their_old_names(spec):
    names = set(TwinCritic(spec, NetworkConfig(hidden=(16,), features=8)).state_dict())
    assert not any(".norms." in name for name in names if name.startswith("head"))


def test_a_shared_encoder_is_trained_by_the_critics_alone(shared, spec, make_batch):
    state, _ = shared
    assert state.shares_encoder
    batch = make_batch(spec)
    before = [p.clone() for p in state.critic.encoder.parameters()]
    loss = actor_loss(state, batch, TD3Config())
    loss.loss.backward()
    assert all(p.grad is None for p in state.critic.encoder.parameters())
    state.actor_optimizer.step()
    for old, new in zip(before, state.critic.encoder.parameters(), strict=True):
        assert torch.equal(old, new)
    assert {id(p) for group in state.actor_optimizer.param_groups for p in group["params"]} == {
        id(p) for p in state.actor.head.parameters()
    }


def test_a_shared_encoder_has_one_target_that_moves_once_per_actor_update(shared, spec, make_batch):
    state, _ = shared
    config = TD3Config(tau=0.1)
    assert state.actor_target.encoder is state.critic_target.encoder
    start = [p.clone() for p in state.critic_target.encoder.parameters()]
    for seed in range(2):
        batch = make_batch(spec, seed=seed)
        update(state, batch, noise(batch), config)
    targets = state.critic_target.encoder.parameters()
    for old, target, new in zip(start, targets, state.critic.encoder.parameters(), strict=True):
        torch.testing.assert_close(target, torch.lerp(old, new.detach(), 0.1))


def test_the_actor_reads_the_features_of_the_critics_loss(shared, spec, make_batch):
    state, _ = shared
    batch = make_batch(spec)
    critic = critic_loss(state, batch, batch.reward, noise(batch), TD3Config())
    fresh = actor_loss(state, batch, TD3Config())
    given = actor_loss(state, batch, TD3Config(), critic.state.detach())
    torch.testing.assert_close(fresh.loss, given.loss)


def test_a_policy_with_a_shared_encoder_acts_like_its_actor(shared, spec, make_batch, tmp_path):
    state, network = shared
    batch = make_batch(spec)
    for seed in range(4):
        other = make_batch(spec, seed=seed)
        update(state, other, noise(other), TD3Config())
    store = PolicyStore(tmp_path)
    store.publish(state.actor, spec, network, updates=4)
    policy = store.latest(spec)
    assert policy is not None
    data = store.path_of(policy.version).read_bytes()
    assert not any(name in data for name in (b"shared_encoder", b"critic_norm")), "older avtd3"
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1, 36, 36), np.uint8)
    vector = batch.observation.vector[0].numpy() * np.array(spec.vector_scales, np.float32)
    actor = PolicyActor(policy)
    actor.reset()
    action = actor.act(Observation(image=frame, vector=vector))
    stack = np.concatenate([frame, frame])[None]
    observation = dataclasses.replace(
        batch.observation,
        pixels=(torch.from_numpy(stack).float(),),
        vector=batch.observation.vector[:1],
    )
    with torch.no_grad():
        expected = state.actor(observation)[0].numpy()
    np.testing.assert_allclose(action, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("image", [ImageSpec(height=36, width=36, stack=2), None])
def test_a_policy_includes_the_statistics_of_the_vector(make_spec, make_batch, tmp_path, image):
    spec = make_spec(image=image)
    network = NetworkConfig(hidden=(16, 16), features=8, vector_statistics=True)
    state = create_state(spec, network, TD3Config(), CPU, seed=0)
    vectors = torch.randn(50, spec.vector_size, generator=torch.Generator().manual_seed(1)) + 2.0
    state.set_vector_statistics(vectors)
    for seed in range(2):
        batch = make_batch(spec, seed=seed)
        update(state, batch, noise(batch), TD3Config())
    mean, std = vectors.numpy().mean(axis=0), vectors.numpy().std(axis=0) + 0.05
    one = batch.observation.vector[:1]
    for net in (state.actor, state.critic, state.actor_target, state.critic_target):
        np.testing.assert_allclose(net.normalise(one), (one.numpy() - mean) / std, rtol=1e-4)
    store = PolicyStore(tmp_path)
    store.publish(state.actor, spec, network, updates=2)
    policy = store.latest(spec)
    assert policy is not None
    assert b"vector_statistics" not in store.path_of(policy.version).read_bytes(), "older avtd3"
    frame = None if image is None else np.zeros((1, 36, 36), np.uint8)
    actor = PolicyActor(policy)
    actor.reset()
    vector = one[0].numpy() * np.array(spec.vector_scales, np.float32)
    action = actor.act(Observation(image=frame, vector=vector))
    pixels = () if image is None else (torch.zeros(1, 2, 36, 36),)
    with torch.no_grad():
        expected = state.actor(ObservationBatch(pixels=pixels, vector=one))[0].numpy()
    np.testing.assert_allclose(action, expected, rtol=1e-3, atol=1e-4)


def test_cloning_ignores_the_critics(make_spec, small_network, make_batch):
    spec = make_spec()
    states = [create_state(spec, small_network, TD3Config(), CPU, seed=0) for _ in range(2)]
    with torch.no_grad():  # other critics, the same actor
        for p in states[1].critic.parameters():
            p.add_(1.0)
    for state in states:
        for seed in range(6):
            batch = make_batch(spec, seed=seed)
            update(state, batch, noise(batch), TD3Config(), None, "bc")
    one, other = (state.actor.state_dict() for state in states)
    assert all(torch.equal(one[name], other[name]) for name in one)
    batch = make_batch(spec)
    terms = actor_loss(states[0], batch, TD3Config(), algorithm="bc")
    torch.testing.assert_close(terms.loss, functional.mse_loss(terms.action, batch.action))


def test_values_keep_their_digits_under_bf16(make_spec, small_network, make_batch):
    spec = make_spec()
    state = create_state(spec, small_network, TD3Config(), CPU, seed=0)
    with torch.no_grad():
        for head in (state.critic.head1, state.critic.head2):
            *_, bias = head.parameters()
            bias.fill_(70.0)
    batch = make_batch(spec, size=64)
    with torch.autocast("cpu", torch.bfloat16):
        q, _ = state.critic.both(state.critic.encode(batch.observation), batch.action)
    assert q.dtype is torch.float32
    rounded = q.to(torch.bfloat16).float()  # steps of 0.5
    assert len(q.unique()) > 32 > len(rounded.unique())


def test_the_fitted_value_is_logged(tmp_path):
    rng = np.random.default_rng(0)
    spec = EpisodeSpec(vector_names=("x",), action_names=("a",), vector_scales=(1.0,))
    with SegmentWriter(Dataset.create(tmp_path / "data", spec)) as writer:
        for seed in range(30):
            writer.begin(Observation(vector=rng.normal(size=1).astype(np.float32)), seed=seed)
            for t in range(8):
                after = Observation(vector=rng.normal(size=1).astype(np.float32))
                action = rng.uniform(-1.0, 1.0, 1).astype(np.float32)
                writer.step(action, float(action[0]), after, terminated=t == 7)
    config = LearnConfig(
        updates=20,
        evaluate_every=10,
        evaluate_episodes=20,
        network=NetworkConfig(hidden=(8, 8), critic_norm=True),
        td3=TD3Config(bc_alpha=2.5),
        replay=ReplayConfig(batch_size=16, held_out=0.5),
    )
    logged = {}

    class Metrics(TrainCallback):
        def on_metrics(self, step, scalars):
            logged.update(scalars)

    report = train(config, datasets=tmp_path / "data", run=tmp_path / "run", callbacks=[Metrics()])
    assert report.updates == 20
    assert logged["offline/fitted_value_low"] <= logged["offline/fitted_value"]
    assert -8.0 < logged["offline/fitted_value"] < 8.0


def test_behaviour_cloning_is_an_algorithm_of_train(tmp_path):
    rng = np.random.default_rng(0)
    spec = EpisodeSpec(vector_names=("x",), action_names=("a",), vector_scales=(1.0,))
    with SegmentWriter(Dataset.create(tmp_path / "data", spec)) as writer:
        for _ in range(20):
            x = rng.uniform(-1.0, 1.0, 1).astype(np.float32)
            writer.begin(Observation(vector=x))
            for t in range(8):
                action = -0.5 * x
                x = rng.uniform(-1.0, 1.0, 1).astype(np.float32)
                reward = float(action[0] ** 2)  # cloning ignores it
                writer.step(action, reward, Observation(vector=x), terminated=t == 7)
    config = LearnConfig(
        algorithm="bc",
        updates=400,
        network=NetworkConfig(hidden=(32,)),
        td3=TD3Config(actor_lr=0.01, policy_delay=1),
        replay=ReplayConfig(batch_size=64),
    )
    train(config, datasets=tmp_path / "data", run=tmp_path / "run")
    policy = PolicyStore(tmp_path / "run" / "policies").latest(spec)
    assert policy is not None
    actor = PolicyActor(policy)
    for place in (-0.8, 0.1, 0.6):
        actor.reset()
        action = actor.act(Observation(vector=np.array([place], np.float32)))
        assert action[0] == pytest.approx(-0.5 * place, abs=0.05)


@pytest.mark.parametrize("settings", [{"algorithm": "sac"}, {"threads": "many"}, {"threads": -1}])
def test_wrong_choices_are_config_errors(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LearnConfig(**settings)


def test_a_shared_encoder_needs_the_critics_own_features():
    with pytest.raises(ConfigError, match=r"critic_features.*shared_encoder"):
        LearnConfig(
            network=NetworkConfig(shared_encoder=True), td3=TD3Config(critic_features="actor")
        )


def test_a_run_with_a_shared_encoder_and_statistics_resumes(tmp_path):
    image = ImageSpec(height=36, width=36, stack=2)
    spec = EpisodeSpec(
        image=image,
        vector_names=("x",),
        action_names=("a",),
        vector_scales=(1.0,),
    )
    rng = np.random.default_rng(0)

    def observe():
        frame = rng.integers(0, 256, image.frame_shape, np.uint8)
        return Observation(image=frame, vector=rng.normal(size=1).astype(np.float32))

    with SegmentWriter(Dataset.create(tmp_path / "data", spec)) as writer:
        writer.begin(observe())
        for t in range(30):
            writer.step(
                rng.uniform(-1.0, 1.0, 1).astype(np.float32), 1.0, observe(), terminated=t == 29
            )

    def learn(run, updates, **more):
        config = LearnConfig(
            updates=updates,
            threads=1,
            network=NetworkConfig(
                hidden=(8,), features=8, shared_encoder=True, vector_statistics=True
            ),
            replay=ReplayConfig(batch_size=4),
        )
        train(config, datasets=tmp_path / "data", run=tmp_path / run, **more)
        return (
            tmp_path / run / f"checkpoints/update-{updates:09}/tensors.safetensors"
        ).read_bytes()

    learn("cut", 4)
    assert learn("cut", 8, resume=True) == learn("whole", 8)
