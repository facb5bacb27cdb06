import math
import re

import numpy as np
import pytest

from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.raster import (
    ASPHALT,
    COARSE,
    EDGE,
    GAP,
    PAINT,
    PAINT_1,
    SHOULDER,
    TILE,
    VERGE,
    Raster,
)
from avtd3.collect.sim.camera import GroundWindow
from avtd3.store.errors import RoadError
from avtd3.tests.collect.maps.road_networks import (
    LANE_M,
    document,
    edge,
    road,
    straight_document,
    straight_network,
)

PIXEL_M = 0.1


@pytest.fixture(scope="module")
def straight():
    return Raster.paint(straight_network(), PIXEL_M)


def grounds(raster, y, start=20.0, length=18.0):
    return [raster.ground_at(start + x, y) for x in np.arange(0.0, length, 0.1)]


def test_ground_across_a_road_is_what_was_described(straight):
    assert set(grounds(straight, 1.5)) == {ASPHALT}
    assert set(grounds(straight, LANE_M)) == {PAINT}
    assert set(grounds(straight, -LANE_M)) == {PAINT}
    assert set(grounds(straight, LANE_M + 0.35)) == {SHOULDER}
    assert set(grounds(straight, LANE_M + 0.6)) == {EDGE}
    assert set(grounds(straight, LANE_M + 1.0)) == {VERGE}
    assert set(grounds(straight, -40.0)) == {VERGE}


def test_a_broken_line_is_dashed_once_though_both_lanes_describe_it(straight):
    middle = grounds(straight, 0.0)
    assert set(middle) == {GAP, PAINT}
    assert middle.count(PAINT) / len(middle) == pytest.approx(1 / 3, abs=0.02)
    changes = np.flatnonzero(np.diff(middle))
    assert np.diff(changes).min() * 0.1 == pytest.approx(3.0, abs=0.2)


def test_double_lines_leave_asphalt_between_them():
    raster = Raster.paint(straight_network(middle="solid solid"), PIXEL_M)
    assert set(grounds(raster, 0.0)) == {ASPHALT}
    assert set(grounds(raster, 0.15)) == set(grounds(raster, -0.15)) == {PAINT}


def test_far_outside_is_verge(straight):
    assert straight.ground_at(1e5, -1e5) == VERGE
    assert straight.direction_at(-1e5, 0.0) is None


def test_direction_is_that_of_the_lane(straight):
    assert straight.direction_at(50.0, 1.7) == pytest.approx(0.0, abs=0.03)
    assert straight.direction_at(50.0, -1.7) == pytest.approx(math.pi, abs=0.03)
    assert straight.direction_at(50.0, 6.0) is None


@pytest.fixture(scope="module")
def town():
    network = RoadNetwork.from_opendrive("town", generate_network("town", 3), is_trusted=True)
    return network, Raster.paint(network, PIXEL_M)


def test_no_lane_has_holes(town):
    network, raster = town
    for lane in network.lanes:
        for side in (-0.9, -0.5, 0.0, 0.5, 0.9):
            for x, y in edge(lane, side)[::3].tolist():
                assert raster.ground_at(x, y) >= ASPHALT


def test_lanes_have_their_directions_and_junctions_none(town):
    network, raster = town
    for lane in network.lanes:
        middle = len(lane.points) // 2
        found = raster.direction_at(*lane.points[middle].tolist())
        if lane.is_junction:
            assert found is None
        elif lane.length_m > 5.0:
            assert math.cos(found - lane.yaw_rad[middle]) > 0.99


