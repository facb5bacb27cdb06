"""OpenDRIVE text: read a stranger's file, refuse what carla.Map cannot take, flatten it."""

import re
import stat
import xml.etree.ElementTree as ET
from pathlib import Path

from avtd3.collect.maps.plain_xml import PlainTree
from avtd3.collect.maps.soundness import MEND, check_sound
from avtd3.store.errors import RoadError

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest .xodr file that is read."""
_RELIEF = (
    ("elevationProfile", ("elevation",)),
    ("lateralProfile", ("superelevation", "crossfall", "shape")),
)


def read_opendrive(path: str | Path) -> str:
    """Read an OpenDRIVE file that carla.Map can take.

    Args:
        path: An .xodr file.

    Returns:
        Its text.

    Raises:
        RoadError: The file is missing, a directory, unreadable, empty, larger than 64 MiB, not
            XML, not OpenDRIVE, malformed in a way that carla.Map does not survive, or has no
            driving lane.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise RoadError(f"road {path} is {kind}, expected an .xodr file; name the file")
        if status.st_size > MAX_FILE_BYTES:
            raise RoadError(
                f"road {path} has {status.st_size} bytes, expected at most {MAX_FILE_BYTES}; "
                f"cut the map"
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RoadError(f"road {path} does not exist; expected an .xodr file") from error
    except OSError as error:
        raise RoadError(f"road {path} cannot be read: {error.strerror}") from error
    text = _decode(data, str(path))
    parse_opendrive(text, str(path))
    return text


def parse_opendrive(xodr: str, where: str) -> ET.Element:
    """Parse OpenDRIVE text and hold it against what carla.Map takes.

    Args:
        xodr: The text; document types and entities are refused unread.
        where: File or name for the messages.

    Returns:
        The root element, XML namespaces removed.

    Raises:
        RoadError: The text is not OpenDRIVE, or carla.Map would not survive it, or it has no
            driving lane.
    """
    if not xodr.strip():
        raise RoadError(f"road {where} is empty, expected OpenDRIVE text; {MEND}")
    refusal = f"road {where} declares a DOCTYPE ({{}}), expected none; remove it"
    parser = ET.XMLParser(target=PlainTree(lambda name: RoadError(refusal.format(name))))
    try:
        parser.feed(xodr)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError) as error:
        if isinstance(error, RoadError):
            raise
        raise RoadError(f"road {where} is not XML: {error}; {MEND}") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != "OpenDRIVE":
        raise RoadError(f"road {where} is XML of <{root.tag}>, expected <OpenDRIVE>")
    check_sound(root, where)
    return root


def flatten(xodr: str) -> tuple[str, bool]:
    """Lay a network flat, as the embedded world drives it.

    Args:
        xodr: OpenDRIVE text.

    Returns:
        The text without elevation, superelevation, crossfall and lateral shape, and whether
        there was any; the very same text if there was none.

    Raises:
        RoadError: The text is not OpenDRIVE.
    """
    root = parse_opendrive(xodr, "to flatten")
    changed = False
    for road in root.iter("road"):
        for profile, relief in _RELIEF:
            for element in road.findall(profile):
                changed |= any(_is_relief(child) for child in element if child.tag in relief)
                element[:] = [child for child in element if child.tag not in relief]
    return (ET.tostring(root, encoding="unicode"), True) if changed else (xodr, False)


def _decode(data: bytes, where: str) -> str:
    declared = re.match(rb"""\s*<\?xml[^>]*encoding=["']([A-Za-z0-9._-]+)["']""", data[:200])
    encoding = declared.group(1).decode() if declared else "utf-8"
    try:
        return data.decode("utf-8-sig" if encoding.lower() == "utf-8" else encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise RoadError(f"road {where} is not {encoding} text: {error}; {MEND}") from error


def _is_relief(element: ET.Element) -> bool:
    return any(float(element.get(key, "0")) != 0.0 for key in "abcd")
