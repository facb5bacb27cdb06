"""Audit datasets: `audit` checks them, summarises what they contain, and changes nothing.

`segment_audit` checks each segment by itself. This module plans the work, runs it on threads or a
Dask cluster, adds up the results, and compares segments and datasets with each other.
"""

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.checks import CheckLimits
from avtd3.store.audit.duplicates import DuplicateFinder
from avtd3.store.audit.findings import Fault, FindingLog, WorstEpisode, worst_episodes
from avtd3.store.audit.integrity import VerifiedSegments
from avtd3.store.audit.report import AuditReport, DatasetReport
from avtd3.store.audit.segment_audit import SegmentAudit, SegmentTask, audit_segment
from avtd3.store.audit.statistics import Summary
from avtd3.store.dataset import Dataset
from avtd3.store.errors import Avtd3Error, ConfigError
from avtd3.store.filters import EpisodeFilter
from avtd3.store.replaced import replaced_ids

DOMINANT_SHARE = 0.9
"""Share of one reward term above which the other terms have almost no effect."""
SEGMENTS_PER_WORKER = 4
"""Segments per worker that are handed out together, so that few workers wait for the slowest."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """Settings of `audit`: how thorough it is, and where it runs.

    Example:
        >>> from avtd3.store import AuditConfig
        >>> AuditConfig(sample=0.05, strict=True).max_findings_per_check
        20
    """

    sample: float = 1.0
    """Share of the segments whose data is read. Segments are selected by a hash of their ids: the
    same ones on every machine, also when the dataset grows. Manifests and file sizes are always
    checked."""
    strict: bool = False
    """Whether warnings count as errors in the verdict."""
    full: bool = False
    """Whether to hash files again whose checksums an earlier audit verified and whose size, mtime
    and inode are unchanged."""
    gamma: float = 0.99
    """Discount per step, for the largest discounted return and the bound of Q."""
    limits: CheckLimits = dataclasses.field(default_factory=CheckLimits)
    """Limits of the checks."""
    max_findings_per_check: int = 20
    """Findings that are kept per check; all are counted."""
    scheduler: str = "threads"
    """``threads``, ``sync`` (one segment after the other), or the address of a Dask cluster whose
    workers see the datasets under the same paths."""
    workers: int = 0
    """Threads, or segments in flight on a cluster; 0 means one per core."""

    def __post_init__(self) -> None:
        for name, is_valid, allowed in (
            ("sample", 0.0 < self.sample <= 1.0, "above 0 and at most 1"),
            ("gamma", 0.0 <= self.gamma < 1.0, "0 or more and below 1"),
            ("max_findings_per_check", self.max_findings_per_check >= 1, "1 or more"),
            ("scheduler", bool(self.scheduler), "threads, sync or an address"),
            ("workers", self.workers >= 0, "0 or more"),
        ):
            if not is_valid:
                raise ConfigError(f"audit.{name} is {getattr(self, name)!r}, expected {allowed}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditProgress:
    """Progress of an audit."""

    segments_done: int
    """Segments that were audited."""
    segments_total: int
    """Segments to audit."""
    steps: int
    """Steps in the audited segments."""
    errors: int
    """Errors found so far."""
    warnings: int
    """Warnings found so far."""

    @property
    def fraction(self) -> float:
        """Return the share of the segments that were audited, in [0, 1]."""
        return self.segments_done / max(1, self.segments_total)

    def line(self) -> str:
        """Format the progress as one line."""
        return (
            f"{self.segments_done:,} of {self.segments_total:,} segments, {self.steps:,} steps, "
            f"{self.errors:,} errors, {self.warnings:,} warnings"
        )


def audit(
    paths: Sequence[Path],
    config: AuditConfig | None = None,
    *,
    windows: Sequence[EpisodeFilter] = (),
    on_progress: Callable[[AuditProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> AuditReport:
    """Check datasets and summarise what they contain.

    Problems with the data become findings of the report, never exceptions. Datasets are not
    changed, except that verified checksums are cached in ``.verified.json``.

    Args:
        paths: The datasets. They are audited together, so duplicates between them are found.
        config: Settings; None for the defaults.
        windows: Sets of episodes to summarise separately, in `AuditReport.windows`.
        on_progress: Called after each segment.
        should_stop: Called before each group of segments. If it returns True, the audit ends
            early; its report covers the segments so far.

    Returns:
        The report, with `AuditReport.complete` False if the audit ended early.

    Raises:
        DatasetError: A path does not exist or is not a dataset.
        ConfigError: The Dask cluster cannot be reached.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from avtd3.store import AuditConfig, Dataset, EpisodeSpec, ImageSpec, audit_datasets
        >>> spec = EpisodeSpec(
        ...     image=ImageSpec(height=84, width=84),
        ...     vector_names=(),
        ...     vector_scales=(),
        ...     action_names=("steer",),
        ...     action_low=(-1.0,),
        ...     action_high=(1.0,),
        ...     reward_terms=(),
        ...     control_period_s=0.05,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dataset = Dataset.create(Path(folder) / "data", spec)
        ...     report = audit_datasets([dataset.path], AuditConfig(strict=True))
        >>> report.verdict
        'errors'
        >>> report.findings[0].message
        '0 segments, expected 1 or more'
    """
    config = config or AuditConfig()
    start = time.perf_counter()
    aggregate = _Aggregate(config, windows)
    tasks = [task for path in paths for task in aggregate.plan(path)]
    size = SEGMENTS_PER_WORKER * _workers(config)
    stopped = False
    with _scheduler(config) as compute:
        for first in range(0, len(tasks), size):
            if stopped := should_stop():
                break
            for result in compute(tasks[first : first + size]):
                aggregate.add(result)
                if on_progress is not None:
                    on_progress(aggregate.progress(len(tasks)))
    return aggregate.report(seconds=time.perf_counter() - start, complete=not stopped)


def quarantine_damaged(report: AuditReport) -> tuple[str, ...]:
    """Move each segment with an error into its dataset's ``quarantine/``.

    Returns:
        Ids of the moved segments.

    Raises:
        StorageError: A dataset is not writable.
    """
    for dataset, segment_id in report.damaged:
        Dataset.open(Path(dataset)).quarantine(segment_id)
    return tuple(segment_id for _, segment_id in report.damaged)


def sample_segments(segment_ids: Sequence[str], share: float) -> frozenset[str]:
    """Select about a share of the segments, at least one, the same on every machine.

    Whether a segment is selected depends only on its id, so the selection is stable when the
    dataset grows.
    """
    place = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2.0**64
        for name in segment_ids
    }
    chosen = frozenset(name for name in segment_ids if place[name] < share)
    return chosen or frozenset(sorted(segment_ids, key=place.__getitem__)[:1])


class _Aggregate:
    """Plans the audit of datasets, adds up the results, and checks segments against each other."""

    def __init__(self, config: AuditConfig, windows: Sequence[EpisodeFilter]) -> None:
        self._config, self._windows_asked = config, tuple(windows)
        self._log = FindingLog(limit=config.max_findings_per_check)
        self._worst: tuple[WorstEpisode, ...] = ()
        self._windows = tuple(Summary() for _ in windows)
        self._duplicates = DuplicateFinder()
        self._caches: dict[str, tuple[VerifiedSegments, list[str]]] = {}
        self._stamps: dict[str, dict[str, str]] = {}
        self._datasets: dict[str, DatasetReport] = {}
        self._damaged: list[tuple[str, str]] = []
        self._seen: dict[str, tuple[str, str]] = {}
        self._plans: dict[str, list[tuple[int, NDArray[np.int64]]]] = {}
        self._places: list[tuple[str, str]] = []
        self._done = 0

    def plan(self, path: Path) -> list[SegmentTask]:
        """Check a dataset without its segments, and return a task for each of these."""
        dataset, config = str(path), self._config
        if dataset in self._datasets:
            return []
        faults, is_readable = _root_faults(path)
        names, strays = _list_segments(path / "segments")
        faults += [Fault(check="stray", message=f"segments/{name}") for name in strays]
        if is_readable and (replaced := _replaced(path)):
            # Readers ignore these segments, so they are neither counted nor checked.
            names = [name for name in names if name not in replaced]
            faults.append(Fault(check="replaced", message=f"{len(replaced)} in segments/"))
        staging, quarantined = (len(_names(path / name)) for name in (".staging", "quarantine"))
        self._datasets[dataset] = DatasetReport(
            path=dataset, summary=Summary(), staging=staging, quarantined=quarantined
        )
        if staging:
            faults.append(Fault(check="staging", message=f"{staging} in {path / '.staging'}"))
        if quarantined:
            message = f"{quarantined} in {path / 'quarantine'}"
            faults.append(Fault(check="quarantined", message=message))
        if not names:
            faults.append(Fault(check="empty", message="0 segments, expected 1 or more"))
        for fault in faults:
            self._log.add(fault, dataset=dataset)
        chosen = sample_segments(names, config.sample)
        cache = VerifiedSegments(path)
        self._caches[dataset] = cache, names
        return [
            SegmentTask(
                dataset=dataset,
                segment_id=name,
                reads_data=name in chosen,
                limits=config.limits,
                max_findings=config.max_findings_per_check,
                gamma=config.gamma,
                windows=self._windows_asked,
                verified="" if config.full else cache.stamp_of(name),
            )
            for name in (names if is_readable else ())
        ]

    def add(self, result: SegmentAudit) -> None:
        """Add the result of one segment."""
        dataset, segment_id = result.task.dataset, result.task.segment_id
        contents = result.contents
        self._done += 1
        self._log.merge(result.log)
        if result.log.count("error"):
            self._damaged.append((dataset, segment_id))
        self._worst = worst_episodes(self._worst, result.log)
        self._duplicates.add(dataset, segment_id, contents.digests, contents.hashes)
        if result.task.reads_data:
            self._stamps.setdefault(dataset, {})[segment_id] = result.stamp
        if contents.windows:
            pairs = zip(self._windows, contents.windows, strict=True)
            self._windows = tuple(known.merge(more) for known, more in pairs)
        self._datasets[dataset] = self._datasets[dataset].including(contents.summary)
        if result.manifest_digest:
            self._compare_ids(dataset, segment_id, result.manifest_digest)
        if result.plan and contents.plan_index.size:
            known = self._plans.setdefault(result.plan, [])
            known.append((len(self._places), contents.plan_index))
            self._places.append((dataset, segment_id))

    def _compare_ids(self, dataset: str, segment_id: str, digest: str) -> None:
        """Log a fault if another dataset has a segment of the same id."""
        known, other = self._seen.setdefault(segment_id, (digest, dataset))
        if other != dataset:
            check = "segment-twice" if known == digest else "segment-conflict"
            fault = Fault(check=check, message=f"also in {other}, expected ids to be unique")
            self._log.add(fault, dataset=dataset, segment=segment_id)

    def progress(self, total: int) -> AuditProgress:
        """Return the progress of an audit of ``total`` segments."""
        return AuditProgress(
            segments_done=self._done,
            segments_total=total,
            steps=sum(dataset.summary.steps for dataset in self._datasets.values()),
            errors=self._log.count("error"),
            warnings=self._log.count("warning"),
        )

    def report(self, *, seconds: float, complete: bool) -> AuditReport:
        """Check the segments against each other, save the checksum caches, and return the report.

        Args:
            seconds: Wall-clock time of the audit.
            complete: Whether all segments were audited.
        """
        for path, (cache, names) in self._caches.items():
            cache.save(self._stamps.get(path, {}), names)
        self._check_plans(gaps=complete and self._config.sample == 1.0)
        for (path, segment_id, _), fault in self._duplicates.faults():
            self._log.add(fault, dataset=path, segment=segment_id)
        total = Summary()
        for dataset in self._datasets.values():
            total = total.merge(dataset.summary)
            for fault in _share_faults(dataset.summary):
                self._log.add(fault, dataset=dataset.path)
        return AuditReport(
            datasets=tuple(self._datasets.values()),
            total=total,
            log=self._log,
            damaged=tuple(self._damaged),
            worst=self._worst,
            windows=self._windows,
            gamma=self._config.gamma,
            strict=self._config.strict,
            sample=self._config.sample,
            complete=complete,
            seconds=seconds,
        )

    def _check_plans(self, *, gaps: bool) -> None:
        """Log episodes that a plan has twice and, if all data was read, those that are missing."""
        for plan, parts in self._plans.items():
            for (path, segment_id), fault in _planned_twice(plan, parts, self._places):
                self._log.add(fault, dataset=path, segment=segment_id)
            if gaps:
                for fault in _index_gaps(plan, [index for _, index in parts]):
                    self._log.add(fault, dataset=self._places[parts[0][0]][0])


def _root_faults(path: Path) -> tuple[list[Fault], bool]:
    """Open a dataset; return its faults, and whether its segments can be read.

    Raises:
        DatasetError: The path is not a dataset at all.
    """
    try:
        Dataset.open(path)
    except (Avtd3Error, OSError) as error:
        if not (path / "segments").is_dir():
            raise
        return [Fault(check="dataset-unreadable", message=str(error))], False
    return [], True


def _names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []


def _list_segments(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of the directories in ``segments/``, and of all other entries."""
    names = _names(path)
    folders = [name for name in names if not name.startswith(".") and (path / name).is_dir()]
    return folders, sorted(set(names) - set(folders))


def _replaced(path: Path) -> frozenset[str]:
    """Return the ids of segments that were merged into others and not yet removed."""
    dataset = Dataset.open(path)
    replaced = replaced_ids(dataset.snapshot().segments)
    return replaced.intersection(dataset.segment_ids()) if replaced else replaced


def _planned_twice(
    plan: str, parts: list[tuple[int, NDArray[np.int64]]], places: list[tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], Fault]]:
    """Yield a place and a fault for each episode of a plan that was collected again."""
    index = np.concatenate([indices for _, indices in parts])
    owner = np.repeat([place for place, _ in parts], [len(indices) for _, indices in parts])
    order = np.argsort(index, kind="stable")
    index, owner = index[order], owner[order]
    for row in (np.flatnonzero(index[1:] == index[:-1]) + 1).tolist():
        first, second = places[owner[row - 1]], places[owner[row]]
        if first[1] == second[1] and first[0] != second[0]:
            continue  # a copy of the whole segment, reported as segment-twice
        message = f"episode {index[row]} of plan {plan[:16]} is also in segment {first[1]}"
        yield second, Fault(check="episode-twice", message=message)


