"""`Checkup`: the checks of `avtd3 doctor carla`, as the client process runs them."""

import itertools
import time

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.car import Car
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.doctor import FAILED, OK, WARNING, Finding
from avtd3.collect.carla.sensors import Sensors
from avtd3.collect.carla.server import ROLE, ReportPhase, Server, Settings
from avtd3.collect.maps.camera_mounting import draw_mounting
from avtd3.collect.maps.episode_setup import Start
from avtd3.store.errors import WorldLost

Result = tuple[Finding, NDArray[np.uint8] | None]
"""A finding and its picture uint8 (1, H, W), if it has one."""

_STEPS = 20
_SPEED_STEPS, _SPEED_S = 200, 5.0
_PLACES = 10
_LISTEN_S = 1.0
_MIN_CONTRAST = 1.0


class Checkup:
    """Checks of one server, in the order of `avtd3.collect.carla.doctor.CHECKS`.

    Args:
        config: The settings that episodes would use.
        port: The server's RPC port.
        report_phase: Called before everything that may block.
    """

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        self.server = Server(config, port, report_phase)
        self._period_s = config.control_period_s
        self._found: Settings | None = None
        self._car: Car | None = None
        self._sensors: Sensors | None = None

    def connection(self) -> Result:
        """Check that there is a server, of the client's version.

        Raises:
            WorldLost: There is no server, or it does not answer.
            WorldError: The server has another version.
        """
        begun_s = time.monotonic()
        self.server.connect()
        took_s = time.monotonic() - begun_s
        version = self.server.client.get_server_version()
        return _ok("connection", f"answers after {took_s:.1f} s; version {version} is supported")

    def use(self) -> Result:
        """Check that no other client drives on the server.

        Raises:
            WorldLost: The server does not answer.
        """
        server = self.server
        found = server.settings()
        if found["synchronous_mode"] and self._hears_a_tick():
            return _finding(
                "use",
                FAILED,
                "another client drives here: it ticks the server, which is in synchronous mode",
                "stop the other client, or start another server and give its --port",
            )
        self._found = found
        if leftovers := self._count_leftovers():
            text = f"a crashed run has left {leftovers} actors"
            return _finding("use", WARNING, text, "the next avtd3 collect removes them")
        if found["synchronous_mode"]:
            return _finding(
                "use",
                WARNING,
                "the server was left in synchronous mode, and does not advance",
                "avtd3 can use it; restart it for other programs",
            )
        return _ok("use", "free: asynchronous, and without actors of avtd3")

    def _hears_a_tick(self) -> bool:
        self.server.phase("wait for a tick of another client", _LISTEN_S)
        try:
            self.server.world.wait_for_tick(_LISTEN_S)
        except RuntimeError:
            return False
        return True

    def _count_leftovers(self) -> int:
        actors = self.server.actors()
        return sum(actor.attributes.get("role_name") == ROLE for actor in actors)

    def map(self) -> Result:
        """Check that there are roads, and places for cars.

        Raises:
            WorldLost: The server does not answer.
        """
        server = self.server
        with server.calling("return its map", limit_s=server.config.load_timeout_s):
            found = server.world.get_map()
            self._places = found.get_spawn_points()[:_PLACES]
            roads, count = len(found.get_topology()), len(found.get_spawn_points())
        if not roads or not count:
            return _finding(
                "map",
                FAILED,
                f"{found.name} has {roads} roads and {count} places for cars",
                "load another map, such as Town01",
            )
        return _ok("map", f"{found.name}, {roads} stretches of road, {count} places for cars")

    def steps(self) -> Result:
        """Check that the server advances by our steps, one frame each.

        Raises:
            WorldLost: The server does not answer.
        """
        self.server.synchronise()
        frames, periods = [], []
        for _ in range(_STEPS):
            snapshot = self.server.tick()
            frames.append(snapshot.frame)
            periods.append(snapshot.timestamp.delta_seconds)
        worst_s = max(abs(period - self._period_s) for period in periods)
        gaps = sum(b - a != 1 for a, b in itertools.pairwise(frames))
        if worst_s > 1e-3 * self._period_s or gaps:
            return _finding(
                "steps",
                FAILED,
                f"{_STEPS} steps of {self._period_s:g} s: {gaps} gaps between frames, periods up "
                f"to {worst_s:.3g} s off",
                "another client may tick the server too: stop it, or start another server",
            )
        return _ok("steps", f"{_STEPS} steps of {self._period_s:g} s in synchronous mode")

    def camera(self) -> Result:
        """Check that a car's camera sends a picture for every frame.

        Raises:
            WorldLost: The server does not answer, or sends no pictures.
            ConfigError: The server has no such vehicle.
        """
        self._car = car = self._spawn()
        # Assigned before it listens, so that `close` also removes a camera that stalls.
        mounting = draw_mounting(self.server.config.camera, np.random.default_rng(0))
        self._sensors = sensors = Sensors(self.server, car.actor, mounting, car.ahead_m)
        sensors.listen()
        for _ in range(_STEPS):
            picture = sensors.picture(self.server.tick().frame)
        _, height, width = picture.shape
        text = f"{_STEPS} pictures of {width} x {height}, one for each frame"
        if picture.std() < _MIN_CONTRAST:
            return (
                Finding(
                    "camera",
                    WARNING,
                    f"{text}, but without contrast",
                    "view --image; start the server with -RenderOffScreen, not with -nullrhi",
                ),
                picture,
            )
        return Finding("camera", OK, text), picture

    def _spawn(self) -> Car:
        refused: WorldLost | None = None
        for place in self._places:
            spot, yaw_rad = place.location, float(np.radians(place.rotation.yaw))
            start = Start(x_m=spot.x, y_m=spot.y, yaw_rad=yaw_rad, speed_mps=0.0)
            try:
                return Car(self.server, start, spot.z)
            except WorldLost as error:
                if error.reason != "spawn_refused":
                    raise
                refused = error
        assert refused is not None, "there are places"
        raise refused

    def speed(self) -> Result:
        """Measure how fast the server advances, with a camera.

        Raises:
            WorldLost: The server does not answer, or sends no pictures.
        """
        assert self._sensors is not None, "comes after the camera"
        begun_s, steps = time.monotonic(), 0
        while steps < _SPEED_STEPS and time.monotonic() - begun_s < _SPEED_S:
            self.server.phase("advance by a step")
            self._sensors.picture(self.server.tick().frame)
            steps += 1
        per_s = steps / (time.monotonic() - begun_s)
        text = f"{per_s:.0f} steps/s with a camera, {per_s * self._period_s:.1f} x real time"
        if per_s * self._period_s < 1.0:
            fix = "collection is slower than real time: try -quality-level=Low or fewer vehicles"
            return _finding("speed", WARNING, text, fix)
        return _ok("speed", text)

    def close(self) -> bool:
        """Remove our actors and restore the server's settings; return whether that succeeded."""
        server = self.server
        try:
            if self._sensors is not None:
                self._sensors.close()
            if self._car is not None and not server.is_gone:
                server.destroy([self._car.id])
            if self._found is not None:
                server.restore(self._found)
        except WorldLost:
            return False
        return not server.is_gone


def _ok(check: str, text: str) -> Result:
    return Finding(check, OK, text), None


def _finding(check: str, state: str, text: str, fix: str) -> Result:
    return Finding(check, state, text, fix), None
