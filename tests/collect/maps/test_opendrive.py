import itertools
import os
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from avtd3.collect.maps import opendrive
from avtd3.collect.maps.opendrive import (
    MAX_DEPTH,
    MAX_LANE_LENGTH_M,
    MAX_LANES_ABREAST,
    MAX_ROADS,
    flatten,
    lane_sections,
    lanes_of,
    parse_opendrive,
    read_opendrive,
)
from avtd3.store.errors import RoadError

PLAN = '<geometry s="0" x="0" y="0" hdg="0" length="50"><line/></geometry>'


def lane(number=-1, link="", kind="driving"):
    return (
        f'<lane id="{number}" type="{kind}" level="false"><link>{link}</link>'
        f'<width sOffset="0" a="3.5" b="0" c="0" d="0"/></lane>'
    )


def section(at, *lanes):
    sides: dict[str, list[str]] = {"left": [], "right": []}
    for text in lanes:
        sides["right" if 'id="-' in text else "left"].append(text)
    return (
        f'<laneSection s="{at}"><left>{"".join(sides["left"])}</left>'
        f'<center><lane id="0" type="none"/></center>'
        f"<right>{''.join(sides['right'])}</right></laneSection>"
    )


def road(number=1, sections=None, link="", plan=PLAN, length="50", more=""):
    sections = section(0, lane()) if sections is None else sections
    return (
        f'<road id="{number}" length="{length}" junction="-1" {more}><link>{link}</link>'
        f"<planView>{plan}</planView><lanes>{sections}</lanes></road>"
    )


def document(*roads, more=""):
    return f'<OpenDRIVE><header revMajor="1" revMinor="4"/>{"".join(roads)}{more}</OpenDRIVE>'


def to_road(number):
    return f'<successor elementType="road" elementId="{number}" contactPoint="start"/>'


def test_a_sound_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "fine.xodr"
    path.write_text(document(road()))
    assert read_opendrive(path) == document(road())
    assert read_opendrive(str(path)) == document(road())


def test_declared_encodings_and_byte_order_marks_are_read(tmp_path):
    text = document(road(more='name="Göteborg"'))
    path = tmp_path / "old.xodr"
    path.write_bytes(f'<?xml version="1.0" encoding="ISO-8859-1"?>{text}'.encode("latin-1"))
    assert "Göteborg" in read_opendrive(path)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_opendrive(path) == text


