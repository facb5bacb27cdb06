import dataclasses

import pytest
import torch

from avtd3.learn.networks import NetworkConfig
from avtd3.learn.td3 import (
    CRITIC_FEATURES,
    ClipConfig,
    TD3Config,
    actor_loss,
    create_state,
    critic_loss,
    target_value,
    update,
)
from avtd3.store.errors import ConfigError
from avtd3.store.spec import ImageSpec

CPU = torch.device("cpu")
IMAGE = ImageSpec(height=36, width=36, stack=2)


def has_gradient(module):
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def weights(*modules):
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def setting(make_spec, make_batch, small_network):
    spec = make_spec(image=IMAGE, vector=3)
    state = create_state(spec, small_network, TD3Config(), CPU, seed=1)
    return state, make_batch(spec), torch.zeros(8, 2)


def test_critic_loss_reaches_the_critic_alone(setting):
    state, batch, noise = setting
    critic_loss(state, batch, batch.reward, noise, TD3Config()).loss.backward()
    assert has_gradient(state.critic.encoder)
    assert has_gradient(state.critic.head1)
    assert has_gradient(state.critic.head2)
    for other in (state.actor, state.actor_target, state.critic_target):
        assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("features", CRITIC_FEATURES)
def test_actor_loss_reaches_the_actor_alone(setting, features):
    state, batch, _ = setting
    actor_loss(state, batch, TD3Config(critic_features=features)).loss.backward()
    assert has_gradient(state.actor.encoder)
    assert has_gradient(state.actor.head)
    for other in (state.critic, state.actor_target, state.critic_target):
        assert all(p.grad is None for p in other.parameters())
    assert all(p.requires_grad for p in state.critic.parameters())


def test_the_critic_rates_the_actor_on_its_own_features(setting):
    state, batch, _ = setting
    with torch.no_grad():
        action = state.actor(batch.observation)
        own = state.critic.first(state.critic.encode(batch.observation), action)
        foreign = state.critic.first(state.actor.encode(batch.observation), action)
    torch.testing.assert_close(actor_loss(state, batch, TD3Config()).q, own)
    ablation = TD3Config(critic_features="actor")
    torch.testing.assert_close(actor_loss(state, batch, ablation).q, foreign)
    assert not torch.allclose(own, foreign)


@pytest.mark.slow
def test_features_of_the_actor_inflate_what_the_critics_own_features_bound(make_spec, make_batch):
    spec = make_spec(image=IMAGE, vector=3)
    network = NetworkConfig(feature_norm=False, hidden=(64, 64))
    losses = {}
    for features in CRITIC_FEATURES:
        config = TD3Config(
            critic_features=features,
            actor_cnn_lr=1e-3,
            cnn_weight_decay=0.0,
            clip=ClipConfig(enabled=False),
        )
        state = create_state(spec, network, config, CPU, seed=0)
        batch = make_batch(spec, 32)
        for _ in range(120):
            result = update(state, batch, torch.zeros(32, 2), config)
        assert result.actor is not None
        losses[features] = result.actor.loss.item()
    assert abs(losses["own"]) < 20
    assert abs(losses["actor"]) > 10 * abs(losses["own"])


def test_discount_zero_stops_bootstrapping(setting):
    state, batch, noise = setting
    target = target_value(state, batch, batch.reward, noise, TD3Config())
    ended = batch.discount == 0
    assert ended.any()
    assert torch.equal(target[ended], batch.reward[ended])
    assert not torch.equal(target[~ended], batch.reward[~ended])


def test_target_noise_scales_with_the_action_range_and_stays_in_bounds(
    make_spec, make_batch, monkeypatch
):
    spec = make_spec(low=(-2.0,), high=(4.0,))
    config = TD3Config()
    state = create_state(spec, NetworkConfig(hidden=(8,)), config, CPU, seed=0)
    batch = make_batch(spec)
    seen = []

    def note(_, action):
        seen.append(action)
        return action[:, 0], action[:, 0]

    monkeypatch.setattr(state.critic_target, "both", note)
    before = state.actor_target(batch.next_observation)
    for noise in (0.5, 100.0, -1e6):
        target_value(state, batch, batch.reward, torch.full((8, 1), noise), config)
    torch.testing.assert_close(seen[0], before + 0.5 * 0.2 * 3.0)
    torch.testing.assert_close(seen[1], (before + 0.5 * 3.0).clamp(-2.0, 4.0))
    torch.testing.assert_close(seen[2], (before - 0.5 * 3.0).clamp(-2.0, 4.0))


