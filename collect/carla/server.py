"""`Server`: one CARLA server as the client process sees it; `Towns`: the maps on it.

Every error of the client is a plain `RuntimeError`. Only its text shows whether the server did not
answer ("time-out of") or rejected the call. `calling` turns both into `WorldLost`, so that one bad
answer costs one episode.
"""

import contextlib
import difflib
import functools
import importlib.metadata
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import carla

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.scene import BUILT, PIXEL_M
from avtd3.collect.maps.episode_setup import draw_network
from avtd3.collect.maps.native_check import check_native
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import read_opendrive
from avtd3.collect.maps.raster import Raster
from avtd3.collect.maps.scenarios import GENERATED, Scenario
from avtd3.store.errors import ConfigError, WorldError, WorldLost
from avtd3.store.locks import Identity

ROLE = "avtd3"
"""Beginning of the role name of the actors that avtd3 spawns; the identity of the process follows,
which distinguishes a crashed run from one that still drives."""
BUSY = "server_busy"
"""Reason of `WorldLost`: another client drives on the server."""
REJECTED = "bad_answer"
"""Reason of `WorldLost`: the server rejected a call, or sent what cannot be used."""
Settings = dict[str, Any]
"""Settings of a server by name, as plain values."""
ReportPhase = Callable[[str, float], None]
"""``(what, limit_s)``: called before everything that may block, for the supervisor."""
_SETTINGS = tuple(name for name in dir(carla.WorldSettings) if not name.startswith("_"))
_SUBSTEP_S, _SUBSTEPS = 0.01, 10
_SAME_S = 1e-6  # a server may store settings as float32
_SUBSCRIBED_S = 0.5
"""Maximum wait for the snapshot of a tick that may have come before the subscription."""
_LISTEN_S, _END_S, _BREAK_S = 1.0, 2.0, 0.2
"""How long to listen for a tick, and how long another process may take to end, with breaks."""
_CACHED_TOWNS = 8


class Server:
    """A connection to a CARLA server; `report_phase` is called before everything that may block.

    Attributes:
        where: ``host:port``.
        client: The `carla.Client`.
        world: The `carla.World` of the running episode.
        is_gone: Whether the server stopped answering; further calls are pointless.
        ticks_from: The newest frame before the tick that is running; None between ticks.
        mark: Role name of all actors that avtd3 spawns, except the driven car.
    """

    def __init__(self, config: CarlaConfig, port: int, report_phase: ReportPhase) -> None:
        self.config, self.port, self._report_phase = config, port, report_phase
        self.where = f"{config.host}:{port}"
        self.mark = f"{ROLE} {Identity.current('avtd3 client').to_bytes().decode().strip()}"
        self.client: carla.Client = None
        self.world: carla.World = None
        self.is_gone = False
        self.ticks_from: int | None = None
        self._frame = 0

    @contextlib.contextmanager
    def calling(self, what: str, *, limit_s: float | None = None) -> Iterator[None]:
        """Turn the client's errors into `WorldLost`: the server did not do `what` in `limit_s`."""
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

    def translate_error(self, error: RuntimeError, what: str) -> WorldLost:
        """Return the error of avtd3 for an error of the client."""
        if is_timeout(error):
            self.is_gone = True
            return WorldLost(
                f"CARLA server {self.where} did not {what}: {_one_line(error)}; check its log, "
                "and restart it if it has stopped"
            )
        return self._rejected(what, error)

    def _rejected(self, what: str, error: object) -> WorldLost:
        text = f"CARLA server {self.where} failed to {what}: {_one_line(error)}; check its log"
        return WorldLost(text, REJECTED)

    def connect(self) -> None:
        """Connect to the server; retry for `CarlaConfig.connect_timeout_s`.

        A client never recovers from a server that was not there, so each attempt has a new one.
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
        found = self.settings()
        if any(abs((found[name] or 0.0) - value) > _SAME_S for name, value in wanted.items()):
            self.apply(wanted)

    def tick(self) -> carla.WorldSnapshot:
        """Advance by one frame and return its snapshot."""
        self.ticks_from = self._frame
        try:
            frame = self.world.tick(self.config.timeout_s)
        except RuntimeError as error:
            raise self.translate_error(error, "advance by a step") from error
        finally:
            self.ticks_from = None
        snapshot = self.world.get_snapshot()
        self._frame = snapshot.frame
        if snapshot.frame < frame:
            raise WorldLost(
                f"CARLA server {self.where} ticked to frame {frame}, but its newest snapshot is "
                f"that of frame {snapshot.frame}; restart the server"
            )
        return snapshot

    def command(self, *commands: Any, what: str = "command the car") -> None:  # noqa: ANN401
        """Send commands, and return when the server has carried them out.

        The methods of actors do not wait for an answer. The server handles what they send in any
        order, so that a control that is followed by a tick may come into force one tick late.
        """
        try:
            answers = self.client.apply_batch_sync(list(commands), False) if commands else ()
        except RuntimeError as error:
            raise self.translate_error(error, what) from error
        for answer in answers:
            if answer.has_error():
                raise self._rejected(what, answer.error)

    def find_leftovers(self) -> list[int]:
        """Return the ids of the actors that a crashed run of avtd3 has left, sensors first.

        The driven car has the role name of any other; the sensors that are mounted on it have ours.
        Raise WorldLost with the reason `BUSY` if another client drives there.
        """
        if self.settings()["synchronous_mode"] and self._hears_ticks():
            raise self._busy("another client ticks it, in synchronous mode")
        end_s = time.monotonic() + _END_S
        while True:
            with self.calling("list its actors"):
                if self.world.get_settings().synchronous_mode:
                    self._first_tick()  # a new client sees no actors before
                actors = list(self.world.get_actors())
            ours = [actor for actor in actors if _role(actor).startswith(ROLE)]
            owners = {_role(actor): _owner(actor) for actor in ours}
            alive = [owner for owner in owners.values() if owner and owner.is_dead() is False]
            if not alive:
                break
            if time.monotonic() > end_s:
                raise self._busy(str(alive[0]))
            time.sleep(_BREAK_S)  # its process may be about to remove them and to end
        # Sensors first: then nothing is attached to the cars.
        ours.sort(key=lambda actor: not actor.type_id.startswith("sensor."))
        cars = [actor.parent.id for actor in ours if actor.parent is not None]
        return list(dict.fromkeys((*(actor.id for actor in ours), *cars)))

    def _busy(self, who: str) -> WorldLost:
        return WorldLost(
            f"CARLA server {self.where} is in use: {who}; stop the other client, or start another "
            "server and give its --port",
            BUSY,
        )

    def _hears_ticks(self) -> bool:
        """Return whether another client ticks the server; one tick may be that of a dead one."""
        try:
            for _ in range(2):
                self.phase("wait for a tick of another client", _LISTEN_S)
                self.world.wait_for_tick(_LISTEN_S)
        except RuntimeError:
            return False
        return True

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


class Town(NamedTuple):
    """The roads of an episode."""

    network: RoadNetwork
    """The lanes."""
    raster: Raster
    """The ground under the wheels."""
    text: str
    """The OpenDRIVE text, as the server returned it."""
    name: str
    """Name of the server's map."""


