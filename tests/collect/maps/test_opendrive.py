import pytest

from avtd3.collect.maps import opendrive
from avtd3.collect.maps.opendrive import (
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
    with pytest.raises(RoadError, match="directory"):
        read_opendrive(tmp_path)
    with pytest.raises(RoadError, match="not a regular file"):
        read_opendrive("/dev/null")
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
        (b"\xff\xfe<OpenDRIVE>", "not utf-8"),
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
        (document(road(length="1e300", plan=PLAN)), "5000 km"),
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
