"""Settings are refused clearly, and so is a machine without the package carla."""

import platform
import sys

import pytest

from avtd3.cli import main
from avtd3.collect.checks import require_carla
from avtd3.collect.maps.generate import generate_network
from avtd3.collect.maps.network import RoadNetwork
from avtd3.store.errors import ConfigError, install_command

NO_CARLA = "needs the package carla 0.9.16, which is not installed; "


@pytest.fixture
def without_carla(monkeypatch):
    monkeypatch.setitem(sys.modules, "carla", None)


@pytest.mark.parametrize(
    "words",
    [
        ("collect", "d"),
        ("collect", "d", "--workers", "2"),
        ("collect", "d", "--config", "demo"),
        ("collect", "d", "--world", "carla"),
        ("collect", "d", "--world", "carla", "--server-command", "false {port}"),
        ("evaluate", "expert"),
        ("evaluate", "expert", "--world", "carla", "--port", "2000,2010"),
        ("doctor", "carla"),
        ("replay-inspect", "--estimate"),
        ("demo", "--out", "o"),
    ],
    ids=" ".join,
)
def test_without_carla_a_command_is_refused_in_one_line(
    words, without_carla, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    *_, line = err.splitlines()
    assert not out
    assert line.startswith("avtd3: ")
    assert NO_CARLA in line
    assert len(err.splitlines()) == (2 if words[0] == "demo" else 1)  # the demo names its step
    assert not list(tmp_path.iterdir())


def test_a_road_network_needs_carla(without_carla):
    with pytest.raises(ConfigError, match="a road network needs the package carla"):
        RoadNetwork.from_opendrive("r", generate_network("country", 1), is_trusted=True)


@pytest.mark.parametrize(
    ("python", "machine", "libc", "found"),
    [
        ((3, 13, 0), "x86_64", ("glibc", "2.36"), "Python 3.13.0 on x86_64 Linux with glibc 2.36"),
        ((3, 11, 2), "aarch64", ("glibc", "2.36"), "on aarch64 Linux"),
        ((3, 11, 2), "x86_64", ("glibc", "2.28"), "with glibc 2.28"),
        ((3, 11, 2), "x86_64", ("", ""), "with another C library"),
        ((3, 12, 1), "x86_64", ("glibc", "2.31"), None),
    ],
)
def test_where_carla_cannot_be_installed_the_message_says_what_is_missing(
    python, machine, libc, found, without_carla, monkeypatch
):
    monkeypatch.setattr(sys, "version_info", python)
    monkeypatch.setattr(platform, "python_version", lambda: ".".join(map(str, python)))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(ConfigError) as refused:
        require_carla("this")
    text = str(refused.value)
    assert (install_command("carla") in text) == (found is None)
    if found:
        assert "Python 3.10 to 3.12 on x86-64 Linux with glibc 2.31 or newer" in text
        assert found in text
