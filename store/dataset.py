"""`Dataset`: a directory of segments, and `Snapshot`: its segments at one time."""

import dataclasses
import functools
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
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


def _check_free(path: Path) -> None:
    """Raise if a new dataset would be mixed with other files.

    Raises:
        DatasetError: The path is a file, or a directory that contains something else.
        StorageError: The directory cannot be listed.
    """
    if path.exists() and not path.is_dir():
        raise DatasetError(f"dataset {path} is a file, expected a directory or nothing")
    with storage_errors(path):
        found = {entry.name for entry in path.iterdir()} if path.exists() else set()
    others = sorted(found - _OWN_NAMES)
    if others:
        raise DatasetError(
            f"{path} is not empty and not a dataset (it contains {others[0]!r}); "
            "choose an empty or a new directory"
        )


def _read_spec(path: Path) -> EpisodeSpec:
    """Read the spec of the dataset in a directory.

    Raises:
        DatasetError: There is no dataset, or its spec was edited.
        FormatVersionError: This version cannot read the dataset's format.
    """
    group = path / GROUP_FILE
    try:
        document = read_json(group)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(_explain_missing(path)) from error
    except OSError as error:
        raise DatasetError(f"{group} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not a dataset: {error}") from error
    return _parse_spec(group, document)


def _explain_missing(path: Path) -> str:
    if not path.exists():
        return f"dataset {path} does not exist; avtd3 collect {path} creates one"
    if not path.is_dir():
        return f"dataset {path} is a file, expected a directory"
    if (path / ".zgroup").exists() or (path / ".zarray").exists():
        return f"{path} is a Zarr v2 store, expected an avtd3 dataset (Zarr v3)"
    if (path / MANIFEST_FILE).exists():
        return f"{path} is a single segment; name the dataset two levels above it"
    return f"{path} is not a dataset: it has no {GROUP_FILE}; avtd3 collect creates one"


def _parse_spec(group: Path, document: Any) -> EpisodeSpec:  # noqa: ANN401 - any JSON value
    attributes = document.get("attributes") if isinstance(document, dict) else None
    ours = attributes.get("avtd3") if isinstance(attributes, dict) else None
    if not isinstance(ours, dict) or document.get("node_type") != "group":
        raise DatasetError(f"{group.parent} is not a dataset: {group.name} has no avtd3 attributes")
    version = ours.get("format_version")
    if type(version) is not int or version < 1:
        raise DatasetError(f"{group}: format_version is {version!r}, expected a whole number")
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{group.parent} has format {version}, this version of avtd3 reads up to "
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
            f"{ours.get('spec_digest')!s:.12}); restore the file: the segments have the old spec"
        )
    return spec


