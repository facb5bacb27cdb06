"""Data whose bytes arrive late are taken as soon as they are whole; nobody restarts anything."""

import os
import shutil

import numpy as np
import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.errors import NoSegmentsError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.faults.flaky import flaky
from avtd3.tests.store.damage import rebuild_manifest
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

SPEC = make_spec()
LENGTHS = (9, 5, 7, 4)
LONG = 3600.0
"""Seconds after which everything that was refused is tried again."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four segments of one episode each."""
    episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate(LENGTHS)]
    path = tmp_path_factory.mktemp("source") / "d"
    return write_dataset(path, SPEC, episodes, segment_steps=1).path


@pytest.fixture
def dataset(source, tmp_path):
    return Dataset.open(shutil.copytree(source, tmp_path / "d"))


FILES = ("MANIFEST.json", "frames/c/0/0/0/0", "action/c/0/0", "reward/zarr.json", "zarr.json")


def preallocate(file):
    """Full size first, zeros for bytes; the copy then writes in place and sets the old time."""
    good, times = file.read_bytes(), file.stat()
    file.write_bytes(bytes(len(good)))

    def arrive():
        with file.open("r+b") as stream:
            stream.write(good)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    return arrive


def send_the_tail_last(file):
    """Half the bytes are there, and the size is right."""
    good = file.read_bytes()
    half = len(good) // 2
    file.write_bytes(good[:half] + bytes(len(good) - half))

    def arrive():
        with file.open("r+b") as stream:
            stream.seek(half)
            stream.write(good[half:])

    return arrive


