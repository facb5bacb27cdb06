"""Samplers of datasets with several streams read the streams that are asked for, and no others."""

import os
from typing import Any

import numpy as np
import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.errors import NoSegmentsError, SpecError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.segments import STREAMS, make_episode, make_spec, write_dataset

SPEC = make_spec(streams=tuple(STREAMS))
LENGTHS = (9, 4, 12, 5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate(LENGTHS)]
        path = tmp_path_factory.mktemp("streams") / "d"
        return write_dataset(path, SPEC, episodes, segment_steps=8)


def open_sampler(dataset, scratch, mode="cache", **config):
    config = {"batch_size": 32, "mode": mode, **config}
    return Sampler([dataset], ReplayConfig(**config), seed=3, scratch=scratch)


def all_steps(dataset):
    """Every stack before and after each step, by the step's action."""
    found: dict[bytes, dict[str, Any]] = {}
    for episode in dataset.episodes():
        for name in SPEC.images:
            stacks = episode.observations(stream=name)
            for t, action in enumerate(episode.actions):
                found.setdefault(action.tobytes(), {})[name] = (episode, t, stacks)
    return found


@pytest.mark.parametrize("mode", ["cache", "direct"])
@pytest.mark.parametrize("n", [1, 3])
def test_stacks_are_those_of_the_episodes(dataset, tmp_path, mode, n):
    known = all_steps(dataset)
    with open_sampler(dataset, tmp_path, mode, n_step=n) as sampler:
        for batch in sampler.batches(5):
            assert batch.frames is None
            assert list(batch.streams) == ["bev", "gray", "rgb"]
            for name, stream in batch.streams.items():
                for row, action in enumerate(batch.action):
                    episode, t, stacks = known[action.tobytes()][name]
                    after = min(t + n, episode.length)
                    np.testing.assert_array_equal(stream.observation[row], stacks[t])
                    np.testing.assert_array_equal(stream.next_observation[row], stacks[after])


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_one_of_several_is_as_if_it_were_the_only_one(dataset, tmp_path, mode):
    with (
        open_sampler(dataset, tmp_path, mode) as whole,
        open_sampler(dataset, tmp_path, mode, streams=("rgb",)) as one,
    ):
        assert list(one.spec.images) == ["rgb"]
        for _ in range(3):
            ours, theirs = one.sample(), whole.sample()
            np.testing.assert_array_equal(ours.action, theirs.action)
            np.testing.assert_array_equal(
                ours.observation_frames, theirs.streams["rgb"].observation
            )
            assert ours.frames is ours.streams["rgb"].frames


def test_sequences_have_every_stream(dataset, tmp_path):
    known = all_steps(dataset)
    with open_sampler(dataset, tmp_path, sequence_length=4) as sampler:
        batch = sampler.sample_sequences()
    for name in SPEC.images:
        for step in range(5):
            stacks = batch.observation_frames(step, name)
            for row in range(len(stacks)):
                _, t, expected = known[batch.action[row, 0].tobytes()][name]
                np.testing.assert_array_equal(stacks[row], expected[t + step])
    with pytest.raises(SpecError, match="no observation frames"):
        batch.observation_frames(0)


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_no_byte_of_the_other_streams_is_read(dataset, tmp_path, mode, monkeypatch):
    opened = []
    real = os.open

    def note(path, *args, **options):
        opened.append(str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", note)
    with open_sampler(dataset, tmp_path, mode, streams=("gray",)) as sampler:
        sampler.sample()
        kept = sum(path.stat().st_size > 0 for path in tmp_path.rglob("frames*"))
    assert any("frames_gray" in path for path in opened)
    assert not [path for path in opened if "frames_rgb" in path or "frames_bev" in path]
    assert kept == (1 if mode == "cache" else 0)


def test_damage_in_a_stream_that_is_not_read_does_no_harm(tmp_path):
    episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate(LENGTHS)]
    dataset = write_dataset(tmp_path / "d", SPEC, episodes, segment_steps=8)
    for shard in dataset.path.glob("segments/*/frames_rgb/c/0/0/0/0"):
        data = bytearray(shard.read_bytes())
        data[5] ^= 1
        shard.write_bytes(data)
    with open_sampler(dataset, tmp_path / "scratch", streams=("gray", "bev")) as sampler:
        assert not sampler.refused
        assert sampler.steps == sum(LENGTHS)
    with open_sampler(dataset, tmp_path / "scratch", streams=("rgb",)) as sampler:
        assert len(sampler.refused) == len(dataset.segment_ids())
        with pytest.raises(NoSegmentsError):
            sampler.sample()


def test_an_unknown_stream_is_refused(dataset, tmp_path):
    with pytest.raises(SpecError, match="no stream 'left', expected one of: bev, gray, rgb"):
        open_sampler(dataset, tmp_path, streams=("left",))


def test_datasets_need_to_agree_only_in_the_streams_that_are_read(dataset, tmp_path):
    other = make_spec(streams=("gray",))
    more = write_dataset(tmp_path / "d", other, [make_episode(other, 6, 9)])
    config = ReplayConfig(batch_size=8, streams=("gray",))
    with Sampler([dataset, more], config, seed=0, scratch=tmp_path) as sampler:
        assert sampler.steps == sum(LENGTHS) + 6
    with pytest.raises(SpecError, match="streams"):
        Sampler([dataset, more], ReplayConfig(), seed=0, scratch=tmp_path)


def test_frames_are_shared_by_samplers_of_the_same_streams(dataset, tmp_path):
    with (
        open_sampler(Dataset.open(dataset.path), tmp_path, streams=("gray", "rgb")) as one,
        open_sampler(Dataset.open(dataset.path), tmp_path, streams=("gray", "rgb")) as other,
    ):
        assert len(list(tmp_path.iterdir())) == 1
        for _ in range(3):
            for name in ("gray", "rgb"):
                left, right = one.frame_array(name), other.frame_array(name)
                rows = next(iter(left.placed.values()))
                np.testing.assert_array_equal(left.frames[rows], right.frames[rows])
            assert (one.sample().action == other.sample().action).all()
    assert not list(tmp_path.iterdir())
