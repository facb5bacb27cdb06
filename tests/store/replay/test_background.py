"""Sampling while the replay cache is filled in the background; no test depends on a clock."""

import contextlib
import threading

import numpy as np
import pytest

from avtd3.learn.config import LearnConfig
from avtd3.learn.replay_source import ReplaySource
from avtd3.store.errors import NoSegmentsError, SegmentCorruptError, StorageError
from avtd3.store.replay import cache as cache_module
from avtd3.store.replay import sampler as sampler_module
from avtd3.store.replay.cache import BackgroundDecoder
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.memory import MemorySegment, World


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr(sampler_module, "TAKE_S", 0.0)
    monkeypatch.setattr(cache_module, "FILL_THREADS", 1)


class Gate:
    """Blocks the decoding of a segment's frames until `opened` is set."""

    def __init__(self, segment):
        self.opened = threading.Event()
        self._whole = segment.frame_parts
        segment.frame_parts = self

    def __call__(self, stream=None):
        assert self.opened.wait(60)
        return self._whole(stream)


def three(world):
    """Segments of 3, 4 and 5 steps: episodes 0, 1 and 2."""
    segments = [(name, [(n, True)]) for name, n in (("a", 3), ("b", 4), ("c", 5))]
    return world.dataset("/d", *segments)


def open_sampler(dataset, tmp_path, **config):
    config = {"batch_size": 64, "fill": "while", **config}
    return Sampler([dataset], ReplayConfig(**config), seed=0, scratch=tmp_path)


def drawn(world, sampler):
    return {number for number, _ in world.check(sampler.sample(), 1, 0.99)}


def fill(sampler):
    """Wait until everything is decoded; return the reports until then."""
    reports = []
    while sampler.backend.is_loading:
        sampler.backend.wait()
        reports.append(sampler.news())
    return reports


def test_batches_are_sampled_from_what_is_decoded_so_far(world, tmp_path):
    dataset = three(world)
    gates = [Gate(segment) for segment in dataset.segments]
    gates[0].opened.set()
    with open_sampler(dataset, tmp_path) as sampler:
        assert (sampler.opening.segments_added, sampler.opening.steps_added) == (1, 3)
        assert (sampler.steps, sampler.has_news) == (3, True)
        assert drawn(world, sampler) == {0}
        for gate in gates:
            gate.opened.set()
        reports = fill(sampler)
        assert (sampler.steps, sampler.has_news) == (12, False)
        assert sum(report.steps_added for report in reports) == 9
        assert np.concatenate([r.episodes.lengths for r in reports]).tolist() == [4, 5]
        assert drawn(world, sampler) == {0, 1, 2}
    assert [segment.reads for segment in dataset.segments] == [1, 1, 1]


def test_sampling_includes_what_was_decoded_in_the_meantime(world, tmp_path):
    dataset = three(world)
    with open_sampler(dataset, tmp_path) as sampler:
        while sampler.backend.is_loading:
            sampler.backend.wait()
            sampler.sample()
        assert drawn(world, sampler) == {0, 1, 2}
        assert sampler.news().steps_added + sampler.opening.steps_added == 12


def test_once_it_is_full_the_batches_are_those_of_a_cache_filled_before(world, tmp_path):
    dataset = three(world)
    gate = Gate(dataset.segments[2])
    apart = tmp_path / "apart"  # caches of one scratch would wait for each other at the gate
    apart.mkdir()
    with (
        open_sampler(dataset, tmp_path) as behind,
        open_sampler(three(World(world.spec)), apart, fill="whole") as whole,
    ):
        state = whole.state()
        assert not behind.restore(state)
        gate.opened.set()
        fill(behind)
        assert behind.restore(state)
        for _ in range(3):
            left, right = behind.sample(), whole.sample()
            assert (left.action == right.action).all()
            assert (left.frames == right.frames).all()


