"""`Dataset`: a directory of segments, and `Snapshot`: its segments at one time."""

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode import Episode, SegmentReader
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import (
    SEGMENT_ERRORS,
    DatasetError,
    DatasetUnreadableError,
    FormatVersionError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SegmentUnreadableError,
    SpecError,
    abbreviate,
    advice,
)
from avtd3.store.files import (
    DAY_S,
    aside_of,
    check_local,
    create_exclusive,
    exists,
    fsync_directory,
    is_directory,
    is_passing,
    list_directory,
    move_directory,
    read_json,
    retry,
    show_path,
    storage_errors,
    tree_stamp,
)
from avtd3.store.filters import EpisodeFilter, parse_filter
from avtd3.store.format.layout import (
    FORMAT_VERSION,
    GROUP_FILE,
    MANIFEST_FILE,
    MAPS,
    QUARANTINE,
    SEGMENTS,
    STAGING,
)
from avtd3.store.format.manifest import Limits
from avtd3.store.format.metadata import document_bytes, group_document
from avtd3.store.locks import LOCK_FILE
from avtd3.store.replaced import (
    Claim,
    ClaimChecker,
    claims_among,
    claims_in_circles,
    names_another,
    replaced_by,
)
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec
from avtd3.store.staging import clean, remove_segments


def _check_free(path: Path) -> None:
    """Raise if a new dataset would be mixed with other files."""
    with storage_errors(path):
        if exists(path) and not is_directory(path):
            raise DatasetError(f"dataset {path} is a file, expected a directory or nothing")
        found = {entry.name for entry in path.iterdir()} if exists(path) else set()
    # Another process may have created this dataset meanwhile.
    if around := dataset_around(path.absolute().parent):
        raise DatasetError(f"{path} is in the dataset {around}; collect into {around} instead")
    others = sorted(name for name in found - _OWN_NAMES if not name.endswith(LOCK_FILE))
    if others:
        raise DatasetError(
            f"{path} is not empty and not a dataset (it contains {abbreviate(others[0])}); "
            "choose an empty or a new directory"
        )


def _read_spec(path: Path) -> EpisodeSpec:
    """Read the spec of the dataset in a directory."""
    group = path / GROUP_FILE
    try:
        try:
            document = read_json(group)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DatasetError(_explain_missing(path)) from error
    except DatasetError:
        raise
    except OSError as error:
        kind = DatasetUnreadableError if is_passing(error) else DatasetError
        raise kind(f"{group} cannot be read: {advice(error, reads=True)}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not a dataset: {error}") from error
    return parse_spec(group, document)


def dataset_around(path: Path) -> Path | None:
    """Return the nearest dataset that a path is in, or is; None if there is none."""
    place = path.absolute()
    for folder in (place, *place.parents):
        if exists(folder / GROUP_FILE) and is_directory(folder / SEGMENTS):
            return folder
    return None


def _explain_missing(path: Path) -> str:
    if not exists(path):
        return f"dataset {path} does not exist; avtd3 collect {path} creates one"
    if not is_directory(path):
        return f"dataset {path} is a file, expected a directory"
    if exists(path / ".zgroup") or exists(path / ".zarray"):
        return f"{path} is a Zarr v2 store, expected an avtd3 dataset (Zarr v3)"
    around = dataset_around(path)
    if around is not None:
        return f"{path} is a part of the dataset {around}; give {around} instead"
    return f"{path} is not a dataset: it has no {GROUP_FILE}; avtd3 collect creates one"


def parse_spec(group: Path, document: Any) -> EpisodeSpec:  # noqa: ANN401 - any JSON value
    """Return the spec in the content of a dataset's ``zarr.json``, of which this is the path."""
    where, file = show_path(group.parent), show_path(group)
    attributes = document.get("attributes") if isinstance(document, dict) else None
    ours = attributes.get("avtd3") if isinstance(attributes, dict) else None
    if not isinstance(ours, dict) or document.get("node_type") != "group":
        raise DatasetError(f"{where} is not a dataset: {group.name} has no avtd3 attributes")
    version = ours.get("format_version")
    if type(version) is not int or version < 1:
        raise DatasetError(
            f"{file}: format_version is {abbreviate(version)}, expected a whole number"
        )
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{where} has format {version}, this version of avtd3 reads up to "
            f"{FORMAT_VERSION}: install a newer avtd3"
        )
    if "spec" not in ours:
        raise DatasetError(f"{where} is a part of a dataset, not a dataset: it has no spec")
    try:
        spec = EpisodeSpec.from_json(ours["spec"])
    except SpecError as error:
        raise DatasetError(f"{file}: {error}") from error
    if version != spec.format_version:
        raise DatasetError(
            f"{file}: format_version is {version}, but the spec is one of format "
            f"{spec.format_version}; restore the file"
        )
    if spec.digest != ours.get("spec_digest"):
        raise DatasetError(
            f"{file}: the spec was edited (its digest is {spec.digest:.12}, the file says "
            f"{ours.get('spec_digest')!s:.12}); restore the file: the segments have the old spec"
        )
    return spec


