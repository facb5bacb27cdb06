import pytest

from avtd3.tests.store.memory import World, make_spec


@pytest.fixture
def world():
    """Make datasets in memory, with an image and a vector."""
    return World(make_spec())
