"""Mounts that lack something: overlayfs, no fsync of directories, umasks, links, full tables."""

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from avtd3.store import files
from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    DatasetUnreadableError,
    SegmentCorruptError,
    SegmentUnreadableError,
    StorageError,
    advice,
)
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import relabel
from avtd3.store.maintenance.pins import pin
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.disk import CrashError, failing
from avtd3.tests.store.maintenance.datasets import fill, identity


@pytest.fixture
def crossing(monkeypatch):
    """Let published segments behave as in overlayfs' lower layer: their rename is refused."""
    rename = os.rename

    def refuse(source, target, **options):
        if Path(source).parent.name == "segments" and not Path(source).name.startswith("."):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)
        return rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def overlay(tmp_path):
    """A real overlay with a dataset of three segments in its lower layer."""
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for path in (upper, work, merged):
        path.mkdir()
    fill(lower / "data", [[3], [2], [4]])
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, merged]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here")
    try:
        yield merged / "data"
    finally:
        subprocess.run(["umount", merged], check=True)


def everything(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


def test_segments_of_a_real_lower_layer_are_pruned_merged_and_quarantined(overlay):
    dataset = Dataset.open(overlay)
    episodes = identity(dataset)
    assert len(prune(overlay, PruneConfig(max_steps=6)).removed) == 1
    assert identity(dataset) == episodes[1:]
    assert compact(overlay, target_steps=100).merged_segments == 2
    assert identity(dataset) == episodes[1:]
    assert len(list(dataset.segments_path.iterdir())) == 1
    assert not any(dataset.staging_path.iterdir())


def test_a_segment_of_a_real_lower_layer_is_quarantined_whole(overlay):
    dataset = Dataset.open(overlay)
    name = dataset.segment_ids()[0]
    before = everything(dataset.segments_path / name)
    moved = dataset.quarantine(name)
    assert everything(moved) == before
    assert len(list(dataset.segments_path.iterdir())) == 2
    assert everything(dataset.quarantine_path)[0] == name
    assert not any(dataset.staging_path.iterdir())


def test_a_directory_on_another_file_system_is_copied_whole(tmp_path, crossing):
    source, target = tmp_path / "segments" / "a", tmp_path / "b"
    (source / "c").mkdir(parents=True)
    (source / "c" / "data").write_bytes(b"1")
    (source / "link").symlink_to("c/data")
    os.mkfifo(source / "pipe")
    assert files.move_directory(source, target) is False
    assert everything(target) == ["c", "c/data", "link"]
    assert everything(tmp_path) == everything(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "segments"]


def crash_at(dataset, number, command):
    """Run a command that is killed at its ``number``-th operation; returns whether it was."""
    with failing(dataset.path, number, CrashError(), is_final=True) as disk:
        with contextlib.suppress(CrashError):
            command()
        return disk.failed is not None


def check_crashes(tmp_path, command, check, stride):
    """Kill a command at every ``stride``-th operation, then clean; ``check`` sees each result."""
    master, _ = fill(tmp_path / "master", [[3], [2]])
    episodes, name = identity(master), master.segment_ids()[0]
    for number in range(1, 1000, stride):
        path = tmp_path / str(number)
        shutil.copytree(master.path, path, copy_function=os.link)
        dataset = Dataset.open(path)
        was_killed = crash_at(dataset, number, functools.partial(command, dataset, name))
        dataset.clean_staging(older_than_s=-1.0)
        assert dataset.unsealed_ids() == []
        assert not any(dataset.staging_path.iterdir())
        for segment in dataset.snapshot().segments:
            segment.verify()
        check(dataset, episodes, name)
        if not was_killed:
            return number
    raise AssertionError("the command never ends")


STRIDES = [pytest.param(1, marks=pytest.mark.slow), 13]


@pytest.mark.parametrize("stride", STRIDES)
def test_a_removal_without_rename_is_whole_or_not_at_all(tmp_path, crossing, stride):
    def check(dataset, episodes, name):
        assert identity(dataset) in (episodes, episodes[1:])

    def remove(dataset, name):
        prune(dataset.path, PruneConfig(max_steps=2))

    assert check_crashes(tmp_path, remove, check, stride) > 20


@pytest.mark.parametrize("stride", STRIDES)
def test_a_quarantine_without_rename_is_whole_or_not_at_all(tmp_path, crossing, stride):
    def check(dataset, episodes, name):
        found = identity(dataset)
        assert found in (episodes, episodes[1:])
        there = everything(dataset.quarantine_path) if dataset.quarantine_path.exists() else []
        assert not [path for path in there if path.startswith(".")]
        if found == episodes[1:]:
            assert f"{name}/MANIFEST.json" in there

    def quarantine(dataset, name):
        dataset.quarantine(name)

    assert check_crashes(tmp_path, quarantine, check, stride) > 20


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_mount_that_cannot_fsync_directories_is_warned_about_once(tmp_path, monkeypatch, code):
    fsync = os.fsync

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112 - a number
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(files, "_warned", set())
    with pytest.warns(UserWarning, match="cannot fsync directories") as caught:
        dataset, _ = fill(tmp_path / "d", [[3], [2]])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compact(dataset.path, target_steps=100)
    assert len(identity(dataset)) == 2


def test_a_device_that_fails_to_fsync_a_directory_is_not_tolerated(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.fsync_directory(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_all_that_is_created_has_the_permissions_that_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        dataset, _ = fill(tmp_path / "d", [[3], [2]])
        pin(dataset.path, dataset.segment_ids()[:1])
        relabel(dataset.path, tmp_path / "e", {"r0": 2.0})
        compact(tmp_path / "e", target_steps=100)
        dataset.quarantine(dataset.segment_ids()[0])
        audit([dataset.path], AuditConfig(scheduler="sync"))
    finally:
        os.umask(before)
    for path in (tmp_path / "d", *tmp_path.rglob("*")):
        wanted = mode | (0o111 & ~umask) if path.is_dir() else mode
        assert path.stat().st_mode & 0o777 == wanted & 0o777, path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become two users")
def test_another_member_of_the_group_may_pin_and_prune():
    one, other, group = 70001, 70002, 70003
    before = os.umask(0o002)
    folder = Path(tempfile.mkdtemp())  # those of pytest are private
    folder.chmod(0o777)
    try:
        with acting_as(one, group):
            dataset, _ = fill(folder / "d", [[3], [2], [4]])
            pin(dataset.path, dataset.segment_ids()[-1:])
        with acting_as(other, group):
            pin(dataset.path, dataset.segment_ids()[:1])
            assert len(prune(dataset.path, PruneConfig(max_steps=7)).removed) == 1
            assert not any(dataset.staging_path.iterdir())
    finally:
        os.umask(before)
        shutil.rmtree(folder)


@contextlib.contextmanager
def acting_as(user, group):
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_a_segment_that_is_a_link_is_called_one(tmp_path):
    dataset, _ = fill(tmp_path / "d", [[3], [2]])
    name = dataset.segment_ids()[0]
    (dataset.segments_path / name).rename(tmp_path / "elsewhere")
    (dataset.segments_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SegmentCorruptError, match=r"is a symbolic link.*move the segment itself"):
        dataset.open_segment(name)
    assert "symbolic link" in dataset.snapshot().refused[0].reason
    report = audit([dataset.path], AuditConfig(scheduler="sync"))
    messages = [finding.message for finding in report.findings]
    assert any("is a symbolic link" in message for message in messages), messages


LIMITS = {
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "too many open files on this machine",
    errno.ENODEV: "local disk",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
    errno.ENOMEM: "out of memory",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount it again",
}


@pytest.mark.parametrize(("code", "says"), LIMITS.items())
def test_every_message_says_what_it_is_where_and_what_to_do(tmp_path, monkeypatch, code, says):
    dataset, _ = fill(tmp_path / "d", [[3]])

    def fail(*_args, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(time, "sleep", lambda _: None)
    calls = {
        StorageError: lambda: files.write_aside(tmp_path / "report.html", b"x"),
        DatasetUnreadableError: lambda: Dataset.open(dataset.path),
        SegmentUnreadableError: lambda: dataset.open_segment(dataset.segment_ids()[0]),
    }
    for kind, call in calls.items():
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            with pytest.raises(kind) as caught:
                call()
        text = str(caught.value)
        assert says in text
        assert str(tmp_path) in text
        assert "check the path" not in text
        assert ".tmp" not in text
        assert "\n" not in text


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_dataset_of_which_nothing_can_be_known_is_unreadable_not_missing(
    tmp_path, monkeypatch, code
):
    def fail(path, *_args, **_options):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(DatasetUnreadableError, match="cannot be read"):
        Dataset.open(tmp_path / "none")


def test_no_known_error_is_answered_with_check_the_path():
    for code in errno.errorcode:
        for reads in (False, True):
            text = advice(OSError(code, os.strerror(code)), reads=reads)
            assert "check the path" not in text
            assert ": " in text


def test_sampling_and_reading_work_on_a_lower_layer(overlay):
    with Sampler([Dataset.open(overlay)], ReplayConfig(batch_size=4), seed=0) as sampler:
        assert np.isfinite(sampler.sample().reward).all()
