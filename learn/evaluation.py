"""Metrics of episodes: `EpisodeMetrics` of new ones, `HeldOutEvaluator` of those never sampled.

Compare the TD error on held-out episodes with that in training to detect overfitting. Compare
values with the returns that followed to detect overestimation; their correlation shows whether the
critic ranks states correctly. The difference between the actor's and the data's actions shows how
far the critic extrapolates. `fitted_value` estimates the return of the actor's own drives.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtd3.learn.batch import Batch
from avtd3.learn.metrics import REWARD_TERMS
from avtd3.learn.networks import ObservationBatch, evaluating, to_pixels
from avtd3.learn.td3 import TD3Config, TD3State, scale_reward, target_value
from avtd3.store.episode import Episode
from avtd3.store.replay.cache import EpisodeSummary
from avtd3.store.spec import EpisodeSpec

END_REASONS = {
    "episode/success": "goal",
    "episode/collision": "collision",
    "episode/off_road": "off_road",
}
"""End reason whose share of the episodes a metric is."""

TERM_SHARES = {"episode/lane_invasion": "safety/lane_invasion"}
"""Reward term for which a metric is the share of episodes where its sum is not 0."""

VECTOR_COLUMNS = {
    "episode/lateral_deviation": "lateral_m",
    "episode/speed": "speed_mps",
}
"""Column of the vector whose mean absolute value a metric is, in the column's unit."""

_CHUNK = 256
"""Steps that are evaluated at once."""
_FEATURES, _OWN_FEATURES = "features", "own_features"
"""Columns of the critics' last hidden layers, at the actions of the data and of the actor."""
FOLDS = 5
RIDGE = 1e-3
"""Weight of the penalty on `w`, relative to the mean square of the features."""
ROUNDS = 4_000
"""Largest number of repetitions."""
TOLERANCE = 1e-6
DIVERGED = 1e9
"""Factor by which `w` may exceed the first one before the fit is given up."""
RESAMPLES = 2_000
LEVEL = 0.95


class EpisodeMetrics:
    """Metrics of the episodes that have not been logged yet, except of columns that they lack."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self.newest_return: float | None = None
        """Mean return of the newest episodes, logged or not."""
        self.newest_length: float | None = None
        """Mean length of the newest episodes in steps, logged or not."""
        self._spec = spec
        self._new: list[EpisodeSummary] = []
        self._collisions = 0

    @property
    def are_logged(self) -> bool:
        """Whether the metrics of all episodes have been logged."""
        return not self._new

    def add(self, summary: EpisodeSummary) -> None:
        """Add new episodes."""
        if len(summary):
            self._new.append(summary)
            self.newest_return = float(summary.returns.mean())
            self.newest_length = float(summary.lengths.mean())

    def clear(self) -> None:
        """Skip the episodes so far: they were logged before the run was resumed."""
        self._new.clear()

    def read(self, version: int | None) -> dict[str, float]:
        """Return means over the new episodes, given the newest policy version; start again."""
        if not self._new:
            return {}
        new = EpisodeSummary.join(self._new, self._spec)
        self.clear()
        shares = {m: new.end_reasons.count(reason) / len(new) for m, reason in END_REASONS.items()}
        means = {"episode/return": new.returns.mean(), "episode/length": new.lengths.mean()}
        found = {metric: float(mean) for metric, mean in means.items()} | shares
        found["episode/collision_streak"] = float(self._longest_streak(new.end_reasons))
        return found | self._columns(new) | _policy_lag(new, version)

    def _longest_streak(self, end_reasons: Sequence[str]) -> int:
        """Return the longest streak of collisions, with those right before these episodes."""
        longest = 0
        for reason in end_reasons:
            is_collision = reason == END_REASONS["episode/collision"]
            self._collisions = self._collisions + 1 if is_collision else 0
            longest = max(longest, self._collisions)
        return longest

    def _columns(self, new: EpisodeSummary) -> dict[str, float]:
        spec = self._spec
        sums = new.reward_term_sums.mean(axis=0).tolist()
        found = {REWARD_TERMS + name: x for name, x in zip(spec.reward_terms, sums, strict=True)}
        for metric, name in TERM_SHARES.items():
            if name in spec.reward_terms:
                term = new.reward_term_sums[:, spec.reward_terms.index(name)]
                found[metric] = float((term != 0.0).mean())
        sizes = new.vector_mean_abs.mean(axis=0) * np.array(spec.vector_scales)
        for metric, name in VECTOR_COLUMNS.items():
            if name in spec.vector_names:
                found[metric] = float(sizes[spec.vector_names.index(name)])
        return found


def _policy_lag(new: EpisodeSummary, version: int | None) -> dict[str, float]:
    driven = new.policy_versions[new.policy_versions >= 0]
    if version is None or not len(driven):
        return {}
    lags = version - driven
    found = {"": lags.mean(), "_min": lags.min(), "_max": lags.max()}
    return {f"run/policy_lag{which}": float(lag) for which, lag in found.items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FittedEpisode:
    """Features of an episode of T steps."""

    features: NDArray[np.floating]
    """(T, D), psi of each step's state and action."""
    own: NDArray[np.floating]
    """(T + 1, D), psi of each state, the last one included, and the policy's action there."""
    reward: NDArray[np.float64]
    """(T,)."""
    discount: NDArray[np.float64]
    """(T,): 0 after the last step of a terminated episode, else gamma."""


