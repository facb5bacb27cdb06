"""Checksums verified once are cached, and never trusted for a file that changed."""

import os

import pytest

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.audit.integrity import VERIFIED_FILE, VerifiedSegments, stamp
from avtd3.store.files import sha256_of_file
from avtd3.tests.store.audit.test_audit import SYNC, only_segment, write

LONG_AGO = 1_600_000_000


def settle(segment):
    for file in segment.rglob("*"):
        if file.is_file():
            os.utime(file, (LONG_AGO, LONG_AGO))


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed, in order."""
    names = []

    def recording(path):
        names.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr("avtd3.store.audit.integrity.sha256_of_file", recording)
    return names


@pytest.fixture
def dataset(tmp_path):
    dataset = write(tmp_path / "data")
    settle(only_segment(dataset))
    return dataset


def test_a_second_audit_hashes_nothing_and_says_the_same(dataset, hashed):
    first = audit([dataset.path], SYNC).document()
    assert hashed
    hashed.clear()
    assert {**audit([dataset.path], SYNC).document(), "seconds": 0} == {**first, "seconds": 0}
    assert not hashed


def test_full_hashes_again(dataset, hashed):
    audit([dataset.path], SYNC)
    hashed.clear()
    audit([dataset.path], AuditConfig(scheduler="sync", full=True))
    assert hashed


@pytest.mark.parametrize("change", ["mtime", "inode", "bytes"])
def test_a_file_that_changed_is_hashed_again(dataset, hashed, change):
    audit([dataset.path], SYNC)
    hashed.clear()
    file = only_segment(dataset) / "zarr.json"
    data = file.read_bytes()
    if change == "mtime":
        os.utime(file, ns=(LONG_AGO * 10**9, LONG_AGO * 10**9 + 1))
    elif change == "inode":
        copy = file.with_name("copy")
        copy.write_bytes(data)
        os.utime(copy, (LONG_AGO, LONG_AGO))
        copy.replace(file)
    else:
        file.write_bytes(data[:-2] + b" }")
    report = audit([dataset.path], SYNC)
    assert hashed
    assert report.log.counts == ({"file-digest": 1} if change == "bytes" else {})


def test_a_damaged_segment_is_never_cached(dataset):
    file = only_segment(dataset) / "zarr.json"
    file.write_bytes(b"?" * file.stat().st_size)
    settle(only_segment(dataset))
    for _ in range(2):
        assert audit([dataset.path], SYNC).log.counts == {"file-digest": 1}


def test_files_that_are_too_new_are_not_cached(tmp_path):
    dataset = write(tmp_path / "data")
    audit([dataset.path], SYNC)
    assert not (dataset.path / VERIFIED_FILE).exists()
    assert stamp(only_segment(dataset), "", ["zarr.json"]) == ""


@pytest.mark.parametrize(
    "invalid", [b"", b"{", b"[]", b'{"format": 9}', b'{"format": 1, "segments": [1]}']
)
def test_an_invalid_cache_is_ignored(dataset, hashed, invalid):
    audit([dataset.path], SYNC)
    (dataset.path / VERIFIED_FILE).write_bytes(invalid)
    hashed.clear()
    assert audit([dataset.path], SYNC).verdict == "ok"
    assert hashed
    assert VerifiedSegments(dataset.path).stamp_of(only_segment(dataset).name)


def test_segments_that_are_gone_are_dropped_from_the_cache(tmp_path):
    memory = VerifiedSegments(tmp_path)
    memory.save({"a": "1", "b": "2"}, ["a", "b"])
    memory.save({"c": "3"}, ["a", "c"])
    again = VerifiedSegments(tmp_path)
    assert [again.stamp_of(name) for name in "abc"] == ["1", "", "3"]


def test_a_dataset_that_cannot_be_written_is_audited_without_a_cache(dataset, monkeypatch):
    from avtd3.store.audit import integrity as verified
    from avtd3.store.errors import StorageError

    def refuse(path, data):
        raise StorageError(f"{path}: read-only")

    monkeypatch.setattr(verified, "write_aside", refuse)
    assert audit([dataset.path], SYNC).verdict == "ok"
