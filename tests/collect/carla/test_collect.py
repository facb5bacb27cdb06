"""Collection over the wire: servers that die, stall or are absent; plans that are completed."""

import collections
import dataclasses
import json
import os
import shlex
import signal
import socket
import sys

import numpy as np
import pytest

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.store.dataset import Dataset
from avtd3.store.errors import WorldError
from avtd3.store.writer import WriterConfig
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.collect.carla.worlds import kinds, settings, until
from avtd3.tests.pipeline.conftest import avtd3, start, wait_until

__all__ = ["start"]

SHORT = ScenarioConfig(
    number=1, town="AvTown01", weather="clear", npcs=0, route_length_m=30.0, time_limit_s=10.0
)
HASTY = {
    "timeout_s": 3.0,
    "sensor_timeout_s": 3.0,
    "connect_timeout_s": 1.0,
    "step_timeout_s": 30.0,
}


def plan(*servers, **changes):
    """Return a collection on servers, with small pictures and short routes."""
    carla = settings(servers[0], ports=tuple(server.port for server in servers), **changes)
    return CollectConfig(
        world="carla",
        scenario=SHORT,
        carla=carla,
        min_free_mb=0,
        writer=WriterConfig(segment_steps=50),
    )


@dataclasses.dataclass
class FreePort:
    """A port without a server."""

    port: int


@pytest.fixture
def free():
    """A port for a server that avtd3 starts."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return FreePort(probe.getsockname()[1])


def command(tmp_path, **faults):
    """Return a command that starts a test server, and records each start in a file."""
    python = shlex.quote(sys.executable)
    line = (
        f"echo started >> {shlex.quote(str(tmp_path / 'starts'))}; exec {python} -m"
        f" avtd3.tests.collect.carla.server --port {{port}} --serve-while {os.getpid()}"
        f" --set-fault={shlex.quote(json.dumps(faults))}"
    )
    return f"sh -c {shlex.quote(line)}"


def starts(tmp_path):
    return len((tmp_path / "starts").read_text().split())


def is_free(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return True
    return False


def stored(path):
    """Check all segments byte by byte; return length and end reason of each episode."""
    found = {}
    for segment in Dataset.open(path).snapshot().segments:
        segment.verify()
        table = segment.episode_table()
        for index, length, end in zip(table.index, table.length, table.end_reason, strict=True):
            assert int(index) not in found, "an episode is stored twice"
            found[int(index)] = (int(length), str(end))
    return dict(sorted(found.items()))


def ends(path):
    return collections.Counter(end for _, end in stored(path).values())


def test_a_server_that_dies_is_restarted_and_the_plan_is_completed(tmp_path, free):
    """Each server lives for about 150 ticks, fewer than the plan needs."""
    config = plan(free, server_command=command(tmp_path, exit_after_ticks=150), **HASTY)
    report = collect(tmp_path / "d", config, episodes=4)
    assert report.failure == ""
    assert list(stored(tmp_path / "d")) == [0, 1, 2, 3]
    assert ends(tmp_path / "d")["server_lost"] >= 1
    assert starts(tmp_path) >= 2
    assert is_free(free.port)


def test_an_absent_server_is_one_line_with_what_to_start(tmp_path, free):
    code, out, err = avtd3(
        "collect", tmp_path / "d", "--world", "carla", "--host", "127.0.0.1", "--port", free.port,
        "--episodes", 2, "--set", "collect.carla.connect_timeout_s=1",
    )  # fmt: skip
    assert code == 3
    (line,) = [line for line in err.splitlines() if line.startswith("avtd3: ")]
    assert f"worker 0 stopped: no CARLA server at 127.0.0.1:{free.port}" in line
    assert "start one with ./CarlaUE4.sh" in line
    assert "2 episodes missing" in line
    assert "Traceback" not in err
    assert out.startswith("0 steps in 0 episodes")


@pytest.mark.slow
def test_one_server_dies_and_the_other_continues(tmp_path):
    with CarlaServer() as good, CarlaServer() as bad:
        config = plan(good, bad, **HASTY)

        def end_one(progress):
            if progress.tally.steps and bad.is_alive:
                bad.kill()

        report = collect(tmp_path / "d", config, episodes=6, on_progress=end_one)
        assert report.workers == 2
        (lost,) = report.tally.lost
        assert lost.startswith(f"worker 1 stopped: no CARLA server at 127.0.0.1:{bad.port}")
        assert {0, 1, 2} <= stored(tmp_path / "d").keys()
        assert "missing; run the same command with --resume to continue" in report.failure
        again = collect(tmp_path / "d", plan(good), episodes=6, resume=True)
        assert again.failure == ""
        assert kinds(good) == []
    assert list(stored(tmp_path / "d")) == list(range(6))
    assert ends(tmp_path / "d")["server_lost"] <= 1


SCENARIOS = """
avtd3_scenarios: 1
routes:
  - {town: AvTown01, npcs: 0, length_m: 30, weather: clear}
  - {network: {kind: loop, number: 4}, npcs: 0, length_m: 30, weather: clear}