@dataclasses.dataclass(frozen=True, slots=True)
class HeldOutEvaluator:
    """Evaluate networks on held-out episodes."""

    spec: EpisodeSpec
    config: TD3Config
    gamma: float
    device: torch.device
    autocast: torch.dtype | None
    stack_stride: int = 1

    def __call__(self, state: TD3State, episodes: Iterable[Episode]) -> dict[str, float]:
        """Return means over all steps of the episodes, by metric; nothing without episodes."""
        columns: dict[str, list[NDArray[np.float32]]] = {}
        fitted: list[FittedEpisode] = []
        count = 0
        with torch.no_grad(), evaluating(state.actor, state.critic):
            for episode in episodes:
                count += 1
                each = self._evaluate(state, episode)
                fitted.append(self._fitted_episode(state, episode, each))
                for name, values in each.items():
                    columns.setdefault(name, []).append(values)
        if not count:
            return {}
        steps = {name: np.concatenate(values) for name, values in columns.items()}
        found = {name: float(values.mean()) for name, values in steps.items()}
        if "offline/return" in steps:
            returns = steps["offline/return"].astype(np.float64)
            found |= _correlation(returns, returns + steps["offline/q_excess"])
        if (value := fitted_value(fitted)) is not None:
            names = (f"offline/fitted_value{end}" for end in ("", "_low", "_high"))
            found |= dict(zip(names, value, strict=True))
        return found | {"offline/episodes": float(count)}

    def _evaluate(self, state: TD3State, episode: Episode) -> dict[str, NDArray[np.float32]]:
        """Return each metric at each step, float32 (T,), or at the first step only, (1,)."""
        length = episode.length
        bounds = ((start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK))
        chunks = [self._evaluate_chunk(state, episode, *each) for each in bounds]
        parts = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        found = {name: part.float().cpu().numpy() for name, part in parts.items()}
        if episode.terminated[-1]:  # the return of a truncated episode is not known
            reward = scale_reward(torch.from_numpy(episode.rewards), self.config).numpy()
            returns = discounted_returns(reward, self.gamma)
            found["offline/return"] = returns
            found["offline/q_excess"] = found["offline/q"] - returns
            found["offline/initial_return"] = returns[:1]
        found["offline/initial_value"] = found["offline/q_actor"][:1]
        return found

    def _fitted_episode(
        self, state: TD3State, episode: Episode, columns: dict[str, NDArray[np.float32]]
    ) -> FittedEpisode:
        """Take the features out of an episode's columns."""
        features, own = columns.pop(_FEATURES), columns.pop(_OWN_FEATURES)
        discount = np.full(len(own), self.gamma)
        if episode.terminated[-1]:
            discount[-1], last = 0.0, own[-1:]  # any value, because its discount is 0
        else:
            observation = self._observe(episode, episode.length, episode.length + 1)
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                encoded, action = state.critic.encode(observation), state.actor(observation)
                last = state.critic.hidden(encoded, action).float().cpu().numpy()
        reward = scale_reward(torch.from_numpy(episode.rewards), self.config).double().numpy()
        own = np.concatenate([own, last])
        return FittedEpisode(features=features, own=own, reward=reward, discount=discount)

    def _evaluate_chunk(
        self, state: TD3State, episode: Episode, start: int, stop: int
    ) -> dict[str, Tensor]:
        batch = self._batch(episode, start, stop)
        noise = torch.zeros_like(batch.action)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            target = target_value(
                state, batch, scale_reward(batch.reward, self.config), noise, self.config
            )
            encoded = state.critic.encode(batch.observation)
            q = state.critic.first(encoded, batch.action)
            action = state.actor(batch.observation)
            q_actor = state.critic.first(encoded, action)
            features = state.critic.hidden(encoded, batch.action)
            own_features = state.critic.hidden(encoded, action)
        distance = (action - batch.action).abs() / state.actor.action_scale
        return {
            "offline/td_error": (q.float() - target.float()).abs(),
            "offline/q": q.float(),
            "offline/q_actor": q_actor,
            "offline/action_distance": distance.mean(dim=1),
            _FEATURES: features,
            _OWN_FEATURES: own_features,
        }

    def _batch(self, episode: Episode, start: int, stop: int) -> Batch:
        """Return the steps in range(start, stop) as a batch."""
        discount = np.full(stop - start, self.gamma, np.float32)
        if episode.terminated[-1] and stop == episode.length:
            discount[-1] = 0.0
        return Batch(
            observation=self._observe(episode, start, stop),
            action=torch.from_numpy(episode.actions[start:stop]).to(self.device),
            reward=torch.from_numpy(episode.rewards[start:stop]).to(self.device),
            discount=torch.from_numpy(discount).to(self.device),
            next_observation=self._observe(episode, start + 1, stop + 1),
        )

    def _observe(self, episode: Episode, start: int, stop: int) -> ObservationBatch:
        vector, parts = None, []
        for stream in self.spec.images:
            places = (None, start, stop, self.stack_stride)
            stacks = torch.from_numpy(episode.observations(*places, stream=stream))
            parts.append(to_pixels(stacks.to(self.device), self.autocast or torch.float32))
        if self.spec.vector_names:
            vector = torch.from_numpy(episode.vectors[start:stop]).to(self.device)
        return ObservationBatch(pixels=tuple(parts), vector=vector)


