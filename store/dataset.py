"""``DATASET/zarr.json``: what the data of a dataset mean, and what else may lie at its path."""

import dataclasses
import functools
import hashlib
import os
import secrets
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode import Episode, SegmentReader
from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import (
    DatasetError,
    FormatVersionError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SpecError,
)
from avtd3.store.files import create_exclusive, fsync_directory, read_json, storage_errors
from avtd3.store.filters import EpisodeFilter, parse_filter
from avtd3.store.format.layout import FORMAT_VERSION, GROUP_FILE, MANIFEST_FILE
from avtd3.store.format.manifest import Limits
from avtd3.store.format.metadata import document_bytes, group_document
from avtd3.store.replaced import replaced_by, replaced_ids
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec
from avtd3.store.staging import clean_staging


def check_free(path: Path, own_names: Container[str]) -> None:
    """Make sure that a new dataset hides nothing.

    Args:
        path: Where it shall be.
        own_names: What may lie there already, because a dataset consists of it.

    Raises:
        DatasetError: There is a file, or a directory with something else in it.
        StorageError: The directory cannot be listed.
    """
    if path.exists() and not path.is_dir():
        raise DatasetError(f"dataset {path} is a file, expected a directory or nothing")
    with storage_errors(path):
        found = {entry.name for entry in path.iterdir()} if path.exists() else set()
    foreign = sorted(name for name in found if name not in own_names)
    if foreign:
        raise DatasetError(
            f"{path} is not empty and is no dataset (it holds {foreign[0]!r}); "
            "choose an empty or a new directory"
        )


def read_spec(path: Path) -> EpisodeSpec:
    """The spec of the dataset in a directory.

    Raises:
        DatasetError: Missing, a file, something else, or its spec was edited.
        FormatVersionError: Of a format that this version cannot read.
    """
    group = path / GROUP_FILE
    try:
        document = read_json(group)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(_what_else(path)) from error
    except OSError as error:
        raise DatasetError(f"{group} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is no dataset: {error}") from error
    return _parse_spec(group, document)


def _what_else(path: Path) -> str:
    if not path.exists():
        return f"dataset {path} does not exist; avtd3 collect {path} makes one"
    if not path.is_dir():
        return f"dataset {path} is a file, expected a directory"
    if (path / ".zgroup").exists() or (path / ".zarray").exists():
        return f"{path} is a Zarr v2 store, expected an avtd3 dataset (Zarr v3)"
    if (path / MANIFEST_FILE).exists():
        return f"{path} is a single segment; name the dataset two levels above it"
    return f"{path} is no dataset: it has no {GROUP_FILE}; avtd3 collect makes one"


def _parse_spec(group: Path, document: Any) -> EpisodeSpec:  # noqa: ANN401 - any JSON value
    attributes = document.get("attributes") if isinstance(document, dict) else None
    ours = attributes.get("avtd3") if isinstance(attributes, dict) else None
    if not isinstance(ours, dict) or document.get("node_type") != "group":
        raise DatasetError(f"{group.parent} is no dataset: {group.name} has no avtd3 attributes")
    version = ours.get("format_version")
    if type(version) is not int or version < 1:
        raise DatasetError(f"{group}: format_version is {version!r}, expected a whole number")
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{group.parent} is of format {version}, this version of avtd3 reads up to "
            f"{FORMAT_VERSION}: install a newer avtd3"
        )
    if "spec" not in ours:
        raise DatasetError(f"{group.parent} is a part of a dataset, not a dataset: it has no spec")
    try:
        spec = EpisodeSpec.from_json(ours["spec"])
    except SpecError as error:
        raise DatasetError(f"{group}: {error}") from error
    if spec.digest != ours.get("spec_digest"):
        raise DatasetError(
            f"{group}: the spec was edited (its digest is {spec.digest:.12}, the file says "
            f"{ours.get('spec_digest')!s:.12}); restore it, the segments carry the old one"
        )
    return spec


