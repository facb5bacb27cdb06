"""Road files: generated, drawn, checked, and converted from OpenStreetMap, with the real carla."""

import functools
import io
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from avtd3.collect.maps import road_files
from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.road_files import RoadPicture, check_road, import_osm, random_routes
from avtd3.tests.collect.maps.road_networks import straight_document

SVG = "{http://www.w3.org/2000/svg}"
OSM = """<?xml version="1.0" encoding="UTF-8"?>
<osm version="0.6">
 <bounds minlat="48.0" minlon="11.0" maxlat="48.01" maxlon="11.01"/>
 <node id="1" lat="48.0010" lon="11.0010"/>
 <node id="2" lat="48.0030" lon="11.0030"/>
 <node id="3" lat="48.0050" lon="11.0030"/>
 <node id="4" lat="48.0030" lon="11.0060"/>
 <way id="10"><nd ref="1"/><nd ref="2"/><nd ref="3"/><tag k="highway" v="residential"/></way>
 <way id="11"><nd ref="2"/><nd ref="4"/><tag k="highway" v="residential"/></way>
</osm>
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def network():
    return RoadNetwork.from_opendrive("town-3", generate_network("town", 3), is_trusted=True)


@pytest.fixture
def road(avtd3):
    """Run a command of `avtd3 road`."""
    return functools.partial(avtd3, "road")


def test_a_generated_file_is_the_network_of_that_number(road, tmp_path):
    out = tmp_path / "roads.xodr"
    assert road("new", out, "--kind", "town", "--seed", 3)[0] == 0
    assert out.read_text() == generate_network("town", 3)
    code, _, error = road("new", out)
    assert code == 2
    assert "exists; choose another path" in error
    assert road("new", tmp_path / "b.xodr", "--kind", "village")[0] == 2


def test_a_check_counts_what_is_in_the_file(road, network, tmp_path):
    path = tmp_path / "roads.xodr"
    path.write_text(generate_network("town", 3))
    code, text, _ = road("check", path, "--json")
    found = json.loads(text)
    assert code == 0
    assert found["problem"] == ""
    root = ET.fromstring(path.read_text())
    assert found["roads"] == len(root.findall("road"))
    assert found["junctions"] == len(root.findall("junction")) == 7
    assert found["lanes"] == len(network.lanes) == found["lanes_in_file"]["driving"]
    assert found["lanes_m"] == pytest.approx(sum(lane.length_m for lane in network.lanes))
    assert found["route_m"] == pytest.approx(200.0, abs=0.1)
    assert not found["has_relief"]
    code, text, _ = road("check", path)
    assert "7 junctions" in text
    assert text.startswith(f"{path} can be driven\n")


def test_what_is_ignored_is_said(tmp_path):
    path = tmp_path / "roads.xodr"
    hill = '<elevationProfile><elevation s="0" a="0" b="0.01" c="0" d="0"/></elevationProfile>'
    tree = ET.ElementTree(ET.fromstring(generate_network("country", 0)))
    (road, *_) = tree.iter("road")
    for old in road.findall("elevationProfile"):
        road.remove(old)
    road.insert(2, ET.fromstring(hill))
    tree.write(path)
    report = check_road(path)
    assert report.has_relief
    assert "ignored by the built-in simulator: hills and banking" in report.summary()


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "is empty"), ("<a/>", "is XML of <a>"), ("<OpenDRIVE/>", "expected")],
)
def test_a_file_that_cannot_be_driven_is_the_answer_no(road, tmp_path, text, says):
    path = tmp_path / "roads.xodr"
    path.write_text(text)
    code, out, _ = road("check", path)
    assert code == 1
    assert out.startswith(f"{path} cannot be used:\n")
    assert says in out
    code, out, _ = road("show", path, tmp_path / "a.svg")
    assert (code, out) == (2, "")


def test_a_drawing_has_every_lane_and_route(network):
    routes = random_routes(network, 2, 100.0, seed=1)
    root = ET.fromstring(RoadPicture(network, routes).svg())
    fills = [polygon.get("fill") for polygon in root.iter(f"{SVG}polygon")]
    lanes = sum(not lane.is_junction for lane in network.lanes)
    assert fills.count("#4a525c") == lanes + 1  # with the legend
    assert fills.count("#6b5c78") == len(network.lanes) - lanes + 1
    lines = [line.get("stroke") for line in root.iter(f"{SVG}polyline")]
    assert {"#2f80ed", "#e8590c"} <= set(lines)
    texts = " ".join(text.text or "" for text in root.iter(f"{SVG}text"))
    for words in ("town-3: 70 lanes, 3.93 km of lane", "lane in a junction", "route 2, 100 m"):
        assert words in texts
    assert texts.endswith("20 m")


def test_a_route_is_where_the_drawing_shows_it(network):
    """East is right and south is down, as in CARLA's frame."""
    (route,) = random_routes(network, 1, 100.0, seed=1)
    picture = RoadPicture(network, [route])
    data = np.asarray(Image.open(io.BytesIO(picture.png())))
    assert data.shape == (picture.height, picture.width, 3)
    everything = np.concatenate([lane.points for lane in network.lanes])
    low = everything.min(axis=0) - 12.0
    scale = 1600 / float((everything.max(axis=0) + 12.0 - low).max())
    blue = np.array([0x2F, 0x80, 0xED])
    for point in route.points[5:-5:10]:
        x, y = ((point - low) * scale).astype(int)
        near = data[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).astype(int)
        assert np.abs(near - blue).sum(axis=1).min() < 60