def test_room_of_a_refused_segment_goes_to_an_older_one(world, tmp_path):
    dataset = three(world)
    dataset.segments[2].fault = SegmentCorruptError("crc32c of chunk 3")
    with open_sampler(dataset, tmp_path, capacity=9) as sampler:
        fill(sampler)
        assert [(r.segment_id, r.reason) for r in sampler.refused] == [("c", "crc32c of chunk 3")]
        assert drawn(world, sampler) == {0, 1}


def test_only_refused_segments_end_the_waiting(world, tmp_path):
    dataset = three(world)
    for segment in dataset.segments:
        segment.fault = SegmentCorruptError("crc32c")
    with (
        open_sampler(dataset, tmp_path) as sampler,
        pytest.raises(NoSegmentsError, match=r"3 segments are refused \(a, b, c\)"),
    ):
        sampler.sample()


def test_a_merged_segment_brings_no_new_episodes_however_late_it_arrives(world, tmp_path):
    dataset = three(world)
    with open_sampler(dataset, tmp_path) as sampler:
        fill(sampler)
        merged = MemorySegment("m", world.episodes[:2])
        names = [segment.id for segment in dataset.segments[:2]]
        merged.provenance = {
            "replaces": dict.fromkeys(names, ""),
            "origin": [{"segment_id": name, "episodes": 1} for name in names],
        }
        gate = Gate(merged)
        dataset.segments[:2] = [merged, world.segment("d", [(2, True)])]
        reports = [sampler.refresh()]
        while 3 not in drawn(world, sampler):
            sampler.backend.wait()
        gate.opened.set()
        reports += [sampler.news(), *fill(sampler)]
        assert sum(report.steps_added for report in reports) == 2
        assert drawn(world, sampler) == {0, 1, 2, 3}


def test_a_refresh_waits_with_new_segments_until_all_is_in_place(world, tmp_path):
    dataset = three(world)
    gate = Gate(dataset.segments[2])
    with open_sampler(dataset, tmp_path, capacity=11) as sampler:
        dataset.segments.append(world.segment("d", [(2, True)]))
        sampler.refresh()
        assert 3 not in drawn(world, sampler)
        gate.opened.set()
        fill(sampler)
        sampler.refresh()
        fill(sampler)
        assert sampler.steps == 4 + 5 + 2
        assert drawn(world, sampler) == {1, 2, 3}


def test_a_full_disk_is_reported_by_the_next_sample(world, tmp_path, monkeypatch):
    dataset = three(world)
    gate = Gate(dataset.segments[1])
    with open_sampler(dataset, tmp_path) as sampler:

        def full(key):
            raise StorageError("the disk is full")

        monkeypatch.setattr(sampler.backend._rows, "finish", full)
        gate.opened.set()
        sampler.backend.wait()
        with pytest.raises(StorageError, match="the disk is full"):
            sampler.sample()


def test_closing_while_it_fills_leaves_nothing(world, tmp_path):
    dataset = three(world)
    gate = Gate(dataset.segments[1])
    sampler = open_sampler(dataset, tmp_path)
    gate.opened.set()
    sampler.close()
    sampler.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("replay-fill")]
    assert not list(tmp_path.iterdir())


def test_a_source_counts_what_arrives_without_following(world, tmp_path):
    dataset = three(world)
    gate = Gate(dataset.segments[1])
    config = LearnConfig(replay=ReplayConfig(batch_size=64, fill="while"))
    with contextlib.closing(ReplaySource([dataset], config, scratch=tmp_path)) as source:
        assert (source.steps_seen, source.sampler.steps) == (12, 3)
        gate.opened.set()
        while source.sampler.has_news:
            assert source.ready(0)
        assert source.sampler.steps == 12


def test_the_error_that_ends_the_work_is_raised_after_the_results():
    refused = ((0, "a"), SegmentCorruptError("damaged"))

    def work():
        yield refused
        yield None
        raise OSError("gone")

    filling = BackgroundDecoder(work())
    filling._thread.join()
    assert filling.take() == ([refused], False)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            filling.take()
