"""What the audit of all segments adds up to, and what only shows between segments.

Duplicates, leftovers and shares are judged here; each segment by itself in `segment_audit`.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.duplicates import DuplicateFinder
from avtd3.store.audit.evidence import CheckLimits
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
"""Share of one reward term above which the others can hardly be learned."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditProgress:
    """How far an audit is, told after each segment."""

    segments_done: int
    segments_total: int
    steps: int
    """Steps in the segments done."""
    errors: int
    warnings: int

    @property
    def fraction(self) -> float:
        """Share of the segments that are done, in [0, 1]."""
        return self.segments_done / max(1, self.segments_total)

    def line(self) -> str:
        """Where the audit stands, in one line."""
        return (
            f"{self.segments_done:,} of {self.segments_total:,} segments, {self.steps:,} steps, "
            f"{self.errors:,} errors, {self.warnings:,} warnings"
        )


class Collation:
    """What has been found so far, over all segments."""

    def __init__(self, task: SegmentTask, *, sample: float, full: bool) -> None:
        """Start with nothing.

        Args:
            task: What every segment's task is like, but for its place.
            sample: Share of the segments to judge.
            full: Whether to hash also what was verified before.
        """
        self._task = task
        self._sample = sample
        self._full = full
        self._log = FindingLog(limit=task.max_findings)
        self._worst: tuple[WorstEpisode, ...] = ()
        self._windows = tuple(Summary() for _ in task.windows)
        self._duplicates = DuplicateFinder()
        self._memories: dict[str, tuple[VerifiedSegments, list[str]]] = {}
        self._stamps: dict[str, dict[str, str]] = {}
        self._datasets: dict[str, DatasetReport] = {}
        self._damaged: list[tuple[str, str]] = []
        self._seen: dict[str, tuple[str, str]] = {}
        self._planned: dict[str, list[tuple[int, NDArray[np.int64]]]] = {}
        self._places: list[tuple[str, str]] = []
        self._done = 0

    def begin(self, path: Path) -> list[SegmentTask]:
        """List a dataset's segments, and find what lies about besides them."""
        dataset = str(path)
        if dataset in self._datasets:
            return []
        faults, readable = _root_faults(path)
        names, strays = _list_segments(path / "segments")
        faults += [Fault(check="stray", message=f"segments/{name}") for name in strays]
        if readable and (replaced := _replaced(path)):
            # Readers leave them out, so they are neither counted nor judged.
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
        chosen = choose(names, self._sample)
        memory = VerifiedSegments(path)
        self._memories[dataset] = memory, names
        return [
            dataclasses.replace(
                self._task,
                dataset=dataset,
                segment_id=name,
                judged=name in chosen,
                verified="" if self._full else memory.stamp_of(name),
            )
            for name in (names if readable else ())
        ]

    def take(self, result: SegmentAudit) -> None:
        """Add what was found in one segment."""
        dataset, segment_id = result.task.dataset, result.task.segment_id
        self._done += 1
        self._log.merge(result.log)
        if result.log.count("error"):
            self._damaged.append((dataset, segment_id))
        self._worst = worst_episodes(self._worst, result.log)
        self._duplicates.add(dataset, segment_id, result.digests, result.looks)
        if result.task.judged:
            self._stamps.setdefault(dataset, {})[segment_id] = result.stamp
        if result.windows:
            pairs = zip(self._windows, result.windows, strict=True)
            self._windows = tuple(known.merge(more) for known, more in pairs)
        self._datasets[dataset] = self._datasets[dataset].including(result.summary)
        if result.manifest_digest:
            self._compare(dataset, segment_id, result.manifest_digest)
        if result.plan and result.episode_index.size:
            self._planned.setdefault(result.plan, []).append(
                (len(self._places), result.episode_index)
            )
            self._places.append((dataset, segment_id))

    def _compare(self, dataset: str, segment_id: str, digest: str) -> None:
        """Hold a segment against one of the same id in another dataset."""
        known, other = self._seen.setdefault(segment_id, (digest, dataset))
        if other == dataset:
            return
        check = "segment-twice" if known == digest else "segment-conflict"
        fault = Fault(check=check, message=f"also in {other}, expected ids to be unique")
        self._log.add(fault, dataset=dataset, segment=segment_id)

    def progress(self, total: int) -> AuditProgress:
        """How far the audit is, of so many segments."""
        return AuditProgress(
            segments_done=self._done,
            segments_total=total,
            steps=sum(dataset.summary.steps for dataset in self._datasets.values()),
            errors=self._log.count("error"),
            warnings=self._log.count("warning"),
        )

    def report(self, *, seconds: float, complete: bool, strict: bool) -> AuditReport:
        """The finished report.

        Args:
            seconds: Wall-clock time the audit took.
            complete: Whether all segments were taken.
            strict: Whether warnings count as errors.
        """
        for path, (memory, names) in self._memories.items():
            memory.save(self._stamps.get(path, {}), names)
        self._between_segments(gaps=complete and self._sample == 1.0)
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
            gamma=self._task.gamma,
            strict=strict,
            sample=self._sample,
            complete=complete,
            seconds=seconds,
        )

    def _between_segments(self, *, gaps: bool) -> None:
        """Log what only shows between segments; gaps in plans only if all was read."""
        for plan, held in self._planned.items():
            for place, fault in _planned_twice(plan, held, self._places):
                self._log.add(fault, dataset=place[0], segment=place[1])
            if gaps:
                for fault in _index_gaps(plan, [index for _, index in held]):
                    self._log.add(fault, dataset=self._places[held[0][0]][0])
        for (path, segment_id, _), fault in self._duplicates.faults():
            self._log.add(fault, dataset=path, segment=segment_id)


