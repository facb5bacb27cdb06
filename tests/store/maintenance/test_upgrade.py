"""`store upgrade`: the same episodes and bytes under the name of a stream, in format 2."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import upgrade
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

GOLDEN = Path(__file__).parents[2] / "golden" / "dataset-v1"
SPEC = make_spec()


@pytest.fixture
def old(tmp_path):
    episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate((3, 5, 2, 7, 4))]
    return write_dataset(tmp_path / "old", SPEC, episodes, segment_steps=4)


def episodes_of(dataset):
    return [
        {
            "frames": episode.frames,
            "vectors": episode.vectors,
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terms": episode.reward_terms,
            "facts": {k: v for k, v in episode.facts.items() if k != "segment"},
        }
        for episode in dataset.episodes()
    ]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("facts") == other.pop("facts")
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])


def test_every_value_is_the_same(old, tmp_path):
    report = upgrade(old.path, tmp_path / "new")
    new = Dataset.open(tmp_path / "new")
    assert (report.segments, report.problems) == (len(old.segment_ids()), ())
    assert (new.spec.format_version, dict(new.spec.images)) == (2, {"front": SPEC.image})
    assert_same(episodes_of(new), episodes_of(old))
    assert report.bytes_shared > report.bytes_written
    for before, after in zip(old.snapshot().segments, new.snapshot().segments, strict=True):
        frames = [
            segment.path / f"{name}/c/0/0/0/0"
            for segment, name in ((before, "frames"), (after, "frames_front"))
        ]
        assert frames[0].samefile(frames[1])
        assert after.provenance["upgrade"]["segment_id"] == before.id
        assert after.provenance["config"] == before.provenance["config"]
        after.verify()
        after.read_frames()
    assert not audit([new.path]).damaged


def test_the_golden_dataset_can_be_upgraded(tmp_path):
    upgrade(shutil.copytree(GOLDEN, tmp_path / "old"), tmp_path / "new", stream="camera")
    new = Dataset.open(tmp_path / "new")
    assert list(new.spec.images) == ["camera"]
    assert_same(episodes_of(new), episodes_of(Dataset.open(GOLDEN)))


def test_it_continues_where_it_was_stopped(old, tmp_path):
    left = iter([False, False, True])
    first = upgrade(old.path, tmp_path / "new", should_stop=lambda: next(left))
    assert (first.segments, first.stopped) == (2, True)
    second = upgrade(old.path, tmp_path / "new")
    assert (second.already_there, second.stopped) == (2, False)
    assert second.segments == len(old.segment_ids()) - 2
    assert_same(episodes_of(Dataset.open(tmp_path / "new")), episodes_of(old))
    assert upgrade(old.path, tmp_path / "new").segments == 0


def test_the_new_dataset_may_be_compacted_meanwhile(old, tmp_path):
    upgrade(old.path, tmp_path / "new")
    assert compact(tmp_path / "new").merged_segments == len(old.segment_ids())
    again = upgrade(old.path, tmp_path / "new")
    assert (again.segments, again.problems) == (0, ())
    assert Dataset.open(tmp_path / "new").snapshot().steps == old.snapshot().steps


def test_a_damaged_segment_is_reported_and_skipped(old, tmp_path):
    segment = old.snapshot().segments[1]
    shard = segment.path / "frames/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    report = upgrade(old.path, tmp_path / "new")
    assert report.segments == len(old.segment_ids()) - 1
    assert "frames" in report.problems[0]


def test_what_cannot_be_upgraded_is_refused(old, tmp_path):
    with pytest.raises(ConfigError, match="the source dataset itself"):
        upgrade(old.path, old.path)
    with pytest.raises(SpecError, match="a stream named"):
        upgrade(old.path, tmp_path / "new", stream="Front Camera")
    upgrade(old.path, tmp_path / "new")
    with pytest.raises(ConfigError, match="has named streams already"):
        upgrade(tmp_path / "new", tmp_path / "newer")
    vectors = write_dataset(tmp_path / "v", make_spec(image=False), [])
    with pytest.raises(ConfigError, match="has no image"):
        upgrade(vectors.path, tmp_path / "w")
    with pytest.raises(SpecError, match="another spec"):
        upgrade(old.path, tmp_path / "new", stream="other")
