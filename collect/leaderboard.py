"""The CARLA leaderboard's driving score of an episode, from its stored events.

The score of a route is the product of its completion in percent and its infraction penalty
(https://leaderboard.carla.org/evaluation_v2_1). The penalty begins at 1 and falls with every
infraction, by a table that has changed between versions:

- 2.1: ``1 / (1 + sum of the coefficients)``; 1.0 and 2.0: the product of the coefficients.
- Times ``1 - outside``, the share of the completed way that was driven off the road or in a lane of
  the opposite direction: all versions.

Numbers as in carla-simulator/leaderboard, file leaderboard/utils/statistics_manager.py: branches
leaderboard-1.0 (2165f5e, 2023-06), leaderboard-2.0 (a87a341, 2024-04), leaderboard-2.1 (cfecdc8,
2025-03). The rules by which events count are those of carla-simulator/scenario_runner, file
atomic_criteria.py: a collision of a car that stands is not its own, another one within 5 m
is the same one, and a route is complete where its goal was reached.

What is different, so that scores compare well among themselves and only about with published ones:
our worlds have no lights, stop signs, emergency vehicles or acted scenarios to fail
(`NOT_OBSERVED`), episodes end at the first collision and when the car leaves the road, and they end
earlier off the route (8 m, there 30 m) and blocked (10 s, there 180 s); see
`avtd3.collect.driving.task`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from avtd3.store.errors import ConfigError
from avtd3.store.events import Event

COLLISIONS = ("collisions_pedestrian", "collisions_vehicle", "collisions_layout")
INFRACTIONS = (*COLLISIONS, "outside_route_lanes", "route_dev", "route_timeout", "vehicle_blocked")
"""What is counted, by the names in the leaderboard's result files."""
NOT_OBSERVED = (
    "red_light",
    "stop_infraction",
    "min_speed_infractions",
    "yield_emergency_vehicle_infractions",
    "scenario_timeouts",
)
"""Infractions of the leaderboard that our worlds cannot see."""