def test_coarse_pixels_hold_the_share_of_paint(straight):
    fine = straight.fine >> 4
    coarse = straight.coarse >> 4
    blocks = fine.reshape(-1, TILE // COARSE, COARSE, TILE // COARSE, COARSE)
    painted = (blocks == PAINT).sum(axis=(2, 4))
    np.testing.assert_array_equal(coarse >= PAINT_1, painted > 0)
    quarters = coarse[painted > 0].astype(int) - GAP
    np.testing.assert_array_equal(quarters, np.ceil(painted[painted > 0] / 4))


def test_painting_again_gives_the_same_bytes(straight):
    again = Raster.paint(straight_network(), PIXEL_M)
    for name in ("table", "fine", "coarse", "direction"):
        np.testing.assert_array_equal(getattr(again, name), getattr(straight, name))
    layers = (straight.table, straight.fine, straight.coarse, straight.direction)
    assert sum(layer.nbytes for layer in layers) < 4e6
    with pytest.raises(ValueError, match="read-only"):
        straight.fine[0] = 0


def test_texture_varies_within_a_ground(straight):
    levels = straight.fine[straight.fine >> 4 == ASPHALT] & 15
    assert np.bincount(levels, minlength=16).min() > 0


def looked_up(window, corner, row, x, y, size_m):
    return window.codes[row + int((y - corner[1]) // size_m), int((x - corner[0]) // size_m)]


@pytest.mark.parametrize("place", [(0.0, 0.0), (60.3, 2.2), (199.0, -30.0), (-300.0, 500.0)])
def test_window_shows_the_raster_around_the_car(straight, place):
    window = GroundWindow()
    window.show(straight)
    window.follow(20.0, 0.0)
    window.follow(*place)
    fine_reach, coarse_reach = window.reach_m(PIXEL_M)
    rng = np.random.default_rng(1)
    for dx, dy in rng.uniform(-1.0, 1.0, (300, 2)) * 0.999:
        x, y = place[0] + fine_reach * dx, place[1] + fine_reach * dy
        assert looked_up(window, window.fine_m, 0, x, y, PIXEL_M) >> 4 == straight.ground_at(x, y)
        x, y = place[0] + coarse_reach * dx, place[1] + coarse_reach * dy
        code = looked_up(window, window.coarse_m, window.coarse_row, x, y, PIXEL_M * COARSE)
        slot_code = straight._pixel(straight.coarse, x, y, PIXEL_M * COARSE)
        assert code == slot_code or (abs(place[0]) + abs(place[1]) > 400 and code >> 4 == VERGE)


def test_window_stays_while_the_car_is_near_its_middle(straight):
    window = GroundWindow()
    window.show(straight)
    window.follow(50.0, 0.0)
    corner = window.fine_m
    window.follow(55.0, 2.0)
    assert window.fine_m == corner
    window.follow(90.0, 2.0)
    assert window.fine_m != corner


def test_networks_too_large_to_paint_are_refused_before_any_memory_is_taken():
    apart = document(road(1), road(2, x=900_000.0, y=900_000.0))
    for text, pixel_m, message in (
        (straight_document(30_000.0).replace('a="3.5"', 'a="45"'), 0.1, "km2 of lanes"),
        (apart, 0.1, "by 900 km"),
        (straight_document().replace('a="3.5"', 'a="60"'), 0.1, "60 m wide"),
    ):
        network = RoadNetwork.from_opendrive("large", text, is_trusted=True)
        with pytest.raises(RoadError, match=message):
            Raster.paint(network, pixel_m)


def test_wide_lanes_are_painted_completely():
    text = straight_document().replace('a="3.5"', 'a="45"')
    raster = Raster.paint(RoadNetwork.from_opendrive("wide", text, is_trusted=True), 0.1)
    for x in np.arange(1.0, 199.0, 3.0):
        for y in (-44.0, -30.0, -20.0, -11.0, -1.0, 2.0, 15.0, 33.0, 44.0):
            assert raster.ground_at(x, y) >= ASPHALT


@pytest.mark.parametrize("short_m", [0.005, 0.02, 0.1, 0.24])
def test_a_lane_section_too_short_for_a_lane_leaves_no_slit(short_m):
    [lanes] = re.findall("<laneSection.*</laneSection>", straight_document())
    starts = (0.0, 100.03, 100.03 + short_m)
    sections = "".join(lanes.replace('s="0"', f's="{start}"', 1) for start in starts)
    text = straight_document().replace(lanes, sections)
    raster = Raster.paint(RoadNetwork.from_opendrive("slit", text, is_trusted=True), PIXEL_M)
    for x in np.arange(99.0, 102.0, 0.03):
        for y in (-3.0, -1.0, 1.0, 2.5):
            assert raster.ground_at(x, y) >= ASPHALT
