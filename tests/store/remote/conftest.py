"""Servers that the tests of one module share."""

import itertools

import pytest

from avtd3.store.remote import client
from avtd3.tests.store.remote import servers

_numbers = itertools.count()


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    with servers.start_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Return a function that directs the client to a server, and to it alone."""
    pytest.importorskip("obstore")

    def direct(server):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)

    return direct


@pytest.fixture
def bucket(moto, use):
    """The URL of a new bucket of moto."""
    use(moto)
    name = f"bucket-{next(_numbers)}"
    servers.put_bucket(moto, name)
    return f"s3://{name}"


@pytest.fixture
def proxy(moto, bucket, monkeypatch):
    """A proxy between the client and moto; requests give up after seconds."""
    monkeypatch.setattr(client, "CONNECT_S", 5.0)
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(client, "_LONGEST_WAIT_S", 0.02)
    with servers.FaultProxy(moto) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running
