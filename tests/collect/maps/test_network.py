import math
from pathlib import Path

import numpy as np
import pytest

from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.network import RoadNetwork
from avtd3.store.errors import RoadError
from avtd3.tests.collect.maps.road_networks import edge

carla = pytest.importorskip("carla")

DATA = Path(__file__).parents[2] / "data"


def marks(kind):
    return f'<roadMark sOffset="0" type="{kind}" weight="standard" color="standard" width="0.12"/>'


def lane(number, kind="driving", width=3.5, mark="solid", link=""):
    return (
        f'<lane id="{number}" type="{kind}" level="false"><link>{link}</link>'
        f'<width sOffset="0" a="{width}" b="0" c="0" d="0"/>{marks(mark)}</lane>'
    )


def section(at, left=(), right=(), middle="broken"):
    return (
        f'<laneSection s="{at}"><left>{"".join(left)}</left><center><lane id="0" type="none">'
        f"{marks(middle)}</lane></center><right>{''.join(right)}</right></laneSection>"
    )


def road(sections, number=1, x=0.0, length=100.0, rule="RHT", link="", shape="<line/>"):
    return (
        f'<road id="{number}" length="{length}" junction="-1" rule="{rule}"><link>{link}</link>'
        f'<planView><geometry s="0" x="{x}" y="0" hdg="0" length="{length}">{shape}</geometry>'
        f"</planView><lanes>{sections}</lanes></road>"
    )


def network(*roads):
    place = "<geoReference>+lat_0=0 +lon_0=0</geoReference>"
    xodr = f"<OpenDRIVE><header>{place}</header>{''.join(roads)}</OpenDRIVE>"
    return RoadNetwork.from_opendrive("test", xodr, is_trusted=True)


def by_id(found, lane_id):
    return next(lane for lane in found.lanes if lane.lane_id == lane_id)


def two_ways(rule="RHT"):
    return network(
        road(
            section(
                0,
                left=[lane(2, "shoulder", 1.5, "none"), lane(1)],
                right=[lane(-1), lane(-2, "sidewalk", 2.0, "none")],
            ),
            rule=rule,
        )
    )


def test_lanes_run_in_driving_direction_in_carlas_frame():
    found = two_ways()
    ours, theirs = by_id(found, -1), by_id(found, 1)
    np.testing.assert_allclose(ours.points[[0, -1]], [[0, 1.75], [100, 1.75]], atol=2e-3)
    np.testing.assert_allclose(theirs.points[[0, -1]], [[100, -1.75], [0, -1.75]], atol=2e-3)
    np.testing.assert_allclose(ours.yaw_rad, 0.0, atol=1e-6)
    np.testing.assert_allclose(np.cos(theirs.yaw_rad), -1.0, atol=1e-6)
    np.testing.assert_allclose(np.diff(ours.distance_m), 1.0, atol=1e-3)
    np.testing.assert_allclose(ours.width_m, 3.5)
    for each in (ours, theirs):
        assert (each.left_marking, each.right_marking) == ("broken", "solid")
        assert each.length_m == pytest.approx(100.0, abs=3e-3)
        assert (each.road_id, each.section_id, each.is_junction) == (1, 0, False)
        assert each.left_lane is None


def test_left_hand_traffic_drives_the_other_way():
    found = two_ways("LHT")
    np.testing.assert_allclose(by_id(found, -1).points[0], [100, 1.75], atol=2e-3)
    np.testing.assert_allclose(by_id(found, 1).points[0], [0, -1.75], atol=2e-3)
    assert by_id(found, 1).right_marking == "broken"


def test_shoulders_are_paved_and_sidewalks_are_not():
    found = two_ways()
    assert [strip.kind for strip in found.paved] == ["shoulder"]
    np.testing.assert_allclose(edge(found.paved[0], 1.0)[0], [100.0, -5.0], atol=2e-3)


def test_edges_are_half_a_width_beside_the_centre():
    ours = by_id(two_ways(), -1)
    np.testing.assert_allclose(edge(ours, -1.0)[:, 1], 0.0, atol=1e-5)
    np.testing.assert_allclose(edge(ours, 1.0)[:, 1], 3.5, atol=1e-5)


@pytest.mark.parametrize(("mark", "crossable"), [("broken", True), ("solid", False)])
def test_neighbours_are_lanes_of_the_same_direction_behind_a_broken_line(mark, crossable):
    found = network(
        road(
            section(
                0,
                left=[lane(2), lane(1, mark=mark)],
                right=[lane(-1, mark=mark), lane(-2)],
            )
        )
    )
    for inner, outer in ((-1, -2), (1, 2)):
        first, second = by_id(found, inner), by_id(found, outer)
        assert first.right_lane == (second.index if crossable else None)
        assert second.left_lane == (first.index if crossable else None)
        assert first.left_lane is None
        assert second.right_lane is None


