"""The result of an audit: `AuditReport`, also as a JSON document."""

import dataclasses
from typing import Literal, Self

from avtd3.store.audit.findings import Finding, FindingLog, WorstEpisode
from avtd3.store.audit.statistics import Summary

Verdict = Literal["ok", "warnings", "errors"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What one dataset holds."""

    path: str
    summary: Summary
    staging: int
    """Unpublished segments in ``.staging/``."""
    quarantined: int
    """Segments in ``quarantine/``."""

    def including(self, summary: Summary) -> Self:
        """The same report with another segment in it."""
        return dataclasses.replace(self, summary=self.summary.merge(summary))

    def document(self) -> dict[str, object]:
        """The report as a JSON object."""
        return {
            "path": self.path,
            "staging": self.staging,
            "quarantined": self.quarantined,
            **self.summary.document(),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found."""

    datasets: tuple[DatasetReport, ...]
    total: Summary
    """All datasets together."""
    log: FindingLog
    damaged: tuple[tuple[str, str], ...]
    """Dataset and id of each segment with an error."""
    worst: tuple[WorstEpisode, ...]
    """The episodes with the most findings, worst first."""
    windows: tuple[Summary, ...]
    """Of the sets of episodes that were to be summarised apart."""
    gamma: float
    """Discount of a step."""
    strict: bool
    """Whether warnings count as errors."""
    sample: float
    """Share of the segments whose data was read."""
    complete: bool
    """False if the audit was stopped before its end."""
    seconds: float
    """Wall-clock time."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings kept, errors first."""
        return self.log.findings()

    @property
    def verdict(self) -> Verdict:
        """``errors`` if there is any, else ``warnings`` if there is any, else ``ok``."""
        warnings = self.log.count("warning") > 0
        if self.log.count("error") or (self.strict and warnings):
            return "errors"
        return "warnings" if warnings else "ok"

    @property
    def q_bound(self) -> float:
        """Size that no Q can exceed: the largest reward seen, for ever."""
        return self.total.largest_reward / (1.0 - self.gamma)

    def document(self) -> dict[str, object]:
        """The report as a JSON object; everything in it is finite."""
        return {
            "verdict": self.verdict,
            **self.total.document(),
            "findings": [finding.document() for finding in self.findings],
            "finding_counts": dict(self.log.counts),
            "errors": self.log.count("error"),
            "warnings": self.log.count("warning"),
            "infos": self.log.count("info"),
            "damaged": [{"dataset": dataset, "segment": name} for dataset, name in self.damaged],
            "worst": [worst.document() for worst in self.worst],
            "windows": [window.document() for window in self.windows],
            "gamma": self.gamma,
            "q_bound": self.q_bound,
            "datasets": [dataset.document() for dataset in self.datasets],
            "strict": self.strict,
            "sample": self.sample,
            "complete": self.complete,
            "seconds": self.seconds,
        }
