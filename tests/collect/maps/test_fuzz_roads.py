"""Fuzz the readers of .xodr files and of scenario files: one error of avtd3, or a drive.

Each target runs in a process of its own, so a crash of carla.Map, a traceback and a hang fail it
alike. The seeds are fixed. To repeat or to continue: ``python -m
avtd3.tests.collect.maps.test_fuzz_roads roads SEED COUNT``.
"""

import faulthandler
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avtd3.collect.maps.episode_setup import SimulatorConfig, draw_setup
from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.scenarios import read_scenarios, scenario
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.store.errors import ConfigError, RoadError
from avtd3.tests.collect.maps.road_networks import document, road, straight_document

pytest.importorskip("carla")

SIGNALS = (
    '<signals><signal id="5" s="9" t="1" type="1000001" subtype="-1" dynamic="yes" value="-1"/>'
    '<signalReference s="20" t="1" id="5" orientation="+"/></signals>'
)
RELIEF = '<elevationProfile><elevation s="0" a="5" b="0.1" c="0" d="0"/></elevationProfile>'
BORDER = '<border sOffset="0" a="-3.5" b="0" c="0" d="0"/>'
ROUTES = """<?xml version="1.0" encoding="UTF-8"?>
<routes><route id="1" town="straight"><weathers><weather route_percentage="0" cloudiness="5.0"/>
</weathers><waypoints><position x="20.0" y="1.75" z="0"/><position x="150.0" y="1.75" z="0"/>
</waypoints><scenarios><scenario name="a" type="b"/></scenarios></route></routes>
"""
SETTINGS = """avtd3_scenarios: 1
defaults: {npcs: 0, weather: clear}
routes:
  - {id: 7, name: straight, xodr: straight.xodr, waypoints: [[20, 1.75], [150.0, 1.75, 0.2]]}
  - {network: {kind: loop, number: 4}, length_m: 60, time_limit_s: 9}
"""
WORDS = (
    "", "0", "-1", "1", "2", "-0", "1e9", "-1e9", "1e-300", "1e999", "0x1f", "inf", "nan", "1_0",
    "1,5", "99999999999", "٣", "true", "none", "-1e4", "1e4", "0.001", "50", "3.5", "road",
    "junction", "driving", "LHT", "start", "end",
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-16", "latin-1", "undefined", "punycode", "idna", "zlib", "utf-7", "x")
Change = Callable[[np.random.Generator, bytes], bytes]


def bend_attribute(rng: np.random.Generator, data: bytes) -> bytes:
    """Give another value to an attribute, or to a number of YAML."""
    places = [*re.finditer(rb'(?<==")[^"]*(?=")|(?<=[:\[] )[-0-9.]+', data)]
    if not places:
        return data
    place = places[int(rng.integers(len(places)))]
    word = WORDS[int(rng.integers(len(WORDS)))].encode()
    return data[: place.start()] + word + data[place.end() :]


def move_elements(rng: np.random.Generator, data: bytes) -> bytes:
    """Delete, repeat, nest or exchange elements."""
    try:
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError):
        return data
    parents = [element for element in root.iter() if len(element)]
    if not parents:
        return data
    parent = parents[int(rng.integers(len(parents)))]
    number = int(rng.integers(len(parent)))
    child, kind = parent[number], int(rng.integers(4))
    if kind == 0:
        parent.remove(child)
    elif kind == 1:
        parent.insert(number, child)
    elif kind == 2 and child.attrib:
        child.attrib.pop(sorted(child.attrib)[int(rng.integers(len(child.attrib)))])
    else:
        other = parents[int(rng.integers(len(parents)))]
        if other not in child.iter():
            other.append(child)
    try:
        return ET.tostring(root)
    except RecursionError:  # nested deeply before
        return data


