"""TD3 (Fujimoto, van Hoof & Meger 2018), with TD3+BC (Fujimoto & Gu 2021) for fixed data.

Twin critics whose minimum is the target, target policy smoothing, delayed policy updates and
Polyak averaging are as published. Deviations, each marked where it happens:

1. Images: both critics share one CNN, the actor has another; all have target copies.
2. The actor's loss is ``-Q1(critic_cnn(obs), actor(actor_cnn(obs)))``, the critic's features
   without gradient. (``wiring="coupled"`` gives the critic the actor's features instead. It never
   trained on those, so the actor's CNN raises Q without bound: an ablation, not an option.)
3. Target noise scales with half the range of each action, as in the authors' code.
4. Per-sample discount: n-step returns, and only ``terminated`` stops bootstrapping.
5. Gradients are clipped; CNNs have weight decay (by choice AdamW's, Loshchilov & Hutter 2019) and
   a lower learning rate; LayerNorm on features.
6. Rewards may be scaled and clipped on their way in.
7. TD3+BC: the vector is not normalised by the data's statistics, the spec's scales do that;
   `bc_weight` scales the imitation term, and may fade (as in Beeson & Montana 2022, but linearly).
8. The actor's numbers before tanh may be penalised.
9. An update whose loss or gradient is not finite is left out and counted.
10. Draws may be prioritised by the larger TD error of the two critics (as in Fujimoto et al. 2020);
    the critics' loss then has importance weights (Schaul et al. 2016).
11. Images may be shifted at random, by `learn/augment.py` (Yarats et al. 2021).
12. The next value may be limited to the range of targets seen (TD7, Fujimoto et al. 2023).
13. What is imitated may be some of the data alone, as are the demonstrations of Nair et al. 2018;
    the critics learn from all.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtd3.learn.batch import Batch
from avtd3.learn.guards.clip import GradientNorms, clip_gradients
from avtd3.learn.networks import Actor, Observation, TwinCritic, move_targets
from avtd3.learn.state import TD3Config, TD3State


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CriticTerms:
    """The critic's loss and what it was made of."""

    loss: Tensor
    """Scalar, sum of the two mean squared errors."""
    q1: Tensor
    """(B,) first value."""
    q2: Tensor
    """(B,) second value."""
    target: Tensor
    """(B,) what both should be."""
    state: Tensor
    """(B, F + V) the critic's features and the vector."""

    def td_error(self) -> Tensor:
        """(B,) distance of either value to the target, the larger one."""
        return torch.maximum((self.q1 - self.target).abs(), (self.q2 - self.target).abs())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActorTerms:
    """The actor's loss and what it was made of."""

    loss: Tensor
    """Scalar."""
    q: Tensor
    """(B,) value of the actor's actions."""
    action: Tensor
    """(B, A) the actor's actions."""
    pre_tanh: Tensor
    """(B, A) the numbers before tanh."""
    imitation: Tensor
    """Scalar, mean squared distance to those of the data's actions that are imitated."""
    state: Tensor
    """(B, F + V) the actor's features and the vector."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one update did, as detached tensors on the device; nothing is read back."""

    critic: CriticTerms
    critic_norms: GradientNorms
    reward: Tensor
    """(B,) as the critic saw it, scaled and clipped."""
    actor: ActorTerms | None
    """None on updates that left the actor alone."""
    actor_norms: GradientNorms | None


def update(
    state: TD3State,
    batch: Batch,
    noise: Tensor,
    config: TD3Config,
    autocast: torch.dtype | None = None,
) -> Update:
    """One critic update and, every `policy_delay` updates, one of the actor and the targets.

    No input or output, no clock, and no wait for the device.

    Args:
        state: Changed in place.
        batch: The transitions.
        noise: (B, A) standard normal, for the target policy smoothing.
        config: Settings.
        autocast: Type of the matrix products, float32 if None.
    """
    reward = scale_reward(batch.reward, config)
    device = batch.reward.device.type
    state.updates += 1
    with torch.autocast(device, autocast, enabled=autocast is not None):
        critic = critic_loss(state, batch, reward, noise, config)
    if state.value_range is not None:
        _note_targets(state.value_range, critic.target, state.updates, config)
    norms = _descend(state.critic, state.critic_optimizer, critic.loss, "critic", config)
    bad = (~norms.finite).float()
    state.skipped += bad
    state.skipped_in_a_row.add_(bad).mul_(bad)
    actor, actor_norms = None, None
    if state.updates % config.policy_delay == 0:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            actor = actor_loss(state, batch, config)
        actor_norms = _descend(state.actor, state.actor_optimizer, actor.loss, "actor", config)
        pairs = ((state.critic_target, state.critic), (state.actor_target, state.actor))
        move_targets(pairs, config.tau)
    return Update(
        critic=_detach(critic),
        critic_norms=norms,
        reward=reward,
        actor=None if actor is None else _detach(actor),
        actor_norms=actor_norms,
    )


def scale_reward(reward: Tensor, config: TD3Config) -> Tensor:
    """Rewards as the critic sees them (deviation 6)."""
    reward = reward * config.reward_scale
    if config.reward_clip:
        reward = reward.clamp(-config.reward_clip, config.reward_clip)
    return reward