def discounted_returns(reward: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """Return ``sum(gamma**i * reward[t + i])`` up to the end of the episode, float32 (T,)."""
    found = np.empty(len(reward), np.float64)
    following = 0.0
    for t in range(len(reward) - 1, -1, -1):
        following = float(reward[t]) + gamma * following
        found[t] = following
    return found.astype(np.float32)


def _correlation(returns: NDArray[np.float64], q: NDArray[np.float64]) -> dict[str, float]:
    """Return Pearson's correlation of returns and values, each (N,); nothing if one is constant."""
    if returns.std() == 0.0 or q.std() == 0.0:
        return {}
    return {"offline/q_correlation": float(np.corrcoef(returns, q)[0, 1])}


def fitted_value(episodes: list[FittedEpisode]) -> tuple[float, float, float] | None:
    """Estimate the policy's mean discounted return from the states of the episodes on.

    Return the mean over all states and its 95 % interval (percentile bootstrap over the episodes);
    None with fewer than two episodes, or without a fixed point.

    The critic's own values are too high where it was trained on its own actions. So a linear
    function of the critics' last hidden layers is fitted to the episodes: ``w <- argmin |psi(s, a)
    w - r - discount * psi(s', pi(s')) w_old|^2 + ridge |w|^2``, repeated until `w` stays the same
    (fitted Q evaluation: Le, Voloshin & Yue 2019; with linear functions its fixed point is that of
    LSTD-Q: Lagoudakis & Parr 2003). Each episode is rated by a function that was fitted to others.
    """
    if len(episodes) < 2:
        return None
    scale = np.sqrt(np.mean([np.square(e.features).mean() for e in episodes])) or 1.0
    folds = min(FOLDS, len(episodes))
    sums = [_moments(episodes[fold::folds], scale) for fold in range(folds)]
    values = np.empty(len(episodes))
    for fold in range(folds):
        weights = _fit(*_total([*sums[:fold], *sums[fold + 1 :]]))
        if weights is None:
            return None
        for number in range(fold, len(episodes), folds):
            values[number] = (_with_bias(episodes[number].own[:-1], scale) @ weights).mean()
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(values[drawn].mean(axis=1), (tail, 1.0 - tail))
    return float(values.mean()), float(low), float(high)


def _with_bias(features: NDArray[np.floating], scale: float) -> NDArray[np.float64]:
    """Return features (N, D + 1) of about unit size, with a constant."""
    return np.concatenate([features.astype(np.float64) / scale, np.ones((len(features), 1))], 1)


_Moments = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _moments(episodes: list[FittedEpisode], scale: float) -> _Moments:
    """Return ``psi' psi``, ``psi' (discount * next psi)`` and ``psi' r``, summed over steps."""
    found = []
    for episode in episodes:
        now, after = (_with_bias(x, scale) for x in (episode.features, episode.own[1:]))
        after *= episode.discount[:, None]
        found.append((now.T @ now, now.T @ after, now.T @ episode.reward))
    return _total(found)


def _total(moments: Sequence[_Moments]) -> _Moments:
    gram, cross, target = (np.sum(parts, axis=0) for parts in zip(*moments, strict=True))
    return gram, cross, target


def _fit(
    gram: NDArray[np.float64], cross: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return the fixed point of the repeated regressions; None if there is none."""
    steps = gram[-1, -1]
    inverse = np.linalg.inv(gram + RIDGE * steps * np.eye(len(gram)))
    transition, weights = inverse @ cross, inverse @ target
    start = weights
    for _ in range(ROUNDS):
        after = start + transition @ weights
        change = float(np.abs(after - weights).max())
        weights = after
        if not change < DIVERGED * (1.0 + float(np.abs(start).max())):
            return None
        if change <= TOLERANCE * max(1.0, float(np.abs(weights).max())):
            return weights
    return None
