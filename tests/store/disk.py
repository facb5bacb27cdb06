"""A file layer that counts, records and fails: what a disk may do to a process that writes."""

import contextlib
import os
from pathlib import Path

import pytest

PUBLISHING = ("open", "write", "fsync", "mkdir", "rename", "link", "unlink")
TIDYING = ("unlink", "rmdir", "remove")


class CrashError(BaseException):
    """Stands for a kill: nothing after it runs, not even what cleans up."""


class Disk:
    """The file operations of this process below a directory; see `failing`."""

    def __init__(self, root, fail_at=0, error=None, *, is_final=False):
        self.root = str(root)
        self.log: list[tuple[str, str]] = []
        """Name and path of each operation; a rename's is its target."""
        self.failed = None
        """Name of the operation that failed, if one did."""
        self._fail_at, self._error, self._is_final = fail_at, error, is_final
        self._paths: dict[int, str] = {}

    @property
    def count(self):
        return len(self.log)

    def install(self, patch):
        for name in dict.fromkeys((*PUBLISHING, *(TIDYING if self._is_final else ()))):
            patch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, real):
        def call(target, *args, **kwargs):
            known = self._paths.get(target) if isinstance(target, int) else str(target)
            path = str(args[0]) if name in ("rename", "link") else known
            if path is None or not self._is_mine(path, kwargs):
                return real(target, *args, **kwargs)
            self.log.append((name, path))
            if self.count == self._fail_at or (self._is_final and 0 < self._fail_at < self.count):
                self.failed = self.failed or name
                raise self._error
            result = real(target, *args, **kwargs)
            if name == "open":
                self._paths[result] = path
            return result

        return call

    def _is_mine(self, path, kwargs):
        # `shutil.rmtree` names what it deletes relative to a directory that it has open.
        return path.startswith(self.root) or kwargs.get("dir_fd") is not None


@contextlib.contextmanager
def failing(root, fail_at=0, error=None, *, is_final=False):
    """Let the operations below ``root`` through until the ``fail_at``-th (from 1), which fails.

    Args:
        root: The directory.
        fail_at: Number of the operation; 0 for none.
        error: An error number, or an exception.
        is_final: Whether all that follow fail, too, as after a kill.
    """
    error = OSError(error, os.strerror(error)) if isinstance(error, int) else error
    disk = Disk(Path(root), fail_at, error, is_final=is_final)
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        yield disk
