"""Kernel locks on directories, and the identity of a process.

Only the kernel lock says whether a directory is in use. The kernel releases it when the process
ends for any reason; what a lock file contains only says who holds it.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import stat
import time
import warnings
from pathlib import Path
from typing import Any, Self

from avtd3.store.errors import (
    Avtd3Error,
    InUseError,
    StorageError,
    abbreviate,
    advice,
    storage_error,
)

LOCK_FILE = ".lock"
"""Name of the lock file in a directory."""
_MAX_HOLDER_BYTES = 4096
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which process on which machine this is; written beside what the process works on."""

    host: str
    """Name of the machine."""
    machine: str
    """Digest of the machine's id; empty if it has none."""
    boot: str
    """Id that is new at each start of the machine; empty if it is unknown."""
    pid_namespace: int
    """Number of the namespace that process ids belong to (a container has its own); 0 if it is
    unknown."""
    pid: int
    """Process id."""
    start_ticks: int
    """When the process started, in the kernel's clock ticks; 0 if it is unknown."""
    purpose: str
    """What the process does, for people."""
    wall_time: float
    """When this was written, in seconds since 1970."""

    @classmethod
    def current(cls, purpose: str = "") -> Self:
        """Return the identity of this process."""
        try:
            namespace = Path("/proc/self/ns/pid").stat().st_ino
        except OSError:
            namespace = 0
        return cls(
            host=platform.node(),
            machine=_machine(),
            boot=_text("/proc/sys/kernel/random/boot_id"),
            pid_namespace=namespace,
            pid=os.getpid(),
            start_ticks=_process_state("self")[1],
            purpose=purpose,
            wall_time=time.time(),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote; what another version did not write counts as unknown.

        Raise ValueError if the bytes are something else.
        """
        try:
            document = json.loads(data)
        except RecursionError as error:
            raise ValueError("JSON nested too deep") from error
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004 - a file, not an argument
        given: dict[str, Any] = {}
        for name, kind in _KINDS.items():
            value = document.get(name, kind())
            if type(value) is not kind:
                raise ValueError(f"{name} is {abbreviate(value)}, expected {kind.__name__}")
            given[name] = value
        if not 0 < given["pid"] < 2**31:
            raise ValueError(f"pid is {abbreviate(given['pid'])}, expected a process id")
        return cls(**given)

    def to_bytes(self) -> bytes:
        """Return the identity as one line of JSON."""
        return json.dumps(dataclasses.asdict(self)).encode("ascii") + b"\n"

    @property
    def place(self) -> str:
        """A short digest of what two processes share that can see each other."""
        return _digest(self.host, self.machine, self.boot, str(self.pid_namespace))[:8]

    def is_dead(self) -> bool | None:
        """Return whether the process has ended; None if that cannot be known here.

        It cannot be known of a process on another machine or in another container.
        """
        here = Identity.current()
        if (self.host, self.machine) != (here.host, here.machine):
            return None
        if self.boot != here.boot:
            # A machine with the same names that was up while this one ran is another one.
            return True if self.boot and self.wall_time < _boot_time_s() else None
        if self.pid_namespace != here.pid_namespace:
            return None
        return not is_running(self.pid, self.start_ticks)

    def __str__(self) -> str:
        try:
            moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.wall_time))
        except (ValueError, OverflowError, OSError):
            moment = "an unknown time"
        return f"process {self.pid} on {abbreviate(self.host)} ({self.purpose}, since {moment})"


_KINDS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Identity)}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


@functools.cache
def _machine() -> str:
    # The id itself should not leave the machine (man machine-id).
    number = _text("/etc/machine-id")
    return _digest("avtd3", number)[:16] if number else ""


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()


def _boot_time_s() -> float:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.time() - time.clock_gettime(clock)


def _process_state(pid: int | str) -> tuple[str, int]:
    """Return the state letter of a process and its start time in ticks; ("", 0) if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode("ascii"), int(fields[19])
    except (OSError, ValueError, IndexError):
        return "", 0


def is_running(pid: int, start_ticks: int) -> bool:
    """Return whether a process in this one's namespace runs; in doubt, True."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        is_ours = os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115 - a text
    except OSError:
        is_ours = False
    # /proc may be absent, or that of another namespace; and it may hide others' processes.
    state, started = _process_state(pid) if is_ours else ("", 0)
    return state not in ("Z", "X") and (0 in (started, start_ticks) or started == start_ticks)


class ExclusiveLock:
    """A kernel lock that one process at a time holds on a directory, as a context manager.

    The lock file stays when the lock is released; alone it means nothing. Other names of it are
    other locks. A forked child does not hold its parent's lock, so a worker that outlives a killed
    parent blocks nobody.

    Entering raises `InUseError` if another process, or another lock in this one, holds it, and
    `StorageError` if the file cannot be written. A file system without locks causes a warning, or
    a `StorageError` if ``is_required``. ``purpose`` is what the holder does, for the message
    to others.
    """

    def __init__(
        self, directory: Path, *, purpose: str, name: str = LOCK_FILE, is_required: bool = False
    ) -> None:
        self._directory, self._purpose = directory, purpose
        self._path, self._is_required = directory / name, is_required
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        # NFS locks only files that are open for writing. A link could lead anywhere.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o666)
        except OSError as error:
            raise storage_error(self._path, error) from error
        try:
            self._lock(descriptor)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError) and not isinstance(error, Avtd3Error):
                raise storage_error(self._path, error) from error
            raise
        self._descriptor = descriptor
        _held_descriptors().add(descriptor)
        return self

    def _lock(self, descriptor: int) -> None:
        is_regular = False
        try:
            is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(self._directory, _holder(descriptor)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS or self._is_required:
                code = errno.ENOLCK if error.errno in _NO_LOCKS else error.errno or errno.EIO
                says = f"{self._path} cannot be locked: {advice(OSError(code, ''))}"
                raise StorageError(code, says) from error
            warnings.warn(
                f"{self._path} cannot be locked ({error.strerror}): make sure that no other "
                "process uses the directory",
                stacklevel=4,
            )
        if not is_regular:
            raise StorageError(errno.EINVAL, f"{self._path} is not a regular file: delete it")
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, Identity.current(self._purpose).to_bytes(), 0)

    def __exit__(self, *_: object) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _held_descriptors():
            _held_descriptors().discard(descriptor)
            os.close(descriptor)


@functools.cache
def _held_descriptors() -> set[int]:
    """Return the open lock files of this process; a forked child closes them."""
    held: set[int] = set()

    def close_all() -> None:
        while held:
            with contextlib.suppress(OSError):
                os.close(held.pop())

    os.register_at_fork(after_in_child=close_all)
    return held


def _holder(descriptor: int) -> str:
    """Describe who holds a lock; the file may be of an earlier holder, or not written yet."""
    try:
        holder = Identity.from_bytes(os.pread(descriptor, _MAX_HOLDER_BYTES, 0))
    except (OSError, ValueError):
        return "another process"
    return "another process" if holder.is_dead() else str(holder)