_OWN_NAMES = frozenset((SEGMENTS, STAGING, QUARANTINE, MAPS, GROUP_FILE))


FIRST_WAIT_S = 1.0
"""Seconds until a refused segment whose files look the same is tried again for the first time."""
LONGEST_WAIT_S = 300.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A segment that a snapshot excludes because it is bad; a refresh tries it again.

    That is at once if the size, a time or the inode of a file has changed, and otherwise after
    `FIRST_WAIT_S`, then after twice as long each time, up to `LONGEST_WAIT_S`.
    """

    segment_id: str
    """Name of its directory."""
    reason: str
    """What is wrong with it, and how to fix it."""
    is_unreadable: bool = False
    """Whether it cannot be read now: an I/O error, which says nothing about its bytes."""
    stamp: str = dataclasses.field(default="", compare=False, repr=False)
    """What its files looked like, see `avtd3.store.files.tree_stamp`."""
    tries: int = dataclasses.field(default=0, compare=False, repr=False)
    """How often it was refused while they looked so."""
    next_try_s: float = dataclasses.field(default=0.0, compare=False, repr=False)
    """When it is tried again in any case, by `time.monotonic`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The segments of a dataset at one time, in order; made by `Dataset.snapshot`.

    Sampling from the same snapshot with the same seed gives the same batches.

    Example:
        >>> import tempfile
        >>> from avtd3.store import Dataset, EpisodeSpec
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> Dataset.create(tempfile.mkdtemp(), spec).snapshot()
        Snapshot(0 segments, 0 refused)
    """

    segments: tuple[Segment, ...]
    """Ordered by time; a refresh appends new ones."""
    refused: tuple[Refusal, ...] = ()
    """Segments that could not be opened."""
    replaced: tuple[Segment, ...] = ()
    """Segments that are excluded because others are proven to contain their episodes."""
    claims: tuple[Claim, ...] = ()
    """What segments say about others that are there: that they replace them. A claim that is not
    proven hides nothing."""
    earlier: tuple[Refusal, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """Past refusals of segments that could be opened since, should they be refused again."""

    @property
    def steps(self) -> int:
        """Number of steps in all its segments."""
        return sum(segment.steps for segment in self.segments)

    @property
    def digest(self) -> str:
        """SHA-256 over the names and manifest digests of its segments, in order."""
        lines = (f"{segment.id} {segment.manifest_digest}\n" for segment in self.segments)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def unproven(self) -> tuple[Claim, ...]:
        """Claims that were found untrue."""
        return tuple(claim for claim in self.claims if not claim.is_proven)

    def __repr__(self) -> str:
        return f"Snapshot({len(self.segments)} segments, {len(self.refused)} refused)"


class Dataset:
    """A directory of segments; writers publish into it while others read.

    Make one with `Dataset.create` or `Dataset.open`. What reads raises `DatasetError` if it is not
    a dataset, `DatasetUnreadableError` if it cannot be read now, and the errors of `Segment`; what
    writes raises `StorageError`.

    Example:
        >>> import tempfile
        >>> from avtd3.store import EpisodeSpec
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> path = tempfile.mkdtemp()
        >>> dataset = Dataset.create(path, spec)
        >>> Dataset.open(path).spec == spec
        True
        >>> list(dataset.episodes())
        []
    """

    def __init__(self, path: Path, spec: EpisodeSpec) -> None:
        self.path = path
        """The directory."""
        self.spec = spec
        """What a step of its episodes consists of."""
        self.segments_path = path / SEGMENTS
        """Directory of the published segments."""
        self.staging_path = path / STAGING
        """Directory in which segments are written before they are published."""
        self.quarantine_path = path / QUARANTINE
        """Directory of quarantined segments."""

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r})"

    @functools.cached_property
    def spec_digest(self) -> str:
        """Digest of the spec; every segment has it, too."""
        return self.spec.digest

    @classmethod
    def create(cls, path: Path | str, spec: EpisodeSpec) -> Self:
        """Create a dataset, or open an existing one with an equal spec.

        Any number of processes may do so at the same time.

        Args:
            path: Directory; its parents are created, too.
            spec: What a step consists of.

        Raises:
            ConfigError: The path is a URL.
            SpecError: There is a dataset with another spec; the message says what differs.
            DatasetError: The path is a file, or a directory that contains something else.
            StorageError: The directory cannot be written.
        """
        check_local(path)
        path = Path(path)
        group = path / GROUP_FILE
        with storage_errors(path):
            is_there = group.is_file()
        if not is_there:
            _check_free(path)
            with storage_errors(path):
                for directory in (path, path / SEGMENTS, path / STAGING):
                    directory.mkdir(parents=True, exist_ok=True)
                fsync_directory(path.parent)
            attributes = {
                "format_version": spec.format_version,
                "spec": spec.to_json(),
                "spec_digest": spec.digest,
            }
            aside = aside_of(path / STAGING / GROUP_FILE)
            create_exclusive(group, document_bytes(group_document(attributes)), aside)
        dataset = cls.open(path)
        if dataset.spec != spec:
            raise SpecError(
                f"dataset {path} has another spec ({dataset.spec.difference(spec)}); "
                "collect into another directory, or with the dataset's settings"
            )
        return dataset

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a dataset.

        Raises:
            ConfigError: The path is a URL.
            DatasetError: There is no dataset at the path, or its spec was edited.
            FormatVersionError: This version cannot read the dataset's format.
        """
        check_local(path)
        path = Path(path)
        return cls(path, _read_spec(path))

    def segment_ids(self) -> list[str]:
        """Return the names of the published segments, oldest first."""
        return [name for name in self._directories() if self.is_sealed(name)]

    def unsealed_ids(self) -> list[str]:
        """Return the names in ``segments/`` that have no manifest: half-copied or damaged."""
        return [name for name in self._directories() if not self.is_sealed(name)]

    def _directories(self) -> list[str]:
        try:
            folders, _ = list_directory(self.segments_path)
        except FileNotFoundError:
            return []
        except OSError as error:
            kind = DatasetUnreadableError if is_passing(error) else DatasetError
            says = f"{self.segments_path} cannot be listed: {advice(error, reads=True)}"
            raise kind(says) from error
        return [name for name in folders if not name.startswith(".")]

    def is_sealed(self, name: str) -> bool:
        """Return whether a segment has a manifest; one that cannot be looked at now counts."""
        path = f"{self.segments_path}/{name}/{MANIFEST_FILE}"
        try:
            retry(os.stat, path)
        except OSError as error:
            return is_passing(error)
        return True

    def open_segment(self, segment_id: str, *, limits: Limits | None = None) -> Segment:
        """Open one segment: its manifest and the sizes of its files are checked."""
        path = self._segment_path(segment_id)
        segment = Segment(path, self.spec, self.spec_digest, limits or Limits())
        segment.check_files()
        return segment

    def _segment_path(self, segment_id: str) -> Path:
        if not segment_id or segment_id.startswith(".") or "/" in segment_id or "\0" in segment_id:
            raise SegmentNotFoundError(f"{abbreviate(segment_id)} is not the name of a segment")
        return self.segments_path / segment_id

    def snapshot(self, *, limits: Limits | None = None, check_files: bool = True) -> Snapshot:
        """Open every published segment; see `refresh`."""
        return self.refresh(Snapshot(segments=()), limits=limits, check_files=check_files)

    def refresh(
        self,
        snapshot: Snapshot,
        *,
        limits: Limits | None = None,
        check_files: bool = True,
        known_only: bool = False,
    ) -> Snapshot:
        """Return the snapshot as of now: without segments that are gone, new ones at the end.

        Only what the snapshot does not hold is opened. Refused segments are tried again, because a
        copy in progress looks like a damaged one; see `Refusal` for when. A segment that another
        one replaces is excluded if the bytes of both show that all its episodes are in the other.

        Args:
            snapshot: What is known.
            limits: What a segment may claim.
            check_files: Whether to look at the size of every file of what is opened, four fifths of
                the time it takes. Pass False if you call `Segment.check_files` before you read.
            known_only: Whether to ignore segments that the snapshot knows nothing of, and only try
                the refused ones again.
        """
        work = _Refresh(self, snapshot, limits or Limits(), check_files=check_files)
        known = (*snapshot.segments, *snapshot.replaced)
        allowed = {segment.id for segment in known} | {r.segment_id for r in snapshot.refused}
        names, before = self._directories(), None
        # A listing may miss a merged segment that is published meanwhile, and also the segments
        # that it replaces. If two listings are equal, nothing was missed.
        while names != before:
            work.take([name for name in names if name in allowed] if known_only else names)
            names, before = self._directories(), names
        return work.snapshot()

    def refuse(self, snapshot: Snapshot, problems: Mapping[str, str | Exception]) -> Snapshot:
        """Return a snapshot without segments that were found bad when they were read.

        The segments that they replaced are visible again. A refresh tries them again.
        ``problems`` says what is wrong with each, by id.
        """
        work = _Refresh(self, snapshot, Limits(), check_files=False)
        for segment_id, problem in problems.items():
            work.refuse(segment_id, problem)
        return work.snapshot()

    def episodes(
        self,
        *filters: str | EpisodeFilter,
        skip_damaged: bool = False,
        limits: Limits | None = None,
    ) -> Iterator[Episode]:
        """Iterate over the stored episodes that match all filters, in order of time.

        Args:
            filters: Texts such as ``end=goal`` or ``town=country-*`` (see `parse_filter`), or
                filters.
            skip_damaged: Skip damaged, unreadable and removed segments instead of raising.
            limits: Largest size that a segment may claim; None for the defaults.

        Raises:
            ConfigError: A filter cannot be read.
            SegmentCorruptError: A segment is damaged or still being copied.
            SegmentUnreadableError: A file of a segment cannot be read now.
        """
        chosen = _parse_filters(filters)
        return (
            Episode(reader, number)
            for reader in self._readers(limits, skip_damaged=skip_damaged)
            for number in np.flatnonzero(chosen(reader.table)).tolist()
        )

    def episode_table(
        self,
        *filters: str | EpisodeFilter,
        skip_damaged: bool = False,
        limits: Limits | None = None,
    ) -> EpisodeTable:
        """Return what is known about each episode that matches all filters; see `episodes`."""
        chosen = _parse_filters(filters)
        readers = self._readers(limits, skip_damaged=skip_damaged)
        return EpisodeTable.join([r.table.select(chosen(r.table)) for r in readers])

    def _readers(self, limits: Limits | None, *, skip_damaged: bool) -> Iterator[SegmentReader]:
        snapshot = self.snapshot(limits=limits)
        if snapshot.refused and not skip_damaged:
            first = snapshot.refused[0]
            raise (SegmentUnreadableError if first.is_unreadable else SegmentCorruptError)(
                first.reason
            )
        for segment in snapshot.segments:
            try:
                yield SegmentReader(segment)
            except SEGMENT_ERRORS:
                if not skip_damaged:
                    raise

    def quarantine(self, segment_id: str) -> Path:
        """Move a segment to the quarantine directory, where readers ignore it; return its path."""
        source = self._segment_path(segment_id)
        target = self.quarantine_path / segment_id
        with storage_errors(target):
            if not is_directory(source):
                raise SegmentNotFoundError(
                    f"there is no segment {segment_id} in {self.segments_path}"
                )
            self.quarantine_path.mkdir(exist_ok=True)
            is_moved = move_directory(source, target)
            fsync_directory(self.quarantine_path)
            if not is_moved:
                remove_segments(self.path, [segment_id])
            fsync_directory(self.segments_path)
        return target

    def clean_staging(self, older_than_s: float = DAY_S) -> list[str]:
        """Delete what processes that have ended left; see `avtd3.store.staging.clean`."""
        return clean(self.path, older_than_s)


