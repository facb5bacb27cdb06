"""Commits: whole or not at all, once per unit, whatever dies or is lost on the way."""

import json
import random
import subprocess
import sys
import threading

import pytest

from avtd3.store import SegmentCorruptError
from avtd3.store.remote import client, commit
from avtd3.store.remote.client import LocalPlace, Patience, RemotePlace
from avtd3.store.remote.commit import (
    Unit,
    claim_unit,
    complete_units,
    create_or_read,
    publish_segment,
)
from avtd3.store.remote.log import LogReader
from avtd3.store.remote.transfer import SegmentCopier, create_dataset, transfer
from avtd3.tests.store.remote.datasets import add, content, copy, make, manifest_of, sealed

UNIT = Unit(plan="p" * 16, number=3)


def test_the_first_claim_wins_and_all_learn_who_won(place):
    assert claim_unit(place, UNIT, b"first") == b"first"
    assert claim_unit(place, UNIT, b"second") == b"first"
    assert claim_unit(place, UNIT, b"first") == b"first", "a repeated claim is no conflict"
    assert list(place.sizes("claims/")) == ["claims/pppppppppppppppp/00000003.json"]


def test_one_of_many_concurrent_claims_wins(place):
    barrier = threading.Barrier(8)
    found = []

    def claim(number):
        barrier.wait()
        found.append(claim_unit(place, UNIT, f"claim {number}".encode()))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_store_that_ignores_conditions_keeps_the_first_claim_that_it_shows(bucket):
    place = RemotePlace(bucket)
    place.__dict__["honours_conditions"] = False
    assert claim_unit(place, UNIT, b"first") == b"first"
    assert claim_unit(place, UNIT, b"second") == b"first"


def test_a_lost_answer_is_no_conflict(proxy, bucket):
    """The object was created, the answer was lost, and the repeated request finds it."""
    place = RemotePlace(bucket)
    assert place.honours_conditions
    done = []

    def lose_first(method, path):
        done.append(method)
        return "after" if len(done) == 1 else ""

    proxy.fault = lose_first
    assert create_or_read(place, "a", b"mine") == b"mine"
    assert done == ["PUT", "PUT", "GET"]
    assert create_or_read(place, "a", b"other") == b"mine"


def copier_of(dataset, place):
    source = LocalPlace(dataset.path)
    create_dataset(source, place, source.read("zarr.json"))
    return SegmentCopier(source, place)


def test_publishing_twice_changes_nothing_and_other_bytes_are_refused(bucket, tmp_path):
    dataset, place = make(tmp_path / "data", [(3,)]), RemotePlace(bucket)
    (name,) = dataset.segment_ids()
    with copier_of(dataset, place) as copier:
        copy(copier, name)
        before = {k: place.read(k) for k in place.sizes("segments/")}
        copy(copier, name)
        assert {k: place.read(k) for k in place.sizes("segments/")} == before
        key = f"segments/{name}/MANIFEST.json"
        place.write(key, before[key].replace(b'"host"', b'"hast"'))
        with pytest.raises(SegmentCorruptError, match="exists with other content"):
            copy(copier, name)


def test_a_file_that_the_store_lost_is_found_before_the_manifest_is_created(bucket, tmp_path):
    dataset, place = make(tmp_path / "data", [(3,)]), RemotePlace(bucket)
    (name,) = dataset.segment_ids()
    create_dataset(LocalPlace(dataset.path), place, (dataset.path / "zarr.json").read_bytes())
    with pytest.raises(SegmentCorruptError, match="has None bytes after it was put"):
        publish_segment(place, manifest_of(dataset, name), lambda manifest: None)
    assert sealed(place) == []


KILLED = """
import os, sys
from avtd3.store.remote import client
from avtd3.store.remote.client import LocalPlace, open_place
from avtd3.store.remote.commit import Unit
from avtd3.store.remote.transfer import SegmentCopier, THREADS
from avtd3.store.remote import transfer
transfer.THREADS = 1
source, url, number, step, name = sys.argv[1:]
calls = []
before = client.RemotePlace._call
def call(self, key, operation):
    # Put after put of the array files is the same to a reader: count them as one step.
    kind = "files" if "/c/" in key or key.endswith("zarr.json") else key
    if kind not in calls:
        if len(calls) == int(step):
            os.kill(os.getpid(), 9)
        calls.append(kind)
    return before(self, key, operation)
client.RemotePlace._call = call
place = open_place(url)
place.__dict__["honours_conditions"] = True
with SegmentCopier(LocalPlace(__import__("pathlib").Path(source)), place) as copier:
    unit = Unit(plan="plan", number=int(number)) if number != "none" else None
    copier.copy(*copier.manifest(name), unit=unit)
print(len(calls))
"""


def run_killed(dataset, bucket, name, step, unit="none"):
    words = [sys.executable, "-c", KILLED, str(dataset.path), bucket, unit, str(step), name]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["none", "5"])
