"""How far a housekeeping command is."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import secrets
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.errors import SegmentCorruptError, SegmentNotFoundError, StorageError
from avtd3.store.files import fsync_directory, remove_tree, storage_errors
from avtd3.store.format.layout import GROUP_FILE
from avtd3.store.render.text import plural
from avtd3.store.replaced import REPLACES, replaced_by
from avtd3.store.staging import owner_file


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceProgress:
    """Told after each piece of work."""

    verb: str
    """What is done, as a past participle."""
    done: int
    """Segments done."""
    total: int
    """Segments to do."""

    @property
    def fraction(self) -> float:
        """Share of the segments that is done, in [0, 1]."""
        return self.done / max(1, self.total)

    def line(self) -> str:
        """Where it stands, in one line."""
        return f"{self.verb} {self.done:,} of {plural(self.total, 'segment')}"


_SUFFIX = ".removed"


@contextlib.contextmanager
def exclusive(dataset: Dataset) -> Iterator[None]:
    """Hold a dataset's lock, which all that changes published segments takes.

    Collectors and readers neither take nor need it. The lock is the kernel's and lies on the
    dataset's ``zarr.json``: it ends with the process, however that ends.

    Raises:
        StorageError: Another process holds it, or the file system has no locks.
    """
    path = dataset.path / GROUP_FILE
    with storage_errors(path):
        # For writing, though nothing is written: NFS asks for it.
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                errno.EAGAIN,
                f"another avtd3 store command is changing {dataset.path}: wait until it has ended",
            ) from error
        except OSError as error:
            raise StorageError(
                error.errno or errno.ENOLCK,
                f"{path} cannot be locked ({error.strerror}): "
                "run avtd3 store on the machine whose disk it is",
            ) from error
        yield
    finally:
        os.close(descriptor)


def remove_segments(dataset: Dataset, segment_ids: Sequence[str]) -> None:
    """Take segments from the readers, then delete them; what is already gone is not an error.

    Args:
        dataset: Where they lie.
        segment_ids: Which, in the order in which they go.

    Raises:
        StorageError: The dataset cannot be written.
    """
    trash: list[Path] = []
    with storage_errors(dataset.segments_path):
        dataset.staging_path.mkdir(exist_ok=True)
        for segment_id in segment_ids:
            place = dataset.staging_path / f"{secrets.token_hex(8)}{_SUFFIX}"
            with contextlib.suppress(FileNotFoundError):
                (dataset.segments_path / segment_id).rename(place)
                trash.append(place)
        fsync_directory(dataset.segments_path)
        fsync_directory(dataset.staging_path)
    for place in trash:
        remove_tree(place)


def empty_trash(dataset: Dataset) -> None:
    """Delete what killed housekeepers left in staging; nothing that is still to be published.

    That is what they had renamed away already, and the owner's files of published segments.
    """
    for place in dataset.staging_path.glob(f"*{_SUFFIX}"):
        remove_tree(place)
    for segment_id in dataset.segment_ids():
        owner_file(dataset.staging_path / segment_id).unlink(missing_ok=True)


def clear_staging(dataset: Dataset, segment_id: str) -> None:
    """Delete what a killed housekeeper left in staging of the segment that is now made again.

    Names that housekeeping makes follow from what goes into them, and the lock is held: so whoever
    wrote there is dead. What collectors write has other names, and is left to them.
    """
    place = dataset.staging_path / segment_id
    remove_tree(place)
    owner_file(place).unlink(missing_ok=True)


def find_leftovers(dataset: Dataset, snapshot: Snapshot) -> list[str]:
    """Segments on the disk that one of a snapshot replaces, in the order in which they may go.

    Only those whose manifest is the one that was replaced: another segment of the same name is
    left alone.
    """
    replaced: dict[str, str] = {}
    for segment in snapshot.segments:
        if replaced_by(segment):
            replaced |= segment.provenance[REPLACES]
    found: list[tuple[int, str]] = []
    for name in replaced.keys() & set(dataset.segment_ids()) if replaced else ():
        try:
            segment = dataset.open_segment(name)
        except (SegmentCorruptError, SegmentNotFoundError):
            continue
        if segment.manifest_digest == replaced[name]:
            # What replaces others goes behind them, lest they come to light again.
            found.append((len(replaced_by(segment)), name))
    return [name for _, name in sorted(found)]


def remove_leftovers(
    dataset: Dataset, snapshot: Snapshot, pins: Collection[str]
) -> tuple[list[str], list[str]]:
    """Remove leftovers whose replacement is whole, every file of it hashed again.

    Returns:
        Names of what was removed, and the replacements that are not whole, with the reason.

    Raises:
        StorageError: The dataset cannot be written.
    """
    left = [name for name in find_leftovers(dataset, snapshot) if name not in pins]
    removed: list[str] = []
    problems: list[str] = []
    for segment in snapshot.segments if left else ():
        mine = [name for name in left if name in replaced_by(segment)]
        if not mine:
            continue
        try:
            segment.verify()
        except (SegmentCorruptError, SegmentNotFoundError) as error:
            problems.append(str(error))
            continue
        remove_segments(dataset, mine)
        removed += mine
        left = [name for name in left if name not in mine]
    return removed, problems
