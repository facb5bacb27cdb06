import contextlib
import hashlib
import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avtd3.store.dataset import Dataset, Refusal
from avtd3.store.errors import (
    ConfigError,
    DatasetError,
    NoSegmentsError,
    SegmentCorruptError,
    SpecError,
    StorageError,
)
from avtd3.store.replay.config import MixPart, ReplayConfig
from avtd3.store.replay.draws import BATCHES_AT_ONCE
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.scratch import ScratchArrays
from avtd3.store.replay.tracker import RefusedSegment
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.memory import TWO, MemoryDataset, World, copy, make_spec, same


def test_a_full_disk_leaves_the_loaded_segments(world, tmp_path, monkeypatch):
    dataset = world.dataset("/d", *TWO)
    config = ReplayConfig(batch_size=32, capacity=10)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        sampler.sample()
        dataset.segments.append(world.segment("c", [(6, True)]))

        def refuse(*_):
            raise StorageError("full")

        monkeypatch.setattr(ScratchArrays, "reserve", refuse)
        with pytest.raises(StorageError, match="full"):
            sampler.refresh()
        assert sampler.steps == 4
        assert {number for number, _ in world.check(sampler.sample(), 1, 0.99)} == {2}
        monkeypatch.undo()
        assert sampler.refresh().steps_added == 6
        assert {number for number, _ in world.check(sampler.sample(), 1, 0.99)} == {2, 3}


@pytest.mark.parametrize("buffers", [1, 3])
def test_frames_live_for_as_many_draws_as_there_are_buffers(world, tmp_path, buffers):
    dataset, config = world.dataset("/d", *TWO), ReplayConfig(batch_size=64)
    with Sampler([dataset], config, seed=0, scratch=tmp_path, buffers=buffers) as sampler:
        batch = sampler.sample()
        before = copy(batch)
        for _ in range(buffers - 1):
            sampler.sample()
            assert same(copy(batch), before)
        for _ in range(2 * BATCHES_AT_ONCE):
            sampler.sample()
        assert batch.frames is not None
        assert not np.array_equal(batch.frames, before[0])
        assert same(copy(batch)[1:], before[1:])


def test_nothing_published_yet(world, tmp_path):
    dataset = world.dataset("/data/empty")
    with Sampler([dataset], ReplayConfig(batch_size=8), seed=0, scratch=tmp_path) as sampler:
        assert sampler.steps == 0
        with pytest.raises(NoSegmentsError, match=r"/data/empty: no segment is published yet"):
            sampler.sample()
        dataset.segments.append(world.segment("a", [(2, True), (3, False)]))
        report = sampler.refresh()
        assert (report.segments_added, report.steps_added, len(report.episodes)) == (1, 5, 2)
        assert report.episodes.lengths.tolist() == [2, 3]
        assert report.episodes.policy_versions.tolist() == [0, 1]
        returns = [episode.reward.sum(dtype=np.float64) for episode in world.episodes]
        assert report.episodes.returns.tolist() == returns
        world.check(sampler.sample(), 1, 0.99)
        assert sampler.refresh().segments_added == 0


