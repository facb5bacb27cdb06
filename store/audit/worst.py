"""The episodes with the most findings: where a person looks first."""

import dataclasses
import heapq
from collections import Counter

from avtd3.store.audit.findings import FindingLog

KEPT = 10
"""Episodes told."""
ERROR_WEIGHT = 1000
"""One error outweighs this many warnings."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorstEpisode:
    """An episode, and the checks that found something in it."""

    dataset: str
    segment: str
    episode: int
    errors: int
    warnings: int
    checks: tuple[str, ...]
    """Names, errors first."""

    @property
    def weight(self) -> tuple[int, str, int]:
        """Larger is worse; the place decides between equals."""
        return ERROR_WEIGHT * self.errors + self.warnings, self.segment, self.episode

    def document(self) -> dict[str, object]:
        """The episode as a JSON object."""
        return {**dataclasses.asdict(self), "checks": list(self.checks)}


def worst_episodes(known: tuple[WorstEpisode, ...], log: FindingLog) -> tuple[WorstEpisode, ...]:
    """The `KEPT` worst of those known and those of one more segment's log, worst first."""
    checks: dict[tuple[str, str, int], list[str]] = {}
    severities: Counter[tuple[tuple[str, str, int], str]] = Counter()
    for finding in log.findings():
        if finding.episode is not None and finding.severity != "info":
            place = (finding.dataset, finding.segment, finding.episode)
            checks.setdefault(place, []).append(finding.check)
            severities[place, finding.severity] += 1
    found = (
        WorstEpisode(
            dataset=place[0],
            segment=place[1],
            episode=place[2],
            errors=severities[place, "error"],
            warnings=severities[place, "warning"],
            checks=tuple(dict.fromkeys(names)),
        )
        for place, names in checks.items()
    )
    return tuple(heapq.nlargest(KEPT, (*known, *found), key=lambda worst: worst.weight))
