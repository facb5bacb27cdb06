"""Collectors publish and learners read while a dataset is compacted and pruned."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from avtd3.collect.plan import held_episodes
from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.errors import SegmentNotFoundError
from avtd3.store.filters import parse_filter
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.scratch import REWARD
from avtd3.store.writer import SegmentWriter, WriterConfig
from avtd3.tests.store.maintenance.datasets import SPEC, publish
from avtd3.tests.store.segments import feed, make_episode

SEGMENTS = 6
KEPT, PRUNED = 0, 1


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Published:
    """Seeds of the episodes that are certainly published, by scenario."""

    def __init__(self):
        self.seeds: dict[int, list[int]] = {KEPT: [], PRUNED: []}

    def collect(self, dataset, scenario, first_seed):
        """Publish segment after segment, as a collector does."""
        writer = SegmentWriter(
            dataset,
            collector=f"c{first_seed}",
            provenance={"plan_digest": str(first_seed)},
            config=WriterConfig(segment_steps=1, segment_seconds=1e9),
        )
        with writer:
            for seed in range(first_seed, first_seed + SEGMENTS):
                feed(writer, make_episode(SPEC, 3, seed=seed, scenario=scenario))
                self.seeds[scenario].append(seed)


def episodes_of(snapshot):
    """Seed and scenario of every episode, or None if a segment went while it was read."""
    found = []
    for segment in snapshot.segments:
        try:
            table = segment.episode_table()
        except SegmentNotFoundError:
            return None
        found += list(zip(table.seed.tolist(), table.numbers("scenario").tolist(), strict=True))
    return found


def watch(dataset, published, is_over):
    """Take snapshots until the end: nothing is doubled or lost; return how many were checked."""
    judged = 0
    snapshot = Snapshot(segments=())
    while not is_over.is_set():
        before = set(published.seeds[KEPT])
        snapshot = dataset.refresh(snapshot) if judged % 2 else dataset.snapshot()
        assert snapshot.refused == ()
        found = episodes_of(snapshot)
        if found is None:
            continue
        judged += 1
        assert max(Counter(found).values(), default=1) == 1
        assert before <= {seed for seed, scenario in found if scenario == KEPT}
    return judged


def maintain(dataset, writers_done):
    """Compact and prune until the collectors are done, and once more; returns what was merged."""
    merged = 0
    config = PruneConfig(episodes=parse_filter([f"scenario={PRUNED}"]))
    is_last = False
    while not is_last:
        is_last = writers_done.is_set()
        report = compact(dataset.path, target_steps=12)
        assert report.problems == ()
        merged += report.merged_segments
        assert prune(dataset.path, config).problems == ()
    return merged


def test_collectors_readers_and_maintenance_at_once(tmp_path):
    dataset = Dataset.create(tmp_path / "data", SPEC)
    published, writers_done, over = Published(), threading.Event(), threading.Event()
    published.collect(dataset, KEPT, 300)  # neighbours, in whatever order the others publish
    with ThreadPoolExecutor(6) as pool:
        watchers = [pool.submit(watch, dataset, published, over) for _ in range(2)]
        house = pool.submit(maintain, dataset, writers_done)
        collectors = [
            pool.submit(published.collect, dataset, scenario, 100 * number)
            for number, scenario in enumerate((KEPT, PRUNED, KEPT))
        ]
        try:
            for collector in collectors:
                collector.result()
            writers_done.set()
            assert house.result() > 0
        finally:
            writers_done.set()
            over.set()
        assert min(watcher.result() for watcher in watchers) > 0
    found = episodes_of(dataset.snapshot())
    wanted = {(seed, KEPT) for n in (0, 2, 3) for seed in range(100 * n, 100 * n + SEGMENTS)}
    assert found is not None
    assert Counter(found) == Counter(wanted)
    assert not any(dataset.staging_path.iterdir())


def drawn(sampler):
    """The rewards of all transitions that can be drawn: random numbers, so each only once."""
    return [r for key in sampler.backend.segments for r in cached_rewards(sampler.backend, key)]


def cached_rewards(cache, key):
    segment = cache.segments[key]
    first = cache.start(key) + segment.first_rows
    rows = [
        n
        for start, length in zip(first, segment.episodes.lengths, strict=True)
        for n in range(start, start + length)
    ]
    return cache.arrays()["numbers"][rows, REWARD].tolist()


def test_a_learner_refreshes_while_collectors_publish_and_segments_are_merged(tmp_path):
    dataset = Dataset.create(tmp_path / "data", SPEC)
    publish(dataset, [3], seed=10_000)
    published, writers_done = Published(), threading.Event()
    config = ReplayConfig(batch_size=8, scratch=str(tmp_path))
    with ThreadPoolExecutor(2) as pool, Sampler([dataset], config, seed=0) as sampler:
        house = pool.submit(maintain, dataset, writers_done)
        collector = pool.submit(published.collect, dataset, KEPT, 0)
        while not collector.done():
            before = len(published.seeds[KEPT])
            report = sampler.refresh()
            # What goes between listing and decoding comes with the next refresh, as merged.
            assert sampler.steps >= 3 * before or report.refused
            assert max(Counter(drawn(sampler)).values()) == 1
        writers_done.set()
        house.result()
        sampler.refresh()
        assert sampler.steps == 3 * (1 + SEGMENTS) == len(drawn(sampler))


def test_direct_replay_finds_the_merged_segment_by_itself(tmp_path, monkeypatch):
    """Few files stay open, so that those of the removed segments are looked for in vain."""
    monkeypatch.setattr("avtd3.store.replay.direct.descriptor_budget", lambda: 1)
    dataset = Dataset.create(tmp_path / "data", SPEC)
    for number in range(3):
        publish(dataset, [5], seed=number, now=float(number))
    config = ReplayConfig(batch_size=16, scratch=str(tmp_path), mode="direct")
    with Sampler([dataset], config, seed=0) as sampler:
        sampler.sample()
        compact(dataset.path)
        for _ in range(10):
            sampler.sample()
        assert sampler.steps == 15
        report = sampler.refresh()
        assert (report.steps_added, report.segments_removed) == (0, 3)


def test_merged_episodes_are_no_news_to_a_learner(tmp_path):
    """Its pace follows the steps that are new, and its metrics the episodes."""
    dataset = Dataset.create(tmp_path / "data", SPEC)
    publish(dataset, [3, 2], seed=0, now=1.0)
    publish(dataset, [4], seed=10, now=2.0)
    config = ReplayConfig(batch_size=8, scratch=str(tmp_path))
    with Sampler([dataset], config, seed=0) as sampler:
        assert sampler.opening.steps_added == 9
        compact(dataset.path)
        report = sampler.refresh()
        assert (report.segments_removed, report.steps_added, len(report.episodes)) == (2, 0, 0)
        publish(dataset, [6], seed=20, now=3.0)
        compact(dataset.path)
        report = sampler.refresh()
        assert (report.steps_added, report.episodes.lengths.tolist()) == (6, [6])
        assert sampler.steps == 15


def test_a_resumed_plan_finds_its_episodes_in_merged_segments(tmp_path):
    dataset = Dataset.create(tmp_path / "data", SPEC)
    for index in range(4):
        publish(dataset, [3], seed=index, now=float(index), info={"index": index}, plan_digest="p")
    compact(dataset.path)
    assert len(dataset.segment_ids()) == 1
    assert held_episodes(dataset, "p") == dict.fromkeys(range(4), 3)


def test_a_reader_with_an_old_snapshot_learns_that_segments_were_removed(tmp_path):
    dataset = Dataset.create(tmp_path / "data", SPEC)
    for number in range(2):
        publish(dataset, [3], seed=number, now=float(number))
    old = dataset.snapshot()
    compact(dataset.path)
    with pytest.raises(SegmentNotFoundError, match="refresh the snapshot"):
        old.segments[0].read("reward")
    rewards = [s.read("reward") for s in dataset.refresh(old).segments]
    assert np.concatenate(rewards).shape == (6,)