def test_lanes_follow_over_sections_and_short_ones_are_stepped_over():
    on, back = '<successor id="-1"/>', '<predecessor id="-1"/>'
    found = network(
        road(
            section(0, right=[lane(-1, link=on)])
            + section(50, right=[lane(-1, link=on + back)])
            + section(50.1, right=[lane(-1, link=back)])
        )
    )
    assert [each.section_id for each in found.lanes] == [0, 2]
    assert found.lanes[0].successors == (1,)
    assert [(each.kind, round(each.length_m, 2)) for each in found.paved] == [("driving", 0.1)]


def test_roads_that_only_touch_are_joined_by_geometry():
    on = '<successor elementType="road" elementId="2" contactPoint="start"/>'
    for link in ("", on):
        found = network(
            road(section(0, right=[lane(-1)]), link=link),
            road(section(0, right=[lane(-1)]), number=2, x=100.0),
            road(section(0, right=[lane(-1)]), number=3, x=203.0),
        )
        assert [each.successors for each in found.lanes] == [(1,), (), ()]


def test_a_wrong_link_across_a_gap_is_not_followed():
    on = '<successor elementType="road" elementId="2" contactPoint="start"/>'
    found = network(
        road(section(0, right=[lane(-1, link='<successor id="-1"/>')]), link=on),
        road(section(0, right=[lane(-1)]), number=2, x=130.0),
    )
    assert found.lanes[0].successors == ()


def test_an_arc_keeps_its_heading_and_length():
    arc = '<arc curvature="0.02"/>'  # anticlockwise in OpenDRIVE, so yaw decreases in CARLA
    found = network(road(section(0, right=[lane(-1)]), shape=arc))
    only = found.lanes[0]
    assert only.length_m == pytest.approx(100.0 * 51.75 / 50.0, abs=0.02)
    assert only.yaw_rad[-1] - only.yaw_rad[0] == pytest.approx(-2.0, abs=1e-3)
    chord = np.unwrap(np.arctan2(*np.diff(only.points, axis=0).T[::-1]))
    np.testing.assert_allclose(
        chord, 0.5 * (only.yaw_rad[1:] + only.yaw_rad[:-1]), rtol=0, atol=2e-3
    )


def test_a_network_of_lanes_too_narrow_is_refused():
    with pytest.raises(RoadError, match="no driving lane"):
        network(road(section(0, right=[lane(-1, width=0.2)])))


def test_what_carla_refuses_is_a_road_error():
    late = lane(-1).replace('width sOffset="0"', 'width sOffset="20"')
    with pytest.raises(RoadError, match=r"rejected by carla.Map"):
        network(road(section(0, right=[late])))


def test_an_empty_text_is_refused():
    with pytest.raises(RoadError, match="empty"):
        RoadNetwork.from_opendrive("nothing", "")


def test_an_openstreetmap_extract_becomes_a_network():
    osm = (DATA / "hamlet.osm").read_text()
    xodr = carla.Osm2Odr.convert(osm, carla.Osm2OdrSettings())
    found = RoadNetwork.from_opendrive("hamlet", xodr, is_trusted=True)
    assert any(each.is_junction for each in found.lanes)
    assert max(len(each.successors) for each in found.lanes) >= 3
    points = np.concatenate([each.points for each in found.lanes])
    width, height = points.max(axis=0) - points.min(axis=0)
    assert 300.0 < width < 500.0
    assert 300.0 < height < 500.0


@pytest.mark.parametrize("kind", ["country", "loop", "town", "motorway"])
def test_linked_lanes_meet(kind):
    found = RoadNetwork.from_opendrive(kind, generate_network(kind, 4), is_trusted=True)
    for each in found.lanes:
        assert found.lanes[each.index] is each
        for number in each.successors:
            other = found.lanes[number]
            assert math.dist(each.points[-1], other.points[0]) < 0.05
            turn = (other.yaw_rad[0] - each.yaw_rad[-1] + math.pi) % (2 * math.pi) - math.pi
            assert abs(turn) < 0.02


def test_motorways_have_lanes_to_change_to():
    found = RoadNetwork.from_opendrive("motorway", generate_network("motorway", 1), is_trusted=True)
    for each in found.lanes:
        if each.right_lane is not None:
            other = found.lanes[each.right_lane]
            assert other.left_lane == each.index
            side = other.points[0] - each.points[0]
            right = -math.sin(each.yaw_rad[0]) * side[0] + math.cos(each.yaw_rad[0]) * side[1]
            assert right == pytest.approx(each.width_m[0], abs=0.01)
    assert sum(each.right_lane is not None for each in found.lanes) >= 2


def test_the_repr_is_short():
    assert repr(two_ways()) == "RoadNetwork('test', 2 lanes, 200 m of lane)"
