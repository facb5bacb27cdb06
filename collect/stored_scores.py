"""Driving scores of the episodes that datasets hold, computed again from their stored events."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from avtd3.collect.leaderboard import (
    NOT_OBSERVED,
    PenaltyTable,
    RouteScore,
    score_route,
    summarise_routes,
)
from avtd3.store.dataset import Dataset
from avtd3.store.errors import SegmentCorruptError, SegmentNotFoundError
from avtd3.store.render.episode_text import printable
from avtd3.store.segment import Segment

_NAMED = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredScore:
    """The score of one stored episode."""

    dataset: str
    """Path of the dataset."""
    segment: str
    """Id of the segment."""
    episode: int
    """Number of the episode in it."""
    index: int
    """Its position in the collector's plan, -1 if unknown."""
    scenario: int
    """Number of its scenario."""
    town: str
    """Name of its road network."""
    driver: str
    """Who drove."""
    end_reason: str
    """Why it ended."""
    route: RouteScore
    """How the leaderboard would judge it."""

    def document(self) -> dict[str, Any]:
        """The score as JSON values."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        route = known.pop("route")
        return {**known, **route.row()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """Episodes of one segment that have no score."""

    dataset: str
    segment: str
    episodes: tuple[int, ...]
    """Their numbers in the segment; empty if that cannot be told."""
    reason: str
    """Why: no events, or what is wrong with the segment."""

    def line(self) -> str:
        """Which and why, in one line."""
        numbers = ", ".join(map(str, self.episodes[:_NAMED]))
        more = ", ..." if len(self.episodes) > _NAMED else ""
        which = f"{len(self.episodes)} episodes ({numbers}{more}): " if self.episodes else ""
        return f"{self.segment}: {which}{self.reason}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """What the stored events say about the driving."""

    version: str
    """Version of the leaderboard's penalties."""
    scores: tuple[StoredScore, ...]
    """Every episode with events, in the order of the segments."""
    unscored: tuple[Unscored, ...]
    """Every episode without."""

    @property
    def by_driver(self) -> dict[str, list[RouteScore]]:
        """The scores of each driver, by name."""
        found: dict[str, list[RouteScore]] = collections.defaultdict(list)
        for score in self.scores:
            found[score.driver].append(score.route)
        return dict(sorted(found.items()))

    def document(self) -> dict[str, Any]:
        """The report as JSON values."""
        routes = [score.route for score in self.scores]
        return {
            "penalties": self.version,
            "not_observed": list(NOT_OBSERVED),
            "all": summarise_routes(routes) if routes else None,
            "by_driver": {name: summarise_routes(rows) for name, rows in self.by_driver.items()},
            "rows": [score.document() for score in self.scores],
            "unscored": [dataclasses.asdict(entry) for entry in self.unscored],
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of a table: one for each driver, and one for all if there are several."""
        heads = ["driver", "episodes", "driving score", "completed", "penalty", "collisions/km"]
        groups = list(self.by_driver.items())
        if len(groups) > 1:
            groups.append(("all", [score.route for score in self.scores]))
        return heads, [[name, *_figures(routes)] for name, routes in groups]

    def rates(self) -> list[tuple[str, float]]:
        """Infractions per kilometre over all episodes: those that happened, by name."""
        if not self.scores:
            return []
        found = summarise_routes([score.route for score in self.scores])
        return [(name, rate) for name, rate in found["infractions_per_km"].items() if rate]

    def summary(self) -> str:
        """The report for a person."""
        lines = [f"scores  CARLA {self.version}, {len(self.scores)} episodes"]
        if self.scores:
            heads, rows = self.table()
            lines += [f"  {line}" for line in _aligned([heads, *rows])]
            told = ", ".join(f"{name} {rate:.2f}" for name, rate in self.rates()) or "none"
            lines.append(f"  infractions per km: {told}")
            lines.append(f"  not observed: {', '.join(NOT_OBSERVED)}")
        lines += [f"  without a score: {entry.line()}" for entry in self.unscored[:_NAMED]]
        if len(self.unscored) > _NAMED:
            lines.append(f"  ... and of {len(self.unscored) - _NAMED} more segments")
        return "\n".join(map(printable, lines))


def _figures(routes: Sequence[RouteScore]) -> list[str]:
    found = summarise_routes(routes)
    hits = sum(
        rate for name, rate in found["infractions_per_km"].items() if name.startswith("collisions")
    )
    return [
        f"{found['episodes']:,}",
        f"{found['driving_score']:.1f}",
        f"{found['completion_percent']:.1f} %",
        f"{found['infraction_penalty']:.3f}",
        f"{hits:.2f}",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of text as lines, the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        figures = zip(row[1:], widths[1:], strict=True)
        yield "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in figures)])


def judge_datasets(
    paths: Sequence[Path], table: PenaltyTable, should_stop: Callable[[], bool] = lambda: False
) -> ScoreReport:
    """Score every episode of some datasets from its stored events.

    Args:
        paths: The datasets.
        table: What infractions cost.
        should_stop: Asked before each segment; true ends the reading there.

    Raises:
        DatasetError: A path is no dataset.
    """
    scores: list[StoredScore] = []
    unscored: list[Unscored] = []
    for path in paths:
        snapshot = Dataset.open(path).snapshot()
        unscored += [
            Unscored(dataset=str(path), segment=entry.segment_id, episodes=(), reason=entry.reason)
            for entry in snapshot.refused
        ]
        for segment in snapshot.segments:
            if should_stop():
                break
            try:
                found, without = _judge_segment(path, segment, table)
            except (SegmentCorruptError, SegmentNotFoundError) as error:
                found, without = [], _without(path, segment, (), str(error))
            scores += found
            unscored += without
    return ScoreReport(version=table.version, scores=tuple(scores), unscored=tuple(unscored))


def _without(path: Path, segment: Segment, episodes: Sequence[int], reason: str) -> list[Unscored]:
    return [
        Unscored(dataset=str(path), segment=segment.id, episodes=tuple(episodes), reason=reason)
    ]


def _judge_segment(
    path: Path, segment: Segment, table: PenaltyTable
) -> tuple[list[StoredScore], list[Unscored]]:
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
                scenario=int(known.scenario[number]),
                town=known.town[number],
                driver=known.driver[number],
                end_reason=known.end_reason[number],
                route=route,
            )
        )
    reason = "no events are stored; they were collected before events were, or on no road"
    return scores, _without(path, segment, missing, reason) if missing else []
