"""Opening a dataset without looking at every file, and what stays true then."""

import json
import shutil

import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.errors import SegmentCorruptError, SegmentNotFoundError
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.manifest import FileTable, Limits, Manifest, read_manifest
from avtd3.store.maintenance.compact import compact
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.segment import Segment
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

SPEC = make_spec()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three segments of one episode each, of 4, 5 and 6 steps."""
    episodes = [make_episode(SPEC, 4 + n, n) for n in range(3)]
    path = tmp_path_factory.mktemp("source") / "d"
    return write_dataset(path, SPEC, episodes, segment_steps=1).path


@pytest.fixture
def dataset(source, tmp_path):
    return Dataset.open(shutil.copytree(source, tmp_path / "d"))


def tear(dataset, number):
    """Truncate a file of a segment; return a function that restores it."""
    path = dataset.segments_path / dataset.segment_ids()[number] / "action/c/0/0"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    return lambda: path.write_bytes(good)


def seal_again(path, change):
    """Change a manifest and give it a digest that fits, as a stranger's tool might."""
    document = json.loads(path.read_text())
    del document["digest"]
    change(document)
    text = canonical_json({**document, "digest": sha256(canonical_json(document))})
    path.write_bytes(text + b"\n")


def test_a_snapshot_that_does_not_look_at_files_holds_the_same_segments(dataset):
    quick, checked = dataset.snapshot(check_files=False), dataset.snapshot()
    assert quick.digest == checked.digest
    for left, right in zip(quick.segments, checked.segments, strict=True):
        assert dict(left.files) == dict(right.files)
        assert left.files.keys() == right.files.keys()
        assert (left.size_bytes, left.content_digest) == (right.size_bytes, right.content_digest)
        left.verify()


def test_a_truncated_segment_is_refused_at_its_first_read(dataset):
    mend = tear(dataset, 1)
    snapshot = dataset.snapshot(check_files=False)
    assert (len(snapshot.segments), snapshot.refused) == (3, ())
    torn = snapshot.segments[1]
    for read in (torn.check_files, torn.episode_table, torn.read_frames, torn.verify):
        with pytest.raises(SegmentCorruptError, match=r"action/c/0/0 has 43 bytes, expected 44"):
            read()
    mend()
    torn.verify()


def test_a_removed_segment_is_not_found_at_its_first_read(dataset):
    snapshot = dataset.snapshot(check_files=False)
    dataset.quarantine(snapshot.segments[0].id)
    with pytest.raises(SegmentNotFoundError):
        snapshot.segments[0].check_files()


def test_a_segment_too_large_is_refused_at_its_first_read(dataset):
    snapshot = dataset.snapshot(check_files=False, limits=Limits(max_file_bytes=100))
    assert len(snapshot.segments) == 3
    with pytest.raises(SegmentCorruptError, match="bytes on disk, expected at most 100"):
        snapshot.segments[0].episode_table()


def test_a_truncated_segment_hides_none_of_those_that_it_replaces(dataset):
    ids = dataset.segment_ids()
    copy = Dataset.open(shutil.copytree(dataset.path, dataset.path.with_name("copy")))
    compact(copy.path)
    (merged,) = copy.segment_ids()
    shutil.copytree(copy.segments_path / merged, dataset.segments_path / merged)
    mend = tear(dataset, dataset.segment_ids().index(merged))
    assert [s.id for s in dataset.snapshot(check_files=False).segments] == ids
    mend()
    assert [s.id for s in dataset.snapshot(check_files=False).segments] == [merged]


def test_a_learner_refuses_a_truncated_segment_until_it_is_complete(dataset, tmp_path):
    mend, ids = tear(dataset, 1), dataset.segment_ids()
    with Sampler([dataset], ReplayConfig(), seed=0, scratch=tmp_path) as sampler:
        assert [refusal.segment_id for refusal in sampler.opening.refused] == [ids[1]]
        assert "action/c/0/0 has 43 bytes" in sampler.opening.refused[0].reason
        assert sampler.steps == 4 + 6
        assert sampler.refresh().refused == ()  # each is reported once
        assert [refusal.segment_id for refusal in sampler.refused] == [ids[1]]
        mend()
        assert sampler.refresh().steps_added == 5
        assert (sampler.steps, sampler.refused) == (4 + 5 + 6, ())


@pytest.mark.parametrize("config", [{}, {"filter": ("policy=-1",)}], ids=["all", "filtered"])
def test_a_filter_does_not_change_what_is_truncated(dataset, tmp_path, config):
    mend = tear(dataset, 2)
    with Sampler([dataset], ReplayConfig(**config), seed=0, scratch=tmp_path) as sampler:
        assert (sampler.steps, len(sampler.refused)) == (4 + 5, 1)
        mend()
        sampler.refresh()
        assert (sampler.steps, sampler.refused) == (4 + 5 + 6, ())


def test_files_of_segments_beyond_the_capacity_are_not_checked(dataset, tmp_path, monkeypatch):
    looked, whole = [], Manifest.check_sizes

    def look(self, path):
        looked.append(path.name)
        whole(self, path)

    monkeypatch.setattr(Manifest, "check_sizes", look)
    ids = dataset.segment_ids()
    with Sampler([dataset], ReplayConfig(capacity=6), seed=0, scratch=tmp_path) as sampler:
        assert (sampler.steps, looked) == (6, [ids[2]])
        dataset.quarantine(ids[2])
        sampler.refresh()
        assert (sampler.steps, looked) == (5, [ids[2], ids[1]])


@pytest.mark.parametrize(
    "name", ['a"]', "a]", "a[0]", 'a","x":[', "b\\u005d"], ids=["string", "]", "[]", "key", "\\u"]
)
def test_brackets_in_the_list_of_files_end_in_an_error_or_the_right_list(dataset, name):
    path = dataset.segments_path / dataset.segment_ids()[0]
    entry = {"path": name, "size": 1, "sha256": "0"}
    seal_again(path / "MANIFEST.json", lambda document: document["files"].append(entry))
    with pytest.raises(SegmentCorruptError, match=r"MANIFEST\.json|is not JSON"):
        Segment(path, SPEC, dataset.spec_digest, Limits()).check_files()


def test_a_list_of_files_is_parsed_only_when_someone_asks(dataset, monkeypatch):
    path = dataset.segments_path / dataset.segment_ids()[0]
    manifest = read_manifest(path)
    assert isinstance(manifest.files, FileTable)
    assert isinstance(manifest.files._files, bytes)
    assert manifest.to_bytes() == (path / "MANIFEST.json").read_bytes()
    assert len(manifest.files) == len(list(manifest.files)) > 40
