"""Scores of evaluated episodes: `EpisodeScore` for one, `summarise` for all of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.environment import SUCCESS_REASON
from avtd3.collect.leaderboard import RouteScore, summarise_routes
from avtd3.store.step import Step

_Z_95 = 1.959963984540054
_RESAMPLES = 2000
_LEAST_KM = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeScore:
    """How one evaluated episode went; scenario, town and weather are 0 or empty if it has none."""

    index: int
    seed: int
    scenario: int
    town: str
    weather: str
    driver: str
    end_reason: str
    steps: int
    episode_return: float
    action_variance: tuple[float, ...]
    measures: Mapping[str, float]
    """The environment's measurements, see `Environment.measures`; those of a car for driving."""
    route: RouteScore | None
    """The CARLA leaderboard's score; None where events are not recorded."""

    def row(self) -> dict[str, Any]:
        """Return the score as one flat mapping of JSON values."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del row["measures"], row["route"]
        return {**row, **self.measures, **(self.route.row() if self.route else {})}


class Scorer:
    """Collects the steps of one episode for its score."""

    def __init__(self) -> None:
        self._actions: list[NDArray[np.float32]] = []
        self._return = 0.0

    def record(self, step: Step) -> None:
        """Record one step."""
        self._actions.append(step.action)
        self._return += total_reward(step)

    def score(self, **known: Any) -> EpisodeScore:  # noqa: ANN401 - fields
        """Return the episode's score."""
        variance = tuple(np.var(np.asarray(self._actions, np.float64), axis=0).tolist())
        known |= {"steps": len(self._actions), "action_variance": variance}
        return EpisodeScore(episode_return=self._return, **known)


def total_reward(step: Step) -> float:
    """Return a step's reward: the sum of its terms if it has terms."""
    if step.reward_terms is None:
        return float(step.reward or 0.0)
    return float(sum(step.reward_terms.tolist()))


def summarise(scores: Sequence[EpisodeScore], action_names: Sequence[str]) -> dict[str, Any]:
    """Aggregate the scores of all episodes, as JSON values."""
    steps = np.array([score.steps for score in scores], np.float64)
    returns = np.array([score.episode_return for score in scores])
    variance = [_mean([s.action_variance[i] for s in scores]) for i in range(len(action_names))]
    reasons = [score.end_reason for score in scores]
    found = {
        "episodes": len(scores),
        "return_mean": _mean(returns),
        "return_interval": list(bootstrap_interval(returns)),
        "return_std": float(np.std(returns)) if len(returns) else 0.0,
        "episode_length": _mean(steps),
        "length_interval": list(bootstrap_interval(steps)),
        "action_variance": dict(zip(action_names, variance, strict=True)),
        "end_reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }
    measures = [score.measures for score in scores]
    if not all("route_completion" in entry for entry in measures):
        names = sorted(set.intersection(*({*entry} for entry in measures)))
        means = {name: _mean([entry[name] for entry in measures]) for name in names}
        return {**found, "measures": means} if means else found
    found |= _driving(measures, steps, reasons)
    routes = [score.route for score in scores if score.route is not None]
    if routes:
        found["scores"] = summarise_routes(routes)
    return found


def _driving(
    drives: Sequence[Mapping[str, float]], steps: NDArray[np.float64], reasons: list[str]
) -> dict[str, Any]:
    """Return the driving metrics over all episodes; deviation and speed are means over steps."""
    successes, collisions = reasons.count(SUCCESS_REASON), reasons.count("collision")
    distance_km = sum(drive["distance_m"] for drive in drives) / 1000.0
    km = max(distance_km, _LEAST_KM)
    return {
        "success_rate": successes / max(len(drives), 1),
        "success_interval": list(wilson_interval(successes, len(drives))),
        "route_completion": _mean([drive["route_completion"] for drive in drives]),
        "collisions_per_km": collisions / km,
        "lane_departures_per_km": sum(drive["lane_departures"] for drive in drives) / km,
        "lane_invasions_per_km": sum(drive["lane_invasions"] for drive in drives) / km,
        "wrong_way_share": sum(d["wrong_way_steps"] for d in drives) / max(float(steps.sum()), 1.0),
        "lateral_deviation_m": _mean([drive["lateral_deviation_m"] for drive in drives], steps),
        "speed_mps": _mean([drive["speed_mps"] for drive in drives], steps),
        "distance_km": distance_km,
    }


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927); (0, 1) without observations."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = successes / count, _Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    half = _Z_95 * spread / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean: percentiles over fixed resamples (Efron 1979)."""
    if len(values) == 0:
        return 0.0, 0.0
    resamples = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[resamples].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _mean(values: Any, weights: NDArray[np.float64] | None = None) -> float:  # noqa: ANN401
    if len(values) == 0:
        return 0.0
    return float(np.average(np.asarray(values, np.float64), weights=weights))
