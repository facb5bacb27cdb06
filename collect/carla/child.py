"""The process that holds a CARLA client: ``python -m avtd3.collect.carla.child FD PARENT``.

It answers commands from a pipe. A command is ``(number, name, arguments)``. The process sends any
number of ``("phase", (what, limit_s))``, and then ``("answer", number, value)`` or ``("error",
number, (type, arguments))``. When the pipe ends, it removes its actors, restores the server and
exits; if that hangs, a thread ends the process. It always exits by `os._exit`, because the client
aborts processes that exit normally.
"""

import faulthandler
import itertools
import math
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.car import Sensors, spawn_car
from avtd3.collect.carla.doctor import FAILED, OK, WARNING, Finding
from avtd3.collect.carla.server import BUSY
from avtd3.collect.carla.session import Replay, Session, Visit
from avtd3.collect.maps.episode_setup import Start, draw_mounting
from avtd3.store.errors import Avtd3Error, WorldLost
from avtd3.store.spec import IMAGE

CheckResult = tuple[Finding, NDArray[np.uint8] | None]
"""A finding and its picture uint8 (1, H, W), if it has one."""
_CHECK_STEPS = 20
_SPEED_STEPS, _SPEED_S = 200, 5.0
_PLACES = 10
_MIN_CONTRAST = 1.0


class Checkup(Visit):
    """Checks of one server, in the order of `avtd3.collect.carla.doctor.CHECKS`.

    Every check raises `WorldLost` if the server does not answer.
    """

    def connection(self) -> CheckResult:
        """Check that there is a server, of the client's version."""
        begun_s = time.monotonic()
        self.server.connect()
        took_s = time.monotonic() - begun_s
        version = self.server.client.get_server_version()
        return _result(
            "connection", f"answers after {took_s:.1f} s; version {version} is supported"
        )

    def use(self) -> CheckResult:
        """Check that no other client drives on the server."""
        found = self.server.settings()
        try:
            leftovers = len(self.server.find_leftovers())
        except WorldLost as error:
            if error.reason != BUSY:
                raise
            text, _, fix = str(error).partition("; ")
            return _result("use", text, FAILED, fix)
        self._found = found
        if leftovers:
            text = f"a crashed run has left {leftovers} actors"
            return _result("use", text, WARNING, "the next avtd3 collect removes them")
        if found["synchronous_mode"]:
            return _result(
                "use",
                "the server was left in synchronous mode, and does not advance",
                WARNING,
                "avtd3 can use it; restart it for other programs",
            )
        return _result("use", "free: asynchronous, and without actors of avtd3")

    def map(self) -> CheckResult:
        """Check that there are roads, and places for cars."""
        server = self.server
        with server.calling("return its map", limit_s=server.config.load_timeout_s):
            found = server.world.get_map()
            places, roads = found.get_spawn_points(), len(found.get_topology())
        self._places = [
            (Start(x_m=at.x, y_m=at.y, yaw_rad=math.radians(turn.yaw), speed_mps=0.0), at.z)
            for at, turn in ((place.location, place.rotation) for place in places[:_PLACES])
        ]
        if not roads or not places:
            text = f"{found.name} has {roads} roads and {len(places)} places for cars"
            return _result("map", text, FAILED, "load another map, such as Town01")
        text = f"{found.name}, {roads} stretches of road, {len(places)} places for cars"
        return _result("map", text)

    def steps(self) -> CheckResult:
        """Check that the server advances by our steps, one frame each."""
        period_s = self.config.control_period_s
        self.server.synchronise()
        snapshots = [self.server.tick() for _ in range(_CHECK_STEPS)]
        worst_s = max(abs(s.timestamp.delta_seconds - period_s) for s in snapshots)
        gaps = sum(b.frame - a.frame != 1 for a, b in itertools.pairwise(snapshots))
        if worst_s > 1e-3 * period_s or gaps:
            return _result(
                "steps",
                f"{_CHECK_STEPS} steps of {period_s:g} s: {gaps} gaps between frames, "
                f"periods up to {worst_s:.3g} s off",
                FAILED,
                "another client may tick the server too: stop it, or start another server",
            )
        return _result(
            "steps",
            f"{_CHECK_STEPS} steps of {period_s:g} s in synchronous mode",
        )

    def camera(self) -> CheckResult:
        """Check that a car's camera sends a picture for every frame."""
        self._car, _ = spawn_car(self.server, self._places)
        car = self._car
        # Assigned before it listens, so that `close` also removes a camera that stalls.
        mounting = draw_mounting(self.server.config.camera, np.random.default_rng(0))
        self._sensors = sensors = Sensors(self.server, car, {IMAGE: mounting})
        sensors.listen()
        for _ in range(_CHECK_STEPS):
            picture = sensors.pictures(self.server.tick().frame)[IMAGE]
        _, height, width = picture.shape
        text = f"{_CHECK_STEPS} pictures of {width} x {height}, one for each frame"
        if picture.std() >= _MIN_CONTRAST:
            return Finding("camera", OK, text), picture
        fix = "view --image; start the server with -RenderOffScreen, not with -nullrhi"
        return Finding("camera", WARNING, f"{text}, but without contrast", fix), picture

    def speed(self) -> CheckResult:
        """Measure how fast the server advances, with a camera."""
        assert self._sensors is not None, "comes after the camera"
        period_s, begun_s, steps = self.config.control_period_s, time.monotonic(), 0
        while steps < _SPEED_STEPS and time.monotonic() - begun_s < _SPEED_S:
            self.server.phase("advance by a step")
            self._sensors.pictures(self.server.tick().frame)
            steps += 1
        per_s = steps / (time.monotonic() - begun_s)
        text = f"{per_s:.0f} steps/s with a camera, {per_s * period_s:.1f} x real time"
        if per_s * period_s < 1.0:
            fix = "collection is slower than real time: try -quality-level=Low or fewer vehicles"
            return _result("speed", text, WARNING, fix)
        return _result("speed", text)


