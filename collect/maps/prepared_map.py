"""`PreparedMap`: a road network with everything that is prepared once for driving on it."""

import collections
import dataclasses
from pathlib import Path

from avtd3.collect.driving.world import GENERATED, Scenario
from avtd3.collect.maps.lane_paths import LanePaths
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import flatten, read_opendrive
from avtd3.collect.maps.raster import Raster
from avtd3.collect.plan import GROUP
from avtd3.store.errors import RoadError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreparedMap:
    """One network, painted and ready for traffic."""

    network: RoadNetwork
    """The lanes."""
    raster: Raster
    """What the camera and the wheels meet."""
    paths: LanePaths
    """What the traffic drives on."""
    notices: tuple[str, ...]
    """What a person should know about the network, in sentences."""


class PreparedMapCache:
    """The sites used last, by the name that scenario and seed give them."""

    def __init__(self, capacity: int, pixel_m: float) -> None:
        self._capacity, self._pixel_m = capacity, pixel_m
        self._sites: collections.OrderedDict[str, PreparedMap] = collections.OrderedDict()

    def site(self, scenario: Scenario, seed: int) -> PreparedMap:
        """The site of an episode, built if it is not at hand.

        Raises:
            RoadError: The scenario's town is an .xodr file that cannot be used.
            ConfigError: The scenario's kinds of network are unknown.
        """
        kind, number = "", 0
        name = scenario.xodr or scenario.town
        if scenario.town == GENERATED:
            kind, number = draw_network(scenario, seed)
            name = f"{kind}-{number:06d}"
        if name not in self._sites:
            self._sites[name] = self._build(name, kind, number)
            if len(self._sites) > self._capacity:
                self._sites.popitem(last=False)
        self._sites.move_to_end(name)
        return self._sites[name]

    def _build(self, name: str, kind: str, number: int) -> PreparedMap:
        notices: tuple[str, ...] = ()
        if kind:
            # Imported here: scenariogeneration takes a second, and given roads do not need it.
            from avtd3.collect.maps.generate import generate_network

            xodr = generate_network(kind, number)
        else:
            _check_town(name)
            xodr, changed = flatten(read_opendrive(name))
            name = Path(name).stem
            if changed:
                notices = (f"road {name}: hills and banking were removed; the road world is flat",)
        network = RoadNetwork.from_opendrive(name, xodr)
        return PreparedMap(
            network=network,
            raster=Raster.paint(network, self._pixel_m),
            paths=LanePaths(network),
            notices=notices,
        )

    def clear(self) -> None:
        """Forget all sites."""
        self._sites.clear()


def _check_town(town: str) -> None:
    """Tell who names one of CARLA's maps that this world has none of its own."""
    if not Path(town).suffix and not Path(town).exists():
        raise RoadError(
            f"the road world has no map {town!r} of its own, expected the path of an .xodr file; "
            f"put {town}.xodr beside the scenario file, or drive in CARLA (--world carla)"
        )


def draw_network(scenario: Scenario, seed: int) -> tuple[str, int]:
    """Kind and seed of the generated network of an episode.

    Even episode seeds get even network seeds, odd ones odd: episodes are collected with even
    seeds and evaluated with odd ones, so no dataset holds a road of an evaluation. Collecting,
    the episodes of a `GROUP` share a network, which spares building one for each of them;
    evaluations see a new one every time.
    """
    if scenario.network is not None:
        return scenario.network_kinds[0], scenario.network
    held_out = seed & 1
    place = (seed >> 1) if held_out else (seed >> 1) // GROUP
    place %= scenario.networks
    return scenario.network_kinds[place % len(scenario.network_kinds)], 2 * place + held_out
