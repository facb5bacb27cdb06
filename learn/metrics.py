"""Name, meaning, unit and preferred direction of every scalar that a run logs."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from avtd3.learn.guards.config import GUARDS, UPDATE_RATIOS, WEIGHTS

HIGHER: Final = "higher"
LOWER: Final = "lower"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Description of one scalar."""

    meaning: str
    """What it measures."""
    unit: str
    """Unit; ``1`` for a share or a ratio."""
    better: Literal["", "higher", "lower"] = ""
    """Preferred direction: ``higher``, ``lower``, or empty if there is none."""

    def __str__(self) -> str:
        return f"{self.meaning} [{self.unit}]"


def _metric(meaning: str, unit: str, better: Literal["", "higher", "lower"] = "") -> Metric:
    return Metric(meaning=meaning, unit=unit, better=better)


def _lag(which: str, driven: str) -> Metric:
    meaning = f"{which} number of policy versions published since the one that drove {driven}"
    return _metric(meaning, "versions", LOWER)


_FEATURES = {
    "feature_norm": _metric("L2 norm of each sample's features, mean over the batch", "1", LOWER),
    "feature_mean": _metric("mean of all features", "1"),
    "feature_std": _metric("standard deviation of all features", "1"),
    "feature_min": _metric("smallest feature", "1"),
    "feature_max": _metric("largest feature", "1"),
    "dead_units": _metric("share of features that are 0 for the whole batch", "1", LOWER),
}
_NORMS = {
    "grad_norm_before": _metric("gradient norm before clipping", "1", LOWER),
    "grad_norm_after": _metric("gradient norm after clipping", "1"),
}
_CLIP_FRACTION = _metric("share of updates whose gradients were clipped", "1")

