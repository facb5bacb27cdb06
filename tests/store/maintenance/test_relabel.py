"""Relabelling: other weights, the same episodes, and not a byte of the old dataset changed."""

import errno
import json
import math
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    ConfigError,
    DatasetError,
    SegmentNotFoundError,
    SpecError,
    StorageError,
)
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import Factor, relabel
from avtd3.store.render.audit_view import audit_text
from avtd3.store.render.text import WorkProgress
from avtd3.store.replaced import RELABEL, REPLACES
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.maintenance.datasets import SPEC, START, files, fill, identity, publish
from avtd3.tests.store.segments import Clock, make_spec

NEW = ("reward", "reward_terms", "episode_return")


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def old(tmp_path):
    return fill(tmp_path / "old", [[5, 3], [7], [2]])[0]


def test_rewards_are_the_sums_of_the_weighted_terms_and_all_else_is_the_same(old, tmp_path):
    before = files(old.path)
    report = relabel(old.path, tmp_path / "new", {"r1": -0.5}, clock=Clock(9.0))
    assert files(old.path) == before
    new = Dataset.open(tmp_path / "new")
    assert new.spec == old.spec
    pairs = list(zip(old.snapshot().segments, new.snapshot().segments, strict=True))
    for left, right in pairs:
        right.verify()
        for name in set(left.names) - set(NEW):
            np.testing.assert_array_equal(left.read(name), right.read(name))
        assert left.episode_table().texts("town") == right.episode_table().texts("town")
        terms = left.read("reward_terms") * np.array([1.0, -0.5], np.float32)
        np.testing.assert_array_equal(right.read("reward_terms"), terms)
        rewards = [np.float32(float(a) + float(b)) for a, b in terms]
        np.testing.assert_array_equal(right.read("reward"), rewards)
        table = right.episode_table()
        for n, total in enumerate(table.episode_return):
            start = table.offset[n]
            mine = rewards[start : start + table.length[n]]
            assert total == pytest.approx(sum(map(float, mine)), rel=1e-12)
    assert (report.segments, report.steps, report.weights) == (3, 17, {"r0": 1.0, "r1": -0.5})
    assert "relabelled 3 segments of 17 steps" in report.summary()
    json.dumps(report.document())


def test_factors_multiply_a_term_where_another_is_low(old, tmp_path):
    stored = np.concatenate([s.read("reward_terms") for s in old.snapshot().segments])
    limit = float(np.median(stored[:, 1]))
    factors = (
        Factor(term="r0", where="r1", below=limit, factor=0.5),
        Factor(term="r0", where="r0", below=float(np.median(stored[:, 0])), factor=-2.0),
    )
    report = relabel(old.path, tmp_path / "new", {"r0": 4.0, "r1": 0.0}, factors=factors)
    segments = Dataset.open(tmp_path / "new").snapshot().segments
    found = np.concatenate([s.read("reward_terms") for s in segments])
    for (first, second), (mine, nothing) in zip(stored.tolist(), found.tolist(), strict=True):
        share = 4.0
        share *= 0.5 if second < factors[0].below else 1.0
        share *= -2.0 if first < factors[1].below else 1.0
        assert (mine, nothing) == (np.float32(share * first), 0.0)
    assert len(set((found[:, 0] / stored[:, 0]).round(3).tolist())) > 1
    assert report.factors == factors
    json.dumps(report.document())
    assert segments[0].provenance[RELABEL]["factors"] == [
        {"term": "r0", "where": "r1", "below": limit, "factor": 0.5},
        {"term": "r0", "where": "r0", "below": factors[1].below, "factor": -2.0},
    ]
    assert relabel(old.path, tmp_path / "new", report.weights, factors=factors).already_there == 3
    with pytest.raises(ConfigError, match="which was made with factors"):
        relabel(old.path, tmp_path / "new", report.weights)
    with pytest.raises(ConfigError, match="which was made with factors"):
        relabel(old.path, tmp_path / "new", report.weights, factors=factors[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"term": "r7"}, "the terms are r0, r1"),
        ({"where": "r7"}, "limit of the factor on 'r0' where 'r7' is low: the terms are"),
        ({"below": math.nan}, "is nan, expected a finite number"),
        ({"factor": math.inf}, "is inf, expected a finite number"),
        ({"factor": "half"}, "is 'half', expected a finite number"),
    ],
)
def test_impossible_factors_are_refused(old, tmp_path, change, message):
    factor = Factor(**{"term": "r0", "where": "r1", "below": 0.0, "factor": 0.5, **change})
    with pytest.raises(ConfigError, match=message):
        relabel(old.path, tmp_path / "new", {}, factors=(factor,))
    assert not (tmp_path / "new").exists()