def _result(check: str, text: str, state: str = OK, fix: str = "") -> CheckResult:
    return Finding(check, state, text, fix), None


WORK: dict[str, type[Visit]] = {"session": Session, "replay": Replay, "checkup": Checkup}
"""Episodes, pictures of recorded ones, or the checks of the doctor: each command is a method."""
_POLL_S = 0.5


def main(descriptor: int, parent: int) -> None:
    """Serve one parent, whose process id is given, until it sends ``close`` or is gone."""
    # A terminal or SLURM sends these to all processes; the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    pipe: Connection[Any, Any] = Connection(descriptor)
    try:
        work, config, port = pipe.recv()
    except EOFError:
        return
    watcher = threading.Thread(target=_watch, args=(parent, config.step_timeout_s), daemon=True)
    watcher.start()
    session = WORK[work](config, port, lambda *phase: pipe.send(("phase", phase)))
    try:
        while _serve(session, pipe):
            pass
    except (EOFError, OSError):  # the parent is gone
        session.server.stop_reporting()
        session.close()


def _serve(session: Visit, pipe: "Connection[Any, Any]") -> bool:
    """Answer one command; return whether more may follow."""
    number, name, arguments = pipe.recv()
    try:
        answer = getattr(session, name)(*arguments)
    except Avtd3Error as error:
        pipe.send(("error", number, (type(error).__name__, error.args)))
    except RuntimeError as error:  # the client's own
        translated = session.server.translate_error(error, name)
        pipe.send(("error", number, (type(translated).__name__, translated.args)))
    else:
        pipe.send(("answer", number, answer))
    return bool(name != "close")


def _watch(parent: int, limit_s: float) -> None:
    """End the process if its parent is gone and it does not end by itself."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    time.sleep(limit_s)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
