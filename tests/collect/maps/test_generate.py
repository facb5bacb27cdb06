import itertools
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.collect.maps.generate import (
    NETWORK_KINDS,
    Piece,
    corner,
    generate_network,
    rounded,
    turns_of,
    unit_tangent,
)
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.opendrive import flatten
from avtd3.store.errors import ConfigError

pytest.importorskip("carla")

SEEDS = range(8)
IRREGULAR = ("byroad", "streets")
CLOSED = ("loop", "town", "streets")


def built(kind: str, seed: int) -> RoadNetwork:
    return RoadNetwork.from_opendrive(
        f"{kind}-{seed}", generate_network(kind, seed), is_trusted=True
    )


def chord_error(points, yaw) -> float:
    """Return the largest difference between given headings and those of the chords."""
    chord = np.arctan2(*np.diff(points, axis=0).T[::-1])
    off = chord - 0.5 * (yaw[1:] + yaw[:-1])
    return float(np.abs((off + math.pi) % (2 * math.pi) - math.pi).max())


@pytest.mark.parametrize("kind", NETWORK_KINDS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_network(kind):
    text = generate_network(kind, 7)
    assert text == generate_network(kind, 7)
    assert text != generate_network(kind, 8)
    assert 'date="2000-01-01T00:00:00"' in text
    assert flatten(text) == (text, False)


@pytest.mark.parametrize("kind", NETWORK_KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_networks_are_drivable(kind, seed):
    found = built(kind, seed)
    assert sum(lane.length_m for lane in found.lanes) > 800.0
    narrowest, widest, bend, turn = (
        (2.7, 4.1, 4.8, 4.2) if kind in IRREGULAR else (2.9, 3.8, 9.0, 5.0)
    )
    for lane in found.lanes:
        assert chord_error(lane.points, lane.yaw_rad) < (0.05 if kind in IRREGULAR else 0.02)
        assert lane.width_m.min() >= narrowest - 1e-6
        assert lane.width_m.max() <= widest + 1e-6
        curvature = np.diff(lane.yaw_rad) / np.diff(lane.distance_m)
        assert np.abs(curvature).max() < 1.0 / (turn if lane.is_junction else bend)
    continued = {number for lane in found.lanes for number in lane.successors}
    if kind in CLOSED:
        assert all(lane.successors for lane in found.lanes)
        assert len(continued) == len(found.lanes)
    else:
        ends = [lane for lane in found.lanes if not lane.successors]
        assert len(ends) == len(found.lanes) - len(continued)
        assert len(ends) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORK_KINDS)
def test_many_seeds_give_networks_without_gaps(kind):
    for seed in range(100, 130):
        found = built(kind, seed)
        ends = sum(not lane.successors for lane in found.lanes)
        assert ends == 0 or kind not in CLOSED
        for lane in found.lanes:
            for number in lane.successors:
                assert math.dist(lane.points[-1], found.lanes[number].points[0]) < 0.05


@pytest.mark.parametrize("kind", ["town", "streets"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_town_junction_leads_everywhere_but_back(kind, seed):
    root = ET.fromstring(generate_network(kind, seed))
    junctions = root.findall("junction")
    assert len(junctions) >= 2
    arms = []
    for junction in junctions:
        incoming = {c.get("incomingRoad") for c in junction.findall("connection")}
        assert len(junction.findall("connection")) == len(incoming) * (len(incoming) - 1)
        arms.append(len(incoming))
    assert set(arms) <= {3, 4}
    found = built(kind, seed)
    for lane in found.lanes:
        # A street has several lane sections; the last one ends at the junction.
        if not lane.is_junction and any(found.lanes[n].is_junction for n in lane.successors):
            assert all(found.lanes[n].is_junction for n in lane.successors)
            assert len(lane.successors) in (2, 3)


def test_streets_have_tight_turns_several_widths_and_missing_markings():
    networks = [built("streets", seed) for seed in SEEDS]
    radii, marks = [], set()
    for found in networks:
        turns = [lane for lane in found.lanes if lane.is_junction]
        curvature = [np.diff(lane.yaw_rad) / np.diff(lane.distance_m) for lane in turns]
        radii.append(1.0 / max(float(np.abs(values).max()) for values in curvature))
        # Lanes across a junction lead from one width to another without a step.
        for lane in turns:
            after = found.lanes[lane.successors[0]]
            assert lane.width_m[-1] == pytest.approx(after.width_m[0], abs=1e-3)
        marks |= {lane.left_marking for lane in found.lanes if not lane.is_junction}
    assert min(radii) < 5.5
    assert marks == {"broken", "none", "solid", "solid_solid"}
    widths = [{round(float(lane.width_m[0]), 2) for lane in found.lanes} for found in networks]
    assert sum(len(found) > 1 for found in widths) > 4
    assert min(map(min, widths)) < 3.0
    assert max(map(max, widths)) > 3.8


@pytest.mark.parametrize("kind", ["country", "loop", "byroad"])
@pytest.mark.parametrize("seed", SEEDS)
def test_roads_keep_away_from_themselves(kind, seed):
    for lane in built(kind, seed).lanes:
        points = lane.points[::3]
        gap = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
        along = np.abs(np.subtract.outer(lane.distance_m[::3], lane.distance_m[::3]))
        assert gap[along > 80.0].min(initial=math.inf) > (6.0 if kind == "byroad" else 12.0)


def test_widths_shoulders_and_markings_vary_with_the_seed():
    texts = [generate_network("country", seed) for seed in range(12)]
    widths = {re.findall(r'<width a="([0-9.]+)"', text)[0] for text in texts}
    assert len(widths) > 6
    assert 0 < sum("shoulder" in text for text in texts) < len(texts)
    marks = {lane.left_marking for seed in range(3) for lane in built("country", seed).lanes}
    assert marks == {"broken", "solid", "solid_solid"}


@pytest.mark.parametrize("kind", ["village", ""])
def test_an_unknown_kind_names_the_known_ones(kind):
    with pytest.raises(ConfigError, match="country, loop, town, motorway"):
        generate_network(kind, 0)


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="at least 0"):
        generate_network("loop", -1)


def test_piece_ends_are_those_of_lines_and_arcs():
    line = Piece(x_m=1.0, y_m=2.0, heading_rad=math.pi / 2, length_m=3.0)
    assert line.end() == pytest.approx((1.0, 5.0, math.pi / 2))
    arc = Piece(
        x_m=0.0,
        y_m=0.0,
        heading_rad=0.0,
        length_m=5.0 * math.pi,
        curvature_start=0.1,
        curvature_end=0.1,
    )
    assert arc.end() == pytest.approx((10.0, 10.0, math.pi / 2))


@given(st.floats(0.01, 2.2), st.floats(5.0, 300.0), st.floats(0.05, 0.95))
def test_corners_end_on_the_other_leg_as_far_from_the_vertex(turn, radius, share):
    tangent = radius * unit_tangent(turn, share)
    end = corner((0.0, 0.0, 0.0), turn, radius, share)[-1].end()
    expected = (
        tangent * (1.0 + math.cos(turn)),
        tangent * math.sin(turn),
        turn,
    )
    assert end == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(60.0, 200.0), st.floats(-1.8, 1.8)), min_size=2, max_size=8),
    st.floats(8.0, 12.0),
)
def test_rounded_roads_are_continuous_and_end_at_the_last_vertex(legs, radius):
    heading = np.cumsum([turn for _, turn in legs])
    steps = np.array([length for length, _ in legs]) * np.stack([np.cos(heading), np.sin(heading)])
    vertices = np.concatenate([[[0.0, 0.0]], np.cumsum(steps.T, axis=0)])
    pieces = rounded(vertices, [radius] * (len(vertices) - 2), 0.5)
    assert len(turns_of(vertices)) == len(vertices) - 2
    for before, after in itertools.pairwise(pieces):
        x, y, heading_rad = before.end()
        assert (x, y) == pytest.approx((after.x_m, after.y_m), abs=1e-6)
        assert math.cos(heading_rad - after.heading_rad) == pytest.approx(1.0, abs=1e-6)
        assert before.curvature_end == pytest.approx(after.curvature_start)
    assert pieces[-1].end()[:2] == pytest.approx(tuple(vertices[-1]), abs=1e-6)
