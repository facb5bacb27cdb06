import errno
import os
from pathlib import Path

import numpy as np
import pytest

from avtd3.store.errors import ConfigError, NoSegmentsError, StorageError, install_command
from avtd3.store.format.codec import FrameCodec
from avtd3.store.replay import direct
from avtd3.store.replay import sampler as sampler_module
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.direct import ShardFiles, descriptor_budget
from avtd3.store.replay.native import native_problem
from avtd3.store.replay.sampler import Sampler, choose_mode
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

DECODERS = [
    "numcodecs",
    pytest.param("native", marks=pytest.mark.skipif(bool(native_problem()), reason="no native")),
]


@pytest.fixture(params=DECODERS)
def decoder(request, monkeypatch):
    if request.param == "numcodecs":
        monkeypatch.setattr(direct, "open_decoder", lambda _: None)


def make_dataset(path, *, codec=None, lengths=(9, 1, 14, 6, 3, 22), **config):
    spec = make_spec()
    episodes = [make_episode(spec, length, seed=seed) for seed, length in enumerate(lengths)]
    return write_dataset(path, spec, episodes, codec=codec, segment_steps=10, **config)


def open_sampler(dataset, scratch, mode, **config):
    config = {"batch_size": 16, **config}
    return Sampler([dataset], ReplayConfig(mode=mode, **config), seed=3, scratch=scratch)


def shard_path(dataset, number):
    return dataset.snapshot().segments[number].path / "frames/c/0/0/0/0"


def content(batch):
    names = ("frames", "observation_vector", "next_observation_vector", "action", "reward")
    return [getattr(batch, name).tobytes() for name in (*names, "discount")]


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize(
    "codec",
    [
        FrameCodec(chunk_frames=4),
        FrameCodec(chunk_frames=1, level=1),
        FrameCodec(name="zstd", level=1, chunk_frames=7),
        FrameCodec(name="raw", chunk_frames=3),
        FrameCodec(name="raw", chunk_frames=1),
    ],
    ids=lambda codec: f"{codec.name}-{codec.chunk_frames}",
)
@pytest.mark.usefixtures("decoder")
def test_draws_are_those_from_a_cache(tmp_path, codec, n_step):
    dataset = make_dataset(tmp_path / "d", codec=codec)
    with (
        open_sampler(dataset, tmp_path, "cache", n_step=n_step) as cache,
        open_sampler(dataset, tmp_path, "direct", n_step=n_step) as direct,
    ):
        assert (cache.mode.mode, direct.mode.mode) == ("cache", "direct")
        assert len(dataset.snapshot().segments) > 2
        for _ in range(40):
            assert content(cache.sample()) == content(direct.sample())


@pytest.mark.usefixtures("decoder")
def test_what_is_published_and_what_is_too_old_is_followed(tmp_path):
    spec = make_spec()
    dataset = write_dataset(tmp_path / "d", spec, [make_episode(spec, 8, seed=1)])
    with (
        open_sampler(dataset, tmp_path, "cache", capacity=30) as cache,
        open_sampler(dataset, tmp_path, "direct", capacity=30) as direct,
    ):
        for seed in range(2, 9):
            more = tmp_path / f"more{seed}"
            write_dataset(more, spec, [make_episode(spec, 8, seed=seed)])
            (segment,) = (more / "segments").iterdir()
            segment.rename(dataset.path / "segments" / segment.name)
            assert cache.refresh().steps_added == direct.refresh().steps_added
            assert content(cache.sample()) == content(direct.sample())
        assert direct.steps == 24


@pytest.mark.parametrize("chunk_frames", [1, 4])
@pytest.mark.usefixtures("decoder")
def test_few_files_are_open_at_a_time(tmp_path, monkeypatch, chunk_frames):
    dataset = make_dataset(tmp_path / "d", codec=FrameCodec(chunk_frames=chunk_frames))
    monkeypatch.setattr("avtd3.store.replay.direct.ShardFiles", lambda _: ShardFiles(2))
    with (
        open_sampler(dataset, tmp_path, "cache") as cache,
        open_sampler(dataset, tmp_path, "direct") as direct,
    ):
        assert len(dataset.snapshot().segments) > 2
        for _ in range(20):
            assert content(cache.sample()) == content(direct.sample())
            assert len(direct.backend.frames["image"]._files) <= 2


