"""`Server`: one CARLA server as the client process sees it; `Towns`: the maps on it.

Every error of the client is a plain `RuntimeError`. Only its text shows whether the server did not
answer ("time-out of") or rejected the call. `calling` turns both into errors of avtd3.
"""

import collections
import contextlib
import dataclasses
import difflib
import importlib.metadata
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import carla

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.maps.episode_setup import draw_network
from avtd3.collect.maps.native_check import check_native
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import read_opendrive
from avtd3.collect.maps.raster import Raster
from avtd3.collect.maps.scenarios import GENERATED, Scenario
from avtd3.store.errors import ConfigError, WorldError, WorldLost

ROLE = "avtd3"
"""Role name of every actor that avtd3 spawns; identifies the actors of a crashed run."""
Settings = dict[str, Any]
"""Settings of a server by name, as plain values."""
ReportPhase = Callable[[str, float], None]
"""``(what, limit_s)``: called before everything that may block, for the supervisor."""
_SETTINGS = tuple(name for name in dir(carla.WorldSettings) if not name.startswith("_"))
_SUBSTEP_S, _SUBSTEPS = 0.01, 10
_SUBSCRIBED_S = 0.5
"""Maximum wait for the snapshot of a tick that may have come before the subscription."""
_PIXEL_M = 0.1
_CACHED_TOWNS = 8
_VERTEX_M = 2.0
_CHUNK_M = 50.0


