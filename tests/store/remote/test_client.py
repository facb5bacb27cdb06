"""`RemotePlace` against a real server over real sockets, and `LocalPlace` beside it."""

import importlib
import time
from typing import Any

import pytest

from avtd3.store import ConfigError, MissingPackageError, UnreachableError
from avtd3.store.files import remote_url
from avtd3.store.remote import client
from avtd3.store.remote.client import LocalPlace, Patience, RemotePlace, open_place
from avtd3.tests.store.remote.servers import KEYS


def test_files_are_written_read_listed_and_deleted(place):
    assert place.create("log/1.json", b"one")
    assert not place.create("log/1.json", b"two")
    assert place.read("log/1.json") == b"one"
    place.write("log/2.json", b"three")
    place.write("log/2.json", b"four")
    place.write("log/deep/3.json", [b"fi", b"ve"])
    assert b"".join(place.chunks("log/deep/3.json")) == b"five"
    assert place.sizes("log/") == {"log/1.json": 3, "log/2.json": 4, "log/deep/3.json": 4}
    assert place.sizes("log/", after="log/1.json") == {"log/2.json": 4, "log/deep/3.json": 4}
    assert place.folders("log/") == ["deep"]
    assert place.folders("missing/") == []
    place.delete(["log/1.json", "log/never"])
    assert place.sizes("log/").keys() == {"log/2.json", "log/deep/3.json"}
    for read in (place.read, lambda key: list(place.chunks(key))):
        with pytest.raises(FileNotFoundError):
            read("log/1.json")


def test_large_objects_are_transferred_in_pieces(bucket, monkeypatch):
    monkeypatch.setattr(client, "CHUNK_BYTES", 1000)
    place, data = open_place(bucket), bytes(range(256)) * 10
    place.write("big", [data[:2000], data[2000:]])
    pieces = list(place.chunks("big"))
    assert [len(piece) for piece in pieces] == [1000, 1000, 560]
    assert b"".join(pieces) == data
    place.write("empty", b"")
    assert b"".join(place.chunks("empty")) == b""
    rest = place.chunks("big")
    next(rest)
    place.write("big", data[:1000])
    assert list(rest) == [], "it was replaced by a smaller one"


