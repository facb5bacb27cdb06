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
import warnings
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from avtd3.store.errors import Avtd3Error, ConfigError, abbreviate, storage_error
from avtd3.store.locks import Identity, is_running

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Largest JSON file that `read_json` reads by default."""

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


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
"""Start of a URL, also of one that became a Path, which has one slash instead of two."""
REMOTE_SCHEMES = ("s3", "gs", "az", "memory")
"""Schemes of the URLs that `avtd3.store.remote` opens."""


def _as_url(path: Path | str | None) -> str | None:
    match = _URL.match(str(path))
    return None if match is None else f"{match[1]}://{str(path)[match.end() :]}"


def show_path(path: Path | str) -> str:
    """Return a path as text; one that was a URL gets its two slashes back."""
    return _as_url(path) or str(path)


def check_local(*paths: Path | str | None) -> None:
    """Raise `ConfigError` if a path is a URL: avtd3 would make a local directory of that name."""
    for path in paths:
        if (url := _as_url(path)) is not None:
            shown = abbreviate(_hide_secrets(url))
            raise ConfigError(
                f"{shown} is a URL, expected a path of this machine; mount the storage, or copy it "
                "here (avtd3 pull URL DIRECTORY), and give that path"
            )


def remote_url(path: Path | str | None) -> str | None:
    """Return the URL of an object store without a slash at its end; None for a local path.

    Raise ConfigError for any other URL, and for a user name, a password or a query in it.
    """
    if (url := _as_url(path)) is None:
        return None
    scheme, _, rest = url.partition("://")
    shown, plain = abbreviate(_hide_secrets(url)), rest.rstrip("/")
    if scheme not in REMOTE_SCHEMES:
        check_local(path)
    if "@" in rest or "?" in rest or "#" in rest:
        raise ConfigError(
            f"{shown} contains @, ? or #, expected only a bucket and a path; give credentials in "
            "the usual environment variables or files of the store"
        )
    names = plain.split("/")
    if not all(names) or {".", ".."} & set(names):
        raise ConfigError(
            f"{shown} is not a plain URL, expected one such as {scheme}://bucket/path"
        )
    return f"{scheme}://{plain}"


def _hide_secrets(url: str) -> str:
    """Hide what may be a password, or a signature in the query."""
    url = re.sub(r"//[^/]*:[^/]*@", "//[hidden]@", url)
    return re.sub(r"\?.*", "?[hidden]", url, flags=re.DOTALL)


@contextlib.contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `StorageError` that says how to fix it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, Avtd3Error):
            raise
        raise storage_error(path, error) from error


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


def _retried(operation: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function that reads with `retry`."""

    @functools.wraps(operation)
    def call(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        return retry(operation, *args, **options)

    return call


def is_directory(path: Path | str) -> bool:
    """Return whether a directory lies at a path; unlike `Path.is_dir`, an I/O error is not "no"."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def exists(path: Path | str) -> bool:
    """Return whether something lies at a path; unlike `Path.exists`, an I/O error is not "no"."""
    return _mode(path) is not None


def _mode(path: Path | str) -> int | None:
    try:
        return retry(os.stat, path).st_mode
    except OSError as error:
        if is_passing(error):
            raise
        return None
    except ValueError:  # a NUL byte, which no name has
        return None


@_retried
def list_directory(path: Path | str) -> tuple[list[str], list[str]]:
    """Return the names of the directories in a directory, and of all other entries, sorted.

    An entry that cannot be looked at now counts as a directory.
    """
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

    If it is the same as before, most likely no byte has changed. It costs no read. It is empty if
    the directory or something in it cannot be looked at.
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


@_retried
def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal; it is read in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(document: Any, *, allow_nan: bool = False) -> bytes:  # noqa: ANN401 - any JSON value
    """Return JSON as digests are computed from it: ASCII, keys sorted, without white space.

    Raise ValueError for NaN and Infinity unless they are allowed, as in what others wrote.
    """
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=allow_nan)
    except RecursionError as error:
        raise ValueError("JSON nested too deep to write") from error
    return text.encode("ascii")


@_retried
def read_bytes(path: Path | str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file; raise `ValueError` if it is something else or larger."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{path} has {size} bytes, expected at most {max_bytes}")
        return file.read()


def open_regular(path: Path | str) -> FileIO:
    """Open a regular file, unbuffered; raise `ValueError` for a pipe, a device or a directory."""
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
    """Read a JSON file; raise `ValueError` if it is larger or not JSON."""
    return parse_json(read_bytes(path, max_bytes), path)


def parse_json(data: bytes, path: Path | str) -> Any:  # noqa: ANN401 - as above
    """Parse the content of a file; raise `ValueError` if it is not JSON or nested too deep."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path} is JSON nested too deep to read") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def unzip(data: bytes, max_bytes: int) -> bytes:
    """Decompress a gzip file; raise `ValueError` if it is damaged or has more bytes than that."""
    decoder = zlib.decompressobj(wbits=31)
    try:
        text = decoder.decompress(data, max_bytes)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not decoder.eof:
        raise ValueError(f"it ends early, or has more than {max_bytes} bytes")
    return text