"""


@pytest.mark.slow
def test_roads_that_crash_every_server_are_skipped_and_listed(tmp_path, free):
    file = tmp_path / "two.yaml"
    file.write_text(SCENARIOS)
    usual = plan(
        free, server_command=command(tmp_path, crash_on_map="OpenDriveMap"), load_timeout_s=3.0,
        **HASTY,
    )  # fmt: skip
    config = dataclasses.replace(usual, scenario=ScenarioConfig(file=str(file)))
    report = collect(tmp_path / "d", config, episodes=3)
    assert [(skip.index, skip.reason) for skip in report.tally.skipped] == [(1, "server_lost")]
    assert "1 skipped; 1 episode missing" in report.failure
    assert "skipped episode 1 (server_lost): " in report.summary()
    assert list(stored(tmp_path / "d")) == [0, 2]
    assert ends(tmp_path / "d") == {"goal": 2}


def test_an_interrupted_collection_leaves_nothing_on_the_server(tmp_path, start):
    with CarlaServer() as server:
        before = server.record()["settings"]
        for number in (signal.SIGTERM, signal.SIGKILL):
            collector = start(
                "collect", tmp_path / number.name, "--world=carla", "--host=127.0.0.1",
                f"--port={server.port}", "--town=AvTown01", "--npcs=3", "--scenario=1",
            )  # fmt: skip
            wait_until(lambda: server.record()["controls"][-5:] and len(kinds(server)) == 7,
                       "driving", running=(collector,))  # fmt: skip
            collector.process.send_signal(number)
            assert collector.process.wait(60) == (0 if number == signal.SIGTERM else -9)
            until(lambda: kinds(server) == [] and server.record()["settings"] == before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"camera_stops_after_frames": 60}, "sensor_stall"),
        ({"hang_after_ticks": 60}, "server_lost"),
    ],
)
def test_a_silent_server_cuts_the_episode_with_its_reason(tmp_path, faults, reason):
    with CarlaServer(**faults) as server:
        config = plan(server, **HASTY)

        def fix(progress):
            if reason in progress.tally.end_reasons:
                server.fault(camera_stops_after_frames=None, hang_after_ticks=None, hang=False)

        report = collect(tmp_path / "d", config, episodes=3, on_progress=fix)
    assert report.failure == ""
    assert list(stored(tmp_path / "d")) == [0, 1, 2]
    assert ends(tmp_path / "d")[reason] == 1


@pytest.mark.slow
def test_a_server_of_another_version_ends_the_collection_at_once(tmp_path):
    message = r"has version 0.9.15, expected 0.9.16"
    with CarlaServer(version="0.9.15") as server, pytest.raises(WorldError, match=message):
        collect(tmp_path / "d", plan(server), episodes=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "limits"),
    [({}, {"recycle_episodes": 1}), ({"grow_mb_per_episode": 300}, {"server_memory_mb": 250})],
)
def test_a_server_that_avtd3_started_is_recycled(tmp_path, free, faults, limits):
    config = plan(free, server_command=command(tmp_path, **faults), **limits)
    report = collect(tmp_path / "d", config, episodes=3)
    assert report.failure == ""
    assert ends(tmp_path / "d") == {"goal": 3}
    assert starts(tmp_path) == 3
    assert is_free(free.port)


@pytest.mark.slow
def test_two_servers_collect_what_one_collects(tmp_path):
    with CarlaServer() as one, CarlaServer() as other:
        collect(tmp_path / "two", plan(one, other), episodes=4)
        collect(tmp_path / "one", plan(one), episodes=4)
    assert stored(tmp_path / "two") == stored(tmp_path / "one")
    driven = []
    for name in ("two", "one"):
        rows = {}
        for segment in Dataset.open(tmp_path / name).snapshot().segments:
            table, actions = segment.episode_table(), segment.read("action")
            for index, first, count in zip(table.index, table.offset, table.length, strict=True):
                rows[int(index)] = actions[first:][:count]
        driven.append(np.concatenate([rows[index] for index in sorted(rows)]))
    np.testing.assert_array_equal(driven[0], driven[1])


@pytest.mark.slow
def test_an_evaluation_outlives_a_server_that_dies(tmp_path, free):
    usual = plan(free, server_command=command(tmp_path, exit_after_ticks=150), **HASTY)
    config = EvaluateConfig(world="carla", scenario=SHORT, carla=usual.carla, episodes=3)
    report = evaluate("expert", config)
    assert [score.index for score in report.scores] == [0, 1, 2]
    assert {score.end_reason for score in report.scores} == {"goal"}
    assert (report.failure, report.world) == ("", "carla")
    assert starts(tmp_path) >= 2