def test_each_piece_is_one_request(proxy, bucket, monkeypatch):
    monkeypatch.setattr(client, "CHUNK_BYTES", 1000)
    place = open_place(bucket)
    for size in (0, 1, 1000, 2500):
        place.write("a", b"x" * size)
        proxy.requests.clear()
        proxy.size_bytes = 0
        assert sum(map(len, place.chunks("a", size))) == size
        assert len(proxy.requests) == max(-(-size // 1000), 1)
        assert proxy.size_bytes == size, "nothing is sent twice"
        assert sum(map(len, place.chunks("a", 5000))) == size, "it is smaller than it should be"
        assert sum(map(len, place.chunks("a"))) == size


def test_a_range_that_is_answered_with_the_whole_object_is_asked_for_again(
    proxy, bucket, monkeypatch
):
    monkeypatch.setattr(client, "CHUNK_BYTES", 1000)
    place, data, asked = open_place(bucket), bytes(range(256)) * 10, []
    place.write("big", data)

    def ignore_ranges(method, path):
        asked.append(method)
        return "whole" if len(asked) < 6 else ""

    proxy.fault = ignore_ranges
    assert b"".join(place.chunks("big")) == data
    assert len(asked) > 6


def test_an_object_is_read_again_only_if_it_changed(bucket):
    place: Any = open_place(bucket)
    place.write("LATEST.json", b"1")
    data, etag = place.read_changed("LATEST.json", None)
    assert data == b"1"
    assert place.read_changed("LATEST.json", etag) is None
    place.write("LATEST.json", b"2")
    assert place.read_changed("LATEST.json", etag)[0] == b"2"


@pytest.mark.parametrize("fault", ["503", "before", "after", "half", "slow"])
def test_every_request_survives_faults(proxy, bucket, fault):
    """Each request fails twice, then works."""
    failed: dict[tuple[str, str], int] = {}

    def twice(method, path):
        failed[method, path] = failed.get((method, path), 0) + 1
        return fault if failed[method, path] <= 2 else ""

    proxy.fault = twice
    waits: list[str] = []
    place = open_place(bucket, Patience(on_wait=waits.append))
    place.write("a", b"x" * 5000)
    # The answer that there was none may be lost; what is there is the same in any case.
    place.create("b", b"y" * 10)
    assert place.read("a") == b"x" * 5000
    assert b"".join(place.chunks("b")) == b"y" * 10
    assert place.sizes("") == {"a": 5000, "b": 10}
    place.delete(["a"])
    assert place.sizes("").keys() == {"b"}
    assert bool(waits) == (fault != "slow")
    assert all("cannot be reached now" in wait for wait in waits)


def test_patience_ends_after_its_time_or_when_asked_to_stop(proxy, bucket):
    proxy.is_cut = True
    for patience in (Patience(seconds=0.05), Patience(should_stop=lambda: True)):
        place = open_place(bucket, patience)
        with pytest.raises(UnreachableError, match=r"cannot be reached now.*run the same command"):
            place.read("a")
    proxy.is_cut = False
    assert open_place(bucket).sizes("") == {}


def test_a_request_that_fails_late_is_repeated(proxy, bucket):
    """As after a stop of the process, or when a long upload is cut at its end."""
    open_place(bucket).write("a", b"1")
    faults = iter(["before"])

    def fault(method, path):
        name = next(faults, "")
        time.sleep(0.3 if name else 0.0)
        return name

    proxy.fault = fault
    assert open_place(bucket, Patience(seconds=0.2)).read("a") == b"1"


def test_a_stop_does_not_wait_for_the_next_attempt(proxy, bucket, monkeypatch):
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 1e6)
    waits: list[str] = []
    proxy.is_cut = True
    patience = Patience(seconds=1e9, should_stop=lambda: bool(waits), on_wait=waits.append)
    with pytest.raises(UnreachableError):
        open_place(bucket, patience).read("a")
    assert len(waits) == 1


@pytest.mark.parametrize("is_large", [False, True])
def test_an_upload_may_take_longer_than_an_answer(proxy, bucket, monkeypatch, is_large):
    """A body is sent before the answer comes, and a link may be slow."""
    monkeypatch.setattr(client, "SILENCE_S", 0.05)
    proxy.fault, proxy.late_s = lambda method, path: "late", 0.6
    waits: list[str] = []
    body: Any = [b"x" * 3_000_000] * 2 if is_large else b"x" * 300_000
    open_place(bucket, Patience(seconds=0.0, on_wait=waits.append)).write("a", body)
    assert any("no answer in time" in wait for wait in waits)
    with pytest.raises(UnreachableError, match="no answer in time"):
        open_place(bucket, Patience(seconds=0.0)).read("a")
    proxy.fault = lambda method, path: ""
    monkeypatch.setattr(client, "SILENCE_S", 60.0)
    assert b"".join(open_place(bucket).chunks("a")) == b"".join(body if is_large else [body])


def test_the_store_that_ignores_conditions_is_recognised(bucket, monkeypatch):
    assert RemotePlace(bucket).honours_conditions
    assert open_place(bucket).sizes("") == {}, "the probe is deleted"
    monkeypatch.setattr(RemotePlace, "_create", lambda self, store, key, data: True)
    assert not RemotePlace(bucket).honours_conditions


def unreachable(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")


def without_credentials(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(
    ("url", "change", "kind", "says"),
    [
        ("s3://no-such-bucket/x", None, ConfigError, "no bucket 'no-such-bucket'.*create it"),
        (
            "s3://bucket-0",
            unreachable,
            UnreachableError,
            "cannot be reached now at http://127.0.0.1:1: Connection refused; check the network",
        ),
        ("s3://bucket-0", without_credentials, ConfigError, "found no credentials.*AWS_PROFILE"),
    ],
)
def test_errors_say_what_to_do(bucket, monkeypatch, url, change, kind, says):
    if change:
        change(monkeypatch)
    for use in (
        lambda place: place.read("a"),
        lambda place: place.write("a", b""),
        lambda place: place.sizes(""),
        lambda place: place.folders("segments/"),
        lambda place: place.create("a", b""),
    ):
        with pytest.raises(kind, match=says) as caught:
            use(open_place(url, Patience(seconds=0.0)))
        assert not any(key in str(caught.value) for key in KEYS)
        assert url in str(caught.value)


def test_a_refusal_names_the_credentials_but_does_not_show_them(proxy, bucket, monkeypatch):
    monkeypatch.setattr(client, "_explain", client._explain)
    error = client._errors().PermissionDeniedError(f"403 for {KEYS[0]}")
    found = client._explain("s3://b", "s3://b/key", error)
    assert isinstance(found, ConfigError)
    assert "refuses these credentials" in str(found)
    assert KEYS[0] not in str(found)


def test_a_wrong_clock_is_named_as_the_cause():
    pytest.importorskip("obstore")
    error = client._errors().PermissionDeniedError("403: <Code>RequestTimeTooSkewed</Code>")
    assert "clock is wrong" in str(client._explain("s3://b", "s3://b/key", error))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://user:hunter2@bucket/d", "contains @"),
        ("memory://user:hunter2@bucket/d", "contains @"),
        ("file://user:hunter2@host/d", "is a URL, expected a path"),
        ("s3://user:p@hunter2@bucket/d", "contains @"),
        ("s3://bucket/d?token=hunter2", r"contains @, \?"),
        ("s3://bucket/a/../b", "not a plain URL"),
        ("s3://", "is a URL|not a plain URL"),
        ("ftp://host/d", "is a URL, expected a path"),
    ],
)
def test_urls_with_secrets_or_without_sense_are_refused(url, says):
    with pytest.raises(ConfigError, match=says) as caught:
        open_place(url)
    assert "hunter2" not in str(caught.value)


def test_an_endpoint_with_a_password_is_refused_and_not_shown(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@127.0.0.1:1")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL") as caught:
        open_place(bucket)
    assert "hunter2" not in str(caught.value)


def test_credentials_come_from_the_files_of_aws_too(bucket, moto, monkeypatch, tmp_path):
    for name in moto.environment:
        monkeypatch.delenv(name)
    folder = tmp_path / "home" / ".aws"
    folder.mkdir(parents=True)
    keys = f"aws_access_key_id = {KEYS[0]}\naws_secret_access_key = {KEYS[1]}\n"
    (folder / "credentials").write_text(f"[lab]\n{keys}")
    (folder / "config").write_text(f"[profile lab]\nregion = x\nendpoint_url = {moto.endpoint}\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert open_place(bucket).sizes("") == {}
    (folder / "config").write_text("no section")
    with pytest.raises(ConfigError, match=r"config cannot be read.*AWS_CONFIG_FILE"):
        open_place(bucket)


def test_a_path_that_was_a_url_is_one_again(tmp_path):
    assert remote_url("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert remote_url(tmp_path.__class__("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert remote_url(tmp_path) is None
    assert remote_url("data") is None
    assert isinstance(open_place("data"), LocalPlace)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", missing)
    client._obstore.cache_clear()
    try:
        with pytest.raises(MissingPackageError, match=r"obstore.*\[cloud\]"):
            open_place("s3://bucket")
    finally:
        client._obstore.cache_clear()


def missing(name):
    raise ImportError(name)


def test_the_limit_of_the_bandwidth_holds_for_all_transfers_together(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(time, "sleep", waited.append)
    limiter = client.Limiter(1000.0)
    for _ in range(3):
        limiter.spend(500)
    assert waited == [0.0, 0.5, 1.0]