@functools.lru_cache(maxsize=4096)  # segments repeat the same 50 paths
def is_safe_relative(path: str) -> bool:
    """Return whether a path from an untrusted file has plain names only and leads down."""
    return _PLAIN_PATH.fullmatch(path) is not None


def plain_name(text: str) -> str:
    """Return the letters and digits of a text as a part of a file's name; empty if it has none."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:48]


def safe_join(root: Path, relative: str) -> Path:
    """Join a path from an untrusted file to a directory; raise `ValueError` if it leads out."""
    if not is_safe_relative(relative):
        raise ValueError(f"{abbreviate(relative)} is not a plain path below {root}")
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
        raise ValueError(f"{abbreviate(relative)} leads out of {root} through a symbolic link")
    return Path(real)


def fsync_directory(path: Path | str) -> None:
    """Write the names in a directory to disk, so that they survive a power failure.

    A file system that cannot do so (old CIFS, shared folders of virtual machines) is warned about.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FSYNC:
            raise
        _warn_of_lost_names(str(path))
    finally:
        os.close(descriptor)


_NO_DIRECTORY_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


_warned: set[str] = set()
"""What a warning was given about, so that each is given once."""


def _warn_of_lost_names(path: str) -> None:
    if "names" not in _warned:
        _warned.add("names")
        warnings.warn(
            f"the file system of {path} cannot fsync directories: after a power failure, files "
            "written shortly before may be missing",
            stacklevel=4,
        )


def write_new(path: Path | str, data: bytes) -> None:
    """Create a file with these bytes and fsync it."""
    descriptor = create(path, data)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(path: Path | str, data: bytes) -> int:
    """Create a file with these bytes, without fsync; return its open descriptor.

    Writing many files before the first fsync lets the file system commit them together: 15 ms
    instead of 100 ms for the 50 files of a segment.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


_ASIDE = re.compile(r"\..+\.(\d{1,9})-(?:(\d{1,19})-([0-9a-f]{8})-)?[0-9a-f]{8}\.tmp")
DAY_S = 86_400.0


def aside_of(path: Path) -> Path:
    """Return a new path beside another one, under which that one is written before it is renamed.

    The name says which process writes it, so that `sweep_asides` can delete it after a kill.
    """
    me = Identity.current()
    owner = f"{me.pid}-{me.start_ticks}-{me.place}"
    return path.with_name(f".{path.name[:60]}.{owner}-{secrets.token_hex(4)}.tmp")


def sweep_asides(directory: Path | str, older_than_s: float = DAY_S) -> None:
    """Delete the files of `aside_of` in a directory whose writer has ended, or that are old.

    What cannot be deleted stays.
    """
    me = Identity.current()
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            match = _ASIDE.fullmatch(entry.name)
            if match is None:
                continue
            pid, start_ticks, place = match.groups()
            age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
            is_dead = place == me.place and not is_running(int(pid), int(start_ticks))
            if is_dead or age_s > older_than_s:
                remove(Path(entry.path))


def write_aside(path: Path, data: bytes) -> None:
    """Replace a file atomically: a reader sees the old bytes or the new ones.

    What killed processes left in the directory is deleted, see `sweep_asides`.
    """
    aside = aside_of(path)
    sweep_asides(path.parent)
    with storage_errors(path):
        try:
            write_new(aside, data)
            aside.replace(path)
        except OSError as error:
            error.filename = str(path)  # not the name of the temporary file
            raise
        finally:
            aside.unlink(missing_ok=True)
        fsync_directory(path.parent)


def create_exclusive(path: Path, data: bytes, aside: Path) -> bool:
    """Create a file atomically, unless it exists; return whether this call created it.

    ``aside`` is a temporary file on the same file system, which is linked into place.
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
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (*_NO_HARD_LINKS, errno.EXDEV):
            raise
        _copy_file(source, target)


def _copy_file(source: Path, target: Path) -> None:
    with open_regular(source) as old, target.open("xb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def move_directory(source: Path, target: Path) -> bool:
    """Rename a directory, or copy it where the file system cannot rename it.

    That is so for the lower layer of overlayfs (what a container image contains), and between file
    systems. ``target`` appears whole and fsynced, or not at all. Return whether it was renamed; if
    not, ``source`` is still there and should be deleted.
    """
    try:
        os.rename(source, target)  # noqa: PTH104 - Path.rename, patched alike in the tests
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return True
    aside = aside_of(target)
    try:
        _copy_directory(source, aside)
        os.rename(aside, target)  # noqa: PTH104 - as above
    finally:
        remove_tree(aside)
    return False


def _copy_directory(source: Path, target: Path) -> None:
    """Copy a directory and fsync all of it; pipes and devices are left behind."""
    target.mkdir()
    for entry in source.iterdir():
        mode, copy = entry.lstat().st_mode, target / entry.name
        if stat.S_ISLNK(mode):
            copy.symlink_to(entry.readlink())
        elif stat.S_ISDIR(mode):
            _copy_directory(entry, copy)
        elif stat.S_ISREG(mode):
            _copy_file(entry, copy)
    fsync_directory(target)


def remove(path: Path) -> None:
    """Delete a file, a link or a directory with its content; a missing one is not an error."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a directory: EISDIR, or EPERM on some systems
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Delete a directory with its content; missing files are not an error."""
    shutil.rmtree(path, ignore_errors=True)
