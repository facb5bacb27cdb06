"""Documents that end, block or exhaust carla.Map do so in a process of their own."""

import importlib.metadata
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from avtd3.collect.maps import native_check
from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.native_check import check_native
from avtd3.collect.maps.network import RoadNetwork
from avtd3.collect.maps.scenarios import scenario
from avtd3.collect.sim.world import RoadWorld
from avtd3.store.errors import RoadError, WorldError
from avtd3.tests.collect.maps.road_networks import straight_document

pytest.importorskip("carla")

LATE_OFFSET = straight_document().replace(
    "<lanes>", '<lanes><laneOffset s="50" a="0.5" b="0" c="0" d="0"/>'
)
"""carla.Map 0.9.16 ends the process on it."""


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    monkeypatch.setattr(native_check, "_known", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def starts(monkeypatch):
    """Count the processes that are started."""
    run, found = subprocess.run, []

    def counted(*args, **kwargs):
        found.append(args)
        return run(*args, **kwargs)

    monkeypatch.setattr(subprocess, "run", counted)
    return found


def child(monkeypatch, code):
    """Let a check run this code instead of building the document."""
    run = subprocess.run
    begin = "from avtd3.collect.maps.native_check import limit_process; limit_process(); "
    monkeypatch.setattr(
        subprocess, "run", lambda _, **options: run([sys.executable, "-c", begin + code], **options)
    )


def forget():
    native_check._known.clear()


def test_a_document_that_ends_the_process_is_a_road_error_that_names_it(tmp_path):
    with pytest.raises(RoadError, match=r"road late\.xodr ends carla\.Map with SIGSEGV"):
        check_native("late.xodr", LATE_OFFSET)


def test_a_document_that_carla_rejects_is_a_road_error():
    late = straight_document().replace('<width sOffset="0"', '<width sOffset="20"')
    with pytest.raises(RoadError, match=r"road here is rejected by carla.Map \("):
        check_native("here", late)


def test_a_sound_document_is_built_once_and_remembered(starts):
    for name in ("a", "b"):
        RoadNetwork.from_opendrive(name, straight_document(100.0))
    forget()
    RoadNetwork.from_opendrive("c", straight_document(100.0))
    assert len(starts) == 1
    RoadNetwork.from_opendrive("d", straight_document(101.0))
    assert len(starts) == 2


def test_a_verdict_is_remembered_on_disk_without_the_name(starts):
    for name in ("first.xodr", "second.xodr"):
        with pytest.raises(RoadError, match=f"road {name} ends carla.Map with SIGSEGV"):
            check_native(name, LATE_OFFSET)
        forget()
    assert len(starts) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"null", b'"' * 70_000])
def test_a_memory_that_is_damaged_is_ignored(starts, tmp_path, content):
    check_native("a", straight_document())
    (file,) = (tmp_path / "cache/avtd3/maps").iterdir()
    file.write_bytes(content)
    forget()
    check_native("a", straight_document())
    assert len(starts) == 2
    assert json.loads(file.read_bytes()) == ""


@pytest.mark.parametrize("kind", ["a file", "a missing home", "a relative path"])
def test_a_place_that_cannot_be_written_is_no_error(monkeypatch, tmp_path, kind):
    if kind == "a file":
        (tmp_path / "cache").write_text("")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative" if kind == "a relative path" else "")
        monkeypatch.setenv("HOME", "/proc/none")
    check_native("a", straight_document())
    assert not Path("relative").exists()


def test_another_version_of_carla_checks_again(starts, monkeypatch):
    check_native("a", straight_document())
    forget()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.9.99")
    check_native("a", straight_document())
    assert len(starts) == 2


def test_a_document_that_blocks_is_ended_by_its_time_limit(monkeypatch, starts):
    monkeypatch.setattr(native_check, "CPU_S", 1)
    child(
        monkeypatch,
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 9))\nwhile True: pass",
    )
    with pytest.raises(RoadError, match=r"road slow keeps carla\.Map busy for more than 1 s"):
        check_native("slow", straight_document())


def test_a_document_that_takes_all_memory_is_refused(monkeypatch):
    child(monkeypatch, "bytearray(20 * 2**30)")
    with pytest.raises(WorldError, match="failed with exit code 1"):
        check_native("large", straight_document())


def test_a_process_ended_from_outside_says_so_and_is_not_remembered(monkeypatch, tmp_path):
    child(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(RoadError, match=signal.SIGKILL.name):
        check_native("a", straight_document())
    assert not (tmp_path / "cache").exists()


def test_generated_networks_are_not_checked(starts):
    RoadWorld().reset(scenario(1), 2)
    RoadNetwork.from_opendrive("own", generate_network("loop", 1), is_trusted=True)
    assert starts == []


def test_a_file_that_ends_carla_costs_a_road_error_alone(tmp_path, starts):
    """The pre-check names this fault; the process below it finds those that no one knows."""
    late = LATE_OFFSET.replace('s="50"', 's="0"').replace("<lanes>", "<lanes><!-- -->")
    path = tmp_path / "fine.xodr"
    path.write_text(late)
    world = RoadWorld()
    world.reset(scenario(1, town=str(path)), 2)
    assert len(starts) == 1
    path.write_text(LATE_OFFSET)
    with pytest.raises(RoadError, match=r"fine\.xodr has a laneOffset that starts at 50\.0 m"):
        RoadWorld().reset(scenario(1, town=str(path)), 2)
