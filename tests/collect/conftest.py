"""Fixtures of all tests of collect."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep what tests remember about maps out of the user's cache directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def maps_without_own_process():
    """Build generated maps at once, without the process that unknown maps are first built in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avtd3.collect.maps.network.check_native", lambda *_: None)
        yield
