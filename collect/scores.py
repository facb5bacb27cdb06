"""How well was driven: one row per episode, and what all rows say together."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.arena import SUCCESS_REASON
from avtd3.collect.driving.drive_meter import DriveMeasures
from avtd3.collect.leaderboard import RouteScore, summarise_routes
from avtd3.collect.rollout import Transition

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
    scenario: int
    """Number of the scenario or route; 0 where there is none."""
    town: str
    """Name of the road network; empty where there is none."""
    weather: str
    """Name of the weather; empty where there is none."""
    driver: str
    """Who drove."""
    end_reason: str
    """Why it ended."""
    steps: int
    """Its length."""
    episode_return: float
    """Sum of its rewards."""
    action_variance: tuple[float, ...]
    """Variance of each action."""
    drive: DriveMeasures | None
    """How the car was driven; None where nothing is a car."""
    route: RouteScore | None
    """How the CARLA leaderboard would judge it; None where events are not recorded."""

    @property
    def is_success(self) -> bool:
        """Whether the goal was reached."""
        return self.end_reason == SUCCESS_REASON

    def row(self) -> dict[str, Any]:
        """The score as one flat document of JSON values."""
        document = dataclasses.asdict(dataclasses.replace(self, route=None))
        drive, _ = document.pop("drive"), document.pop("route")
        return {**document, **(drive or {}), **(self.route.row() if self.route else {})}


class Scorer:
    """Watches the transitions of one episode."""

    def __init__(self) -> None:
        self._actions: list[NDArray[np.float32]] = []
        self._return = 0.0

    def watch(self, transition: Transition) -> None:
        """Take one transition in."""
        self._actions.append(transition.action)
        self._return += sum(transition.step.reward_terms.tolist())

    def score(self, **known: Any) -> EpisodeScore:  # noqa: ANN401 - fields
        """The episode's row.

        Args:
            known: The fields of `EpisodeScore` that identify the episode, its end, and how the
                car was driven.
        """
        variance = np.var(np.asarray(self._actions, np.float64), axis=0).tolist()
        return EpisodeScore(
            steps=len(self._actions),
            episode_return=self._return,
            action_variance=tuple(variance),
            **known,
        )


def summarise(scores: Sequence[EpisodeScore], action_names: Sequence[str]) -> dict[str, Any]:
    """What all episodes say together, as JSON values.

    Args:
        scores: The episodes.
        action_names: Name of each action.

    Returns:
        Returns and lengths with their 95 % intervals; for cars the driving metrics as well, and
        the leaderboard's.
    """
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
    drives = [score.drive for score in scores if score.drive is not None]
    if len(drives) < len(scores):
        return found
    successes = sum(score.is_success for score in scores)
    found |= _driving(drives, steps, successes, reasons.count("collision"))
    routes = [score.route for score in scores if score.route is not None]
    if routes:
        found["scores"] = summarise_routes(routes)
    return found


def _driving(
    drives: Sequence[DriveMeasures], steps: NDArray[np.float64], successes: int, collisions: int
) -> dict[str, Any]:
    """The driving metrics over all episodes.

    Means of lateral deviation and speed are over steps, so that long episodes count by their
    length. Rates per kilometre are over all that was driven, at least one metre.
    """
    distance_km = sum(drive.distance_m for drive in drives) / 1000.0
    km = max(distance_km, _LEAST_KM)
    return {
        "success_rate": successes / max(len(drives), 1),
        "success_interval": list(wilson_interval(successes, len(drives))),
        "route_completion": _mean([drive.route_completion for drive in drives]),
        "collisions_per_km": collisions / km,
        "lane_departures_per_km": sum(drive.lane_departures for drive in drives) / km,
        "lane_invasions_per_km": sum(drive.lane_invasions for drive in drives) / km,
        "wrong_way_share": sum(d.wrong_way_steps for d in drives) / max(float(steps.sum()), 1.0),
        "lateral_deviation_m": _mean([drive.lateral_deviation_m for drive in drives], steps),
        "speed_mps": _mean([drive.speed_mps for drive in drives], steps),
        "distance_km": distance_km,
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
