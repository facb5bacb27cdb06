"""A segment that names others as replaced stands for them, whenever a reader looks."""

import shutil

import numpy as np
import pytest

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.maintenance.compact import compact
from avtd3.store.replaced import ORIGIN, REPLACES, origins, unseen_episodes
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.segments import Clock, feed, make_episode, make_spec

SPEC = make_spec(image=False)


def publish(dataset, *seeds, now, **provenance):
    with SegmentWriter(
        dataset, collector="test", provenance=provenance, clock=Clock(now)
    ) as writer:
        for seed in seeds:
            feed(writer, make_episode(SPEC, 4, seed=seed))
    return max(dataset.segment_ids())


def seeds(snapshot):
    return [int(s) for segment in snapshot.segments for s in segment.read("episode_seed")]


@pytest.fixture
def dataset(tmp_path):
    return Dataset.create(tmp_path / "data", SPEC)


@pytest.fixture
def merged(dataset):
    """Two segments, and one aside that they were merged into."""
    old = [publish(dataset, n, now=n) for n in (1, 2)]
    copy = Dataset.open(shutil.copytree(dataset.path, dataset.path.with_name("copy")))
    compact(copy.path)
    (name,) = copy.segment_ids()
    hidden = dataset.path / "aside"
    (copy.segments_path / name).rename(hidden)
    return old, dataset.segments_path / name, hidden


def test_replaced_segments_are_ignored_while_they_exist(dataset, merged):
    _, place, aside = merged
    before = dataset.snapshot()
    assert seeds(before) == [1, 2]
    aside.rename(place)
    assert seeds(dataset.snapshot()) == seeds(dataset.refresh(before)) == [1, 2]
    assert [s.id for s in dataset.refresh(before).segments] == [place.name]
    assert len(dataset.segment_ids()) == 3


def test_what_others_wrote_into_a_provenance_has_a_digest(dataset):
    publish(dataset, 1, now=1)
    (segment,) = dataset.snapshot().segments
    segment.provenance["x"] = float("nan")
    assert len(origins(segment)[0]["provenance_digest"]) == 64


def test_replaced_segments_count_while_the_new_one_cannot_be_opened(dataset, merged):
    old, place, aside = merged
    aside.rename(place)
    data = place / "action" / "c" / "0" / "0"
    data.write_bytes(data.read_bytes()[:-1])
    snapshot = dataset.snapshot()
    assert [s.id for s in snapshot.segments] == old
    assert [refusal.segment_id for refusal in snapshot.refused] == [place.name]


def test_replaced_segments_are_opened_once_at_most(dataset, merged, monkeypatch):
    _, place, aside = merged
    aside.rename(place)
    snapshot = dataset.snapshot()
    monkeypatch.setattr(Dataset, "open_segment", None)
    assert dataset.refresh(snapshot) == snapshot


@pytest.mark.parametrize("listing", [1, 2, 3])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_listing_that_misses_both_is_taken_again(dataset, merged, monkeypatch, listing, is_known):
    """The kernel may list what a rename brings or takes before, after, or not at all."""
    old, place, aside = merged
    known = dataset.snapshot() if is_known else Snapshot(segments=())
    directories = Dataset._directories
    calls = []

    def racing(self):
        calls.append(1)
        if len(calls) != listing:
            return directories(self)
        aside.rename(place)
        for name in old:
            shutil.rmtree(dataset.segments_path / name)
        return []

    monkeypatch.setattr(Dataset, "_directories", racing)
    found = dataset.refresh(known)
    if listing > 2:
        found = dataset.refresh(found)
    assert seeds(found) == [1, 2]


def test_segments_that_go_while_they_are_opened_are_looked_for_again(dataset, merged, monkeypatch):
    old, place, aside = merged
    open_segment = Dataset.open_segment

    def racing(self, segment_id, **options):
        if segment_id == old[1] and aside.exists():
            aside.rename(place)
            for name in old:
                shutil.rmtree(self.segments_path / name)
        return open_segment(self, segment_id, **options)

    monkeypatch.setattr(Dataset, "open_segment", racing)
    assert seeds(dataset.snapshot()) == [1, 2]


@pytest.mark.parametrize("value", ["text", 3, None, ["a"], {"a": 1, "": None}])
def test_nonsense_in_the_provenance_replaces_nothing(dataset, value):
    publish(dataset, 1, now=1)
    publish(dataset, 2, now=2, **{REPLACES: value})
    assert seeds(dataset.snapshot()) == [1, 2]


def test_a_segment_does_not_replace_itself(dataset):
    name = publish(dataset, 1, now=1)
    shutil.rmtree(dataset.segments_path / name)
    manifest = publish(dataset, 1, now=1, **{REPLACES: {}})
    segment = dataset.open_segment(manifest)
    assert np.isfinite(segment.read("reward")).all()
    segment.provenance[REPLACES][manifest] = segment.manifest_digest
    assert dataset.refresh(Snapshot(segments=(segment,))).segments == (segment,)


@pytest.mark.parametrize(
    "value", ["text", [1], [{"segment_id": "a"}], [{"segment_id": "a", "episodes": -1}]]
)
def test_nonsense_in_the_provenance_is_nobodys_origin(dataset, value):
    old = publish(dataset, 1, now=1)
    new = publish(dataset, 2, now=2, **{ORIGIN: value, REPLACES: {old: ""}})
    segment = dataset.open_segment(new)
    assert [origin["segment_id"] for origin in origins(segment)] == [segment.id]
    assert unseen_episodes(segment, [dataset.open_segment(old)]).tolist() == [True]