def choose(segment_ids: Sequence[str], share: float) -> frozenset[str]:
    """Choose about a share of the segments, at least one, the same on every machine.

    A segment is chosen by its own id alone, so a growing dataset keeps its choice.
    """
    place = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2.0**64
        for name in segment_ids
    }
    chosen = frozenset(name for name in segment_ids if place[name] < share)
    return chosen or frozenset(sorted(segment_ids, key=place.__getitem__)[:1])


def _root_faults(path: Path) -> tuple[list[Fault], bool]:
    """Open the dataset; if only its zarr.json is damaged, that is a finding."""
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
    """Names of the directories in ``segments/``, and of all else there, hidden ones included."""
    names = _names(path)
    folders = [name for name in names if not name.startswith(".") and (path / name).is_dir()]
    return folders, sorted(set(names) - set(folders))


def _replaced(path: Path) -> frozenset[str]:
    """Segments that lie there still though merged ones stand for them."""
    dataset = Dataset.open(path)
    replaced = replaced_ids(dataset.snapshot().segments)
    return replaced.intersection(dataset.segment_ids()) if replaced else replaced


def _planned_twice(
    plan: str, held: list[tuple[int, NDArray[np.int64]]], places: list[tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], Fault]]:
    """Episodes of a plan that lie in more than one segment, or twice in one."""
    index = np.concatenate([indices for _, indices in held])
    owner = np.repeat([place for place, _ in held], [len(indices) for _, indices in held])
    order = np.argsort(index, kind="stable")
    index, owner = index[order], owner[order]
    for row in (np.flatnonzero(index[1:] == index[:-1]) + 1).tolist():
        first = places[owner[row - 1]]
        if first[1] == places[owner[row]][1] and first[0] != places[owner[row]][0]:
            continue  # a copy of the whole segment, told as segment-twice
        message = f"episode {index[row]} of plan {plan[:16]} is also in segment {first[1]}"
        yield places[owner[row]], Fault(check="episode-twice", message=message)


def _index_gaps(plan: str, held: list[NDArray[np.int64]]) -> Iterator[Fault]:
    """Positions of a plan below its highest that no segment holds."""
    index = np.unique(np.concatenate(held))
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
    """HeldOutEvaluator datasets; what is wrong with the data becomes findings, never an exception.

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