def _parse_filters(
    filters: Sequence[str | EpisodeFilter],
) -> Callable[[EpisodeTable], NDArray[np.bool_]]:
    """Return a function that says which episodes match all filters, bool (E,)."""
    parsed = [parse_filter([item for item in filters if isinstance(item, str)])]
    parsed += [item for item in filters if not isinstance(item, str)]
    return lambda table: np.logical_and.reduce([each.matches(table) for each in parsed])


class _Refresh:
    """Brings one snapshot up to date."""

    def __init__(
        self, dataset: Dataset, snapshot: Snapshot, limits: Limits, *, check_files: bool
    ) -> None:
        self._dataset, self._limits, self._check_files = dataset, limits, check_files
        self._kept = {segment.id: segment for segment in (*snapshot.segments, *snapshot.replaced)}
        self._claims = {(claim.claimant, claim.claimed): claim for claim in snapshot.claims}
        self._refused = {refusal.segment_id: refusal for refusal in snapshot.refused}
        self._earlier = {refusal.segment_id: refusal for refusal in snapshot.earlier}
        self._checker = ClaimChecker()

    def take(self, names: Sequence[str]) -> None:
        """Take in a listing: open what is new, then check what segments claim of each other."""
        present = set(names)
        self._kept = {name: kept for name, kept in self._kept.items() if name in present}
        self._earlier = {name: old for name, old in self._earlier.items() if name in present}
        refused, self._refused = self._refused, {}
        for name in names:
            if name in self._kept:
                continue
            if (old := refused.get(name)) is None or self._is_due(old):
                self._open(name, old)
            else:
                self._refused[name] = old
        self._check_claims()

    def _is_due(self, refusal: Refusal) -> bool:
        return (
            time.monotonic() >= refusal.next_try_s
            or self._stamp(refusal.segment_id) != refusal.stamp
        )

    def _stamp(self, name: str) -> str:
        return tree_stamp(self._dataset.segments_path / name)

    def _open(self, name: str, refused: Refusal | None) -> None:
        if refused is not None:
            self._earlier[name] = refused
        dataset, path = self._dataset, self._dataset.segments_path / name
        try:
            segment = Segment(path, dataset.spec, dataset.spec_digest, self._limits)
            # A truncated segment must not exclude those that it claims to replace.
            if self._check_files or replaced_by(segment):
                segment.check_files()
            self._kept[name] = segment
        except SegmentNotFoundError:
            return
        except (SegmentCorruptError, SegmentUnreadableError, FormatVersionError) as error:
            if dataset.is_sealed(name):
                self.refuse(name, error)

    def refuse(self, name: str, problem: str | Exception) -> None:
        """Leave a segment out, and remember when to try it again."""
        self._kept.pop(name, None)
        stamp, earlier = self._stamp(name), self._earlier.pop(name, None)
        tries = 1 if earlier is None or earlier.stamp != stamp else earlier.tries + 1
        wait_s = min(FIRST_WAIT_S * 2.0 ** min(tries - 1, 32), LONGEST_WAIT_S)
        self._refused[name] = Refusal(
            segment_id=name,
            reason=str(problem),
            is_unreadable=isinstance(problem, SegmentUnreadableError),
            stamp=stamp,
            tries=tries,
            next_try_s=time.monotonic() + wait_s,
        )

    def _check_claims(self) -> None:
        """Check the claims that are new; a segment that cannot be read for it is refused."""
        pairs = claims_among(self._kept)
        circles = claims_in_circles(pairs) if pairs else frozenset()
        known, self._claims = self._claims, {}
        for pair in pairs:
            if pair in known:
                self._claims[pair] = known[pair]
            elif pair in circles:
                problem = "that segment claims, directly or through others, to replace this one"
                self._claims[pair] = Claim(claimant=pair[0], claimed=pair[1], problem=problem)
            elif claim := self._claim(*pair):
                self._claims[pair] = claim

    def _claim(self, claimant: str, claimed: str) -> Claim | None:
        """Check a claim by reading both sides; None if one was removed or cannot be read."""
        if claimant not in self._kept or claimed not in self._kept:
            return None
        big, small = self._kept[claimant], self._kept[claimed]
        if names_another(big, small) or (self._reads(small) and self._reads(big)):
            return self._checker.check(big, small)
        return None

    def _reads(self, segment: Segment) -> bool:
        try:
            self._checker.digests(segment)
        except SegmentNotFoundError:
            del self._kept[segment.id]  # so the next listing differs
            return False
        except (SegmentCorruptError, SegmentUnreadableError) as error:
            self.refuse(segment.id, error)
            return False
        return True

    def snapshot(self) -> Snapshot:
        """Return what is known now."""
        claims = [
            claim
            for (claimant, claimed), claim in self._claims.items()
            if claimant in self._kept and claimed in self._kept
        ]
        hidden = {claim.claimed for claim in claims if claim.is_proven}
        return Snapshot(
            segments=tuple(kept for name, kept in self._kept.items() if name not in hidden),
            refused=tuple(self._refused.values()),
            replaced=tuple(kept for name, kept in self._kept.items() if name in hidden),
            claims=tuple(claims),
            earlier=tuple(self._earlier.values()),
        )
