"""`SharedRows`: decoded frames that processes of one user and host share.

The frames are in a scratch directory that the last process removes. Each process holds an exclusive
flock on its own lease file while it lives. A lease that can be locked belongs to a process that has
ended, for whatever reason. Everything else happens under the lock on the file ``lock``: finding the
live leases, changing the index and removing the directory. If a process locks a file ``lock`` that
is no longer in the directory, another process has removed the directory, and it starts again. See
docs/decisions/005-shared-cache.md.
"""

import contextlib
import dataclasses
import fcntl
import json
import mmap
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import StorageError, advice
from avtd3.store.files import sha256
from avtd3.store.replay.scratch import (
    Key,
    RowType,
    ScratchArrays,
    allocate,
    check_room,
    full_disk_errors,
    gaps,
    write_rows,
)
from avtd3.store.segment import Segment

LOCK, FRAMES, INDEX = "lock", "frames", "index.json"
LOCK_WAIT_S = 60.0
"""Maximum wait for a lock. Processes hold it only while they reserve disk space."""
_LOCK_POLL_S = 0.005
_LEASE = re.compile(r"lease-[0-9]+-[0-9a-f]{16}")
_MAX_INDEX_BYTES = 256 * 1024 * 1024


def directory_name(digest: str) -> str:
    """Return the name of this user's directory on this host for frames of the spec `digest`."""
    # Hosts may share a disk, but not their memory and perhaps not their locks.
    host = sha256(os.uname().nodename.encode())
    return f"avtd3-replay-{os.geteuid()}-{host:.8}-{digest:.16}"


