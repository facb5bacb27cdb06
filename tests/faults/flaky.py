"""A file layer whose operations fail now and then, as on a network mount; standard library only.

`flaky` patches the calls of this process. `environment` prepares the same for a process that a test
starts: Python imports `sitecustomize` from ``PYTHONPATH`` before anything else.
"""

import contextlib
import errno
import io
import json
import os
import random
import sys
from pathlib import Path

ERRORS = ("ESTALE", "ETIMEDOUT", "EIO", "EMFILE", "ENFILE", "ENOMEM", "EACCES", "EINTR")
"""Errors that say nothing about the bytes of a file."""
_FileIO = io.FileIO
BY_PATH = ("open", "stat", "lstat", "scandir", "listdir")
BY_DESCRIPTOR = ("pread", "preadv", "fstat")
BY_FILE = ("read", "readall", "readinto")
"""Methods of `io.FileIO`; they fail together, as ``read``."""


class FlakyFiles:
    """Fails calls on paths below a directory, at random or all of them.

    Example::

        with flaky(dataset.path, rate=0.03) as files:
            ...
        assert files.failed > 0
    """

    def __init__(
        self, root, rate=1.0, errors=ERRORS, seed=0, calls=(*BY_PATH, *BY_DESCRIPTOR, "read")
    ):
        """Fail nothing until `install` is called.

        Args:
            root: Calls on this path and on what lies below it may fail.
            rate: Share of these calls that fail.
            errors: Names of the errors to draw from.
            seed: Seed of the draws.
            calls: Names of the functions of `os` that may fail, and ``read`` for open files.
        """
        self.root, self.rate = str(root), rate
        self.numbers = [getattr(errno, name) for name in errors]
        self.calls = tuple(calls)
        self.failed = 0
        """Calls that failed so far."""
        self.opened: list[str] = []
        """Paths of the files that were opened below the root, in order."""
        self._random = random.Random(seed)
        self._paths: dict[int, str] = {}

    def install(self, patch=setattr):
        """Put the failing calls in place; ``patch`` is `setattr` or that of a `MonkeyPatch`."""
        for name in (*BY_PATH, *BY_DESCRIPTOR):
            if hasattr(os, name):
                patch(os, name, self._wrap(name, getattr(os, name)))
        kind = self._file_type()
        patch(io, "FileIO", kind)
        for module in list(sys.modules.values()):  # those that took it from `io` before
            if getattr(module, "FileIO", None) is _FileIO and module.__name__.startswith("avtd3."):
                patch(module, "FileIO", kind)

    def _file_type(self):
        """Return `io.FileIO` with methods that fail."""
        outer = self

        def method(name):
            real = getattr(_FileIO, name)

            def call(file, *args):
                path = outer._opened_path(file.fileno())
                if path is not None:
                    outer._draw("read", path)
                return real(file, *args)

            return call

        return type("FileIO", (_FileIO,), {name: method(name) for name in BY_FILE})

    def _draw(self, name, path):
        """Raise, if a call is drawn to fail."""
        if name in self.calls and self._random.random() < self.rate:
            self.failed += 1
            number = self._random.choice(self.numbers)
            raise OSError(number, os.strerror(number), path)

    def _wrap(self, name, real):
        def call(target=".", *args, **kwargs):
            path = self._path(target, kwargs.get("dir_fd"))
            if path is None:
                return real(target, *args, **kwargs)
            self._draw(name, path)
            result = real(target, *args, **kwargs)
            if name == "open":
                self._paths[result] = path
                self.opened.append(path)
            return result

        return call

    def _path(self, target, dir_fd):
        """The path that a call is about, or None if it does not lie below the root."""
        if isinstance(target, int):
            return self._opened_path(target)
        path = os.fspath(target)
        if isinstance(path, bytes):
            return None
        if dir_fd is not None and not path.startswith("/"):
            folder = self._opened_path(dir_fd)
            if folder is None:
                return None
            path = f"{folder}/{path}"
        return path if path == self.root or path.startswith(f"{self.root}/") else None

    def _opened_path(self, descriptor):
        """The path of an open file, unless its number belongs to another one by now."""
        found = self._paths.get(descriptor)
        with contextlib.suppress(OSError):
            if found == str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                return found
        return None


@contextlib.contextmanager
def flaky(root, **options):
    """Let calls below ``root`` fail while the block runs; see `FlakyFiles`."""
    import pytest

    files = FlakyFiles(root, **options)
    with pytest.MonkeyPatch.context() as patch:
        files.install(patch.setattr)
        yield files


_SHIM = """
import json, os, runpy
about = json.loads(os.environ["AVTD3_TEST_FLAKY"])
runpy.run_path(about.pop("module"))["FlakyFiles"](**about).install()
"""


def environment(folder, root, **options):
    """Variables under which a new process of Python has flaky files; writes into ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SHIM)
    about = {"module": str(Path(__file__).resolve()), "root": str(root), **options}
    return {**os.environ, "PYTHONPATH": str(folder), "AVTD3_TEST_FLAKY": json.dumps(about)}


def run_flaky(folder, root, *arguments, **options):
    """Run ``avtd3`` in a process with flaky files; returns the completed process."""
    import subprocess

    return subprocess.run(
        [sys.executable, "-m", "avtd3.cli", *map(str, arguments)],
        env=environment(folder, root, **options),
        capture_output=True,
        text=True,
        check=False,
    )
