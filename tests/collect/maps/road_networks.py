"""Small OpenDRIVE networks for tests."""

import numpy as np

from avtd3.collect.maps.network import RoadNetwork

LANE_M = 3.5


def edge(strip, side):
    """Return the line at a share of half a strip's width, positive to the right."""
    right = np.stack([-np.sin(strip.yaw_rad), np.cos(strip.yaw_rad)], axis=1)
    return strip.points + (0.5 * side * strip.width_m)[:, None] * right


def marks(kind):
    return f'<roadMark sOffset="0" type="{kind}" weight="standard" color="standard" width="0.12"/>'


def lane(number, mark):
    return (
        f'<lane id="{number}" type="driving" level="false"><link/>'
        f'<width sOffset="0" a="{LANE_M}" b="0" c="0" d="0"/>{marks(mark)}</lane>'
    )


def road(number=1, x=0.0, y=0.0, heading=0.0, length=200.0, shape="<line/>", middle="broken"):
    return (
        f'<road id="{number}" length="{length}" junction="-1" rule="RHT"><link/><planView>'
        f'<geometry s="0" x="{x}" y="{y}" hdg="{heading}" length="{length}">{shape}</geometry>'
        f'</planView><lanes><laneSection s="0"><left>{lane(1, "solid")}</left>'
        f'<center><lane id="0" type="none">{marks(middle)}</lane></center>'
        f"<right>{lane(-1, 'solid')}</right></laneSection></lanes></road>"
    )


def document(*roads):
    place = "<geoReference>+lat_0=0 +lon_0=0</geoReference>"
    return f"<OpenDRIVE><header>{place}</header>{''.join(roads)}</OpenDRIVE>"


def straight_document(length=200.0, middle="broken"):
    """A road along x with the lane of id -1, driven towards +x, at y in [0, 3.5]."""
    return document(road(length=length, middle=middle))


def straight_network(length=200.0, middle="broken"):
    return RoadNetwork.from_opendrive(
        "straight", straight_document(length, middle), is_trusted=True
    )


def ring_network(radius=40.0):
    """A circle whose two lanes are closed."""
    turn = f'<arc curvature="{1.0 / radius}"/>'
    length = 2.0 * 3.141592653589793 * radius
    text = document(road(length=length, shape=turn))
    link = '<link><predecessor elementType="road" elementId="1" contactPoint="end"/>'
    link += '<successor elementType="road" elementId="1" contactPoint="start"/></link>'
    return RoadNetwork.from_opendrive("ring", text.replace("<link/>", link, 1), is_trusted=True)


def crossing_network():
    """Two roads that cross on one level without a junction, so without right of way."""
    return RoadNetwork.from_opendrive(
        "crossing",
        document(road(1), road(2, x=100.0, y=-100.0, heading=1.5707963267948966)),
        is_trusted=True,
    )
