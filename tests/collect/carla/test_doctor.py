"""`avtd3 doctor carla` on servers in all states, each in its own process."""

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import threading

import pytest
from PIL import Image

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.doctor import CHECKS, DRIVE_CHECKS, examine
from avtd3.collect.maps.scenarios import scenario
from avtd3.store.errors import StorageError
from avtd3.tests.collect.carla.launch import CarlaServer
from avtd3.tests.pipeline.conftest import avtd3

PATIENT = CarlaConfig(host="127.0.0.1", timeout_s=60.0, step_timeout_s=90.0, sensor_timeout_s=30.0)
HASTY = dataclasses.replace(PATIENT, timeout_s=2.0, sensor_timeout_s=2.0, step_timeout_s=20.0)

OTHER_CLIENT = """
import carla, os, sys
client = carla.Client("127.0.0.1", int(sys.argv[1]))
client.set_timeout(60.0)
world = client.get_world()
settings = world.get_settings()
settings.synchronous_mode, settings.fixed_delta_seconds = True, 0.05
world.apply_settings(settings)
blueprint = world.get_blueprint_library().find("vehicle.tesla.model3")
blueprint.set_attribute("role_name", "avtd3")
car = world.spawn_actor(blueprint, world.get_map().get_spawn_points()[0])
world.tick()
print("drives", flush=True)
while sys.argv[2] == "drive":
    world.tick()
os._exit(0)
"""
"""Set synchronous mode; then either continue to drive, or leave like a client that crashed."""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def other_client(server, what):
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_CLIENT, str(server.port), what], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    while process.stdout.readline() != b"drives\n":
        assert process.poll() is None
    return process


def states(report):
    return {finding.check: finding.state for finding in report.findings}


def failure(report):
    (finding,) = [finding for finding in report.findings if finding.state == "failed"]
    return finding


def actors(server):
    return sorted(actor["type"] for actor in server.record()["actors"])


def test_a_healthy_server_is_ready_and_left_unchanged(tmp_path):
    with CarlaServer() as server:
        before = server.record()
        code, out, err = avtd3(
            "doctor", "carla", "--host", "127.0.0.1", "--port", server.port,
            "--image", tmp_path / "seen.png", "--json",
        )  # fmt: skip
        after = server.record()
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["well"]
    assert [check["check"] for check in document["checks"]] == [*CHECKS, "cleanup"]
    assert after["actors"] == before["actors"]
    assert after["settings"] == before["settings"]
    assert after["problems"] == []
    with Image.open(tmp_path / "seen.png") as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (84, 84), "L")
        assert len(set(picture.tobytes())) > 20


def test_an_absent_server_is_reported_with_what_to_start(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code, out, _ = avtd3(
        "doctor", "carla", "--host", "127.0.0.1", "--port", port, "--image", tmp_path / "x.png",
        "--set", "collect.carla.timeout_s=1",
    )  # fmt: skip
    assert code == 3
    assert f"FAIL  connection  no CARLA server at 127.0.0.1:{port}" in out
    assert "-> start one with ./CarlaUE4.sh" in out
    assert out.endswith("is not ready\n")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("faults", "is_reached", "check", "text"),
    [
        ({"hang": True}, False, "connection", "did not answer in 2 s"),
        ({"version": "0.9.15"}, True, "connection", "has version 0.9.15, expected 0.9.16"),
        slow({"exit_after_ticks": 10}, False, "steps", "did not advance by a step"),
        slow({"hang_after_ticks": 30}, False, "camera", "did not advance by a step"),
        ({"camera_stops_after_frames": 0}, True, "camera", "its camera sent no"),
        ({"refuse_settings_after": 1}, True, "cleanup", "the settings could not be restored"),
        slow({"refuse_spawns": 99}, True, "camera", "spawn the car"),
    ],
)
def test_a_problem_is_named_with_its_fix(faults, is_reached, check, text):
    with CarlaServer(**faults) as server:
        report, _ = examine(HASTY, server.port)
        if is_reached:
            assert actors(server) == ["spectator"]
    assert report.is_reached is is_reached
    assert not report.is_well
    found = failure(report)
    assert (found.check, text in found.text) == (check, True), found
    assert found.fix
    assert f"FAIL  {check}" in report.summary()


@pytest.mark.slow
def test_another_kind_of_server_is_recognised():
    def answer(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        report, _ = examine(HASTY, listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert not report.is_reached
    assert failure(report).check == "connection"


def test_a_server_on_which_another_client_drives_is_left_alone():
    with CarlaServer() as server, other_client(server, "drive") as client:
        report, _ = examine(PATIENT, server.port)
        assert failure(report).check == "use"
        assert "another client ticks it" in failure(report).text
        assert report.is_reached
        assert client.poll() is None
        assert actors(server) == ["spectator", "vehicle.tesla.model3"]
        client.kill()


@pytest.mark.slow
def test_leftovers_of_a_crashed_run_are_a_warning():
    with CarlaServer() as server:
        with other_client(server, "leave") as client:
            client.wait()
        report, _ = examine(PATIENT, server.port)
        assert actors(server) == ["spectator", "vehicle.tesla.model3"]
    assert report.is_well
    assert states(report)["use"] == "warning"
    assert "a crashed run has left 1 actors" in report.summary()


def test_a_picture_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "taken").mkdir()
    with CarlaServer() as server, pytest.raises(StorageError, match="give another --image"):
        examine(PATIENT, server.port, tmp_path / "taken")


def test_a_drive_checks_what_only_driving_shows(tmp_path):
    with CarlaServer(contact=["static.unknown", [0.0, 0.0, 900.0]]) as server:
        code, out, err = avtd3(
            "doctor", "carla", "--host", "127.0.0.1", "--port", server.port, "--drive", 12,
            "--npcs", 2, "--html", tmp_path / "page.html", "--json",
        )  # fmt: skip
        assert actors(server) == ["spectator"]
    assert (code, err) == (0, "")
    found = {check["check"]: check for check in json.loads(out)["checks"]}
    assert [*found] == [*CHECKS, "cleanup", *DRIVE_CHECKS]
    assert all(found[check]["state"] == "ok" for check in DRIVE_CHECKS if check != "ticks")
    assert "240 steps" in found["expert"]["text"]
    assert "'static.unknown': " in found["contacts"]["text"]
    text = (tmp_path / "page.html").read_text()
    assert text.count("<img ") == 3
    assert "ground touched" in text


@pytest.mark.parametrize(
    ("faults", "check"),
    [
        ({"late_controls_every": 5}, "control"),
        slow({"foreign_ticks_every": 60}, "frames"),  # later than the check of steps
        ({"sinks_m": 0.8}, "height"),
        slow({"contact": ["static.unknown", [900.0, 0.0, 0.0]]}, "contacts"),
        slow({"nan_snapshots": 10**6}, "expert"),
    ],
)
def test_a_drive_warns_of_what_is_wrong(faults, check):
    with CarlaServer() as server:
        server.fault(**faults)
        report, _ = examine(PATIENT, server.port, None, scenario(1, town="AvTown01", npcs=0), 2.0)
    bad = {finding.check for finding in report.findings if finding.state != "ok"} - {"ticks"}
    assert check in bad
