"""`Simulator`: the CARLA server that avtd3 itself starts, starts anew and stops.

It is known by its process id. What avtd3 did not start is never touched, whatever its name and
whatever port it listens on.
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
from typing import Self

from avtd3.collect.carla.config import CarlaConfig
from avtd3.store.errors import WorldError, WorldLost

_HOST = "127.0.0.1"
_POLL_S = 0.1
_END_S = 60.0
_LINGER_S = 30.0
_LAST_WORDS = 400
_BROKEN_SERVER = ("server_lost", "sensor_stall")
"""Losses that a server in good health does not cause; others are the client's own."""


class Simulator:
    """Runs a server's command, one process at a time.

    Args:
        command: Program and arguments as for a shell, which is not used. ``{port}`` stands for
            the port; without it ``-carla-rpc-port=PORT`` is added, as CARLA's servers take it.
        port: Where the server is to listen.
        start_timeout_s: How long it may take until it listens.
        recycle_episodes: Episodes after which it is started anew; 0 never.
        max_memory_mb: Megabytes above which it is started anew after an episode; 0 never.

    Raises:
        WorldError: There is no such program.
    """

    def __init__(
        self,
        command: str,
        port: int,
        *,
        start_timeout_s: float = 180.0,
        recycle_episodes: int = 0,
        max_memory_mb: int = 0,
    ) -> None:
        self._command = _arguments(command, port)
        self._port, self._start_timeout_s = port, start_timeout_s
        self._recycle_episodes, self._max_memory_mb = recycle_episodes, max_memory_mb
        self._keeper: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the simulator
        self._episodes = self._losses = 0
        self.is_spent = False
        """Whether the next `ensure` replaces it: no client may be on it then."""
        self.starts = 0
        """How often the server was started."""
        self.pid: int | None = None
        """Process id of the running server, by which it is known; None if none runs."""

    @classmethod
    def configured(cls, config: CarlaConfig, port: int) -> Self | None:
        """The simulator of a configuration; None if servers run already.

        Raises:
            WorldError: There is no such program.
        """
        if not config.server_command:
            return None
        return cls(
            config.server_command,
            port,
            start_timeout_s=config.server_start_s,
            recycle_episodes=config.recycle_episodes,
            max_memory_mb=config.server_memory_mb,
        )

    def ensure(self) -> None:
        """Have a server that listens; a fresh one if the last one died or is to be replaced.

        Raises:
            WorldLost: It ended at once, or does not listen in time.
            WorldError: Somebody else's server has the port.
        """
        # The keeper takes a moment to notice an end; the port is closed at once.
        if self._keeper is not None and (self.is_spent or not _listens(self._port)):
            self._stop()
        if self._keeper is None:
            self._start()

    def restart(self, reason: str) -> None:
        """Say that the world was lost; the next `ensure` starts a fresh server if that may help.

        Args:
            reason: Why, see `WorldLost`. The client's own troubles leave the server running at
                the first time, and not at the second one in a row.
        """
        self._losses += 1
        if reason in _BROKEN_SERVER or self._losses > 1:
            self._stop()

    def episode_done(self) -> None:
        """Say that an episode came to its end; a server that is spent is replaced after it."""
        self._losses = 0
        self._episodes += 1
        many = 0 < self._recycle_episodes <= self._episodes
        large = 0 < self._max_memory_mb * 1_000_000 < self.memory_bytes()
        self.is_spent = many or large

    def memory_bytes(self) -> int:
        """Resident memory of the server's processes; 0 if none runs."""
        if self.pid is None:
            return 0
        pages = sum(map(_pages_of_group(self.pid), Path("/proc").glob("[0-9]*/stat")))
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """Stop the server and all that it started; safe to call twice."""
        self._stop()
        self._log.close()

    def _start(self) -> None:
        self._check_port()
        self._log.truncate(0)
        self._log.seek(0)
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "avtd3.collect.carla.guardian", *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches a terminal's whole group: we decide
        )
        assert self._keeper.stdout is not None
        self.pid = int(self._keeper.stdout.readline() or 0) or None
        self.starts += 1
        self._await(self._keeper)

    def _check_port(self) -> None:
        """Refuse a port that somebody else has; our last server may take a while to give it up."""
        until_s = time.monotonic() + (_LINGER_S if self.starts else 0.0)
        while _listens(self._port):
            if time.monotonic() >= until_s:
                raise WorldError(
                    f"port {self._port} is served already by a process that avtd3 did not start; "
                    "leave --server-command out to use it, or choose another --port"
                )
            time.sleep(_POLL_S)

    def _await(self, keeper: subprocess.Popen[bytes]) -> None:
        started_s = time.monotonic()
        while not _listens(self._port):
            waited_s = time.monotonic() - started_s
            if keeper.poll() is not None:
                what = f"ended with exit code {keeper.returncode} after {waited_s:.1f} s"
            elif waited_s > self._start_timeout_s:
                what = f"does not listen on port {self._port} after {waited_s:.0f} s"
            else:
                time.sleep(_POLL_S)
                continue
            words = self._last_words()
            self._stop()
            raise WorldLost(
                f"the server ({shlex.join(self._command)}) {what}, before any client could "
                f"connect; its last words: {words or 'none'}; try the command by hand",
                "server_lost",
            )

    def _last_words(self) -> str:
        descriptor = self._log.fileno()
        start = max(os.fstat(descriptor).st_size - _LAST_WORDS, 0)
        # The server writes at this file's position: it must not be moved.
        return " ".join(os.pread(descriptor, _LAST_WORDS, start).decode(errors="replace").split())

    def _stop(self) -> None:
        keeper, self._keeper, self.pid = self._keeper, None, None
        self._episodes, self.is_spent = 0, False
        if keeper is None:
            return
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        keeper.stdin.close()
        keeper.stdout.close()
        try:
            keeper.wait(_END_S)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()


def _arguments(command: str, port: int) -> list[str]:
    words = shlex.split(command)
    if not words or shutil.which(words[0]) is None:
        raise WorldError(
            f"--server-command {command!r}: {words[0] if words else 'nothing'} is no program that "
            "can be run; give the path of CarlaUE4.sh and its options"
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
    """A function that reads how many pages a process holds, 0 for those of other groups."""

    def pages(path: Path) -> int:
        try:
            # The name stands in brackets and may hold anything, spaces and brackets included.
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return 0  # it ended meanwhile
        return int(fields[21]) if int(fields[2]) == group else 0

    return pages
