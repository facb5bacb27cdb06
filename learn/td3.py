"""TD3 (Fujimoto, van Hoof & Meger 2018), with TD3+BC (Fujimoto & Gu 2021) for fixed data.

The twin critics with their minimum as target, target policy smoothing, delayed policy updates and
Polyak averaging are as published. The code marks each deviation from the papers by its number:

1. Both critics share one CNN, and the actor has its own; all have target copies.
2. The actor's loss is ``-Q1(critic_cnn(obs), actor(actor_cnn(obs)))``, without a gradient through
   the critic's features. ``critic_features="actor"`` is an ablation: it gives the critic the
   features of the actor's CNN, on which the critic was never trained, so the actor's CNN increases
   Q without bound.
3. Target noise scales with half the range of each action, as in the authors' code.
4. The discount is per sample: n-step returns, and only ``terminated`` stops bootstrapping.
5. Gradients are clipped. CNNs have weight decay (optionally that of AdamW, Loshchilov & Hutter
   2019) and lower learning rates. LayerNorm normalises the features.
6. Rewards may be scaled and clipped.
7. TD3+BC: the scales of the spec normalise the vector, and statistics of the data only with
   `NetworkConfig.vector_statistics`, with a larger offset. `bc_weight` scales the imitation term,
   and may change linearly (similar to Beeson & Montana 2022).
8. The actor's outputs before tanh may be penalised.
9. An update whose loss or gradient is not finite is skipped and counted.
10. Samples may be prioritised by the larger TD error of the two critics (Fujimoto et al. 2020);
    the critics' loss then has importance weights (Schaul et al. 2016).
11. Images may be shifted at random, see `avtd3.learn.batch` (Yarats et al. 2021).
12. The next value may be limited to the range of previous targets (TD7, Fujimoto et al. 2023).
13. Imitation may be restricted to part of the data, like the demonstrations of Nair et al. 2018;
    the critics learn from all data.
14. The actor may read the features of the critics' CNN, without a gradient through them, and the
    features that the critics' loss has computed are used again (DrQ-v2, Yarats et al. 2021).
15. The critics may see numbers of the vector that the actor does not (Pinto et al. 2018).
16. The actor may imitate what the expert would have done in place of the action that was taken
    (DAgger, Ross et al. 2011), see `ReplayConfig.imitate_expert`.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from avtd3.learn.batch import Batch
from avtd3.learn.networks import Actor, NetworkConfig, ObservationBatch, TwinCritic, move_targets
from avtd3.learn.ranks import ALONE, Ranks
from avtd3.store.errors import check_settings
from avtd3.store.spec import EpisodeSpec

ALGORITHMS = ("td3", "bc")
CRITIC_FEATURES = ("own", "actor")
DECAYS = ("l2", "decoupled")
CLIP_SCOPES = ("joint", "per_module")
_STD_OFFSET = 0.05
"""Added to each standard deviation of the vector, in units of the spec's scales. It is 1e-3 in the
code of TD3+BC; entries that hardly vary, like the distance of the next waypoint ahead (0.006), then
grow so large off the road that the critics diverge."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Limits on the norms of the gradients.

    Example:
        >>> ClipConfig(scope="per_module").actor_max_norm
        1.0
    """

    enabled: bool = True
    """Whether to clip gradients. Their norms are measured in any case."""
    actor_max_norm: float = 1.0
    """Largest norm of the actor's gradients."""
    critic_max_norm: float = 10.0
    """Largest norm of the critic's gradients."""
    norm_type: float = 2.0
    """Order of the norm."""
    scope: str = "joint"
    """``joint`` limits the norm of CNN and MLPs together, ``per_module`` limits each of them."""

    def __post_init__(self) -> None:
        scope = ("scope", self.scope in CLIP_SCOPES, f"one of {CLIP_SCOPES}")
        above_zero = ("actor_max_norm", "critic_max_norm", "norm_type")
        check_settings(self, "clip.", scope, above_zero=above_zero)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TD3Config:
    """Settings of the updates, with the names and defaults of Fujimoto et al. 2018.

    Example:
        >>> TD3Config(bc_alpha=2.5).policy_delay
        2
    """

    tau: float = 0.005
    """Weight of the online networks when the target networks move towards them, in (0, 1]."""
    policy_delay: int = 2
    """Critic updates per actor update."""
    target_policy_noise: float = 0.2
    """Standard deviation of the noise on the target's actions, in half ranges of the action."""
    target_noise_clip: float = 0.5
    """Limit on the absolute value of that noise, in half ranges of the action."""
    actor_lr: float = 3e-4
    """Learning rate of the actor's MLP."""
    critic_lr: float = 3e-4
    """Learning rate of the critics' MLPs."""
    actor_cnn_lr: float = 1e-4
    """Learning rate of the actor's CNN."""
    critic_cnn_lr: float = 1e-4
    """Learning rate of the critics' CNN."""
    mlp_weight_decay: float = 0.0
    """Weight decay of the MLPs."""
    cnn_weight_decay: float = 1e-4
    """Weight decay of the CNNs."""
    weight_decay_kind: str = "l2"
    """``l2`` adds decay times weight to the gradient of all parameters (Adam, Kingma & Ba 2015).
    ``decoupled`` subtracts learning rate times decay times weight, except for norms and biases
    (AdamW, Loshchilov & Hutter 2019); it needs decays about 100 times larger."""
    critic_features: str = "own"
    """Features on which the critic rates the actor's actions: ``own``, those of the critic's CNN,
    or ``actor``, an ablation that shows how the actor's CNN diverges (deviation 2)."""
    bc_alpha: float = 0.0
    """Weight of Q relative to imitation in TD3+BC (2.5 in the paper); 0 is TD3 without
    imitation."""
    bc_weight: float = 1.0
    """Factor on the imitation term (1 in the paper)."""
    bc_fade_from: int = 0
    """Update at which that factor starts to change linearly, to reach `bc_final_weight` at
    `bc_fade_until`: first imitate the data, then improve on them."""
    bc_fade_until: int = 0
    """Update at which the factor reaches `bc_final_weight`; 0 keeps `bc_weight` throughout."""
    bc_final_weight: float = 0.0
    """Factor on the imitation term from then on (0.2 of the first one in Beeson & Montana 2022)."""
    target_clip_every: int = 0
    """Limit the next value in the target to the range of all previous targets. The limits change
    only at multiples of this number of updates (250 in TD7, Fujimoto et al. 2023); 0 is no
    limit."""
    pre_tanh_weight: float = 0.0
    """Penalty on the mean square of the actor's outputs before tanh; 0 is none."""
    reward_scale: float = 1.0
    """Factor on every reward."""
    reward_clip: float = 0.0
    """Limit on the absolute value of a scaled (n-step) reward; 0 is no limit."""
    clip: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    """Limits on the norms of the gradients."""

    def __post_init__(self) -> None:
        features, fades = self.critic_features, 0 < self.bc_fade_until <= self.bc_fade_from
        above = f"above bc_fade_from, {self.bc_fade_from}, or 0 for no fading"
        check_settings(
            self,
            "td3.",
            ("tau", self.tau <= 1.0, "at most 1"),
            ("critic_features", features in CRITIC_FEATURES, f"one of {CRITIC_FEATURES}"),
            ("weight_decay_kind", self.weight_decay_kind in DECAYS, f"one of {DECAYS}"),
            ("bc_fade_until", not fades, above),
            above_zero=(
                *("tau", "policy_delay", "actor_lr", "critic_lr", "reward_scale"),
                *("actor_cnn_lr", "critic_cnn_lr"),
            ),
            zero_or_above=(
                *("target_policy_noise", "target_noise_clip", "mlp_weight_decay"),
                *("cnn_weight_decay", "bc_alpha", "bc_weight", "pre_tanh_weight", "reward_clip"),
                *("bc_final_weight", "bc_fade_from", "bc_fade_until", "target_clip_every"),
            ),
        )

    def bc_weight_at(self, updates: int) -> float:
        """Return the factor on the imitation term in update number `updates`, counted from 1."""
        if not self.bc_fade_until:
            return self.bc_weight
        share = (updates - self.bc_fade_from) / (self.bc_fade_until - self.bc_fade_from)
        share = min(max(share, 0.0), 1.0)
        return self.bc_weight + share * (self.bc_final_weight - self.bc_weight)