def test_show_writes_the_picture_that_its_name_says(road, tmp_path):
    path = tmp_path / "roads.xodr"
    path.write_text(generate_network("motorway", 1))
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        assert road("show", path, tmp_path / name, "--routes", 0)[0] == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    code, _, error = road("show", path, tmp_path / "a.gif")
    assert code == 2
    assert ".svg or .png" in error


def test_a_network_that_cannot_be_painted_cannot_be_driven(tmp_path):
    (tmp_path / "wide.xodr").write_text(straight_document().replace('a="3.5"', 'a="60"'))
    assert "60 m wide" in check_road(tmp_path / "wide.xodr").problem


def test_an_openstreetmap_extract_becomes_roads(road, tmp_path):
    (tmp_path / "x.osm").write_text(OSM)
    code, text, error = road("import", tmp_path / "x.osm", tmp_path / "x.xodr", "--json")
    assert code == 0, error
    found = json.loads(text)
    assert (found["junctions"], found["lanes_in_file"]["driving"]) == (1, 12)
    assert found["route_m"] == pytest.approx(200.0, abs=0.1)
    lanes = RoadNetwork.from_opendrive("x", (tmp_path / "x.xodr").read_text()).lanes
    assert {round(float(lane.width_m[0]), 2) for lane in lanes if not lane.is_junction} == {3.35}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<osm version='0.6'/>", "No nodes loaded"),
        ("<gpx/>", "expected <osm>"),
        ("junk", "not valid XML"),
        ('<!DOCTYPE osm [<!ENTITY a "b">]><osm>&a;</osm>', "DOCTYPE"),
    ],
)
def test_a_bad_extract_is_one_error(road, tmp_path, text, says):
    (tmp_path / "x.osm").write_text(text)
    code, out, error = road("import", tmp_path / "x.osm", tmp_path / "x.xodr")
    assert (code, out) == (2, "")
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.xodr").exists()


def test_a_converter_that_crashes_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "x.osm").write_text(OSM)
    monkeypatch.setattr(road_files, "_MODULE", "avtd3.tests.collect.maps.crashes")
    with pytest.raises(ValueError, match=r"ends carla\.Osm2Odr with SIGSEGV"):
        import_osm(tmp_path / "x.osm", tmp_path / "x.xodr", 3.0)
