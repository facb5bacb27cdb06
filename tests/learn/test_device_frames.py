"""`BatchLoader` with a copy of the replay's frames on the device, which is the CPU here."""

import copy

import numpy as np
import pytest
import torch

from avtd3.learn.batch import BatchLoader, DeviceFrameCache, open_device_caches
from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.memory import World, make_spec

CPU = torch.device("cpu")


@pytest.fixture
def world():
    return World(make_spec())


def dataset(world):
    return world.dataset("/d", *((name, [(n, True)]) for name, n in (("a", 3), ("b", 4))))


def loader(cache=None, **config):
    replay = ReplayConfig(batch_size=16, **config)
    return BatchLoader(
        replay, CPU, torch.float32, device_caches={"image": cache} if cache else None
    )


@pytest.mark.parametrize("n_step", [1, 3])
def test_batches_are_those_that_the_host_gathers(world, tmp_path, n_step):
    config = ReplayConfig(batch_size=16, n_step=n_step, capacity=11)
    cache = DeviceFrameCache("image", world.spec.image, CPU)
    ours = dataset(world)
    theirs = copy.copy(ours)
    theirs.segments = list(ours.segments)
    with (
        Sampler([ours], config, seed=0, scratch=tmp_path, gathers=False) as bare,
        Sampler([theirs], config, seed=0, scratch=tmp_path) as whole,
    ):
        for new in range(4):  # grows, then lets the oldest go; rows are used again
            for _ in range(3):
                left, _ = loader(cache, n_step=n_step).load(bare)
                right, _ = loader(n_step=n_step).load(whole)
                assert torch.equal(left.observation.pixels[0], right.observation.pixels[0])
                assert torch.equal(
                    left.next_observation.pixels[0], right.next_observation.pixels[0]
                )
                assert torch.equal(left.action, right.action)
            segment = world.segment(f"c{new}", [(4, False)])
            for data, sampler in ((ours, bare), (theirs, whole)):
                data.segments.append(segment)
                sampler.refresh()
        assert bare.sample().frames is None


def test_frames_are_copied_once(world, tmp_path, monkeypatch):
    cache = DeviceFrameCache("image", world.spec.image, CPU)
    data = dataset(world)
    with Sampler(
        [data], ReplayConfig(batch_size=16), seed=0, scratch=tmp_path, gathers=False
    ) as sampler:
        copied = []
        kept = cache._frames.__class__.__setitem__

        def count(frames, rows, value):
            copied.append(len(value))
            kept(frames, rows, value)

        monkeypatch.setattr(torch.Tensor, "__setitem__", count)
        take = loader(cache).load
        for _ in range(5):
            take(sampler)
        assert sorted(copied) == [0, 4, 5]  # nothing of before, and each segment's observations
        data.segments.append(world.segment("c", [(1, True)]))
        sampler.refresh()
        take(sampler)
        assert copied[3:] in ([2], [len(cache._frames), 2])


def test_direct_replay_gathers_on_the_host(tmp_path, make_spec, publish_episodes):
    from avtd3.store.spec import ImageSpec

    spec = make_spec(image=ImageSpec(height=8, width=10, channels=1, stack=2))
    data = publish_episodes(tmp_path / "data", spec)
    config = ReplayConfig(batch_size=4, mode="direct")
    with Sampler([data], config, seed=0, scratch=tmp_path, gathers=False) as sampler:
        drawn = sampler.sample()
        assert drawn.frames is not None
        batch, _ = loader(DeviceFrameCache("image", spec.image, CPU)).load(sampler)
        assert batch.observation.pixels[0].shape == (4, 2, 8, 10)


def test_a_device_without_room_is_named(world, tmp_path, monkeypatch):
    cache = DeviceFrameCache("image", world.spec.image, CPU)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with Sampler(
        [dataset(world)], ReplayConfig(batch_size=4), seed=0, scratch=tmp_path, gathers=False
    ) as sampler:
        rows = sampler.sample().frame_rows
        monkeypatch.setattr(torch, "empty", full)
        with pytest.raises(
            ConfigError, match=r"learn.device_frames: cpu has no room for \d+ frames"
        ):
            cache.stacks(sampler, rows)


def test_the_cache_is_for_images_on_another_device(world):
    images, other = world.spec.images, torch.device("meta")
    assert open_device_caches(images, CPU, enabled=True) == {}
    assert open_device_caches({}, torch.device("cuda"), enabled=True) == {}
    assert open_device_caches(images, other, enabled=False) == {}
    assert open_device_caches(images, other, enabled=True).keys() == {"image"}


def test_frame_rows_are_rows_of_the_frame_array(world, tmp_path):
    with Sampler([dataset(world)], ReplayConfig(batch_size=8), seed=0, scratch=tmp_path) as sampler:
        drawn = sampler.sample()
        column = sampler.frame_array()
        assert column is sampler.frame_array()
        assert column.frames is not None
        np.testing.assert_array_equal(column.frames[drawn.frame_rows], drawn.frames)
        assert sorted(rows.stop - rows.start for rows in column.placed.values()) == [4, 5]
