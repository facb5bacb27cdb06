"""`CarlaWorld`: a `World` on a CARLA server, whose client runs in a supervised child process.

The client can crash or block its process, and never recovers from a server that went away. A
failure therefore costs one episode: the child process is ended, and the next reset starts a new
one, which removes the leftover actors. This process never imports the client.

The client never frees what it stores about actors: about 5 kB for each car with its sensors, 100 kB
for each traffic manager. A child process is therefore replaced every `EPISODES_PER_CHILD` episodes.
"""

import contextlib
import dataclasses
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.client_process import ClientProcess, Packed, unpack
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.scene import Recorded
from avtd3.collect.driving.world import Surroundings, WorldFrame, WorldStart, action_values
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.errors import WorldError, WorldLost
from avtd3.store.world_record import WorldRecord

_HOST = "127.0.0.1"
_POLL_S = 0.1
_END_S = 60.0
_LINGER_S = 30.0
_LAST_OUTPUT_BYTES = 400
_BROKEN_SERVER = ("server_lost", "sensor_stall")
"""Losses that a healthy server does not cause; the client itself causes the others."""


class Simulator:
    """Runs the `server_command` of a configuration, one process at a time.

    The server is identified by its process id; one that avtd3 did not start is never touched.
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
        """Start a server if none listens, or if the last one should be replaced."""
        # The guardian takes a moment to notice the end of the server; the port closes at once.
        if self._guardian is not None and (self.is_spent or not _listens(self._port)):
            self._stop()
        if self._guardian is None:
            self._start()

    def restart(self, reason: str) -> None:
        """Report a `WorldLost`; the next `ensure` starts a new server if that may help.

        After an error of the client itself, the server continues the first time in a row.
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
                raise WorldLost(
                    f"port {self._port} is used by a process that avtd3 did not start; omit "
                    "--server-command to use it, or choose another --port",
                    "server_busy",
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
        text = os.pread(descriptor, _LAST_OUTPUT_BYTES, start).decode(errors="replace")
        return " ".join(text.split())

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
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise WorldError(f"--server-command {command!r} cannot be read: {error}") from error
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


EPISODES_PER_CHILD = 200
"""Episodes after which the child process is replaced; starting one takes about two seconds."""


class CarlaWorld:
    """A `World` on one CARLA server, by its RPC port."""

    name = "carla"

    def __init__(self, config: CarlaConfig, port: int) -> None:
        self.config, self.port = config, port
        self.simulator = Simulator(config, port) if config.server_command else None
        """Starts the server, if the configuration has a command for it."""
        self.control_period_s = config.control_period_s
        self.image_shape = (1, config.camera.height, config.camera.width)
        self.streams = {n: config.streams[n].image for n in sorted(config.streams)}
        """The named streams of its frames; none if they have only an image."""
        self.notices: tuple[str, ...] = ()
        self._recorded: Recorded | None = None
        self._rows: list[bytes] = []
        self.client = ClientProcess(config, port)
        self._losses, self._starts, self._episodes = 0, 0, 0
        self._is_running, self._is_closed = False, False

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Start an episode; see `World.reset`.

        Raises:
            ConfigError: The server has no such map, vehicle or weather.
            WorldLost: The server cannot be used, but the next reset may succeed.
        """
        if self._is_closed:
            raise WorldError("the simulator is closed; create a new CarlaWorld")
        self._prepare_server()
        if self._episodes >= EPISODES_PER_CHILD:
            self.client.end()
        with self._counting_losses():
            if self.client.connect():
                self._episodes = 0
            self._episodes += 1
            start: WorldStart
            start, self.notices, self._recorded = self.client.ask("reset", scenario, seed)
            self._rows = [self._recorded.row]
        self._is_running = True
        return start

    def _prepare_server(self) -> None:
        """Replace our own server if necessary; give another one time to recover after losses."""
        simulator, is_running = self.simulator, self._is_running
        self._is_running = False
        if simulator is not None:
            if is_running:
                simulator.episode_done()
            if simulator.is_spent:
                self.client.end()
            simulator.ensure()
            if simulator.starts != self._starts:
                self.client.kill()  # it never connects to the new server
            self._starts = simulator.starts
        elif self._losses > 1:
            config = self.config
            # A float, which 2 ** 1024 is not.
            doubled_s = config.backoff_s * 2.0 ** min(self._losses - 2, 30)
            time.sleep(min(doubled_s, config.backoff_max_s))

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Drive for one control period; see `World.step`."""
        values = action_values(action)
        with self._counting_losses():
            packed: Packed
            packed, row = self._current().ask("step", *values, limit_s=self.config.step_timeout_s)
        self._losses = 0
        self._rows.append(row)
        return unpack(packed)

    def world_record(self) -> WorldRecord:
        """Return the state in each observation of the episode so far, also after a loss."""
        if self._recorded is None:
            raise WorldError("the simulator has no running episode; call reset() first")
        rows = np.frombuffer(b"".join(self._rows), np.int64).reshape(len(self._rows), -1, 3)
        ego, actors = np.ascontiguousarray(rows[:, 0]).view(np.float64), rows[:, 1:]
        return WorldRecord(
            setup=self._recorded.setup,
            ego=ego,
            actors=np.ascontiguousarray(actors),
            map_text=self._recorded.map_text,
        )

    def _current(self) -> ClientProcess:
        if self.client.pid is None:
            raise WorldError("the simulator has no running episode; call reset() first")
        return self.client

    def surroundings(self) -> Surroundings:
        """Return the lanes and vehicles around the car; see `World.surroundings`."""
        with self._counting_losses():
            found: Surroundings = self._current().ask("surroundings")
        return found

    def vitals(self) -> dict[str, Any]:
        """Return what the doctor wants to know about the running episode, as plain values."""
        found: dict[str, Any] = self._current().ask("vitals")
        return found

    @contextlib.contextmanager
    def _counting_losses(self) -> Iterator[None]:
        """End the child process, as cleanly as possible, if the world is lost inside the block."""
        try:
            yield
        except WorldLost as error:
            self._losses += 1
            self._is_running = False
            self.client.end()
            if self.simulator is not None:
                self.simulator.restart(error.reason)
            raise

    def close(self) -> None:
        """Remove our actors and restore the server's settings; safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        is_clean = self.client.end()
        if self.simulator is not None:
            self.simulator.close()
        elif not is_clean:
            # Remove what a lost process has left, if the server still answers.
            brief = dataclasses.replace(self.config, connect_timeout_s=self.config.backoff_s)
            self.client.config = brief
            with contextlib.suppress(WorldError):
                self.client.connect()
            self.client.end()