class Server:
    """A connection to a CARLA server.

    Args:
        config: Where and how long.
        port: The server's RPC port.
        report_phase: Called before everything that may block.

    Attributes:
        where: ``host:port``.
        client: The `carla.Client`.
        world: The `carla.World` of the running episode.
        is_gone: Whether the server stopped answering; further calls are pointless.
    """

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        self.config, self.port, self._report_phase = config, port, report_phase
        self.where = f"{config.host}:{port}"
        self.client: carla.Client = None
        self.world: carla.World = None
        self.is_gone = False

    @contextlib.contextmanager
    def calling(self, what: str, *, limit_s: float | None = None) -> Iterator[None]:
        """Turn the client's errors into errors of avtd3, and report the phase.

        Args:
            what: The call, to complete "the server did not ...".
            limit_s: Timeout of each call inside; None for the configured one.

        Raises:
            WorldLost: The server did not answer.
            WorldError: The server rejected the call.
        """
        self.phase(what, limit_s)
        if limit_s:
            self.client.set_timeout(limit_s)
        try:
            yield
        except WorldError:
            raise
        except RuntimeError as error:
            raise self.translate_error(error, what) from error
        finally:
            if limit_s:
                self.client.set_timeout(self.config.timeout_s)

    def phase(self, what: str, limit_s: float | None = None) -> None:
        """Report what happens next, and how long each call of it may take."""
        self._report_phase(what, limit_s or self.config.timeout_s)

    def stop_reporting(self) -> None:
        """Report no more phases: the supervisor is gone."""
        self._report_phase = lambda _what, _limit_s: None

    def translate_error(self, error: RuntimeError, what: str) -> WorldError:
        """Return the error of avtd3 for an error of the client."""
        if is_timeout(error):
            self.is_gone = True
            return WorldLost(
                f"CARLA server {self.where} did not {what}: {_one_line(error)}; check its log, "
                "and restart it if it has stopped"
            )
        return WorldError(
            f"CARLA server {self.where} failed to {what}: {_one_line(error)}; check its log"
        )

    def connect(self) -> None:
        """Connect to the server; retry for `CarlaConfig.connect_timeout_s`.

        A client never recovers from a server that was not there, so each attempt has a new one.

        Raises:
            WorldLost: No server answers.
            WorldError: The server has another version.
        """
        config, begun_s, tries, pause_s = self.config, time.monotonic(), 0, self.config.backoff_s
        while problem := self._try_connecting():
            tries += 1
            spent_s = time.monotonic() - begun_s
            if spent_s + pause_s > config.connect_timeout_s:
                self.is_gone = True
                raise WorldLost(
                    f"no CARLA server at {self.where}: {problem} ({tries} attempts in "
                    f"{spent_s:.0f} s); start one with ./CarlaUE4.sh -RenderOffScreen "
                    f"-carla-rpc-port={self.port}, or give its --host and --port",
                    # A server that avtd3 started is restarted before the next attempt.
                    "server_lost" if config.server_command else "server_away",
                )
            time.sleep(pause_s)
            pause_s = min(2.0 * pause_s, config.backoff_max_s)
        self._check_version()
        with self.calling("describe its world"):
            self.world = self.client.get_world()

    def _try_connecting(self) -> str:
        """Return what is wrong with the server; an empty string when it has answered."""
        config = self.config
        self.phase("answer")
        try:
            # Only a socket distinguishes a refused connection from a slow answer.
            socket.create_connection((config.host, self.port), config.timeout_s).close()
        except OSError as error:
            return str(error.strerror or error).lower()
        client = carla.Client(config.host, self.port)
        client.set_timeout(config.timeout_s)
        try:
            self._version: str = client.get_server_version()
        except RuntimeError as error:
            if not is_timeout(error):
                return f"the program on this port is not a CARLA server ({_one_line(error)})"
            return f"a program listens on this port, but did not answer in {config.timeout_s:g} s"
        self.client = client
        return ""

    def _check_version(self) -> None:
        ours = importlib.metadata.version("carla")
        # Builds from source have versions such as 0.9.16-12-gabcdef0.
        if self._version.split("-")[0] != ours:
            raise WorldError(
                f"CARLA server {self.where} has version {self._version}, expected {ours}, the "
                f"version of the client (package carla); start a server of version {ours}"
            )

    def settings(self) -> Settings:
        """Return the current settings."""
        with self.calling("report its settings"):
            found = self.world.get_settings()
        return {name: getattr(found, name) for name in _SETTINGS}

    def apply(self, settings: Settings) -> None:
        """Apply settings; with a fixed time step, this takes one or two ticks."""
        with self.calling("apply settings"):
            wanted = self.world.get_settings()
            for name, value in settings.items():
                setattr(wanted, name, value)
            self.world.apply_settings(wanted)

    def synchronise(self) -> None:
        """Make the server advance only with our ticks, by one control period each."""
        period_s = self.config.control_period_s
        wanted = {
            "synchronous_mode": True,
            "fixed_delta_seconds": period_s,
            "no_rendering_mode": False,
            "substepping": True,
            "max_substep_delta_time": max(_SUBSTEP_S, period_s / _SUBSTEPS),
            "max_substeps": _SUBSTEPS,
        }
        if not wanted.items() <= self.settings().items():
            self.apply(wanted)

    def tick(self) -> carla.WorldSnapshot:
        """Advance by one frame and return its snapshot.

        Raises:
            WorldLost: The server did not answer, or answered without a snapshot.
        """
        try:
            frame = self.world.tick(self.config.timeout_s)
        except RuntimeError as error:
            raise self.translate_error(error, "advance by a step") from error
        snapshot = self.world.get_snapshot()
        if snapshot.frame < frame:
            raise WorldLost(
                f"CARLA server {self.where} ticked to frame {frame}, but its newest snapshot is "
                f"that of frame {snapshot.frame}; restart the server"
            )
        return snapshot

    def remove_leftovers(self) -> int:
        """Remove the actors that a crashed run of avtd3 has left; return their number."""
        actors = self.actors()
        cars = {actor.id for actor in actors if actor.attributes.get("role_name") == ROLE}
        ours = [actor for actor in actors if actor.id in cars or _is_mounted_on(actor, cars)]
        # Sensors first: then nothing is attached to the cars.
        ours.sort(key=lambda actor: not actor.type_id.startswith("sensor."))
        self.destroy([actor.id for actor in ours])
        return len(ours)

    def actors(self) -> list[carla.Actor]:
        """Return all actors; tick a synchronous server first, because a new client sees none."""
        with self.calling("list its actors"):
            if self.world.get_settings().synchronous_mode:
                self._first_tick()
            return list(self.world.get_actors())

    def _first_tick(self) -> None:
        """Tick until a snapshot comes; the first may be sent before the subscription is live."""
        end_s = time.monotonic() + self.config.timeout_s
        while True:
            try:
                self.world.tick(_SUBSCRIBED_S)
            except RuntimeError as error:
                if not is_timeout(error) or time.monotonic() > end_s:
                    raise
            else:
                return

    def destroy(self, ids: list[int]) -> None:
        """Remove actors by id; ignore those that do not exist."""
        if ids:
            with self.calling("remove actors"):
                batch = [carla.command.DestroyActor(number) for number in ids]
                self.client.apply_batch_sync(batch, False)

    def restore(self, found: Settings) -> None:
        """Restore settings, unless the server is gone."""
        if self.client is None or self.is_gone:
            return
        with contextlib.suppress(WorldLost):
            self.apply(found)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Town:
    """The roads of an episode."""

    network: RoadNetwork
    """The lanes."""
    raster: Raster
    """The ground under the wheels."""