def _index_gaps(plan: str, parts: list[NDArray[np.int64]]) -> Iterator[Fault]:
    """Yield a fault if a plan has no episode at some positions below its highest."""
    index = np.unique(np.concatenate(parts))
    missing = np.setdiff1d(np.arange(index[-1] + 1), index)
    if missing.size:
        shown = ", ".join(map(str, missing[:5].tolist())) + (", ..." if missing.size > 5 else "")
        message = f"plan {plan[:16]} lacks {missing.size} episodes below {index[-1]}: {shown}"
        yield Fault(check="index-gap", message=message)


def _share_faults(summary: Summary) -> Iterator[Fault]:
    shares = summary.reward_shares
    for name, share in shares.items():
        if len(shares) > 1 and share > DOMINANT_SHARE:
            message = f"{name} is {share:.1%} of the terms' magnitude, expected at most 90 %"
            yield Fault(check="reward-dominated", message=message)


def _workers(config: AuditConfig) -> int:
    return 1 if config.scheduler == "sync" else config.workers or os.cpu_count() or 1


@contextlib.contextmanager
def _scheduler(
    config: AuditConfig,
) -> Iterator[Callable[[list[SegmentTask]], Sequence[SegmentAudit]]]:
    """Provide a function that audits several segments: on threads, this thread or a cluster."""
    from dask.base import compute
    from dask.delayed import delayed

    options: dict[str, Any] = {"scheduler": config.scheduler}
    with contextlib.ExitStack() as stack:
        if config.scheduler == "threads":
            options["num_workers"] = _workers(config)
        elif config.scheduler != "sync":
            options["scheduler"] = stack.enter_context(_cluster(config.scheduler))

        def run(tasks: list[SegmentTask]) -> Sequence[SegmentAudit]:
            delayed_tasks = [delayed(audit_segment, pure=False)(task) for task in tasks]
            results: Sequence[SegmentAudit] = compute(*delayed_tasks, **options)  # type: ignore[no-untyped-call]  # as dask ships it
            return results

        yield run


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Connect to a Dask cluster.

    Raises:
        ConfigError: ``distributed`` is not installed, or the cluster cannot be reached.
    """
    try:
        from distributed import Client
    except ImportError as error:
        message = f"audit.scheduler is {address!r}, which needs: pip install distributed"
        raise ConfigError(message) from error
    open_client: Any = Client  # only some versions have types
    try:
        client = open_client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"audit.scheduler {address!r} does not answer as a Dask scheduler ({error}); "
            "expected threads, sync or an address such as tcp://host:8786"
        ) from error
    with client:
        yield client
