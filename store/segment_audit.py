"""The audit of one segment: files first, then arrays, then what they mean.

A segment whose bytes are wrong is not judged further: what its numbers say would be noise. This
is the unit of work that Dask hands to threads or to a cluster, so all in and out is plain data.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.checks import NUMBER_CHECKS, episode_bounds
from avtd3.store.dataset import Dataset
from avtd3.store.errors import Avtd3Error, SegmentNotFoundError
from avtd3.store.evidence import CheckLimits, Evidence
from avtd3.store.findings import CHECKS, Fault, FindingLog
from avtd3.store.frame_checks import FRAME_CHECKS, scan_frames
from avtd3.store.integrity import array_faults, file_faults, list_files, open_manifest, spec_faults
from avtd3.store.layout import segment_arrays
from avtd3.store.manifest import Manifest
from avtd3.store.plausibility import PLAUSIBILITY_CHECKS
from avtd3.store.segment import EpisodeTable, Segment
from avtd3.store.spec import EpisodeSpec
from avtd3.store.statistics import (
    Distribution,
    Summary,
    count_labels,
    distributions_by_name,
    kind_of_label,
)


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


def audit_segment(task: SegmentTask) -> SegmentAudit:
    """Audit one segment; whatever is wrong with it becomes a finding."""
    path = Path(task.dataset) / "segments" / task.segment_id
    log = FindingLog(limit=task.max_findings)
    manifest, faults = open_manifest(path)
    summary, index = Summary(), np.empty(0, np.int64)
    try:
        found = list_files(path)
        summary = Summary(bytes_on_disk=sum(found.values()))
        if manifest is not None:
            spec = Dataset.open(Path(task.dataset)).spec
            faults += _byte_faults(path, manifest, spec, found, hashes=task.judged)
            if not _has_error(faults):
                # What a damaged segment claims to hold, no reader gets to see.
                summary = summary.merge(_claims(manifest, spec))
                if task.judged:
                    judged, index, more = _judge(task, spec)
                    summary = summary.merge(judged)
                    faults += more
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
        episode_index=index,
    )


def _byte_faults(
    path: Path, manifest: Manifest, spec: EpisodeSpec, found: dict[str, int], *, hashes: bool
) -> list[Fault]:
    faults = [*spec_faults(manifest, spec), *file_faults(path, manifest, found, hashes=hashes)]
    if hashes and not _has_error(faults):
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


def _judge(task: SegmentTask, spec: EpisodeSpec) -> tuple[Summary, NDArray[np.int64], list[Fault]]:
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
        return Summary(), np.empty(0, np.int64), faults
    table = segment.episode_table()
    evidence = _read_evidence(segment, spec, table)
    for check in (*NUMBER_CHECKS, *PLAUSIBILITY_CHECKS, *FRAME_CHECKS):
        faults += check(evidence, spec, task.limits)
    planned = table.index[table.index >= 0]
    return _summarise(segment.id, evidence, table, spec), planned, faults


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


def _summarise(
    segment_id: str, evidence: Evidence, table: EpisodeTable, spec: EpisodeSpec
) -> Summary:
    components = {
        "action": distributions_by_name(spec.action_names, evidence.action, f"{segment_id}/action")
    }
    magnitudes: dict[str, float] = {}
    if evidence.vector is not None:
        components["vector"] = distributions_by_name(
            spec.vector_names, evidence.vector, f"{segment_id}/vector", spec.vector_scales
        )
    if evidence.reward_terms is not None:
        components["reward_terms"] = distributions_by_name(
            spec.reward_terms, evidence.reward_terms, f"{segment_id}/reward_terms"
        )
        magnitudes = dict(_magnitudes(spec.reward_terms, evidence.reward_terms))
    if evidence.frames is not None:
        grey = Distribution.of(evidence.frames.mean, f"{segment_id}/mean grey")
        components["frames"] = {"mean grey": grey}
    return Summary(
        segments_judged=1,
        returns=Distribution.of(table.episode_return, f"{segment_id}/return"),
        lengths=Distribution.of(table.length, f"{segment_id}/length"),
        counts=_count(table),
        coverage=Counter(
            zip(map(str, table.scenario.tolist()), map(kind_of_label, table.town), strict=True)
        ),
        components=components,
        magnitudes=magnitudes,
    )


def _magnitudes(names: tuple[str, ...], terms: NDArray[np.float32]) -> Iterator[tuple[str, float]]:
    for part, name in enumerate(names):
        values = np.abs(terms[:, part].astype(np.float64))
        yield name, float(values[np.isfinite(values)].sum())


def _count(table: EpisodeTable) -> dict[str, Counter[str]]:
    """Episodes per value of what a person asks about."""
    return {
        "end_reason": Counter(table.end_reason),
        "scenario": Counter(map(str, table.scenario.tolist())),
        "policy_version": Counter(map(str, table.policy_version.tolist())),
        "driver": Counter(table.driver),
        "world": Counter(table.world),
        "town": count_labels(list(table.town)),
        "weather": count_labels(list(table.weather)),
    }
