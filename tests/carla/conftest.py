"""A CARLA server for whoever asks for one; no tests where the client has no wheel."""

import importlib.util

import pytest

from avtd3.tests.carla.launch import CarlaServer

collect_ignore_glob = [] if importlib.util.find_spec("carla") else ["test_*.py"]


@pytest.fixture
def carla_server():
    with CarlaServer() as server:
        yield server