class Towns:
    """The maps of one server: load them, and prepare their roads.

    A town is a generated network or an .xodr file, which the server builds from OpenDRIVE text, or
    a map of the server. The lanes are always read from the text that the server returns, so that
    routes are planned on the roads that are driven.

    Args:
        server: Connected.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loaded = ""
        self._known: collections.OrderedDict[str, Town] = collections.OrderedDict()

    def is_loaded(self, scenario: Scenario, seed: int) -> bool:
        """Return whether the server is known to have loaded an episode's roads."""
        return self._loaded == _key(scenario, seed)

    def open(self, scenario: Scenario, seed: int) -> Town:
        """Load an episode's roads on the server and return them.

        No traffic manager may exist: the client would crash.

        Raises:
            ConfigError: The server has no map of that name.
            RoadError: The roads cannot be used.
            WorldLost: The server did not answer.
        """
        key = _key(scenario, seed)
        if self._loaded != key:
            self._loaded = ""
            self._load(scenario, key)
            self._loaded = key
        if key not in self._known:
            is_generated = scenario.town == GENERATED
            self._known[key] = self._prepare(Path(key).stem, is_generated)
            if len(self._known) > _CACHED_TOWNS:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _load(self, scenario: Scenario, key: str) -> None:
        if scenario.town == GENERATED:
            # Imported here: importing scenariogeneration takes a second; others do not need it.
            from avtd3.collect.maps.generate import generate_network

            kind, _, number = key.rpartition("-")
            self._build(key, generate_network(kind, int(number)))
        elif _is_file(scenario.town):
            self._build_file(Path(key).stem, scenario.town)
        elif scenario.xodr and key not in self._maps():
            self._build_file(key, scenario.xodr)
        else:
            self._go_to_map(key)

    def _build_file(self, name: str, path: str) -> None:
        xodr = read_opendrive(path)
        check_native(path, xodr)  # the server would crash, too
        self._build(name, xodr)

    def _build(self, name: str, xodr: str) -> None:
        """Let the server build roads, unless it has these roads already."""
        server, limit_s = self._server, self._server.config.load_timeout_s
        with server.calling(f"load roads {name}", limit_s=limit_s):
            if server.world.get_map().to_opendrive() != xodr:
                server.world = server.client.generate_opendrive_world(xodr, _generation())

    def _go_to_map(self, name: str) -> None:
        server, limit_s = self._server, self._server.config.load_timeout_s
        with server.calling("report its map", limit_s=limit_s):
            current = server.world.get_map().name.rpartition("/")[2]
        if current == name:
            return
        known = self._maps()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(known)}."
            raise ConfigError(
                f"scenario town {name!r} is not a map of CARLA server {server.where}; {hint} "
                f"An .xodr file and {GENERATED!r} are also towns"
            )
        with server.calling(f"load map {name}", limit_s=limit_s):
            server.world = server.client.load_world(name)

    def _maps(self) -> list[str]:
        with self._server.calling("list its maps"):
            paths = self._server.client.get_available_maps()
        return sorted({path.rpartition("/")[2] for path in paths})

    def _prepare(self, name: str, is_generated: bool) -> Town:
        limit_s = self._server.config.load_timeout_s
        with self._server.calling("return its roads", limit_s=limit_s):
            xodr = self._server.world.get_map().to_opendrive()
            network = RoadNetwork.from_opendrive(name, xodr, is_trusted=is_generated)
            return Town(network=network, raster=Raster.paint(network, _PIXEL_M))


def _key(scenario: Scenario, seed: int) -> str:
    """Return the identity of a town; its stem is the name of the town."""
    if scenario.town == GENERATED:
        kind, number = draw_network(scenario, seed)
        return f"{kind}-{number:06d}"
    return scenario.town


def _is_file(town: str) -> bool:
    return town.endswith(".xodr")


def _generation() -> carla.OpendriveGenerationParameters:
    # No walls: a car that leaves the road should not hit anything.
    return carla.OpendriveGenerationParameters(
        vertex_distance=_VERTEX_M,
        max_road_length=_CHUNK_M,
        wall_height=0.0,
        additional_width=0.6,
        smooth_junctions=True,
        enable_mesh_visibility=True,
    )


def is_timeout(error: RuntimeError) -> bool:
    """Return whether an error of the client means that the server did not answer."""
    return "time-out of" in str(error)


def asynchronous(settings: Settings) -> Settings:
    """Return settings with which a server runs by itself."""
    return {**settings, "synchronous_mode": False, "fixed_delta_seconds": None}


def _is_mounted_on(actor: carla.Actor, cars: set[int]) -> bool:
    parent = actor.parent
    return parent is not None and parent.id in cars


def _one_line(error: RuntimeError) -> str:
    return " ".join(str(error).split())
