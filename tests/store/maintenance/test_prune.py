"""Pruning: what is named goes, whole segments, oldest first; all else stays."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, DatasetError, InUseError, SegmentNotFoundError
from avtd3.store.filters import parse_filter
from avtd3.store.maintenance import compact as compact_module
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.pins import PINS_FILE, list_pins, pin, read_pins, unpin
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.store.maintenance.removal import exclusive
from avtd3.store.render.text import WorkProgress
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.maintenance.datasets import SPEC, START, files, fill, identity, publish
from avtd3.tests.store.segments import Clock

DAY_S = 86_400.0


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def test_the_oldest_go_until_the_steps_fit(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5], [6], [2, 1]])
    names = dataset.segment_ids()
    episodes = identity(dataset)
    report = prune(dataset.path, PruneConfig(max_steps=10))
    assert report.removed == tuple(names[:2])
    assert (report.steps_before, report.removed_steps) == (18, 9)
    assert report.within_limits
    assert identity(dataset) == episodes[2:]
    assert not any(dataset.staging_path.iterdir())
    assert prune(dataset.path, PruneConfig(max_steps=10)).removed == ()


def test_bytes_are_those_on_the_disk(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5], [6]])
    sizes = [
        sum(p.stat().st_size for p in (dataset.segments_path / name).rglob("*") if p.is_file())
        for name in dataset.segment_ids()
    ]
    assert prune(dataset.path, PruneConfig(max_bytes=sum(sizes))).removed == ()
    report = prune(dataset.path, PruneConfig(max_bytes=sum(sizes) - 1))
    assert (report.bytes_before, report.removed_bytes) == (sum(sizes), sizes[0])
    assert len(report.removed) == 1


def test_a_limit_leaves_the_newest_segment(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5]])
    report = prune(dataset.path, PruneConfig(max_steps=1))
    assert len(report.removed) == 1
    assert not report.within_limits
    assert "still above the limit" in report.summary()


def test_age_is_that_of_the_youngest_episode_even_when_merged(tmp_path):
    dataset = Dataset.create(tmp_path / "data", SPEC)
    for day in range(4):
        publish(dataset, [3], seed=day, now=START + day * DAY_S)
    compact(dataset.path, target_steps=6, clock=Clock(START + 100 * DAY_S))
    episodes = identity(dataset)
    now = Clock(START + 10 * DAY_S)
    config = PruneConfig(older_than_s=8.5 * DAY_S)
    assert prune(dataset.path, config, clock=now).removed_steps == 6
    assert identity(dataset) == episodes[2:]


def test_a_filter_takes_segments_all_of_whose_episodes_match(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4, 5], [4], [4]])  # odd seeds end in a collision
    publish(dataset, [2], seed=301, now=START + 9)
    names = dataset.segment_ids()
    config = PruneConfig(episodes=parse_filter(["end=collision"]))
    report = prune(dataset.path, config)
    assert report.removed == (names[3],)
    assert report.mixed == 1
    assert "1 segment kept because of episodes that do not match" in report.summary()
    config = PruneConfig(episodes=parse_filter(["policy=100"]), max_steps=1)
    report = prune(dataset.path, config)
    assert report.removed == (names[1],)
    assert not report.within_limits


def test_pinned_segments_stay_until_they_are_unpinned(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5], [6]])
    names = dataset.segment_ids()
    held = pin(dataset.path, [names[0]], note="the good ones", clock=Clock(7.0))
    assert held.changed == (names[0],)
    assert "the good ones" in held.summary()
    report = prune(dataset.path, PruneConfig(max_steps=6))
    assert report.removed == (names[1],)
    assert report.pinned == 1
    assert not report.within_limits
    assert dataset.segment_ids() == [names[0], names[2]]
    assert unpin(dataset.path, [names[0]]).pins == {}
    assert prune(dataset.path, PruneConfig(max_steps=6)).removed == (names[0],)


def test_pins_by_filter_hold_segments_with_any_match(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4, 5], [4], [4]])
    names = dataset.segment_ids()
    assert pin(dataset.path, (), episodes=parse_filter(["end=collision"])).changed == (names[0],)
    assert pin(dataset.path, [names[1], names[0]], note="b").changed == (names[1],)
    dataset.quarantine(names[1])
    report = list_pins(dataset.path)
    assert report.absent == (names[1],)
    assert json.loads(json.dumps(report.document()))["pins"][names[0]]["note"] == "b"
    assert "(not there)" in report.summary()
    gone = unpin(dataset.path, [names[1]], episodes=parse_filter(["end=*"]))
    assert gone.changed == (names[1], names[0])
    assert read_pins(dataset) == {}


def test_pins_ask_for_names_that_are_there(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4]])
    with pytest.raises(SegmentNotFoundError, match="there is no segment x"):
        pin(dataset.path, ["x"])
    with pytest.raises(ConfigError, match="no segments were selected"):
        pin(dataset.path, [])
    with pytest.raises(ConfigError, match="is not pinned"):
        unpin(dataset.path, dataset.segment_ids())
    with pytest.raises(DatasetError, match="does not exist"):
        list_pins(tmp_path / "none")


UNREADABLE_PINS = ("", "[]", '{"pins": []}', '{"pins": {"a": {}}}', '{"pins": {"a":1}}')
TIMES = ("1" + 400 * "0", "Infinity", "NaN")


@pytest.mark.parametrize(
    "text",
    [
        *UNREADABLE_PINS,
        *(f'{{"pins": {{"a": {{"note": "", "pinned_at": {time}}}}}}}' for time in TIMES),
    ],
)
def test_nothing_is_removed_while_the_pins_cannot_be_read(tmp_path, text):
    dataset, _ = fill(tmp_path / "data", [[4], [4]])
    (dataset.path / PINS_FILE).write_text(text)
    for change in (
        lambda: prune(dataset.path, PruneConfig(max_steps=1)),
        lambda: compact(dataset.path),
        lambda: pin(dataset.path, dataset.segment_ids()),
    ):
        with pytest.raises(DatasetError, match="fix the file, or delete it"):
            change()
    assert len(dataset.segment_ids()) == 2


def test_a_dry_run_changes_nothing_and_says_the_same(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5], [6]])
    with exclusive(dataset):
        before = files(dataset.path)
        dry = prune(dataset.path, PruneConfig(max_steps=6), dry_run=True)
        assert files(dataset.path) == before
    assert "would remove 2 segments of 9 steps" in dry.summary()
    assert dry.removed[0] in dry.summary()
    wet = prune(dataset.path, PruneConfig(max_steps=6))
    assert dry.document() | {"dry_run": False} == wet.document()


def test_an_interruption_removes_no_more(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[1]] * 20)
    drawn: list[WorkProgress] = []
    config = PruneConfig(max_steps=1)
    report = prune(dataset.path, config, should_stop=lambda: bool(drawn), on_progress=drawn.append)
    assert report.stopped
    assert len(dataset.segment_ids()) == 4
    assert drawn[-1].line() == "removed 16 of 19 segments"
    assert not prune(dataset.path, config).stopped


def test_unreadable_segments_are_reported_and_kept(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5], [6]])
    names = dataset.segment_ids()
    for name, array in ((names[0], "action/c/0/0"), (names[1], "episode_wall_time/c/0")):
        data = dataset.segments_path / name / array
        whole = data.read_bytes()
        data.write_bytes(whole[:-1] if name == names[0] else bytes([whole[0] ^ 1]) + whole[1:])
    report = prune(dataset.path, PruneConfig(older_than_s=0.0))
    assert report.removed == (names[2],)
    assert [name for name in names[:2] if name not in "".join(report.problems)] == []


def test_staging_is_not_touched_but_for_what_a_killed_removal_left(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5]])
    living = dataset.staging_path / "20270101T000000.000000Z-a-000001-00000000"
    (living / "frames").mkdir(parents=True)
    old = dataset.staging_path / "0011223344556677.removed"
    (dataset.segments_path / dataset.segment_ids()[0]).rename(old)
    prune(dataset.path, PruneConfig(max_steps=100))
    compact(dataset.path)
    assert list(dataset.staging_path.iterdir()) == [living]
    assert (living / "frames").is_dir()


def test_what_a_killed_compaction_left_goes_with_what_replaced_it(tmp_path, monkeypatch):
    dataset, _ = fill(tmp_path / "data", [[4], [4], [9], [9]])
    old = dataset.segment_ids()[:2]
    monkeypatch.setattr(compact_module, "remove", lambda *_: None)
    compact(dataset.path, target_steps=8)
    episodes = identity(dataset)
    assert len(dataset.segment_ids()) == 5
    pin(dataset.path, [old[1]])
    assert prune(dataset.path, PruneConfig(max_steps=9)).pinned == 1
    unpin(dataset.path, [old[1]])
    prune(dataset.path, PruneConfig(max_steps=9))
    assert identity(dataset) == episodes[3:]
    assert len(dataset.segment_ids()) == 1


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_bytes": 0},
        {"max_steps": -1},
        {"older_than_s": -1.0},
        {"older_than_s": float("nan")},
    ],
)
def test_impossible_settings_are_refused(config):
    with pytest.raises(ConfigError, match="expected"):
        PruneConfig(**config)


def test_one_maintenance_command_at_a_time(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5]])
    with exclusive(dataset):
        for change in (
            lambda: prune(dataset.path, PruneConfig(max_steps=1)),
            lambda: pin(dataset.path, dataset.segment_ids()),
        ):
            with pytest.raises(InUseError, match="wait until it has ended"):
                change()
    assert len(dataset.segment_ids()) == 2


def test_a_learner_continues_with_what_is_left(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5], [6]])
    config = ReplayConfig(batch_size=4, scratch=str(tmp_path))
    with Sampler([dataset], config, seed=0) as sampler:
        prune(dataset.path, PruneConfig(max_steps=6))
        sampler.sample()
        report = sampler.refresh()
        assert (report.segments_removed, report.refused, sampler.steps) == (2, (), 6)


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    limit=st.integers(1, 40),
    pinned=st.sets(st.integers(0, 5)),
)
def test_what_goes_is_the_shortest_unpinned_prefix(tmp_path_factory, lengths, limit, pinned):
    dataset, _ = fill(tmp_path_factory.mktemp("prune") / "data", [[n] for n in lengths])
    names = dataset.segment_ids()
    held = [names[n] for n in sorted(pinned) if n < len(names)]
    if held:
        pin(dataset.path, held)
    gone = []
    for number, name in enumerate(names[:-1]):
        if sum(n for i, n in enumerate(lengths) if names[i] not in gone) <= limit:
            break
        if number not in pinned:
            gone.append(name)
    assert prune(dataset.path, PruneConfig(max_steps=limit)).removed == tuple(gone)
    assert dataset.segment_ids() == [name for name in names if name not in gone]
