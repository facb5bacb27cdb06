"""TD3 and TD3+BC as published, in numpy and float64, without autograd.

Fujimoto, van Hoof & Meger 2018 (algorithm 1, equation 14), Fujimoto & Gu 2021 (equations 3 to 5),
Adam (Kingma & Ba 2015, algorithm 1), its decoupled decay (Loshchilov & Hutter 2019, algorithm 2),
clipping by the global norm (Pascanu et al. 2013), importance weights (Schaul et al. 2016, section
3.4), the range of the targets (TD7, Fujimoto et al. 2023), imitation of demonstrations alone (Nair
et al. 2018, section IV B), and the Nature CNN (Mnih et al. 2015).
It shares no code with `learn`: only the settings, and the names of the parameters.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from avtd3.learn.networks import NetworkConfig
from avtd3.learn.td3 import TD3Config
from avtd3.tests.learn.plain_layers import (
    Array,
    Back,
    Layer,
    Tensors,
    batch_norm,
    chain,
    clamp,
    convolution,
    flatten_rows_first,
    layer_norm,
    linear,
    relu,
    tanh,
)

if TYPE_CHECKING:
    from avtd3.store.spec import EpisodeSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Observations."""

    pixels: Array | None
    """(B, C, H, W) in 0..255."""
    vector: Array | None
    """(B, V)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A batch."""

    seen: Seen
    action: Array
    reward: Array
    discount: Array
    then: Seen
    weight: Array | None
    bc_mask: Array | None


class Network:
    """Parameters by name, with Adam."""

    def __init__(self, tensors: Tensors, shape: NetworkConfig, *, training: bool = True) -> None:
        self.p = {name: value.copy() for name, value in tensors.items()}
        self.shape, self.training = shape, training
        self.gradients: Tensors = {}
        self._moments: dict[str, tuple[Array, Array]] = {}
        self._steps = 0

    def encode(self, seen: Seen) -> tuple[Array, Back]:
        """Return the CNN's features, then the vector."""
        if seen.pixels is None:
            assert seen.vector is not None
            return seen.vector, lambda _: (np.zeros(0), {})
        features, back = chain(self._cnn(), seen.pixels / 127.5 - 1.0)
        count = features.shape[1]
        parts = [features] if seen.vector is None else [features, seen.vector]
        return np.concatenate(parts, 1), lambda g: back(g[:, :count])

    def _cnn(self) -> list[Layer]:
        slope = 0.01 if self.shape.activation == "leaky_relu" else 0.0
        layers: list[Layer] = []
        for number, stride in enumerate((4, 2, 1)):
            layers.append(convolution(self.p, f"encoder.convolutions.{number}", stride))
            norm = f"encoder.norms.{number}"
            if self.shape.conv_norm == "layer":
                layers.append(layer_norm(self.p, norm))
            elif self.shape.conv_norm == "batch":
                layers.append(batch_norm(self.p, norm, training=self.training))
            layers.append(relu(slope))
        layers += [flatten_rows_first, linear(self.p, "encoder.linear")]
        if self.shape.feature_norm:
            layers.append(layer_norm(self.p, "encoder.feature_norm"))
        layers.append(tanh if self.shape.feature_activation == "tanh" else relu(slope))
        return [*layers, clamp(self.shape.feature_clamp)] if self.shape.feature_clamp else layers

    def mlp(self, name: str, x: Array) -> tuple[Array, Back]:
        slope = 0.01 if self.shape.activation == "leaky_relu" else 0.0
        count = len(self.shape.hidden) + 1
        layers = [relu(slope)] * (2 * count - 1)
        layers[::2] = [linear(self.p, f"{name}.layers.{number}") for number in range(count)]
        return chain(layers, x)

    def descend(self, config: TD3Config, rates: tuple[float, float], limit: float) -> None:
        """Clip the gradients and make one step of Adam, with rates for the CNN and the MLPs."""
        self._clip(config, limit)
        self._steps += 1
        for name, gradient in self.gradients.items():
            in_cnn = name.startswith("encoder.")
            rate = rates[0] if in_cnn else rates[1]
            decay = config.cnn_weight_decay if in_cnn else config.mlp_weight_decay
            self.p[name] = self._adam(name, gradient, rate, decay, config)

    def _adam(
        self, name: str, gradient: Array, rate: float, decay: float, config: TD3Config
    ) -> Array:
        value = self.p[name]
        if config.weight_decay_kind == "l2":
            gradient = gradient + decay * value
        elif value.ndim > 1:
            value = value - rate * decay * value
        m, v = self._moments.get(name, (np.zeros_like(value), np.zeros_like(value)))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        self._moments[name] = m, v
        m_hat, v_hat = m / (1 - 0.9**self._steps), v / (1 - 0.999**self._steps)
        return value - rate * m_hat / (np.sqrt(v_hat) + 1e-8)

    def _clip(self, config: TD3Config, limit: float) -> None:
        if not config.clip.enabled:
            return
        cnn = {name for name in self.gradients if name.startswith("encoder.")}
        everything = set(self.gradients)
        parts = [everything] if config.clip.scope == "joint" else [cnn, everything - cnn]
        clipped = dict(self.gradients)
        for names in parts:
            order = config.clip.norm_type
            total = sum(float((np.abs(self.gradients[n]) ** order).sum()) for n in names)
            scale = min(1.0, limit / (total ** (1 / order) + 1e-6))
            clipped |= {name: self.gradients[name] * scale for name in names}
        self.gradients = clipped

    def follow(self, online: "Network", tau: float) -> None:
        for name, value in online.p.items():
            whole = name.endswith("num_batches_tracked")
            self.p[name] = value if whole else tau * value + (1 - tau) * self.p[name]


