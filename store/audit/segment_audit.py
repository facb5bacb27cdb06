"""The audit of one segment: files first, then arrays, then what they mean.

A segment whose bytes are wrong is not judged further: what its numbers say would be noise. This
is the unit of work that Dask hands to threads or to a cluster, so all in and out is plain data.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.checks import (
    FRAME_CHECKS,
    NUMBER_CHECKS,
    PLAUSIBILITY_CHECKS,
    episode_bounds,
    scan_frames,
)
from avtd3.store.audit.duplicates import episode_digests, episode_looks
from avtd3.store.audit.evidence import CheckLimits, Evidence
from avtd3.store.audit.findings import CHECKS, Fault, FindingLog
from avtd3.store.audit.integrity import (
    array_faults,
    file_faults,
    list_files,
    open_manifest,
    spec_faults,
    stamp,
)
from avtd3.store.audit.statistics import Summary, summarise
from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import Avtd3Error, SegmentCorruptError, SegmentNotFoundError
from avtd3.store.filters import EpisodeFilter
from avtd3.store.format.layout import segment_arrays
from avtd3.store.format.manifest import Manifest
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTask:
    """One segment to audit."""

    dataset: str
    """Path of the dataset."""
    segment_id: str
    judged: bool
    """Whether to read its data, or only its manifest and file sizes."""
    limits: CheckLimits
    max_findings: int
    """Findings kept per check."""
    gamma: float
    """Discount of a step, for the bound of Q."""
    windows: tuple[EpisodeFilter, ...] = ()
    """Episodes to summarise apart."""
    verified: str = ""
    """Stamp under which its checksums were verified before, see `avtd3.store.audit.integrity`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAudit:
    """What the audit of one segment found."""

    task: SegmentTask
    log: FindingLog
    summary: Summary
    manifest_digest: str
    """Empty if the manifest cannot be read."""
    plan: str
    """Digest of the collector's plan, empty if unknown."""
    episode_index: NDArray[np.int64]
    """int64 (n,): positions in that plan of the episodes held."""
    digests: NDArray[np.uint64]
    """uint64 (E,), see `episode_digests`; empty if the data was not judged."""
    looks: NDArray[np.uint64]
    """uint64 (E,), see `episode_looks`."""
    windows: tuple[Summary, ...]
    """Of the task's windows, or nothing if the data was not judged."""
    stamp: str
    """Stamp under which its checksums are now verified, or an empty string."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What the data of a segment say."""

    summary: Summary = dataclasses.field(default_factory=Summary)
    index: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    digests: NDArray[np.uint64] = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    looks: NDArray[np.uint64] = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    windows: tuple[Summary, ...] = ()
    faults: tuple[Fault, ...] = ()


def audit_segment(task: SegmentTask) -> SegmentAudit:
    """Audit one segment; whatever is wrong with it becomes a finding."""
    path = Path(task.dataset) / "segments" / task.segment_id
    log = FindingLog(limit=task.max_findings)
    manifest, faults = open_manifest(path)
    summary, judged, seen = Summary(), _Judged(), ""
    try:
        found = list_files(path)
        summary = Summary(bytes_on_disk=sum(found.values()))
        if manifest is not None:
            spec = Dataset.open(Path(task.dataset)).spec
            seen = stamp(path, manifest.digest, found) if task.judged else ""
            known = bool(seen) and seen == task.verified
            faults += _byte_faults(
                path, manifest, spec, found, hashes=task.judged and not known, arrays=task.judged
            )
            if not _has_error(faults):
                # What a damaged segment claims to hold, no reader gets to see.
                summary = summary.merge(_claims(manifest, spec))
                if task.judged:
                    judged = _judge(task, spec)
                    summary = summary.merge(judged.summary)
                    faults += judged.faults
    except SegmentNotFoundError as error:
        faults.append(Fault(check="segment-gone", message=str(error)))
    except FileNotFoundError as error:
        check = "array-unreadable" if path.is_dir() else "segment-gone"
        faults.append(Fault(check=check, message=str(error)))
    except (Avtd3Error, OSError, ValueError) as error:
        faults.append(Fault(check="array-unreadable", message=str(error)))
    for fault in faults:
        log.add(fault, dataset=task.dataset, segment=task.segment_id)
    return SegmentAudit(
        task=task,
        log=log,
        summary=summary,
        manifest_digest=manifest.digest if manifest is not None else "",
        plan=str(manifest.provenance.get("plan_digest", "")) if manifest is not None else "",
        episode_index=judged.index,
        digests=judged.digests,
        looks=judged.looks,
        windows=judged.windows,
        stamp="" if _has_error(faults) else seen,
    )


def _byte_faults(
    path: Path,
    manifest: Manifest,
    spec: EpisodeSpec,
    found: dict[str, int],
    *,
    hashes: bool,
    arrays: bool,
) -> list[Fault]:
    faults = [*spec_faults(manifest, spec), *file_faults(path, manifest, found, hashes=hashes)]
    if arrays and not _has_error(faults):
        # One cause, one finding: a torn zarr.json is told as a torn file only.
        faults += array_faults(path, manifest, spec)
    return faults


def _has_error(faults: list[Fault]) -> bool:
    return any(CHECKS[fault.check].severity == "error" for fault in faults)


def _claims(manifest: Manifest, spec: EpisodeSpec) -> Summary:
    """What a segment holds according to its manifest."""
    arrays = segment_arrays(
        spec,
        episodes=manifest.episodes,
        steps=manifest.steps,
        observations=manifest.observations,
    )
    return Summary(
        segments=1,
        episodes=manifest.episodes,
        steps=manifest.steps,
        simulated_seconds=manifest.steps * spec.control_period_s,
        bytes_raw=sum(array.nbytes for array in arrays.values()),
    )


def _judge(task: SegmentTask, spec: EpisodeSpec) -> _Judged:
    """Read and judge the data of a segment whose files are whole."""
    segment = Dataset.open(Path(task.dataset)).open_segment(task.segment_id)
    faults = list(
        episode_bounds(
            segment.read("episode_offset"),
            segment.read("episode_length"),
            steps=segment.steps,
            observations=segment.observations,
        )
    )
    if faults:
        return _Judged(faults=tuple(faults))
    table = segment.episode_table()
    evidence = _read_evidence(segment, spec, table)
    try:
        segment.events()
    except SegmentCorruptError as error:
        faults.append(Fault(check="event-bounds", message=str(error)))
    for check in (*NUMBER_CHECKS, *PLAUSIBILITY_CHECKS, *FRAME_CHECKS):
        faults += check(evidence, spec, task.limits)
    return _Judged(
        summary=summarise(segment.id, evidence, spec, gamma=task.gamma),
        index=table.index[table.index >= 0],
        digests=episode_digests(evidence),
        looks=episode_looks(evidence),
        windows=tuple(
            summarise(segment.id, part, spec, gamma=task.gamma)
            for part in (evidence.of_episodes(window.matches(table)) for window in task.windows)
        ),
        faults=tuple(faults),
    )


def _read_evidence(segment: Segment, spec: EpisodeSpec, table: EpisodeTable) -> Evidence:
    features = None
    if spec.image is not None:
        features = scan_frames(segment.read_frames, segment.observations, spec.image)
    names = ("frame_id", "sim_time", "action", "reward", "terminated", "truncated")
    arrays: dict[str, Any] = {name: segment.read(name) for name in names}
    return Evidence(
        frames=features,
        vector=segment.read("vector") if spec.vector_size else None,
        reward_terms=segment.read("reward_terms") if spec.reward_terms else None,
        episodes=table,
        **arrays,
    )
