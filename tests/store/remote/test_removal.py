"""Removal at a URL: readers see each episode once, whatever is killed, and nothing comes back."""

import random
import shutil
import signal
import subprocess
import sys

import pytest

from avtd3.store import Dataset
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.store.maintenance.removal import REMOVED_FILE, read_removals
from avtd3.store.remote import background, client
from avtd3.store.remote.background import Mirror
from avtd3.store.remote.client import RemotePlace, open_place
from avtd3.store.remote.log import LogReader, logged_segments
from avtd3.store.remote.transfer import transfer
from avtd3.tests.store.maintenance.datasets import identity
from avtd3.tests.store.remote.datasets import add, content, make, sealed


@pytest.fixture
def url(tmp_path):
    pytest.importorskip("obstore")
    return f"memory://{tmp_path.name}"


@pytest.fixture
def data(tmp_path, url):
    """A dataset of three segments that is also at the URL."""
    dataset = make(tmp_path / "data", [(3,), (4,), (2,)])
    transfer(dataset.path, url)
    return dataset


def seen_at(url, folder):
    """The episodes that somebody sees who pulls the dataset now."""
    shutil.rmtree(folder, ignore_errors=True)
    report = transfer(url, folder)
    assert report.problems == ()
    return sorted(identity(Dataset.open(folder)))


def push(data, url):
    report = transfer(data.path, url, removals=True)
    assert report.problems == ()
    return report


def test_a_compaction_is_published_with_the_removal_of_what_it_merged(data, url, tmp_path):
    episodes = sorted(identity(data))
    compact(data.path)
    transfer(data.path, url)
    assert len(sealed(open_place(url))) == 4, "without the option, nothing is removed"
    assert seen_at(url, tmp_path / "back") == episodes
    assert push(data, url).removed == 3
    assert sealed(open_place(url)) == data.segment_ids()
    assert open_place(url).folders("segments/") == data.segment_ids(), "all files are deleted"
    assert seen_at(url, tmp_path / "back") == episodes
    assert push(data, url).removed == 0
    assert [entry.segment for entry in LogReader(RemotePlace(url)).open()] == data.segment_ids()


def test_removals_follow_several_compactions_to_the_last(data, url, tmp_path):
    compact(data.path)
    for number in (7, 8):
        add(data, number)
    episodes = sorted(identity(data))
    compact(data.path)
    assert push(data, url).removed == 3
    assert sealed(open_place(url)) == data.segment_ids()
    reader = LogReader(RemotePlace(url))
    reader.open()
    assert {each.replaced_by for each in reader.removed.values()} == set(data.segment_ids())
    assert seen_at(url, tmp_path / "back") == episodes


def test_what_was_removed_is_not_copied_there_again(data, url, tmp_path):
    stale = tmp_path / "stale"
    transfer(url, stale)
    prune(data.path, PruneConfig(max_steps=2))
    assert push(data, url).removed == 2
    assert transfer(stale, url).copied == 0
    assert sealed(open_place(url)) == data.segment_ids()
    transfer(url, stale)
    assert len(Dataset.open(stale).segment_ids()) == 3, "a copy loses nothing by a pull"
    transfer(stale, data.path)
    assert len(data.segment_ids()) == 1, "nor does a directory get back what was pruned there"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("how", ["compact", "prune"])
def test_a_kill_between_every_two_requests_shows_every_episode_once(
    tmp_path, url, monkeypatch, how
):
    """Pull and follow after each kill; then the same command completes the work."""
    step, is_done = 0, False
    request = client.RemotePlace._call
    while not is_done:
        there, data = f"{url}/{step}", make(tmp_path / f"data-{step}", [(3,), (4,), (2,)])
        transfer(data.path, there)
        mirror = Mirror(there, tmp_path / f"mirror-{step}", max_bytes=10**9, steps=10**9)
        assert mirror.fill(lambda: False, lambda _: None)
        before = sorted(identity(data))
        compact(data.path) if how == "compact" else prune(data.path, PruneConfig(max_steps=2))
        after = sorted(identity(data))
        kinds: list[str] = []

        def call(self, key, operation, kinds=kinds, step=step, **options):
            kind = "files" if "/c/" in key or key.endswith("zarr.json") else key.rstrip("/")
            if kind not in kinds:
                if len(kinds) == step:
                    raise Killed
                kinds.append(kind)
            return request(self, key, operation, **options)

        with monkeypatch.context() as patch:
            patch.setattr(client.RemotePlace, "_call", call)
            patch.setattr("avtd3.store.remote.transfer.THREADS", 1)
            try:
                push(data, there)
                is_done = True
            except Killed:
                pass
        seen = seen_at(there, tmp_path / f"back-{step}")
        assert set(after) <= set(seen) <= set(before)
        assert len(set(seen)) == len(seen)
        mirror.work()
        followed = sorted(identity(Dataset.open(mirror.path)))
        assert followed == seen
        push(data, there)
        mirror.work()
        assert sorted(identity(Dataset.open(mirror.path))) == after
        assert seen_at(there, tmp_path / f"back-{step}") == after
        assert open_place(there).folders("segments/") == data.segment_ids()
        step += 1
    assert step > 8


