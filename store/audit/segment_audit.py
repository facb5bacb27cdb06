"""Audit one segment: its files first, then its arrays, then the values in them.

The values of a segment with damaged files are not checked. Dask runs `audit_segment` in threads or
on a cluster, so its argument and its result are plain data.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.checks import (
    CheckLimits,
    check_values,
    episode_bounds,
    named_faults,
    other_control,
)
from avtd3.store.audit.duplicates import perceptual_hashes, step_digests
from avtd3.store.audit.findings import CHECKS, Fault, FindingLog
from avtd3.store.audit.integrity import (
    array_faults,
    file_faults,
    list_files,
    open_manifest,
    stamp,
)
from avtd3.store.audit.segment_data import SegmentData
from avtd3.store.audit.statistics import Summary, summarise
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    Avtd3Error,
    DatasetError,
    DatasetUnreadableError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SpecError,
    UnreadableError,
    describe,
)
from avtd3.store.files import is_directory, is_passing
from avtd3.store.filters import EpisodeFilter
from avtd3.store.format.layout import SEGMENTS, raw_bytes
from avtd3.store.format.manifest import Manifest
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec
from avtd3.store.world_record import read_map


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTask:
    """A segment to audit, and how; see `AuditConfig`."""

    dataset: str
    segment_id: str
    reads_data: bool
    """Whether to read the data, or only the manifest and the sizes of the files."""
    limits: CheckLimits
    max_findings: int
    gamma: float
    windows: tuple[EpisodeFilter, ...] = ()
    verified: str = ""
    """Stamp with which the checksums were verified before, see `avtd3.store.audit.integrity`."""

    @property
    def path(self) -> Path:
        """Return the directory of the segment."""
        return Path(self.dataset) / SEGMENTS / self.segment_id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentContents:
    """What a segment contains; all but the summary is empty if the data were not read."""

    summary: Summary = dataclasses.field(default_factory=Summary)
    """Sizes of the files, counts from the manifest, and statistics of the data."""
    windows: tuple[Summary, ...] = ()
    plan_index: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """int64 (n,): positions of the episodes in the collector's plan, where known."""
    digests: NDArray[np.uint64] = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    """uint64 (E,), see `step_digests`."""
    hashes: NDArray[np.uint64] = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    """uint64 (E,), see `perceptual_hashes`."""
    faults: tuple[Fault, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAudit:
    """Result of the audit of one segment."""

    task: SegmentTask
    log: FindingLog
    contents: SegmentContents
    manifest_digest: str
    """Empty if the manifest cannot be read."""
    plan: str
    """Digest of the collector's plan; empty if unknown."""
    stamp: str
    """Stamp with which the checksums are now verified; empty if they are not."""


def audit_segment(task: SegmentTask) -> SegmentAudit:
    """Audit one segment; problems become findings, not exceptions."""
    with np.errstate(all="ignore"):  # numbers of any size: what is not finite is a finding
        return _audit_segment(task)


def _audit_segment(task: SegmentTask) -> SegmentAudit:
    path = task.path
    manifest, faults = open_manifest(path)
    contents, seen = SegmentContents(), ""
    try:
        found = list_files(path)
        contents = SegmentContents(summary=Summary(bytes_on_disk=sum(found.values())))
        if manifest is not None:
            dataset = Dataset.open(Path(task.dataset))
            seen = stamp(path, manifest.digest, found) if task.reads_data else ""
            is_verified = bool(seen) and seen == task.verified
            faults += _check_files(task, manifest, dataset.spec, found, is_verified=is_verified)
            if not _has_error(faults):
                known = _with_counts(contents.summary, manifest, dataset.spec)
                contents = SegmentContents(summary=known)
                if task.reads_data:
                    contents = _read_contents(task, dataset, known)
                    faults += contents.faults
    except (Avtd3Error, OSError, ValueError) as error:
        faults.append(_read_fault(path, error))
    unreadable = [fault for fault in faults if fault.check == "unreadable"]
    if unreadable:  # one I/O error is enough to know
        faults = [*(f for f in faults if f.check != "unreadable"), unreadable[0]]
        contents = SegmentContents()
    log = FindingLog(limit=task.max_findings)
    for fault in faults:
        log.add(fault, dataset=task.dataset, segment=task.segment_id)
    return SegmentAudit(
        task=task,
        log=log,
        contents=contents,
        manifest_digest=manifest.digest if manifest is not None else "",
        plan=str(manifest.provenance.get("plan_digest", "")) if manifest is not None else "",
        stamp="" if unreadable or _has_error(faults) else seen,
    )


def _read_fault(path: Path, error: Exception) -> Fault:
    """Return the fault of a segment that could not be read: an I/O error is not damage."""
    check = "array-unreadable"
    try:
        if isinstance(error, SegmentNotFoundError):
            check = "segment-gone"
        elif isinstance(error, FileNotFoundError):
            check = "array-unreadable" if is_directory(path) else "segment-gone"
        elif isinstance(error, UnreadableError):
            check = "unreadable"
        elif isinstance(error, OSError) and not isinstance(error, Avtd3Error):
            check = "unreadable" if is_passing(error) else check
    except OSError:
        check = "unreadable"
    message = describe(error, reads=True)
    if check == "unreadable" and not isinstance(error, Avtd3Error):
        message = f"unreadable now: {message}"
    return Fault(check=check, message=message)


def _check_files(
    task: SegmentTask,
    manifest: Manifest,
    spec: EpisodeSpec,
    found: dict[str, int],
    *,
    is_verified: bool,
) -> list[Fault]:
    hashes = task.reads_data and not is_verified
    faults = [*file_faults(task.path, manifest, found, hashes=hashes)]
    if manifest.spec_digest != spec.digest:
        message = f"spec digest {manifest.spec_digest[:16]}, expected {spec.digest[:16]}"
        faults.insert(0, Fault(check="spec-digest", message=message))
    # A truncated zarr.json is reported as a truncated file only.
    if task.reads_data and not _has_error(faults):
        faults += array_faults(task.path, manifest, spec)
    return faults


def _has_error(faults: list[Fault]) -> bool:
    return any(CHECKS[fault.check].severity == "error" for fault in faults)


def _with_counts(summary: Summary, manifest: Manifest, spec: EpisodeSpec) -> Summary:
    episodes, steps, observations = manifest.episodes, manifest.steps, manifest.observations
    return dataclasses.replace(
        summary,
        segments=1,
        episodes=episodes,
        steps=steps,
        simulated_seconds=steps * spec.control_period_s,
        bytes_raw=raw_bytes(spec, episodes=episodes, steps=steps, observations=observations),
    )


def _state_faults(segment: Segment) -> Iterator[Fault]:
    """Check labels, the state of the world in the episodes, and the maps that it refers to."""
    try:
        segment.labels()
    except SegmentCorruptError as error:
        yield Fault(check="label-bounds", message=str(error))
    try:
        segment.world_records()
    except SegmentCorruptError as error:
        yield Fault(check="state-bounds", message=str(error))
        return
    for digest in sorted(segment.map_digests()):
        try:
            read_map(segment.path.parent.parent, digest)
        except DatasetUnreadableError as error:
            yield Fault(check="unreadable", message=str(error))
        except (DatasetError, SpecError) as error:
            yield Fault(check="map-text", message=str(error))


def _read_contents(task: SegmentTask, dataset: Dataset, known: Summary) -> SegmentContents:
    """Read and check the data of a segment whose files are intact, and extend its summary."""
    segment = dataset.open_segment(task.segment_id)
    offset, length = segment.read("episode_offset"), segment.read("episode_length")
    sizes = {"steps": segment.steps, "observations": segment.observations}
    faults = [*named_faults("episode_bounds", episode_bounds(offset, length, **sizes))]
    if faults:
        return SegmentContents(summary=known, faults=tuple(faults))
    data = SegmentData.read(segment)
    try:
        faults += named_faults("other_control", other_control(segment.events()))
    except SegmentCorruptError as error:
        faults.append(Fault(check="event-bounds", message=str(error)))
    faults += _state_faults(segment)
    faults += check_values(data, task.limits)
    table = data.episodes
    parts = [data.of_episodes(window.matches(table)) for window in task.windows]
    return SegmentContents(
        summary=known.merge(summarise(segment.id, data, gamma=task.gamma)),
        windows=tuple(summarise(segment.id, part, gamma=task.gamma) for part in parts),
        plan_index=table.index[table.index >= 0],
        digests=step_digests(data),
        hashes=perceptual_hashes(data),
        faults=tuple(faults),
    )