def test_actor_and_targets_move_every_second_update(setting):
    state, batch, noise = setting
    frozen = (state.actor, state.actor_target, state.critic_target)
    before = weights(*frozen)
    assert update(state, batch, noise, TD3Config()).actor is None
    assert same(before, weights(*frozen))
    assert update(state, batch, noise, TD3Config()).actor is not None
    assert not same(before, weights(*frozen))


def test_targets_move_by_tau(setting):
    state, batch, noise = setting
    config = TD3Config(policy_delay=1, tau=0.25)
    before = weights(state.critic_target)
    update(state, batch, noise, config)
    expected = [
        0.75 * old + 0.25 * new for old, new in zip(before, weights(state.critic), strict=True)
    ]
    for value, want in zip(weights(state.critic_target), expected, strict=True):
        torch.testing.assert_close(value, want)


def test_an_update_that_is_not_finite_is_skipped_and_counted(setting):
    state, batch, noise = setting
    config = TD3Config(policy_delay=1)
    update(state, batch, noise, config)
    before = weights(state.critic)
    moments = [v["exp_avg"].clone() for v in state.critic_optimizer.state.values()]
    batch.reward[2] = float("nan")
    update(state, batch, noise, config)
    update(state, batch, noise, config)
    assert same(before, weights(state.critic))
    assert same(moments, [v["exp_avg"] for v in state.critic_optimizer.state.values()])
    assert all(bool(torch.isfinite(value).all()) for value in weights(state.actor))
    assert state.skipped.item() == 2
    assert state.skipped_in_a_row.item() == 2
    batch.reward[2] = 0.0
    update(state, batch, noise, config)
    assert state.skipped.item() == 2
    assert state.skipped_in_a_row.item() == 0
    assert not same(before, weights(state.critic))


def test_rewards_are_scaled_then_clipped(setting):
    state, batch, noise = setting
    result = update(state, batch, noise, TD3Config(reward_scale=3.0, reward_clip=1.5))
    torch.testing.assert_close(result.reward, (batch.reward * 3.0).clamp(-1.5, 1.5))


def test_the_same_seed_gives_the_same_weights(make_spec, make_batch, small_network):
    spec = make_spec(image=IMAGE)
    results = []
    for _ in range(2):
        state = create_state(spec, small_network, TD3Config(), CPU, seed=4)
        for seed in range(4):
            update(state, make_batch(spec, seed=seed), torch.ones(8, 2), TD3Config())
        results.append(weights(state.actor, state.critic, state.critic_target))
    assert same(*results)


