"""The server of each worker, and the options for hosts and ports."""

import dataclasses
import sys

import pytest

from avtd3 import cli
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.collector import CollectConfig
from avtd3.collect.evaluator import EvaluateConfig
from avtd3.collect.worlds import open_world
from avtd3.configs.commands.options import at_servers, section
from avtd3.store.errors import ConfigError

THREE = CarlaConfig(ports=(2000, 2010, 2020))
LARGEST = 256


@pytest.mark.parametrize(
    ("world", "workers", "count"),
    [
        ("road", None, 1),
        ("road", 5, 5),
        ("carla", None, 3),
        ("carla", 2, 2),
        ("carla", 5, 3),
    ],
)
def test_each_server_has_at_most_one_worker(world, workers, count):
    for config in (CollectConfig, EvaluateConfig):
        assert config(world=world, workers=workers, carla=THREE).worker_count == count


def test_a_workers_number_picks_its_port():
    config = CollectConfig(world="carla", carla=THREE)
    worlds = [open_world(config, worker) for worker in range(3)]
    assert [getattr(world, "port", 0) for world in worlds] == [2000, 2010, 2020]
    assert {world.name for world in worlds} == {"carla"}
    assert [getattr(world, "image_shape", None) for world in worlds] == [(1, 84, 84)] * 3
    for world in worlds:
        world.close()


def test_a_machine_without_the_client_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "carla", None)
    with pytest.raises(ConfigError, match=r"world carla needs the package carla 0\.9\.16"):
        open_world(CollectConfig(world="carla"), 0)


@pytest.mark.parametrize("workers", [0, LARGEST + 1])
def test_an_impossible_number_of_workers_is_refused(workers):
    with pytest.raises(ConfigError, match=f"workers is {workers}"):
        CollectConfig(workers=workers)


def test_a_plan_does_not_depend_on_where_it_is_driven():
    here = CollectConfig(world="carla")
    there = dataclasses.replace(
        here,
        carla=CarlaConfig(host="gpu7", ports=(2000, 2010), timeout_s=5.0, recycle_episodes=9),
        workers=2,
    )
    assert there.plan_document() == here.plan_document()
    other = dataclasses.replace(here, carla=CarlaConfig(vehicle="vehicle.audi.tt"))
    assert other.plan_document() != here.plan_document()
    road = CollectConfig().plan_document()
    assert "road" in road
    assert "carla" not in road


def test_hosts_and_ports_of_the_command_line():
    settings = CollectConfig(world="carla")
    found = at_servers(settings, "gpu7", "2000,2010", None).carla
    assert (found.host, found.ports) == ("gpu7", (2000, 2010))
    assert at_servers(settings, None, None, None) == settings
    found = at_servers(settings, None, None, "./CarlaUE4.sh").carla
    assert found.server_command == "./CarlaUE4.sh"
    walkers = at_servers(settings, None, None, None, 5)
    assert walkers.carla.walkers == 5
    assert walkers.plan_document()["carla"]["walkers"] == 5
    # Plans of older datasets, which had none, keep their digest.
    assert "walkers" not in settings.plan_document()["carla"]
    with pytest.raises(ConfigError, match="--walkers need the world carla"):
        at_servers(CollectConfig(), None, None, None, 0)


@pytest.mark.parametrize(
    ("world", "port", "message"),
    [
        ("road", "2000", "add --world carla"),
        ("carla", "2000;2010", "expected numbers, such as 2000,2010"),
        ("carla", "2000,2000", "one or more distinct ports"),
        ("carla", "0", "1 to 65535"),
    ],
)
def test_bad_ports_are_one_clear_error(world, port, message):
    with pytest.raises(ConfigError, match=message):
        at_servers(CollectConfig(world=world), None, port, None)


def test_the_preset_is_for_carla():
    for name in ("collect", "evaluate"):
        settings = section(name, "carla", None)
        assert (settings.world, settings.scenario.town) == ("carla", "Town01")
    changed = section("collect", "carla", ["collect.carla.ports=[2000,2010]"])
    assert changed.worker_count == 2


def test_ports_without_carla_end_the_command_with_bad_use(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["collect", str(tmp_path / "d"), "--port", "2000"])
    assert end.value.code == 2
    assert "add --world carla" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_the_doctor_has_a_command_for_carla(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--help"])
    assert not end.value.code
    assert "carla" in capsys.readouterr().out
