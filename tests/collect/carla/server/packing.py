"""Messages of the streams as bytes: sensor header, snapshot, pictures, events."""

import math
import struct
import time

import msgpack
import numpy as np

COLLISION, RGB_CAMERA, SEMANTIC_CAMERA, SNAPSHOT = 0, 13, 14, 17
"""Sensor types, as numbered in the client's registry."""
SNAPSHOT_STREAM = 1

_HEADER = struct.Struct("<QQd6f")
_EPISODE = struct.Struct("<Qdf3iI")
_ACTOR = struct.Struct("<IB15f54s")
_VEHICLE = struct.Struct("<3f3BifBBIB")
_LIGHT = struct.Struct("<32s4fIBB")
_PICTURE = struct.Struct("<IIf")
_TOKEN = struct.Struct("<IHBB16x")
_TCP, _ANY_ADDRESS = 1, 0

assert (_HEADER.size, _EPISODE.size, _ACTOR.size, _TOKEN.size) == (48, 36, 119, 24)


def token(stream_id, port):
    """Return the address of a stream; without a host, the client uses its own."""
    return _TOKEN.pack(stream_id, port, _TCP, _ANY_ADDRESS)


def snapshot(simulation):
    """Return the message of stream 1: all actors, with their poses and velocities."""
    parts = [
        _HEADER.pack(SNAPSHOT, simulation.frame, simulation.elapsed_s, *([0.0] * 6)),
        _EPISODE.pack(
            simulation.episode_id,
            time.time(),
            simulation.delta_s,
            0,
            0,
            0,
            int(simulation.map_changed),
        ),
    ]
    for actor in simulation.actors.values():
        motion, pose = actor.motion(), actor.pose
        if simulation.faults.nan_snapshots and actor.type_id.startswith("vehicle."):
            pose = (math.nan, *pose[1:])
        parts.append(_ACTOR.pack(actor.id, 1, *pose, *motion, actor.state()))
    simulation.faults.nan_snapshots = max(simulation.faults.nan_snapshots - 1, 0)
    return b"".join(parts)


def light_state(state):
    """Return the part of a record that only traffic lights have."""
    return _LIGHT.pack(b"", 10.0, 3.0, 2.0, 0.0, 0, 1, state)


def vehicle_state(control, speed_limit_kmh, light):
    """Return the part of a record that only vehicles have."""
    throttle, steer, brake, hand_brake, reverse, manual, gear = control
    return _VEHICLE.pack(
        throttle,
        steer,
        brake,
        hand_brake,
        reverse,
        manual,
        gear,
        speed_limit_kmh,
        *light,
        0,
    )


def header(kind, simulation, pose):
    """Return the header of the message of a sensor."""
    return _HEADER.pack(kind, simulation.frame, simulation.elapsed_s, *pose)


def picture(simulation, pose, gray, eye):
    """Return the message of an eye's picture uint8 (H, W), as equal B, G, R and opaque."""
    height, width = gray.shape
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[..., :3] = gray[..., None]
    kind = SEMANTIC_CAMERA if eye.sees_tags else RGB_CAMERA
    head = header(kind, simulation, pose) + _PICTURE.pack(width, height, eye.field_of_view_deg)
    return head + pixels.tobytes()


def event(kind, simulation, pose, value):
    """Return the message of an event of this frame: one msgpack value."""
    return header(kind, simulation, pose) + msgpack.packb(value)
