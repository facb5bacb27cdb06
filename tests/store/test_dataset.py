import dataclasses
import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.errors import (
    DatasetError,
    FormatVersionError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SpecError,
    StorageError,
)
from avtd3.store.format.layout import FORMAT_VERSION
from avtd3.tests.store.segments import feed, make_episode, make_spec, make_writer, write_dataset

SPEC = make_spec()


pytestmark = pytest.mark.usefixtures("no_fsync")


def write(path, *seeds, collector="tester"):
    episodes = [make_episode(SPEC, 2, seed) for seed in seeds]
    return write_dataset(path, SPEC, episodes, segment_steps=1, collector=collector)


def edit(path, change):
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"]["avtd3"])
    (path / "zarr.json").write_text(json.dumps(document))


def test_create_then_open(tmp_path):
    created = Dataset.create(tmp_path / "deep" / "d", SPEC)
    opened = Dataset.open(str(created.path))
    assert opened.spec == created.spec == SPEC
    assert opened.segment_ids() == []
    assert opened.snapshot() == Snapshot(segments=())
    assert Dataset.create(created.path, SPEC).spec == SPEC  # again: opens it
    assert sorted(p.name for p in created.path.iterdir()) == [".staging", "segments", "zarr.json"]


def test_create_in_an_empty_directory(tmp_path):
    assert Dataset.create(tmp_path, SPEC).spec == SPEC


def test_a_spec_of_whole_numbers_is_the_same_spec(tmp_path):
    Dataset.create(tmp_path / "d", dataclasses.replace(SPEC, action_low=(-1, -1)))
    Dataset.create(tmp_path / "d", dataclasses.replace(SPEC, action_low=(-1.0, -1.0)))


def test_create_with_another_spec_spells_out_the_difference(tmp_path):
    Dataset.create(tmp_path / "d", SPEC)
    with pytest.raises(SpecError, match=r"control_period_s: 0\.05 against 0\.1"):
        Dataset.create(tmp_path / "d", dataclasses.replace(SPEC, control_period_s=0.1))


def test_create_refuses_a_directory_with_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DatasetError, match=r"thesis\.tex"):
        Dataset.create(tmp_path, SPEC)
    with pytest.raises(DatasetError, match="is a file"):
        Dataset.create(tmp_path / "thesis.tex", SPEC)
    with pytest.raises(StorageError):
        Dataset.create(tmp_path / "thesis.tex" / "below", SPEC)


@pytest.mark.parametrize("call", ["write", "link", "fsync", "mkdir"])
def test_create_on_a_full_disk_is_a_storage_error_and_can_be_repeated(tmp_path, monkeypatch, call):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageError, match="disk is full"):
            Dataset.create(tmp_path / "d", SPEC)
    assert Dataset.create(tmp_path / "d", SPEC).spec == SPEC


def test_an_unwritable_directory_is_a_storage_error(tmp_path, monkeypatch):
    def denied(path, *_args, **_kwargs):
        raise PermissionError(errno.EACCES, "denied", str(path))

    monkeypatch.setattr(os, "mkdir", denied)
    with pytest.raises(StorageError, match="make the directory writable"):
        Dataset.create(tmp_path / "d", SPEC)


RACER = """
    import dataclasses, sys
    from avtd3.store.dataset import Dataset
    from avtd3.store.errors import SpecError
    from avtd3.tests.store.segments import make_spec
    spec = dataclasses.replace(make_spec(), control_period_s=float(sys.argv[2]))
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(Dataset.create(sys.argv[1], spec).spec.control_period_s)
    except SpecError:
        print("refused")
"""


@pytest.mark.parametrize("periods", [("0.05", "0.05", "0.05"), ("0.05", "0.1", "0.1")])
def test_of_processes_that_create_at_once_one_wins(tmp_path, periods):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACER), str(tmp_path / "d"), period],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for period in periods
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.communicate()[0].strip() for racer in racers]
    winner = str(Dataset.open(tmp_path / "d").spec.control_period_s)
    assert answers == [winner if period == winner else "refused" for period in periods]
    assert list((tmp_path / "d" / ".staging").iterdir()) == []


def test_a_dataset_that_another_process_creates_meanwhile_is_opened(tmp_path, monkeypatch):
    path = tmp_path / "d"
    Dataset.create(path, SPEC)
    monkeypatch.setattr(Path, "is_file", lambda _: False)  # as just before it was there
    assert Dataset.create(path, SPEC).spec == SPEC


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), r"no zarr\.json"),
        (lambda path: (path.mkdir(), (path / ".zgroup").write_text("{}")), "Zarr v2"),
        (lambda path: (path.mkdir(), (path / "zarr.json").write_text("{")), "not JSON"),
        (
            lambda path: (path.mkdir(), (path / "zarr.json").write_text("[]")),
            "d is not a dataset: .* no avtd3",
        ),
        (lambda path: (path.mkdir(), (path / "zarr.json").mkdir()), "not a regular file"),
        (
            lambda path: (
                path.mkdir(),
                (path / "zarr.json").write_text('{"node_type": "group", "attributes": {}}'),
            ),
            "no avtd3 attributes",
        ),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path, make, message):
    make(tmp_path / "d")
    with pytest.raises(DatasetError, match=message):
        Dataset.open(tmp_path / "d")


