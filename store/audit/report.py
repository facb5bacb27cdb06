"""The result of an audit: `AuditReport`."""

import dataclasses
import math
from typing import Any, Literal

from avtd3.store.audit.findings import Finding, FindingLog, WorstEpisode
from avtd3.store.audit.segment_audit import SegmentTask
from avtd3.store.audit.statistics import Summary

Verdict = Literal["ok", "warnings", "unreadable", "errors"]


def json_safe(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a document that every reader of JSON accepts.

    Numbers that are not finite become None. Lone surrogates, such as bytes of a file name that are
    not UTF-8, become visible.
    """
    if isinstance(value, dict):
        return {json_safe(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(json_safe, value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """The contents of one dataset, and its numbers of unpublished and quarantined segments."""

    path: str
    summary: Summary
    staging: int
    quarantined: int

    def document(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        return {
            "path": self.path,
            "staging": self.staging,
            "quarantined": self.quarantined,
            **self.summary.document(),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The result of `audit`: the verdict, the findings, and a summary of the data.

    Example:
        >>> from avtd3.store import audit_datasets
        >>> report = audit_datasets([])  # paths of datasets
        >>> report.verdict, report.findings, report.total.episodes
        ('ok', (), 0)
    """

    datasets: tuple[DatasetReport, ...]
    """The contents of each dataset."""
    total: Summary
    """The contents of all datasets together."""
    log: FindingLog
    """The findings, and the number of findings of each check."""
    worst: tuple[WorstEpisode, ...]
    """The episodes with the most findings, worst first."""
    windows: tuple[Summary, ...]
    """The contents of each set of episodes that `audit` was asked to summarise separately."""
    gamma: float
    """Discount per step."""
    strict: bool
    """Whether warnings count as errors."""
    sample: float
    """Share of the segments whose data was read."""
    complete: bool
    """Whether the audit ran to its end."""
    seconds: float
    """Wall-clock time of the audit."""
    damaged_tasks: tuple[SegmentTask, ...] = ()
    """The tasks of the damaged segments, with which they can be audited again."""
    not_copied: tuple[str, ...] = ()
    """Why segments of URLs were not audited: their bytes are not those of their manifests."""

    @property
    def damaged(self) -> tuple[tuple[str, str], ...]:
        """Return dataset and id of each segment with an error."""
        return tuple((task.dataset, task.segment_id) for task in self.damaged_tasks)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the findings that were kept, errors first."""
        return self.log.findings()

    @property
    def verdict(self) -> Verdict:
        """Return the worst of ``errors``, ``unreadable``, ``warnings`` and ``ok``.

        Of a strict report, warnings are errors. ``unreadable`` says that something could not be
        read because of an I/O error, so that the audit is not complete.
        """
        if self.log.count("error"):
            return "errors"
        if self.log.counts.get("unreadable"):
            return "unreadable"
        if self.log.count("warning"):
            return "errors" if self.strict else "warnings"
        return "ok"

    @property
    def q_bound(self) -> float:
        """Return the largest possible magnitude of Q: the largest reward at every step, forever."""
        return self.total.largest_reward / (1.0 - self.gamma)

    def document(self) -> dict[str, object]:
        """Return the report as a JSON object, in which all numbers are finite."""
        document: dict[str, object] = {
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
        safe: dict[str, object] = json_safe(document)
        return safe
