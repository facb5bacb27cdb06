"""Streams of the built-in simulator: what their planes show, and that they are drawn the same."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest

from avtd3.collect.maps.raster import Raster
from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.sim.camera import Camera
from avtd3.collect.sim.streams import PLANES, StreamCamera, open_drawer, route_line, route_steps
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.world_record import ANGLE_STEPS_PER_RAD, POSITION_STEPS_PER_M
from avtd3.tests.collect.maps.road_networks import straight_network
from avtd3.tests.collect.plain import STEADY
from avtd3.tests.collect.sim.test_camera import PLAIN

SMALL: dict[str, Any] = {"height": 40, "width": 48}
STREAMS = {
    "gray": StreamCamera(**SMALL),
    "rgb": StreamCamera(kind="rgb", **SMALL),
    "semantic": StreamCamera(kind="semantic", **SMALL),
    "bev": StreamCamera(kind="bev", height=32, width=24, stack=1, stride=1),
}
ROUTE = (0.0 + 1.75j, 58.0 + 1.75j, 58.0 + 20.0j)
"""Points of a route along the road and off to the right."""
STILL = {**dataclasses.asdict(STEADY), **SMALL}


@pytest.fixture(scope="module")
def raster():
    """A straight road along x with lines at y = 0 and y = 3.5."""
    return Raster.paint(straight_network(middle="solid"), 0.1)


def drawn(raster, kind, car, vehicles=(), **settings):
    """A frame; vehicles are x, y and yaw, all of 4 m by 2 m."""
    drawer = open_drawer(StreamCamera(kind=kind, **{**STILL, **settings}))
    drawer.reset(raster, PLAIN, np.random.default_rng(0), np.array(ROUTE))
    steps = (POSITION_STEPS_PER_M, POSITION_STEPS_PER_M, ANGLE_STEPS_PER_RAD)
    poses = np.rint(np.array(vehicles, float).reshape(-1, 3) * steps).astype(np.int64)
    shapes = [[4.0, 2.0, 1.5, 0.4321]] * len(poses)
    return drawer.draw(car, poses, shapes, range(len(poses)))


@pytest.mark.parametrize("kind", PLANES)
def test_frames_have_the_shape_of_their_stream(raster, kind):
    frame = drawn(raster, kind, (50.0, 1.75, 0.0), [(60.0, 1.75, 0.0)])
    assert frame.dtype == np.uint8
    assert frame.shape == StreamCamera(kind=kind, **STILL).image.frame_shape


def test_colour_has_the_brightness_of_gray(raster):
    car, vehicles = (50.0, 1.75, 0.0), [(62.0, 1.75, 0.3)]
    gray = drawn(raster, "gray", car, vehicles)[0].astype(float)
    rgb = drawn(raster, "rgb", car, vehicles).astype(float)
    luma = np.tensordot((0.299, 0.587, 0.114), rgb, axes=1)
    unclipped = rgb.max(axis=0) < 255
    assert np.abs(luma - gray)[unclipped].max() < 3.0
    assert np.ptp(rgb, axis=0).max() > 40.0, "grass, sky and the vehicle have colours"


def test_a_gray_stream_is_the_camera(raster):
    camera = Camera(StreamCamera(**STILL))
    camera.reset(raster, PLAIN, np.random.default_rng(0))
    expected = camera.render(50.0, 1.75, 0.1, [])
    np.testing.assert_array_equal(drawn(raster, "gray", (50.0, 1.75, 0.1)), expected)


def test_masks_of_the_front_camera_cover_every_pixel_once(raster):
    masks = drawn(raster, "semantic", (50.0, 1.75, 0.0), [(58.0, 1.75, 0.0)]).astype(int)
    assert np.abs(masks.sum(axis=0) - 255).max() <= 3  # each share is rounded
    road, marking, verge, sky, vehicle = masks
    assert sky[0].min() == 255
    assert sky[-1].max() == 0
    assert vehicle[:, 24].max() == 255
    assert not road[vehicle == 255].any()
    assert marking[-10:].max() > 100
    assert verge[-1].min() == 0
    without = drawn(raster, "semantic", (50.0, 1.75, 0.0))
    assert not without[4].any()


@pytest.mark.parametrize("yaw", [0.0, 0.4, -1.0, 3.0])
def test_the_view_from_above_is_where_it_projects(raster, yaw):
    """Every pixel against an independent look-up of its centre."""
    side, height, width = 0.25, 48, 40
    car = (50.0, 1.2, yaw)
    settings = {"height": height, "width": width, "metres_per_pixel": side, "supersample": 1}
    road, marking, verge, *vehicles = drawn(raster, "bev", car, **settings)
    assert not np.any(vehicles)
    for row in range(height):
        for column in range(width):
            ahead, right = (0.75 * height - row - 0.5) * side, (column + 0.5 - width / 2) * side
            x = car[0] + ahead * np.cos(yaw) - right * np.sin(yaw)
            y = car[1] + ahead * np.sin(yaw) + right * np.cos(yaw)
            kind = raster.ground_at(x, y)
            painted = max(0, kind - 4) * 255 / 4
            on_verge = 255 if kind in (0, 1) else 0
            found = (int(road[row, column]), int(marking[row, column]), int(verge[row, column]))
            np.testing.assert_allclose(found, (255 - painted - on_verge, painted, on_verge), atol=1)


def test_vehicles_are_whole_pixels_above_the_ground(raster):
    settings = {"height": 64, "width": 64, "metres_per_pixel": 0.25}
    along, across = (56.0, 1.75, 0.0), (50.0, -4.0, np.pi)
    masks = drawn(raster, "bev", (50.0, 1.75, 0.0), [along, across], **settings)
    assert masks[3].astype(bool).sum() == 16 * 8, "4 m by 2 m at 0.25 m"
    rows, columns = np.nonzero(masks[3])
    assert (rows.min(), rows.max()) == (48 - 32, 48 - 17), "4 to 8 m ahead"
    assert (columns.min(), columns.max()) == (28, 35)
    assert masks[4].astype(bool).sum() == 16 * 8, "the oncoming one"
    assert np.nonzero(masks[4])[1].max() < 28
    assert not masks[:3, masks[3] == 255].any()


@pytest.mark.parametrize(("yaw", "side"), [(0.0, 0.25), (0.7, 0.25), (-2.0, 0.5), (0.3, 2.0)])
def test_the_route_is_every_pixel_near_it(raster, yaw, side):
    car, vehicle = (50.0, 1.2, yaw), (54.0, 1.75, 0.0)
    settings = {"height": 48, "width": 40, "metres_per_pixel": side}
    *others, route = drawn(raster, "bev_route", car, [vehicle], **settings)
    np.testing.assert_array_equal(others, drawn(raster, "bev", car, [vehicle], **settings))
    rows, columns = np.mgrid[:48, :40]
    at = (0.75 * 48 - rows - 0.5) * side + 1j * (columns + 0.5 - 20) * side
    at = at * np.exp(1j * yaw) + complex(*car[:2])
    away = np.minimum(*(from_segment(at, *ends) for ends in itertools.pairwise(ROUTE)))
    half = max(1.0, side / 2)
    assert set(np.unique(route)) == {0, 255}
    assert (route[away < half - 0.02] == 255).all(), "also under the vehicle"
    assert not route[away > half].any()


def from_segment(at, start, end):
    """Return the distance of points from a segment."""
    way = end - start
    along = np.clip(((at - start) / way).real, 0.0, 1.0)
    return np.abs(at - start - along * way)


def test_a_missing_route_is_reported(raster):
    drawer = open_drawer(StreamCamera(kind="bev_route"))
    with pytest.raises(SpecError, match="the route is not known"):
        drawer.reset(raster, PLAIN, np.random.default_rng(0), None)


def test_routes_are_stored_in_millimetres():
    rng = np.random.default_rng(0)
    points = np.cumsum(rng.normal(0.7, 0.4, (300, 2)), axis=0) + 1e4
    stored = route_steps(points)
    assert stored is not None
    assert np.abs(stored)[:, 2:].max() < 5000, "small numbers"
    line = route_line(json.loads(json.dumps(stored)))
    assert np.abs(line - points[:, 0] - 1j * points[:, 1]).max() < 1e-3
    assert route_steps(np.zeros((20_001, 2))) is None


def test_the_view_from_above_may_reach_beyond_the_fine_ground(raster):
    settings = {"height": 100, "width": 16, "metres_per_pixel": 1.0, "supersample": 1}
    road = drawn(raster, "bev", (100.0, 1.75, 0.0), **settings)[0]
    assert road[:, 8].min() > 0, "the road goes on, 75 m ahead"
    assert road[:, 0].max() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lidar"}, "expected one of gray, rgb, semantic, bev, bev_route"),
        ({"stack": 0}, "camera.stack"),
        ({"stride": 0}, "camera.stride"),
        ({"metres_per_pixel": 0.0}, "camera.metres_per_pixel"),
        ({"behind_share": 1.5}, "camera.behind_share"),
    ],
)
def test_impossible_streams_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        StreamCamera(**settings)


def test_the_world_returns_every_stream_and_drives_the_same():
    plain = RoadWorld(RoadConfig(camera=STREAMS["gray"]))
    world = RoadWorld(RoadConfig(streams=STREAMS))
    assert {name: image.frame_shape for name, image in world.streams.items()} == {
        "bev": (5, 32, 24),
        "gray": (1, 40, 48),
        "rgb": (3, 40, 48),
        "semantic": (5, 40, 48),
    }
    frames = [each.reset(scenario(4), seed=3).frame for each in (plain, world)]
    for _ in range(5):
        assert frames[0].vehicle == frames[1].vehicle
        assert frames[1].streams is not None
        np.testing.assert_array_equal(frames[0].image, frames[1].streams["gray"])
        assert frames[0].streams is None
        frames = [each.step(np.array([0.1, 0.5], np.float32)) for each in (plain, world)]