_STANDING_MPS = 0.1
_SAME_PLACE_M = 5.0
_COMPLETE = 0.99
_NEAR_GOAL_M = 10.0
_LEAST_KM = 1e-3
_OUTSIDE = ("off_road", "wrong_way")
_ENDS = {"route_deviation": "route_dev", "blocked": "vehicle_blocked", "timeout": "route_timeout"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyTable:
    """One version of the leaderboard's penalties, for what we observe."""

    version: str
    """The leaderboard's, as in ``leaderboard-2.1``."""
    coefficients: Mapping[str, float]
    """By infraction; the others cost nothing but what they cost in completion."""
    is_sum: bool
    """Whether the penalty is ``1 / (1 + sum)``; else the product."""

    def penalty(self, counts: Mapping[str, int], outside: float) -> float:
        """The infraction penalty, in (0, 1].

        Args:
            counts: How often each infraction happened.
            outside: Share of the completed way that was driven outside the route's lanes.
        """
        used = [(self.coefficients[name], counts.get(name, 0)) for name in self.coefficients]
        if self.is_sum:
            found = 1.0 / (1.0 + sum(coefficient * count for coefficient, count in used))
        else:
            found = math.prod(coefficient**count for coefficient, count in used)
        return found * (1.0 - outside)


_SUM = dict(zip(COLLISIONS, (1.0, 0.7, 0.6), strict=True))
_PRODUCT = dict(zip(COLLISIONS, (0.5, 0.6, 0.65), strict=True))
TABLES: Mapping[str, PenaltyTable] = {
    table.version: table
    for table in (
        PenaltyTable(version="leaderboard-1.0", coefficients=_PRODUCT, is_sum=False),
        PenaltyTable(version="leaderboard-2.0", coefficients=_PRODUCT, is_sum=False),
        PenaltyTable(version="leaderboard-2.1", coefficients=_SUM, is_sum=True),
    )
}
"""The published tables by version. 1.0 and 2.0 differ only in what our worlds do not observe."""
CURRENT = "leaderboard-2.1"


def penalty_table(version: str) -> PenaltyTable:
    """A table by its version.

    Raises:
        ConfigError: There is none of this version.
    """
    if version not in TABLES:
        raise ConfigError(f"penalties is {version!r}, expected one of: {', '.join(TABLES)}")
    return TABLES[version]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RouteScore:
    """How the leaderboard judges one episode."""

    version: str
    """Version of the penalties."""
    driving_score: float
    """Completion times penalty, in [0, 100]."""
    completion: float
    """Percent of the route completed, in [0, 100]."""
    penalty: float
    """In (0, 1]."""
    infractions: Mapping[str, int]
    """How often each of `INFRACTIONS` happened; outside the lanes, how many stretches."""
    outside_m: float
    """Metres of the route driven outside its lanes."""
    length_m: float
    """Metres of the route."""

    @property
    def driven_km(self) -> float:
        """Kilometres of the route completed."""
        return self.length_m * self.completion / 100_000.0

    def row(self) -> dict[str, Any]:
        """The score as JSON values, for a row of a table."""
        return {
            "driving_score": self.driving_score,
            "completion_percent": self.completion,
            "infraction_penalty": self.penalty,
            "infractions": {name: count for name, count in self.infractions.items() if count},
            "outside_route_lanes_m": self.outside_m,
            "route_length_m": self.length_m,
        }


def score_route(events: Sequence[Event], table: PenaltyTable) -> RouteScore | None:
    """HeldOutEvaluator an episode.

    Args:
        events: Its events, by step.
        table: What infractions cost.

    Returns:
        The score, or None if the episode's events were not recorded.
    """
    first = {event.kind: event for event in reversed(events)}
    if "route" not in first or "completion" not in first or not first["route"].value > 0.0:
        return None
    length_m, done_m = first["route"].value, first["completion"].value
    counts = dict.fromkeys(INFRACTIONS, 0)
    for event in _counted(events):
        if name := _infraction(event):
            counts[name] += 1
    outside_m = sum(event.value for event in events if event.kind in _OUTSIDE)
    share = min(max(outside_m / done_m, 0.0), 1.0) if done_m > 0.0 else 0.0
    penalty = table.penalty(counts, share)
    completion = 100.0 * _completion(length_m, done_m, is_goal="goal" in first)
    return RouteScore(
        version=table.version,
        driving_score=completion * penalty,
        completion=completion,
        penalty=penalty,
        infractions=counts,
        outside_m=outside_m,
        length_m=length_m,
    )


def _completion(length_m: float, done_m: float, *, is_goal: bool) -> float:
    share = min(max(done_m / length_m, 0.0), 1.0)
    is_near = share > _COMPLETE and length_m - done_m < _NEAR_GOAL_M
    return 1.0 if is_goal or is_near else share


def _counted(events: Sequence[Event]) -> list[Event]:
    """The events without collisions that are not the car's own or the same as one before."""
    found: list[Event] = []
    last: Event | None = None
    for event in events:
        if event.kind == "collision":
            if event.value < _STANDING_MPS:
                continue
            if last and math.hypot(event.x_m - last.x_m, event.y_m - last.y_m) <= _SAME_PLACE_M:
                continue
            last = event
        found.append(event)
    return found


def _infraction(event: Event) -> str:
    """The leaderboard's name for an event, or an empty string for none."""
    if event.kind in _OUTSIDE:
        return "outside_route_lanes"
    if event.kind != "collision":
        return _ENDS.get(event.kind, "")
    subject = event.subject
    if ("static" in subject or "traffic" in subject) and "sidewalk" not in subject:
        return "collisions_layout"
    if "vehicle" in subject:
        return "collisions_vehicle"
    return "collisions_pedestrian" if "walker" in subject else ""


def summarise_routes(scores: Sequence[RouteScore]) -> dict[str, Any]:
    """What the leaderboard says of all episodes together, as JSON values.

    Args:
        scores: The episodes, at least one, all judged by one table.

    Returns:
        Means over the episodes, and infractions per kilometre completed, at least one metre.
    """
    km = max(sum(score.driven_km for score in scores), _LEAST_KM)
    count = len(scores)
    return {
        "penalties": scores[0].version,
        "episodes": count,
        "driving_score": sum(score.driving_score for score in scores) / count,
        "completion_percent": sum(score.completion for score in scores) / count,
        "infraction_penalty": sum(score.penalty for score in scores) / count,
        "infractions_per_km": {
            name: sum(score.infractions[name] for score in scores) / km for name in INFRACTIONS
        },
        "outside_route_lanes_km": sum(score.outside_m for score in scores) / 1000.0,
        "driven_km": sum(score.driven_km for score in scores),
        "not_observed": list(NOT_OBSERVED),
    }