SEGMENTS = "segments"
STAGING = ".staging"
QUARANTINE = "quarantine"
_OWN_NAMES = frozenset((SEGMENTS, STAGING, QUARANTINE, GROUP_FILE))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A segment that a snapshot left out."""

    segment_id: str
    """Name of its directory."""
    reason: str
    """What is wrong with it and what mends it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A frozen, ordered list of segments: the same snapshot and seed give the same batches."""

    segments: tuple[Segment, ...]
    """In order of time when taken; what a refresh adds stands behind."""
    refused: tuple[Refusal, ...] = ()
    """Segments that were there and could not be opened."""

    @property
    def steps(self) -> int:
        """Steps in all its segments."""
        return sum(segment.steps for segment in self.segments)

    @property
    def digest(self) -> str:
        """SHA-256 over the names and manifest digests of its segments, in order."""
        lines = (f"{segment.id} {segment.manifest_digest}\n" for segment in self.segments)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Snapshot({len(self.segments)} segments, {len(self.refused)} refused)"


class Dataset:
    """A directory that collectors publish segments into and learners read them from.

    Make one with `Dataset.create` or `Dataset.open`.
    """

    def __init__(self, path: Path, spec: EpisodeSpec) -> None:
        self.path = path
        """The directory."""
        self.spec = spec
        """What its segments hold."""
        self.segments_path = path / SEGMENTS
        """Where published segments lie."""

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r})"

    @functools.cached_property
    def spec_digest(self) -> str:
        """Digest of the spec, as every segment must carry it."""
        return self.spec.digest

    @property
    def staging_path(self) -> Path:
        """Where segments are written before they are published."""
        return self.path / STAGING

    @property
    def quarantine_path(self) -> Path:
        """Where refused segments are kept."""
        return self.path / QUARANTINE

    @classmethod
    def create(cls, path: Path | str, spec: EpisodeSpec) -> Self:
        """Make a dataset, or open the one that is there if its spec is equal.

        Any number of processes may do so at once; one of them writes the spec.

        Raises:
            SpecError: There is a dataset with another spec; the message has the difference.
            DatasetError: The path is a file, or a directory with something else in it.
            StorageError: The directory cannot be written.
        """
        path = Path(path)
        group = path / GROUP_FILE
        with storage_errors(path):
            is_there = group.is_file()
        if not is_there:
            check_free(path, _OWN_NAMES)
            with storage_errors(path):
                for directory in (path, path / SEGMENTS, path / STAGING):
                    directory.mkdir(parents=True, exist_ok=True)
                fsync_directory(path.parent)
            attributes = {
                "format_version": FORMAT_VERSION,
                "spec": spec.to_json(),
                "spec_digest": spec.digest,
            }
            aside = path / STAGING / f"{GROUP_FILE}.{secrets.token_hex(8)}"
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
            DatasetError: Missing, a file, something else, or its spec was edited.
            FormatVersionError: Of a format that this version cannot read.
        """
        path = Path(path)
        return cls(path, read_spec(path))

    def segment_ids(self) -> list[str]:
        """Names of the published segments, oldest first.

        Raises:
            DatasetError: The directory cannot be listed.
        """
        return [name for name in self._directories() if self._is_sealed(name)]

    def unsealed_ids(self) -> list[str]:
        """Names in ``segments/`` without a manifest: half-copied, or damaged; never read."""
        return [name for name in self._directories() if not self._is_sealed(name)]

    def _directories(self) -> list[str]:
        try:
            with os.scandir(self.segments_path) as entries:
                return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DatasetError(f"{self.segments_path} cannot be listed: {error}") from error

    def _is_sealed(self, name: str) -> bool:
        return os.path.exists(f"{self.segments_path}/{name}/{MANIFEST_FILE}")  # noqa: PTH110 - fast

    def open_segment(self, segment_id: str, *, limits: Limits | None = None) -> Segment:
        """Open one segment: its manifest and the sizes of its files are checked.

        Raises:
            SegmentNotFoundError: There is no such segment (any more).
            SegmentCorruptError: Torn, edited, of another spec, or beyond the limits.
            FormatVersionError: Of a format that this version cannot read.
        """
        segment = self._open(segment_id, limits or Limits())
        segment.check_files()
        return segment

    def _open(self, segment_id: str, limits: Limits) -> Segment:
        """A segment whose manifest is sound; its files are looked at only where others depend."""
        path = self._segment_path(segment_id)
        segment = Segment(path, self.spec, self.spec_digest, limits)
        if replaced_by(segment):
            segment.check_files()  # else, torn, it would hide those that it replaces
        return segment

    def _segment_path(self, segment_id: str) -> Path:
        if not segment_id or segment_id.startswith(".") or "/" in segment_id or "\0" in segment_id:
            raise SegmentNotFoundError(f"{segment_id!r} is no name of a segment")
        return self.segments_path / segment_id

    def snapshot(self, *, limits: Limits | None = None, check_files: bool = True) -> Snapshot:
        """Open every published segment; what cannot be opened is refused: see `refresh`."""
        return self.refresh(Snapshot(segments=()), limits=limits, check_files=check_files)

    def refresh(
        self, snapshot: Snapshot, *, limits: Limits | None = None, check_files: bool = True
    ) -> Snapshot:
        """The snapshot as of now: segments that are gone left out, new ones behind the old ones.

        Only what the snapshot does not hold is opened; refused segments are tried again, because a
        copy in progress looks like a torn one. Segments that another one replaces are left out.

        Args:
            snapshot: What is known.
            limits: What a segment may claim.
            check_files: Look at the size of every file of what is opened, four fifths of the time
                it takes. False for who calls `Segment.check_files` on those that are read.
        """
        kept = {segment.id: segment for segment in snapshot.segments}
        names, before = self._directories(), None
        # A listing may miss what is renamed meanwhile: a merged segment that comes and the ones
        # it was merged from that go. Once two listings are equal, nothing has been missed.
        while names != before:
            present = set(names)
            kept = {name: kept[name] for name in kept if name in present}
            refused = self._open_new(names, kept, limits or Limits(), check_files=check_files)
            names, before = self._directories(), names
        hidden = replaced_ids(kept.values())
        segments = tuple(segment for name, segment in kept.items() if name not in hidden)
        return Snapshot(segments=segments, refused=refused)

    def _open_new(
        self, names: list[str], kept: dict[str, Segment], limits: Limits, *, check_files: bool
    ) -> tuple[Refusal, ...]:
        """Open what is sealed, not kept and not replaced, into ``kept``."""
        refused: list[Refusal] = []
        left_out = replaced_ids(kept.values()) | kept.keys()
        for name in names:
            if name in left_out:
                continue
            try:
                segment = self._open(name, limits)
                if check_files:
                    segment.check_files()
                kept[name] = segment
            except SegmentNotFoundError:
                continue
            except (SegmentCorruptError, FormatVersionError) as error:
                if self._is_sealed(name):
                    refused.append(Refusal(segment_id=name, reason=str(error)))
        return tuple(refused)

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
            skip_damaged: Skip damaged and removed segments instead of raising.
            limits: Largest size that a segment may claim; None for the defaults.

        Raises:
            ConfigError: A filter cannot be read.
            SegmentCorruptError: A segment is damaged, or its copying is under way.
        """
        chosen = _filters(filters)
        return (
            Episode(reader, number)
            for reader in self._readers(limits, skip_damaged=skip_damaged)
            for number in np.flatnonzero(_matches(reader.table, chosen)).tolist()
        )

    def episode_table(
        self,
        *filters: str | EpisodeFilter,
        skip_damaged: bool = False,
        limits: Limits | None = None,
    ) -> EpisodeTable:
        """Return what is known about each stored episode that matches all filters.

        Args:
            filters: See `episodes`.
            skip_damaged: Skip damaged and removed segments instead of raising.
            limits: Largest size that a segment may claim; None for the defaults.

        Raises:
            ConfigError: A filter cannot be read.
            SegmentCorruptError: A segment is damaged, or its copying is under way.
        """
        chosen = _filters(filters)
        readers = self._readers(limits, skip_damaged=skip_damaged)
        return EpisodeTable.join([r.table.select(_matches(r.table, chosen)) for r in readers])

    def _readers(self, limits: Limits | None, *, skip_damaged: bool) -> Iterator[SegmentReader]:
        snapshot = self.snapshot(limits=limits)
        if snapshot.refused and not skip_damaged:
            raise SegmentCorruptError(snapshot.refused[0].reason)
        for segment in snapshot.segments:
            try:
                yield SegmentReader(segment)
            except (SegmentCorruptError, SegmentNotFoundError):
                if not skip_damaged:
                    raise

    def quarantine(self, segment_id: str) -> Path:
        """Move a segment out of the readers' way, for a person to look at.

        Returns:
            Where it is now.

        Raises:
            SegmentNotFoundError: There is no such segment.
            StorageError: The dataset cannot be written.
        """
        source = self._segment_path(segment_id)
        target = self.quarantine_path / segment_id
        if not source.is_dir():
            raise SegmentNotFoundError(f"there is no segment {segment_id} in {self.segments_path}")
        with storage_errors(target):
            self.quarantine_path.mkdir(exist_ok=True)
            source.rename(target)
            fsync_directory(self.quarantine_path)
            fsync_directory(self.segments_path)
        return target

    def clean_staging(self, older_than_s: float = 86_400.0) -> list[str]:
        """Delete what dead collectors left in staging; see `avtd3.store.staging.clean_staging`."""
        return clean_staging(self.staging_path, older_than_s)


def _filters(filters: Sequence[str | EpisodeFilter]) -> list[EpisodeFilter]:
    texts = [item for item in filters if isinstance(item, str)]
    return [parse_filter(texts), *(item for item in filters if not isinstance(item, str))]


def _matches(table: EpisodeTable, filters: Sequence[EpisodeFilter]) -> NDArray[np.bool_]:
    found = np.ones(len(table), np.bool_)
    for chosen in filters:
        found &= chosen.matches(table)
    return found
