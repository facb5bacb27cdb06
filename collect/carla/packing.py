"""Convert frames to plain tuples, for the pipe between a CARLA client's process and its parent.

Pickling two nested dataclasses and an array would take longer than everything else that a step adds
to the server's tick.
"""

import dataclasses
import operator
from typing import Any

import numpy as np

from avtd3.collect.driving.world import VehicleState, WorldFrame

_SEPARATE = ("image", "vehicle")
_OF_FRAME = tuple(
    field.name for field in dataclasses.fields(WorldFrame) if field.name not in _SEPARATE
)
_OF_VEHICLE = tuple(field.name for field in dataclasses.fields(VehicleState))
_from_frame, _from_vehicle = operator.attrgetter(*_OF_FRAME), operator.attrgetter(*_OF_VEHICLE)

Packed = tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, ...], bytes]
"""Values of the frame, values of the vehicle, shape and bytes of the picture."""


def pack(frame: WorldFrame) -> Packed:
    """Convert a frame to plain values."""
    image = frame.image
    return _from_frame(frame), _from_vehicle(frame.vehicle), image.shape, image.tobytes()


def unpack(packed: Packed) -> WorldFrame:
    """Convert plain values back to a frame; its picture is read-only."""
    of_frame, of_vehicle, shape, pixels = packed
    return WorldFrame(
        image=np.frombuffer(pixels, np.uint8).reshape(shape),
        vehicle=VehicleState(**dict(zip(_OF_VEHICLE, of_vehicle, strict=True))),
        **dict(zip(_OF_FRAME, of_frame, strict=True)),
    )