def test_oldest_segments_make_room(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    config = ReplayConfig(batch_size=32, capacity=10)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        assert sampler.opening.steps_added == sampler.steps == 9
        dataset.segments.append(world.segment("c", [(6, True)]))
        report = sampler.refresh()
        assert (report.segments_added, report.segments_removed) == (1, 1)
        assert sampler.steps == 10
        assert {number for number, _ in world.check(sampler.sample(), 1, 0.99)} == {2, 3}


def test_refused_segments_are_reported_once_and_leave_their_room_to_older_ones(world, tmp_path):
    dataset = world.dataset("/d", *TWO, ("c", [(5, True)]))
    dataset.segments[2].fault = SegmentCorruptError("crc32c of chunk 3")
    dataset.refused.append(Refusal(segment_id="z", reason="truncated"))
    config = ReplayConfig(batch_size=32, capacity=9)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        assert [(r.segment_id, r.reason) for r in sampler.opening.refused] == [
            ("z", "truncated"),
            ("c", "crc32c of chunk 3"),
        ]
        assert sampler.opening.segments_added == 2
        assert sampler.steps == 9
        world.check(sampler.sample(), 1, 0.99)
        assert sampler.refresh().refused == ()
        assert dataset.segments[2].reads == 1
        assert [r.segment_id for r in sampler.refused] == ["z", "c"]
        del dataset.segments[2], dataset.refused[0]
        sampler.refresh()
        assert sampler.refused == ()


def test_only_refused_segments(world, tmp_path):
    dataset = world.dataset("/d", ("a", [(5, True)]))
    dataset.segments[0].arrays["action"][3] = np.nan
    with (
        Sampler([dataset], ReplayConfig(), seed=0, scratch=tmp_path) as sampler,
        pytest.raises(NoSegmentsError, match=r"1 segment is refused \(a\).*'action' row 3"),
    ):
        sampler.sample()


def test_removed_segments_are_drawn_no_more(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    with Sampler([dataset], ReplayConfig(batch_size=32), seed=0, scratch=tmp_path) as sampler:
        del dataset.segments[0]
        assert sampler.refresh().segments_removed == 1
        assert {number for number, _ in world.check(sampler.sample(), 1, 0.99)} == {2}


def test_absent_dataset_is_still_drawn_from(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    with Sampler([dataset], ReplayConfig(batch_size=8), seed=0, scratch=tmp_path) as sampler:
        segments, dataset.segments = dataset.segments, []
        report = sampler.refresh()
        assert [str(path) for path in report.absent] == ["/d"]
        assert sampler.steps == 9
        dataset.fault = DatasetError("stale file handle")
        assert len(sampler.refresh().absent) == 1
        dataset.segments, dataset.fault = segments, None
        assert sampler.refresh().absent == ()
        world.check(sampler.sample(), 1, 0.99)


def test_a_thread_may_draw_while_another_refreshes(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    config = ReplayConfig(batch_size=16, capacity=12)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        refreshed = threading.Event()

        def refresh():
            for number in range(40):
                dataset.segments.append(world.segment(f"c{number:03}", [(3, True)]))
                sampler.refresh()
            refreshed.set()

        thread = threading.Thread(target=refresh)
        thread.start()
        while not refreshed.is_set():
            world.check(sampler.sample(), 1, 0.99)
        thread.join()


def test_datasets_must_agree(world, tmp_path):
    other: Any = MemoryDataset("/e", make_spec(period=0.1))
    with pytest.raises(SpecError, match=r"/e differs from that of /d \(control_period_s: 0.05"):
        Sampler([world.dataset("/d"), other], ReplayConfig(), seed=0, scratch=tmp_path)
    with pytest.raises(ConfigError, match="given twice"):
        Sampler([world.dataset("/d"), world.dataset("/d")], ReplayConfig(), seed=0)
    with pytest.raises(ConfigError, match="at least one dataset"):
        Sampler([], ReplayConfig(), seed=0)
    with pytest.raises(ConfigError, match="at least 1 buffer"):
        Sampler([world.dataset("/d")], ReplayConfig(), seed=0, buffers=0)
    with pytest.raises(ConfigError, match="seed of a sampler is -1"):
        Sampler([world.dataset("/d")], ReplayConfig(), seed=-1)
    with pytest.raises(ConfigError, match="has 2 values, expected 1"):
        Sampler([world.dataset("/d")], ReplayConfig(weights=(1.0, 1.0)), seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity", 0),
        ("batch_size", True),
        ("n_step", 1.5),
        ("gamma", 1.1),
        ("gamma", float("nan")),
        ("weights", (1.0, -1.0)),
        ("weights", (float("inf"),)),
        ("weights", (0.0, 0.0)),
    ],
)
def test_config_is_checked(field, value):
    with pytest.raises(ConfigError, match=f"replay.{field}"):
        ReplayConfig(**{field: value})


def test_config_names_the_scratch_directory(world, tmp_path):
    config = ReplayConfig(scratch=str(tmp_path / "fast"))
    with Sampler([world.dataset("/d", *TWO)], config, seed=0, scratch=tmp_path / "run"):
        assert [path.name for path in tmp_path.iterdir()] == ["fast"]


def test_close_twice_and_draw_no_more(world, tmp_path):
    sampler = Sampler([world.dataset("/d", *TWO)], ReplayConfig(), seed=0, scratch=tmp_path)
    sampler.close()
    sampler.close()
    with pytest.raises(NoSegmentsError):
        sampler.sample()


def write_episodes(dataset, episodes):
    """Publish one segment through the real writer; returns its directory."""
    with SegmentWriter(dataset, collector="test", provenance={}) as writer:
        for episode in episodes:
            observations = [
                Observation(image=frame, vector=vector)
                for frame, vector in zip(episode.frames, episode.vector, strict=True)
            ]
            writer.begin(
                observations[0],
                seed=episode.number,
                scenario=0,
                world="w",
                town="t",
                weather="clear",
                driver="expert",
                policy_version=episode.number,
            )
            for t in range(episode.length):
                ended = t + 1 == episode.length
                writer.step(
                    episode.action[t],
                    float(episode.reward[t]),
                    observations[t + 1],
                    terminated=ended and episode.terminated,
                    truncated=ended and not episode.terminated,
                )
            writer.end("goal" if episode.terminated else "time_limit")
        published = writer.flush()
    assert published is not None
    return published.path


@pytest.mark.parametrize("n", [1, 3])
def test_published_segments_are_followed(world, tmp_path, n):
    dataset = Dataset.create(tmp_path / "data", world.spec)
    config = ReplayConfig(batch_size=32, n_step=n, capacity=45)
    with Sampler([dataset], config, seed=0, scratch=tmp_path / "scratch") as sampler:
        for number in range(6):
            added = world.add_episodes([(9, number % 2 == 0), (4, False), (2, True)])
            write_episodes(dataset, added)
            report = sampler.refresh()
            assert report.steps_added == 15
            assert report.episodes.policy_versions.tolist() == [episode.number for episode in added]
            assert sampler.steps == min(15 * (number + 1), 45)
            drawn = world.check(sampler.sample(), n, 0.99)
            assert all(episode >= 3 * (number - 2) for episode, _ in drawn)


def test_flipped_bit_is_refused_and_the_rest_is_drawn(world, tmp_path):
    dataset = Dataset.create(tmp_path / "data", world.spec)
    good, bad = (world.add_episodes([(9, True)]) for _ in range(2))
    write_episodes(dataset, good)
    path = write_episodes(dataset, bad)
    shard = path / "frames/c/0/0/0/0"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with Sampler([dataset], ReplayConfig(batch_size=64), seed=0, scratch=tmp_path) as sampler:
        (refusal,) = sampler.opening.refused
        assert refusal.segment_id == path.name
        assert "frames" in refusal.reason
        assert {number for number, _ in world.check(sampler.sample(), 1, 0.99)} == {0}


def test_segment_that_vanishes_before_it_is_read_is_refused(world, tmp_path, monkeypatch):
    dataset = Dataset.create(tmp_path / "data", world.spec)
    write_episodes(dataset, world.add_episodes([(9, True)]))
    path = write_episodes(dataset, world.add_episodes([(9, True)]))
    snapshot = dataset.snapshot()
    dataset.quarantine(path.name)
    monkeypatch.setattr(dataset, "snapshot", lambda **_: snapshot)
    with Sampler([dataset], ReplayConfig(batch_size=64), seed=0, scratch=tmp_path) as sampler:
        assert [refusal.segment_id for refusal in sampler.opening.refused] == [path.name]
        assert sampler.steps == 9


def test_iterators_yield_the_batches_of_sample(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    config = ReplayConfig(batch_size=4, sequence_length=2)
    with (
        Sampler([dataset], config, seed=1, scratch=tmp_path) as left,
        Sampler([dataset], config, seed=1, scratch=tmp_path) as right,
    ):
        for batches in (left.batches(3), left.batches(0), itertools.islice(left, 2)):
            for batch in batches:
                assert same(copy(batch), copy(right.sample()))
        assert left.state() == right.state()
        for sequences in (left.sequence_batches(2), itertools.islice(left.sequence_batches(), 3)):
            for found in sequences:
                assert found.action.tolist() == right.sample_sequences().action.tolist()
        assert left.state() == right.state()


def test_what_a_configuration_lacks_is_an_error_that_names_it(world, tmp_path):
    dataset = world.dataset("/d", *TWO)
    config = ReplayConfig(batch_size=4, mode="direct")
    vectors = World(make_spec(image=False))
    with Sampler([vectors.dataset("/v", *TWO)], config, seed=1, scratch=tmp_path) as sampler:
        assert sampler.frame_array().frames is None
    with Sampler([dataset], ReplayConfig(batch_size=4), seed=1, scratch=tmp_path) as sampler:
        with pytest.raises(ConfigError, match=r"replay\.sequence_length is 0"):
            sampler.sample_sequences()
        with pytest.raises(ConfigError, match=r"replay\.prioritised is false"):
            sampler.update_priorities(np.zeros(4, np.int64), np.zeros(4, np.float32))


SHARES = {"weights": (3.0, 1.0), "imitate": ("end=goal",)}
MIX = {"mix": (MixPart(filter=("end=goal",), weight=0.3), MixPart(weight=0.7)), "n_step": 3}


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({}, "6bdf9e0e522e5996"),
        ({"n_step": 3, **SHARES}, "c9fc34d9e5ffe66a"),
        ({"held_out": 0.3, "policy_lag_half_life": 2.0, "max_policy_lag": 5}, "b13a4c7ee0aaf832"),
        (MIX, "8576caf4e57cce5b"),
        ({**MIX, "prioritised": True}, "f8a9c44d0c2d884a"),
        ({"sequence_length": 2, **SHARES}, "da1ae8210b032ed7"),
    ],
    ids=("uniform", "weights", "lag", "mix", "prioritised", "sequences"),
)
def test_a_seed_gives_the_batches_of_earlier_versions(world, tmp_path, settings, digest):
    """The digests are of commit ea68361; a change would change every resumed run."""
    sets = [world.dataset("/d", *TWO), world.dataset("/e", ("c", [(7, False), (1, True)]))]
    config = ReplayConfig(batch_size=6, **settings)
    hashed = hashlib.sha256()
    with Sampler(sets, config, seed=1, scratch=tmp_path) as sampler:
        for number in range(20):
            batch: Any
            if config.sequence_length:
                batch = sampler.sample_sequences()
                arrays: Any = (batch.frames, batch.vector, batch.action, batch.truncated)
            else:
                batch = sampler.sample()
                arrays = (*copy(batch), batch.bc_mask, batch.weight)
            if batch.bc_mask is None:
                hashed.update(b"-")
            for array in arrays:
                hashed.update(b"" if array is None else array.tobytes())
            if config.prioritised:
                sampler.update_priorities(batch.index, batch.reward * number)
    assert hashed.hexdigest()[:16] == digest


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_step": 3, **SHARES}, {**MIX, "prioritised": True}, {"sequence_length": 2}],
    ids=("uniform", "weights", "prioritised", "sequences"),
)
def test_samplers_of_parts_share_the_batches_of_a_whole_one(world, tmp_path, settings):
    sets = [world.dataset("/d", *TWO), world.dataset("/e", ("c", [(7, False), (1, True)]))]
    with contextlib.ExitStack() as stack:

        def sampler_of(size, part):
            config = ReplayConfig(batch_size=size, **settings)
            return stack.enter_context(Sampler(sets, config, seed=1, scratch=tmp_path, part=part))

        whole = sampler_of(12, (0, 1))
        check_parts(whole, [sampler_of(4, (number, 3)) for number in range(3)], settings)


def check_parts(whole, parts, settings):
    for number in range(20):
        if "sequence_length" in settings:
            expected = whole.sample_sequences().action
            found = [part.sample_sequences().action for part in parts]
        else:
            batch, others = whole.sample(), [part.sample() for part in parts]
            expected = np.concatenate([batch.observation_vector, batch.action], axis=1)
            found = [np.concatenate([b.observation_vector, b.action], axis=1) for b in others]
            if batch.weight is not None:
                assert (batch.weight == np.concatenate([b.weight for b in others])).all()
                for sampler, b in zip((whole, *parts), (batch, *others), strict=True):
                    assert (b.index == batch.index).all()
                    sampler.update_priorities(b.index, batch.reward * number)
        assert (expected == np.concatenate(found)).all()
    assert all(part.state() == whole.state() for part in parts)


def test_segments_that_another_process_refuses_are_excluded(world, tmp_path):
    with Sampler([world.dataset("/d", *TWO)], ReplayConfig(), seed=1, scratch=tmp_path) as sampler:
        before = sampler.digest
        refused = RefusedSegment(dataset=Path("/d"), segment_id="a", reason="damaged there")
        sampler.refuse([refused])
        assert sampler.steps == 4
        assert [each.segment_id for each in sampler.refused] == ["a"]
        assert sampler.digest != before
