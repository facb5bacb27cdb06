"""The CARLA leaderboard's driving score: of one episode, and of every episode in a dataset.

The score of a route is the product of its completion in percent and its infraction penalty
(https://leaderboard.carla.org/evaluation_v2_1), computed from the episode's stored events. The
penalty starts at 1 and falls with every infraction, by a table that differs between versions:

- 2.1: ``1 / (1 + sum of the coefficients)``; 1.0 and 2.0: the product of the coefficients.
- All versions multiply by ``1 - outside``, where ``outside`` is the fraction of the completed route
  that was driven off the road or in a lane of the opposite direction.

Numbers as in carla-simulator/leaderboard, file leaderboard/utils/statistics_manager.py: branches
leaderboard-1.0 (2165f5e, 2023-06), leaderboard-2.0 (a87a341, 2024-04), leaderboard-2.1 (cfecdc8,
2025-03). Events count by the rules of carla-simulator/scenario_runner, file atomic_criteria.py.

Scores compare only roughly with published ones: our worlds have no stop signs, emergency vehicles
or scripted scenarios, only CARLA has traffic lights, and episodes end at the first collision, when
the car leaves the road, and earlier off the route (8 m, not 30 m) or blocked (10 s, not 180 s).
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.dataset import Dataset
from avtd3.store.errors import SEGMENT_ERRORS, ConfigError
from avtd3.store.events import Event
from avtd3.store.render.text import columns, join_lines, plural, printable
from avtd3.store.segment import Segment

COLLISIONS = ("collisions_pedestrian", "collisions_vehicle", "collisions_layout")
RED_LIGHT = "red_light"
_PRICED = (*COLLISIONS, RED_LIGHT)
INFRACTIONS = (*_PRICED, "outside_route_lanes", "route_dev", "route_timeout", "vehicle_blocked")
"""Infractions that are counted, named as in the leaderboard's result files."""
NOT_OBSERVED = (
    "stop_infraction",
    "min_speed_infractions",
    "yield_emergency_vehicle_infractions",
    "scenario_timeouts",
)
"""Infractions of the leaderboard that our worlds do not observe."""

_STANDING_MPS, _SAME_PLACE_M = 0.1, 5.0
_COMPLETE, _NEAR_GOAL_M = 0.99, 10.0
_LEAST_KM = 1e-3
_OUTSIDE = ("off_road", "wrong_way")
_NAMES = {
    "red_light": RED_LIGHT,
    "route_deviation": "route_dev",
    "blocked": "vehicle_blocked",
    "timeout": "route_timeout",
}


@dataclasses.dataclass(frozen=True, slots=True)
class PenaltyTable:
    """One version of the leaderboard's penalties, for the infractions that we observe."""

    version: str
    coefficients: Mapping[str, float]
    """Coefficient of each infraction; the others only reduce the completion."""
    is_sum: bool
    """Whether the penalty is ``1 / (1 + sum)``; else the product."""

    def penalty(self, counts: Mapping[str, int], outside: float) -> float:
        """Return the infraction penalty, in (0, 1]."""
        used = [(cost, counts.get(name, 0)) for name, cost in self.coefficients.items()]
        if self.is_sum:
            return 1.0 / (1.0 + sum(cost * count for cost, count in used)) * (1.0 - outside)
        return math.prod(cost**count for cost, count in used) * (1.0 - outside)


_SUM = dict(zip(_PRICED, (1.0, 0.7, 0.6, 0.4), strict=True))
_PRODUCT = dict(zip(_PRICED, (0.5, 0.6, 0.65, 0.7), strict=True))
CURRENT = "leaderboard-2.1"
TABLES: Mapping[str, PenaltyTable] = {
    "leaderboard-1.0": PenaltyTable("leaderboard-1.0", _PRODUCT, is_sum=False),
    "leaderboard-2.0": PenaltyTable("leaderboard-2.0", _PRODUCT, is_sum=False),
    CURRENT: PenaltyTable(CURRENT, _SUM, is_sum=True),
}
"""The published tables by version; 1.0 and 2.0 differ only in what our worlds do not observe."""


