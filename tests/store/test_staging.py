"""What dead processes leave is deleted by whoever comes next; what a live one writes is not."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from avtd3.store import files, staging
from avtd3.store.dataset import Dataset
from avtd3.store.errors import DatasetUnreadableError
from avtd3.store.locks import Identity
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.pins import pin, read_pins
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.tests.store.maintenance.datasets import fill
from avtd3.tests.store.segments import make_spec

SPEC = make_spec()
OLD = (1e9, 1e9)
BUSY = """
import os, pathlib, sys, time
from avtd3.store import files, staging
if sys.argv[2] == "aside":
    os.replace = os.rename = os.fsync = lambda *_: (print("busy", flush=True), time.sleep(600))
    files.write_aside(pathlib.Path(sys.argv[1]), b"{}")
else:
    def check(path):
        print("busy", flush=True)
        time.sleep(600)
    path = pathlib.Path(sys.argv[1])
    files = {"zarr.json": b"{}", "MANIFEST.json": b"{}"}
    staging.publish(path, path.parent / "never", files, check=check)
"""


def start(path, what, before=()):
    """A process that is in the middle of writing something."""
    command = [*before, sys.executable, "-c", BUSY, str(path), what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"busy\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def dataset(tmp_path):
    return Dataset.create(tmp_path / "d", SPEC)


@pytest.fixture
def gone():
    """The identity of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return dataclasses.replace(Identity.current(), pid=process.pid)


def stage(dataset, name, owner=None, *, is_old=False):
    path = dataset.staging_path / name
    path.mkdir()
    (path / "part").write_text("x")
    if owner is not None:
        (dataset.staging_path / f"{name}.owner.json").write_bytes(owner.to_bytes())
    if is_old:
        os.utime(path, OLD)


def test_staging_is_cleaned_of_the_dead_only(dataset, gone):
    here = Identity.current()
    elsewhere = dataclasses.replace(gone, host="another-host")
    stage(dataset, "dead", gone)
    stage(dataset, "alive", here)
    stage(dataset, "elsewhere", elsewhere)
    stage(dataset, "elsewhere-old", elsewhere, is_old=True)
    stage(dataset, "unknown")
    stage(dataset, "unknown-old", is_old=True)
    (dataset.staging_path / "gone.owner.json").write_bytes(gone.to_bytes())
    assert dataset.clean_staging() == ["dead", "elsewhere-old", "unknown-old"]
    left = ["alive", "alive.owner.json", "elsewhere", "elsewhere.owner.json", "unknown"]
    assert names(dataset.staging_path) == left
    assert dataset.clean_staging(older_than_s=-1.0) == ["alive", "elsewhere", "unknown"]


@pytest.mark.parametrize(
    ("changes", "is_deleted"),
    [
        ({}, True),
        ({"pid_namespace": 1}, False),
        ({"machine": "another"}, False),
        ({"boot": "another", "wall_time": 1e9}, True),
        ({"boot": "another", "wall_time": 1e9, "pid_namespace": 1}, True),
        ({"boot": "another"}, False),
        ({"boot": "", "machine": "", "pid_namespace": 0}, False),
    ],
)
@pytest.mark.skipif(not Identity.current().boot, reason="the system has no boot id")
def test_the_owner_decides_not_its_host_name(dataset, gone, changes, is_deleted):
    stage(dataset, "it", dataclasses.replace(gone, **changes))
    assert dataset.clean_staging() == (["it"] if is_deleted else [])


@pytest.mark.parametrize("owner", [b"", b"{", b"[" * 9999, b'{"pid":"1"}', b"\xff", b'{"pid":-1}'])
def test_an_owner_file_that_says_nothing_deletes_nothing(dataset, owner):
    stage(dataset, "it")
    (dataset.staging_path / "it.owner.json").write_bytes(owner)
    assert dataset.clean_staging() == []


def test_an_owner_of_an_older_version_is_not_called_dead(dataset, gone):
    stage(dataset, "it")
    document = {"host": gone.host, "pid": gone.pid, "wall_time": 1.0}
    (dataset.staging_path / "it.owner.json").write_text(json.dumps(document))
    assert dataset.clean_staging() == []