def test_frames_lie_on_the_disk_once(old, tmp_path):
    report = relabel(old.path, tmp_path / "new", {"r0": 2.0})
    new = Dataset.open(tmp_path / "new")
    for left, right in zip(old.snapshot().segments, new.snapshot().segments, strict=True):
        frames = "frames/c/0/0/0/0"
        assert (right.path / frames).samefile(left.path / frames)
        assert not (right.path / "zarr.json").samefile(left.path / "zarr.json")
    on_disk = {
        (s.st_dev, s.st_ino): s.st_size
        for root in (old.path, new.path)
        for s in (p.stat() for p in root.glob("segments/**/*") if p.is_file())
    }
    total = sum(p.stat().st_size for p in old.path.glob("segments/**/*") if p.is_file())
    assert report.bytes_shared > 0
    assert sum(on_disk.values()) - total == report.bytes_written
    # either may go, the other stays
    shutil.rmtree(old.path)
    for segment in new.snapshot().segments:
        segment.verify()


def test_where_links_do_not_reach_files_are_copied_and_that_is_said(old, tmp_path, monkeypatch):
    link = os.link

    def other_device(source, target, **options):
        if "segments" in str(source):
            raise OSError(errno.EXDEV, "other device")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", other_device)
    report = relabel(old.path, tmp_path / "new", {"r0": 2.0})
    assert report.bytes_shared == 0
    assert report.bytes_copied > 0
    assert "copied: hard links are not possible" in report.summary()
    for segment in Dataset.open(tmp_path / "new").snapshot().segments:
        segment.verify()


def test_where_the_new_one_comes_from_is_written_down(old, tmp_path):
    relabel(old.path, tmp_path / "new", {"r0": 2.0}, clock=Clock(9.0))
    relabel(tmp_path / "new", tmp_path / "newer", {"r0": 0.5})
    source = old.snapshot().segments[0]
    first = Dataset.open(tmp_path / "new").snapshot().segments[0]
    second = Dataset.open(tmp_path / "newer").snapshot().segments[0]
    reported = first.provenance[RELABEL]
    assert reported == {
        "dataset": str(old.path),
        "segment_id": source.id,
        "digest": source.manifest_digest,
        "weights": {"r0": 2.0, "r1": 1.0},
    }
    assert first.provenance["sealed_at"] == 9.0
    assert first.provenance["collector"] == source.provenance["collector"]
    assert second.provenance[RELABEL]["before"] == reported
    for name in NEW:  # halves and doubles are exact
        np.testing.assert_array_equal(second.read(name), source.read(name))


def test_the_result_audits_clean_and_can_be_drawn_from(old, tmp_path):
    relabel(old.path, tmp_path / "new", {"r0": 3.0, "r1": 0.1})
    found = audit([tmp_path / "new"], AuditConfig(scheduler="sync"))
    assert found.log.count("error") == 0
    assert "reward-sum" not in audit_text(found)
    assert "return-sum" not in audit_text(found)
    new = Dataset.open(tmp_path / "new")
    config = ReplayConfig(batch_size=64, scratch=str(tmp_path))
    with Sampler([new], config, seed=0) as sampler:
        rewards = {r for s in new.snapshot().segments for r in s.read("reward").tolist()}
        assert set(sampler.sample().reward.tolist()) <= rewards


def test_run_again_it_adds_what_is_new(old, tmp_path):
    drawn: list[WorkProgress] = []
    stopped = relabel(
        old.path,
        tmp_path / "new",
        {"r0": 2.0},
        should_stop=lambda: bool(drawn),
        on_progress=drawn.append,
    )
    assert (stopped.stopped, stopped.segments) == (True, 1)
    assert drawn[0].line() == "relabelled 1 of 3 segments"
    rest = relabel(old.path, tmp_path / "new", {"r0": 2.0})
    assert (rest.stopped, rest.segments, rest.already_there) == (False, 2, 1)
    publish(old, [4], seed=70, now=START + 9)
    assert relabel(old.path, tmp_path / "new", {"r0": 2.0, "r1": 1.0}).segments == 1
    nothing = relabel(old.path, tmp_path / "new", {"r0": 2.0})
    assert (nothing.segments, nothing.already_there) == (0, 4)
    assert nothing.summary().count("\n") == 1


def test_a_compaction_of_the_old_dataset_doubles_nothing_in_the_new(old, tmp_path):
    relabel(old.path, tmp_path / "new", {"r0": 2.0})
    new = Dataset.open(tmp_path / "new")
    before = identity(new)
    compact(old.path)
    assert relabel(old.path, tmp_path / "new", {"r0": 2.0}).segments == 1
    assert identity(new) == before
    (segment,) = new.snapshot().segments
    assert len(segment.provenance[REPLACES]) == 3
    assert compact(new.path).leftovers == 3
    assert identity(new) == before


def test_the_new_dataset_can_be_compacted_too(old, tmp_path):
    relabel(old.path, tmp_path / "new", {"r0": 2.0})
    relabel(tmp_path / "new", tmp_path / "newer", {"r1": 2.0})
    new = Dataset.open(tmp_path / "newer")
    before = identity(new)
    assert compact(new.path).merged_segments == 3
    assert identity(new) == before
    (segment,) = new.snapshot().segments
    assert segment.provenance[RELABEL] == {
        "dataset": str(tmp_path / "new"),
        "weights": {"r0": 1.0, "r1": 2.0},
        "before": {"dataset": str(old.path), "weights": {"r0": 2.0, "r1": 1.0}},
    }
    assert relabel(tmp_path / "new", new.path, {"r1": 2.0}).already_there == 3
    assert identity(new) == before


