"""Publication on a disk that fails or loses its power at any moment: all of a segment, or none."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import StorageError
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.staging import publish
from avtd3.tests.store.disk import failing
from avtd3.tests.store.segments import assert_holds, feed, make_episode, make_spec, make_writer

SPEC = make_spec(vector=1, terms=1)
CODES = (errno.ENOSPC, errno.EIO)


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def holding(path, seed=0):
    """A dataset, and a writer that holds one episode for it."""
    dataset = Dataset.create(path, SPEC)
    writer = make_writer(dataset, codec=FrameCodec(name="raw"))
    episode = make_episode(SPEC, 2, seed)
    feed(writer, episode)
    return dataset, writer, episode


def operations(tmp_path):
    dataset, writer, _ = holding(tmp_path / "count")
    with failing(dataset.path) as disk:
        writer.flush()
    return disk.count


def fail_at(tmp_path, moments, audit_every):
    """Fail at these operations in turn; returns the names of those that failed."""
    failed = []
    for number, (k, code) in enumerate(moments):
        dataset, writer, episode = holding(tmp_path / "d", seed=k)
        failed.append(fail_once(dataset, writer, k, code))
        published = dataset.segment_ids()
        assert dataset.unsealed_ids() == []
        assert_holds(dataset, [episode] if published else [])
        assert writer.steps_unpublished == (0 if published else episode.length)
        assert (writer.close() is None) == bool(published)
        assert_holds(dataset, [episode])
        for segment in dataset.snapshot().segments:
            segment.verify()
        if number % audit_every == 0:
            report = audit([dataset.path], AuditConfig(scheduler="sync"))
            assert report.verdict in ("ok", "warnings")  # one episode is few
        shutil.rmtree(dataset.path)
    return failed


def fail_once(dataset, writer, k, code):
    """Publish on a disk that fails at the k-th operation; returns that one's name."""
    refused: StorageError | None = None
    with failing(dataset.path, k, code) as disk:
        try:
            writer.flush()
        except StorageError as error:
            refused = error
    # `mkdir` of what is there already is no failure.
    assert refused is not None or disk.failed == "mkdir", f"{disk.failed} failed in silence"
    if refused is not None:
        assert (refused.errno, str(dataset.path) in str(refused)) == (code, True)
    left = [path.name for path in dataset.staging_path.iterdir()]
    assert left == [] or disk.failed == "unlink"
    assert all(name.endswith(".owner.json") for name in left)
    return disk.failed


