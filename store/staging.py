"""Publish and remove segments, each with one rename, by way of a dataset's ``.staging/``.

A file beside each staging directory names the process that writes it. `clean` uses it to delete
what killed processes left, and nothing that is being written.
"""

import contextlib
import errno
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from avtd3.store.files import (
    DAY_S,
    create,
    exists,
    fsync_directory,
    list_directory,
    move_directory,
    read_bytes,
    remove,
    remove_tree,
    share_file,
    storage_errors,
    sweep_asides,
    write_new,
)
from avtd3.store.format.layout import MANIFEST_FILE, MAPS, QUARANTINE, SEGMENTS, STAGING
from avtd3.store.locks import Identity

_OWNER_SUFFIX = ".owner.json"
_REMOVED_SUFFIX = ".removed"


def publish(
    staging: Path,
    target: Path,
    files: Mapping[str, bytes],
    *,
    shared: Mapping[str, Path] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a segment in staging, fsync all of it, and rename it to its final path."""
    with staged(staging, target):
        _write(staging, files, shared or {})
        if check is not None:
            check(staging)


@contextlib.contextmanager
def staged(staging: Path, target: Path) -> Iterator[None]:
    """Rename what is written to a staging directory inside to its final path, or delete it."""
    with storage_errors(staging):
        try:
            for directory in (staging.parent, target.parent):
                directory.mkdir(exist_ok=True)
            _delete_staged(staging)
            os.close(create(owner_file(staging), Identity.current("publish a segment").to_bytes()))
            yield
            try:
                move_directory(staging, target)
            except FileNotFoundError:
                if not exists(target):  # `complete_publishing` may have moved it
                    raise
        finally:
            _delete_staged(staging)
        fsync_directory(target.parent)


def complete_publishing(dataset: Path, segment_id: str) -> None:
    """Publish a segment that is whole in staging, for a process that may have ended; or do nothing.

    The caller knows that it is whole, for example because the segment has claimed its unit of work.
    """
    target = dataset / SEGMENTS / segment_id
    with storage_errors(target):
        if not exists(target):
            with contextlib.suppress(FileNotFoundError):
                move_directory(dataset / STAGING / segment_id, target)
                fsync_directory(target.parent)


def _delete_staged(staging: Path) -> None:
    """Delete a staging directory, then its owner file: what cannot be deleted stays owned."""
    if exists(staging):
        remove(staging)
    if not exists(staging):
        owner_file(staging).unlink(missing_ok=True)


def owner_file(staging: Path) -> Path:
    """Return the file beside a staging directory that names the process that writes it."""
    return staging.with_name(staging.name + _OWNER_SUFFIX)


def _write(root: Path, files: Mapping[str, bytes], shared: Mapping[str, Path]) -> None:
    """Create a segment's directories and files, the manifest last, and fsync all of them."""
    directories = make_directories(root, (*files, *shared))
    # Write all files before the first fsync: one commit of the file system's journal, not fifty.
    descriptors: list[int] = []
    try:
        for name, data in files.items():
            if name != MANIFEST_FILE:
                descriptors.append(create(f"{root}{os.sep}{name}", data))
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    for name, source in shared.items():
        share_file(source, root / name)
    write_new(root / MANIFEST_FILE, files[MANIFEST_FILE])
    for directory in reversed(directories):
        fsync_directory(directory)


def make_directories(root: Path, names: Iterable[str]) -> list[Path]:
    """Create the directories of files; return them, each after the one it lies in."""
    found = {root / parent for name in names for parent in Path(name).parents}
    directories = sorted(found, key=lambda path: len(path.parts))
    for directory in directories:
        directory.mkdir()
    return directories


def remove_segments(dataset: Path, segment_ids: Sequence[str]) -> None:
    """Hide segments from readers, then delete them; ignore those that are already gone."""
    trash: list[Path] = []
    with storage_errors(dataset / SEGMENTS):
        (dataset / STAGING).mkdir(exist_ok=True)
        for segment_id in segment_ids:
            with contextlib.suppress(FileNotFoundError):
                trash.append(_hide(dataset, segment_id))
        fsync_directory(dataset / SEGMENTS)
        fsync_directory(dataset / STAGING)
    with storage_errors(dataset / STAGING):
        for path in trash:
            _delete_removed(dataset, path)


def _hide(dataset: Path, segment_id: str) -> Path:
    """Hide a segment with one operation; return the entry in staging that says what to delete."""
    segment = dataset / SEGMENTS / segment_id
    trash = dataset / STAGING / f"{secrets.token_hex(8)}{_REMOVED_SUFFIX}"
    try:
        segment.rename(trash)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return trash
    # The lower layer of overlayfs: without its manifest, a directory is no segment either.
    marker = trash.with_name(segment_id + _REMOVED_SUFFIX)
    write_new(marker, b"")
    fsync_directory(marker.parent)
    (segment / MANIFEST_FILE).unlink()
    fsync_directory(segment)
    return marker


def _delete_removed(dataset: Path, entry: Path) -> None:
    """Delete what `_hide` has hidden; a segment that was not hidden yet stays.

    What cannot be deleted now is deleted by the next `clean`.
    """
    with contextlib.suppress(OSError):
        if entry.is_file():
            segment = dataset / SEGMENTS / entry.name.removesuffix(_REMOVED_SUFFIX)
            if not exists(segment / MANIFEST_FILE):
                remove_tree(segment)
            if exists(segment) and not exists(segment / MANIFEST_FILE):
                return  # the entry still says what to delete
        remove(entry)


def clean(dataset: Path, older_than_s: float = DAY_S) -> list[str]:
    """Delete what processes left that have ended: unpublished and removed segments, asides.

    What belongs to a process that may be running, on another machine or in another container, or
    to nobody, is deleted when it is older than ``older_than_s``. Return the names of the deleted
    staging directories.
    """
    removed: list[str] = []
    staging = dataset / STAGING
    for folder in ("", STAGING, SEGMENTS, QUARANTINE, MAPS):
        sweep_asides(dataset / folder, older_than_s)
    with storage_errors(staging), contextlib.suppress(FileNotFoundError):
        for name in sorted(itertools.chain(*list_directory(staging))):
            path = staging / name
            if name.endswith(_REMOVED_SUFFIX):
                _delete_removed(dataset, path)
            elif name.endswith(_OWNER_SUFFIX):
                subject = staging / name.removesuffix(_OWNER_SUFFIX)
                if not subject.exists() and _is_abandoned(path, path, older_than_s):
                    path.unlink(missing_ok=True)
            elif _is_abandoned(path, owner_file(path), older_than_s):
                _delete_staged(path)
                removed.append(name)
    return removed


def _is_abandoned(path: Path, owner: Path, older_than_s: float) -> bool:
    try:
        if time.time() - path.lstat().st_mtime > older_than_s:
            return True
        return Identity.from_bytes(read_bytes(owner)).is_dead() is True
    except (OSError, ValueError):
        return False