@dataclasses.dataclass(slots=True, kw_only=True)
class TD3State:
    """Everything that an update changes: networks, optimisers and counters."""

    actor: Actor
    critic: TwinCritic
    actor_target: Actor
    critic_target: TwinCritic
    actor_optimizer: torch.optim.Adam
    critic_optimizer: torch.optim.Adam
    updates: int = 0
    """Critic updates so far, including skipped ones."""
    skipped: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(()))
    """Number of skipped critic updates, because a loss or gradient was not finite."""
    skipped_in_a_row: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(()))
    """Number of skipped critic updates since the last one that was not."""
    value_range: Tensor | None = None
    """(4,): smallest and largest target so far, then the lower and upper limit on the next value;
    None unless `TD3Config.target_clip_every` is set."""

    def networks(self) -> dict[str, tuple[Actor | TwinCritic, torch.optim.Adam]]:
        """Return the trained networks and their optimisers, by name."""
        return {
            "actor": (self.actor, self.actor_optimizer),
            "critic": (self.critic, self.critic_optimizer),
        }

    @property
    def shares_encoder(self) -> bool:
        """Whether the actor reads the features of the critics' CNN (deviation 14)."""
        return self.actor.encoder is not None and self.actor.encoder is self.critic.encoder

    @torch.no_grad()
    def set_vector_statistics(self, vectors: Tensor) -> None:
        """Set the statistics of all networks from vectors (N, V)."""
        for network in (self.actor, self.critic, self.actor_target, self.critic_target):
            if network.vector_mean is None or network.vector_std is None:
                continue  # it sees no number of the vector
            seen = network.seen(vectors)
            network.vector_mean.copy_(seen.mean(dim=0))
            network.vector_std.copy_(seen.std(dim=0, correction=0) + _STD_OFFSET)

    def rates(self) -> dict[str, float]:
        """Return the learning rates, by metric."""
        return {
            f"rate/{name}_{group['part']}": group["lr"]
            for name, (_, optimizer) in self.networks().items()
            for group in optimizer.param_groups
        }

    def scale_rates(self, share: float) -> None:
        """Set every learning rate to a share of its configured value."""
        for optimizer in (self.actor_optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = share * group["base_lr"]


def create_state(
    spec: EpisodeSpec, network: NetworkConfig, config: TD3Config, device: torch.device, seed: int
) -> TD3State:
    """Create networks and optimisers; the weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        actor, critic = Actor(spec, network), TwinCritic(spec, network)
    if network.shared_encoder:  # deviation 14
        actor.encoder = critic.encoder
    return state_of(actor.to(device), critic.to(device), config)


def state_of(actor: Actor, critic: TwinCritic, config: TD3Config) -> TD3State:
    """Create a state from existing networks, with target networks equal to them."""
    device = actor.action_scale.device
    actor_target, critic_target = actor.target_copy(), critic.target_copy()
    if actor.encoder is critic.encoder:
        actor_target.encoder = critic_target.encoder
    return TD3State(
        actor=actor,
        critic=critic,
        actor_target=actor_target,
        critic_target=critic_target,
        actor_optimizer=_adam(actor, config.actor_cnn_lr, config.actor_lr, config),
        critic_optimizer=_adam(critic, config.critic_cnn_lr, config.critic_lr, config),
        skipped=torch.zeros((), device=device),
        skipped_in_a_row=torch.zeros((), device=device),
        value_range=_no_range(actor.action_scale) if config.target_clip_every else None,
    )


def _no_range(like: Tensor) -> Tensor:
    """Return the range before the first target: none, and 0 as the only next value, as in TD7."""
    return torch.tensor([math.inf, -math.inf, 0.0, 0.0], dtype=like.dtype, device=like.device)


def _adam(
    network: Actor | TwinCritic, cnn_lr: float, mlp_lr: float, config: TD3Config
) -> torch.optim.Adam:
    is_decoupled = config.weight_decay_kind == "decoupled"
    groups = []
    for part, parameters, lr, decay in (
        ("mlp", network.mlp_parameters(), mlp_lr, config.mlp_weight_decay),
        ("cnn", network.encoder_parameters(), cnn_lr, config.cnn_weight_decay),  # deviation 5
    ):
        decayed = [p for p in parameters if not is_decoupled or p.ndim > 1]
        others = [p for p in parameters if is_decoupled and p.ndim == 1]  # norms and biases
        for members, weight_decay in ((decayed, decay), (others, 0.0)):
            if members:
                group = {"params": members, "part": part, "lr": lr, "base_lr": lr}
                groups.append(group | {"weight_decay": weight_decay})
    kind = torch.optim.AdamW if is_decoupled else torch.optim.Adam
    on_gpu = network.mlp_parameters()[0].is_cuda
    return kind(groups, fused=True, capturable=on_gpu)  # for recorded updates


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CriticTerms:
    """The critics' loss and its terms."""

    loss: Tensor
    """Scalar, sum of the two mean squared errors."""
    q1: Tensor
    """(B,) values of the first critic."""
    q2: Tensor
    """(B,) values of the second critic."""
    target: Tensor
    """(B,) targets of both."""
    state: Tensor
    """(B, F + V) the critic's features and the vector."""

    def td_error(self) -> Tensor:
        """Return the larger absolute TD error of the two critics, (B,)."""
        return torch.maximum((self.q1 - self.target).abs(), (self.q2 - self.target).abs())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActorTerms:
    """The actor's loss and its terms."""

    loss: Tensor
    """Scalar."""
    q: Tensor
    """(B,) value of the actor's actions."""
    action: Tensor
    """(B, A) the actor's actions."""
    pre_tanh: Tensor
    """(B, A) the actor's outputs before tanh."""
    imitation: Tensor
    """Scalar, mean squared difference from the data's actions that are imitated."""
    state: Tensor
    """(B, F + V) the actor's features and the vector."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GradientNorms:
    """Norms of the gradients of one network, scalars."""

    before: dict[str, Tensor]
    """Norms of ``cnn`` and ``mlp``, those that the network has, before clipping."""
    after: dict[str, Tensor]
    """The same after clipping."""
    clipped: Tensor
    """1 if anything was clipped, else 0."""
    finite: Tensor
    """bool, whether all gradients are finite."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The terms and gradient norms of one update, as detached tensors on the device."""

    critic: CriticTerms
    critic_norms: GradientNorms
    reward: Tensor
    """(B,) rewards, scaled and clipped."""
    actor: ActorTerms | None
    """None if the actor was not updated."""
    actor_norms: GradientNorms | None


def update(
    state: TD3State,
    batch: Batch,
    noise: Tensor,
    config: TD3Config,
    autocast: torch.dtype | None = None,
    algorithm: str = "td3",
    ranks: Ranks = ALONE,
) -> Update:
    """Update the critics and, every `policy_delay` updates, the actor and the target networks.

    This function does not read files or clocks, and does not wait for the device. The noise is
    (B, A) and standard normal; matrix products are of type `autocast`, float32 if None.
    The actor's loss is that of `algorithm`, one of `ALGORITHMS`. The batch is the part of this
    rank; gradients are means over all `ranks`, and the losses in the result are those of this part.
    """
    reward = scale_reward(batch.reward, config)
    device = batch.reward.device.type
    state.updates += 1
    with torch.autocast(device, autocast, enabled=autocast is not None):
        critic = critic_loss(state, batch, reward, noise, config)
    if state.value_range is not None:
        _note_targets(state.value_range, critic.target, state.updates, config, ranks)
    norms = _descend(state.critic, state.critic_optimizer, critic.loss, "critic", config, ranks)
    bad = (~norms.finite).float()
    state.skipped += bad
    state.skipped_in_a_row.add_(bad).mul_(bad)
    actor, actor_norms = None, None
    if state.updates % config.policy_delay == 0:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            seen = critic.state.detach()
            actor = actor_loss(state, batch, config, seen, ranks, algorithm)
        actor_norms = _descend(
            state.actor, state.actor_optimizer, actor.loss, "actor", config, ranks
        )
        parts = (state.actor_target.head, state.actor.head)
        actors = parts if state.shares_encoder else (state.actor_target, state.actor)
        move_targets(((state.critic_target, state.critic), actors), config.tau)
    return Update(
        critic=_detach(critic),
        critic_norms=norms,
        reward=reward,
        actor=None if actor is None else _detach(actor),
        actor_norms=actor_norms,
    )


def scale_reward(reward: Tensor, config: TD3Config) -> Tensor:
    """Scale and clip rewards (deviation 6)."""
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
    ranks: Ranks,
) -> GradientNorms:
    """Make one step of the optimiser, unless a gradient is not finite (deviation 9)."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    ranks.average_gradients((*network.mlp_parameters(), *network.encoder_parameters()))
    clip = config.clip
    max_norm = clip.actor_max_norm if limit == "actor" else clip.critic_max_norm
    norms = clip_gradients(network.encoder_parameters(), network.mlp_parameters(), max_norm, clip)
    # if this is 1, the fused kernel keeps weights and moments as they are, without a wait
    optimizer.found_inf = (~norms.finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    return norms


def clip_gradients(
    cnn: Sequence[nn.Parameter], mlp: Sequence[nn.Parameter], max_norm: float, config: ClipConfig
) -> GradientNorms:
    """Scale the gradients of one network down to a maximum norm, in place.

    This limits the input of the optimiser, not its step: Adam divides the scale out again. It helps
    against single extreme batches, but not against a loss without a bound.
    """
    parts = {"cnn": [p.grad for p in cnn], "mlp": [p.grad for p in mlp]}
    known = {name: [g for g in part if g is not None] for name, part in parts.items()}
    known = {name: gradients for name, gradients in known.items() if gradients}
    before = {name: _norm(gradients, config) for name, gradients in known.items()}
    total = torch.linalg.vector_norm(torch.stack(list(before.values())), config.norm_type)
    after, clipped = before, torch.zeros_like(total)
    if config.enabled:
        limited = dict.fromkeys(before, total) if config.scope == "joint" else before
        for name, gradients in known.items():
            torch._foreach_mul_(gradients, (max_norm / (limited[name] + 1e-6)).clamp(max=1.0))
        after = {name: _norm(gradients, config) for name, gradients in known.items()}
        over = torch.stack([norm > max_norm for norm in limited.values()])
        clipped = over.any().to(total.dtype)
    return GradientNorms(before=before, after=after, clipped=clipped, finite=torch.isfinite(total))


def _norm(gradients: list[Tensor], config: ClipConfig) -> Tensor:
    norms = torch._foreach_norm(gradients, config.norm_type)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), config.norm_type)
    return total


_Terms = TypeVar("_Terms", CriticTerms, ActorTerms)


def _detach(terms: _Terms) -> _Terms:
    values = {f.name: getattr(terms, f.name).detach() for f in dataclasses.fields(terms)}
    return type(terms)(**values)


def target_value(
    state: TD3State, batch: Batch, reward: Tensor, noise: Tensor, config: TD3Config
) -> Tensor:
    """Return ``r + discount * min(Q1', Q2')(s', clip(pi'(s') + clip(noise)))`` (2018, eq. 14).

    Targets are (B,). The noise is (B, A) and standard normal; the rewards are scaled.
    """
    limit = config.target_noise_clip
    scale, centre = state.actor.action_scale, state.actor.action_centre
    smoothing = (noise * config.target_policy_noise).clamp(-limit, limit) * scale  # deviation 3
    encoded = state.critic_target.encode(batch.next_observation)
    target = state.actor_target
    is_shared = state.shares_encoder
    own = target.own_state(encoded) if is_shared else target.encode(batch.next_observation)
    action = state.actor_target.squash(state.actor_target.head(own)) + smoothing
    action = torch.clamp(action, centre - scale, centre + scale)
    q1, q2 = state.critic_target.both(encoded, action)
    value = torch.minimum(q1, q2)
    if state.value_range is not None:  # deviation 12
        value = torch.clamp(value, state.value_range[2], state.value_range[3])
    return reward + batch.discount * value  # deviation 4


@torch.no_grad()
def _note_targets(
    seen: Tensor, target: Tensor, updates: int, config: TD3Config, ranks: Ranks
) -> None:
    """Extend the range of targets; apply it at each multiple of `target_clip_every`."""
    is_finite = torch.isfinite(target)
    low = torch.where(is_finite, target, torch.inf).min()
    high = torch.where(is_finite, target, -torch.inf).max()
    low, negative_high = ranks.smallest(torch.stack([low, -high]))
    seen[0] = torch.minimum(seen[0], low)
    seen[1] = torch.maximum(seen[1], -negative_high)
    if updates % config.target_clip_every == 0:
        seen[2:] = torch.where(seen[0] <= seen[1], seen[:2], seen[2:])


def critic_loss(
    state: TD3State, batch: Batch, reward: Tensor, noise: Tensor, config: TD3Config
) -> CriticTerms:
    """Compute ``mean((Q1 - y)^2) + mean((Q2 - y)^2)`` (2018, algorithm 1).

    Prioritised samples have importance weights (deviation 10).
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


def actor_loss(
    state: TD3State,
    batch: Batch,
    config: TD3Config,
    critic_state: Tensor | None = None,
    ranks: Ranks = ALONE,
    algorithm: str = "td3",
) -> ActorTerms:
    """Compute the actor's loss, whose mean over the ranks is that of the whole batch.

    The critic gets no gradient. `critic_state` is the critics' state (B, F + V) from their loss.

    ``td3`` is ``-mean(Q1(s, pi(s)))``, or with `bc_alpha` the loss of TD3+BC (2021, eq. 3 to 5):
    ``-lambda * mean(Q1(s, pi(s))) + mean((pi(s) - a)^2)``, with ``lambda = alpha / mean(|Q1|)``.
    ``bc`` is ``mean((pi(s) - a)^2)``: behaviour cloning, a baseline that ignores the critics.
    """
    encoded, rated = _actor_states(state, batch.observation, config, critic_state)
    pre_tanh = state.actor.head(encoded).to(batch.reward.dtype)
    action = state.actor.squash(pre_tanh)
    with _frozen(state.critic):
        q = state.critic.first(rated, action).to(batch.reward.dtype)
    imitation = _imitation(action, batch, ranks)
    if algorithm == "bc":
        loss = imitation
    elif config.bc_alpha:  # deviation 7
        weight = config.bc_alpha / ranks.mean(q.abs().mean().detach())
        loss = -weight * q.mean() + config.bc_weight_at(state.updates) * imitation
    else:
        loss = -q.mean()
    if config.pre_tanh_weight and algorithm != "bc":  # deviation 8
        loss = loss + config.pre_tanh_weight * pre_tanh.square().mean()
    return ActorTerms(
        loss=loss, q=q, action=action, pre_tanh=pre_tanh, imitation=imitation, state=encoded
    )


def _actor_states(
    state: TD3State,
    observation: ObservationBatch,
    config: TD3Config,
    critic_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the actor's state, and the state on which the critic rates its actions."""
    if state.shares_encoder:  # deviation 14
        if critic_state is None:
            critic_state = state.critic.encode(observation).detach()
        return state.actor.own_state(critic_state), critic_state
    encoded = state.actor.encode(observation)
    if config.critic_features == "actor":  # deviation 2
        return encoded, encoded
    with torch.no_grad():
        return encoded, state.critic.encode(observation)


def _imitation(action: Tensor, batch: Batch, ranks: Ranks) -> Tensor:
    wanted = batch.action if batch.bc_action is None else batch.bc_action  # deviation 16
    if batch.bc_mask is None:
        return functional.mse_loss(action, wanted)
    distance = (action - wanted).square().mean(dim=-1)  # deviation 13
    count = ranks.mean(batch.bc_mask.sum())  # of the whole batch, for each rank
    return (batch.bc_mask * distance).sum() / count.clamp(min=1.0 / ranks.size)


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    network.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        network.requires_grad_(requires_grad=True)
