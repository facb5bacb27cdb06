"""`ClientProcess`: the supervised process that holds a CARLA client, as its parent sees it.

Every command has a deadline, which moves with each phase that the process reports. A process that
crashes or does not answer in time is killed and reported as lost.
"""

import contextlib
import math
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

from avtd3.collect.carla.config import CarlaConfig
from avtd3.store import errors
from avtd3.store.errors import Avtd3Error, WorldLost

_START_S = 120.0
_BETWEEN_S = 60.0
"""Maximum time from one phase of a command to the next, in addition to the timeout of its calls."""
_LOG_BYTES = 16_384
_LAST_LINES = 3
_TRACES = ("File ", "Thread ", "Current thread ", "Extension modules", "^", "<")
"""Beginnings of the lines of stack traces; other lines name the cause."""


class ClientProcess:
    """One process with one client; `work` is a key of `avtd3.collect.carla.child.COMMANDS`."""

    def __init__(self, config: CarlaConfig, port: int, work: str = "session") -> None:
        self._config, self._where = config, f"{config.host}:{port}"
        self._phase, self._number = "start", 0
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        with ours, theirs:
            descriptor = theirs.fileno()
            module = "avtd3.collect.carla.child"
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(descriptor), str(os.getpid())],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ},
            )
            self._pipe: Connection[Any, Any] = Connection(ours.detach())
        self._poll = select.poll()  # the pipe's own poll() creates one for every call
        self._poll.register(self._pipe.fileno(), select.POLLIN)
        self._pipe.send((work, config, port))

    def open(self, found: dict[str, Any] | None) -> dict[str, Any]:
        """Wait for the process, and let it connect as `Session.open` does."""
        settings: dict[str, Any] = self.ask("open", found, limit_s=_START_S)
        return settings

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self.process.pid

    def ask(self, name: str, *arguments: object, limit_s: float = _BETWEEN_S) -> Any:  # noqa: ANN401
        """Send a command; return its answer, for which it may take `limit_s` from phase to phase.

        Raises:
            WorldLost: The process crashed or is blocked; it has been killed.
            Avtd3Error: The error that the command raised.
        """
        try:
            self._number += 1
            self._pipe.send((self._number, name, arguments))
            return self._answer(name, limit_s)
        except (EOFError, OSError):
            raise self._crashed() from None

    def _answer(self, name: str, limit_s: float) -> Any:  # noqa: ANN401
        start_s = time.monotonic()
        while self._has_message(start_s + limit_s - time.monotonic()):
            kind, *content = self._pipe.recv()
            if kind == "phase":
                (self._phase, call_s), start_s = content[0], time.monotonic()
                # A call has a timeout of its own; if it takes longer, it is blocked.
                limit_s = call_s + _BETWEEN_S
            elif content[0] == self._number:  # not the answer to an interrupted command
                if kind == "error":
                    raise _rebuild_error(*content[1])
                self._phase = name
                return content[1]
        self.kill()
        raise WorldLost(
            f"CARLA client of {self._where} has been blocked for {limit_s:g} s (asked to "
            f"{self._phase}); its process was killed, and a new one connects for the next episode",
            "tick_timeout",
        )

    def _has_message(self, within_s: float) -> bool:
        """Return whether the process sends something, or ends, within the given seconds."""
        return bool(self._poll.poll(math.ceil(1000.0 * max(within_s, 0.0))))

    def _crashed(self) -> WorldLost:
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self._config.timeout_s)
        words = self._last_output()
        self.kill()
        code = self.process.returncode
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorldLost(
            f"CARLA client of {self._where} crashed with {cause} (asked to {self._phase}); a "
            f"new process connects for the next episode{words}",
            "client_crash",
        )

    def _last_output(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - _LOG_BYTES, 0))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").split("\n")]
        last = [line for line in lines if line and not line.startswith(_TRACES)][-_LAST_LINES:]
        return f". Its last output: {'; '.join(last)}" if last else ""

    def end(self, limit_s: float) -> bool:
        """Close the session and end the process; return whether the server was restored."""
        if self._pipe.closed:
            return False  # it crashed, or was killed
        try:
            is_clean = bool(self.ask("close", limit_s=limit_s))
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(limit_s)
        except WorldLost:
            return False
        finally:
            self.kill()
        return is_clean

    def kill(self) -> None:
        """Kill the process if it still runs; safe to call twice."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._pipe.close()
        self._log.close()


def _rebuild_error(name: str, arguments: tuple[Any, ...]) -> Avtd3Error:
    error: Avtd3Error = getattr(errors, name)(*arguments)
    return error
