"""What all tests share: one thread for torch, no time limit of an example, the command line in a
test's process, a bucket, and a browser."""

import itertools
import os

import hypothesis
import pytest

from avtd3.tests.store.remote import servers

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is loaded
    os.environ.setdefault(name, "1")
hypothesis.settings.register_profile("any-speed", deadline=None)  # a loaded machine may take long
hypothesis.settings.load_profile("any-speed")


@pytest.fixture
def avtd3(capsys):
    """Run a command; returns its exit code, its standard output and its standard error."""
    from avtd3.cli import main

    def run(*argv):
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """The browser of all tests, a headless Chromium with one page."""
    from avtd3.tests.store.chromium import Chromium, find_chromium

    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    chromium = Chromium(executable, tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


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
    """A proxy between the client and moto; the client waits shortly between two attempts."""
    from avtd3.store.remote import client

    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(client, "_LONGEST_WAIT_S", 0.02)
    with servers.FaultProxy(moto) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running
