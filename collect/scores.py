"""How well was driven: one row per episode, and what all rows say together."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.rollout import Transition
from avtd3.collect.task import ACTION_NAMES, SUCCESS_REASON

_Z_95 = 1.959963984540054
_RESAMPLES = 2000
_LEAST_KM = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeScore:
    """How one episode went."""

    index: int
    """Number of the episode in the evaluation."""
    seed: int
    """Its seed, which is odd: a held-out road."""
    town: str
    """Name of the road network."""
    weather: str
    """Name of the weather."""
    driver: str
    """Who drove."""
    end_reason: str
    """Why it ended."""
    steps: int
    """Its length."""
    episode_return: float
    """Sum of its rewards."""
    route_completion: float
    """Share of the way to the goal that was driven, in [0, 1]."""
    distance_m: float
    """Metres driven."""
    lane_departures: int
    """How often the car's centre left the lane that the route follows."""
    lane_invasions: int
    """Lane markings crossed."""
    wrong_way_steps: int
    """Steps in a lane of the opposite direction."""
    lateral_deviation_m: float
    """Mean distance from the lane's centre, without sign."""
    speed_mps: float
    """Mean speed."""
    action_variance: tuple[float, float]
    """Variance of steering and of throttle or brake."""

    @property
    def is_success(self) -> bool:
        """Whether the goal was reached."""
        return self.end_reason == SUCCESS_REASON


class Scorer:
    """Watches the transitions of one episode."""

    def __init__(self, control_period_s: float) -> None:
        self._period_s = control_period_s
        self._actions: list[NDArray[np.float32]] = []
        self._speeds: list[float] = []
        self._laterals: list[float] = []
        self._return = 0.0
        self._departures = self._invasions = self._wrong_way = 0
        self._is_out = False

    def watch(self, transition: Transition) -> None:
        """Take one transition in."""
        step = transition.step
        facts = step.facts
        self._actions.append(transition.action)
        self._speeds.append(facts.speed_mps)
        self._laterals.append(abs(facts.lateral_m))
        self._return += sum(step.reward_terms.tolist())
        is_out = abs(facts.lateral_m) > 0.5 * facts.lane_width_m
        self._departures += is_out and not self._is_out
        self._is_out = is_out
        self._invasions += facts.lane_invasions
        self._wrong_way += facts.wrong_way

    def score(self, *, completion: float, **known: Any) -> EpisodeScore:  # noqa: ANN401 - fields
        """The episode's row.

        Args:
            completion: Share of the way that was driven.
            known: The fields of `EpisodeScore` that identify the episode, and its end.
        """
        steer, pedal = np.var(np.asarray(self._actions, np.float64), axis=0).tolist()
        return EpisodeScore(
            steps=len(self._actions),
            episode_return=self._return,
            route_completion=completion,
            distance_m=float(np.sum(np.abs(self._speeds)) * self._period_s),
            lane_departures=self._departures,
            lane_invasions=self._invasions,
            wrong_way_steps=self._wrong_way,
            lateral_deviation_m=float(np.mean(self._laterals)),
            speed_mps=float(np.mean(self._speeds)),
            action_variance=(steer, pedal),
            **known,
        )


def summarise(scores: Sequence[EpisodeScore]) -> dict[str, Any]:
    """The driving metrics over all episodes, as JSON values.

    Means of lateral deviation and speed are over steps, so that long episodes count by their
    length. Rates per kilometre are over all that was driven, at least one metre.
    """
    steps = np.array([score.steps for score in scores], np.float64)
    returns = np.array([score.episode_return for score in scores])
    successes = sum(score.is_success for score in scores)
    km = max(sum(score.distance_m for score in scores) / 1000.0, _LEAST_KM)
    variance = [_mean([s.action_variance[i] for s in scores]) for i in range(len(ACTION_NAMES))]
    reasons = sorted(score.end_reason for score in scores)
    return {
        "episodes": len(scores),
        "success_rate": successes / max(len(scores), 1),
        "success_interval": list(wilson_interval(successes, len(scores))),
        "return_mean": _mean(returns),
        "return_interval": list(bootstrap_interval(returns)),
        "route_completion": _mean([score.route_completion for score in scores]),
        "collisions_per_km": reasons.count("collision") / km,
        "lane_departures_per_km": sum(score.lane_departures for score in scores) / km,
        "lane_invasions_per_km": sum(score.lane_invasions for score in scores) / km,
        "wrong_way_share": _mean([score.wrong_way_steps for score in scores], 1.0 / steps),
        "lateral_deviation_m": _mean([score.lateral_deviation_m for score in scores], steps),
        "speed_mps": _mean([score.speed_mps for score in scores], steps),
        "action_variance": dict(zip(ACTION_NAMES, variance, strict=True)),
        "episode_length": _mean(steps),
        "distance_km": sum(score.distance_m for score in scores) / 1000.0,
        "end_reasons": {reason: reasons.count(reason) for reason in reasons},
    }


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) without observations."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = successes / count, _Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    half = _Z_95 * spread / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a mean: percentiles over resamples, always the same ones (Efron 1979)."""
    if len(values) == 0:
        return 0.0, 0.0
    draws = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _mean(values: Any, weights: NDArray[np.float64] | None = None) -> float:  # noqa: ANN401
    if len(values) == 0:
        return 0.0
    return float(np.average(np.asarray(values, np.float64), weights=weights))