@pytest.mark.parametrize("frames", [1, 7, 50])
@pytest.mark.parametrize("chunk_frames", [1, 4])
@pytest.mark.usefixtures("decoder")
def test_a_large_batch_is_decoded_in_parts(tmp_path, monkeypatch, frames, chunk_frames):
    dataset = make_dataset(tmp_path / "d", codec=FrameCodec(chunk_frames=chunk_frames))
    frame_bytes = dataset.spec.image.frame_bytes
    monkeypatch.setattr("avtd3.store.replay.direct._MOST_BYTES", frames * frame_bytes)
    with (
        open_sampler(dataset, tmp_path, "cache") as cache,
        open_sampler(dataset, tmp_path, "direct") as direct,
    ):
        for _ in range(10):
            assert content(cache.sample()) == content(direct.sample())


def test_open_files_are_bounded_and_closed(tmp_path):
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_bytes(path.name.encode())
    files = ShardFiles(3)
    for path in [*paths, paths[0], paths[4]]:
        assert os.pread(files.descriptor(path), 1, 0) == path.name.encode()
        assert len(files) <= 3
    kept = files.descriptor(paths[4])
    files.keep([paths[4]])
    assert len(files) == 1
    assert files.descriptor(paths[4]) == kept
    files.close()
    files.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)
    assert 8 <= descriptor_budget() <= 512


def test_a_process_without_descriptors_does_not_blame_the_segment(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "d")
    with open_sampler(dataset, tmp_path, "direct") as sampler:
        steps, real = sampler.steps, os.open

        def refuse(path, *rest, **named):
            if Path(path).name == "0":
                raise OSError(errno.EMFILE, "Too many open files")
            return real(path, *rest, **named)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(StorageError, match="ulimit -n"):
            sampler.sample()
        monkeypatch.undo()
        assert sampler.steps == steps
        assert not sampler.refused
        sampler.sample()


def flip(path):
    data = bytearray(path.read_bytes())
    data[20] ^= 4
    path.write_bytes(data)


def cut(path):
    os.truncate(path, 10)


def remove_segment(path):
    path.parents[5].rename(path.parents[5].with_name("gone"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "frames/c/0/0/0/0: chunk 0: crc32c differs"),
        (cut, "frames/c/0/0/0/0: chunk"),
        (Path.unlink, "frames/c/0/0/0/0: No such file"),
    ],
    ids=["flipped", "cut", "unlinked"],
)
@pytest.mark.parametrize("chunk_frames", [1, 4])
@pytest.mark.usefixtures("decoder")
def test_a_damaged_segment_is_refused_and_the_rest_is_sampled(
    tmp_path, damage, words, chunk_frames
):
    codec = FrameCodec(chunk_frames=chunk_frames)
    dataset = make_dataset(tmp_path / "d", codec=codec, lengths=(30, 30, 30))
    bad, name = shard_path(dataset, 1), dataset.snapshot().segments[1].id
    with open_sampler(dataset, tmp_path, "direct") as sampler:
        assert sampler.steps == 90
        damage(bad)
        for _ in range(40):
            sampler.sample()
        assert sampler.steps == 60
        (refused,) = sampler.refused
        assert words in refused.reason
        assert "--quarantine" in refused.reason
        assert refused.segment_id == name
        report = sampler.refresh()
        assert report.refused == (refused,)
        assert report.segments_removed == 1
        assert sampler.refresh().refused == ()


@pytest.mark.usefixtures("decoder")
def test_a_segment_that_is_removed_is_excluded(tmp_path):
    dataset = make_dataset(tmp_path / "d", lengths=(30, 30, 30))
    with open_sampler(dataset, tmp_path, "direct") as sampler:
        remove_segment(shard_path(dataset, 2))
        for _ in range(20):
            sampler.sample()
        assert sampler.steps == 60


