"""Files that fail for whole processes, below Python: `flaky_io.c` with ``LD_PRELOAD``.

`flaky.py` replaces functions of `os`; this one also fails what they do not cover: ``read`` of open
files, ``mmap``, ``fsync``, ``rename``, and all that native code does. Needs a C compiler.
"""

import errno
import functools
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

CALLS = ("open", "create", "read", "pread", "fstat", "stat", "list", "mmap", "fsync", "rename")
"""Kinds of calls. ``open`` opens for reading, ``create`` for writing."""
READING = ("open", "read", "pread", "fstat", "stat", "list", "mmap")
"""Those that only readers make, and writers before they write."""
ERRORS = ("ESTALE", "ETIMEDOUT", "EIO", "EMFILE", "ENOMEM", "EACCES")
"""Errors that say nothing about the bytes of a file."""


def why_not() -> str:
    """Return why processes cannot have flaky files here; empty if they can."""
    if platform.system() != "Linux":
        return "LD_PRELOAD needs Linux"
    return "" if shutil.which("cc") else "there is no C compiler (cc)"


@functools.cache
def library() -> Path:
    """Compile the library, once per process.

    Raises:
        RuntimeError: It cannot be compiled; `why_not` may say why.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    target = Path(tempfile.mkdtemp(prefix="flaky-io-")) / "flaky_io.so"
    source = Path(__file__).with_name("flaky_io.c")
    words = ["cc", "-shared", "-fPIC", "-O2", "-o", str(target), str(source), "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return target


class NativeFlaky:
    """Flaky files for processes that start with `environment`.

    Example::

        flaky = NativeFlaky(tmp_path, [dataset], rate=0.03)
        subprocess.run(command, env=flaky.environment())
        assert flaky.failed("open") > 0
    """

    def __init__(
        self,
        folder: Path,
        roots: Sequence[Path],
        *,
        rate: float,
        errors: Sequence[str] = ERRORS,
        calls: Collection[str] = READING,
        seed: int = 0,
    ) -> None:
        """Compile the library and create the files that the processes share.

        Args:
            folder: Directory for these files; created if missing.
            roots: Only calls on what lies below these directories fail.
            rate: Share of the calls that fail.
            errors: Names of the errors, drawn evenly.
            calls: Which of `CALLS` fail.
            seed: Seed of the draws, which also depend on the process.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.library = library()
        self._counts = folder / "flaky-counts"
        self.switch = folder / "flaky-off"
        """While this file exists, nothing fails."""
        self._counts.write_bytes(bytes(8 * len(CALLS)))
        self._variables = {
            "LD_PRELOAD": str(self.library),
            "FLAKY_ROOTS": ":".join(str(root.resolve()) for root in roots),
            "FLAKY_RATE": str(rate),
            "FLAKY_ERRORS": ",".join(str(getattr(errno, name)) for name in errors),
            "FLAKY_CALLS": ",".join(calls),
            "FLAKY_SEED": str(seed),
            "FLAKY_COUNTS": str(self._counts),
            "FLAKY_SWITCH": str(self.switch),
        }

    def environment(self, base: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the variables of a process with flaky files."""
        return {**base, **self._variables}

    def stop(self) -> None:
        """Let nothing fail from now on, in running processes too."""
        self.switch.touch()

    def start(self) -> None:
        """Let calls fail (again)."""
        self.switch.unlink(missing_ok=True)

    def counts(self) -> dict[str, int]:
        """Return how many calls of each kind have failed so far."""
        with self._counts.open("r+b") as file, mmap.mmap(file.fileno(), 8 * len(CALLS)) as shared:
            numbers = np.frombuffer(shared[:], np.uint64).tolist()
        return dict(zip(CALLS, numbers, strict=True))

    def failed(self, *calls: str) -> int:
        """Return how many calls of these kinds have failed; of all without any."""
        return sum(count for call, count in self.counts().items() if not calls or call in calls)
