"""Name, meaning, unit and preferred direction of every scalar that a run logs."""

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, Literal

from avtd3.learn.guards.config import GUARDS

HIGHER: Final = "higher"
LOWER: Final = "lower"
REWARD_TERMS = "reward/"
"""Prefix of the metrics of reward terms; the name of the term follows."""


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


_TABLE = """\
critic/loss | reward^2 | lower | sum of the two mean squared TD errors
critic/q1_mean | reward | - | mean Q1
critic/q2_mean | reward | - | mean Q2
critic/q_gap | reward | lower | mean |Q1 - Q2|
critic/q_min | reward | - | smallest Q of both critics
critic/q_max | reward | - | largest Q of both critics
critic/q_std | reward | - | standard deviation of Q1
critic/target_mean | reward | - | mean target
critic/target_std | reward | - | standard deviation of the target
critic/td_error1 | reward | lower | mean |Q1 - target|
critic/td_error2 | reward | lower | mean |Q2 - target|
critic/clip_fraction | 1 | - | share of updates whose gradients were clipped
critic/skipped | count | lower | skipped updates so far, because a loss or gradient was not finite
*_cnn/grad_norm_before | 1 | lower | gradient norm before clipping
*_mlp/grad_norm_before | 1 | lower | gradient norm before clipping
*_cnn/grad_norm_after | 1 | - | gradient norm after clipping
*_mlp/grad_norm_after | 1 | - | gradient norm after clipping
*_cnn/feature_norm | 1 | lower | L2 norm of each sample's features, mean over the batch
*_cnn/feature_mean | 1 | - | mean of all features
*_cnn/feature_std | 1 | - | standard deviation of all features
*_cnn/feature_min | 1 | - | smallest feature
*_cnn/feature_max | 1 | - | largest feature
*_cnn/dead_units | 1 | lower | share of features that are 0 for the whole batch
actor/loss | reward | - | loss of the actor
actor/q_mean | reward | - | mean Q1 of the actor's actions
actor/imitation | 1 | - | mean squared difference between the actor's and the data's actions
actor/saturation | 1 | lower | share of actions within 1 % of a bound
actor/action_std | action | - | standard deviation of the actions over the batch
actor/pre_tanh | 1 | - | mean absolute value of the actor's outputs before tanh
actor/clip_fraction | 1 | - | share of updates whose gradients were clipped
batch/reward_mean | reward | - | mean (n-step) reward of the batch, scaled and clipped
batch/reward_std | reward | - | standard deviation of the rewards of the batch
batch/reward_min | reward | - | smallest reward of the batch
batch/reward_max | reward | - | largest reward of the batch
batch/reward_scale | reward | - | running mean of |reward|, scaled and clipped, over about 20 log \
lines
rate/actor_cnn | 1 | - | learning rate of the actor's CNN
rate/actor_mlp | 1 | - | learning rate of the actor's MLP
rate/critic_cnn | 1 | - | learning rate of the critics' CNN
rate/critic_mlp | 1 | - | learning rate of the critics' MLPs
run/threads | threads | - | CPU threads of torch when the line was written
run/updates_per_second | 1/s | higher | updates per second of wall-clock time since the previous \
log line
run/sampler_wait | 1 | lower | share of the time since the previous log line spent on sampling
run/replay_ratio | 1 | - | updates per step that the datasets have published so far
run/steps | count | - | transitions that can be sampled
run/policy_lag | versions | lower | mean number of policy versions published since the one that \
drove the newest episodes
run/policy_lag_min | versions | lower | smallest number of policy versions published since the \
one that drove an episode
run/policy_lag_max | versions | lower | largest number of policy versions published since the one \
that drove an episode
alerts/warn | count | lower | alerts of level warn so far
alerts/serious | count | lower | alerts of level serious so far
alerts/stop | count | lower | alerts of level stop so far
run/action_limit | 1 | higher | share of the action range that policies may use
run/rollbacks | count | lower | rollbacks to a good checkpoint so far
offline/td_error | reward | lower | mean |Q1 - target| over held-out steps
offline/q | reward | - | mean Q1 of the data's actions in held-out steps
offline/q_actor | reward | - | mean Q1 of the actor's actions in held-out steps
offline/return | reward | - | mean discounted return that followed each step of the held-out \
episodes that terminated
offline/q_excess | reward | - | mean of Q1 minus the discounted return that followed, over the \
same steps
offline/q_correlation | 1 | higher | correlation of Q1 with the discounted return that followed, \
over the same steps
offline/initial_value | reward | - | mean Q1 of the actor's action in the first state of each \
episode
offline/initial_return | reward | - | mean discounted return of the held-out episodes that \
terminated
offline/action_distance | half ranges | lower | mean absolute difference between the actor's and \
the data's actions
offline/episodes | count | - | number of evaluated held-out episodes
episode/return | reward | higher | mean return (sum of rewards) of the newest episodes
episode/length | steps | higher | mean length of the newest episodes
episode/success | 1 | higher | share of the newest episodes that reached the goal
episode/collision | 1 | lower | share of the newest episodes that ended in a collision
episode/collision_streak | episodes | lower | longest streak of collisions in the newest episodes, \
with those right before them
episode/off_road | 1 | lower | share of the newest episodes that ended off the road
episode/lane_invasion | 1 | lower | share of the newest episodes that crossed a lane marking
episode/lateral_deviation | m | lower | mean distance from the route in the newest episodes
episode/speed | m/s | - | mean speed in the newest episodes
reward/ | reward | higher | mean sum of a reward term over each of the newest episodes
weights/ | 1 | - | L2 norm of a layer's weights and biases
update_ratio/ | 1 | - | norm of a layer's last update divided by the norm of its weights
"""
"""Name, unit, preferred direction and meaning. A ``*`` stands for ``actor`` and ``critic``; a name
that ends with a slash is a prefix."""


def _descriptions() -> Iterator[tuple[str, Metric]]:
    better: Mapping[str, Literal["", "higher", "lower"]] = {HIGHER: HIGHER, LOWER: LOWER, "-": ""}
    for row in _TABLE.splitlines():
        pattern, unit, direction, meaning = row.split(" | ", 3)
        described = Metric(meaning=meaning, unit=unit, better=better[direction])
        names = [pattern.replace("*", network) for network in ("actor", "critic")]
        yield from dict.fromkeys(names, described).items()
    for guard in GUARDS:
        meaning = f"updates over a limit of {guard} so far"
        yield f"alerts/{guard}", Metric(meaning=meaning, unit="count", better=LOWER)


_ALL = dict(_descriptions())
METRICS = MappingProxyType({name: m for name, m in _ALL.items() if not name.endswith("/")})
"""Description of each scalar by name, except those of `FAMILIES`."""
FAMILIES = MappingProxyType({name: m for name, m in _ALL.items() if name.endswith("/")})
"""Descriptions by prefix, for names that depend on the data or the networks."""


def metric(name: str) -> Metric | None:
    """Return the description of a scalar; None if avtd3 does not log it."""
    if name in METRICS:
        return METRICS[name]
    return next((m for prefix, m in FAMILIES.items() if name.startswith(prefix)), None)