def test_a_disk_that_fails_at_any_operation_leaves_all_or_nothing(tmp_path, no_waiting):
    total = operations(tmp_path)
    numbers = [*range(1, total - 6, 17), *range(total - 6, total + 1)]
    failed = fail_at(tmp_path, zip(numbers, itertools.cycle(CODES), strict=False), audit_every=10)
    assert set(failed) >= {"open", "write", "fsync", "mkdir", "rename", "unlink"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_disk_that_fails_at_every_operation_leaves_all_or_nothing(tmp_path, no_waiting):
    total = operations(tmp_path)
    moments = list(itertools.product(range(1, total + 1), CODES))
    assert len(fail_at(tmp_path, moments, audit_every=3)) == 2 * total > 200


def after_power_cut(log, staging, target, path):
    """Make the dataset that a disk may hold which lost its power after these operations.

    The worst that POSIX allows: names and renames have come through, the bytes of a file only
    where an fsync followed its last write.
    """
    dataset = Dataset.create(path, SPEC)
    if ("rename", str(target)) in log:
        copy = dataset.segments_path / target.name
        shutil.copytree(target, copy)
        order = {entry: number for number, entry in enumerate(log)}
        for file in [p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()]:
            written = order[("write", f"{staging}/{file}")]
            if order.get(("fsync", f"{staging}/{file}"), -1) < written:
                (copy / file).write_bytes(b"")
    return dataset


def recorded(tmp_path):
    """The operations of one publication, its staging directory, and the segment."""
    dataset, writer, _ = holding(tmp_path / "d")
    with failing(dataset.path) as disk:
        published = writer.flush()
    return disk.log, str(dataset.staging_path / published.segment_id), published.path


def check_order(log, staging, target):
    """Every byte and name of a segment is on the disk before its rename, and that after it."""
    moved = log.index(("rename", str(target)))
    files = [p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()]
    folders = [p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_dir()]
    last = {entry: number for number, entry in enumerate(log)}
    for name in files:
        path = f"{staging}/{name}"
        wrote, synced = last[("write", path)], last.get(("fsync", path), -1)
        assert wrote < synced < moved, f"{name} is not fsynced between its writing and the rename"
    for name in (".", *folders):
        path = os.path.normpath(f"{staging}/{name}")
        made = [
            number
            for number, (what, place) in enumerate(log)
            if what in ("open", "mkdir") and str(Path(place).parent) == path and number < moved
        ]
        synced = last.get(("fsync", path), -1)
        assert max(made) < synced < moved, f"directory {name} is not fsynced before the rename"
    after = log[moved + 1 :]
    assert ("fsync", str(target.parent)) in after, "segments/ is not fsynced after the rename"
    manifest = log.index(("open", f"{staging}/MANIFEST.json"))
    others = [last[("fsync", f"{staging}/{n}")] for n in files if n != "MANIFEST.json"]
    assert max(others) < manifest, "the manifest is begun before all else is on the disk"


def test_all_is_fsynced_before_the_rename_and_the_rename_after(tmp_path):
    check_order(*recorded(tmp_path))


FORGOTTEN = {
    "a file": "reward/c/0",
    "the manifest": "MANIFEST.json",
    "a directory": "frames/c/0",
    "the segment's directory": ".",
    "segments/": "..",
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_an_fsync_that_is_forgotten_would_be_found(tmp_path, what):
    log, staging, target = recorded(tmp_path)
    place = os.path.normpath(f"{staging}/{FORGOTTEN[what]}")
    if what == "segments/":
        place = str(target.parent)
    with pytest.raises(AssertionError, match=r"fsync|on the disk"):
        check_order([entry for entry in log if entry != ("fsync", place)], staging, target)


def test_a_power_cut_at_any_moment_leaves_all_or_nothing(tmp_path):
    log, staging, target = recorded(tmp_path)
    moved = log.index(("rename", str(target)))
    for cut in range(moved, len(log) + 1):
        dataset = after_power_cut(log[:cut], staging, target, tmp_path / f"cut-{cut}")
        snapshot = dataset.snapshot()
        assert (len(snapshot.segments), snapshot.refused) == (int(cut > moved), ())
        for segment in snapshot.segments:
            segment.verify()


@pytest.mark.parametrize("file", ["reward/c/0", "frames/c/0/0/0/0", "MANIFEST.json", "zarr.json"])
def test_bytes_that_a_power_cut_took_are_refused_and_not_read_as_zeros(tmp_path, file):
    """On a disk that lies about fsync."""
    log, staging, target = recorded(tmp_path)
    lied = [entry for entry in log if entry != ("fsync", f"{staging}/{file}")]
    snapshot = after_power_cut(lied, staging, target, tmp_path / "cut").snapshot()
    assert snapshot.segments == ()
    assert [refusal.segment_id for refusal in snapshot.refused] == [target.name]


def test_a_publication_onto_a_segment_that_is_there_leaves_it_alone(tmp_path, no_waiting):
    dataset, writer, episode = holding(tmp_path / "d")
    target = writer.flush().path
    files = {"a": b"other", MANIFEST_FILE: b"{}"}
    with pytest.raises(StorageError, match="not empty"):
        publish(dataset.staging_path / "x", target, files)
    assert list(dataset.staging_path.iterdir()) == []
    assert_holds(dataset, [episode])


def may_mount():
    try:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="this machine lets no one mount a tmpfs")
def test_a_real_disk_that_is_full_at_every_page(tmp_path):
    command = ["unshare", "-rm", sys.executable, "-m", "avtd3.tests.store.small_disk"]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) > 40  # each of 40 files takes a page
