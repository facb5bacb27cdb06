"""A place of each kind, and servers by name."""

import contextlib

import pytest

from avtd3.store.remote.client import RemotePlace, open_place
from avtd3.tests.store.remote import servers

START = {
    "weed": servers.start_weed,
    "rclone": servers.start_rclone,
    "az": servers.start_azurite,
    "gs": servers.start_gcs,
}


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path):
    if request.param == "local":
        return open_place(tmp_path / "place")
    pytest.importorskip("obstore")
    if request.param == "memory":
        return open_place(f"memory://{tmp_path.name}/a/b")
    return open_place(request.getfixturevalue("bucket") + "/a/b/")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Return a function that starts a server with a bucket, once per module."""
    found = {}

    def start(name):
        if name not in found:
            server = stack.enter_context(START[name](tmp_path_factory.mktemp(name)))
            put = {"weed": servers.put_bucket, "az": servers.put_container}.get(name)
            if put is not None:
                put(server, "bucket")
            found[name] = server
        return found[name]

    with contextlib.ExitStack() as stack:
        yield start


@pytest.fixture
def server(request, running, use):
    """The server that a test names, a key of `START`; the client uses it."""
    found = running(request.param)
    use(found)
    return found


@pytest.fixture
def url(server, tmp_path, monkeypatch):
    """A new URL of the server."""
    if server.scheme == "gs":  # fake-gcs-server has no uploads in parts
        write = RemotePlace.write

        def whole(self, key, data):
            write(self, key, data if isinstance(data, bytes) else b"".join(data))

        monkeypatch.setattr(RemotePlace, "write", whole)
    return f"{server.scheme}://bucket/{tmp_path.name}"
