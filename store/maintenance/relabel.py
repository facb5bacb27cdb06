"""Make a dataset of the same episodes with rewards computed anew from the stored reward terms."""

import dataclasses
import difflib
import importlib.metadata
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    SEGMENT_ERRORS,
    ConfigError,
    SpecError,
    StorageError,
    abbreviate,
)
from avtd3.store.files import canonical_json, sha256, storage_errors
from avtd3.store.format.layout import FORMAT_VERSION, GROUP_FILE, MANIFEST_FILE, segment_arrays
from avtd3.store.format.manifest import FileEntry, Manifest
from avtd3.store.format.metadata import array_document, document_bytes, group_document
from avtd3.store.maintenance.removal import (
    MaintenanceProgress,
    MaintenanceReport,
    Problems,
    exclusive,
)
from avtd3.store.render.text import file_size, join_lines, plural
from avtd3.store.replaced import RELABEL, REPLACES, episode_digests, replaced_by
from avtd3.store.seal import encode_values
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec
from avtd3.store.staging import publish


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A factor on one reward term, in the steps where a stored term is below a limit.

    Several factors on one term are multiplied. So a reward can be a product, such as progress that
    counts half in uncomfortable steps and nothing outside the lane.
    """

    term: str
    """Term that is multiplied."""
    where: str
    """Term that is compared with the limit, as stored, before any weight."""
    below: float
    """The limit: the factor applies where the stored value is smaller."""
    factor: float


def full_weights(weights: Mapping[str, float], spec: EpisodeSpec) -> dict[str, float]:
    """Return a factor for each reward term, in the order of the spec."""
    terms = spec.reward_terms
    if not terms:
        raise SpecError("the dataset stores rewards without their terms; nothing can be weighted")
    for name, weight in weights.items():
        _check_term(f"weight of {abbreviate(name)}", name, weight, terms)
    return {name: float(weights.get(name, 1.0)) for name in terms}


def _check_term(what: str, name: str, number: float, terms: Sequence[str]) -> None:
    """Raise ConfigError if a term is unknown or the number for it is not finite."""
    if name not in terms:
        near = difflib.get_close_matches(name, terms, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{what}: the terms are {', '.join(terms)}{hint}")
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not math.isfinite(number):
        raise ConfigError(f"{what} is {abbreviate(number)}, expected a finite number")


def _check_factors(factors: Sequence[Factor], spec: EpisodeSpec) -> None:
    for each in factors:
        what = f"factor on {abbreviate(each.term)} where {abbreviate(each.where)} is low"
        _check_term(what, each.term, each.factor, spec.reward_terms)
        _check_term(f"limit of the {what}", each.where, each.below, spec.reward_terms)


def weighted(
    segment: Segment, weights: Sequence[float], factors: Sequence[Factor] = ()
) -> dict[str, NDArray[Any]]:
    """Compute the reward terms, rewards and returns of a segment with weights and factors.

    Products are rounded to float32. A reward is the sum of its rounded terms, and a return the sum
    of its rounded rewards, both added in double precision.

    Returns:
        ``reward_terms`` float32 (N, R), ``reward`` float32 (N,), ``episode_return`` float64 (E,).
    """
    table = segment.episode_table()
    with np.errstate(over="ignore", invalid="ignore"):
        stored, names = segment.read("reward_terms").astype(np.float64), segment.spec.reward_terms
        products = stored * np.asarray(weights)
        for each in factors:
            is_low = stored[:, names.index(each.where)] < each.below
            products[is_low, names.index(each.term)] *= each.factor
        terms = products.astype(np.float32)
        reward = terms.sum(axis=1, dtype=np.float64).astype(np.float32)
    if not (np.isfinite(terms).all() and np.isfinite(reward).all()):
        raise ConfigError(
            f"segment {segment.id}: with weights {list(weights)} a reward exceeds the range of "
            "float32; choose smaller weights"
        )
    returns = [
        float(reward[start : start + length].sum(dtype=np.float64))
        for start, length in zip(table.offset.tolist(), table.length.tolist(), strict=True)
    ]
    return {"reward_terms": terms, "reward": reward, "episode_return": np.array(returns)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RelabelReport(MaintenanceReport):
    """What `relabel` made."""

    source: str
    """Path of the old dataset."""
    weights: Mapping[str, float]
    """Weight of each reward term."""
    factors: tuple[Factor, ...]
    """Factors that apply in some steps."""
    segments: int
    """Segments that were made."""
    steps: int
    """Steps in these segments."""
    already_there: int
    """Segments that an earlier run had made."""
    bytes_written: int
    """Size of the files that were written."""
    bytes_shared: int
    """Size of the files that both datasets share through hard links."""
    bytes_copied: int
    """Size of the files that were copied because hard links are not possible."""
    mean_return_before: float
    """Old mean return of the episodes in the new segments; 0 if there are none."""
    mean_return_after: float
    """New mean return of these episodes."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        made = f"{plural(self.segments, 'segment')} of {self.steps:,} steps"
        lines = [f"relabelled {made} into {self.dataset}"]
        if self.segments:
            lines += [
                f"mean return {self.mean_return_before:.3f} -> {self.mean_return_after:.3f}",
                f"{file_size(self.bytes_written)} written, {file_size(self.bytes_shared)} "
                "shared with the old dataset by hard links",
            ]
        if self.bytes_copied:
            lines.append(
                f"{file_size(self.bytes_copied)} copied: hard links are not possible from "
                f"{self.source} to {self.dataset}"
            )
        if self.already_there:
            lines.append(f"{plural(self.already_there, 'segment')} made before")
        return join_lines([*lines, *self.notes("skipped")])


