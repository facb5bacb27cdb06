"""What a run measures: the name of each scalar, its meaning, its unit, and which way is good."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from avtd3.learn.guards.config import GUARDS

HIGHER, LOWER = "higher", "lower"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What one scalar means."""

    meaning: str
    """In words."""
    unit: str
    """Unit; ``1`` for a share or a ratio."""
    better: str = ""
    """``higher``, ``lower``, or empty where neither way is good by itself."""

    def __str__(self) -> str:
        return f"{self.meaning} [{self.unit}]"


def _metric(meaning: str, unit: str, better: str = "") -> Metric:
    return Metric(meaning=meaning, unit=unit, better=better)


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
    "critic/q_min": _metric("smallest Q of both", "reward"),
    "critic/q_max": _metric("largest Q of both", "reward"),
    "critic/q_std": _metric("standard deviation of Q1", "reward"),
    "critic/target_mean": _metric("mean target", "reward"),
    "critic/target_std": _metric("standard deviation of the target", "reward"),
    "critic/td_error1": _metric("mean |Q1 - target|", "reward", LOWER),
    "critic/td_error2": _metric("mean |Q2 - target|", "reward", LOWER),
    "critic/clip_fraction": _CLIP_FRACTION,
    "critic/skipped": _metric(
        "updates left out because something was not finite, so far", "count", LOWER
    ),
}
_ACTOR = {
    "actor/loss": _metric("loss of the actor", "reward"),
    "actor/q_mean": _metric("mean Q1 of the actor's own actions", "reward"),
    "actor/imitation": _metric("mean squared distance to the data's actions", "1"),
    "actor/saturation": _metric("share of actions within 1 % of a bound", "1", LOWER),
    "actor/action_std": _metric("standard deviation of the actions over the batch", "action"),
    "actor/pre_tanh": _metric("mean size of the numbers before tanh", "1"),
    "actor/clip_fraction": _CLIP_FRACTION,
}
_RUN = {
    "batch/reward_mean": _metric("mean of the batch's (n-step) rewards, as seen", "reward"),
    "batch/reward_std": _metric("their standard deviation", "reward"),
    "batch/reward_min": _metric("the smallest", "reward"),
    "batch/reward_max": _metric("the largest", "reward"),
    "rate/actor_cnn": _metric("learning rate of the actor's CNN", "1"),
    "rate/actor_mlp": _metric("learning rate of the actor's MLP", "1"),
    "rate/critic_cnn": _metric("learning rate of the critics' CNN", "1"),
    "rate/critic_mlp": _metric("learning rate of the critics' MLPs", "1"),
    "run/updates_per_second": _metric("updates since the line before, by the clock", "1/s", HIGHER),
    "run/sampler_wait": _metric("share of that time spent on drawing batches", "1", LOWER),
    "run/replay_ratio": _metric("updates per transition ever offered by the datasets", "1"),
    "run/steps": _metric("transitions that can be drawn", "count"),
    "run/policy_lag": _metric(
        "published versions since the policy of the newest episodes, mean", "versions", LOWER
    ),
    "run/policy_lag_min": _metric("the smallest", "versions", LOWER),
    "run/policy_lag_max": _metric("the largest", "versions", LOWER),
}
_ALERTS = {
    "alerts/warn": _metric("readings in which a guard warned, so far", "count", LOWER),
    "alerts/serious": _metric("readings in which a guard found something serious", "count", LOWER),
    "alerts/stop": _metric("readings in which a guard asked for a stop, so far", "count", LOWER),
    **{
        f"alerts/{name}": _metric(f"updates over a limit of {name}, so far", "count", LOWER)
        for name in GUARDS
    },
    "run/action_limit": _metric("share of the action's range that policies may use", "1", HIGHER),
    "run/rollbacks": _metric("times that the run went back to a good checkpoint", "count", LOWER),
}
_OFFLINE = {
    "offline/td_error": _metric("mean |Q1 - target| over held-out steps", "reward", LOWER),
    "offline/q": _metric("mean Q1 of the data's actions there", "reward"),
    "offline/q_actor": _metric("mean Q1 of the actor's actions there", "reward"),
    "offline/return": _metric(
        "discounted return that followed, mean over steps of terminated held-out episodes", "reward"
    ),
    "offline/q_excess": _metric("mean of Q1 less that return, over the same steps", "reward"),
    "offline/q_correlation": _metric(
        "correlation of Q1 and that return, over the same steps", "1", HIGHER
    ),
    "offline/initial_value": _metric(
        "mean Q1 of the actor's action in the first state of an episode", "reward"
    ),
    "offline/initial_return": _metric(
        "discounted return of a whole episode, mean over those that terminated", "reward"
    ),
    "offline/action_distance": _metric(
        "mean distance of the actor from the data", "half ranges", LOWER
    ),
    "offline/episodes": _metric("held-out episodes that were looked at", "count"),
}
_EPISODE = {
    "episode/return": _metric("sum of rewards of the newest episodes, mean", "reward", HIGHER),
    "episode/length": _metric("steps of the newest episodes, mean", "steps", HIGHER),
    "episode/success": _metric("share of the newest episodes that reached the goal", "1", HIGHER),
    "episode/collision": _metric("share of them that ended in a collision", "1", LOWER),
    "episode/off_road": _metric("share of them that ended off the road", "1", LOWER),
    "episode/lane_invasion": _metric("share of them that crossed a lane's edge", "1", LOWER),
    "episode/lateral_deviation": _metric(
        "distance from the route, mean over the newest episodes", "m", LOWER
    ),
    "episode/speed": _metric("speed, mean over the newest episodes", "m/s"),
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
"""Name of each scalar to what it means; those of `FAMILIES` apart."""

REWARD_TERMS = "reward/"
"""Before the name of a reward term."""
WEIGHTS, UPDATE_RATIOS = "weights/", "update_ratio/"
"""Before ``<network>.<layer>``."""

FAMILIES: Mapping[str, Metric] = MappingProxyType(
    {
        REWARD_TERMS: _metric(
            "sum of a reward term over an episode, mean over the newest ones", "reward", HIGHER
        ),
        WEIGHTS: _metric("L2 norm of a layer's weights and biases", "1"),
        UPDATE_RATIOS: _metric("norm of a layer's last step over that of its weights", "1"),
    }
)
"""What a name begins with, where the rest of it comes from the data or the networks."""


def metric(name: str) -> Metric | None:
    """What a scalar means; None for one that is not ours."""
    if name in METRICS:
        return METRICS[name]
    return next((m for prefix, m in FAMILIES.items() if name.startswith(prefix)), None)
