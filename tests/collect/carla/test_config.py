import dataclasses
import importlib.metadata
import subprocess
import sys

import pytest

from avtd3.collect.carla.config import CARLA_WEATHERS, CarlaCamera, CarlaConfig
from avtd3.collect.sim.camera import CameraConfig
from avtd3.collect.sim.world import RoadConfig
from avtd3.configs.load import build
from avtd3.store.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("host", "", "carla.host is empty"),
        ("host", "a..b", "carla.host is 'a..b', expected a name"),
        ("ports", (), "carla.ports is"),
        ("ports", (2000, 2000), "one or more distinct ports"),
        ("ports", (0,), "carla.ports is 0"),
        ("ports", (70_000,), "1 to 65535"),
        ("tm_port", 65_536, "carla.tm_port"),
        ("timeout_s", 0.0, "carla.timeout_s"),
        ("connect_timeout_s", float("nan"), "carla.connect_timeout_s"),
        ("load_timeout_s", float("inf"), "carla.load_timeout_s"),
        ("sensor_timeout_s", -1.0, "carla.sensor_timeout_s"),
        ("backoff_s", 0.0, "carla.backoff_s"),
        ("backoff_max_s", 1e9, "carla.backoff_max_s"),
        ("step_timeout_s", 14.0, "carla.step_timeout_s is 14.0, expected 15 to"),
        ("vehicle", "walker.pedestrian.0001", "expected a blueprint"),
        ("control_period_s", 0.001, "carla.control_period_s"),
        ("weather", "Hail", "ClearNoon"),
        ("start_speed_mps", 31.0, "carla.start_speed_mps"),
        ("start_lateral_m", 3.0, "carla.start_lateral_m"),
        ("start_heading_deg", 31.0, "carla.start_heading_deg"),
        ("settle_s", 11.0, "carla.settle_s"),
        ("recycle_episodes", -1, "carla.recycle_episodes"),
        ("spawn_attempts", 0, "carla.spawn_attempts"),
        ("server_start_s", 0.0, "carla.server_start_s"),
        ("server_memory_mb", -1, "carla.server_memory_mb"),
    ],
)
def test_an_impossible_setting_is_named(field, value, message):
    with pytest.raises(ConfigError, match=message):
        CarlaConfig(**{field: value})


def test_servers_are_started_on_this_machine_only():
    assert CarlaConfig(server_command="./CarlaUE4.sh", host="127.0.0.1")
    with pytest.raises(ConfigError, match=r"carla.host is 'gpu7', expected one of: localhost"):
        CarlaConfig(server_command="./CarlaUE4.sh", host="gpu7")


@pytest.mark.parametrize(
    ("field", "value"),
    [("height", 7), ("width", 2000), ("supersample", 0), ("field_of_view_deg", 5.0)],
)
def test_an_impossible_camera_is_named(field, value):
    with pytest.raises(ConfigError, match=f"camera.{field}"):
        CarlaCamera(**{field: value})


def test_a_picture_too_large_for_a_server_is_rejected():
    with pytest.raises(ConfigError, match=r"camera\.supersample is 8, expected at most 4"):
        CarlaCamera(height=84, width=1024, supersample=8)


def test_two_traffic_managers_cannot_share_a_port():
    with pytest.raises(ConfigError, match=r"tm_port is 8000, expected 0 with 2 servers"):
        CarlaConfig(ports=(2000, 2010), tm_port=8000)


def test_settings_come_from_yaml_and_go_to_json():
    config = build(CarlaConfig, {"ports": [2000, 2010], "camera": {"height": 64}}, path="carla")
    assert config.ports == (2000, 2010)
    assert [config.port_of(worker) for worker in range(3)] == [2000, 2010, 2000]
    assert build(CarlaConfig, dataclasses.asdict(config), path="carla") == config


def test_the_camera_and_the_start_are_those_of_the_built_in_simulator():
    """A policy trained on one simulator gets the same pictures and starts on the other."""
    ours, theirs = CarlaCamera(), CameraConfig()
    for field in dataclasses.fields(ours):
        assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    for name in ("control_period_s", "start_speed_mps", "start_lateral_m", "start_heading_deg"):
        assert getattr(CarlaConfig(), name) == getattr(RoadConfig(), name), name


def test_the_named_weathers_are_the_clients():
    assert importlib.metadata.version("carla") == "0.9.16"
    # In another process: the client's library starts threads.
    code = "import carla; print(*[n for n in dir(carla.WeatherParameters) if n[0].isupper()])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert {*answer.stdout.split()} - {"Default"} == {*CARLA_WEATHERS}


def test_settings_load_without_the_client():
    code = (
        "import sys; sys.modules['carla'] = None\n"
        "from avtd3.collect.carla.config import CarlaConfig\n"
        "CarlaConfig()\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
