"""A scratch directory that processes of one user and host share, and that the last one removes.

Each process holds the kernel's lock (flock) on a lease file of its own for as long as it lives.
A lease that can be locked belongs to a process that has ended, however it ended. All else
happens under the lock on the file ``lock``: to look which leases live, to change the index, to
remove the directory. Who locked a file ``lock`` that is no longer in the directory came too late,
and starts again. See docs/decisions/005-shared-cache.md.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from avtd3.store.errors import StorageError
from avtd3.store.files import sha256

LOCK, FRAMES, INDEX = "lock", "frames", "index.json"
LOCK_WAIT_S = 60.0
"""Longest wait for a lock that is never held for longer than it takes to reserve disk space."""
_LOCK_POLL_S = 0.005
_LEASE = re.compile(r"lease-[0-9]+-[0-9a-f]{16}")
_MAX_INDEX_BYTES = 256 * 1024 * 1024


def directory_name(digest: str) -> str:
    """Name of this user's directory for data of one kind on this host.

    Args:
        digest: Of all that says what a row is.
    """
    return f"{_prefix()}{digest:.16}"


def _prefix() -> str:
    # A disk may be shared by hosts; their memory is not, and perhaps not their locks.
    host = sha256(os.uname().nodename.encode())
    return f"avtd3-replay-{os.geteuid()}-{host:.8}-"


class SharedDirectory:
    """This process's place in a shared directory."""

    def __init__(self, path: Path) -> None:
        """Make the directory or join those who use it.

        Args:
            path: Below an existing directory; see `directory_name`.

        Raises:
            OSError: Something else lies there, or the file system lacks what it takes.
        """
        self.path = path
        self.lease = f"lease-{os.getpid()}-{secrets.token_hex(8)}"
        self._pid = os.getpid()
        self._directory, self._lock = _enter(path)
        try:
            self._lease_file = _open(self.lease, self._directory, os.O_CREAT | os.O_EXCL)
            try:
                fcntl.flock(self._lease_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._living() == {self.lease}:
                    # Left by processes that were killed, perhaps with the whole machine.
                    _remove(self._directory, (FRAMES, INDEX))
                self.frames = _open(FRAMES, self._directory, os.O_CREAT)
            except BaseException:
                os.close(self._lease_file)
                raise
        except BaseException:
            os.close(self._directory)
            os.close(self._lock)
            raise
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[set[str]]:
        """Hold the lock; yields the leases of all processes that are alive, this one's included.

        Raises:
            StorageError: The directory was removed, or another process does not let go.
        """
        _lock(self._lock, self.path)
        try:
            if not _is_linked(self._directory, self._lock):
                raise StorageError(
                    f"{self.path} was removed while it was in use; start the run again"
                )
            yield self._living()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def read_index(self) -> object:
        """The index as it was written last, None if it never was; only with the lock held.

        Raises:
            ValueError: Not JSON.
        """
        try:
            file = _open(INDEX, self._directory)
        except FileNotFoundError:
            return None
        with os.fdopen(file, "rb") as stream:
            return json.loads(stream.read(_MAX_INDEX_BYTES))

    def write_index(self, document: object) -> None:
        """Replace the index; only with the lock held.

        Raises:
            StorageError: The disk is full.
        """
        aside = f"{INDEX}.new"
        try:
            file = _open(aside, self._directory, os.O_CREAT | os.O_TRUNC)
            with os.fdopen(file, "wb") as stream:
                stream.write(json.dumps(document, separators=(",", ":")).encode())
            os.rename(aside, INDEX, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError as error:
            raise StorageError(
                f"{self.path / INDEX} cannot be written: {error.strerror}; free some space or "
                "name another disk with --set learn.replay.scratch=DIR"
            ) from error

    def leave(self) -> None:
        """Give up this process's place, and remove the directory if nobody else has one."""
        if os.getpid() == self._pid:  # else a fork's copy, and the place is its parent's
            # An error: somebody else removed it, and nothing is left to do.
            with contextlib.suppress(OSError), self.exclusive() as living:
                _remove(self._directory, (self.lease,))
                if living == {self.lease}:
                    _remove_all(self.path, self._directory)
        for file in (self.frames, self._lease_file, self._lock, self._directory):
            os.close(file)

    def _living(self) -> set[str]:
        return {self.lease} | _living(self._directory, but=self.lease)


def sweep(parent: Path) -> None:
    """Remove what killed processes of this user and host left in a scratch directory."""
    for path in parent.glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):  # in use, another's, or going: not ours to remove
            with contextlib.suppress(OSError):
                path.rmdir()  # a process was killed between its first two steps, or its last two
            directory, lock = _enter(path, is_new=False)
            try:
                if not _living(directory):
                    _remove_all(path, directory)
            finally:
                os.close(lock)
                os.close(directory)


def _enter(path: Path, *, is_new: bool = True) -> tuple[int, int]:
    """Open a directory and lock it; returns the two open files.

    Args:
        path: The directory.
        is_new: Make what is missing, and wait for the lock.
    """
    while True:
        if is_new:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        directory = lock = -1
        try:
            directory = _open_directory(path)
            lock = _open(LOCK, directory, os.O_CREAT if is_new else 0)
            if is_new:
                _lock(lock, path)
            else:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_linked(directory, lock):
                return directory, lock
        except FileNotFoundError:
            if not is_new:
                _discard(directory, lock)
                raise
        except BaseException:
            _discard(directory, lock)
            raise
        _discard(directory, lock)  # its last user has removed it meanwhile


def _discard(directory: int, lock: int) -> None:
    for file in (directory, lock):
        if file >= 0:
            os.close(file)


def _open_directory(path: Path) -> int:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(directory)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(directory)
        raise PermissionError(0, "belongs to another user or is open to others", str(path))
    return directory


def _open(name: str, directory: int, flags: int = 0) -> int:
    """Open a file of ours for reading and writing; never through a link."""
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(name, flags, 0o600, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileExistsError(0, "is no regular file", name)
    return file


def _lock(lock: int, path: Path) -> None:
    give_up_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up_s:
                raise StorageError(
                    f"{path / LOCK} is held by another process for over {LOCK_WAIT_S:.0f} s; "
                    "end it, or name another directory with --set learn.replay.scratch=DIR"
                ) from error
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _is_linked(directory: int, lock: int) -> bool:
    """Whether a file that is open is still the directory's lock."""
    try:
        found = os.stat(LOCK, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(lock))


def _living(directory: int, but: str = "") -> set[str]:
    """Leases whose processes live; removes the others."""
    living = set()
    for name in os.listdir(directory):
        if name == but or not _LEASE.fullmatch(name):
            continue
        file = _open(name, directory)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(directory, (name,))
        except BlockingIOError:
            living.add(name)
        finally:
            os.close(file)
    return living


def _remove(directory: int, names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _remove_all(path: Path, directory: int) -> None:
    """Remove a directory that nobody uses; the lock goes last, for those who wait for it."""
    _remove(directory, (FRAMES, INDEX, f"{INDEX}.new", LOCK))
    with contextlib.suppress(OSError):  # somebody has begun anew in it, or put a file there
        path.rmdir()
