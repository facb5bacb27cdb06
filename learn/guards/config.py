"""`GuardConfig`, and the names of guards, alert levels and guard metrics."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from avtd3.store.errors import check_settings

LEVELS = ("warn", "serious", "stop")
"""Levels of an alert, in rising order."""

GUARDS: Mapping[str, str] = MappingProxyType(
    {
        "actor_grad_norm": "lower the actor's learning rates; see the other alerts",
        "critic_grad_norm": "scale the rewards (td3.reward_scale), or lower critic_lr",
        "actor_loss": "check that td3.critic_features is own, lower actor_cnn_lr, or normalise the "
        "features",
        "critic_loss": "scale the rewards (td3.reward_scale), or lower critic_lr",
        "q_size": "scale the rewards (td3.reward_scale), or lower gamma",
        "q_bound": "lower the critics' learning rates or tau; check terminated in the data",
        "actor_q_bound": "check that td3.critic_features is own; add imitation (td3.bc_alpha)",
        "actor_feature_norm": "keep network.feature_norm on, or lower actor_cnn_lr",
        "critic_feature_norm": "keep network.feature_norm on, or lower critic_cnn_lr",
        "saturation": "penalise the actor's outputs before tanh (td3.pre_tanh_weight)",
        "actor_dead_units": "lower actor_cnn_lr, or use network.activation leaky_relu",
        "critic_dead_units": "lower critic_cnn_lr, or use network.activation leaky_relu",
        "constant_action": "lower actor_lr; check the data's actions with avtd3 replay-inspect",
        "actor_not_finite": "lower the actor's learning rates; see the other alerts",
        "critic_not_finite": "check the data with avtd3 replay-inspect, or lower critic_lr",
        "update_ratio": "lower the learning rate of that layer's network (td3.actor_lr, ...)",
        "weights": "roll back to an earlier checkpoint, and lower the learning rates",
    }
)
"""Name of each guard, and how to fix what it reports."""

WEIGHTS, UPDATE_RATIOS = "weights/", "update_ratio/"
"""Prefixes of the metrics of each layer; ``<network>.<layer>`` follows."""

ON_STOP = ("halt", "rollback", "continue")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CnnRateConfig:
    """Lower the learning rate of a CNN while its features are large.

    Example:
        >>> CnnRateConfig(halve_above=40.0).recover_below
        30.0
    """

    enabled: bool = True
    """Whether to adapt the learning rates of the CNNs."""
    halve_above: float = 50.0
    """Feature norm (per sample, mean over the batch) above which the rate is halved."""
    recover_below: float = 30.0
    """Feature norm below which the rate is doubled again, up to the configured rate."""
    cool_down: int = 1_000
    """Fewest updates between two halvings; halving at every update would soon stop learning."""
    recover_after: int = 5_000
    """Updates for which the norm must stay below `recover_below` before each doubling."""
    floor: float = 1.0 / 64.0
    """Smallest allowed share of the configured rate, in (0, 1]."""

    def __post_init__(self) -> None:
        most = f"at most guards.rate.halve_above ({self.halve_above})"
        check_settings(
            self,
            "guards.rate.",
            ("recover_below", self.recover_below <= self.halve_above, most),
            ("floor", 0.0 < self.floor <= 1.0, "above 0, at most 1"),
            above_zero=("halve_above", "recover_below", "cool_down", "recover_after"),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActionLimitConfig:
    """Limit the actions of published policies until training looks healthy.

    The limit is removed once three conditions hold.

    Example:
        >>> ActionLimitConfig(share=0.6).for_updates
        5000
    """

    share: float = 1.0
    """Share of each half range of the action that policies may use; 1 is no limit (0.6 in the
    reports)."""
    feature_norm_below: float = 30.0
    """First condition: the actor's feature norm has stayed below this value, for `for_updates`."""
    for_updates: int = 5_000
    """Updates for which the feature norm must stay below its limit."""
    action_std_above: float = 0.05
    """Second condition: the standard deviation of the actions over a batch is above this value."""
    episode_length_above: float = 100.0
    """Third condition: the mean length of the newest episodes, in steps, is above this value."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            "guards.action_limit.",
            ("share", 0.0 < self.share <= 1.0, "above 0, at most 1 (no limit)"),
            above_zero=("feature_norm_below", "for_updates"),
            zero_or_above=("action_std_above", "episode_length_above"),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """Limits of the guards, and how they react.

    ``docs/guards.md`` describes each guard. "reports" marks limits that come from reports of
    diverged runs.

    Example:
        >>> GuardConfig(on_stop="rollback", max_rollbacks=2).every
        100
    """

    enabled: bool = True
    """Whether the guards are on. Gradient clipping has its own switch (`td3.clip.enabled`)."""
    every: int = 100
    """Updates between two readings. Each reading covers all updates since the previous one."""
    repeat_every: int = 1_000
    """Updates for which a persisting alert is only counted, not repeated."""
    on_stop: str = "halt"
    """Reaction to a stop alert: ``halt`` ends the run, ``rollback`` returns to the last good
    checkpoint and continues, ``continue`` only reports the alert."""
    max_rollbacks: int = 3
    """Number of rollbacks after which a stop alert ends the run."""
    rollback_rate: float = 0.5
    """Factor on the CNNs' learning rates at each rollback, down to `rate.floor`."""
    grad_norm: tuple[float, float, float] = (10_000.0, 50_000.0, 100_000.0)
    """Gradient norms before clipping that are a warning, serious and a stop (reports)."""
    max_skipped: int = 100
    """Number of consecutive skipped updates of one network that is a stop alert."""
    warm_up: int = 1_000
    """Updates before the actor's loss is compared with its baseline and its actions must vary."""
    actor_loss_ratio: float = 10.0
    """Ratio of the absolute actor loss to its baseline that is a warning; ten times that is serious
    (reports). The baseline is the median over the last `baseline_readings`, but at least a tenth
    of the largest return that the data allow."""
    baseline_readings: int = 50
    """Number of newest readings that the baseline covers."""
    q_limit: float = 10_000.0
    """Absolute value of Q that is serious (reports)."""
    q_margin: float = 0.1
    """How far Q may exceed the discounted returns that the data allow, as a share of their range:
    above this is a warning, above one range serious, above ten ranges a stop."""
    critic_loss_limit: float = 1_000.0
    """Critic loss that is a warning (reports); ten times that is serious."""
    feature_norm_limit: float = 100.0
    """Feature norm (per sample, mean over the batch) that is serious (reports: failure)."""
    saturation_limit: float = 0.9
    """Share of actions within 1 % of a bound that is a warning, in (0, 1]."""
    dead_limit: float = 0.9
    """Share of features that are 0 for the whole batch that is a warning, in (0, 1]."""
    action_std_limit: float = 1e-3
    """Standard deviation of the actions over a batch, in units of the action, below which the actor
    counts as constant, which is a warning."""
    update_ratio_limit: float = 0.1
    """Norm of one update of a layer, relative to the norm of its weights, that is a warning. It is
    about 1e-3 in healthy training (Karpathy, "A Recipe for Training Neural Networks", 2019)."""
    layers_every: int = 1_000
    """Updates between two measurements of each layer's weights (reports)."""
    rate: CnnRateConfig = dataclasses.field(default_factory=CnnRateConfig)
    """Adaptive learning rates of the CNNs."""
    action_limit: ActionLimitConfig = dataclasses.field(default_factory=ActionLimitConfig)
    """Limit on the actions of published policies."""

    def __post_init__(self) -> None:
        warn, serious, stop = self.grad_norm
        is_rising = 0.0 < warn <= serious <= stop < math.inf
        check_settings(
            self,
            "guards.",
            ("on_stop", self.on_stop in ON_STOP, f"one of {ON_STOP}"),
            ("rollback_rate", self.rollback_rate <= 1.0, "at most 1"),
            ("grad_norm", is_rising, "three rising limits above 0"),
            above_zero=(
                *("every", "repeat_every", "max_skipped", "warm_up", "layers_every"),
                *("actor_loss_ratio", "baseline_readings", "q_limit", "q_margin"),
                *("critic_loss_limit", "feature_norm_limit", "saturation_limit", "dead_limit"),
                *("action_std_limit", "update_ratio_limit", "rollback_rate"),
            ),
            zero_or_above=("max_rollbacks",),
        )
