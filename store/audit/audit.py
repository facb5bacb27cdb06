"""The audit of datasets: every segment by itself, in waves, on Dask's threads or a cluster.

Decoding and hashing release the interpreter's lock, so threads scale. A wave holds a few segments
per worker and only summaries outlive it: memory is bounded by the wave, not by the dataset.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.audit.collation import AuditProgress, Collation
from avtd3.store.audit.evidence import CheckLimits
from avtd3.store.audit.report import AuditReport
from avtd3.store.audit.segment_audit import SegmentAudit, SegmentTask, audit_segment
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.filters import EpisodeFilter

__all__ = ["AuditConfig", "AuditProgress", "AuditReport", "audit", "quarantine_damaged"]

SEGMENTS_PER_WORKER = 4
"""Size of a wave: enough that no thread waits long for the slowest segment."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """How thorough an audit is."""

    sample: float = 1.0
    """Share of the segments whose data is read, chosen by a hash of their ids: the same on every
    machine and stable as a dataset grows. Manifests and file sizes are checked in any case."""
    strict: bool = False
    """Whether warnings count as errors in the verdict."""
    full: bool = False
    """Whether to hash again the files whose checksums an earlier audit verified; they are known
    by size, mtime and inode."""
    gamma: float = 0.99
    """Discount of a step, for the largest discounted return and the bound of Q."""
    limits: CheckLimits = dataclasses.field(default_factory=CheckLimits)
    """What the checks still accept."""
    max_findings_per_check: int = 20
    """Findings kept per check; all are counted."""
    scheduler: str = "threads"
    """``threads``, ``sync`` (one after the other), or the address of a Dask cluster whose workers
    see the datasets under the same paths."""
    workers: int = 0
    """Threads, or segments in flight on a cluster; 0 means one per core."""

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("sample", 0.0 < self.sample <= 1.0, "above 0 and at most 1"),
            ("gamma", 0.0 <= self.gamma < 1.0, "0 or more and below 1"),
            ("max_findings_per_check", self.max_findings_per_check >= 1, "1 or more"),
            ("scheduler", bool(self.scheduler), "threads, sync or an address"),
            ("workers", self.workers >= 0, "0 or more"),
        ):
            if not holds:
                raise ConfigError(f"audit.{name} is {getattr(self, name)!r}, expected {allowed}")


def audit(
    paths: Sequence[Path],
    config: AuditConfig | None = None,
    *,
    windows: Sequence[EpisodeFilter] = (),
    on_progress: Callable[[AuditProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> AuditReport:
    """Judge datasets; what is wrong with the data becomes findings, never an exception.

    Args:
        paths: The datasets, audited together: duplicates between them are found.
        config: How thorough to be.
        windows: Sets of episodes to summarise apart, in `AuditReport.windows`.
        on_progress: Told after each segment.
        should_stop: Asked before each wave; True ends the audit with what it has.

    Raises:
        DatasetError: A path is missing or is no dataset.
        ConfigError: The cluster cannot be reached.
    """
    config = config or AuditConfig()
    start = time.perf_counter()
    task = SegmentTask(
        dataset="",
        segment_id="",
        judged=True,
        limits=config.limits,
        max_findings=config.max_findings_per_check,
        gamma=config.gamma,
        windows=tuple(windows),
    )
    collation = Collation(task, sample=config.sample, full=config.full)
    tasks = [task for path in paths for task in collation.begin(path)]
    stopped = False
    with _scheduler(config) as compute:
        for wave in _waves(tasks, SEGMENTS_PER_WORKER * _workers(config)):
            if stopped := should_stop():
                break
            for result in compute(wave):
                collation.take(result)
                if on_progress is not None:
                    on_progress(collation.progress(len(tasks)))
    return collation.report(
        seconds=time.perf_counter() - start, complete=not stopped, strict=config.strict
    )


def quarantine_damaged(report: AuditReport) -> tuple[str, ...]:
    """Move each segment with an error into its dataset's ``quarantine/``.

    Returns:
        Ids of the segments moved.

    Raises:
        StorageError: A dataset is not writable.
    """
    for dataset, segment_id in report.damaged:
        Dataset.open(Path(dataset)).quarantine(segment_id)
    return tuple(segment_id for _, segment_id in report.damaged)


def _workers(config: AuditConfig) -> int:
    return 1 if config.scheduler == "sync" else config.workers or os.cpu_count() or 1


def _waves(tasks: list[SegmentTask], size: int) -> Iterator[list[SegmentTask]]:
    for number in range(math.ceil(len(tasks) / size)):
        yield tasks[number * size : (number + 1) * size]


@contextlib.contextmanager
def _scheduler(
    config: AuditConfig,
) -> Iterator[Callable[[list[SegmentTask]], Sequence[SegmentAudit]]]:
    """What computes a wave: threads, this thread, or a cluster."""
    from dask.base import compute
    from dask.delayed import delayed

    options: dict[str, Any] = {"scheduler": config.scheduler}
    with contextlib.ExitStack() as stack:
        if config.scheduler == "threads":
            options["num_workers"] = _workers(config)
        elif config.scheduler != "sync":
            options["scheduler"] = stack.enter_context(_cluster(config.scheduler))

        def run(wave: list[SegmentTask]) -> Sequence[SegmentAudit]:
            tasks = [delayed(audit_segment, pure=False)(task) for task in wave]
            results: Sequence[SegmentAudit] = compute(*tasks, **options)  # type: ignore[no-untyped-call]  # as dask ships it
            return results

        yield run


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        message = f"audit.scheduler is {address!r}, which needs: pip install distributed"
        raise ConfigError(message) from error
    open_client: Any = Client  # whether its calls are typed depends on its version
    try:
        client = open_client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"audit.scheduler {address!r} does not answer as a Dask scheduler ({error}); "
            "expected threads, sync or an address such as tcp://host:8786"
        ) from error
    with client:
        yield client