def penalty_table(version: str) -> PenaltyTable:
    """Return a table by its version."""
    if version not in TABLES:
        raise ConfigError(f"penalties is {version!r}, expected one of: {', '.join(TABLES)}")
    return TABLES[version]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RouteScore:
    """The leaderboard's score of one episode."""

    version: str
    completion: float
    """Percent of the route completed, in [0, 100]."""
    penalty: float
    infractions: Mapping[str, int]
    """How often each of `INFRACTIONS` happened; for stretches outside the lanes, their number."""
    outside_m: float
    length_m: float

    @property
    def driving_score(self) -> float:
        """Completion multiplied by the penalty, in [0, 100]."""
        return self.completion * self.penalty

    @property
    def driven_km(self) -> float:
        """Kilometres of the route completed."""
        return self.length_m * self.completion / 100_000.0

    def row(self) -> dict[str, Any]:
        """Return the score as JSON values, for a row of a table."""
        return {
            "driving_score": self.driving_score,
            "completion_percent": self.completion,
            "infraction_penalty": self.penalty,
            "infractions": {name: count for name, count in self.infractions.items() if count},
            "outside_route_lanes_m": self.outside_m,
            "route_length_m": self.length_m,
        }


def score_route(events: Sequence[Event], table: PenaltyTable) -> RouteScore | None:
    """Score an episode."""
    first = {event.kind: event for event in reversed(events)}
    if "route" not in first or "completion" not in first or not first["route"].value > 0.0:
        return None
    length_m, done_m = first["route"].value, first["completion"].value
    counts = dict.fromkeys(INFRACTIONS, 0)
    for event in _counted(events):
        if name := _infraction(event):
            counts[name] += 1
    outside_m = sum(event.value for event in events if event.kind in _OUTSIDE)
    outside = min(max(outside_m / done_m, 0.0), 1.0) if done_m > 0.0 else 0.0
    share = min(max(done_m / length_m, 0.0), 1.0)
    if "goal" in first or (share > _COMPLETE and length_m - done_m < _NEAR_GOAL_M):
        share = 1.0
    return RouteScore(
        version=table.version,
        completion=100.0 * share,
        penalty=table.penalty(counts, outside),
        infractions=counts,
        outside_m=outside_m,
        length_m=length_m,
    )


def _counted(events: Sequence[Event]) -> list[Event]:
    """Return the events without collisions of a standing car and without repeated collisions."""
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
    """Return the leaderboard's name for an event, or an empty string if it has none."""
    if event.kind in _OUTSIDE:
        return "outside_route_lanes"
    if event.kind != "collision":
        return _NAMES.get(event.kind, "")
    subject = event.subject
    if ("static" in subject or "traffic" in subject) and "sidewalk" not in subject:
        return "collisions_layout"
    if "vehicle" in subject:
        return "collisions_vehicle"
    return "collisions_pedestrian" if "walker" in subject else ""


def summarise_routes(scores: Sequence[RouteScore]) -> dict[str, Any]:
    """Aggregate the leaderboard's scores of several episodes, as JSON values."""
    count, driven_km = len(scores), sum(score.driven_km for score in scores)
    counts = {name: sum(score.infractions[name] for score in scores) for name in INFRACTIONS}
    return {
        "penalties": scores[0].version,
        "episodes": count,
        "driving_score": sum(score.driving_score for score in scores) / count,
        "completion_percent": sum(score.completion for score in scores) / count,
        "infraction_penalty": sum(score.penalty for score in scores) / count,
        "infractions_per_km": {k: n / max(driven_km, _LEAST_KM) for k, n in counts.items()},
        "outside_route_lanes_km": sum(score.outside_m for score in scores) / 1000.0,
        "driven_km": driven_km,
        "not_observed": list(NOT_OBSERVED),
    }


