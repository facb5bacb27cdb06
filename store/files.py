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
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

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
_ABOUT_THE_FILE = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENXIO,
        errno.ENAMETOOLONG,
        errno.EEXIST,
    )
)
"""Errors that say what lies at a path. All others say that it cannot be read at present."""
_WAITS_S = (0.005, 0.02, 0.08, 0.32)
_OUTAGE_S = 1.0
"""Seconds after a lasting error in which the same error is tried again without waiting."""
_lasting_since_s: dict[int, float] = {}
"""When each error number last outlasted all waits."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

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


def is_passing(error: OSError) -> bool:
    """Return whether an error says nothing about the bytes of a file, but only about this moment.

    A stale handle, a time-out, a failing device, too many open files, missing memory or a missing
    permission do not mean that data are damaged. A missing file or a link in its place do.
    """
    return not isinstance(error, FileNotFoundError) and error.errno not in _ABOUT_THE_FILE


def retry(
    operation: Callable[Parameters, Result], *args: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """Call an operation that reads; on an error that may pass, wait a little and call it again.

    It is called up to five times within 0.4 s. During an outage, when the same error has just
    outlasted these waits, it is called as often, but without waiting.

    Args:
        operation: Safe to repeat.
        args: Its arguments.
        options: Its keyword arguments.

    Raises:
        OSError: That of the last call, or one that says what lies at the path; see `is_passing`.
    """
    for wait_s in _WAITS_S:
        try:
            return operation(*args, **options)
        except OSError as error:
            if not is_passing(error):
                raise
            if not _is_outage(error):
                time.sleep(wait_s)
    try:
        return operation(*args, **options)
    except OSError as error:
        if is_passing(error) and not _is_outage(error):
            _lasting_since_s[error.errno or 0] = time.monotonic()
        raise


def _is_outage(error: OSError) -> bool:
    since_s = _lasting_since_s.get(error.errno or 0)
    return since_s is not None and time.monotonic() < since_s + _OUTAGE_S


def is_directory(path: Path | str) -> bool:
    """Return whether a directory lies at a path; unlike `Path.is_dir`, an I/O error is not "no".

    Raises:
        OSError: That cannot be found out at present.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path | str) -> int | None:
    try:
        return retry(os.stat, path).st_mode
    except OSError as error:
        if is_passing(error):
            raise
        return None


def list_directory(path: Path | str) -> tuple[list[str], list[str]]:
    """Return the names of the directories in a directory, and of all other entries, sorted.

    An entry that cannot be looked at now counts as a directory.

    Raises:
        OSError: The directory cannot be listed, even after `retry`.
    """
    return retry(_list_directory, path)


def _list_directory(path: Path | str) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = True
            (folders if is_folder else others).append(entry.name)
    return sorted(folders), sorted(others)


def drop_cached(path: Path | str) -> None:
    """Ask the system to forget the cached bytes of a file, so that the next read asks the disk."""
    if hasattr(os, "posix_fadvise"):  # macOS has none
        with contextlib.suppress(OSError, ValueError), open_regular(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def tree_stamp(path: Path | str) -> str:
    """Return a digest of the names, sizes, times and inodes of all files below a directory.

    If it is the same as before, most likely no byte has changed. It costs no read.

    Returns:
        In hexadecimal; empty if the directory or something in it cannot be looked at.
    """
    lines, folders = [], [""]
    try:
        while folders:
            folder = folders.pop()
            for entry in os.scandir(f"{path}/{folder}"):
                name, status = f"{folder}{entry.name}", entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(f"{name}/")
                else:
                    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
                    lines.append(f"{name} {status.st_size} {times} {status.st_ino}\n")
    except OSError:
        return ""
    return sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape"))


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal; it is read in pieces.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is not a regular file.
    """
    return retry(_sha256_of_file, path)


def _sha256_of_file(path: Path) -> str:
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
        OSError: The file is missing or cannot be read, even after `retry`.
        ValueError: It is not a regular file, or larger than ``max_bytes``.
    """
    return retry(_read_bytes, path, max_bytes)


def _read_bytes(path: Path | str, max_bytes: int) -> bytes:
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
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    if not is_regular:
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
        except BaseException as error:
            aside.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = None  # the message names the file, not the temporary one
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
