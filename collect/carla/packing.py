"""Convert frames to plain tuples, for the pipe between a CARLA client's process and its parent.

Pickling two nested dataclasses and an array would take longer than everything else that a step adds
to the server's tick.
"""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.driving.world import VehicleState, WorldFrame

_SEPARATE = ("image", "streams", "vehicle")
_OF_FRAME = tuple(
    field.name for field in dataclasses.fields(WorldFrame) if field.name not in _SEPARATE
)
_OF_VEHICLE = tuple(field.name for field in dataclasses.fields(VehicleState))
_from_frame, _from_vehicle = operator.attrgetter(*_OF_FRAME), operator.attrgetter(*_OF_VEHICLE)

PackedPictures = tuple[tuple[str, tuple[int, ...], bytes], ...]
"""Name, shape and bytes of each picture."""
Packed = tuple[tuple[Any, ...], tuple[Any, ...], PackedPictures]
"""Values of the frame, values of the vehicle, and the pictures."""
_UNNAMED = ""
"""Name of the picture of a frame without streams."""


def pack(frame: WorldFrame) -> Packed:
    """Convert a frame to plain values."""
    named = {_UNNAMED: frame.image} if frame.streams is None else frame.streams
    return _from_frame(frame), _from_vehicle(frame.vehicle), pack_pictures(named)


def pack_pictures(named: Mapping[str, NDArray[np.uint8]]) -> PackedPictures:
    """Convert pictures by name to plain values."""
    return tuple((name, image.shape, image.tobytes()) for name, image in named.items())


def unpack_pictures(packed: PackedPictures) -> dict[str, NDArray[np.uint8]]:
    """Convert plain values back to pictures, which are read-only."""
    return {name: np.frombuffer(pixels, np.uint8).reshape(shape) for name, shape, pixels in packed}


def unpack(packed: Packed) -> WorldFrame:
    """Convert plain values back to a frame; its pictures are read-only."""
    of_frame, of_vehicle, pictures = packed
    named = unpack_pictures(pictures)
    return WorldFrame(
        image=next(iter(named.values())),
        streams=None if _UNNAMED in named else named,
        vehicle=VehicleState(**dict(zip(_OF_VEHICLE, of_vehicle, strict=True))),
        **dict(zip(_OF_FRAME, of_frame, strict=True)),
    )
