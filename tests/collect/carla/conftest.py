"""A CARLA server for whoever asks for one; no tests where the client has no wheel."""

import importlib.util

import pytest

from avtd3.tests.collect.carla.launch import CarlaServer

collect_ignore_glob = [] if importlib.util.find_spec("carla") else ["test_*.py"]


@pytest.fixture(scope="module")
def server():
    """One for all tests of a module."""
    with CarlaServer() as server:
        yield server


@pytest.fixture
def carla_server():
    """One for a test alone."""
    with CarlaServer() as server:
        yield server