@pytest.mark.slow
def test_a_command_that_gets_sigkill_at_any_request_is_completed_by_the_next(
    proxy, bucket, tmp_path
):
    """The proxy kills the process before or after the server has done what a request asks for."""
    rng, total = random.Random(17), 0
    for attempt in range(7):
        url, data = f"{bucket}/{attempt}", make(tmp_path / f"data-{attempt}", [(3,), (4,), (2,)])
        transfer(data.path, url)
        old, before = data.segment_ids(), sorted(identity(data))
        compact(data.path)
        add(data, 9)
        command = [sys.executable, "-m", "avtd3.cli", "push", data.path, url, "--removals"]
        proxy.requests.clear()
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE)
        last = rng.randrange(1, total) if total else None

        def fault(method, path, process=process, last=last):
            if last is None or len(proxy.requests) < last:
                return ""
            process.kill()
            process.wait()
            return rng.choice(["before", ""])

        proxy.fault = fault
        _, errors = process.communicate(timeout=240.0)
        proxy.fault = lambda method, path: ""
        total = total or len(proxy.requests)
        assert process.returncode == (0 if last is None else -signal.SIGKILL), errors
        after = sorted(identity(data))
        seen = seen_at(url, tmp_path / "back")
        assert set(before) <= set(seen) <= set(after), f"killed at request {last} of {total}"
        assert len(set(seen)) == len(seen)
        push(data, url)
        assert seen_at(url, tmp_path / "back") == after
        assert content(tmp_path / "back") == content(data.path)
        assert open_place(url).folders("segments/") == data.segment_ids()
        reader = LogReader(RemotePlace(url))
        reader.open()
        assert {*reader.removed} == {*old}
        assert {each.replaced_by for each in reader.removed.values()} == {data.segment_ids()[0]}


def test_absence_is_no_removal_and_other_bytes_are_not_removed(data, url, tmp_path):
    first, second, third = data.segment_ids()
    shutil.rmtree(data.segments_path / first)  # by hand, or not yet copied
    prune(data.path, PruneConfig(max_steps=2))
    records = data.path / REMOVED_FILE
    digest = read_removals(data.path)[second].digest
    records.write_bytes(
        records.read_bytes().replace(digest.encode(), b"0" * 64) + b"\n{cut\n" + b"[" * 5000
    )
    report = transfer(data.path, url, removals=True)
    assert report.removed == 0
    assert "is not the one that is known here" in report.problems[0]
    assert sealed(open_place(url)) == [first, second, third]


def test_a_segment_stays_until_its_replacement_is_there(data, url, monkeypatch):
    old = data.segment_ids()
    compact(data.path)
    (merged,) = data.segment_ids()
    reward = data.segments_path / merged / "reward" / "c" / "0"
    reward.write_bytes(reward.read_bytes()[::-1])
    report = transfer(data.path, url, removals=True)
    assert report.removed == 0
    assert len(report.problems) == 4
    assert sealed(open_place(url)) == old


def mirror_of(url, tmp_path, **options):
    mirror = Mirror(url, tmp_path / "mirror", **{"max_bytes": 10**9, "steps": 10**9, **options})
    assert mirror.fill(lambda: False, lambda _: None)
    return mirror


def test_a_mirror_counts_merged_steps_once(data, url, tmp_path):
    mirror, fresh = mirror_of(url, tmp_path, steps=2), tmp_path / "fresh"
    assert mirror.steps_elsewhere == 7
    compact(data.path)
    sizes = [mirror.size_bytes, data.snapshot().segments[0].size_bytes]
    mirror._max_bytes = sum(sizes) - 1  # no room for the merged segment
    push(data, url)
    mirror.work()
    assert mirror.steps_elsewhere == 7
    assert len(Dataset.open(mirror.path).segment_ids()) == 1, "what it has stays useful"
    fresh.mkdir()
    assert mirror_of(url, fresh).steps_elsewhere == 0


def test_what_was_removed_on_purpose_may_be_evicted(data, url, tmp_path):
    mirror = mirror_of(url, tmp_path)
    old = data.segment_ids()
    compact(data.path)
    mirror._max_bytes = mirror.size_bytes
    push(data, url)
    add(data, 9, lengths=(4,))
    transfer(data.path, url)
    mirror.work()
    here = Dataset.open(mirror.path).segment_ids()
    assert here[-1] == data.segment_ids()[-1]
    assert old[0] not in here


def test_a_missing_manifest_is_looked_for_twice(data, url, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "_ABSENT_S", 0.0)
    key = f"segments/{data.segment_ids()[0]}/MANIFEST.json"
    place = open_place(url)
    manifest = place.read(key)
    place.delete([key])
    mirror = mirror_of(url, tmp_path)
    assert Dataset.open(mirror.path).segment_ids() == data.segment_ids()[1:]
    place.write(key, manifest)
    mirror.work()
    assert Dataset.open(mirror.path).segment_ids() == data.segment_ids()


def test_the_command_removes_and_refuses_other_places(avtd3, data, url, tmp_path):
    prune(data.path, PruneConfig(max_steps=2))
    code, out, _ = avtd3("push", data.path, url, "--removals")
    assert (code, "removed 2 segments there" in out) == (0, True)
    assert len(logged_segments(RemotePlace(url))[1]) == 2
    code, _, err = avtd3("push", url, tmp_path / "back", "--removals")
    assert code == 2
    assert "--removals needs a directory as the source and a URL" in err
