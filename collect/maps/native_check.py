"""Build a road network in a throw-away process first: some documents end or block carla.Map.

The verdict on a document is remembered by the digest of its text, in this process and in the user's
cache directory (``$XDG_CACHE_HOME/avtd3/maps``).
"""

import contextlib
import importlib.metadata
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from avtd3.store.errors import RoadError, StorageError, WorldError
from avtd3.store.files import read_json, sha256, write_aside

CPU_S = 30  # seconds of CPU time that building a network may take
MEMORY_BYTES = 4 * 1024**3  # address space that it may take
WAIT_S = 600.0  # seconds for a process that does not even use its CPU time
_MODULE = "avtd3.collect.maps.network"
_VERSION = 1  # raise it when the process does other things with a document
_LASTING = (
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGXCPU,
)  # fmt: skip
_known: dict[str, str] = {}


def check_native(name: str, xodr: str) -> None:
    """Raise `RoadError` unless carla.Map survives a document; `name` names it in messages."""
    key = sha256(f"{_VERSION} {importlib.metadata.version('carla')} {xodr}".encode())
    if key not in _known:
        recalled = _recall(key)
        _known[key] = _try(name, xodr, key) if recalled is None else recalled
    if fault := _known[key]:
        expected = "OpenDRIVE that CARLA can load; check it with an OpenDRIVE validator"
        raise RoadError(f"road {name} {fault}, expected {expected}")


def run_apart(
    module: str, data: bytes, task: str, **settings: str
) -> subprocess.CompletedProcess[bytes] | None:
    """Run a module on data, with environment variables; return None if it takes too long.

    The module answers with `answer_apart`; the task names it in the message if it cannot start.
    """
    try:
        return subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **settings},
            start_new_session=True,  # Ctrl-C is for the parent alone
            timeout=WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        raise WorldError(f"cannot start a process to {task}: {error}") from error


@contextlib.contextmanager
def answer_apart() -> Iterator[tuple[bytes, TextIO]]:
    """Limit this process; yield its standard input, and a file for what it answers.

    What carla prints goes to standard error.
    """
    limit_process()
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        yield sys.stdin.buffer.read(), answer


def limit_process() -> None:
    """Limit the CPU time and the memory of this process, and let it leave no core file."""
    limits = {resource.RLIMIT_CPU: CPU_S, resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_CORE: 0}
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (soft, hard))


def _try(name: str, xodr: str, key: str) -> str:
    """Return what is wrong with a document, empty if nothing, and remember it."""
    # glibc fills memory with a pattern, so that a use of freed memory shows here, not later.
    settings = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": "165"}
    done = run_apart(_MODULE, xodr.encode(), f"check road {name}", **settings)
    if done is None:
        return f"keeps carla.Map busy for more than {WAIT_S:g} s"
    number = -done.returncode
    if number == signal.SIGXCPU:
        fault = f"keeps carla.Map busy for more than {CPU_S} s"
    elif number > 0:
        fault = f"ends carla.Map with {signal.Signals(number).name}"
    elif number < 0:
        raise WorldError(
            f"the process that checks road {name} failed with exit code {done.returncode}; to see "
            f"why, run: {sys.executable} -m {_MODULE} < FILE"
        )
    else:
        fault = json.loads(done.stdout)
    if number <= 0 or number in _LASTING:
        _remember(key, fault)
    return fault


def _path(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return folder / "avtd3" / "maps" / f"{key}.json"


def _recall(key: str) -> str | None:
    """Return what is remembered on disk; None if nothing is, or if it cannot be used."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no home directory: RuntimeError
        fault = read_json(_path(key), 64 * 1024)
        return fault if isinstance(fault, str) else None
    return None


def _remember(key: str, fault: str) -> None:
    """Remember a verdict on disk, if that is possible."""
    with contextlib.suppress(OSError, StorageError, RuntimeError):
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, json.dumps(fault).encode())
