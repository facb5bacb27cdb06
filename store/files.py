"""Atomic files, JSON, safe paths and checksums.

All files that other processes read are written with this module: a reader sees a complete file or
none, and a full disk raises `StorageError` with one line that says how to fix it.
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
"""Largest JSON file that `read_json` reads by default."""

_FIXES = {
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
    """Turn an `OSError` raised inside into a `StorageError` that says how to fix it.

    Args:
        path: What is written; the message names it if the error has no file name.

    Raises:
        StorageError: In place of any other `OSError` raised inside.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        fix = _FIXES.get(error.errno or 0, f"{reason}: check the path and try again")
        message = f"cannot write {error.filename or path}: {fix}"
        raise StorageError(error.errno or errno.EIO, message) from error


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal; it is read in pieces.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is not a regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(document: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return the encoding of a JSON document that digests are computed from.

    Returns:
        ASCII, with sorted keys and without white space.

    Raises:
        TypeError: The document is not JSON.
        ValueError: It contains NaN or an infinity.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def read_bytes(path: Path | str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a whole regular file of limited size.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is not a regular file, or larger than ``max_bytes``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{path} has {size} bytes, expected at most {max_bytes}")
        return file.read()


def open_regular(path: Path | str) -> FileIO:
    """Open a regular file for reading, unbuffered.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is a pipe, a device or a directory.
    """
    # Without O_NONBLOCK, opening a pipe would wait forever for its other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file")
    return FileIO(descriptor, "rb")


def read_json(path: Path | str, max_bytes: int = MAX_JSON_BYTES) -> Any:  # noqa: ANN401 - as above
    """Read a JSON file of limited size.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is too large, not UTF-8, not JSON, or nested too deep.
    """
    return parse_json(read_bytes(path, max_bytes), path)


def parse_json(data: bytes, path: Path | str) -> Any:  # noqa: ANN401 - as above
    """Parse the JSON of a file.

    Args:
        data: Content of the file.
        path: Its path, for the message.

    Raises:
        ValueError: It is not UTF-8, not JSON, or nested too deep.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path} is JSON nested too deep to read") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


@functools.lru_cache(maxsize=4096)  # segments repeat the same 50 paths
def is_safe_relative(path: str) -> bool:
    """Return whether a path from an untrusted file has plain names only and leads down."""
    return _PLAIN_PATH.fullmatch(path) is not None


def safe_join(root: Path, relative: str) -> Path:
    """Join a path from an untrusted file to a directory that it must not leave.

    Args:
        root: The directory.
        relative: A path with forward slashes.

    Raises:
        ValueError: The path is absolute, contains ``..``, or leads out through a symbolic link.
    """
    if not is_safe_relative(relative):
        raise ValueError(f"{relative!r} is not a plain path below {root}")
    path = str(root)
    for name in relative.split("/"):
        path = f"{path}/{name}"
        if os.path.islink(path):  # noqa: PTH114 - three times as fast
            break
    else:
        return Path(path)  # no link, so it cannot lead out
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(real_root, relative))  # noqa: PTH118 - no Path needed
    if not real.startswith(real_root + os.sep):
        raise ValueError(f"{relative!r} leads out of {root} through a symbolic link")
    return Path(real)


def fsync_directory(path: Path | str) -> None:
    """Write the names in a directory to disk, so that they survive a power failure.

    Raises:
        OSError: The device failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path | str, data: bytes) -> None:
    """Create a file with these bytes and fsync it.

    Raises:
        FileExistsError: The file exists.
        OSError: The disk is full or the directory not writable.
    """
    descriptor = create(path, data)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(path: Path | str, data: bytes) -> int:
    """Create a file with these bytes, without fsync.

    Returns:
        The open descriptor. Writing many files before the first fsync lets the file system commit
        them together: 15 ms instead of 100 ms for the 50 files of a segment.

    Raises:
        FileExistsError: The file exists.
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
    """Replace a file atomically: a reader sees the old bytes or the new ones.

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
    """Create a file atomically, unless it exists.

    Args:
        path: The file to create.
        data: Its bytes.
        aside: Path of a temporary file on the same file system, which is linked into place.

    Returns:
        Whether this call created it: True in exactly one of several processes.

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
            # FAT and some network mounts: still exclusive, but a crash may leave a truncated file,
            # which readers refuse because it is not JSON.
            write_new(path, data)
    except FileExistsError:
        return False
    return True


def share_file(source: Path, target: Path) -> None:
    """Create a hard link to a file that never changes.

    The bytes are copied and fsynced if the file system has no hard links, or if the paths are on
    different file systems.

    Raises:
        FileExistsError: ``target`` exists.
        OSError: ``source`` is missing, the disk is full or the directory not writable.
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
    """Delete a directory with its content; missing files are not an error."""
    shutil.rmtree(path, ignore_errors=True)
