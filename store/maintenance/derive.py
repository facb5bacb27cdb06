"""`Derivation`: make the segments of a dataset anew in another one, with some arrays replaced.

`relabel` replaces rewards, computed anew from the stored reward terms; `store render` replaces
pictures, and `upgrade` names. All other files are shared by hard links. A segment's name follows
from its source and the change, so that a second run adds only what is missing.

`upgrade` makes a dataset of format 2, whose image is a named stream, from one of format 1. Nothing
is decoded. Each segment is read back and compared with its source before it is published.
"""

import contextlib
import dataclasses
import difflib
import functools
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
    DatasetError,
    SegmentCorruptError,
    SpecError,
    StorageError,
    abbreviate,
)
from avtd3.store.files import canonical_json, sha256, storage_errors
from avtd3.store.format.layout import (
    FRAMES,
    GROUP_FILE,
    MANIFEST_FILE,
    frames_array,
    segment_arrays,
)
from avtd3.store.format.manifest import FRAMES_CHECKSUMS, FileEntry, Limits, Manifest
from avtd3.store.format.metadata import document_bytes, group_document
from avtd3.store.maintenance.removal import (
    MaintenanceReport,
    Problems,
    exclusive,
)
from avtd3.store.render.text import WorkProgress, file_size, join_lines, plural
from avtd3.store.replaced import RELABEL, REPLACES, UPGRADE, episode_digests, replaced_by
from avtd3.store.seal import array_files
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec
from avtd3.store.staging import publish
from avtd3.store.world_record import publish_map, read_map

_SOURCE_KEYS = frozenset(("dataset", "segment_id", "digest", "before"))
"""Keys of the provenance of a derived segment that name its source, not the change."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a derived dataset changes, the same for all its segments."""

    key: str
    """Key of the provenance under which it is recorded."""
    document: Mapping[str, Any]
    """JSON values that say what is changed."""
    tag: str
    """End of the names of the new segments, another one for each change."""
    arrays: tuple[str, ...]
    """Names of the arrays that it replaces."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewArrays:
    """The files of a segment that replace those of its source."""

    files: Mapping[str, bytes]
    """By path below the segment's directory."""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Changed keys of the provenance."""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """New names of arrays whose files stay the same, by their old names."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DerivedTally:
    """What a derivation has made so far."""

    done: int = 0
    """Segments that were made, skipped or found to be there."""
    segments: int = 0
    steps: int = 0
    bytes_written: int = 0
    bytes_shared: int = 0
    bytes_copied: int = 0
    problems: tuple[str, ...] = ()
    unreadable: int = 0

    def plus(self, **changes: int) -> "DerivedTally":
        """Return the tally with more of some of its counts."""
        grown = {name: getattr(self, name) + more for name, more in changes.items()}
        return dataclasses.replace(self, **grown)


def shared_line(written: int, shared: int) -> str:
    """Say how many bytes a derivation wrote, and how many it shares with the old dataset."""
    return (
        f"{file_size(written)} written, {file_size(shared)} shared with the old dataset by hard "
        "links"
    )


def _renamed(segment: Segment, names: Mapping[str, str]) -> dict[str, str]:
    """Return the new path of each file of a segment, some arrays of which have new names."""
    parts = {path: path.partition("/") for path in segment.files}
    return {
        path: f"{names.get(array, array)}{slash}{rest}"
        for path, (array, slash, rest) in parts.items()
    }


