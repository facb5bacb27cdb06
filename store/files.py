"""Files that are whole or absent: write aside, fsync, rename; safe paths; checksums.

Everything avtd3 leaves on disk for others goes through this module, so that a reader on another
machine sees a file as it was meant or not at all, and a full disk is one line, not a traceback.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from avtd3.store.errors import StorageError

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Largest JSON document that `read_json` takes in by default."""

_MENDS = {
    errno.ENOSPC: "the disk is full: free some space and try again",
    errno.EDQUOT: "the disk quota is used up: free some space and try again",
    errno.EACCES: "permission denied: make the directory writable or choose another",
    errno.EPERM: "not permitted: make the directory writable or choose another",
    errno.EROFS: "the file system is read-only: choose another directory",
    errno.EIO: "the device failed: check the disk, then try again",
}

_PLAIN_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


@contextlib.contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn an operating system's error about writing into one line with a mend.

    Args:
        path: What was being written; named in the message.

    Raises:
        StorageError: In place of any `OSError` raised inside that is not one of ours.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        mend = _MENDS.get(error.errno or 0, f"{reason}: check the path and try again")
        message = f"cannot write {error.filename or path}: {mend}"
        raise StorageError(error.errno or errno.EIO, message) from error


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal, read in pieces.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is no regular file: a device or a pipe may never end.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(document: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """The one spelling of a JSON document that digests are taken over.

    Args:
        document: JSON of finite numbers.

    Returns:
        ASCII, keys sorted, no white space.

    Raises:
        TypeError: Not JSON.
        ValueError: NaN or an infinity.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def read_bytes(path: Path | str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a whole regular file that must not be larger than expected.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is no regular file, or larger than ``max_bytes``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{path} has {size} bytes, expected at most {max_bytes}")
        return file.read()


def open_regular(path: Path | str) -> FileIO:
    """Open a file for reading, unbuffered, unless it is a pipe, a device or a directory.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its other end for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file")
    return FileIO(descriptor, "rb")


def read_json(path: Path | str, max_bytes: int = MAX_JSON_BYTES) -> Any:  # noqa: ANN401 - as above
    """Read a JSON file of bounded size.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: Too large, not UTF-8, not JSON, or nested too deep.
    """
    return parse_json(read_bytes(path, max_bytes), path)


def parse_json(data: bytes, path: Path | str) -> Any:  # noqa: ANN401 - as above
    """Parse bytes that should be JSON; ``path`` is named when they are not.

    Raises:
        ValueError: Not UTF-8, not JSON, or nested too deep.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path} is JSON nested too deep to read") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


@functools.lru_cache(maxsize=4096)  # segments repeat the same 50 paths
def is_safe_relative(path: str) -> bool:
    """Whether a path from a stranger's file is made of plain names and only leads down."""
    return _PLAIN_PATH.fullmatch(path) is not None


def safe_join(root: Path, relative: str) -> Path:
    """Join a path from a stranger's file to a directory it must not leave.

    Args:
        root: The directory.
        relative: A path with forward slashes.

    Raises:
        ValueError: The path is absolute, holds ``..``, or leads out through a symbolic link.
    """
    if not is_safe_relative(relative):
        raise ValueError(f"{relative!r} is not a plain path below {root}")
    path = str(root)
    for name in relative.split("/"):
        path = f"{path}/{name}"
        if os.path.islink(path):  # noqa: PTH114 - three times as fast
            break
    else:
        return Path(path)  # there is no link to lead out
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(real_root, relative))  # noqa: PTH118 - no Path needed
    if not real.startswith(real_root + os.sep):
        raise ValueError(f"{relative!r} leads out of {root} through a symbolic link")
    return Path(real)


def fsync_directory(path: Path | str) -> None:
    """Make the names in a directory survive a power cut.

    Raises:
        OSError: The device failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path | str, data: bytes) -> None:
    """Create a file that must not exist, with these bytes, and fsync it.

    Raises:
        FileExistsError: It exists.
        OSError: The disk is full or the directory not writable.
    """
    descriptor = create(path, data)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(path: Path | str, data: bytes) -> int:
    """Create a file that must not exist and write it, without fsync.

    Returns:
        The open descriptor. Fsyncing many files after writing all of them lets the file system
        commit them together: 15 ms instead of 100 ms for the 50 files of a segment.

    Raises:
        FileExistsError: It exists.
        OSError: The disk is full or the directory not writable.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_aside(path: Path, data: bytes) -> None:
    """Replace a file so that a reader sees the old bytes or the new ones, never a mixture.

    Raises:
        StorageError: The disk is full or the directory not writable.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with storage_errors(path):
        try:
            write_new(aside, data)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def create_exclusive(path: Path, data: bytes, aside: Path) -> bool:
    """Create a file with its whole content at once, unless it exists.

    Args:
        path: The file to create.
        data: Its bytes.
        aside: A name for the copy that is linked into place, on the same file system.

    Returns:
        Whether this call created it; of several processes, exactly one is told True.

    Raises:
        StorageError: The disk is full or the directory not writable.
    """
    with storage_errors(path):
        try:
            write_new(aside, data)
            created = _link(aside, path, data)
        finally:
            aside.unlink(missing_ok=True)
        fsync_directory(path.parent)
    return created


def _link(aside: Path, path: Path, data: bytes) -> bool:
    try:
        try:
            os.link(aside, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # FAT and some network mounts: still exclusive, but a crash may leave a torn file,
            # which readers refuse as not JSON.
            write_new(path, data)
    except FileExistsError:
        return False
    return True


def share_file(source: Path, target: Path) -> None:
    """Make a file that shares its bytes with one that never changes: a hard link.

    Where the file system has none, or the two lie on different ones, the bytes are copied and
    fsynced.

    Raises:
        FileExistsError: ``target`` exists.
        OSError: ``source`` is gone, the disk is full or the directory not writable.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (*_NO_HARD_LINKS, errno.EXDEV):
            raise
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())


def remove_tree(path: Path) -> None:
    """Delete a directory and what is in it; what is already gone is not an error."""
    shutil.rmtree(path, ignore_errors=True)