def test_a_kill_between_every_two_steps_of_a_commit_loses_and_doubles_nothing(
    bucket, tmp_path, unit
):
    """A process is killed before each step; another attempt with a new segment completes it."""
    step, is_done = 0, False
    while not is_done:
        url = f"{bucket}/{step}"
        place, data = RemotePlace(url), make(tmp_path / f"data-{step}", [(3,)])
        (first,) = data.segment_ids()
        create_dataset(LocalPlace(data.path), place, (data.path / "zarr.json").read_bytes())
        is_done = run_killed(data, url, first, step, unit)
        second = first if unit == "none" else add(data, 7)  # a unit is collected again
        number = None if unit == "none" else Unit(plan="plan", number=int(unit))
        with copier_of(data, place) as copier:
            copy(copier, second, unit=number)
            copy(copier, second, unit=number)
        (published,) = sealed(place)
        assert published in (first, second)
        assert list(LogReader(place).open()) == [LogReader(place).open()[0]]
        assert LogReader(place).open()[0].segment == published
        report = transfer(url, tmp_path / f"back-{step}")
        assert (report.copied, report.problems) == (1, ())
        assert len(content(tmp_path / f"back-{step}")) > 40
        step += 1
    assert step >= (5 if unit == "none" else 6)


@pytest.mark.parametrize("by", ["loser", "client"])
def test_the_winner_that_died_after_its_claim_is_rolled_forward(bucket, tmp_path, by):
    dataset, place = make(tmp_path / "data", [(3,)]), RemotePlace(bucket)
    (winner,) = dataset.segment_ids()
    loser = add(dataset, 7)
    with copier_of(dataset, place) as copier:

        def die(place, key, data):
            if key.endswith("MANIFEST.json"):  # the first step after the claim
                raise RuntimeError("died")
            return create_or_read(place, key, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commit, "create_or_read", die)
            with pytest.raises(RuntimeError):
                copy(copier, winner, unit=UNIT)
        assert sealed(place) == []
        if by == "loser":
            copy(copier, loser, unit=UNIT)
        else:
            assert complete_units(place, UNIT.plan, published=()) == {3}
    assert sealed(place) == [winner]
    assert place.folders("segments/") == [winner], "the loser deletes its own files"
    (entry,) = LogReader(place).open()
    assert (entry.segment, entry.unit) == (winner, 3)
    assert (entry.indices, entry.lengths) == ((-1,), (3,)), "a resume must see its episodes"
    if by == "client":
        place.delete([f"segments/{winner}/MANIFEST.json", f"segments/{winner}/action/c/0/0"])
        assert complete_units(place, UNIT.plan, published=()) == {3}
        assert sealed(place) == [], "a segment that was removed stays so"


def storm(server_proxy, chance, rng):
    """A fault for a share of the requests, at most twice in a row for each."""
    lock = threading.Lock()

    def fault(method, path):
        with lock:
            kinds = ["503", "before", "after", "half"]
            return rng.choice(kinds) if rng.random() < chance else ""

    server_proxy.fault = fault


def units_survive(url, tmp_path, proxy, units, attempts):
    """Every unit is done by several workers at once while requests fail."""
    place = RemotePlace(url, Patience(seconds=600.0))
    data = make(tmp_path / "data", [(2,)])
    create_dataset(LocalPlace(data.path), place, (data.path / "zarr.json").read_bytes())
    names = {
        (unit, attempt): add(data, 10 + unit * attempts + attempt)
        for unit in range(units)
        for attempt in range(attempts)
    }
    storm(proxy, 0.08, random.Random(7))
    errors = []

    def work(attempt):
        try:
            with SegmentCopier(LocalPlace(data.path), place) as copier:
                for unit in range(units):
                    copy(copier, names[unit, attempt], unit=Unit(plan="plan", number=unit))
        except Exception as error:
            errors.append(error)
            raise

    workers = [threading.Thread(target=work, args=(n,)) for n in range(attempts)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    proxy.fault = lambda method, path: ""
    assert errors == []
    assert len(sealed(place)) == units, "nothing lost, nothing doubled"
    with_files = {key.split("/")[1] for key in place.sizes("segments/")}
    assert sorted(with_files) == sealed(place), "no orphans"
    claims = [json.loads(place.read(key))["segment_id"] for key in place.sizes("claims/")]
    assert sorted(claims) == sealed(place)
    assert {entry.segment for entry in LogReader(place).open()} == set(claims)
    transfer(url, tmp_path / "back")
    assert len([p for p in content(tmp_path / "back") if p.endswith("MANIFEST.json")]) == units


@pytest.mark.slow
def test_units_are_published_once_while_requests_fail(proxy, bucket, tmp_path):
    units_survive(bucket, tmp_path, proxy, units=1, attempts=2)


def test_the_local_place_and_the_store_agree_on_units(tmp_path):
    place = LocalPlace(tmp_path / "local")
    assert client.open_place(tmp_path / "local").text == place.text
    claim_unit(place, UNIT, b"x")
    assert (tmp_path / "local" / UNIT.key).read_bytes() == b"x"