def test_other_weights_go_into_another_dataset(old, tmp_path):
    relabel(old.path, tmp_path / "new", {"r0": 2.0})
    with pytest.raises(ConfigError, match="which was made with weights"):
        relabel(old.path, tmp_path / "new", {"r0": 3.0})
    with pytest.raises(ConfigError, match="made with weights None"):
        relabel(tmp_path / "new", old.path, {"r0": 3.0})
    with pytest.raises(ConfigError, match="the source dataset itself"):
        relabel(old.path, old.path / ".." / "old", {"r0": 3.0})
    other = fill(tmp_path / "other", [[2]], spec=make_spec(terms=3))[0]
    with pytest.raises(SpecError, match="another spec"):
        relabel(old.path, other.path, {"r0": 3.0})
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="is a file"):
        relabel(old.path, tmp_path / "file", {"r0": 3.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"r11": 1.0}, "did you mean 'r1'"),
        ({"nothing": 1.0}, "the terms are r0, r1"),
        ({"r0": float("nan")}, "expected a finite number"),
        ({"r0": float("inf")}, "expected a finite number"),
        ({"r0": True}, "expected a finite number"),
        ({"r0": "2"}, "expected a finite number"),
        ({"r0": 1e38, "r1": 1e39}, "exceeds the range of float32"),
    ],
)
def test_impossible_weights_are_refused(old, tmp_path, weights, message):
    with pytest.raises(ConfigError, match=message):
        relabel(old.path, tmp_path / "new", weights)
    assert not list(tmp_path.glob("new/segments/*"))


def test_a_dataset_without_terms_cannot_be_relabelled(tmp_path):
    dataset, _ = fill(tmp_path / "old", [[3]], spec=make_spec(terms=0))
    with pytest.raises(SpecError, match="without their terms"):
        relabel(dataset.path, tmp_path / "new", {})


def test_damaged_segments_are_skipped_and_reported(old, tmp_path):
    first, second, third = (s.path for s in old.snapshot().segments)
    torn = first / "action" / "c" / "0" / "0"
    torn.write_bytes(torn.read_bytes()[:-1])
    flipped = second / "reward_terms" / "c" / "0" / "0"
    flipped.write_bytes(bytes([flipped.read_bytes()[0] ^ 1]) + flipped.read_bytes()[1:])
    report = relabel(old.path, tmp_path / "new", {"r0": 2.0})
    assert report.segments == 1
    reported = "".join(report.problems)
    assert first.name in reported
    assert second.name in reported
    (left,) = Dataset.open(tmp_path / "new").segment_ids()
    assert left.startswith(third.name)


def test_a_segment_that_is_removed_meanwhile_is_reported(old, tmp_path, monkeypatch):
    victim = old.segment_ids()[1]
    link = os.link

    def racing(source, target, **options):
        if victim in str(source):
            shutil.rmtree(old.segments_path / victim, ignore_errors=True)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", racing)
    report = relabel(old.path, tmp_path / "new", {"r0": 2.0})
    assert (report.segments, len(report.problems)) == (2, 1)
    assert not any((tmp_path / "new" / ".staging").iterdir())


def test_a_full_disk_is_reported_and_the_next_run_continues(old, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    Dataset.create(tmp_path / "new", SPEC)
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StorageError, match="the disk is full"):
        relabel(old.path, tmp_path / "new", {"r0": 2.0})
    monkeypatch.undo()
    assert relabel(old.path, tmp_path / "new", {"r0": 2.0}).segments == 3


def test_weights_of_one_change_nothing(old, tmp_path):
    relabel(old.path, tmp_path / "new", {})
    assert identity(Dataset.open(tmp_path / "new")) == identity(old)


@settings(max_examples=10, deadline=None)
@given(
    weights=st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 4),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_any_weights_leave_sums_that_hold(tmp_path_factory, weights, lengths):
    root = tmp_path_factory.mktemp("relabel")
    spec = make_spec(height=3, width=2, terms=4)
    dataset, _ = fill(root / "old", [lengths], spec=spec)
    relabel(dataset.path, root / "new", dict(zip(spec.reward_terms, weights, strict=True)))
    (segment,) = Dataset.open(root / "new").snapshot().segments
    terms = segment.read("reward_terms").astype(np.float64)
    # Added in double precision and rounded once: half a unit of float32.
    slack = 1e-14 * np.abs(terms).sum(axis=1)
    wanted = np.array([math.fsum(row) for row in terms])
    apart = np.abs(segment.read("reward") - wanted)
    assert (apart <= 2.0**-24 * np.abs(wanted) + slack + 1e-44).all()
    with pytest.raises(SegmentNotFoundError):
        dataset.open_segment(segment.id)