def test_files_that_are_none(tmp_path):
    with pytest.raises(RoadError, match="does not exist"):
        read_opendrive(tmp_path / "missing.xodr")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null", "/dev/zero"):
        with pytest.raises(RoadError, match="regular file"):
            read_opendrive(path)
    with pytest.raises(RoadError, match="cannot be read"):
        read_opendrive(tmp_path / ("x" * 300))


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "big.xodr"
    path.write_text(document(road()))
    monkeypatch.setattr(opendrive, "MAX_FILE_BYTES", 100)
    with pytest.raises(RoadError, match="at most 100"):
        read_opendrive(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"hello <", "not valid XML"),
        (b"\x00\x01\x02", "not valid XML"),
        (b"\xff\xfe<OpenDRIVE>", "not utf-16"),
        (b"\xff<OpenDRIVE>", "not utf-8"),
        (b'<?xml version="1.0" encoding="klingon"?><OpenDRIVE/>', "klingon"),
        (b"<html/>", "expected <OpenDRIVE>"),
        (b"<OpenDRIVE><header/></OpenDRIVE>", "no driving lane"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><OpenDRIVE/>', "DOCTYPE"),
        (document(road())[:200].encode(), "not valid XML"),
    ],
)
def test_bytes_that_are_no_opendrive(tmp_path, data, message):
    path = tmp_path / "bad.xodr"
    path.write_bytes(data)
    with pytest.raises(RoadError, match=message) as caught:
        read_opendrive(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


SPIRAL = '<spiral curvStart="{}" curvEnd="0"/>'


@pytest.mark.parametrize(
    ("xodr", "message"),
    [
        # With each of these, carla.Map 0.9.16 crashed, hung or returned wrong lanes.
        (document(road(plan="")), "no planView"),
        (document(road(plan=PLAN.replace("<line/>", ""))), "expected one of line"),
        (document(road(plan=PLAN.replace("line", "foo"))), "expected one of line"),
        (document(road(plan=PLAN.replace('s="0"', 's="10"', 1))), "starts at 10"),
        (document(road(plan=PLAN.replace('x="0"', 'x="nan"'))), "finite"),
        (document(road(plan=PLAN.replace("<line/>", SPIRAL.format("x")))), "finite"),
        (document(road(plan=PLAN.replace('"50"', '"5000"'))), "longer than"),
        (document(road(length="1e300", plan=PLAN)), "finite"),
        (document(road(length="1e8", plan=PLAN)), "500 km"),
        (document(road(length="inf")), "finite"),
        (document(road(length="-5")), "above 0"),
        (document(road(length="abc")), "finite"),
        (document(road(number="abc")), "whole number"),
        (document(road(number="99999999999")), "whole number"),
        (document(road(), road()), "twice"),
        (document(road(sections=section(60, lane()))), "60"),
        (document(road(sections=section(-1, lane()))), "lane section"),
        (document(road(sections=section(0, lane()) * 2)), "same start"),
        (document(road(sections=section(0, lane(-1), lane(-3)))), "on each side"),
        (document(road(sections=section(0, lane(-1), lane(-1)))), "on each side"),
        (document(road(sections=section(0, lane("x")))), "expected an integer"),
        (document(road(sections=section(0, lane()).replace("center", "c"))), "centre lane"),
        (document(road(sections=section(0, lane().replace("3.5", "inf")))), "finite"),
        (document(road(sections=section(0, lane(kind="sidewalk")))), "no driving lane"),
        (
            document(
                road(sections=section(0, lane(link='<successor id="-4"/>')) + section(25, lane()))
            ),
            "does not exist",
        ),
        (
            document(
                road(sections=section(0, lane(link='<successor id="-4"/>')), link=to_road(2)),
                road(number=2),
            ),
            "does not exist",
        ),
        (
            document(
                road(),
                more='<junction id="9"><connection connectingRoad="7"/></junction>',
            ),
            "road '7' in junction '9'",
        ),
    ],
)
def test_documents_that_carla_does_not_survive(xodr, message):
    with pytest.raises(RoadError, match=message):
        parse_opendrive(xodr, "here")


@pytest.mark.parametrize(
    "link", ['<successor id="-1"/>', '<successor id="0"/>', '<predecessor id="-9"/>', ""]
)
def test_links_that_carla_does_survive(link):
    parse_opendrive(document(road(sections=section(0, lane(link=link)), link=to_road(1))), "here")


def test_a_left_hand_road_is_followed_the_other_way():
    linked = section(0, lane()) + section(25, lane(link='<predecessor id="-4"/>'))
    parse_opendrive(document(road(sections=linked)), "here")
    with pytest.raises(RoadError, match="does not exist"):
        parse_opendrive(document(road(sections=linked, more='rule="LHT"')), "here")


def test_links_to_missing_roads_and_to_road_ends_are_accepted():
    back = '<successor elementType="road" elementId="{}" contactPoint="end"/>'
    for number in (1, 77):
        parse_opendrive(document(road(link=back.format(number))), "here")


def test_namespaces_are_removed():
    text = document(road()).replace("<OpenDRIVE>", '<OpenDRIVE xmlns="http://example.org/1.8">')
    assert parse_opendrive(text, "here").find("road/planView/geometry/line") is not None


def test_lane_sections_have_ends_in_order():
    sections = section(30, lane()) + section(0, lane(1), lane(-1))
    root = parse_opendrive(document(road(sections=sections)), "here")
    found = lane_sections(next(root.iter("road")))
    assert [(start, end) for start, end, _ in found] == [(0.0, 30.0), (30.0, 50.0)]
    assert [number for number, _ in lanes_of(found[0][2])] == [1, -1]


HILL = (
    '<elevationProfile><elevation s="0" a="5" b="0.1" c="0" d="0"/></elevationProfile>'
    '<lateralProfile><superelevation s="0" a="0.05" b="0" c="0" d="0"/></lateralProfile>'
)


def test_flatten_removes_relief_and_says_so():
    hilly = document(road()).replace("<lanes>", HILL + "<lanes>")
    flat, changed = flatten(hilly)
    assert changed
    assert "elevation " not in flat
    assert "<superelevation" not in flat
    assert flatten(flat) == (flat, False)


def test_flatten_leaves_a_flat_document_alone():
    zero = document(road()).replace("<lanes>", HILL + "<lanes>")
    for number in ('"5"', '"0.1"', '"0.05"'):
        zero = zero.replace(number, '"0"')
    assert flatten(zero) == (zero, False)
    assert flatten(document(road())) == (document(road()), False)


@pytest.mark.parametrize(
    "encoding",
    ["undefined", "punycode", "idna", "zlib", "utf-7", "unicode_escape", "rot13", "hex", "klingon"],
)
def test_encodings_that_are_not_those_of_text_are_refused(tmp_path, encoding):
    path = tmp_path / "odd.xodr"
    declared = f'<?xml version="1.0" encoding="{encoding}"?>'
    path.write_bytes(declared.encode() + document(road()).encode())
    with pytest.raises(RoadError, match=f"{encoding}.*save it as utf-8"):
        read_opendrive(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252", "gbk", "iso8859-15"])
def test_encodings_of_text_are_read(tmp_path, encoding):
    path = tmp_path / "text.xodr"
    name = "utf-8" if encoding == "utf-8-sig" else encoding
    text = f'<?xml version="1.0" encoding="{name}"?>{document(road())}'
    path.write_bytes(text.encode(encoding))
    assert read_opendrive(path) == text


NUMBERS = (
    "0x1f",
    "inf",
    "-Infinity",
    "nan",
    "1_000",
    "1,5",
    "1e10",
    "-2e300",
    "1e999",
    "٣",
    "1 2",
    "",
)
PLACES = (
    'length="{}" junction="-1" ',
    '<geometry s="{}" x="0" y="0" hdg="0" length="50"><line/></geometry>',
    '<geometry s="0" x="{}" y="0" hdg="0" length="50"><line/></geometry>',
    '<geometry s="0" x="0" y="0" hdg="{}" length="50"><line/></geometry>',
    '<geometry s="0" x="0" y="0" hdg="0" length="50"><arc curvature="{}"/></geometry>',
    '<geometry s="0" x="0" y="0" hdg="0" length="50"><paramPoly3 dV="{}"/></geometry>',
    '<width sOffset="{}" a="3.5" b="0" c="0" d="0"/>',
    '<width sOffset="0" a="{}" b="0" c="0" d="0"/>',
    '<border sOffset="0" a="3.5" b="{}"/>',
    '<laneSection s="{}">',
    '<lanes><laneOffset s="0" a="{}"/>',
    '<elevationProfile><elevation s="0" c="{}"/></elevationProfile>',
    '<lateralProfile><shape s="0" t="{}"/></lateralProfile>',
)


@pytest.mark.parametrize(("number", "place"), list(itertools.product(NUMBERS, PLACES)))
def test_numbers_that_are_not_those_of_xml_are_refused_wherever_they_are(number, place):
    """Python and carla.Map read each of them differently."""
    plain = document(road())
    put = place.format(number)
    for old in (
        'length="50" junction="-1" ',
        PLAN,
        '<width sOffset="0" a="3.5" b="0" c="0" d="0"/>',
        '<laneSection s="0">',
    ):
        if old[:6] == put[:6]:
            text = plain.replace(old, put, 1)
            break
    else:
        at = "<width" if put.startswith("<border") else "<lanes>"
        text = plain.replace(at, put if put.startswith("<lanes>") else put + at, 1)
    assert text != plain
    with pytest.raises(RoadError, match=r"expected a finite decimal number|above 0"):
        flatten(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a>" * 200_000 + "</a>" * 200_000, f"nested more than {MAX_DEPTH}"),
        ("<OpenDRIVE>" + "<a/>" * 3_000_001 + "</OpenDRIVE>", "tags, expected at most"),
        (document(*(road(n) for n in range(MAX_ROADS + 1))), "10001 roads"),
        (document(road(length=2_400_000, plan=PLAN.replace("50", "2400000"))), "km of lanes"),
        (
            document(road(sections=section(0, *(lane(-n) for n in range(1, 2001))))),
            f"2000 lanes side by side .* at most {MAX_LANES_ABREAST}",
        ),
        (
            document(
                road(
                    length=31_000,
                    plan=PLAN.replace("50", "31000"),
                    sections="".join(section(at, lane()) for at in range(30_001)),
                )
            ),
            "over 30000 lanes",
        ),
    ],
)
def test_documents_too_large_for_reality_are_refused_before_any_work(text, message):
    with pytest.raises(RoadError, match=message) as caught:
        parse_opendrive(text, "large.xodr")
    assert "large.xodr" in str(caught.value)
    assert len(str(caught.value)) < 300
    assert MAX_LANE_LENGTH_M < 2_400_000


def test_a_late_lane_offset_and_a_dangling_signal_are_named():
    offset = document(road()).replace("<lanes>", '<lanes><laneOffset s="20" a="0"/>')
    with pytest.raises(RoadError, match=r"laneOffset that starts at 20.0 m in road id '1'"):
        parse_opendrive(offset, "here")
    signal = '</lanes><signals><signalReference s="1" t="0" id="5"/></signals>'
    with pytest.raises(RoadError, match="signalReference to signal '5'"):
        parse_opendrive(document(road()).replace("</lanes>", signal), "here")
    named = signal.replace("<signals>", '<signals><signal id="5"/>')
    parse_opendrive(document(road()).replace("</lanes>", named), "here")


def bordered(number, *borders):
    records = "".join(
        f'<border sOffset="{s}" a="{a}" b="{b}" c="{c}" d="{d}"/>' for s, a, b, c, d in borders
    )
    return f'<lane id="{number}" type="driving"><link/>{records}</lane>'


def width_at(lane, s):
    """Return the width of a lane at a distance, by OpenDRIVE's definition."""
    records = [
        [float(w.get(k)) for k in ("sOffset", "a", "b", "c", "d")] for w in lane.iter("width")
    ]
    start, *cubic = max(record for record in records if record[0] <= s)
    return np.polynomial.polynomial.polyval(s - start, cubic)


@pytest.mark.parametrize("sign", [1, -1])
def test_lanes_with_borders_get_the_widths_between_them(tmp_path, sign):
    """On the right, borders are negative by the standard; CommonRoad writes positive ones."""
    inner = [(0, 3.0, 0.02, 0.0, 0.0), (10, 3.2, 0.0, 0.001, 1e-5)]
    outer = [(0, 6.0, 0.0, 0.0, 0.0), (20, 6.0, 0.05, -1e-3, 0.0)]
    right = [bordered(-n, *((s, *(sign * x for x in k)) for s, *k in records))
             for n, records in ((1, inner), (2, outer))]  # fmt: skip
    left = [lane(1), bordered(2, (0, 7.0, 0.01, 0, 0))]
    path = tmp_path / "borders.xodr"
    path.write_text(document(road(sections=section(0, *left, *right))))
    root = ET.fromstring(read_opendrive(path))
    lanes = {int(each.attrib["id"]): each for each in root.iter("lane")}
    for s in (0.0, 5.0, 12.0, 19.0, 25.0, 49.0):
        p = 3.0 + 0.02 * s if s < 10 else 3.2 + 0.001 * (s - 10) ** 2 + 1e-5 * (s - 10) ** 3
        q = 6.0 if s < 20 else 6.0 + 0.05 * (s - 20) - 1e-3 * (s - 20) ** 2
        assert width_at(lanes[-1], s) == pytest.approx(p)
        assert width_at(lanes[-2], s) == pytest.approx(q - p)
        assert width_at(lanes[1], s) == 3.5
        assert width_at(lanes[2], s) == pytest.approx(7.0 + 0.01 * s - 3.5)


def test_widths_count_where_a_lane_has_both(tmp_path):
    both = lane().replace("<width", '<border sOffset="0" a="9"/><width')
    path = tmp_path / "both.xodr"
    path.write_text(document(road(sections=section(0, both))))
    assert read_opendrive(path) == path.read_text()


def test_roads_with_names_or_large_numbers_get_small_ones(tmp_path):
    path = tmp_path / "names.xodr"
    link = to_road("24000000009")
    more = '<connection incomingRoad="Kalle" connectingRoad="24000000009"/>'
    more = f'<junction id="4">{more}</junction>'
    path.write_text(document(road("Kalle", link=link), road("24000000009"), more=more))
    root = ET.fromstring(read_opendrive(path))
    assert [each.get("id") for each in root.iter("road")] == ["1", "2"]
    (successor,) = root.iterfind("road/link/successor")
    (connection,) = root.iterfind("junction/connection")
    assert successor.get("elementId") == "2"
    assert connection.attrib == {"incomingRoad": "1", "connectingRoad": "2"}
