"""`Child`: the supervised process that holds a CARLA client, as its parent sees it.

Every call has a deadline, which the child moves with each phase that it tells; a child that
crashes, or does not answer in time, is killed and reported as lost.
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
"""Longest time from one phase of a command to the next, besides what its calls may take."""
_LOG_BYTES = 16_384
_LAST_LINES = 3
_TRACES = ("File ", "Thread ", "Current thread ", "Extension modules", "^", "<")
"""Beginnings of the lines of stack traces; the others name the cause."""


class Child:
    """One process with one client.

    Args:
        config: The settings.
        port: The server's RPC port.
        work: What it does with the server, one of `avtd3.collect.carla.child.COMMANDS`.
    """

    def __init__(self, config: CarlaConfig, port: int, work: str = "session") -> None:
        self._config, self._where = config, f"{config.host}:{port}"
        self._doing, self._asked = "start", 0
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
        self._news = select.poll()  # the pipe's own poll() builds one for every question
        self._news.register(self._pipe.fileno(), select.POLLIN)
        self._pipe.send((work, config, port))

    def open(self, found: dict[str, Any] | None) -> dict[str, Any]:
        """Wait for its start and have it connect; see `avtd3.collect.carla.session.Session.open`.

        Raises:
            WorldLost: There is no server, or the process failed.
            WorldError: The server cannot be used.
        """
        settings: dict[str, Any] = self.ask("open", found, limit_s=_START_S)
        return settings

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    def ask(self, name: str, *arguments: object, limit_s: float = _BETWEEN_S) -> Any:  # noqa: ANN401
        """Have a command done.

        Args:
            name: One of the commands of its work, see `avtd3.collect.carla.child.COMMANDS`.
            arguments: What it takes.
            limit_s: Seconds for an answer, or for the next phase.

        Returns:
            What it answers.

        Raises:
            WorldLost: The process crashed or is blocked; it is gone then.
            Avtd3Error: What the command raised.
        """
        try:
            self._asked += 1
            self._pipe.send((self._asked, name, arguments))
            return self._answer(name, limit_s)
        except (EOFError, OSError):
            raise self._crashed() from None

    def _answer(self, name: str, limit_s: float) -> Any:  # noqa: ANN401
        begun_s = time.monotonic()
        while self._has_news(begun_s + limit_s - time.monotonic()):
            kind, *content = self._pipe.recv()
            if kind == "phase":
                (self._doing, call_s), begun_s = content[0], time.monotonic()
                # A call ends by itself; what runs on has been blocked.
                limit_s = call_s + _BETWEEN_S
            elif content[0] == self._asked:  # and not what an interrupted question was answered
                if kind == "error":
                    raise _rebuilt(*content[1])
                self._doing = name
                return content[1]
        self.kill()
        raise WorldLost(
            f"CARLA client of {self._where} has been blocked for {limit_s:g} s (asked to "
            f"{self._doing}); its process was killed, a fresh one connects for the next episode",
            "tick_timeout",
        )

    def _has_news(self, within_s: float) -> bool:
        """Whether the child says something, or is gone, within so many seconds."""
        return bool(self._news.poll(math.ceil(1000.0 * max(within_s, 0.0))))

    def _crashed(self) -> WorldLost:
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self._config.timeout_s)
        words = self._last_words()
        self.kill()
        code = self.process.returncode
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorldLost(
            f"CARLA client of {self._where} crashed with {cause} (asked to {self._doing}); a "
            f"fresh process connects for the next episode{words}",
            "client_crash",
        )

    def _last_words(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - _LOG_BYTES, 0))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").split("\n")]
        said = [line for line in lines if line and not line.startswith(_TRACES)][-_LAST_LINES:]
        return f". It said: {'; '.join(said)}" if said else ""

    def end(self, limit_s: float) -> bool:
        """Have it close its session and leave; whether the server is as it was found."""
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
        """Make sure that the process is gone; safe to call twice."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._pipe.close()
        self._log.close()


def _rebuilt(name: str, arguments: tuple[Any, ...]) -> Avtd3Error:
    error: Avtd3Error = getattr(errors, name)(*arguments)
    return error
