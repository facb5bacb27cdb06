"""The same promises on other engines: SeaweedFS, and rclone, which ignores conditions."""

import pytest

from avtd3.store.remote.client import LocalPlace, RemotePlace
from avtd3.store.remote.commit import Unit
from avtd3.store.remote.log import LogReader
from avtd3.store.remote.transfer import SegmentCopier, create_dataset, transfer
from avtd3.tests.store.remote import servers, test_commit
from avtd3.tests.store.remote.datasets import add, content, copy, make, sealed

pytestmark = pytest.mark.slow


def on(*names):
    return pytest.mark.parametrize("server", names, indirect=True)


@on("weed", "rclone")
def test_a_dataset_goes_there_and_back(url, tmp_path):
    data = make(tmp_path / "data", [(3,), (2,)])
    assert transfer(data.path, url).copied == 2
    add(data, 9)
    assert transfer(data.path, url).copied == 1
    transfer(url, tmp_path / "back")
    assert content(tmp_path / "back") == content(data.path)
    assert len(LogReader(RemotePlace(url)).open()) == 3


@pytest.mark.parametrize(
    ("server", "honours"), [("weed", True), ("rclone", False)], indirect=["server"]
)
def test_the_probe_recognises_what_the_engine_does(url, honours):
    place = RemotePlace(url)
    assert place.honours_conditions == honours
    if honours:
        test_commit.test_one_of_many_concurrent_claims_wins(RemotePlace(f"{url}/other"))
    test_commit.test_the_first_claim_wins_and_all_learn_who_won(place)


@on("weed")
def test_units_are_published_once_while_requests_fail(server, url, tmp_path, monkeypatch):
    with servers.FaultProxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        test_commit.units_survive(url, tmp_path, proxy, units=10, attempts=2)


@on("rclone")
def test_without_conditions_each_unit_is_read_once_though_two_may_be_published(url, tmp_path):
    """Two workers look for a claim at the same time, see none, and both publish."""
    place = RemotePlace(url)
    data = make(tmp_path / "data", [(2,)])
    names = [*data.segment_ids(), add(data, 7)]
    create_dataset(LocalPlace(data.path), place, (data.path / "zarr.json").read_bytes())
    unit = Unit(plan="plan", number=0)
    with SegmentCopier(LocalPlace(data.path), place) as copier:
        copy(copier, names[0], unit=unit)
        place.delete([unit.key])  # what the other one saw when it looked
        copy(copier, names[1], unit=unit)
    assert len(sealed(place)) == 2
    assert len(LogReader(place).open()) == 1


@on("weed")
def test_listings_that_lag_hide_nothing_for_long(server, url, tmp_path, monkeypatch):
    with servers.FaultProxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        place = RemotePlace(url)
        data = make(tmp_path / "data", [(2,)])
        create_dataset(LocalPlace(data.path), place, (data.path / "zarr.json").read_bytes())
        reader = LogReader(place)
        reader.open()
        names = [add(data, 10 + number) for number in range(6)]
        with SegmentCopier(LocalPlace(data.path), place) as copier:
            for name in names:
                copy(copier, name)
                proxy.lag_s = 1.5
                reader.refresh()
                proxy.lag_s = 0.0
        reader.refresh()
        assert set(reader.segments) == set(names)
