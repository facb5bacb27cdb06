"""The maps of the server: loops of its own, and OpenDRIVE text from a client.

Cars stand at the height of the road, but drive as on flat roads, as in the built-in simulator.
"""

import functools
import math

from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import flatten
from avtd3.collect.maps.raster import Raster

DEFAULT = "AvTown01"
OPENDRIVE = "OpenDriveMap"
"""Name of the map that is built from a client's OpenDRIVE text."""
_LOOPS = {"AvTown01": (150.0, 30.0), "AvTown02": (260.0, 45.0), "Town01": (150.0, 30.0)}
"""Length of the straight and radius of each loop; one has the name of a real map."""
_PIXEL_M = 0.1
_SPAWN_EVERY_M = 20.0
_SPAWN_HEIGHT_M = 0.3


class TownMap:
    """A map, with the data that the simulation needs.

    Attributes: `name` as in `world.get_map().name`; `xodr`, its OpenDRIVE text; `hills`, the map
    with its heights, None if it is flat.
    """

    def __init__(self, name, xodr):
        flat, has_hills = flatten(xodr)
        self.name, self.xodr = name, xodr
        self.network = RoadNetwork.from_opendrive(name, flat, is_trusted=True)
        self.hills = (
            RoadNetwork.from_opendrive(name, xodr, is_trusted=True).map if has_hills else None
        )

    @functools.cached_property
    def raster(self):
        """Return the ground, which only cameras use."""
        return Raster.paint(self.network, _PIXEL_M)

    def spawn_points(self):
        """Return transforms in the middle of the lanes, slightly above the road."""
        return [
            [[x, y, self.height_at(x, y) + _SPAWN_HEIGHT_M], [0.0, yaw, 0.0]]
            for x, y, yaw in _places(self.network)
        ]

    def height_at(self, x_m, y_m, z_m=0.0):
        """Return the height of the nearest point of a road; bridges have roads on two levels."""
        if self.hills is None:
            return 0.0
        import carla

        return self.hills.get_waypoint(carla.Location(x_m, y_m, z_m)).transform.location.z


class Maps:
    """The maps by name, each built when it is first used."""

    def __init__(self, xodr=None):
        self.opendrive = xodr
        self._made = {}

    def available(self):
        """Return the paths of the maps that can be loaded by name."""
        return [f"/Game/Carla/Maps/{name}" for name in _LOOPS]

    def find(self, name):
        """Return a map by name or path; raise KeyError if there is none, RoadError if invalid."""
        short = name.rpartition("/")[2]
        if short == OPENDRIVE and self.opendrive is not None:
            return town_map(short, self.opendrive)
        if short not in self._made:
            self._made[short] = town_map(f"Carla/Maps/{short}", loop(*_LOOPS[short]))
        return self._made[short]


@functools.lru_cache(maxsize=4)
def town_map(name, xodr):
    """Return the map of a name and OpenDRIVE text."""
    return TownMap(name, xodr)


def _places(network):
    for lane in network.lanes:
        if lane.is_junction:
            continue
        after = 0.0
        for (x, y), yaw, along in zip(lane.points, lane.yaw_rad, lane.distance_m, strict=True):
            if along >= after and along <= lane.length_m - 1.0:
                after = along + _SPAWN_EVERY_M
                yield float(x), float(y), math.degrees(float(yaw))


def loop(straight_m, radius_m):
    """Return a closed two-lane road: straight, half circle, straight, half circle."""
    half = math.pi * radius_m
    pieces = (
        (0.0, 0.0, 0.0, straight_m, "<line/>"),
        (straight_m, 0.0, 0.0, half, f'<arc curvature="{1.0 / radius_m}"/>'),
        (straight_m, 2.0 * radius_m, math.pi, straight_m, "<line/>"),
        (0.0, 2.0 * radius_m, math.pi, half, f'<arc curvature="{1.0 / radius_m}"/>'),
    )
    roads = "".join(_road(number, *piece) for number, piece in enumerate(pieces))
    place = "<geoReference><![CDATA[+proj=tmerc +lat_0=0 +lon_0=0]]></geoReference>"
    head = f'<header revMajor="1" revMinor="4" name="loop">{place}</header>'
    return f'<?xml version="1.0"?><OpenDRIVE>{head}{roads}</OpenDRIVE>'


def _road(number, x, y, heading, length, shape):
    before, after = (number - 1) % 4, (number + 1) % 4
    links = (
        f'<predecessor elementType="road" elementId="{before}" contactPoint="end"/>'
        f'<successor elementType="road" elementId="{after}" contactPoint="start"/>'
    )
    return (
        f'<road name="road {number}" length="{length}" id="{number}" junction="-1">'
        f"<link>{links}</link>"
        f'<type s="0" type="town"><speed max="50" unit="km/h"/></type>'
        f'<planView><geometry s="0" x="{x}" y="{y}" hdg="{heading}" length="{length}">{shape}'
        f'</geometry></planView><elevationProfile><elevation s="0" a="0" b="0" c="0" d="0"/>'
        f'</elevationProfile><lateralProfile/><lanes><laneSection s="0">'
        f"<left>{_lane(1)}</left><center><lane id='0' type='none' level='false'>"
        f"{_mark('broken')}</lane></center><right>{_lane(-1)}</right></laneSection></lanes></road>"
    )


def _lane(number):
    return (
        f'<lane id="{number}" type="driving" level="false">'
        f'<link><predecessor id="{number}"/><successor id="{number}"/></link>'
        f'<width sOffset="0" a="3.5" b="0" c="0" d="0"/>{_mark("solid")}</lane>'
    )


def _mark(kind):
    return (
        f'<roadMark sOffset="0" type="{kind}" weight="standard" color="white" width="0.15" '
        f'laneChange="{"both" if kind == "broken" else "none"}"/>'
    )