def test_bfloat16_stays_close_to_float32(make_spec, make_batch, small_network):
    spec = make_spec(image=IMAGE)
    losses = []
    for autocast in (None, torch.bfloat16):
        state = create_state(spec, small_network, TD3Config(), CPU, seed=4)
        for seed in range(4):
            batch = make_batch(spec, 32, seed=seed)
            result = update(state, batch, torch.ones(32, 2), TD3Config(), autocast)
        assert result.critic.loss.dtype == torch.float32
        losses.append(result.critic.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_imitation_pulls_the_actor_to_the_data(make_spec, make_batch, small_network):
    spec = make_spec()
    config = TD3Config(bc_alpha=0.1, policy_delay=1, actor_lr=1e-2)
    state = create_state(spec, small_network, config, CPU, seed=0)
    batch = make_batch(spec)
    before = actor_loss(state, batch, config).imitation.item()
    for _ in range(60):
        update(state, batch, torch.zeros(8, 2), config)
    assert actor_loss(state, batch, config).imitation.item() < 0.5 * before


def test_the_imitation_fades_between_two_updates():
    config = TD3Config(bc_weight=2.0, bc_fade_from=10, bc_fade_until=20, bc_final_weight=0.5)
    weights = [config.bc_weight_at(updates) for updates in (1, 10, 12, 15, 20, 99)]
    assert weights == pytest.approx([2.0, 2.0, 1.7, 1.25, 0.5, 0.5])
    assert TD3Config(bc_weight=2.0).bc_weight_at(10**9) == 2.0


def test_the_imitation_that_counts_is_that_of_the_update(setting):
    state, batch, _ = setting
    config = TD3Config(bc_alpha=1.0, bc_fade_from=1, bc_fade_until=3, policy_delay=1)
    plain = TD3Config(bc_alpha=1.0, policy_delay=1)
    state.updates = 2
    full, half = actor_loss(state, batch, plain), actor_loss(state, batch, config)
    torch.testing.assert_close(full.loss - half.loss, 0.5 * full.imitation)


def test_decoupled_decay_spares_norms_and_biases(make_spec, small_network):
    config = TD3Config(weight_decay_kind="decoupled", mlp_weight_decay=2.0, cnn_weight_decay=5.0)
    state = create_state(make_spec(image=IMAGE), small_network, config, CPU, seed=0)
    for network, optimizer in state.networks().values():
        assert isinstance(optimizer, torch.optim.AdamW)
        decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert len(decay) == len(list(network.parameters()))
        for name, p in network.named_parameters():
            whole = 5.0 if name.startswith("encoder.") else 2.0
            assert decay[id(p)] == (whole if name.endswith("weight") and p.ndim > 1 else 0.0), name


@pytest.mark.parametrize("kind", ["l2", "decoupled"])
@pytest.mark.parametrize("image", [None, IMAGE])
def test_a_share_of_the_rates_reaches_every_parameter(make_spec, small_network, kind, image):
    config = TD3Config(actor_lr=1.0, actor_cnn_lr=2.0, critic_lr=4.0, critic_cnn_lr=8.0)
    config = dataclasses.replace(config, weight_decay_kind=kind)
    state = create_state(make_spec(image=image), small_network, config, CPU, seed=0)
    for share in (1.0, 0.25, 0.5):
        state.scale_rates(share)
        wanted = {"rate/actor_mlp": 1.0, "rate/critic_mlp": 4.0}
        if image is not None:
            wanted |= {"rate/actor_cnn": 2.0, "rate/critic_cnn": 8.0}
        assert state.rates() == {name: share * rate for name, rate in wanted.items()}
        for network, optimizer in state.networks().values():
            reached = [p for group in optimizer.param_groups for p in group["params"]]
            assert {id(p) for p in reached} == {id(p) for p in network.parameters()}


def test_next_values_stay_in_the_range_of_targets_seen(setting, make_spec, small_network):
    _, batch, noise = setting
    config = TD3Config(target_clip_every=2)
    state = create_state(make_spec(image=IMAGE, vector=3), small_network, config, CPU, seed=1)
    first = update(state, batch, noise, config)
    assert torch.equal(first.critic.target, batch.reward)  # only 0 is known to be possible
    wild = batch.reward.clone()
    batch.reward[3] = float("nan")
    second = update(state, batch, noise, config)
    assert torch.equal(second.critic.target[:3], wild[:3])
    assert state.value_range is not None
    low, high = float(wild.min()), float(wild.max())
    assert state.value_range.tolist() == pytest.approx([low, high, low, high])
    with torch.no_grad():
        for p in state.critic_target.parameters():
            p.fill_(3.0)
    target = target_value(state, batch, wild, noise, config)
    torch.testing.assert_close(target, wild + batch.discount * high)


@pytest.mark.parametrize(
    "bad",
    [
        {"tau": 0.0},
        {"tau": 1.5},
        {"policy_delay": 0},
        {"critic_features": "odd"},
        {"critic_lr": -1.0},
        {"weight_decay_kind": "adamw"},
        {"bc_fade_until": 5, "bc_fade_from": 5},
        {"target_clip_every": -1},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TD3Config(**bad)
