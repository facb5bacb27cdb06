"""Named streams of a CARLA server, with the real client over the wire.

The test server's colour camera is gray. No real server was asked.
"""

from typing import Any

import numpy as np
import pytest

from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.sim.streams import StreamCamera
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.store.errors import ConfigError
from avtd3.tests.collect.carla.worlds import COUNTRY, drive, kinds, settings, world_on

SIZE: dict[str, Any] = {"height": 24, "width": 32}
STREAMS = {
    "bev": StreamCamera(kind="bev", height=32, width=32, stack=1),
    "gray": StreamCamera(**SIZE),
    "masks": StreamCamera(kind="semantic", **SIZE),
    "rgb": StreamCamera(kind="rgb", height=16, width=20),
}


def test_frames_have_every_stream(server):
    with world_on(server, streams=STREAMS) as world:
        start = world.reset(COUNTRY, 4)
        frames = [start.frame, *drive(world, 3)]
        cameras = ["sensor.camera.rgb"] * 2 + ["sensor.camera.semantic_segmentation"]
        assert [kind for kind in kinds(server) if "camera" in kind] == cameras
        road = RoadWorld(RoadConfig(streams={"bev": STREAMS["bev"]}))
        same = [road.reset(COUNTRY, 4).frame, *drive(road, 3)]
    for frame, other in zip(frames, same, strict=True):
        shapes = {name: image.frame_shape for name, image in world.streams.items()}
        assert {name: planes.shape for name, planes in frame.streams.items()} == shapes
        assert list(frame.streams) == sorted(STREAMS)
        red, green, blue = frame.streams["rgb"]
        assert (red == green).all()
        assert (green == blue).all()
        assert red.std() > 10.0
        assert np.abs(frame.streams["masks"].astype(int).sum(axis=0) - 255).max() <= 3
        # The same map and nearly the same pose: most pixels are equal.
        differs = np.abs(frame.streams["bev"].astype(int) - other.streams["bev"]) > 32
        assert differs.mean() < 0.05
    spec = DrivingEnvironment(world, TaskConfig(), [COUNTRY], ExpertConfig()).spec
    assert spec.format_version == 2


def test_the_view_from_above_shows_vehicles(server):
    wide = StreamCamera(kind="bev", height=128, width=128, metres_per_pixel=1.0, behind_share=0.5)
    with world_on(server, streams={"bev": wide}) as world:
        start = world.reset(scenario(1, weather="clear", npcs=6), 4)
        frames = [start.frame, *drive(world, 10)]
        assert not [kind for kind in kinds(server) if "camera" in kind]
    assert any(frame.streams["bev"][3:].any() for frame in frames)


def test_too_large_pictures_are_refused(server):
    with pytest.raises(ConfigError, match="servers render at most 4096 pixels"):
        settings(server, streams={"rgb": StreamCamera(width=1024, supersample=8)})
