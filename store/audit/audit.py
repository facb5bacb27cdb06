"""Audit datasets: `audit` checks them, summarises what they contain, and changes nothing.

`segment_audit` checks each segment by itself. This module plans the work, runs it on threads or a
Dask cluster, adds up the results, and compares segments and datasets with each other.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.checks import FEW_STEPS, CheckLimits
from avtd3.store.audit.duplicates import DuplicateFinder
from avtd3.store.audit.findings import (
    BYTE_CHECKS,
    CHECKS,
    Fault,
    FindingLog,
    WorstEpisode,
    worst_episodes,
)
from avtd3.store.audit.integrity import VerifiedSegments, list_files
from avtd3.store.audit.report import AuditReport, DatasetReport
from avtd3.store.audit.segment_audit import SegmentAudit, SegmentTask, audit_segment
from avtd3.store.audit.statistics import Moments, Summary
from avtd3.store.cluster import (
    Cluster,
    WorkerContext,
    check_shared,
    connect,
    copy_outline,
    fetched_segment,
)
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    Avtd3Error,
    ConfigError,
    DatasetError,
    DatasetUnreadableError,
    FormatVersionError,
    SegmentCorruptError,
    SegmentNotFoundError,
    UnreachableError,
    advice,
    check_settings,
    describe,
)
from avtd3.store.files import (
    drop_cached,
    is_directory,
    is_passing,
    list_directory,
    remote_url,
)
from avtd3.store.filters import EpisodeFilter
from avtd3.store.format.layout import QUARANTINE, SEGMENTS, STAGING

DOMINANT_SHARE = 0.9
"""Share of one reward term above which the other terms have almost no effect."""
SCALE_RATIO = 4.0
"""Factor by which the reward scale of a segment must differ from that of those before it."""
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
    workers see the datasets under the same paths, or can reach their URLs."""
    workers: int = 0
    """Threads, or segments in flight on a cluster; 0 means one per core, or two per thread of the
    cluster's workers."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            "audit.",
            ("sample", 0.0 < self.sample <= 1.0, "above 0 and at most 1"),
            ("gamma", 0.0 <= self.gamma < 1.0, "0 or more and below 1"),
            ("max_findings_per_check", self.max_findings_per_check >= 1, "1 or more"),
            ("scheduler", bool(self.scheduler), "threads, sync or an address"),
            ("workers", self.workers >= 0, "0 or more"),
        )

    @property
    def is_cluster(self) -> bool:
        """Whether the workers of a Dask cluster do the work."""
        return self.scheduler not in ("threads", "sync")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditProgress:
    """Progress of an audit: segments done and to do, and what was found in those done."""

    segments_done: int
    segments_total: int
    steps: int
    errors: int
    warnings: int
    cluster: str = ""
    """What the workers of a cluster do."""

    @property
    def fraction(self) -> float:
        """Return the share of the segments that were audited, in [0, 1]."""
        return self.segments_done / max(1, self.segments_total)

    def line(self) -> str:
        """Format the progress as one line."""
        text = (
            f"{self.segments_done:,} of {self.segments_total:,} segments, {self.steps:,} steps, "
            f"{self.errors:,} errors, {self.warnings:,} warnings"
        )
        return f"{text}; {self.cluster}" if self.cluster else text


def audit(
    paths: Sequence[Path | str],
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
        paths: The datasets. They are audited together, so duplicates between them are found. On a
            Dask cluster, they may be URLs: each worker copies one segment at a time.
        config: Settings; None for the defaults.
        windows: Sets of episodes to summarise separately, in `AuditReport.windows`.
        on_progress: Called after each segment.
        should_stop: Called before each group of segments, often on a cluster. If it returns True,
            the audit ends early; its report covers the segments so far.

    Returns:
        The report, with `AuditReport.complete` False if the audit ended early.

    Raises:
        DatasetError: A path does not exist or is not a dataset.
        ConfigError: The Dask cluster cannot be reached, its workers do not see a path, or there is
            a URL but no cluster.
        UnreachableError: A URL cannot be reached, also by a worker.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from avtd3.store import AuditConfig, Dataset, EpisodeSpec, ImageSpec, audit_datasets
        >>> spec = EpisodeSpec(image=ImageSpec(), action_names=("steer",))
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
    aggregate, run = _Aggregate(config, windows), _run_on_cluster if config.is_cluster else _run
    tasks, is_planned = aggregate.plan_all(paths, should_stop)

    def show(state: str) -> None:
        if on_progress is not None:
            on_progress(aggregate.progress(len(tasks), state))

    run(tasks, config, should_stop, aggregate.add, show)
    is_complete = is_planned and aggregate.done == len(tasks)
    return aggregate.report(seconds=time.perf_counter() - start, complete=is_complete)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptSegment:
    """A damaged segment that was not moved into quarantine, and why."""

    dataset: str
    segment: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineReport:
    """Which segments `quarantine_damaged` moved, or would move, and which it kept."""

    moved: tuple[str, ...]
    kept: tuple[KeptSegment, ...]


MOST_ALIKE = 0.5
"""Share of a dataset's segments that may fail the same check of their bytes; more points to the
disk, the mount or the copy, and nothing is moved."""
FEW = 2
"""Number of segments that are always moved."""


def quarantine_damaged(report: AuditReport, *, dry_run: bool = False) -> QuarantineReport:
    """Move each segment with a proven error into its dataset's ``quarantine/``.

    An error is proven if a second audit of the segment, which reads all its bytes again, finds it
    as well. If most segments of a dataset fail the same check of their bytes, none of these is
    moved. Raise StorageError if a dataset is not writable.
    """
    proven: dict[str, dict[str, frozenset[str]]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for task in report.damaged_tasks:
        found = _audit_again(task).log.counts
        if errors := frozenset(check for check in found if CHECKS[check].severity == "error"):
            proven.setdefault(task.dataset, {})[task.segment_id] = errors
        else:
            what = "it is unreadable now" if "unreadable" in found else "a second read found none"
            reasons[task.dataset, task.segment_id] = f"its errors are not proven: {what}"
    moved: list[str] = []
    for path, segments in proven.items():
        try:
            stay = _quarantine(Dataset.open(Path(path)), segments, dry_run=dry_run)
        except (DatasetError, FormatVersionError) as error:
            stay = dict.fromkeys(segments, f"its dataset cannot be listed any more: {error}")
        moved += [name for name in segments if name not in stay]
        reasons |= {(path, name): reason for name, reason in stay.items()}
    kept = (KeptSegment(dataset=d, segment=n, reason=why) for (d, n), why in reasons.items())
    return QuarantineReport(moved=tuple(moved), kept=tuple(kept))


def _quarantine(
    dataset: Dataset, proven: Mapping[str, frozenset[str]], *, dry_run: bool
) -> dict[str, str]:
    """Move segments of one dataset, unless most of them fail alike; return why some stay."""
    stay = {}
    total = len(dataset.segment_ids())
    alike = Counter(check for errors in proven.values() for check in errors & BYTE_CHECKS)
    many = {check: n for check, n in alike.items() if n > max(FEW, MOST_ALIKE * total)}
    for name, errors in proven.items():
        if common := sorted(errors & many.keys()):
            stay[name] = (
                f"{many[common[0]]} of {total} segments fail alike ({common[0]}), which points "
                "to the disk, the mount or the copy; check these, then audit again"
            )
        elif not dry_run:
            try:
                dataset.quarantine(name)
            except SegmentNotFoundError:
                stay[name] = "it was removed meanwhile"
    return stay


def _audit_again(task: SegmentTask) -> SegmentAudit:
    """Audit a segment with bytes that come from the disk, as far as the system allows."""
    with contextlib.suppress(OSError):
        for name in list_files(task.path):
            drop_cached(task.path / name)
    return audit_segment(dataclasses.replace(task, verified=""))


def sample_segments(segment_ids: Sequence[str], share: float) -> frozenset[str]:
    """Select about a share of the segments, at least one, by their ids only."""
    digests = {name: hashlib.sha256(os.fsencode(name)).digest() for name in segment_ids}
    place = {name: int.from_bytes(d[:8], "big") / 2.0**64 for name, d in digests.items()}
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
        self._damaged: list[SegmentTask] = []
        self._seen: dict[str, tuple[str, str]] = {}
        self._rewards: dict[str, dict[str, Moments]] = {}
        self._plans: dict[str, list[tuple[int, NDArray[np.int64]]]] = {}
        self._places: list[tuple[str, str]] = []
        self._not_copied: list[str] = []
        self.done = 0
        """Segments whose results were added."""

    def plan_all(
        self, paths: Sequence[Path | str], should_stop: Callable[[], bool]
    ) -> tuple[list[SegmentTask], bool]:
        """Return a task for each segment of datasets; False if stopped before all were listed."""
        tasks: list[SegmentTask] = []
        for path in paths:
            if (url := remote_url(path)) is None or not self._config.is_cluster:
                tasks += self._plan(Path(path), str(path))
                continue
            check_shared(url)
            with tempfile.TemporaryDirectory(prefix="avtd3-audit-") as folder:
                outline = Path(folder) / "data"
                if (problems := copy_outline(url, outline, should_stop)) is None:
                    return tasks, False
                self._not_copied += problems
                tasks += self._plan(outline, url)
        return tasks, True

    def _plan(self, path: Path, dataset: str) -> list[SegmentTask]:
        """Check a dataset without its segments, and return a task for each of these."""
        config = self._config
        if dataset in self._datasets:
            return []
        faults, is_readable = _root_faults(path)
        names, listing_faults = _list_segments(path)
        is_listed = not any(fault.check == "unreadable" for fault in listing_faults)
        if is_readable and is_listed and (replaced := self._replaced(path, dataset, faults)):
            # Readers ignore these segments, so they are neither counted nor checked.
            names = [name for name in names if name not in replaced]
            faults.append(Fault(check="replaced", message=f"{len(replaced)} in segments/"))
        counts = {}
        for check, folder in (("staging", STAGING), ("quarantined", QUARANTINE)):
            counts[check], unlisted = _count_entries(path / folder)
            listing_faults += unlisted
            if counts[check]:
                faults.append(Fault(check=check, message=f"{counts[check]} in {path / folder}"))
        self._datasets[dataset] = DatasetReport(path=dataset, summary=Summary(), **counts)
        if not names and is_listed:
            faults.append(Fault(check="empty", message="0 segments, expected 1 or more"))
        for fault in (*faults, *listing_faults):
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

    def _replaced(self, path: Path, dataset: str, faults: list[Fault]) -> frozenset[str]:
        """Return the ids of segments that were merged into others; log claims that are not true."""
        try:
            snapshot = Dataset.open(path).snapshot()
        except (DatasetError, OSError) as error:
            faults.append(Fault(check="unreadable", message=describe(error, reads=True)))
            return frozenset()
        for claim in snapshot.unproven:
            message = f"claims to replace segment {claim.claimed}, but {claim.problem}"
            fault = Fault(check="replaces-unproven", message=message)
            self._log.add(fault, dataset=dataset, segment=claim.claimant)
        return frozenset(segment.id for segment in snapshot.replaced)

    def add(self, result: SegmentAudit | str) -> None:
        """Add the result of one segment, or why it cannot be copied from its URL."""
        self.done += 1
        if isinstance(result, str):
            self._not_copied.append(result)
            return
        dataset, segment_id, contents = result.task.dataset, result.task.segment_id, result.contents
        self._log.merge(result.log)
        if result.log.count("error"):
            self._damaged.append(result.task)
        self._worst = worst_episodes(self._worst, result.log)
        self._duplicates.add(dataset, segment_id, contents.digests, contents.hashes)
        if result.task.reads_data:
            self._stamps.setdefault(dataset, {})[segment_id] = result.stamp
        if contents.windows:
            pairs = zip(self._windows, contents.windows, strict=True)
            self._windows = tuple(one.merge(more) for one, more in pairs)
        known = self._datasets[dataset]
        merged = known.summary.merge(contents.summary)
        self._datasets[dataset] = dataclasses.replace(known, summary=merged)
        if contents.summary.rewards.count >= FEW_STEPS:
            self._rewards.setdefault(dataset, {})[segment_id] = contents.summary.rewards
        if result.manifest_digest:
            self._compare_ids(dataset, segment_id, result.manifest_digest)
        if result.plan and contents.plan_index.size:
            parts = self._plans.setdefault(result.plan, [])
            parts.append((len(self._places), contents.plan_index))
            self._places.append((dataset, segment_id))

    def _compare_ids(self, dataset: str, segment_id: str, digest: str) -> None:
        """Log a fault if another dataset has a segment of the same id."""
        known, other = self._seen.setdefault(segment_id, (digest, dataset))
        if other != dataset:
            check = "segment-twice" if known == digest else "segment-conflict"
            fault = Fault(check=check, message=f"also in {other}, expected ids to be unique")
            self._log.add(fault, dataset=dataset, segment=segment_id)

    def progress(self, total: int, cluster: str = "") -> AuditProgress:
        """Return the progress of an audit of ``total`` segments."""
        return AuditProgress(
            segments_done=self.done,
            segments_total=total,
            steps=sum(dataset.summary.steps for dataset in self._datasets.values()),
            errors=self._log.count("error"),
            warnings=self._log.count("warning"),
            cluster=cluster,
        )

    def report(self, *, seconds: float, complete: bool) -> AuditReport:
        """Check the segments against each other, save the caches, and return the report."""
        for path, (cache, names) in self._caches.items():
            cache.save(self._stamps.get(path, {}), names)
        self._check_plans(gaps=complete and self._config.sample == 1.0)
        for (path, segment_id), fault in self._duplicates.faults():
            self._log.add(fault, dataset=path, segment=segment_id)
        total = Summary()
        for dataset in self._datasets.values():
            total = total.merge(dataset.summary)
            for fault in _share_faults(dataset.summary):
                self._log.add(fault, dataset=dataset.path)
            for segment_id, fault in _scale_faults(self._rewards.get(dataset.path, {})):
                self._log.add(fault, dataset=dataset.path, segment=segment_id)
        return AuditReport(
            datasets=tuple(self._datasets.values()),
            total=total,
            log=self._log,
            damaged_tasks=tuple(self._damaged),
            worst=self._worst,
            windows=self._windows,
            gamma=self._config.gamma,
            strict=self._config.strict,
            sample=self._config.sample,
            complete=complete,
            seconds=seconds,
            not_copied=tuple(self._not_copied),
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
    """Return a dataset's faults, and whether its segments can be read; raise if it is none."""
    try:
        Dataset.open(path)
    except DatasetUnreadableError as error:
        return [Fault(check="unreadable", message=str(error))], False
    except (Avtd3Error, OSError) as error:
        faults = [Fault(check="dataset-unreadable", message=describe(error, reads=True))]
        try:
            is_dataset = is_directory(path / SEGMENTS)
        except OSError as unreadable:
            return [*faults, *_listing_faults(path / SEGMENTS, unreadable)], False
        if not is_dataset:
            raise
        return faults, False
    return [], True


