"""How segments leave a dataset: by one rename, then at leisure; by one housekeeper at a time.

A removed segment is renamed into ``.staging/``, where no reader looks, and only deleted once that
rename is on the disk. So a crash leaves it whole in ``segments/`` or gone from there. What a
crash leaves in ``.staging/`` the next housekeeping deletes, or the next collector.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from avtd3.store.dataset import Dataset
from avtd3.store.errors import StorageError
from avtd3.store.files import fsync_directory, remove_tree, storage_errors
from avtd3.store.format.layout import GROUP_FILE
from avtd3.store.staging import owner_file

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