def damage_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip, cut, or repeat bytes."""
    if not data:
        return data
    first, stop = np.sort(rng.integers(0, len(data) + 1, 2)).tolist()
    kind = int(rng.integers(3))
    if kind == 0:
        flipped = bytearray(data)
        flipped[int(rng.integers(len(data)))] = int(rng.integers(256))
        return bytes(flipped)
    return data[:first] + data[stop:] if kind == 1 else data[:stop] + data[first:]


def declare_encoding(rng: np.random.Generator, data: bytes) -> bytes:
    """Declare an encoding, true or false."""
    name = ENCODINGS[int(rng.integers(len(ENCODINGS)))]
    body = re.sub(rb"^<\?xml[^>]*\?>", b"", data)
    text = f'<?xml version="1.0" encoding="{name}"?>'.encode() + body
    return text.decode("latin-1").encode("utf-16") if rng.random() < 0.3 else text


def wrap(rng: np.random.Generator, data: bytes) -> bytes:
    """Nest deeply, add a document type with entities, or repeat everything."""
    depth = int(rng.integers(1, 100_000))
    bomb = b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]>'
    kinds = (b"<a>" * depth + data + b"</a>" * depth, bomb + data, data * 3)
    return kinds[int(rng.integers(len(kinds)))]


CHANGES: tuple[Change, ...] = (
    bend_attribute, bend_attribute, move_elements, move_elements, damage_bytes, declare_encoding,
    wrap,
)  # fmt: skip
ROADS = (
    straight_document(60.0).replace("</lanes>", f"</lanes>{SIGNALS}", 1),
    straight_document(60.0).replace("<lanes>", f'{RELIEF}<lanes><laneOffset s="0" a="1"/>', 1),
    re.sub(r"<width[^>]*>", BORDER, straight_document(60.0)),
    document(road(1, length=40.0), road(2, x=40.0, length=40.0, shape='<arc curvature="0.02"/>')),
    generate_network("town", 3),
    generate_network("motorway", 3),
)


def mutated(rng: np.random.Generator, seeds: tuple[str, ...]) -> bytes:
    """Return one of the seeds with one to four changes."""
    data = seeds[int(rng.integers(len(seeds)))].encode()
    weights = np.array([3, 3, 3, 3, 1, 0.5, 0.2])
    for _ in range(int(rng.integers(1, 5))):
        data = CHANGES[int(rng.choice(len(CHANGES), p=weights / weights.sum()))](rng, data)
    return data


def try_roads(rng: np.random.Generator, folder: Path) -> str:
    """Drive on the roads of a mutated file; return the error, if there is one."""
    path = folder / "roads.xodr"
    path.write_bytes(mutated(rng, ROADS))
    try:
        world = RoadWorld(RoadConfig(pixel_m=0.3))
        world.reset(scenario(0, town=str(path), npcs=5), seed=2)
        for _ in range(20):
            world.step(np.array([0.1, 0.5], np.float32))
    except RoadError as error:
        return str(error)
    return ""


def try_routes(rng: np.random.Generator, folder: Path) -> str:
    """Read a mutated scenario file, and plan its routes; return the error, if there is one."""
    (folder / "straight.xodr").write_text(straight_document())
    kind = (("routes.xml", ROUTES), ("routes.yaml", SETTINGS))[int(rng.integers(2))]
    path = folder / kind[0]
    path.write_bytes(mutated(rng, (kind[1],)))
    network = RoadNetwork.from_opendrive("straight", straight_document(), is_trusted=True)
    try:
        for setting in read_scenarios(path):
            draw_setup(network, setting, 2, SimulatorConfig())
    except (ConfigError, RoadError) as error:
        return str(error)
    return ""


def main(target: str, seed: int, count: int, seconds: float) -> None:
    """Try `count` files, or as many as fit into `seconds`, and print what became of them."""
    outcomes = {"driven": 0, "refused": 0}
    deadline_s = time.monotonic() + seconds
    attempt = {"roads": try_roads, "routes": try_routes}[target]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            if time.monotonic() > deadline_s:
                break
            sys.stdout.write(f"file {number}\n")
            faulthandler.dump_traceback_later(900, exit=True)  # more than any limit of avtd3
            error = attempt(np.random.default_rng([seed, number]), Path(folder))
            assert len(error) < 2000
            outcomes["refused" if error else "driven"] += 1
    sys.stdout.write(f"{outcomes}\n")


def run(target: str, seed: int, count: int, seconds: float = 1e9) -> dict[str, int]:
    """Run a target in a process of its own; return the outcomes."""
    command = [sys.executable, "-m", "avtd3.tests.collect.maps.test_fuzz_roads"]
    given = [target, str(seed), str(count), str(seconds)]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{given}: {done.stdout[-200:]} {done.stderr[-3000:]}"
    found = dict(re.findall(r"'(\w+)': (\d+)", done.stdout.splitlines()[-1]))
    return {name: int(number) for name, number in found.items()}


@pytest.mark.parametrize(("target", "count"), [("roads", 20), ("routes", 150)])
def test_mutated_files_are_driven_or_refused(target, count):
    outcomes = run(target, seed=1, count=count)
    assert sum(outcomes.values()) == count
    assert min(outcomes.values()) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["roads", "routes"])
def test_mutated_files_are_driven_or_refused_for_two_minutes(target):
    outcomes = run(target, seed=2, count=10**9, seconds=120.0)
    assert min(outcomes.values()) > 0


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float((*sys.argv, "1e9")[4]))