def _list_segments(path: Path) -> tuple[list[str], list[Fault]]:
    """Return the names of the directories in ``segments/``, and faults of the other entries."""
    try:
        folders, others = list_directory(path / SEGMENTS)
    except OSError as error:
        return [], _listing_faults(path / SEGMENTS, error)
    names, faults = [], []
    for name in (*folders, *others):
        if target := _link_target(path / SEGMENTS / name):
            message = f"segments/{name} is a symbolic link to {target}"
            faults.append(Fault(check="segment-link", message=message))
        elif name in others or name.startswith("."):
            faults.append(Fault(check="stray", message=f"segments/{name}"))
        else:
            names.append(name)
    return names, faults


def _link_target(path: Path) -> str:
    """Return where a symbolic link points; empty if it is none or cannot be read now."""
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _count_entries(path: Path) -> tuple[int, list[Fault]]:
    """Return the number of entries of a directory that need not be there, and the faults."""
    try:
        return sum(map(len, list_directory(path))), []
    except OSError as error:
        return 0, _listing_faults(path, error)


def _listing_faults(path: Path, error: OSError) -> list[Fault]:
    message = f"{path} cannot be listed: {advice(error, reads=True)}"
    return [Fault(check="unreadable", message=message)] if is_passing(error) else []


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
    index = np.unique(np.concatenate(parts)).tolist()
    missing = index[-1] + 1 - len(index)
    if missing:
        gaps = (range(low + 1, high) for low, high in itertools.pairwise([-1, *index]))
        first = itertools.islice(itertools.chain.from_iterable(gaps), 5)
        shown = ", ".join(map(str, first)) + (", ..." if missing > 5 else "")
        message = f"plan {plan[:16]} lacks {missing} episodes below {index[-1]}: {shown}"
        yield Fault(check="index-gap", message=message)