class PlainTD3:
    """Algorithm 1 of the paper, from given weights."""

    def __init__(
        self,
        spec: "EpisodeSpec",
        actor: Tensors,
        critic: Tensors,
        shape: NetworkConfig,
        config: TD3Config,
    ) -> None:
        self.config = config
        self.actor, self.critic = Network(actor, shape), Network(critic, shape)
        self.actor_target = Network(actor, shape, training=False)
        self.critic_target = Network(critic, shape, training=False)
        low, high = np.array(spec.action_low), np.array(spec.action_high)
        self.centre, self.half = (high + low) / 2, (high - low) / 2
        self.updates = 0
        self.share = 1.0  # of the learning rates
        self.seen, self.limits = (np.inf, -np.inf), (0.0, 0.0)

    def update(self, drawn: Drawn, noise: Array) -> tuple[float, float | None]:
        """Do one update; return the losses of the critics and, if it is due, of the actor."""
        config = self.config
        self.updates += 1
        target = self.target(drawn, noise)
        self.seen = (min(self.seen[0], target.min()), max(self.seen[1], target.max()))
        if config.target_clip_every and self.updates % config.target_clip_every == 0:
            self.limits = self.seen
        loss = self._improve_critic(drawn, target)
        rates = (self.share * config.critic_cnn_lr, self.share * config.critic_lr)
        self.critic.descend(config, rates, config.clip.critic_max_norm)
        if self.updates % config.policy_delay:
            return loss, None
        actor_loss = self._improve_actor(drawn)
        rates = (self.share * config.actor_cnn_lr, self.share * config.actor_lr)
        self.actor.descend(config, rates, config.clip.actor_max_norm)
        self.actor_target.follow(self.actor, config.tau)
        self.critic_target.follow(self.critic, config.tau)
        return loss, actor_loss

    def target(self, drawn: Drawn, noise: Array) -> Array:
        config = self.config
        state, _ = self.actor_target.encode(drawn.then)
        action = self.centre + self.half * np.tanh(self.actor_target.mlp("head", state)[0])
        limit = config.target_noise_clip
        action = action + self.half * np.clip(config.target_policy_noise * noise, -limit, limit)
        action = np.clip(action, self.centre - self.half, self.centre + self.half)
        state, _ = self.critic_target.encode(drawn.then)
        both = np.concatenate([state, action], 1)
        values = [self.critic_target.mlp(name, both)[0][:, 0] for name in ("head1", "head2")]
        reward = drawn.reward * config.reward_scale
        if config.reward_clip:
            reward = np.clip(reward, -config.reward_clip, config.reward_clip)
        value = np.minimum(*values)
        if config.target_clip_every:
            value = np.clip(value, *self.limits)
        return np.asarray(reward + drawn.discount * value)

    def _improve_critic(self, drawn: Drawn, target: Array) -> float:
        state, into_cnn = self.critic.encode(drawn.seen)
        both = np.concatenate([state, drawn.action], 1)
        weight = np.ones(len(target)) if drawn.weight is None else drawn.weight
        gradients: Tensors = {}
        loss, at_state = 0.0, np.zeros_like(state)
        for name in ("head1", "head2"):
            value, back = self.critic.mlp(name, both)
            error = value[:, 0] - target
            loss += float(np.mean(weight * error**2))
            at_both, mine = back((2 * weight * error / len(target))[:, None])
            at_state += at_both[:, : state.shape[1]]
            gradients |= mine
        self.critic.gradients = gradients | into_cnn(at_state)[1]
        return loss

    def _imitation(self) -> float:
        config = self.config
        span = (config.bc_fade_from, config.bc_fade_until)
        if not config.bc_fade_until:
            return config.bc_weight
        return float(np.interp(self.updates, span, (config.bc_weight, config.bc_final_weight)))

    def _improve_actor(self, drawn: Drawn) -> float:
        config = self.config
        state, into_cnn = self.actor.encode(drawn.seen)
        raw, into_head = self.actor.mlp("head", state)
        squashed, into_raw = tanh(raw)
        action = self.centre + self.half * squashed
        judged, _ = self.critic.encode(drawn.seen)
        value, into_action = self.critic.mlp("head1", np.concatenate([judged, action], 1))
        weight = config.bc_alpha / float(np.mean(np.abs(value))) if config.bc_alpha else 1.0
        loss = -weight * float(np.mean(value))
        at_action = into_action(np.full_like(value, -weight / len(value)))[0][:, judged.shape[1] :]
        if config.bc_alpha:
            marks = np.ones(len(action)) if drawn.bc_mask is None else drawn.bc_mask
            factor, distance = self._imitation(), marks[:, None] * (action - drawn.action)
            count = max(marks.sum(), 1) * action.shape[1]
            loss += factor * float(np.sum(distance**2) / count)
            at_action = at_action + factor * 2 * distance / count
        at_raw = into_raw(at_action * self.half)[0]
        if config.pre_tanh_weight:
            loss += config.pre_tanh_weight * float(np.mean(raw**2))
            at_raw = at_raw + config.pre_tanh_weight * 2 * raw / raw.size
        at_state, gradients = into_head(at_raw)
        self.actor.gradients = gradients | into_cnn(at_state)[1]
        return loss
