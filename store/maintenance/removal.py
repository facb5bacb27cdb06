"""What the maintenance commands share: progress, the lock, and the removal of segments."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import secrets
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.dataset import Dataset, Refusal, Snapshot
from avtd3.store.errors import (
    SEGMENT_ERRORS,
    SegmentNotFoundError,
    SegmentUnreadableError,
    StorageError,
)
from avtd3.store.files import fsync_directory, remove_tree, storage_errors
from avtd3.store.format.layout import GROUP_FILE
from avtd3.store.render.text import plural
from avtd3.store.replaced import ClaimChecker, replaced_by
from avtd3.store.segment import Segment
from avtd3.store.staging import owner_file

_SUFFIX = ".removed"


class Problems:
    """What a maintenance command left alone, and why."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        """One for each problem."""
        self.unreadable = 0
        """Segments that could not be read because of an I/O error, which says nothing about their
        data."""

    def add(self, problem: Exception | str) -> None:
        """Add what went wrong with a segment."""
        self.texts.append(str(problem))
        self.unreadable += isinstance(problem, SegmentUnreadableError)

    def add_refused(self, snapshot: Snapshot) -> None:
        """Add the segments that a snapshot refuses."""
        for refusal in snapshot.refused:
            self.add_refusal(refusal)

    def add_refusal(self, refusal: Refusal) -> None:
        """Add a segment that a snapshot refuses."""
        self.texts.append(refusal.reason)
        self.unreadable += refusal.is_unreadable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceProgress:
    """Progress of a maintenance command."""

    verb: str
    """What the command does, as a past participle."""
    done: int
    """Segments done."""
    total: int
    """Segments to do."""

    @property
    def fraction(self) -> float:
        """Return the share of the segments that are done, in [0, 1]."""
        return self.done / max(1, self.total)

    def line(self) -> str:
        """Format the progress as one line."""
        return f"{self.verb} {self.done:,} of {plural(self.total, 'segment')}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceReport:
    """What every maintenance command that can be interrupted reports."""

    dataset: str
    """Path of the dataset that was changed."""
    problems: tuple[str, ...]
    """Why some segments could not be read, merged or removed; they were kept."""
    unreadable: int
    """Segments that could not be read now because of an I/O error."""
    stopped: bool
    """Whether the command was interrupted; what it did until then is complete."""

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return dataclasses.asdict(self)


@contextlib.contextmanager
def exclusive(dataset: Dataset) -> Iterator[None]:
    """Hold the lock of a dataset, which every command that changes published segments takes.

    Collectors and readers do not take the lock. It is a kernel lock on the dataset's ``zarr.json``,
    so it is released when the process ends for any reason.

    Raises:
        StorageError: Another process holds the lock, or the file system has no locks.
    """
    path = dataset.path / GROUP_FILE
    with storage_errors(path):
        # NFS requires a file that is open for writing, although nothing is written.
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                errno.EAGAIN,
                f"another avtd3 store command is changing {dataset.path}; wait until it has ended",
            ) from error
        except OSError as error:
            raise StorageError(
                error.errno or errno.ENOLCK,
                f"{path} cannot be locked ({error.strerror}); "
                "run avtd3 store on the machine that the disk belongs to",
            ) from error
        yield
    finally:
        os.close(descriptor)


def remove_segments(dataset: Dataset, segment_ids: Sequence[str]) -> None:
    """Hide segments from readers, then delete them; ignore those that are already gone.

    Args:
        dataset: The dataset of the segments.
        segment_ids: Ids in the order of removal.

    Raises:
        StorageError: The dataset cannot be written.
    """
    trash: list[Path] = []
    with storage_errors(dataset.segments_path):
        dataset.staging_path.mkdir(exist_ok=True)
        for segment_id in segment_ids:
            target = dataset.staging_path / f"{secrets.token_hex(8)}{_SUFFIX}"
            with contextlib.suppress(FileNotFoundError):
                (dataset.segments_path / segment_id).rename(target)
                trash.append(target)
        fsync_directory(dataset.segments_path)
        fsync_directory(dataset.staging_path)
    for target in trash:
        remove_tree(target)


def empty_trash(dataset: Dataset) -> None:
    """Delete what killed maintenance commands left in staging.

    These are segments that were already hidden from readers, and the owner files of segments that
    are published. Unpublished segments stay.
    """
    for path in dataset.staging_path.glob(f"*{_SUFFIX}"):
        remove_tree(path)
    for segment_id in dataset.segment_ids():
        owner_file(dataset.staging_path / segment_id).unlink(missing_ok=True)


def clear_staging(dataset: Dataset, segment_id: str) -> None:
    """Delete what a killed maintenance command left in staging of a segment that is made again.

    The caller holds the lock, so the process that wrote the files is dead. Collectors use other
    names, so their files stay.
    """
    path = dataset.staging_path / segment_id
    remove_tree(path)
    owner_file(path).unlink(missing_ok=True)


def find_leftovers(snapshot: Snapshot) -> list[str]:
    """Return the ids of segments that others replace, in the order in which they can be removed.

    A snapshot counts a segment as replaced only if the bytes of both sides show that the other one
    has all its episodes.
    """
    # Remove replaced segments before those that replace them, or readers would see them.
    found = sorted(snapshot.replaced, key=lambda segment: (len(replaced_by(segment)), segment.id))
    return [segment.id for segment in found]


def remove_leftovers(
    dataset: Dataset, snapshot: Snapshot, segment_ids: Collection[str], problems: Problems
) -> list[str]:
    """Remove leftovers, after the bytes of both sides are compared once more.

    Args:
        dataset: The dataset, whose lock is held.
        snapshot: A snapshot of it.
        segment_ids: Some of `find_leftovers`; others stay.
        problems: Where to add why some could not be removed.

    Returns:
        Ids of the removed segments.

    Raises:
        StorageError: The dataset cannot be written.
    """
    replaced = {segment.id: segment for segment in snapshot.replaced}
    checker, proven = ClaimChecker(), []
    for name in find_leftovers(snapshot):
        if name in segment_ids:
            known = (*snapshot.segments, *snapshot.replaced)
            claimants = [segment for segment in known if name in replaced_by(segment)]
            if _is_contained(replaced[name], claimants, checker, problems):
                proven.append(name)
    remove_segments(dataset, proven)
    return proven


def _is_contained(
    leftover: Segment, claimants: Sequence[Segment], checker: ClaimChecker, problems: Problems
) -> bool:
    """Return whether one of some segments is whole and has all episodes of a leftover."""
    for claimant in claimants:
        try:
            claimant.verify()
            claim = checker.check(claimant, leftover)
        except SegmentNotFoundError:
            continue
        except SEGMENT_ERRORS as error:
            problems.add(error)
            continue
        if claim.is_proven:
            return True
        problems.add(
            f"segment {leftover.id} stays: {claimant.id} claims to replace it, but {claim.problem}"
        )
    return False