class SharedDirectory:
    """The membership of this process in a shared directory."""

    def __init__(self, path: Path, names: Iterable[str] = (FRAMES,)) -> None:
        """Create the directory, or join its processes; raise OSError if it cannot be shared.

        `names` are those of its files of frames, each of which begins with `FRAMES`.
        """
        self.path = path
        self.lease = f"lease-{os.getpid()}-{secrets.token_hex(8)}"
        self._pid = os.getpid()
        with contextlib.ExitStack() as opened:
            self._directory, self._lock = _enter(path, opened)
            self._lease_file = _open(self.lease, self._directory, os.O_CREAT | os.O_EXCL)
            opened.callback(os.close, self._lease_file)
            fcntl.flock(self._lease_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._living() == {self.lease}:
                # Killed processes, or a crash of the machine, left these files.
                _remove(self._directory, (*_frame_files(self._directory), INDEX))
            self.files = {name: _open(name, self._directory, os.O_CREAT) for name in names}
            for file in self.files.values():
                opened.callback(os.close, file)
            self._opened = opened.pop_all()
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[set[str]]:
        """Hold the lock; yield the leases of all live processes, including this one."""
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
        """Return the current index, None if there is none; only while holding the lock."""
        try:
            file = _open(INDEX, self._directory)
        except FileNotFoundError:
            return None
        with os.fdopen(file, "rb") as stream:
            return json.loads(stream.read(_MAX_INDEX_BYTES))

    def write_index(self, document: object) -> None:
        """Replace the index; only while holding the lock."""
        aside = f"{INDEX}.new"
        try:
            file = _open(aside, self._directory, os.O_CREAT | os.O_TRUNC)
            with os.fdopen(file, "wb") as stream:
                stream.write(json.dumps(document, separators=(",", ":")).encode())
            os.rename(aside, INDEX, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError as error:
            raise StorageError(
                f"{self.path / INDEX} cannot be written: {advice(error)}, or name another disk "
                "with --set learn.replay.scratch=DIR"
            ) from error

    def leave(self) -> None:
        """Leave the directory, and remove it if no other process uses it."""
        if os.getpid() == self._pid:  # in a forked child, the lease belongs to its parent
            # After an error there is nothing left to do: the directory was removed.
            with contextlib.suppress(OSError), self.exclusive() as living:
                _remove(self._directory, (self.lease,))
                if living == {self.lease}:
                    _remove_all(self.path, self._directory)
        self._opened.close()

    def _living(self) -> set[str]:
        return {self.lease} | _living(self._directory, but=self.lease)


def sweep(parent: Path) -> None:
    """Remove what killed processes of this user and host left in a scratch directory."""
    for path in parent.glob(directory_name("*")):
        with contextlib.suppress(OSError):  # in use, not ours, or being removed
            with contextlib.suppress(OSError):
                path.rmdir()  # a process was killed while creating or removing it
            with contextlib.ExitStack() as opened:
                directory, _ = _enter(path, opened, is_new=False)
                if not _living(directory):
                    _remove_all(path, directory)


def _enter(path: Path, opened: contextlib.ExitStack, *, is_new: bool = True) -> tuple[int, int]:
    """Open a directory and its lock, lock it, and let `opened` close both.

    With `is_new`, create what is missing and wait for the lock.
    """
    while True:
        if is_new:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        with contextlib.ExitStack() as attempt:
            try:
                directory = _open_directory(path)
                attempt.callback(os.close, directory)
                lock = _open(LOCK, directory, os.O_CREAT if is_new else 0)
                attempt.callback(os.close, lock)
                if is_new:
                    _lock(lock, path)
                else:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_linked(directory, lock):
                    opened.push(attempt.pop_all())
                    return directory, lock
            except FileNotFoundError:  # its last user removed it in the meantime
                if not is_new:
                    raise


def _open_directory(path: Path) -> int:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(directory)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(directory)
        raise PermissionError(0, "belongs to another user or is open to others", str(path))
    return directory


def _open(name: str, directory: int, flags: int = 0) -> int:
    """Open a regular file for reading and writing; do not follow links."""
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(name, flags, 0o600, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileExistsError(0, "is not a regular file", name)
    return file


def _lock(lock: int, path: Path) -> None:
    give_up_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up_s:
                raise StorageError(
                    f"another process has locked {path / LOCK} for over {LOCK_WAIT_S:.0f} s; "
                    "stop it, or name another directory with --set learn.replay.scratch=DIR"
                ) from error
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _is_linked(directory: int, lock: int) -> bool:
    """Return whether an open file is still the directory's lock."""
    try:
        found = os.stat(LOCK, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(lock))


def _living(directory: int, but: str = "") -> set[str]:
    """Return the leases of live processes; remove the others."""
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


def _frame_files(directory: int) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(FRAMES)]


def _remove(directory: int, names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _remove_all(path: Path, directory: int) -> None:
    """Remove an unused directory; the lock last, because processes may be waiting for it."""
    _remove(directory, (*_frame_files(directory), INDEX, f"{INDEX}.new", LOCK))
    with contextlib.suppress(OSError):  # another process uses it again, or put a file there
        path.rmdir()


@dataclasses.dataclass(slots=True, kw_only=True)
class Placed:
    """The rows of a segment."""

    start: int
    stop: int
    is_ready: bool = False
    """Whether all of its frames are written."""
    decoder: str = ""
    """Lease of the process that is decoding it; empty if no process is."""
    users: set[str] = dataclasses.field(default_factory=set)
    """Leases of the processes that want it."""


class SharedIndex:
    """Rows of segments by content, oldest first; ranges never overlap."""

    def __init__(self, rows: int = 0, placed: Mapping[str, Placed] | None = None) -> None:
        self.rows = rows
        self._placed = dict(placed or {})

    @classmethod
    def from_document(cls, document: Any) -> Self:  # noqa: ANN401 - any JSON value
        """Read what `to_document` returned; raise ValueError for anything else."""
        try:
            placed = {
                str(content): Placed(
                    start=int(start),
                    stop=int(stop),
                    is_ready=bool(is_ready),
                    decoder=str(decoder),
                    users=set(users),
                )
                for content, (start, stop, is_ready, decoder, users) in document["segments"]
            }
            return cls(int(document["rows"]), placed)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("not an index of shared frames") from error

    def to_document(self) -> dict[str, Any]:
        """Return the index as plain JSON."""
        segments = [
            [content, [at.start, at.stop, at.is_ready, at.decoder, sorted(at.users)]]
            for content, at in self._placed.items()
        ]
        return {"rows": self.rows, "segments": segments}

    def __getitem__(self, content: str) -> Placed:
        return self._placed[content]

    def keep(self, living: Collection[str]) -> None:
        """Forget what processes wanted that have ended."""
        for at in self._placed.values():
            at.users.intersection_update(living)
            if at.decoder not in living:
                at.decoder = ""
        self._forget_useless()

    def release(self, lease: str, contents: Iterable[str]) -> None:
        """Stop wanting segments; complete ones stay until their rows are needed."""
        for content in self._placed.keys() & set(contents):
            at = self._placed[content]
            at.users.discard(lease)
            if at.decoder == lease:
                at.decoder = ""
        self._forget_useless()

    def claim(self, lease: str, wanted: Mapping[str, int]) -> None:
        """Want segments, and assign the given number of rows to those that have none."""
        for content in self._placed.keys() & wanted.keys():
            self._placed[content].users.add(lease)
        free = self._gaps()
        for content, rows in wanted.items():
            if content in self._placed:
                continue
            while (gap := next((g for g in free if g[1] - g[0] >= rows), None)) is None:
                if not self._evict():
                    break
                free = self._gaps()
            start = self._take(gap, free, rows)
            self._placed[content] = Placed(start=start, stop=start + rows, users={lease})

    def take_over(self, lease: str, content: str) -> bool:
        """Become the decoder of a segment; return False if it is complete or has a decoder."""
        at = self._placed[content]
        if at.is_ready or at.decoder not in ("", lease):
            return False
        at.decoder = lease
        return True

    def finish(self, contents: Iterable[str]) -> None:
        """Record that all frames of some segments are written."""
        for content in contents:
            at = self._placed[content]
            at.is_ready, at.decoder = True, ""

    def _take(self, gap: tuple[int, int] | None, free: list[tuple[int, int]], rows: int) -> int:
        """Take rows from a gap, or from the end and beyond; return the first one."""
        if gap is None:
            # Extend a gap at the end instead of leaving it behind.
            start = free.pop()[0] if free and free[-1][1] == self.rows else self.rows
            self.rows = start + rows
            return start
        number = free.index(gap)
        free[number : number + 1] = [(gap[0] + rows, gap[1])] if gap[1] - gap[0] > rows else []
        return gap[0]

    def _gaps(self) -> list[tuple[int, int]]:
        return gaps(((at.start, at.stop) for at in self._placed.values()), self.rows)

    def _evict(self) -> bool:
        """Drop the oldest segment that no process wants; return False if there is none."""
        for content, at in self._placed.items():
            if not at.users:
                del self._placed[content]
                return True
        return False

    def _forget_useless(self) -> None:
        """Drop segments that no process wants and that are not complete."""
        kept = self._placed.items()
        self._placed = {content: at for content, at in kept if at.users or at.is_ready}


FLUSH_S = 0.5
"""Maximum delay until other processes see which segments are complete."""


class SharedRows:
    """Like `PrivateRows`, but the frames are in files that several processes share."""

    def __init__(self, scratch: Path, types: Mapping[str, RowType], digest: str) -> None:
        """Join the processes that share frames of one kind; raise OSError if impossible."""
        own = {name: kind for name, kind in types.items() if not name.startswith(FRAMES)}
        self._kinds = {name: kind for name, kind in types.items() if name not in own}
        self._own = ScratchArrays(scratch, own)
        self._frames = self._no_frames()
        self._contents: dict[Key, str] = {}
        self._ranges: dict[str, slice] = {}
        self._finished: list[str] = []
        self._flush_at_s = 0.0
        self._mapped_rows = 0
        self.rows = 0
        """Number of rows of all processes, as of the last `change`."""
        try:
            self._home = SharedDirectory(scratch / directory_name(digest), self._kinds)
        except OSError:
            self._own.close()
            raise
        self._leave = weakref.finalize(self, self._home.leave)
        try:
            with self._home.exclusive() as living:
                self._read(living)
            self._map(1)  # fails here, not later, if the file system does not support it
        except OSError:
            self.close()
            raise
        sweep(scratch)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `PrivateRows`."""
        return {**{name: self._own[name] for name in self._own}, **self._frames}

    def __getitem__(self, key: Key) -> slice:
        return self._ranges[self._contents[key]]

    def put_frames(self, name: str, key: Key, start: int, frames: NDArray[np.uint8]) -> None:
        """See `PrivateRows`."""
        with full_disk_errors(self._home.path, frames.nbytes):
            write_rows(self._home.files[name], self[key].start + start, frames)

    def change(self, gone: Iterable[Key], new: Mapping[Key, Segment]) -> None:
        """See `PrivateRows`."""
        left = self._forget(gone)
        contents = {key: segment.manifest_digest for key, segment in new.items()}
        wanted = {contents[key]: segment.observations for key, segment in new.items()}
        with self._home.exclusive() as living:
            index = self._read(living)
            index.release(self._home.lease, left)
            claimed = SharedIndex.from_document(index.to_document())
            claimed.claim(self._home.lease, wanted)
            try:
                self._reserve(index.rows, claimed.rows)
                index = claimed
            finally:
                self._home.write_index(index.to_document())
        self.rows = index.rows
        self._contents |= contents
        self._ranges |= {c: slice(index[c].start, index[c].stop) for c in wanted}

    def claim(self, keys: Iterable[Key], most: int) -> tuple[set[Key], list[Key]]:
        """See `PrivateRows`; of segments with the same content, only one is decoded."""
        ready: set[Key] = set()
        mine: dict[str, Key] = {}
        with self._home.exclusive() as living:
            index = self._read(living)
            index.finish(self._finished)
            for key in keys:
                content = self._contents[key]
                if index[content].is_ready:
                    ready.add(key)
                elif len(mine) < most and index.take_over(self._home.lease, content):
                    mine.setdefault(content, key)
            if mine or self._finished:
                self._home.write_index(index.to_document())
        self._finished = []
        return ready, list(mine.values())

    def finish(self, key: Key) -> None:
        """See `PrivateRows`; published by a later call after `FLUSH_S`, or by `settle`."""
        self._finished.append(self._contents[key])
        if time.monotonic() >= self._flush_at_s:
            self.settle(())

    def settle(self, failed: Iterable[Key]) -> None:
        """See `PrivateRows`."""
        left = self._forget(failed)
        if left or self._finished:
            with self._home.exclusive() as living:
                index = self._read(living)
                index.finish(self._finished)
                index.release(self._home.lease, left)
                self._home.write_index(index.to_document())
            self._finished = []
        self._flush_at_s = time.monotonic() + FLUSH_S

    def close(self) -> None:
        """See `PrivateRows`."""
        self._leave()
        self._own.close()
        self._frames = self._no_frames()
        self._contents, self._ranges = {}, {}
        self.rows = self._mapped_rows = 0

    def _no_frames(self) -> dict[str, NDArray[Any]]:
        return {name: np.empty((0, *kind.shape), kind.dtype) for name, kind in self._kinds.items()}

    def _forget(self, keys: Iterable[Key]) -> list[str]:
        """Forget segments; return the contents that this process no longer wants."""
        left = {self._contents.pop(key) for key in keys} - set(self._contents.values())
        for content in left:
            del self._ranges[content]
        return sorted(left)

    def _read(self, living: set[str]) -> SharedIndex:
        try:
            document = self._home.read_index()
            index = SharedIndex() if document is None else SharedIndex.from_document(document)
        except ValueError as error:
            raise StorageError(
                f"the index in {self._home.path} cannot be read ({error}); stop the runs that "
                "use it, then remove the directory"
            ) from error
        index.keep(living)
        return index

    def _reserve(self, before: int, rows: int) -> None:
        """Make rows usable, in the shared files and in the files of this process."""
        more = (rows - before) * sum(kind.size_bytes for kind in self._kinds.values())
        if more > 0:
            check_room(self._home.path, more)
        with full_disk_errors(self._home.path, more):
            self._map(rows)
            for name, kind in self._kinds.items() if more > 0 else ():
                size = kind.size_bytes
                allocate(self._home.files[name], before * size, (rows - before) * size)
        self._own.reserve(rows)

    def _map(self, rows: int) -> None:
        """Map the shared files far past their end; only with the lock, or before any use."""
        if rows <= self._mapped_rows:
            return
        for name, kind in self._kinds.items():
            size, file = 2 * rows * kind.size_bytes, self._home.files[name]
            if os.fstat(file).st_size < size:  # never shorter: other processes have mapped it
                os.ftruncate(file, size)
            flat = np.frombuffer(mmap.mmap(file, size), dtype=kind.dtype)
            self._frames[name] = flat.reshape((2 * rows, *kind.shape))
        self._mapped_rows = 2 * rows
