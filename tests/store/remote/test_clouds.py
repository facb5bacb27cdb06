"""The same promises at `az://` URLs, with Azurite, and at `gs://` URLs, with fake-gcs-server."""

import os
from typing import Any

import pytest

from avtd3.collect import CollectConfig, collect
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.trainer import train
from avtd3.store import ConfigError, Dataset, ReplayConfig, UnreachableError
from avtd3.store.remote import background
from avtd3.store.remote.background import Mirror, PolicyPull
from avtd3.store.remote.client import Patience, RemotePlace
from avtd3.store.remote.log import LogReader, add_entry
from avtd3.store.remote.transfer import transfer
from avtd3.store.writer import WriterConfig
from avtd3.tests.store.remote import servers, test_client, test_commit, test_log
from avtd3.tests.store.remote.datasets import add, content, make, sealed
from avtd3.tests.store.remote.test_transfer import policy

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["az", "gs"], indirect=True)]
WORLD = "avtd3.tests.collect.line_world:Line"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(background, "PERIOD_S", 0.02)


def test_files_claims_and_the_log_behave_as_on_other_stores(url, monkeypatch, tmp_path):
    test_client.test_files_are_written_read_listed_and_deleted(RemotePlace(f"{url}/files"))
    place = RemotePlace(url)
    assert place.honours_conditions
    test_commit.test_the_first_claim_wins_and_all_learn_who_won(place)
    test_commit.test_one_of_many_concurrent_claims_wins(RemotePlace(f"{url}/race"))
    test_commit.test_the_winner_that_died_after_its_claim_is_rolled_forward(
        f"{url}/commit", tmp_path, "loser"
    )
    log = RemotePlace(f"{url}/log-of-it")
    for number in range(5):
        add_entry(log, test_log.entry(f"s{number}", 1000.0 + number))
    assert len(LogReader(log).open()) == 5
    keys = list(log.sizes("log/"))
    assert list(log.sizes("log/", after=keys[2])) == keys[3:], "only what comes after the key"


def test_a_listing_after_a_key_is_cheap_on_google_only(server, url, monkeypatch):
    """Azure has no way to start a listing after a key, so all entries are listed each time."""
    with servers.FaultProxy(server) as proxy:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value.replace(server.endpoint, proxy.endpoint))
        RemotePlace(url).sizes("log/", after="log/2")
        (listing,) = [path for _, path in proxy.requests if "prefix" in path]
    assert ("start-after" in listing) == (server.scheme == "gs")


def test_a_missing_bucket_and_a_cut_link_are_errors_that_say_so(server, monkeypatch):
    missing = f"{server.scheme}://not-there"
    for use in (lambda place: place.read("a"), lambda place: place.write("a", b"x")):
        if server.scheme == "az":
            with pytest.raises(ConfigError, match=r"no bucket 'not-there'.*AZURE_STORAGE_ENDPOINT"):
                use(RemotePlace(missing, Patience(seconds=0.0)))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value.replace(server.endpoint, "http://127.0.0.1:1"))
    with pytest.raises(UnreachableError, match="cannot be reached now"):
        RemotePlace(missing, Patience(seconds=0.0)).read("a")
    key = os.environ.get("AZURE_STORAGE_ENDPOINT", os.environ.get("GOOGLE_BASE_URL", ""))
    name = "AZURE_STORAGE_ENDPOINT" if server.scheme == "az" else "GOOGLE_BASE_URL"
    monkeypatch.setenv(name, key.replace("//", "//me:hunter2@"))
    with pytest.raises(ConfigError, match=f"{name}. contains a user name") as caught:
        RemotePlace(missing)
    assert "hunter2" not in str(caught.value)


def test_a_dataset_goes_there_and_back_and_a_mirror_follows(url, tmp_path):
    data = make(tmp_path / "data", [(3,), (2,)])
    assert transfer(data.path, url).copied == 2
    mirror = Mirror(url, tmp_path / "mirror", max_bytes=10**9, steps=10**9)
    assert mirror.fill(lambda: False, lambda _: None)
    with mirror:
        add(data, 9)
        assert transfer(data.path, url).copied == 1
        assert mirror.finish(lambda: False, lambda _: None)
        assert len(Dataset.open(mirror.path).segment_ids()) == 3
    transfer(url, tmp_path / "back")
    assert content(tmp_path / "back") == content(data.path)


def test_policies_are_polled_by_their_etag(url, tmp_path):
    policy(tmp_path / "policies", 0)
    transfer(tmp_path / "policies", url)
    with PolicyPull(url, tmp_path / "here") as pull:
        assert pull.finish(lambda: False, lambda _: None)
        assert (tmp_path / "here" / "policy-00000000.json").exists()
        policy(tmp_path / "policies", 1)
        transfer(tmp_path / "policies", url)
        assert pull.finish(lambda: False, lambda _: None)
        assert (tmp_path / "here" / "policy-00000001.json").exists()
    place: Any = RemotePlace(url)
    _, etag = place.read_changed("LATEST.json", None)
    if url.startswith("az"):  # fake-gcs-server ignores the ETag of a request
        assert place.read_changed("LATEST.json", etag) is None


def test_collecting_and_learning_equal_the_same_with_directories(server, url, tmp_path):
    config = CollectConfig(
        world=WORLD, driver="random", min_free_mb=0, spool=str(tmp_path / "spool"),
        writer=WriterConfig(segment_steps=12),
    )  # fmt: skip
    report = collect(f"{url}/d", config, episodes=4)
    assert (report.tally.episodes, report.unsent) == (4, "")
    assert len(sealed(RemotePlace(f"{url}/d"))) >= 2
    report = collect(f"{url}/d", config, episodes=5, resume=True)
    assert (report.tally.episodes, len(LogReader(RemotePlace(f"{url}/d")).open()) >= 3) == (1, True)
    learn = LearnConfig(
        updates=4, publish_every=2, checkpoint_every=4, learning_starts=10,
        network=NetworkConfig(hidden=(8,), features=8), replay=ReplayConfig(batch_size=4),
    )  # fmt: skip
    train(learn, datasets=f"{url}/d", run=tmp_path / "run", policies=f"{url}/policies")
    transfer(f"{url}/policies", tmp_path / "back")
    transfer(f"{url}/d", tmp_path / "data")
    train(learn, datasets=tmp_path / "data", run=tmp_path / "local")
    ours, theirs = (
        PolicyStore(path).latest(None) for path in (tmp_path / "back", tmp_path / "local/policies")
    )
    assert ours is not None
    assert theirs is not None
    assert ours.digest == theirs.digest
    key = servers.AZURE[1].encode()
    files = (p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert not any(key in data for data in files)
