"""The test server against the real client, each script in a process of its own."""

import json
import subprocess
import sys

import pytest

SCRIPT_WITHIN_S = 120


def run_script(name, port):
    """What a script of `wire_client` finds out."""
    done = subprocess.run(
        [sys.executable, "-m", "avtd3.tests.carla.wire_client", name, str(port)],
        capture_output=True,
        text=True,
        timeout=SCRIPT_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}: {done.stderr}{done.stdout}"
    return json.loads(done.stdout.splitlines()[-1])


def test_the_client_finds_a_world(carla_server):
    found = run_script("look_around", carla_server.port)
    assert found["version"] == "0.9.16"
    assert found["map"] == "Carla/Maps/AvTown01"
    assert found["spawn_points"] > 40
    assert found["topology"] == 8
    assert "vehicle.tesla.model3" in found["vehicles"]
    assert found["runs_by_itself"]
    assert found["settings"] is False
    assert found["actors"] == ["spectator"]
    assert carla_server.record()["problems"] == []


def test_a_car_is_driven_seen_and_run_into_another(carla_server):
    found = run_script("drive", carla_server.port)
    assert found["taken"]
    assert found["frames"] == list(range(found["frames"][0], found["frames"][-1] + 1))
    assert found["pictures"] == found["frames"]
    assert found["size"] == [40, 30, 4800, 80.0]
    assert found["is_gray"]
    assert found["levels"] > 20
    assert found["steer"] == pytest.approx(0.25)
    assert found["hit"] == [True, True]
    assert found["speed"] > 3.0
    assert found["box"] == pytest.approx([2.1, 0.7])
    assert found["destroyed"] == [True, True]
    assert found["left"] == ["spectator"]
    record = carla_server.record()
    assert record["problems"] == []
    controls = [control for _, by_car in record["controls"] for control in by_car.values()]
    # The control that was given before a tick is in force for it.
    assert [0.6, 0.25] in [pytest.approx(control[:2]) for control in controls]


def test_the_server_ends_with_whoever_started_it(carla_server):
    carla_server._orders.close()
    assert carla_server._process.wait(60) == 0