def _descend(
    network: Actor | TwinCritic,
    optimizer: torch.optim.Adam,
    loss: Tensor,
    limit: str,
    config: TD3Config,
) -> GradientNorms:
    """One step of the optimiser, unless something is not finite (deviation 9)."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    clip = config.clip
    max_norm = clip.actor_max_norm if limit == "actor" else clip.critic_max_norm
    norms = clip_gradients(network.encoder_parameters(), network.mlp_parameters(), max_norm, clip)
    # the fused kernel leaves weights and moments alone where this is 1, with no wait for it
    optimizer.found_inf = (~norms.finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    return norms


_Terms = TypeVar("_Terms", CriticTerms, ActorTerms)


def _detach(terms: _Terms) -> _Terms:
    values = {f.name: getattr(terms, f.name).detach() for f in dataclasses.fields(terms)}
    return type(terms)(**values)


def target_value(
    state: TD3State, batch: Batch, reward: Tensor, noise: Tensor, config: TD3Config
) -> Tensor:
    """``r + discount * min(Q1', Q2')(s', clip(pi'(s') + clip(noise)))``, (B,) (2018, eq. 14).

    Args:
        state: The target networks.
        batch: The transitions.
        reward: (B,) rewards, scaled.
        noise: (B, A) standard normal.
        config: Size of the noise.
    """
    limit = config.target_noise_clip
    scale, centre = state.actor.action_scale, state.actor.action_centre
    smoothing = (noise * config.target_policy_noise).clamp(-limit, limit) * scale  # deviation 3
    action = state.actor_target(batch.next_observation) + smoothing
    action = torch.clamp(action, centre - scale, centre + scale)
    q1, q2 = state.critic_target.both(state.critic_target.encode(batch.next_observation), action)
    value = torch.minimum(q1, q2)
    if state.value_range is not None:  # deviation 12
        value = torch.clamp(value, state.value_range[2], state.value_range[3])
    return reward + batch.discount * value  # deviation 4


@torch.no_grad()
def _note_targets(seen: Tensor, target: Tensor, updates: int, config: TD3Config) -> None:
    """Widen the range of targets; let it count at each multiple of `target_clip_every`."""
    is_finite = torch.isfinite(target)
    low = torch.where(is_finite, target, torch.inf).min()
    high = torch.where(is_finite, target, -torch.inf).max()
    seen[0] = torch.minimum(seen[0], low)
    seen[1] = torch.maximum(seen[1], high)
    if updates % config.target_clip_every == 0:
        seen[2:] = torch.where(seen[0] <= seen[1], seen[:2], seen[2:])


def critic_loss(
    state: TD3State, batch: Batch, reward: Tensor, noise: Tensor, config: TD3Config
) -> CriticTerms:
    """``mean((Q1 - y)^2) + mean((Q2 - y)^2)`` (2018, algorithm 1).

    The squares of prioritised draws are weighed by importance (deviation 10).
    """
    with torch.no_grad():
        target = target_value(state, batch, reward, noise, config).to(batch.reward.dtype)
    encoded = state.critic.encode(batch.observation)
    q1, q2 = (q.to(target.dtype) for q in state.critic.both(encoded, batch.action))
    if batch.weight is None:
        loss = functional.mse_loss(q1, target) + functional.mse_loss(q2, target)
    else:  # deviation 10
        loss = (batch.weight * ((q1 - target).square() + (q2 - target).square())).mean()
    return CriticTerms(loss=loss, q1=q1, q2=q2, target=target, state=encoded)


def actor_loss(state: TD3State, batch: Batch, config: TD3Config) -> ActorTerms:
    """``-mean(Q1(s, pi(s)))``, or with `bc_alpha` the loss of TD3+BC; none of it moves the critic.

    TD3+BC (2021, eq. 3 to 5): ``-lambda * mean(Q1(s, pi(s))) + mean((pi(s) - a)^2)``, with
    ``lambda = alpha / mean(|Q1|)``.
    """
    encoded = state.actor.encode(batch.observation)
    pre_tanh = state.actor.head(encoded).to(batch.reward.dtype)
    action = state.actor.squash(pre_tanh)
    with _frozen(state.critic):
        q = state.critic.first(_judged_state(state, batch.observation, encoded, config), action)
    q = q.to(batch.reward.dtype)
    imitation = _imitation(action, batch)
    if config.bc_alpha:  # deviation 7
        weight = config.bc_alpha / q.abs().mean().detach()
        loss = -weight * q.mean() + config.bc_weight_at(state.updates) * imitation
    else:
        loss = -q.mean()
    if config.pre_tanh_weight:  # deviation 8
        loss = loss + config.pre_tanh_weight * pre_tanh.square().mean()
    return ActorTerms(
        loss=loss, q=q, action=action, pre_tanh=pre_tanh, imitation=imitation, state=encoded
    )


def _imitation(action: Tensor, batch: Batch) -> Tensor:
    if batch.imitated is None:
        return functional.mse_loss(action, batch.action)
    distance = (action - batch.action).square().mean(dim=-1)  # deviation 13
    return (batch.imitated * distance).sum() / batch.imitated.sum().clamp(min=1.0)


def _judged_state(
    state: TD3State, observation: Observation, encoded: Tensor, config: TD3Config
) -> Tensor:
    """The features on which the critic judges the actor's action: its own (deviation 2)."""
    if config.wiring == "coupled":
        return encoded
    with torch.no_grad():
        return state.critic.encode(observation)


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    network.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        network.requires_grad_(requires_grad=True)
