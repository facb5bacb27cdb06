"""`ClientProcess`: the supervised process that holds a CARLA client, as its parent sees it.

Every command has a deadline, which moves with each phase that the process reports. A process that
crashes or does not answer in time is killed and reported as lost.

Frames pass the pipe as plain tuples: pickling two nested dataclasses and an array would take longer
than everything else that a step adds to the server's tick.
"""

import contextlib
import dataclasses
import math
import operator
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.driving.world import VehicleState, WorldFrame
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
    """One process with one client; `work` is a key of `avtd3.collect.carla.child.WORK`."""

    def __init__(self, config: CarlaConfig, port: int, work: str = "session") -> None:
        self.config, self._port, self._work = config, port, work
        self._where = f"{config.host}:{port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._found: dict[str, Any] | None = None
        self.is_clean = True
        """Whether the last process left the server as it found it."""

    def start(self) -> None:
        """Start the process."""
        self._phase, self._number = "start", 0
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        with ours, theirs:
            descriptor = theirs.fileno()
            module = "avtd3.collect.carla.child"
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(descriptor), str(os.getpid())],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ},
            )
            self._pipe: Connection[Any, Any] = Connection(ours.detach())
        self._process = process
        self._poll = select.poll()  # the pipe's own poll() creates one for every call
        self._poll.register(self._pipe.fileno(), select.POLLIN)
        self._pipe.send((self._work, self.config, self._port))

    def connect(self) -> bool:
        """Start a process and let it connect, unless one runs; return whether it is new."""
        if self._process is not None:
            return False
        self.start()
        try:
            self._found = self.ask("open", self._found, limit_s=_START_S)
        except Avtd3Error:
            self.end()
            raise
        return True

    @property
    def pid(self) -> int | None:
        """Return the id of the process; None if none runs."""
        return None if self._process is None else self._process.pid

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
        process = self._process
        assert process is not None, "it was asked something"
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.config.timeout_s)
        words = self._last_output()
        self.kill()
        code = process.returncode
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

    def end(self) -> bool:
        """Let the process close its session and end; return `is_clean`."""
        process, is_clean = self._process, False
        if process is None:
            return self.is_clean
        limit_s = 2.0 * self.config.timeout_s + self.config.step_timeout_s
        try:
            with contextlib.suppress(WorldLost):
                is_clean = bool(self.ask("close", limit_s=limit_s))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(limit_s)
        finally:
            self.kill()
        self.is_clean = is_clean
        return is_clean

    def kill(self) -> None:
        """Kill the process if one runs."""
        process, self._process = self._process, None
        if process is not None:
            self.is_clean = False
            process.kill()
            process.wait()
            self._pipe.close()
            self._log.close()


def _rebuild_error(name: str, arguments: tuple[Any, ...]) -> Avtd3Error:
    error: Avtd3Error = getattr(errors, name)(*arguments)
    return error


_SEPARATE = ("image", "streams", "vehicle")
_OF_FRAME = tuple(
    field.name for field in dataclasses.fields(WorldFrame) if field.name not in _SEPARATE
)
_OF_VEHICLE = tuple(field.name for field in dataclasses.fields(VehicleState))
_from_frame, _from_vehicle = operator.attrgetter(*_OF_FRAME), operator.attrgetter(*_OF_VEHICLE)

PackedPictures = tuple[tuple[str, tuple[int, ...], bytes], ...]
"""Name, shape and bytes of each picture."""
Packed = tuple[tuple[Any, ...], tuple[Any, ...], PackedPictures]
"""Values of the frame, values of the vehicle, and the pictures."""
_UNNAMED = ""
"""Name of the picture of a frame without streams."""


def pack(frame: WorldFrame) -> Packed:
    """Convert a frame to plain values."""
    named = {_UNNAMED: frame.image} if frame.streams is None else frame.streams
    return _from_frame(frame), _from_vehicle(frame.vehicle), pack_pictures(named)


def pack_pictures(named: Mapping[str, NDArray[np.uint8]]) -> PackedPictures:
    """Convert pictures by name to plain values."""
    return tuple((name, image.shape, image.tobytes()) for name, image in named.items())


def unpack_pictures(packed: PackedPictures) -> dict[str, NDArray[np.uint8]]:
    """Convert plain values back to pictures, which are read-only."""
    return {name: np.frombuffer(pixels, np.uint8).reshape(shape) for name, shape, pixels in packed}


def unpack(packed: Packed) -> WorldFrame:
    """Convert plain values back to a frame; its pictures are read-only."""
    of_frame, of_vehicle, pictures = packed
    named = unpack_pictures(pictures)
    return WorldFrame(
        image=next(iter(named.values())),
        streams=None if _UNNAMED in named else named,
        vehicle=VehicleState(**dict(zip(_OF_VEHICLE, of_vehicle, strict=True))),
        **dict(zip(_OF_FRAME, of_frame, strict=True)),
    )