@pytest.mark.usefixtures("decoder")
def test_nothing_left_says_why(tmp_path):
    dataset = make_dataset(tmp_path / "d", lengths=(30,))
    with open_sampler(dataset, tmp_path, "direct") as sampler:
        cut(shard_path(dataset, 0))
        with pytest.raises(NoSegmentsError, match="1 segment is refused"):
            sampler.sample()


def test_damage_before_the_opening_is_refused_at_once(tmp_path):
    dataset = make_dataset(tmp_path / "d", lengths=(30, 30))
    path = shard_path(dataset, 0)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # in the index
    path.write_bytes(data)
    with open_sampler(dataset, tmp_path, "direct") as sampler:
        (refused,) = sampler.opening.refused
        assert "frames/c/0/0/0/0: crc32c differs" in refused.reason
        assert sampler.steps == 30


class Disk:
    f_frsize = 1

    def __init__(self, free):
        self.f_bavail = free


@pytest.mark.parametrize(
    ("free", "grows", "mode"),
    [(10**5, False, "cache"), (2000, False, "direct"), (10**5, True, "direct")],
)
def test_auto_takes_the_cache_where_it_fits(tmp_path, monkeypatch, free, grows, mode):
    dataset = make_dataset(tmp_path / "d")
    segments = {(0, segment.id): segment for segment in dataset.snapshot().segments}
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(free))
    config = ReplayConfig(capacity=10_000)
    found = choose_mode(config, dataset.spec, segments, tmp_path / "not/yet", grows=grows)
    assert found.mode == mode
    assert "GiB are free" in found.why
    assert str(found).startswith(f"replay {mode}: ")


def test_a_named_mode_is_taken_whatever_the_disk_has(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "d")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(0))
    for mode in ("cache", "direct"):
        config = ReplayConfig(mode=mode)
        found = choose_mode(config, dataset.spec, {}, tmp_path, grows=True)
        assert found.mode == mode
        assert found.why.startswith("as configured")
    vectors = make_spec(image=False)
    found = choose_mode(ReplayConfig(mode="direct"), vectors, {}, tmp_path, grows=False)
    assert (found.mode, found.why) == ("cache", "there are no frames to decode")


def test_direct_replay_reports_how_to_make_it_faster(tmp_path, monkeypatch):
    found = choose_mode(ReplayConfig(mode="direct"), make_spec(), {}, tmp_path, grows=False)
    assert native_problem() or "natively" in str(found)
    monkeypatch.setattr(sampler_module, "native_problem", lambda: "blosc2 is not installed")
    found = choose_mode(ReplayConfig(mode="direct"), make_spec(), {}, tmp_path, grows=False)
    assert f"{install_command('native')}` (blosc2 is not installed)" in str(found)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match=r"replay\.mode is 'ram', expected cache, direct or"):
        ReplayConfig(mode="ram")


def test_a_batch_on_disk_is_fetched_at_once_and_one_in_memory_is_not(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "d")
    blocks, advised = iter([0, 8, 8, 16, 16, 16, 16, 16]), []
    monkeypatch.setattr("avtd3.store.replay.direct._blocks_read", lambda: next(blocks))
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: advised.append(args))
    counts = []
    with open_sampler(dataset, tmp_path, "direct") as sampler:
        for _ in range(4):
            advised.clear()
            sampler.sample()
            counts.append(len(advised))
    assert [count > 0 for count in counts] == [False, True, True, False]


def test_frames_are_not_in_the_scratch(tmp_path):
    dataset = make_dataset(tmp_path / "d")
    with open_sampler(dataset, tmp_path, "direct") as sampler:
        assert set(sampler.backend.arrays()) == {"numbers"}
        batch = sampler.sample()
        assert batch.frames is not None
        assert not np.array_equal(batch.frames[0], batch.frames[1])


def test_direct_replay_has_no_frame_array(tmp_path):
    dataset = make_dataset(tmp_path / "d")
    with (
        open_sampler(dataset, tmp_path, "direct") as sampler,
        pytest.raises(ConfigError, match=r"set replay\.mode to cache"),
    ):
        sampler.frame_array()
