"""The texts of road networks: stored once, verified when read, kept as long as they are needed."""

import gzip
import os
import time

import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.errors import DatasetError, SpecError
from avtd3.store.files import DAY_S, sha256
from avtd3.store.maintenance.prune import PruneConfig, prune, remove_unused_maps
from avtd3.store.world_record import map_path, publish_map, read_map, stored_maps
from avtd3.tests.store.maintenance.datasets import fill, publish

TEXT = "<OpenDRIVE name='ü'/>"
DIGEST = sha256(TEXT.encode())


def test_a_text_is_stored_once_under_its_digest(tmp_path):
    assert publish_map(tmp_path, TEXT) == DIGEST
    path = map_path(tmp_path, DIGEST)
    first = path.stat()
    assert gzip.decompress(path.read_bytes()).decode() == TEXT
    publish_map(tmp_path, TEXT)
    assert path.stat().st_ino == first.st_ino
    assert read_map(tmp_path, DIGEST) == TEXT
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "data",
    [b"", b"text", gzip.compress(b"other"), gzip.compress(TEXT.encode())[:-4]],
    ids=["empty", "text", "other", "torn"],  # not the bytes, which contain the time
)
def test_a_damaged_text_is_refused_and_written_again(tmp_path, data):
    publish_map(tmp_path, TEXT)
    map_path(tmp_path, DIGEST).write_bytes(data)
    with pytest.raises(DatasetError, match="damaged"):
        read_map(tmp_path, DIGEST)
    publish_map(tmp_path, TEXT)
    assert read_map(tmp_path, DIGEST) == TEXT


def test_a_missing_text_and_a_path_as_digest_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="is missing; copy it"):
        read_map(tmp_path, DIGEST)
    with pytest.raises(SpecError, match="not the digest of a map"):
        read_map(tmp_path, "../zarr")
    assert stored_maps(tmp_path) == {}


def age(dataset):
    for path in stored_maps(dataset.path).values():
        os.utime(path, (time.time() - 2 * DAY_S,) * 2)


def test_pruning_removes_the_maps_that_no_segment_needs(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[3], [4]], map_text=TEXT)
    publish(dataset, [2], seed=7, now=1.8e9, map_text="<b/>")
    prune(dataset.path, PruneConfig(max_steps=2))
    assert len(stored_maps(dataset.path)) == 2, "a collector may just have stored them"
    age(dataset)
    assert remove_unused_maps(dataset, time.time()) == [DIGEST]
    assert list(stored_maps(dataset.path)) == [sha256(b"<b/>")]


def test_no_map_is_removed_while_a_segment_cannot_be_read(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[3], [4]], map_text=TEXT)
    publish_map(dataset.path, "<unused/>")
    age(dataset)
    damaged = dataset.snapshot().segments[0].path / "MANIFEST.json"
    good = damaged.read_bytes()
    damaged.write_bytes(b"{}")
    assert remove_unused_maps(dataset, time.time()) == []
    damaged.write_bytes(good)
    dataset.quarantine(dataset.segment_ids()[0])
    assert remove_unused_maps(dataset, time.time()) == []


def test_a_directory_with_maps_alone_can_become_a_dataset(tmp_path):
    (tmp_path / "new").mkdir()
    publish_map(tmp_path / "new", TEXT)
    dataset, _ = fill(tmp_path / "new", [[3]], map_text=TEXT)
    assert Dataset.open(dataset.path).snapshot().steps == 3
