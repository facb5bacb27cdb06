"""`Simulator`: start, restart and stop a CARLA server.

The server is identified by its process id. A server that avtd3 did not start is never touched,
whatever its name and its port.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from avtd3.collect.carla.config import CarlaConfig
from avtd3.store.errors import WorldError, WorldLost

_HOST = "127.0.0.1"
_POLL_S = 0.1
_END_S = 60.0
_LINGER_S = 30.0
_LAST_OUTPUT_BYTES = 400
_BROKEN_SERVER = ("server_lost", "sensor_stall")
"""Losses that a healthy server does not cause; the client itself causes the others."""


class Simulator:
    """Runs the `server_command` of a configuration, one process at a time.

    Args:
        config: The command, and when to restart the server. The command is in shell syntax, but no
            shell is used. ``{port}`` is replaced by the port. Without it, ``-carla-rpc-port=PORT``
            is appended, the option of CARLA's servers.
        port: Port on which the server should listen.

    Raises:
        WorldError: The program does not exist.
    """

    def __init__(self, config: CarlaConfig, port: int) -> None:
        self._config, self._port = config, port
        self._command = _arguments(config.server_command, port)
        self._guardian: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the simulator
        self._episodes = self._losses = 0
        self.is_spent = False
        """Whether the next `ensure` replaces it; no client may be connected then."""
        self.starts = 0
        """Number of times the server was started."""
        self.pid: int | None = None
        """Process id of the running server; None if none runs."""

    def ensure(self) -> None:
        """Start a server if none listens, or if the last one should be replaced.

        Raises:
            WorldLost: The server ended at once, or does not listen in time.
            WorldError: Another server uses the port.
        """
        # The guardian takes a moment to notice the end of the server; the port closes at once.
        if self._guardian is not None and (self.is_spent or not _listens(self._port)):
            self._stop()
        if self._guardian is None:
            self._start()

    def restart(self, reason: str) -> None:
        """Report that the world was lost; the next `ensure` starts a new server if that may help.

        Args:
            reason: See `WorldLost`. After an error of the client itself, the server continues the
                first time, but not the second time in a row.
        """
        self._losses += 1
        if reason in _BROKEN_SERVER or self._losses > 1:
            self._stop()

    def episode_done(self) -> None:
        """Report the end of an episode, after which a server may be replaced."""
        self._losses = 0
        self._episodes += 1
        many = 0 < self._config.recycle_episodes <= self._episodes
        large = 0 < self._config.server_memory_mb * 1_000_000 < self.memory_bytes()
        self.is_spent = many or large

    def memory_bytes(self) -> int:
        """Return the resident memory of the server's processes; 0 if none runs."""
        if self.pid is None:
            return 0
        pages = sum(map(_pages_of_group(self.pid), Path("/proc").glob("[0-9]*/stat")))
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """Stop the server and everything that it started; safe to call twice."""
        self._stop()
        self._log.close()

    def _start(self) -> None:
        self._check_port()
        self._log.truncate(0)
        self._log.seek(0)
        self._guardian = subprocess.Popen(
            [sys.executable, "-m", "avtd3.collect.carla.guardian", *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C would stop the whole process group of the terminal
        )
        assert self._guardian.stdout is not None
        self.pid = int(self._guardian.stdout.readline() or 0) or None
        self.starts += 1
        self._await(self._guardian)

    def _check_port(self) -> None:
        """Raise if another process uses the port; our last server may take a while to free it."""
        until_s = time.monotonic() + (_LINGER_S if self.starts else 0.0)
        while _listens(self._port):
            if time.monotonic() >= until_s:
                raise WorldError(
                    f"port {self._port} is used by a process that avtd3 did not start; omit "
                    "--server-command to use it, or choose another --port"
                )
            time.sleep(_POLL_S)

    def _await(self, guardian: subprocess.Popen[bytes]) -> None:
        started_s = time.monotonic()
        while not _listens(self._port):
            waited_s = time.monotonic() - started_s
            if guardian.poll() is not None:
                what = f"ended with exit code {guardian.returncode} after {waited_s:.1f} s"
            elif waited_s > self._config.server_start_s:
                what = f"does not listen on port {self._port} after {waited_s:.0f} s"
            else:
                time.sleep(_POLL_S)
                continue
            output = self._last_output()
            self._stop()
            raise WorldLost(
                f"the server ({shlex.join(self._command)}) {what}, before a client could connect; "
                f"its last output: {output or 'none'}; run the command by hand",
                "server_lost",
            )

    def _last_output(self) -> str:
        descriptor = self._log.fileno()
        start = max(os.fstat(descriptor).st_size - _LAST_OUTPUT_BYTES, 0)
        # The server writes at the position of this file: do not change it.
        return " ".join(
            os.pread(descriptor, _LAST_OUTPUT_BYTES, start).decode(errors="replace").split()
        )

    def _stop(self) -> None:
        guardian, self._guardian, self.pid = self._guardian, None, None
        self._episodes, self.is_spent = 0, False
        if guardian is None:
            return
        assert guardian.stdin is not None
        assert guardian.stdout is not None
        guardian.stdin.close()
        guardian.stdout.close()
        try:
            guardian.wait(_END_S)
        except subprocess.TimeoutExpired:
            guardian.kill()
            guardian.wait()


def _arguments(command: str, port: int) -> list[str]:
    words = shlex.split(command)
    if not words or shutil.which(words[0]) is None:
        raise WorldError(
            f"--server-command {command!r}: {words[0] if words else 'nothing'} is not a program "
            "that can be run; give the path of CarlaUE4.sh and its options"
        )
    if "{port}" not in command:
        return [*words, f"-carla-rpc-port={port}"]
    return [word.replace("{port}", str(port)) for word in words]


def _listens(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _pages_of_group(group: int) -> Callable[[Path], int]:
    """Return a function that reads the pages of a process; 0 for those of other groups."""

    def pages(path: Path) -> int:
        try:
            # The name is in brackets and may contain spaces and brackets.
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return 0  # it ended meanwhile
        return int(fields[21]) if int(fields[2]) == group else 0

    return pages