SEGMENTS = "segments"
STAGING = ".staging"
QUARANTINE = "quarantine"
_OWN_NAMES = frozenset((SEGMENTS, STAGING, QUARANTINE, GROUP_FILE))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A segment that a snapshot does not include, because it could not be opened."""

    segment_id: str
    """Name of its directory."""
    reason: str
    """What is wrong with it, and how to fix it."""


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

    @property
    def steps(self) -> int:
        """Number of steps in all its segments."""
        return sum(segment.steps for segment in self.segments)

    @property
    def digest(self) -> str:
        """SHA-256 over the names and manifest digests of its segments, in order."""
        lines = (f"{segment.id} {segment.manifest_digest}\n" for segment in self.segments)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Snapshot({len(self.segments)} segments, {len(self.refused)} refused)"


class Dataset:
    """A directory of segments; writers publish into it while others read.

    Make one with `Dataset.create` or `Dataset.open`.

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

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r})"

    @functools.cached_property
    def spec_digest(self) -> str:
        """Digest of the spec; every segment has it, too."""
        return self.spec.digest

    @property
    def staging_path(self) -> Path:
        """Directory in which segments are written before they are published."""
        return self.path / STAGING

    @property
    def quarantine_path(self) -> Path:
        """Directory of quarantined segments."""
        return self.path / QUARANTINE

    @classmethod
    def create(cls, path: Path | str, spec: EpisodeSpec) -> Self:
        """Create a dataset, or open an existing one with an equal spec.

        Any number of processes may do so at the same time.

        Args:
            path: Directory; its parents are created, too.
            spec: What a step consists of.

        Raises:
            SpecError: There is a dataset with another spec; the message says what differs.
            DatasetError: The path is a file, or a directory that contains something else.
            StorageError: The directory cannot be written.
        """
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
            DatasetError: There is no dataset at the path, or its spec was edited.
            FormatVersionError: This version cannot read the dataset's format.
        """
        path = Path(path)
        return cls(path, _read_spec(path))

    def segment_ids(self) -> list[str]:
        """Return the names of the published segments, oldest first.

        Raises:
            DatasetError: The directory cannot be listed.
        """
        return [name for name in self._directories() if self._is_sealed(name)]

    def unsealed_ids(self) -> list[str]:
        """Return the names in ``segments/`` without a manifest: partly copied, or damaged."""
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
            SegmentNotFoundError: The segment does not exist, or no longer.
            SegmentCorruptError: It is damaged, of another spec, or exceeds the limits.
            FormatVersionError: This version cannot read the segment's format.
        """
        segment = self._open(segment_id, limits or Limits())
        segment.check_files()
        return segment

    def _open(self, segment_id: str, limits: Limits) -> Segment:
        """Open a segment; check its files only if it replaces others."""
        path = self._segment_path(segment_id)
        segment = Segment(path, self.spec, self.spec_digest, limits)
        if replaced_by(segment):
            segment.check_files()  # a damaged segment must not hide those that it replaces
        return segment

    def _segment_path(self, segment_id: str) -> Path:
        if not segment_id or segment_id.startswith(".") or "/" in segment_id or "\0" in segment_id:
            raise SegmentNotFoundError(f"{segment_id!r} is not the name of a segment")
        return self.segments_path / segment_id

    def snapshot(self, *, limits: Limits | None = None, check_files: bool = True) -> Snapshot:
        """Open every published segment; see `refresh`."""
        return self.refresh(Snapshot(segments=()), limits=limits, check_files=check_files)

    def refresh(
        self, snapshot: Snapshot, *, limits: Limits | None = None, check_files: bool = True
    ) -> Snapshot:
        """Return an up-to-date snapshot: without removed segments, with new ones appended.

        Only segments that are not in the old snapshot are opened. Refused segments are tried again,
        because a segment that is still being copied looks damaged. Segments that another segment
        replaces are not included.

        Args:
            snapshot: The old snapshot.
            limits: Largest size that a segment may claim; None for the defaults.
            check_files: Check the size of every file of the opened segments, which takes four
                fifths of the time. If False, call `Segment.check_files` before using a segment.

        Returns:
            The new snapshot. Segments that cannot be opened are in `Snapshot.refused`.
        """
        kept = {segment.id: segment for segment in snapshot.segments}
        names, before = self._directories(), None
        # A listing may miss a merged segment that is published meanwhile, and also the segments
        # that it replaces. If two listings are equal, nothing was missed.
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
        """Add segments that are new and not replaced to ``kept``; return the others."""
        refused: list[Refusal] = []
        skipped = replaced_ids(kept.values()) | kept.keys()
        for name in names:
            if name in skipped:
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
            SegmentCorruptError: A segment is damaged or still being copied.
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
            SegmentCorruptError: A segment is damaged or still being copied.
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
        """Move a segment to the quarantine directory, so that readers ignore it.

        Returns:
            Its new path.

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
        """Delete what dead writers left in staging; see `avtd3.store.staging.clean_staging`."""
        return clean_staging(self.staging_path, older_than_s)


def _filters(filters: Sequence[str | EpisodeFilter]) -> list[EpisodeFilter]:
    texts = [item for item in filters if isinstance(item, str)]
    return [parse_filter(texts), *(item for item in filters if not isinstance(item, str))]


def _matches(table: EpisodeTable, filters: Sequence[EpisodeFilter]) -> NDArray[np.bool_]:
    found = np.ones(len(table), np.bool_)
    for chosen in filters:
        found &= chosen.matches(table)
    return found
