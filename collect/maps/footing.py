"""`Footing`: what the middle of a car stands on."""

import math
from typing import NamedTuple

from avtd3.collect.maps.raster import SHOULDER, Raster

_AGAINST = math.cos(math.radians(120.0))


class Footing(NamedTuple):
    """The ground below a car, and the lane's direction there."""

    off_road: bool
    """Whether the car's centre has left every driving lane and paved shoulder."""
    wrong_way: bool
    """Whether it stands in a lane of the opposite direction."""
    lane_yaw_rad: float | None
    """Direction of the lane; None off the lanes and in junctions."""


def footing(raster: Raster, x_m: float, y_m: float, yaw_rad: float) -> Footing:
    """Look at the ground under the centre of a car with a heading."""
    lane_yaw = raster.direction_at(x_m, y_m)
    wrong_way = lane_yaw is not None and math.cos(yaw_rad - lane_yaw) < _AGAINST
    return Footing(raster.ground_at(x_m, y_m) < SHOULDER, wrong_way, lane_yaw)