def _share_faults(summary: Summary) -> Iterator[Fault]:
    shares = summary.reward_shares
    for name, share in shares.items():
        if len(shares) > 1 and share > DOMINANT_SHARE:
            message = f"{name} is {share:.1%} of the terms' magnitude, expected at most 90 %"
            yield Fault(check="reward-dominated", message=message)


def _scale_faults(rewards: Mapping[str, Moments]) -> Iterator[tuple[str, Fault]]:
    """Yield segments whose reward scale is far from the running one, of all segments before."""
    running = Moments()
    for segment_id, own in sorted(rewards.items()):
        if running.mean > 0.0 and not 1.0 / SCALE_RATIO < own.mean / running.mean < SCALE_RATIO:
            message = f"mean absolute reward {own.mean:.4g}, {running.mean:.4g} in the segments "
            message += f"before it; expected less than {SCALE_RATIO:g} times more or less"
            yield segment_id, Fault(check="reward-scale", message=message)
            running = Moments()  # report the change once, not every segment after it
        running = running.merge(own)


_Add: TypeAlias = Callable[[SegmentAudit | str], None]
"""Adds the result of a segment, in the order of the segments."""
_Show: TypeAlias = Callable[[str], None]
"""Shows the progress, and what a cluster does."""


def _run(
    tasks: Sequence[SegmentTask],
    config: AuditConfig,
    should_stop: Callable[[], bool],
    add: _Add,
    show: _Show,
) -> None:
    """Audit segments on threads, or in this thread."""
    from dask.base import compute
    from dask.delayed import delayed

    workers = 1 if config.scheduler == "sync" else config.workers or os.cpu_count() or 1
    options: dict[str, Any] = {"scheduler": config.scheduler}
    if config.scheduler == "threads":
        options["num_workers"] = workers
    size = SEGMENTS_PER_WORKER * workers
    for first in range(0, len(tasks), size):
        if should_stop():
            return
        group = [delayed(audit_segment, pure=False)(task) for task in tasks[first : first + size]]
        for result in compute(*group, **options):  # type: ignore[no-untyped-call]  # as dask ships it
            add(result)
            show("")