_NEW_ARRAYS = ("reward", "reward_terms", "episode_return")


def relabel(
    source: Path,
    target: Path,
    weights: Mapping[str, float],
    *,
    factors: Sequence[Factor] = (),
    clock: Callable[[], float] = time.time,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[MaintenanceProgress], None] = lambda _: None,
) -> RelabelReport:
    """Make a dataset of the same episodes with weighted reward terms, or add what is new to it.

    ``weights`` multiply reward terms by name; other terms get 1. ``factors`` also multiply them,
    in some steps. ``should_stop`` is called
    before each segment; True ends the command.
    """
    old = Dataset.open(source)
    full = full_weights(weights, old.spec)
    _check_factors(factors, old.spec)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the source dataset itself; name a new directory")
    new = Dataset.create(target, old.spec)
    with exclusive(new):
        work = _Relabelling(old, new, full, tuple(factors))
        stopped = work.run(clock, should_stop, on_progress)
        return work.report(stopped=stopped)


class _Relabelling:
    """One relabelling of a dataset."""

    def __init__(
        self,
        old: Dataset,
        new: Dataset,
        weights: Mapping[str, float],
        factors: tuple[Factor, ...],
    ) -> None:
        self._old, self._new, self._weights, self._factors = old, new, weights, factors
        self._about: dict[str, Any] = {"weights": dict(weights)}
        if factors:
            self._about["factors"] = [dataclasses.asdict(each) for each in factors]
        # Without factors, the tag of the weights alone: that of earlier versions.
        tagged = self._about if factors else dict(weights)
        self._tag = sha256(canonical_json(tagged))[:8]
        made = new.snapshot().segments
        self._check_target(made)
        self._digests = {segment.id: segment.manifest_digest for segment in made}
        self._there = set(new.segment_ids())
        self._merged = [segment for segment in made if replaced_by(segment)]
        self._kept: dict[str, Counter[str]] = {}
        snapshot = old.snapshot()
        self._segments = sorted(snapshot.segments, key=lambda segment: segment.id)
        self._problems = Problems()
        self._problems.add(*snapshot.refused)
        self._made: list[Segment] = []
        self._written = self._shared = self._copied = 0
        self._returns: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def _name(self, segment_id: str) -> str:
        """Return the id of the new segment: the same suffix for all keeps the order."""
        return f"{segment_id}-{self._tag}"

    def _check_target(self, made: Sequence[Segment]) -> None:
        for segment in made:
            relabelled = segment.provenance.get(RELABEL)
            known = relabelled if isinstance(relabelled, dict) else {}
            for key in ("weights", "factors"):
                found, expected = known.get(key), self._about.get(key)
                if found != expected:
                    raise ConfigError(
                        f"{self._new.path} has segment {segment.id}, which was made with {key} "
                        f"{abbreviate(found, 400)}, expected {expected}; choose a new directory"
                    )

    def run(
        self,
        clock: Callable[[], float],
        should_stop: Callable[[], bool],
        on_progress: Callable[[MaintenanceProgress], None],
    ) -> bool:
        """Make the missing segments; return whether the work was interrupted."""
        missing = [s for s in self._segments if self._name(s.id) not in self._there]
        for number, segment in enumerate(missing, start=1):
            if should_stop():
                return True
            try:
                if self._is_merged(segment):
                    self._there.add(self._name(segment.id))
                else:
                    self._make(segment, clock())
            except SEGMENT_ERRORS as error:
                self._problems.add(error)
            on_progress(MaintenanceProgress(verb="relabelled", done=number, total=len(missing)))
        return False

    def _is_merged(self, segment: Segment) -> bool:
        """Return whether the new dataset has a segment's episodes in one that was merged there.

        What relabelling changes cannot be compared, nor need frames be: the same actions, times and
        vectors belong to the same episode.
        """
        name = self._name(segment.id)
        return any(
            self._kept_digests(segment) <= self._kept_digests(merged)
            for merged in self._merged
            if name in replaced_by(merged)
        )

    def _kept_digests(self, segment: Segment) -> Counter[str]:
        if segment.id not in self._kept:
            digests = episode_digests(segment, without=(*_NEW_ARRAYS, "frames"))
            self._kept[segment.id] = Counter(digests)
        return self._kept[segment.id]

    def _make(self, segment: Segment, now_s: float) -> None:
        values = weighted(segment, tuple(self._weights.values()), self._factors)
        name = self._name(segment.id)
        files = _new_files(segment, values, name)
        shared = {
            path: segment.path / path
            for path in segment.files
            if path != GROUP_FILE and path.split("/")[0] not in _NEW_ARRAYS
        }
        files[MANIFEST_FILE] = self._manifest(segment, name, files, shared, now_s)
        target = self._new.segments_path / name
        try:
            publish(self._new.staging_path / name, target, files, shared=shared)
        except StorageError:
            segment.verify()  # raises a clearer error if the segment was removed
            raise
        self._made.append(segment)
        self._returns.append((segment.read("episode_return"), values["episode_return"]))
        self._written += sum(map(len, files.values()))
        with storage_errors(target):
            for path, origin in shared.items():
                if (target / path).samefile(origin):
                    self._shared += segment.files[path].size
                else:
                    self._copied += segment.files[path].size

    def _manifest(
        self,
        segment: Segment,
        name: str,
        files: Mapping[str, bytes],
        shared: Mapping[str, Path],
        now_s: float,
    ) -> bytes:
        entries = {path: FileEntry(len(data), sha256(data)) for path, data in files.items()}
        entries |= {path: segment.files[path] for path in shared}
        manifest = Manifest(
            segment_id=name,
            spec_digest=self._new.spec_digest,
            files=entries,
            provenance=self._provenance(segment, now_s),
            digest="",
            **segment.counts,
        )
        return manifest.sealed().to_bytes()

    def _provenance(self, segment: Segment, now_s: float) -> dict[str, Any]:
        about = dict(segment.provenance)
        replaced = about.pop(REPLACES, None)
        if isinstance(replaced, dict):
            # The segments that the old one replaces may already be relabelled in the new dataset.
            about[REPLACES] = {
                name: self._digests.get(name, "") for name in map(self._name, replaced)
            }
        return {
            **about,
            "avtd3": importlib.metadata.version("avtd3"),
            "python": platform.python_version(),
            "host": platform.node(),
            "sealed_at": now_s,
            RELABEL: {
                "dataset": str(self._old.path),
                "segment_id": segment.id,
                "digest": segment.manifest_digest,
                **self._about,
                **({"before": about[RELABEL]} if RELABEL in about else {}),
            },
        }

    def report(self, *, stopped: bool) -> RelabelReport:
        """Return what was made."""
        before, after = (_mean([pair[n] for pair in self._returns]) for n in (0, 1))
        return RelabelReport(
            source=str(self._old.path),
            dataset=str(self._new.path),
            weights=self._weights,
            factors=self._factors,
            segments=len(self._made),
            steps=sum(segment.steps for segment in self._made),
            already_there=sum(self._name(s.id) in self._there for s in self._segments),
            bytes_written=self._written,
            bytes_shared=self._shared,
            bytes_copied=self._copied,
            mean_return_before=before,
            mean_return_after=after,
            problems=tuple(self._problems.texts),
            unreadable=self._problems.unreadable,
            stopped=stopped,
        )


def _new_files(segment: Segment, values: Mapping[str, NDArray[Any]], name: str) -> dict[str, bytes]:
    """Return the files that differ from those of the old segment, without the manifest."""
    about = {
        "format_version": FORMAT_VERSION,
        "segment_id": name,
        "spec_digest": segment.spec.digest,
    }
    files = {GROUP_FILE: document_bytes(group_document(about))}
    layouts = segment_arrays(segment.spec, **segment.counts)
    for array in _NEW_ARRAYS:
        layout = layouts[array]
        document = array_document(layout, codec=None, attributes={})
        files[layout.metadata_path] = document_bytes(document)
        files[layout.chunk_path] = encode_values(layout, values[array])
    return files


def _mean(returns: Sequence[NDArray[np.float64]]) -> float:
    return float(np.concatenate(returns).mean()) if returns else 0.0