def test_a_collector_in_another_container_with_the_same_host_name_keeps_its_staging(dataset):
    prefix = ("unshare", "--pid", "--fork", "--kill-child")
    try:
        process = start(dataset.staging_path / "it", "segment", prefix)
    except (OSError, AssertionError):
        pytest.skip("namespaces are not permitted here")
    try:
        assert dataset.clean_staging() == []
        assert names(dataset.staging_path) == ["it", "it.owner.json"]
    finally:
        kill(process)
    assert dataset.clean_staging() == []  # nobody here can know
    os.utime(dataset.staging_path / "it", OLD)
    assert dataset.clean_staging() == ["it"]


COMMANDS = {
    "collect": lambda dataset: dataset.clean_staging(),
    "prune": lambda dataset: prune(dataset.path, PruneConfig(max_steps=1000)),
    "compact": lambda dataset: compact(dataset.path),
    "pin": lambda dataset: pin(dataset.path, dataset.segment_ids()),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_whoever_comes_next_sweeps_what_was_killed_and_nothing_else(tmp_path, command):
    dataset, _ = fill(tmp_path / "d", [[2]])
    before = {*names(dataset.path), ".lock", "pins.json"}
    killed = [
        start(dataset.staging_path / "merged", "segment"),
        start(dataset.staging_path / "zarr.json", "aside"),
        start(dataset.path / ".verified.json", "aside"),
        start(dataset.segments_path / "x", "aside"),
    ]
    for process in killed:
        kill(process)
    living = start(dataset.path / "pins.json", "aside")
    try:
        command(dataset)
        assert names(dataset.staging_path) == []
        assert len(names(dataset.segments_path)) == 1
        found = set(names(dataset.path)) - before
        assert len(found) == 1
        assert found.pop().startswith(".pins.json.")
    finally:
        kill(living)


@pytest.mark.parametrize("name", ["config.json", ".verified.json", "x" * 250])
def test_the_next_writer_sweeps_what_a_killed_one_left(tmp_path, name):
    killed, living = start(tmp_path / name, "aside"), start(tmp_path / "other", "aside")
    kill(killed)
    try:
        assert len(names(tmp_path)) == 2
        files.write_aside(tmp_path / name, b"1")
        assert len(names(tmp_path)) == 2
        assert names(tmp_path)[0].startswith(".other.")
    finally:
        kill(living)
    files.write_aside(tmp_path / name, b"2")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    "name", [".config.json.4711-0123abcd.tmp", ".c.4711-1-89abcdef-0123abcd.tmp"]
)
def test_the_aside_of_an_unknown_process_is_swept_after_a_day(tmp_path, name):
    (tmp_path / name).write_text("x")
    files.sweep_asides(tmp_path)
    assert names(tmp_path) == [name]
    os.utime(tmp_path / name, OLD)
    files.sweep_asides(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["a.tmp", ".a.tmp", ".a.1.tmp", "a.4711-0123abcd.tmp", ".a.4711-xyz.tmp"]
)
def test_the_files_of_others_are_never_swept(tmp_path, name):
    (tmp_path / name).write_text("x")
    os.utime(tmp_path / name, OLD)
    files.sweep_asides(tmp_path, older_than_s=-1.0)
    assert names(tmp_path) == [name]


def test_what_cannot_be_deleted_stays_owned(dataset, gone, monkeypatch):
    stage(dataset, "it", gone)
    with monkeypatch.context() as patch:
        patch.setattr(staging, "remove", lambda path: None)
        dataset.clean_staging()
    assert names(dataset.staging_path) == ["it", "it.owner.json"]
    assert dataset.clean_staging() == ["it"]
    assert names(dataset.staging_path) == []


def test_cleaning_without_a_staging_directory(dataset):
    dataset.staging_path.rmdir()
    assert dataset.clean_staging() == []


def test_an_unreadable_pins_file_is_no_verdict(tmp_path, monkeypatch):
    dataset, _ = fill(tmp_path / "d", [[2]])
    pin(dataset.path, dataset.segment_ids())
    real = os.open

    def fail(path, *args, **options):
        if str(path).endswith("pins.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(DatasetUnreadableError, match="the device failed") as caught:
        read_pins(dataset)
    assert "pin again" not in str(caught.value)
