"""A place of each kind."""

import pytest

from avtd3.store.remote.client import open_place


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path):
    if request.param == "local":
        return open_place(tmp_path / "place")
    pytest.importorskip("obstore")
    if request.param == "memory":
        return open_place(f"memory://{tmp_path.name}/a/b")
    return open_place(request.getfixturevalue("bucket") + "/a/b/")
