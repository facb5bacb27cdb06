"""Pictures of other frames or of another size are never used; a stalled camera is reported."""

import pytest

from avtd3.store.errors import WorldError, WorldLost
from avtd3.tests.collect.carla.worlds import LOOP, drive, kinds, lose, world_on


def test_a_camera_that_stalls_is_named(server):
    with world_on(server, sensor_timeout_s=1.5) as world:
        world.reset(LOOP, 2)
        server.fault(camera_stops_after_frames=2)
        lost = lose(world, 3)
        assert lost.reason == "sensor_stall"
        assert "its camera sent no picture of frame" in str(lost)
        assert "within 1.5 s (sensor_timeout_s)" in str(lost)
        # The server works: our actors are removed and its settings are restored.
        assert kinds(server) == []
        assert server.record()["settings"][0] is False
        with pytest.raises(WorldLost, match="sent no first picture"):
            world.reset(LOOP, 2)
        server.fault(camera_stops_after_frames=None)
        world.reset(LOOP, 2)


@pytest.mark.slow
def test_pictures_of_other_frames_are_not_used(server):
    with world_on(server, sensor_timeout_s=1.5) as world:
        world.reset(LOOP, 2)
        server.fault(camera_delay_ticks=1)
        lost = lose(world)
        assert lost.reason == "sensor_stall"
        server.fault(camera_delay_ticks=0)


@pytest.mark.slow
def test_pictures_that_are_lost_with_their_connection_are_a_stall(server):
    with world_on(server, sensor_timeout_s=1.5) as world:
        world.reset(LOOP, 2)
        server.fault(cut_sensors_after_ticks=1)
        assert lose(world, 2).reason == "sensor_stall"
        world.reset(LOOP, 2)


def test_a_picture_of_another_size_is_rejected(server):
    with world_on(server) as world:
        world.reset(LOOP, 2)
        server.fault(camera_rows_lost=1)
        with pytest.raises(WorldError, match="sent a picture of 64 x 47, expected 12288 bytes"):
            drive(world, 1)
        server.fault(camera_rows_lost=0)
