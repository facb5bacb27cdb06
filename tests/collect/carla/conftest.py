"""Fixtures with a test server; no tests on machines without the client."""

import importlib.util

import pytest

from avtd3.tests.collect.carla.launch import CarlaServer

collect_ignore_glob = [] if importlib.util.find_spec("carla") else ["test_*.py"]


@pytest.fixture(scope="module")
def server():
    """One server for all tests of a module."""
    with CarlaServer() as server:
        yield server


@pytest.fixture
def carla_server():
    """A server for one test."""
    with CarlaServer() as server:
        yield server
