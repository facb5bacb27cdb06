"""`Towns`: brings the server to a scenario's roads, and prepares what driving there needs.

Three kinds of town: networks drawn by seed and .xodr files, which the server builds from their
OpenDRIVE text, and the server's own maps by name. Whatever it is, the lanes are then read from the
text that the server gives back: what is driven on is what routes are planned on.
"""

import collections
import dataclasses
import difflib
from pathlib import Path

import carla

from avtd3.collect.carla.server import Server
from avtd3.collect.driving.world import GENERATED, Scenario
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import read_opendrive
from avtd3.collect.maps.raster import Raster
from avtd3.collect.maps.site import draw_network
from avtd3.store.errors import ConfigError

_PIXEL_M = 0.1
_CAPACITY = 8
_VERTEX_M = 2.0
_CHUNK_M = 50.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Town:
    """The roads of an episode."""

    network: RoadNetwork
    """The lanes."""
    raster: Raster
    """What is under the wheels."""


class Towns:
    """The towns of one server.

    Args:
        server: Connected.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loaded = ""
        self._known: collections.OrderedDict[str, Town] = collections.OrderedDict()

    def is_loaded(self, scenario: Scenario, seed: int) -> bool:
        """Whether the server is known to be on an episode's roads already."""
        return self._loaded == _key(scenario, seed)

    def open(self, scenario: Scenario, seed: int) -> Town:
        """Bring the server to an episode's roads.

        No traffic manager may be alive: the client dies of it.

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
            self._known[key] = self._prepare(Path(key).stem)
            if len(self._known) > _CAPACITY:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _load(self, scenario: Scenario, key: str) -> None:
        if scenario.town == GENERATED:
            # Imported here: scenariogeneration takes a second, and other roads do not need it.
            from avtd3.collect.maps.generate import generate_network

            kind, _, number = key.rpartition("-")
            self._build(key, generate_network(kind, int(number)))
        elif _is_file(scenario.town):
            self._build(Path(key).stem, read_opendrive(scenario.town))
        elif scenario.xodr and key not in self._maps():
            self._build(key, read_opendrive(scenario.xodr))
        else:
            self._go_to_map(key)

    def _build(self, name: str, xodr: str) -> None:
        """Have the server build roads, unless it stands on these already."""
        server, limit_s = self._server, self._server.config.load_timeout_s
        with server.asking(f"load roads {name}", limit_s=limit_s):
            if server.world.get_map().to_opendrive() != xodr:
                server.world = server.client.generate_opendrive_world(xodr, _generation())

    def _go_to_map(self, name: str) -> None:
        server, limit_s = self._server, self._server.config.load_timeout_s
        with server.asking("tell its map", limit_s=limit_s):
            current = server.world.get_map().name.rpartition("/")[2]
        if current == name:
            return
        known = self._maps()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(known)}."
            raise ConfigError(
                f"scenario town {name!r} is no map of CARLA server {server.where}; {hint} "
                f"An .xodr file and {GENERATED!r} are towns, too"
            )
        with server.asking(f"load map {name}", limit_s=limit_s):
            server.world = server.client.load_world(name)

    def _maps(self) -> list[str]:
        with self._server.asking("list its maps"):
            paths = self._server.client.get_available_maps()
        return sorted({path.rpartition("/")[2] for path in paths})

    def _prepare(self, name: str) -> Town:
        limit_s = self._server.config.load_timeout_s
        with self._server.asking("give its roads", limit_s=limit_s):
            xodr = self._server.world.get_map().to_opendrive()
            network = RoadNetwork.from_opendrive(name, xodr)
            return Town(network=network, raster=Raster.paint(network, _PIXEL_M))


def _key(scenario: Scenario, seed: int) -> str:
    """What tells towns apart; its stem is the town's name."""
    if scenario.town == GENERATED:
        kind, number = draw_network(scenario, seed)
        return f"{kind}-{number:06d}"
    return scenario.town


def _is_file(town: str) -> bool:
    return town.endswith(".xodr")


def _generation() -> carla.OpendriveGenerationParameters:
    # No walls: whoever leaves the road shall leave it, not hit something.
    return carla.OpendriveGenerationParameters(
        vertex_distance=_VERTEX_M,
        max_road_length=_CHUNK_M,
        wall_height=0.0,
        additional_width=0.6,
        smooth_junctions=True,
        enable_mesh_visibility=True,
    )