def test_a_group_of_zarr_python_is_refused(tmp_path):
    import zarr

    zarr.create_group(tmp_path / "d")
    with pytest.raises(DatasetError, match="no avtd3 attributes"):
        Dataset.open(tmp_path / "d")
    with pytest.raises(DatasetError, match="no avtd3 attributes"):
        Dataset.create(tmp_path / "d", SPEC)


def test_a_segment_is_not_a_dataset(tmp_path):
    dataset = write(tmp_path / "d", 0)
    with pytest.raises(DatasetError, match="has no spec"):
        Dataset.open(dataset.segments_path / dataset.segment_ids()[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, FormatVersionError, "install a newer avtd3"),
        ({"format_version": "1"}, DatasetError, "format_version"),
        ({"format_version": True}, DatasetError, "format_version"),
        ({"format_version": 2}, DatasetError, "the spec is one of format 1"),
        ({"format_version": 0}, DatasetError, "format_version"),
        ({"spec_digest": "0" * 64}, DatasetError, "edited"),
        ({"spec_digest": None}, DatasetError, "edited"),
        ({"spec": {}}, DatasetError, "missing or unknown keys"),
        ({"spec": {**SPEC.to_json(), "control_period_s": 0.1}}, DatasetError, "edited"),
    ],
)
def test_an_edited_spec_is_refused(tmp_path, change, error, message):
    Dataset.create(tmp_path / "d", SPEC)
    edit(tmp_path / "d", lambda ours: ours.update(change))
    with pytest.raises(error, match=message):
        Dataset.open(tmp_path / "d")


def test_a_dataset_that_lost_its_empty_directories_opens(tmp_path):
    dataset = Dataset.create(tmp_path / "d", SPEC)
    dataset.segments_path.rmdir()
    dataset.staging_path.rmdir()
    assert dataset.segment_ids() == []
    with make_writer(Dataset.create(tmp_path / "d", SPEC)) as writer:
        feed(writer, make_episode(SPEC, 1))
    assert len(dataset.segment_ids()) == 1


def test_the_dataset_is_a_group_for_zarr(tmp_path):
    import zarr

    dataset = write(tmp_path / "d", 0)
    attributes: Any = zarr.open_group(dataset.path, mode="r").attrs["avtd3"]
    assert attributes["spec"] == SPEC.to_json()
    assert attributes["format_version"] == 1
    path = f"segments/{dataset.segment_ids()[0]}/reward"
    assert zarr.open_array(dataset.path / path, mode="r").shape == (2,)


@pytest.mark.parametrize("name", ["", ".", "..", "../segments", "a/b", "/etc", ".hidden", "a\0"])
def test_names_that_are_no_segments_are_refused(tmp_path, name):
    dataset = write(tmp_path / "d", 0)
    for call in (dataset.open_segment, dataset.quarantine):
        with pytest.raises(SegmentNotFoundError):
            call(name)


def test_a_segment_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(SegmentNotFoundError, match="refresh"):
        write(tmp_path / "d", 0).open_segment("nothing")


def test_a_snapshot_is_ordered_frozen_and_has_a_digest(tmp_path):
    dataset = write(tmp_path / "d", 0, 1, 2)
    snapshot = dataset.snapshot()
    assert [segment.id for segment in snapshot.segments] == dataset.segment_ids()
    assert (snapshot.steps, snapshot.refused) == (6, ())
    assert snapshot.digest == dataset.snapshot().digest
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.segments = ()


def test_refresh_appends_what_is_new_and_opens_nothing_twice(tmp_path):
    dataset = write(tmp_path / "d", 0, 1, collector="z")
    before = dataset.snapshot()
    write(tmp_path / "d", 2, collector="a")  # same stand-still clock: sorts before
    after = dataset.refresh(before)
    assert after.segments[:2] == before.segments  # the same objects
    assert after.segments[2].provenance["collector"] == "a"
    assert after.digest != before.digest
    assert dataset.refresh(after).digest == after.digest


def test_what_is_gone_stays_out(tmp_path):
    dataset = write(tmp_path / "d", 0, 1, 2)
    before = dataset.snapshot()
    where = dataset.quarantine(before.segments[1].id)
    assert where.parent == dataset.quarantine_path
    after = dataset.refresh(before)
    assert after.segments == (before.segments[0], before.segments[2])
    with pytest.raises(SegmentNotFoundError):
        dataset.quarantine(before.segments[1].id)


def test_a_truncated_segment_is_refused_until_it_is_complete(tmp_path):
    dataset = write(tmp_path / "d", 0, 1)
    torn = dataset.segments_path / dataset.segment_ids()[0] / "action" / "c" / "0" / "0"
    good = torn.read_bytes()
    torn.write_bytes(good[:-1])
    snapshot = dataset.snapshot()
    assert len(snapshot.segments) == 1
    (refusal,) = snapshot.refused
    assert refusal.segment_id == dataset.segment_ids()[0]
    assert "action/c/0/0 has" in refusal.reason
    with pytest.raises(SegmentCorruptError):
        dataset.open_segment(refusal.segment_id)
    torn.write_bytes(good)
    healed = dataset.refresh(snapshot)
    assert (len(healed.segments), healed.refused) == (2, ())


def test_listings_skip_what_is_no_segment(tmp_path):
    dataset = write(tmp_path / "d", 0)
    (dataset.segments_path / "half-copied").mkdir()
    (dataset.segments_path / ".hidden").mkdir()
    (dataset.segments_path / "notes.txt").write_text("x")
    assert len(dataset.segment_ids()) == 1
    assert dataset.unsealed_ids() == ["half-copied"]
    assert dataset.snapshot().refused == ()