def _run_on_cluster(
    tasks: Sequence[SegmentTask],
    config: AuditConfig,
    should_stop: Callable[[], bool],
    add: _Add,
    show: _Show,
) -> None:
    """Audit segments on the workers of a Dask cluster."""
    name, number = f"avtd3-audit-{secrets.token_hex(8)}", 0
    places = (remote_url(task.dataset) or str(Path(task.dataset).absolute()) for task in tasks)
    jobs = zip(itertools.count(), tasks, places, strict=False)
    units = ((f"{name}-{job[0]}", job) for job in jobs)
    early: dict[int, SegmentAudit | str] = {}

    def on_results(found: list[tuple[int, SegmentAudit | str]], state: str) -> None:
        nonlocal number
        early.update(found)
        found.clear()  # results are large
        while number in early:
            add(early.pop(number))
            number += 1
        show(state)

    with connect(config.scheduler, "audit.scheduler") as client:
        cluster = Cluster(client, config.scheduler, most=config.workers)
        _, lost = cluster.run(_audit_unit, units, should_stop=should_stop, on_results=on_results)
    if lost:
        raise UnreachableError(f"the audit is not complete, because {lost[0]}")


def _audit_unit(
    job: tuple[int, SegmentTask, str], context: WorkerContext
) -> tuple[int, SegmentAudit | str]:
    """Audit a segment in a worker of a Dask cluster; return its number, and the result."""
    number, task, place = job
    if (url := remote_url(place)) is None:
        if not is_directory(Path(place)):
            raise ConfigError(
                f"there is no dataset {place}; --scheduler needs a URL, or a directory that all "
                "workers see under the same path"
            )
        return number, _audit_at(place, task)
    try:
        with fetched_segment(url, task.segment_id, context.note) as path:
            return number, _audit_at(str(path), task)
    except (SegmentCorruptError, SegmentNotFoundError, FormatVersionError) as error:
        return number, str(error)


def _audit_at(place: str, task: SegmentTask) -> SegmentAudit:
    """Audit a segment of which a process finds the dataset at another place than its task says."""
    result = audit_segment(dataclasses.replace(task, dataset=place))
    for kept in result.log.kept.values():
        for number, found in enumerate(kept):
            message = found.message.replace(place, task.dataset)
            kept[number] = dataclasses.replace(found, dataset=task.dataset, message=message)
    return dataclasses.replace(result, task=task)