class Derivation:
    """Makes the segments of one dataset anew in another one; both must be open."""

    def __init__(self, old: Dataset, new: Dataset, change: Change) -> None:
        self._old, self._new, self._change = old, new, change
        made = new.snapshot().segments
        self._check_target(made)
        self._digests = {segment.id: segment.manifest_digest for segment in made}
        self._there = set(new.segment_ids())
        self._merged = [segment for segment in made if replaced_by(segment)]
        self._kept: dict[str, Counter[str]] = {}
        self._maps: set[str] = set()
        # Streams that the new dataset does not have.
        counts = {"episodes": 1, "steps": 1, "observations": 2}
        names = [segment_arrays(spec, **counts).keys() for spec in (old.spec, new.spec)]
        self._dropped = names[0] - names[1]
        snapshot = old.snapshot()
        self.refused = snapshot.refused
        """Segments of the old dataset that cannot be read."""
        self._problems = Problems()
        self.segments = sorted(snapshot.segments, key=lambda segment: segment.id)
        """The segments of the old dataset, by name."""
        self.tally = DerivedTally()
        self.made: list[str] = []
        """Ids of the old segments that were made anew."""

    def _name(self, segment_id: str) -> str:
        """Return the id of the new segment: the same suffix for all keeps the order."""
        return f"{segment_id}-{self._change.tag}"

    @property
    def missing(self) -> list[Segment]:
        """The segments that the new dataset lacks."""
        return [s for s in self.segments if self._name(s.id) not in self._there]

    @property
    def already_there(self) -> int:
        """Number of segments that the new dataset has, those just made included."""
        return len(self.segments) - len(self.missing)

    def _check_target(self, made: Sequence[Segment]) -> None:
        expected = dict(self._change.document)
        for segment in made:
            about = segment.provenance.get(self._change.key)
            known = about if isinstance(about, dict) else {}
            for key in sorted((known.keys() - _SOURCE_KEYS) | expected.keys()):
                if known.get(key) != expected.get(key):
                    raise ConfigError(
                        f"{self._new.path} has segment {segment.id}, which was made with {key} "
                        f"{abbreviate(known.get(key), 400)}, expected {expected.get(key)}; choose "
                        "a new directory"
                    )

    def run(
        self,
        segments: Sequence[Segment],
        make: Callable[[Segment], NewArrays],
        clock: Callable[[], float],
        should_stop: Callable[[], bool],
        on_tally: Callable[[DerivedTally], None],
    ) -> bool:
        """Make segments anew; return whether the work was interrupted between two of them."""
        for segment in segments:
            if should_stop():
                return True
            try:
                if self._is_merged(segment):
                    self._there.add(self._name(segment.id))
                else:
                    self._publish(segment, make(segment), clock())
            except (*SEGMENT_ERRORS, DatasetError, SpecError) as error:
                self._problems.add(error)
            self.tally = dataclasses.replace(
                self.tally.plus(done=1),
                problems=tuple(self._problems.texts),
                unreadable=self._problems.unreadable,
            )
            on_tally(self.tally)
        return False

    def run_all(
        self,
        make: Callable[[Segment], NewArrays],
        verb: str,
        clock: Callable[[], float],
        should_stop: Callable[[], bool],
        on_progress: Callable[[WorkProgress], None],
    ) -> dict[str, Any]:
        """Make all missing segments anew; return the fields that the commands' reports share."""
        missing = self.missing

        def show(tally: DerivedTally) -> None:
            on_progress(WorkProgress(verb=verb, done=tally.done, total=len(missing)))

        stopped = self.run(missing, make, clock, should_stop, show)
        tally, problems = self.tally, Problems()
        problems.add(*self.refused)
        return {
            "source": str(self._old.path),
            "dataset": str(self._new.path),
            "segments": tally.segments,
            "steps": tally.steps,
            "already_there": self.already_there - tally.segments,
            "bytes_written": tally.bytes_written,
            "bytes_shared": tally.bytes_shared,
            "bytes_copied": tally.bytes_copied,
            "problems": (*problems.texts, *tally.problems),
            "unreadable": problems.unreadable + tally.unreadable,
            "stopped": stopped,
        }

    def _is_merged(self, segment: Segment) -> bool:
        """Return whether the new dataset has a segment's episodes in one that was merged there.

        What changes cannot be compared, nor need frames be: the same actions, times and vectors
        belong to the same episode.
        """
        name = self._name(segment.id)
        return any(
            self._kept_digests(segment) <= self._kept_digests(merged)
            for merged in self._merged
            if name in replaced_by(merged)
        )

    def _kept_digests(self, segment: Segment) -> Counter[str]:
        if segment.id not in self._kept:
            layouts = segment_arrays(segment.spec, **segment.counts).values()
            frames = [layout.name for layout in layouts if layout.is_sharded]
            digests = episode_digests(segment, without=(*self._change.arrays, *frames))
            self._kept[segment.id] = Counter(digests)
        return self._kept[segment.id]

    def _publish(self, segment: Segment, made: NewArrays, now_s: float) -> None:
        name = self._name(segment.id)
        about: dict[str, Any] = {
            "format_version": self._new.spec.format_version,
            "segment_id": name,
            "spec_digest": self._new.spec_digest,
        }
        files = {GROUP_FILE: document_bytes(group_document(about)), **made.files}
        replaced = {path.split("/")[0] for path in files}
        replaced |= self._dropped - made.renamed.keys()
        kept = {
            new: old
            for old, new in _renamed(segment, made.renamed).items()
            if old.split("/")[0] not in replaced
        }
        entries = {path: FileEntry(len(data), sha256(data)) for path, data in files.items()}
        manifest = Manifest(
            **(about | segment.counts),
            files=entries | {new: segment.files[old] for new, old in kept.items()},
            provenance={**self._provenance(segment, now_s), **made.provenance},
            digest="",
        )
        files[MANIFEST_FILE] = manifest.sealed().to_bytes()
        target = self._new.segments_path / name
        self._copy_maps(segment)
        check = functools.partial(self._verify, segment, made.renamed) if made.renamed else None
        shared = {new: segment.path / old for new, old in kept.items()}
        try:
            publish(self._new.staging_path / name, target, files, shared=shared, check=check)
        except StorageError:
            segment.verify()  # raises a clearer error if the segment was removed
            raise
        self._there.add(name)
        self.made.append(segment.id)
        self.tally = self.tally.plus(
            segments=1, steps=segment.steps, bytes_written=sum(map(len, files.values()))
        )
        with storage_errors(target):
            for path, origin in shared.items():
                kind = "shared" if (target / path).samefile(origin) else "copied"
                self.tally = self.tally.plus(**{f"bytes_{kind}": manifest.files[path].size})

    def _verify(self, segment: Segment, renamed: Mapping[str, str], staging: Path) -> None:
        """Read a segment with renamed arrays back, and compare it with its source."""
        written = Segment(staging, self._new.spec, self._new.spec_digest, Limits())
        written.verify()
        for old, new in _renamed(segment, renamed).items():
            if new != old and written.files[new] != segment.files[old]:
                raise SegmentCorruptError(
                    f"{staging} has another {old} than segment {segment.id}; nothing was "
                    "published. Check the memory and the disk of this machine, then try again"
                )
        skipped = (*renamed, *renamed.values())
        ours, theirs = (list(episode_digests(s, without=skipped)) for s in (written, segment))
        if ours != theirs:
            raise SegmentCorruptError(
                f"{staging} does not read back as segment {segment.id}; nothing was published. "
                "Check the memory and the disk of this machine, then try again"
            )

    def _copy_maps(self, segment: Segment) -> None:
        """Copy the texts of a segment's road networks; the audit reports what is missing."""
        for digest in segment.map_digests() - self._maps:
            with contextlib.suppress(DatasetError, SpecError):
                publish_map(self._new.path, read_map(self._old.path, digest))
            self._maps.add(digest)

    def _provenance(self, segment: Segment, now_s: float) -> dict[str, Any]:
        about, key = dict(segment.provenance), self._change.key
        replaced = about.pop(REPLACES, None)
        if isinstance(replaced, dict):
            # The segments that the old one replaces may already be in the new dataset.
            about[REPLACES] = {
                name: self._digests.get(name, "") for name in map(self._name, replaced)
            }
        return {
            **about,
            "avtd3": importlib.metadata.version("avtd3"),
            "python": platform.python_version(),
            "host": platform.node(),
            "sealed_at": now_s,
            key: {
                "dataset": str(self._old.path),
                "segment_id": segment.id,
                "digest": segment.manifest_digest,
                **self._change.document,
                **({"before": about[key]} if key in about else {}),
            },
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeReport(MaintenanceReport):
    """What `upgrade` made."""

    source: str
    stream: str
    """Name of the stream that the image has become."""
    segments: int
    """Segments that were made and compared with their sources."""
    steps: int
    already_there: int
    """Segments that an earlier run had made."""
    bytes_written: int
    bytes_shared: int
    """Size of the files that both datasets share through hard links."""
    bytes_copied: int
    """Size of the files that were copied because hard links are not possible."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        made = f"{plural(self.segments, 'segment')} of {self.steps:,} steps"
        lines = [
            f"upgraded {made} into {self.dataset}, format 2, and compared them; the image is the "
            f"stream {self.stream}",
            shared_line(self.bytes_written, self.bytes_shared),
        ]
        if self.bytes_copied:
            lines.append(f"{file_size(self.bytes_copied)} copied: hard links are not possible")
        if self.already_there:
            lines.append(f"{plural(self.already_there, 'segment')} made before")
        return join_lines([*lines, *self.notes("skipped")])


def upgrade(
    source: Path,
    target: Path,
    *,
    stream: str = "front",
    clock: Callable[[], float] = time.time,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> UpgradeReport:
    """Make a dataset of format 2 with the same episodes, or add what is new to it.

    ``should_stop`` is called before each segment; True ends the command, and another one continues.

    Raises:
        ConfigError: The dataset has no image or is one of format 2, or ``target`` is the source.
        SpecError: ``stream`` cannot be the name of a stream.
    """
    old = Dataset.open(source)
    if old.spec.image is None:
        found = "named streams already" if old.spec.streams else "no image"
        raise ConfigError(f"{source} has {found}, expected an image; there is nothing to upgrade")
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the source dataset itself; name a new directory")
    spec = dataclasses.replace(old.spec, image=None, streams={stream: old.spec.image})
    new, array = Dataset.create(target, spec), frames_array(spec, stream)
    document = {"format_version": spec.format_version, "stream": stream}
    tag = sha256(canonical_json(document))[:8]
    change = Change(key=UPGRADE, document=document, tag=tag, arrays=())

    def make(segment: Segment) -> NewArrays:
        about = segment.provenance
        named = {key: {array: about[key]} for key in ("codec", FRAMES_CHECKSUMS) if key in about}
        return NewArrays(files={}, provenance=named, renamed={FRAMES: array})

    with exclusive(new):
        work = Derivation(old, new, change)
        counts = work.run_all(make, "upgraded", clock, should_stop, on_progress)
    return UpgradeReport(stream=stream, **counts)


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


def _full_weights(weights: Mapping[str, float], spec: EpisodeSpec) -> dict[str, float]:
    """Return a factor for each reward term, in the order of the spec."""
    terms = spec.reward_terms
    if not terms:
        raise SpecError("the dataset stores rewards without their terms; nothing can be weighted")
    for name, weight in weights.items():
        _check_term(f"weight of {abbreviate(name)}", name, weight, terms)
    return {name: float(weights.get(name, 1.0)) for name in terms}


def _check_term(what: str, name: str, number: object, terms: Sequence[str]) -> None:
    """Raise ConfigError if a term is unknown or the number for it is not finite."""
    if name not in terms:
        near = difflib.get_close_matches(name, terms, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{what}: the terms are {', '.join(terms)}{hint}")
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ConfigError(f"{what} is {abbreviate(number)}, expected a finite number")


def _weighted(
    segment: Segment, weights: Sequence[float], factors: Sequence[Factor]
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
    weights: Mapping[str, float]
    factors: tuple[Factor, ...]
    segments: int
    steps: int
    already_there: int
    """Segments that an earlier run had made."""
    bytes_written: int
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
                shared_line(self.bytes_written, self.bytes_shared),
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
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> RelabelReport:
    """Make a dataset of the same episodes with weighted reward terms, or add what is new to it.

    ``weights`` multiply reward terms by name; other terms get 1. ``factors`` also multiply them, in
    some steps. ``should_stop`` is called before each segment; True ends the command.
    """
    old = Dataset.open(source)
    full = _full_weights(weights, old.spec)
    for each in factors:
        what = f"factor on {abbreviate(each.term)} where {abbreviate(each.where)} is low"
        _check_term(what, each.term, each.factor, old.spec.reward_terms)
        _check_term(f"limit of the {what}", each.where, each.below, old.spec.reward_terms)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the source dataset itself; name a new directory")
    new = Dataset.create(target, old.spec)
    document: dict[str, Any] = {"weights": full}
    if factors:
        document["factors"] = [dataclasses.asdict(each) for each in factors]
    # Without factors, the tag of the weights alone: that of earlier versions.
    tag = sha256(canonical_json(document if factors else full))[:8]
    change = Change(key=RELABEL, document=document, tag=tag, arrays=_NEW_ARRAYS)
    returns: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def make(segment: Segment) -> NewArrays:
        values = _weighted(segment, tuple(full.values()), factors)
        returns[segment.id] = (segment.read("episode_return"), values["episode_return"])
        layouts = segment_arrays(segment.spec, **segment.counts)
        parts = (array_files(layouts[name], values[name]) for name in _NEW_ARRAYS)
        return NewArrays(files={path: data for part in parts for path, data in part.items()})

    with exclusive(new):
        work = Derivation(old, new, change)
        counts = work.run_all(make, "relabelled", clock, should_stop, on_progress)
    made = zip(*(returns[name] for name in work.made), strict=True)
    before, after = [float(np.concatenate(each).mean()) for each in made] or (0.0, 0.0)
    return RelabelReport(
        weights=full,
        factors=tuple(factors),
        mean_return_before=before,
        mean_return_after=after,
        **counts,
    )