_SHOWN = 5
_NO_EVENTS = "no events are stored: collected by an older version, or without a road"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredScore:
    """The score of one stored episode."""

    dataset: str
    segment: str
    episode: int
    index: int
    """Its index in the collector's plan; -1 if unknown."""
    scenario: int
    town: str
    driver: str
    end_reason: str
    route: RouteScore

    def document(self) -> dict[str, Any]:
        """Return the score as JSON values."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        route = known.pop("route")
        return {**known, **route.row()}


@dataclasses.dataclass(frozen=True, slots=True)
class Unscored:
    """Episodes of one segment that have no score."""

    dataset: str
    segment: str
    episodes: tuple[int, ...]
    """Their numbers in the segment; empty if the segment cannot be read."""
    reason: str

    def line(self) -> str:
        """Return one line that says which episodes and why."""
        numbers = ", ".join(map(str, self.episodes[:_SHOWN]))
        more = ", ..." if len(self.episodes) > _SHOWN else ""
        which = (
            f"{plural(len(self.episodes), 'episode')} ({numbers}{more}): " if self.episodes else ""
        )
        return f"{self.segment}: {which}{self.reason}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """The scores of all episodes of some datasets."""

    version: str
    scores: tuple[StoredScore, ...]
    unscored: tuple[Unscored, ...]

    @property
    def routes(self) -> list[RouteScore]:
        """The leaderboard's scores."""
        return [score.route for score in self.scores]

    @property
    def by_driver(self) -> dict[str, list[RouteScore]]:
        """The scores by driver."""
        found: dict[str, list[RouteScore]] = collections.defaultdict(list)
        for score in self.scores:
            found[score.driver].append(score.route)
        return dict(sorted(found.items()))

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "penalties": self.version,
            "not_observed": list(NOT_OBSERVED),
            "all": summarise_routes(self.routes) if self.scores else None,
            "by_driver": {name: summarise_routes(rows) for name, rows in self.by_driver.items()},
            "rows": [score.document() for score in self.scores],
            "unscored": [dataclasses.asdict(entry) for entry in self.unscored],
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows of a table: one row per driver, and one for all if several."""
        heads = ["driver", "episodes", "driving score", "completed", "penalty", "collisions/km"]
        groups = list(self.by_driver.items())
        if len(groups) > 1:
            groups.append(("all", self.routes))
        return heads, [[name, *_figures(routes)] for name, routes in groups]

    def rates(self) -> list[tuple[str, float]]:
        """Return the infractions per kilometre over all episodes, without those that are 0."""
        if not self.scores:
            return []
        rates = summarise_routes(self.routes)["infractions_per_km"]
        return [(name, rate) for name, rate in rates.items() if rate]

    def summary(self) -> str:
        """Return the report as text."""
        lines = [f"scores  CARLA {self.version}, {plural(len(self.scores), 'episode')}"]
        if self.scores:
            heads, rows = self.table()
            lines += [f"  {line}" for line in columns([heads, *rows], "<>>>>>")]
            rates = ", ".join(f"{name} {rate:.2f}" for name, rate in self.rates()) or "none"
            lines.append(f"  infractions per km: {rates}")
            lines.append(f"  not observed: {', '.join(NOT_OBSERVED)}")
        lines += [f"  without a score: {entry.line()}" for entry in self.unscored[:_SHOWN]]
        if len(self.unscored) > _SHOWN:
            lines.append(f"  ... and {len(self.unscored) - _SHOWN} more segments")
        return join_lines(map(printable, lines))


def _figures(routes: Sequence[RouteScore]) -> list[str]:
    found = summarise_routes(routes)
    hits = sum(found["infractions_per_km"][name] for name in COLLISIONS)
    return [
        f"{found['episodes']:,}",
        f"{found['driving_score']:.1f}",
        f"{found['completion_percent']:.1f} %",
        f"{found['infraction_penalty']:.3f}",
        f"{hits:.2f}",
    ]


def score_datasets(
    paths: Sequence[Path], table: PenaltyTable, should_stop: Callable[[], bool] = lambda: False
) -> ScoreReport:
    """Score every episode of some datasets from its stored events."""
    scores: list[StoredScore] = []
    unscored: list[Unscored] = []
    for path in paths:
        snapshot = Dataset.open(path).snapshot()
        unscored += [Unscored(str(path), e.segment_id, (), e.reason) for e in snapshot.refused]
        for segment in snapshot.segments:
            if should_stop():
                break
            try:
                found, missing = _score_segment(path, segment, table)
            except SEGMENT_ERRORS as error:
                unscored.append(Unscored(str(path), segment.id, (), str(error)))
                continue
            scores += found
            if missing:
                unscored.append(Unscored(str(path), segment.id, tuple(missing), _NO_EVENTS))
    return ScoreReport(version=table.version, scores=tuple(scores), unscored=tuple(unscored))


def _score_segment(
    path: Path, segment: Segment, table: PenaltyTable
) -> tuple[list[StoredScore], list[int]]:
    """Return the scores of a segment's episodes, and the numbers of those without events."""
    known, events = segment.episode_table(), segment.events()
    scores: list[StoredScore] = []
    missing: list[int] = []
    for number in range(segment.episodes):
        route = score_route(() if events is None else events.of_episode(number), table)
        if route is None:
            missing.append(number)
            continue
        scores.append(
            StoredScore(
                dataset=str(path),
                segment=segment.id,
                episode=number,
                index=int(known.index[number]),
                scenario=int(known.numbers("scenario")[number]),
                town=known.texts("town")[number],
                driver=known.texts("driver")[number],
                end_reason=known.end_reason[number],
                route=route,
            )
        )
    return scores, missing