_CRITIC = {
    "critic/loss": _metric("sum of the two mean squared TD errors", "reward^2", LOWER),
    "critic/q1_mean": _metric("mean Q1", "reward"),
    "critic/q2_mean": _metric("mean Q2", "reward"),
    "critic/q_gap": _metric("mean |Q1 - Q2|", "reward", LOWER),
    "critic/q_min": _metric("smallest Q of both critics", "reward"),
    "critic/q_max": _metric("largest Q of both critics", "reward"),
    "critic/q_std": _metric("standard deviation of Q1", "reward"),
    "critic/target_mean": _metric("mean target", "reward"),
    "critic/target_std": _metric("standard deviation of the target", "reward"),
    "critic/td_error1": _metric("mean |Q1 - target|", "reward", LOWER),
    "critic/td_error2": _metric("mean |Q2 - target|", "reward", LOWER),
    "critic/clip_fraction": _CLIP_FRACTION,
    "critic/skipped": _metric(
        "skipped updates so far, because a loss or gradient was not finite", "count", LOWER
    ),
}
_ACTOR = {
    "actor/loss": _metric("loss of the actor", "reward"),
    "actor/q_mean": _metric("mean Q1 of the actor's actions", "reward"),
    "actor/imitation": _metric(
        "mean squared difference between the actor's and the data's actions", "1"
    ),
    "actor/saturation": _metric("share of actions within 1 % of a bound", "1", LOWER),
    "actor/action_std": _metric("standard deviation of the actions over the batch", "action"),
    "actor/pre_tanh": _metric("mean absolute value of the actor's outputs before tanh", "1"),
    "actor/clip_fraction": _CLIP_FRACTION,
}
_RUN = {
    "batch/reward_mean": _metric("mean (n-step) reward of the batch, scaled and clipped", "reward"),
    "batch/reward_std": _metric("standard deviation of the rewards of the batch", "reward"),
    "batch/reward_min": _metric("smallest reward of the batch", "reward"),
    "batch/reward_max": _metric("largest reward of the batch", "reward"),
    "rate/actor_cnn": _metric("learning rate of the actor's CNN", "1"),
    "rate/actor_mlp": _metric("learning rate of the actor's MLP", "1"),
    "rate/critic_cnn": _metric("learning rate of the critics' CNN", "1"),
    "rate/critic_mlp": _metric("learning rate of the critics' MLPs", "1"),
    "run/updates_per_second": _metric(
        "updates per second of wall-clock time since the previous log line", "1/s", HIGHER
    ),
    "run/sampler_wait": _metric(
        "share of the time since the previous log line spent on sampling", "1", LOWER
    ),
    "run/replay_ratio": _metric(
        "updates per transition that the datasets have offered so far", "1"
    ),
    "run/steps": _metric("transitions that can be sampled", "count"),
    "run/policy_lag": _lag("mean", "the newest episodes"),
    "run/policy_lag_min": _lag("smallest", "an episode"),
    "run/policy_lag_max": _lag("largest", "an episode"),
}
_ALERTS = {
    "alerts/warn": _metric("alerts of level warn so far", "count", LOWER),
    "alerts/serious": _metric("alerts of level serious so far", "count", LOWER),
    "alerts/stop": _metric("alerts of level stop so far", "count", LOWER),
    **{
        f"alerts/{name}": _metric(f"updates over a limit of {name} so far", "count", LOWER)
        for name in GUARDS
    },
    "run/action_limit": _metric("share of the action range that policies may use", "1", HIGHER),
    "run/rollbacks": _metric("rollbacks to a good checkpoint so far", "count", LOWER),
}
_OFFLINE = {
    "offline/td_error": _metric("mean |Q1 - target| over held-out steps", "reward", LOWER),
    "offline/q": _metric("mean Q1 of the data's actions in held-out steps", "reward"),
    "offline/q_actor": _metric("mean Q1 of the actor's actions in held-out steps", "reward"),
    "offline/return": _metric(
        "mean discounted return that followed each step of the held-out episodes that terminated",
        "reward",
    ),
    "offline/q_excess": _metric(
        "mean of Q1 minus the discounted return that followed, over the same steps", "reward"
    ),
    "offline/q_correlation": _metric(
        "correlation of Q1 with the discounted return that followed, over the same steps",
        "1",
        HIGHER,
    ),
    "offline/initial_value": _metric(
        "mean Q1 of the actor's action in the first state of each episode", "reward"
    ),
    "offline/initial_return": _metric(
        "mean discounted return of the held-out episodes that terminated", "reward"
    ),
    "offline/action_distance": _metric(
        "mean absolute difference between the actor's and the data's actions", "half ranges", LOWER
    ),
    "offline/episodes": _metric("number of evaluated held-out episodes", "count"),
}
_EPISODE = {
    "episode/return": _metric(
        "mean return (sum of rewards) of the newest episodes", "reward", HIGHER
    ),
    "episode/length": _metric("mean length of the newest episodes", "steps", HIGHER),
    "episode/success": _metric("share of the newest episodes that reached the goal", "1", HIGHER),
    "episode/collision": _metric(
        "share of the newest episodes that ended in a collision", "1", LOWER
    ),
    "episode/off_road": _metric("share of the newest episodes that ended off the road", "1", LOWER),
    "episode/lane_invasion": _metric(
        "share of the newest episodes that crossed a lane marking", "1", LOWER
    ),
    "episode/lateral_deviation": _metric(
        "mean distance from the route in the newest episodes", "m", LOWER
    ),
    "episode/speed": _metric("mean speed in the newest episodes", "m/s"),
}

METRICS: Mapping[str, Metric] = MappingProxyType(
    _CRITIC
    | {f"critic_{part}/{name}": m for part in ("cnn", "mlp") for name, m in _NORMS.items()}
    | {f"critic_cnn/{name}": m for name, m in _FEATURES.items()}
    | _ACTOR
    | {f"actor_{part}/{name}": m for part in ("cnn", "mlp") for name, m in _NORMS.items()}
    | {f"actor_cnn/{name}": m for name, m in _FEATURES.items()}
    | _RUN
    | _ALERTS
    | _OFFLINE
    | _EPISODE
)
"""Description of each scalar by name, except those of `FAMILIES`."""

REWARD_TERMS = "reward/"
"""Prefix of the metrics of reward terms; the name of the term follows."""

FAMILIES: Mapping[str, Metric] = MappingProxyType(
    {
        REWARD_TERMS: _metric(
            "mean sum of a reward term over each of the newest episodes", "reward", HIGHER
        ),
        WEIGHTS: _metric("L2 norm of a layer's weights and biases", "1"),
        UPDATE_RATIOS: _metric(
            "norm of a layer's last update divided by the norm of its weights", "1"
        ),
    }
)
"""Descriptions by prefix, for names that depend on the data or the networks."""


def metric(name: str) -> Metric | None:
    """Return the description of a scalar; None if avtd3 does not log it."""
    if name in METRICS:
        return METRICS[name]
    return next((m for prefix, m in FAMILIES.items() if name.startswith(prefix)), None)