class Towns:
    """The maps of one server: load them, and prepare their roads.

    A town is a generated network or an .xodr file, which the server builds from OpenDRIVE text, or
    a map of the server. The lanes are always read from the text that the server returns, so that
    routes are planned on the roads that are driven.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loaded: tuple[str, str] | None = None
        self._prepared = functools.lru_cache(_CACHED_TOWNS)(self._prepare)

    def is_loaded(self, scenario: Scenario, seed: int) -> bool:
        """Return whether the server is known to have loaded an episode's roads."""
        return self._loaded == _key(scenario, seed)

    def open(self, scenario: Scenario, seed: int) -> Town:
        """Load an episode's roads on the server and return them.

        No traffic manager may exist: the client would crash.
        """
        key = _key(scenario, seed)
        if self._loaded != key:
            self._loaded = None
            self._load(scenario, key[0])
            self._loaded = key
        return self._prepared(key, scenario.town == GENERATED)

    def _load(self, scenario: Scenario, key: str) -> None:
        if scenario.town == GENERATED:
            # Imported here: importing scenariogeneration takes a second; others do not need it.
            from avtd3.collect.maps.generate import generate_network

            kind, _, number = key.rpartition("-")
            self._build(key, generate_network(kind, int(number)))
        elif scenario.town.endswith(".xodr"):
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
            # The server returns the text from a file, perhaps with other ends of lines.
            if server.world.get_map().to_opendrive().split() != xodr.split():
                server.world = server.client.generate_opendrive_world(
                    xodr,
                    carla.OpendriveGenerationParameters(
                        vertex_distance=2.0,
                        max_road_length=50.0,
                        wall_height=0.0,  # a car that leaves the road should not hit anything
                        additional_width=0.6,
                        smooth_junctions=True,
                        enable_mesh_visibility=True,
                    ),
                )

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

    def _prepare(self, key: tuple[str, str], is_generated: bool) -> Town:
        limit_s = self._server.config.load_timeout_s
        with self._server.calling("return its roads", limit_s=limit_s):
            found = self._server.world.get_map()
            xodr, on_server = found.to_opendrive(), found.name.rpartition("/")[2]
            network = RoadNetwork.from_opendrive(Path(key[0]).stem, xodr, is_trusted=is_generated)
            raster = Raster.paint(network, PIXEL_M)
            return Town(network=network, raster=raster, text=xodr, name=on_server)

    def show(self, name: str, xodr: str) -> None:
        """Load the recorded map of a name; raise ConfigError if its OpenDRIVE text is another."""
        self._loaded = None
        if name == BUILT:
            check_native(name, xodr)
            self._build(name, xodr)
        else:
            self._go_to_map(name)
        server, limit_s = self._server, self._server.config.load_timeout_s
        with server.calling("return its roads", limit_s=limit_s):
            found = server.world.get_map().to_opendrive()
        if found.split() != xodr.split():
            raise ConfigError(
                f"map {name} of CARLA server {server.where} is not the one that was driven on: its "
                "OpenDRIVE text differs; start a server with the same maps"
            )


def _key(scenario: Scenario, seed: int) -> tuple[str, str]:
    """Return name and file of a town, which identify it; towns of one name may have several."""
    if scenario.town == GENERATED:
        kind, number = draw_network(scenario, seed)
        return f"{kind}-{number:06d}", ""
    return scenario.town, scenario.xodr


def is_timeout(error: RuntimeError) -> bool:
    """Return whether an error of the client means that the server did not answer."""
    return "time-out of" in str(error)


def asynchronous(settings: Settings) -> Settings:
    """Return settings with which a server runs by itself."""
    return {**settings, "synchronous_mode": False, "fixed_delta_seconds": None}


def _role(actor: carla.Actor) -> str:
    return str(actor.attributes.get("role_name", ""))


def _owner(actor: carla.Actor) -> Identity | None:
    """Return which process spawned an actor of avtd3; None if it does not say."""
    try:
        return Identity.from_bytes(_role(actor).removeprefix(ROLE).encode())
    except ValueError:
        return None


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
