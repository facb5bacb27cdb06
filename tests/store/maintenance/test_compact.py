"""Compaction: the same episodes in the same order, in fewer segments, at every moment."""

import json
import os
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, InUseError
from avtd3.store.format.codec import FrameCodec
from avtd3.store.maintenance import compact as compact_module
from avtd3.store.maintenance import removal
from avtd3.store.maintenance.compact import compact, merged_name
from avtd3.store.maintenance.pins import Pin, write_pins
from avtd3.store.maintenance.removal import exclusive
from avtd3.store.render.audit_view import audit_text
from avtd3.store.render.text import WorkProgress
from avtd3.store.replaced import ORIGIN, REPLACES, episode_digests, unseen_episodes
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.segment import Segment
from avtd3.tests.store.maintenance.datasets import SPEC, fill, identity, publish
from avtd3.tests.store.segments import Clock, assert_holds, make_spec


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    """What a power cut leaves is not tested here, and hundreds of segments are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


DATASETS = {
    "segments": st.lists(
        st.tuples(
            st.lists(st.integers(1, 9), min_size=1, max_size=4),
            st.sampled_from(["p", "q"]),
            st.sampled_from(["keep", "keep", "pin", "damage"]),
        ),
        min_size=1,
        max_size=6,
    ),
    "image": st.booleans(),
    "target": st.integers(2, 60),
    "again": st.integers(2, 90),
}


@settings(max_examples=6, deadline=None)
@given(**DATASETS)
def test_any_compaction_of_any_dataset_keeps_the_episodes_in_order(
    tmp_path_factory, segments, image, target, again
):
    check_compaction(tmp_path_factory.mktemp("any") / "data", segments, image, target, again)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(**DATASETS)
def test_any_compaction_of_many_datasets_keeps_the_episodes_in_order(
    tmp_path_factory, segments, image, target, again
):
    check_compaction(tmp_path_factory.mktemp("any") / "data", segments, image, target, again)


def check_compaction(path, segments, image, target, again):
    spec = make_spec(height=3, width=2, image=image, vector=1 + image, terms=2 * image)
    dataset = Dataset.create(path, spec)
    damaged = set()
    for number, (lengths, plan, what) in enumerate(segments):
        before = set(dataset.segment_ids())
        publish(dataset, lengths, seed=10 * number, now=float(number), plan=plan)
        (name,) = set(dataset.segment_ids()) - before
        if what == "pin":
            write_pins(dataset, {name: Pin(note="", pinned_at=0.0)})
        if what == "damage":
            damaged.add(name)
            data = dataset.segments_path / name / "action" / "c" / "0" / "0"
            data.write_bytes(data.read_bytes()[:-1])
    episodes = identity(dataset)
    for steps in (target, again, again):
        report = compact(dataset.path, target_steps=steps)
        assert report.segments_after == len(dataset.snapshot().segments)
        assert identity(dataset) == episodes
        assert damaged <= set(dataset.segment_ids())
        assert report.problems == ()
    assert report.merged_segments == 0
    assert not any(dataset.staging_path.iterdir())


def test_small_neighbours_become_one_segment(tmp_path):
    dataset, episodes = fill(tmp_path / "data", [[5, 3], [7], [2, 2, 4]])
    old = dataset.snapshot().segments
    report = compact(dataset.path, target_steps=100, clock=Clock(9.0))
    (segment,) = dataset.snapshot().segments
    assert dataset.segment_ids() == [segment.id]
    assert_holds(dataset, episodes)
    segment.verify()
    assert (report.segments_before, report.segments_after, report.merged_steps) == (3, 1, 23)
    assert report.bytes_after > 0
    assert not report.stopped
    assert "3 -> 1 segment" in report.summary()
    provenance = segment.provenance
    assert provenance[REPLACES] == {s.id: s.manifest_digest for s in old}
    assert [origin["segment_id"] for origin in provenance[ORIGIN]] == [s.id for s in old]
    assert [origin["steps"] for origin in provenance[ORIGIN]] == [8, 7, 8]
    assert provenance["sealed_at"] == 9.0
    table = segment.episode_table()
    assert table.wall_time.tolist() == [1_700_000_000.0 + n for n in (0, 0, 1, 2, 2, 2)]
    assert table.policy_version.tolist() == [0, 0, 100, 200, 200, 200]
    assert set(table.policy_digest) == {"a"}


def test_origins_survive_a_second_compaction(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[5], [5]])
    first = dataset.segment_ids()
    compact(dataset.path, target_steps=10)
    publish(dataset, [4], seed=7, now=1_800_000_000.0)
    second = dataset.segment_ids()
    compact(dataset.path, target_steps=100)
    (segment,) = dataset.snapshot().segments
    origins = [origin["segment_id"] for origin in segment.provenance[ORIGIN]]
    assert origins == [*first, second[1]]
    assert set(segment.provenance[REPLACES]) == {*first, *second}
    assert len(segment.id) == len(first[0])


def test_episodes_that_were_read_before_the_merge_are_distinguished_from_new_ones(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[5, 1], [4], [3, 2]])
    old = dataset.snapshot().segments
    assert unseen_episodes(old[0], old[1:]).tolist() == [True, True]
    publish(dataset, [6], seed=900, now=1_800_000_000.0)
    newest = dataset.snapshot().segments[-1]
    compact(dataset.path, target_steps=15)
    first = dataset.snapshot().segments[0]
    assert unseen_episodes(first, old[:1]).tolist() == [False, False, True, True, True]
    assert unseen_episodes(first, old).tolist() == [False] * 5
    compact(dataset.path, target_steps=100)
    (merged,) = dataset.snapshot().segments
    assert unseen_episodes(merged, [first]).tolist() == [False] * 5 + [True]
    assert unseen_episodes(merged, [old[1], newest]).tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert unseen_episodes(merged, [merged]).all()


@pytest.mark.parametrize("codec", ["zstd", "raw"])
def test_the_codec_is_that_of_the_sources(tmp_path, codec):
    chosen = FrameCodec(name=codec, chunk_frames=3)
    dataset, episodes = fill(tmp_path / "data", [[5], [4]], codec=chosen)
    compact(dataset.path)
    (segment,) = dataset.snapshot().segments
    assert segment.provenance["codec"] == {"name": codec, "level": 5, "chunk_frames": 3}
    assert_holds(dataset, episodes)


def test_a_large_segment_is_left_alone_and_splits_the_run(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[2], [2], [9], [2], [2]])
    names = dataset.segment_ids()
    report = compact(dataset.path, target_steps=17)
    after = dataset.segment_ids()
    assert len(after) == 3
    assert after[1] == names[2]
    assert report.merged_segments == 4


def test_pinned_segments_are_left_alone(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[2], [2], [2], [2], [2]])
    names = dataset.segment_ids()
    write_pins(dataset, {names[2]: Pin(note="", pinned_at=0.0)})
    report = compact(dataset.path)
    assert (report.merged_segments, report.pinned) == (4, 1)
    assert "1 segment pinned" in report.summary()
    assert names[2] in dataset.segment_ids()


@pytest.mark.parametrize("other", [{"plan_digest": "b"}, {"config": {"x": 1}}])
def test_segments_of_another_plan_or_config_are_not_merged(tmp_path, other):
    dataset = Dataset.create(tmp_path / "data", SPEC)
    publish(dataset, [3], now=1.0, plan_digest="a")
    publish(dataset, [3], now=2.0, **other)
    assert compact(dataset.path).merged_segments == 0


def test_a_dry_run_changes_nothing(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[5], [4], [3]])
    with exclusive(dataset):
        before = sorted(p for p in dataset.path.rglob("*"))
        report = compact(dataset.path, dry_run=True)
    assert sorted(p for p in dataset.path.rglob("*")) == before
    assert (report.dry_run, report.merged_segments, report.segments_after) == (True, 3, 1)
    assert "would merge 3 segments" in report.summary()
    json.dumps(report.document())


def test_an_interruption_keeps_what_is_done_and_the_next_run_continues(tmp_path):
    dataset, episodes = fill(tmp_path / "data", [[4], [4], [4], [4]])
    drawn: list[WorkProgress] = []
    report = compact(
        dataset.path, target_steps=8, should_stop=lambda: bool(drawn), on_progress=drawn.append
    )
    assert report.stopped
    assert [p.line() for p in drawn] == ["merged 2 of 4 segments"]
    assert drawn[0].fraction == 0.5
    assert len(dataset.snapshot().segments) == 3
    assert_holds(dataset, episodes)
    assert not compact(dataset.path, target_steps=8).stopped
    assert len(dataset.snapshot().segments) == 2
    assert_holds(dataset, episodes)


def test_what_does_not_read_back_is_never_published(tmp_path, monkeypatch):
    dataset, episodes = fill(tmp_path / "data", [[4], [4]])
    read = Segment.read

    def wrong(self, name):
        values = read(self, name)
        if name == "action" and self.path.parent.name == ".staging":
            values[-1] += np.float32(1e-6)
        return values

    monkeypatch.setattr(Segment, "read", wrong)
    report = compact(dataset.path)
    assert report.segments_after == 2
    assert "does not read back" in report.problems[0]
    assert not any(dataset.staging_path.iterdir())
    monkeypatch.undo()
    assert_holds(dataset, episodes)


def test_a_source_with_a_flipped_bit_is_reported_and_kept(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [4], [9], [4], [4]])
    names = dataset.segment_ids()
    data = dataset.segments_path / names[1] / "reward" / "c" / "0"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    report = compact(dataset.path, target_steps=16)
    assert names[1] in report.problems[0]
    assert report.merged_segments == 2
    assert dataset.segment_ids()[:3] == names[:3]


def test_a_source_that_goes_while_it_is_merged_stays_gone(tmp_path, monkeypatch):
    dataset, _ = fill(tmp_path / "data", [[4], [4]])
    names = dataset.segment_ids()

    def quarantining(segment):
        if segment.path.parent.name == ".staging":
            dataset.quarantine(names[1])
        return episode_digests(segment)

    monkeypatch.setattr("avtd3.store.maintenance.compact.episode_digests", quarantining)
    report = compact(dataset.path)
    assert "removed while it was merged" in report.problems[0]
    assert dataset.segment_ids() == names[:1]


def test_leftovers_of_a_killed_compaction_are_removed_by_the_next(tmp_path, monkeypatch):
    dataset, episodes = fill(tmp_path / "data", [[4], [4], [4]])
    old = dataset.segment_ids()
    monkeypatch.setattr(compact_module, "remove", lambda *_: None)
    compact(dataset.path)
    monkeypatch.undo()
    assert len(dataset.segment_ids()) == 4
    assert_holds(dataset, episodes)
    dry = compact(dataset.path, dry_run=True)
    assert dry.leftovers == 3
    assert "would remove 3 segments" in dry.summary()
    shutil.rmtree(dataset.segments_path / old[1])  # killed after the first removal
    assert compact(dataset.path).leftovers == 2
    assert len(dataset.segment_ids()) == 1
    assert not any(dataset.staging_path.iterdir())
    assert_holds(dataset, episodes)


def test_an_audit_ignores_what_is_replaced_as_readers_do(tmp_path, monkeypatch):
    dataset = Dataset.create(tmp_path / "data", SPEC)
    for index in range(3):
        about = {"index": index}
        publish(dataset, [4], seed=index, now=float(index), info=about, plan_digest="p")
    clean = audit([dataset.path], AuditConfig(scheduler="sync"))
    monkeypatch.setattr(compact_module, "remove", lambda *_: None)
    compact(dataset.path)
    report = audit([dataset.path], AuditConfig(scheduler="sync"))
    assert (report.total.segments, report.total.steps) == (1, 12)
    assert report.log.count("warning") == clean.log.count("warning")
    assert "run `avtd3 store compact`" in audit_text(report)
    assert "replaced" not in audit_text(clean)


def test_leftovers_stay_while_what_replaces_them_is_damaged(tmp_path, monkeypatch):
    dataset, episodes = fill(tmp_path / "data", [[4], [4]])
    monkeypatch.setattr(compact_module, "remove", lambda *_: None)
    compact(dataset.path)
    monkeypatch.undo()
    (merged,) = dataset.snapshot().segments
    data = merged.path / "reward" / "c" / "0"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    report = compact(dataset.path)
    assert report.leftovers == 0
    assert merged.id in report.problems[0]
    dataset.quarantine(merged.id)
    assert_holds(dataset, episodes)


def test_pinned_leftovers_stay(tmp_path, monkeypatch):
    dataset, _ = fill(tmp_path / "data", [[4], [4]])
    old = dataset.segment_ids()
    monkeypatch.setattr(compact_module, "remove", lambda *_: None)
    compact(dataset.path)
    monkeypatch.undo()
    write_pins(dataset, {old[0]: Pin(note="", pinned_at=0.0)})
    assert compact(dataset.path).leftovers == 1
    assert old[0] in dataset.segment_ids()


def test_one_maintenance_command_at_a_time(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [4]])
    with exclusive(dataset), pytest.raises(InUseError, match=f"in use by process {os.getpid()}"):
        compact(dataset.path)
    assert compact(dataset.path).merged_segments == 2


@pytest.mark.parametrize("target", [-1, 0, 1, 131_073])
def test_impossible_targets_are_refused(tmp_path, target):
    dataset, _ = fill(tmp_path / "data", [[4]])
    with pytest.raises(ConfigError, match="target_steps"):
        compact(dataset.path, target_steps=target)


def test_two_machines_give_the_same_merge_the_same_name(tmp_path):
    dataset, _ = fill(tmp_path / "a", [[4], [4]])
    shutil.copytree(dataset.path, tmp_path / "b")
    compact(tmp_path / "a", clock=Clock(1.0))
    compact(tmp_path / "b", clock=Clock(2.0))
    assert dataset.segment_ids() == Dataset.open(tmp_path / "b").segment_ids()


class _Named:
    manifest_digest = "0"

    def __init__(self, name):
        self.id = name


def test_a_merged_name_keeps_between_names_that_differ_in_their_tails_alone():
    for stem in "abcdefgh":
        ordered = [f"{stem}-{digit}0000000" for digit in "79ab"]
        run: list[Any] = [_Named(name) for name in ordered[1:3]]
        name = merged_name(run, ordered)
        assert name is not None
        assert ordered[0] < name < ordered[3]


@settings(max_examples=50, deadline=None)
@given(
    st.sets(
        st.text("ab-0f", min_size=1, max_size=5)
        | st.integers(0, 2**32 - 1).map(lambda tail: f"a-{tail:08x}"),
        min_size=2,
        max_size=7,
    ),
    st.data(),
)
def test_a_merged_name_sorts_where_its_sources_did(names, data):
    ordered = sorted(names)
    first = data.draw(st.integers(0, len(ordered) - 2))
    last = data.draw(st.integers(first + 1, len(ordered) - 1))
    run: list[Any] = [_Named(n) for n in ordered[first : last + 1]]
    name = merged_name(run, ordered)
    if name is not None:
        rest = [*ordered[:first], *ordered[last + 1 :]]
        assert name not in ordered
        assert sorted([*rest, name]).index(name) == first


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_a_sampler_that_refreshes_across_a_compaction_draws_the_same_episodes(
    tmp_path, monkeypatch, mode
):
    dataset, _ = fill(tmp_path / "data", [[6, 5], [7], [8], [9, 3]])
    transitions = [
        row.tobytes() for segment in dataset.snapshot().segments for row in segment.read("action")
    ]

    def drawn(sampler):
        assert sampler.steps == len(transitions)
        batches = (sampler.sample().action for _ in range(20))
        assert {row.tobytes() for batch in batches for row in batch} == set(transitions)

    config = ReplayConfig(batch_size=64, scratch=str(tmp_path), mode=mode)
    with Sampler([dataset], config, seed=0) as sampler:
        remove = removal.remove

        def looking(*args):
            for step in (lambda: None, lambda: remove(*args)):
                step()
                report = sampler.refresh()
                assert report.refused == ()
                drawn(sampler)

        monkeypatch.setattr(compact_module, "remove", looking)
        compact(dataset.path, target_steps=26)
        drawn(sampler)
        assert len(dataset.segment_ids()) == 2
