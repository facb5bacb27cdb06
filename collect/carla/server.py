"""`Server`: one CARLA server as the child process sees it: connection, settings, what was left.

Every error of the client is a plain `RuntimeError`; only its text tells a server that does not
answer ("time-out of") from one that refuses. `asking` turns both into our own.
"""

import contextlib
import importlib.metadata
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import carla

from avtd3.collect.carla.config import CarlaConfig
from avtd3.store.errors import WorldError, WorldLost

ROLE = "avtd3"
"""Role name of every actor that avtd3 spawns; by it those of a crashed run are found."""
Settings = dict[str, Any]
"""A server's settings by name, as plain values."""
Phase = Callable[[str, float], None]
"""``(what, limit_s)``: called before whatever may block, for whoever watches from outside."""

_SETTINGS = tuple(name for name in dir(carla.WorldSettings) if not name.startswith("_"))
_SUBSTEP_S, _SUBSTEPS = 0.01, 10
_SUBSCRIBED_S = 0.5
"""Longest wait for the snapshot of a tick that may have come before the subscription."""


def is_timeout(error: RuntimeError) -> bool:
    """Whether an error of the client means that the server did not answer."""
    return "time-out of" in str(error)


class Server:
    """A connection to a CARLA server.

    Args:
        config: Where and how long.
        port: The server's RPC port.
        phase: Told before whatever may block.

    Attributes:
        where: ``host:port``.
        client: The `carla.Client`.
        world: The `carla.World` of the running episode.
        is_gone: Whether the server stopped answering: nothing more is worth asking.
    """

    def __init__(self, config: CarlaConfig, port: int, phase: Phase) -> None:
        self.config, self.port, self._told = config, port, phase
        self.where = f"{config.host}:{port}"
        self.client: carla.Client = None
        self.world: carla.World = None
        self.is_gone = False

    @contextlib.contextmanager
    def asking(self, what: str, *, limit_s: float | None = None) -> Iterator[None]:
        """Turn the client's errors into ours, and tell what is going on.

        Args:
            what: What is asked for, as in "the server did not ...".
            limit_s: Longest time of the client's calls inside; None for its usual one.

        Raises:
            WorldLost: The server did not answer.
            WorldError: It refused.
        """
        self.phase(what, limit_s)
        if limit_s:
            self.client.set_timeout(limit_s)
        try:
            yield
        except WorldError:
            raise
        except RuntimeError as error:
            raise self.explained(error, what) from error
        finally:
            if limit_s:
                self.client.set_timeout(self.config.timeout_s)

    def phase(self, what: str, limit_s: float | None = None) -> None:
        """Tell what is going on, and how long each call of it may take."""
        self._told(what, limit_s or self.config.timeout_s)

    def mute(self) -> None:
        """Tell nobody any more: whoever listened is gone."""
        self._told = lambda _what, _limit_s: None

    def explained(self, error: RuntimeError, what: str) -> WorldError:
        """What an error of the client means."""
        if is_timeout(error):
            self.is_gone = True
            return WorldLost(
                f"CARLA server {self.where} did not {what}: {_one_line(error)}; is it still "
                "running? Look at its log, and start it again"
            )
        return WorldError(f"CARLA server {self.where} refused to {what}: {_one_line(error)}")

    def connect(self) -> None:
        """Reach the server, trying again for `CarlaConfig.connect_timeout_s`.

        An old client never recovers from a server that was not there, so each try has a new one.

        Raises:
            WorldLost: There is no server.
            WorldError: It is of another version.
        """
        config, begun_s, tries, pause_s = self.config, time.monotonic(), 0, self.config.backoff_s
        while problem := self._try_connecting():
            tries += 1
            spent_s = time.monotonic() - begun_s
            if spent_s + pause_s > config.connect_timeout_s:
                self.is_gone = True
                raise WorldLost(
                    f"no CARLA server at {self.where}: {problem} ({tries} tries in {spent_s:.0f} "
                    f"s); start one with ./CarlaUE4.sh -RenderOffScreen -carla-rpc-port="
                    f"{self.port}, or give its --host and --port",
                    # A server of our own is started anew before the next try.
                    "server_lost" if config.server_command else "server_away",
                )
            time.sleep(pause_s)
            pause_s = min(2.0 * pause_s, config.backoff_max_s)
        self._check_version()
        with self.asking("describe its world"):
            self.world = self.client.get_world()

    def _try_connecting(self) -> str:
        """What is wrong with the server, or an empty string when it has answered."""
        config = self.config
        self.phase("answer")
        try:
            # The client does not tell a refused connection from a slow answer; a socket does.
            socket.create_connection((config.host, self.port), config.timeout_s).close()
        except OSError as error:
            return str(error.strerror or error).lower()
        client = carla.Client(config.host, self.port)
        client.set_timeout(config.timeout_s)
        try:
            self._version: str = client.get_server_version()
        except RuntimeError as error:
            if not is_timeout(error):
                return f"what listens there is no CARLA server ({_one_line(error)})"
            return f"something listens there, but did not answer within {config.timeout_s:g} s"
        self.client = client
        return ""

    def _check_version(self) -> None:
        ours = importlib.metadata.version("carla")
        # Builds from source call themselves 0.9.16-12-gabcdef0.
        if self._version.split("-")[0] != ours:
            raise WorldError(
                f"CARLA server {self.where} is version {self._version}, expected {ours} as the "
                f"client here (package carla); start a server {ours}, avtd3 is made for it"
            )

    def settings(self) -> Settings:
        """The settings in force."""
        with self.asking("tell its settings"):
            found = self.world.get_settings()
        return {name: getattr(found, name) for name in _SETTINGS}

    def apply(self, settings: Settings) -> None:
        """Put settings in force; with a fixed step this takes one or two ticks."""
        with self.asking("take settings"):
            wanted = self.world.get_settings()
            for name, value in settings.items():
                setattr(wanted, name, value)
            self.world.apply_settings(wanted)

    def synchronise(self) -> None:
        """Let the server advance only with our ticks, by the control period each."""
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
        """Advance by one frame; its snapshot.

        Raises:
            WorldLost: The server did not answer, or answered without a snapshot.
        """
        try:
            frame = self.world.tick(self.config.timeout_s)
        except RuntimeError as error:
            raise self.explained(error, "advance by a step") from error
        snapshot = self.world.get_snapshot()
        if snapshot.frame < frame:
            raise WorldLost(
                f"CARLA server {self.where} ticked to frame {frame}, its newest snapshot is "
                f"{snapshot.frame}; restart the server"
            )
        return snapshot

    def sweep(self) -> int:
        """Remove what a crashed run of avtd3 has left behind; how many actors that were."""
        actors = self.actors()
        cars = {actor.id for actor in actors if actor.attributes.get("role_name") == ROLE}
        ours = [actor for actor in actors if actor.id in cars or _is_mounted_on(actor, cars)]
        # Sensors first: what carries them is then free of them.
        ours.sort(key=lambda actor: not actor.type_id.startswith("sensor."))
        self.destroy([actor.id for actor in ours])
        return len(ours)

    def actors(self) -> list[carla.Actor]:
        """All actors; a synchronous server is ticked, before which a new client sees none."""
        with self.asking("list its actors"):
            if self.world.get_settings().synchronous_mode:
                self._first_tick()
            return list(self.world.get_actors())

    def _first_tick(self) -> None:
        """Tick until a snapshot comes: the first may be sent before our subscription is live."""
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
        """Remove actors by id; those that are gone already are passed over."""
        if ids:
            with self.asking("remove actors"):
                batch = [carla.command.DestroyActor(number) for number in ids]
                self.client.apply_batch_sync(batch, False)

    def leave(self, found: Settings) -> None:
        """Put the settings back that were found, unless the server is gone."""
        if self.client is None or self.is_gone:
            return
        with contextlib.suppress(WorldLost):
            self.apply(found)


def asynchronous(settings: Settings) -> Settings:
    """Settings with which a server runs by itself."""
    return {**settings, "synchronous_mode": False, "fixed_delta_seconds": None}


def _is_mounted_on(actor: carla.Actor, cars: set[int]) -> bool:
    parent = actor.parent
    return parent is not None and parent.id in cars


def _one_line(error: RuntimeError) -> str:
    return " ".join(str(error).split())