def append(file):
    """Bytes arrive in order: the size grows."""
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])

    def arrive():
        with file.open("ab") as stream:
            stream.write(good[len(good) // 2 :])

    return arrive


def rename(file):
    """A new file with the same size and time takes the place of a bad one."""
    good, times = file.read_bytes(), file.stat()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def arrive():
        aside = file.with_name("arriving")
        aside.write_bytes(good)
        os.utime(aside, ns=(times.st_atime_ns, times.st_mtime_ns))
        aside.replace(file)

    return arrive


ARRIVALS = (preallocate, send_the_tail_last, append, rename)


@pytest.fixture(params=ARRIVALS, ids=lambda way: way.__name__)
def way(request):
    return request.param


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_a_sampler_takes_a_segment_as_soon_as_its_bytes_are_whole(
    dataset, way, name, mode, tmp_path
):
    late = dataset.segment_ids()[2]
    arrive = way(dataset.segments_path / late / name)
    config = ReplayConfig(mode=mode, batch_size=8)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        for _ in range(6):
            sampler.sample()
        if name not in ("zarr.json",):  # which no draw needs
            assert [refusal.segment_id for refusal in sampler.refused] == [late]
            assert sampler.steps == sum(LENGTHS) - LENGTHS[2]
        arrive()
        sampler.refresh()
        assert (sampler.steps, sampler.refused) == (sum(LENGTHS), ())
        for _ in range(6):
            sampler.sample()
        assert sampler.refused == ()


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_all_segments_may_arrive_late(dataset, mode, tmp_path):
    files = [dataset.segments_path / name / "frames/c/0/0/0/0" for name in dataset.segment_ids()]
    arrivals = [preallocate(file) for file in files]
    with Sampler([dataset], ReplayConfig(mode=mode), seed=0, scratch=tmp_path) as sampler:
        with pytest.raises(NoSegmentsError):
            sampler.sample()
        for number, arrive in enumerate(arrivals, start=1):
            arrive()
            sampler.refresh()
            assert sampler.steps == sum(LENGTHS[:number])
        assert sampler.refused == ()


def test_a_snapshot_takes_what_it_refused_when_the_bytes_are_whole(dataset, way):
    late = dataset.segment_ids()[1]
    arrive = way(dataset.segments_path / late / "MANIFEST.json")
    snapshot = dataset.snapshot()
    assert [refusal.segment_id for refusal in snapshot.refused] == [late]
    assert dataset.refresh(snapshot).refused == snapshot.refused
    arrive()
    found = dataset.refresh(snapshot)
    assert (found.steps, found.refused) == (sum(LENGTHS), ())


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_bytes_that_leave_no_trace_are_found_after_a_while(dataset, mode, tmp_path, wait):
    """A mount whose attributes are cached shows the same size, time and inode for a while."""
    late = dataset.segment_ids()[0]
    file = dataset.segments_path / late / "frames/c/0/0/0/0"
    good = file.read_bytes()
    file.write_bytes(bytes(len(good)))
    real = file.stat()

    def same(stat):
        def call(path, *args, **kwargs):
            found = stat(path, *args, **kwargs)
            return real if found.st_ino == real.st_ino else found

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat"):
            patch.setattr(os, name, same(getattr(os, name)))
        with Sampler([dataset], ReplayConfig(mode=mode), seed=0, scratch=tmp_path) as sampler:
            for _ in range(3):
                sampler.sample()
            assert len(sampler.refused) == 1
            file.write_bytes(good)
            wait(LONG)
            sampler.refresh()
            assert sampler.steps == sum(LENGTHS)
            assert not sampler.refused


def test_a_segment_that_stays_bad_is_not_read_at_every_refresh(dataset, tmp_path, wait):
    bad = dataset.segment_ids()[3]
    file = dataset.segments_path / bad / "frames/c/0/0/0/0"
    preallocate(file)
    with Sampler([dataset], ReplayConfig(), seed=0, scratch=tmp_path) as sampler:
        assert len(sampler.refused) == 1
        with flaky(dataset.path, rate=0.0) as files:
            reads = []
            for _ in range(64):
                sampler.refresh()
                wait(1.0)
                reads.append(sum(path == str(file) for path in files.opened))
            assert 2 <= reads[-1] <= 24
            assert reads[-1] - reads[31] <= reads[31]  # ever more seldom
        assert [refusal.segment_id for refusal in sampler.refused] == [bad]


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_a_segment_that_is_published_again_under_its_name_is_taken(dataset, mode, tmp_path):
    """The digest changes: a person puts a repaired segment in the place of a bad one."""
    late = dataset.segment_ids()[2]
    path = dataset.segments_path / late
    preallocate(path / "action/c/0/0")
    with Sampler([dataset], ReplayConfig(mode=mode), seed=0, scratch=tmp_path) as sampler:
        assert len(sampler.refused) == 1
        from avtd3.store.format.codec import crc32c

        values = np.zeros((LENGTHS[2], 2), "<f4").tobytes()
        (path / "action/c/0/0").write_bytes(values + crc32c(values))
        rebuild_manifest(path)
        sampler.refresh()
        assert sampler.steps == sum(LENGTHS)
        assert not sampler.refused


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_bytes_that_go_and_come_back_while_they_are_drawn(dataset, mode, tmp_path, wait):
    late = dataset.segment_ids()[1]
    config = ReplayConfig(mode=mode, batch_size=32)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        arrive = preallocate(dataset.segments_path / late / "frames/c/0/0/0/0")
        for _ in range(8):
            sampler.sample()
        arrive()
        wait(LONG)
        sampler.refresh()
        for _ in range(8):
            sampler.sample()
        assert (sampler.steps, sampler.refused) == (sum(LENGTHS), ())


@pytest.mark.parametrize("name", ["frames/c/0/0/0/0", "reward/c/0"])
def test_a_replacement_that_arrives_late_hides_nothing_until_it_is_whole(tmp_path, name):
    from avtd3.store.maintenance.compact import compact
    from avtd3.tests.store.maintenance.datasets import fill
    from avtd3.tests.store.segments import assert_holds

    dataset, episodes = fill(tmp_path / "data", [[4], [5], [3]])
    shutil.copytree(dataset.path, tmp_path / "copy")
    compact(tmp_path / "copy")
    copy = Dataset.open(tmp_path / "copy")
    (merged,) = copy.segment_ids()
    shutil.copytree(copy.segments_path / merged, dataset.segments_path / merged)
    arrive = preallocate(dataset.segments_path / merged / name)
    with Sampler([dataset], ReplayConfig(), seed=0, scratch=tmp_path) as sampler:
        snapshot = dataset.snapshot()
        assert [refusal.segment_id for refusal in snapshot.refused] == [merged]
        assert (len(snapshot.segments), sampler.steps) == (3, 12)
        arrive()
        found = dataset.refresh(snapshot)
        assert [segment.id for segment in found.segments] == [merged]
        sampler.refresh()
        assert (sampler.steps, sampler.refused) == (12, ())
    assert_holds(dataset, episodes)
