"""Convert frames to plain tuples, for the pipe between a CARLA client's process and its parent.

Pickling two nested dataclasses and an array would take longer than everything else that a step adds
to the server's tick.
"""

import dataclasses
import operator
from typing import Any

import numpy as np

from avtd3.collect.driving.world import VehicleState, WorldFrame

_SEPARATE = ("image", "streams", "vehicle")
_OF_FRAME = tuple(
    field.name for field in dataclasses.fields(WorldFrame) if field.name not in _SEPARATE
)
_OF_VEHICLE = tuple(field.name for field in dataclasses.fields(VehicleState))
_from_frame, _from_vehicle = operator.attrgetter(*_OF_FRAME), operator.attrgetter(*_OF_VEHICLE)

_Picture = tuple[str, tuple[int, ...], bytes]
Packed = tuple[tuple[Any, ...], tuple[Any, ...], tuple[_Picture, ...]]
"""Values of the frame, values of the vehicle; name, shape and bytes of each picture."""
_UNNAMED = ""
"""Name of the picture of a frame without streams."""


def pack(frame: WorldFrame) -> Packed:
    """Convert a frame to plain values."""
    named = {_UNNAMED: frame.image} if frame.streams is None else frame.streams
    pictures = tuple((name, image.shape, image.tobytes()) for name, image in named.items())
    return _from_frame(frame), _from_vehicle(frame.vehicle), pictures


def unpack(packed: Packed) -> WorldFrame:
    """Convert plain values back to a frame; its pictures are read-only."""
    of_frame, of_vehicle, pictures = packed
    named = {
        name: np.frombuffer(pixels, np.uint8).reshape(shape) for name, shape, pixels in pictures
    }
    return WorldFrame(
        image=next(iter(named.values())),
        streams=None if _UNNAMED in named else named,
        vehicle=VehicleState(**dict(zip(_OF_VEHICLE, of_vehicle, strict=True))),
        **dict(zip(_OF_FRAME, of_frame, strict=True)),
    )
