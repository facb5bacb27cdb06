"""A CARLA server for whoever asks for one."""

import pytest

from avtd3.tests.carla.launch import CarlaServer


@pytest.fixture
def carla_server():
    with CarlaServer() as server:
        yield server
