"""An episode's digest: any changed byte changes it, where it lies and how it is coded do not."""

import os

import numpy as np
import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.format.codec import FrameCodec
from avtd3.store.replaced import episode_digests
from avtd3.store.segment import Segment
from avtd3.tests.store.maintenance.datasets import SPEC, fill, identity, publish
from avtd3.tests.store.segments import make_spec

ARRAYS = (
    *("frames", "vector", "frame_id", "sim_time"),
    *("action", "reward", "reward_terms", "terminated", "truncated"),
)
NUMBERS = (
    *("index", "seed", "scenario", "return", "policy_version"),
    *("exploration_noise", "wall_time"),
)
STRINGS = ("world", "town", "weather", "driver", "end_reason", "policy_digest")


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    dataset, _ = fill(tmp_path_factory.mktemp("identity") / "data", [[4, 700, 3]])
    return dataset.snapshot().segments[0]


def changed(segment, before):
    return [a != b for a, b in zip(episode_digests(segment), before, strict=True)]


def flip(values, row):
    """One bit of one row."""
    values = values.copy()
    values.reshape(len(values), -1).view(np.uint8)[row, -1] ^= 1
    return values


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(("row", "episode"), [(0, 0), (300, 1), (-1, 2)])
def test_one_bit_of_any_row_changes_its_episode_and_no_other(
    segment, monkeypatch, name, row, episode
):
    before = list(episode_digests(segment))
    frames = segment.read_frames()
    values = flip(frames if name == "frames" else segment.read(name), row)
    if name == "frames":
        monkeypatch.setattr(
            Segment, "read_frames", lambda _, start, stop, stream: values[start:stop]
        )
    else:
        read = Segment.read
        monkeypatch.setattr(Segment, "read", lambda s, n: values if n == name else read(s, n))
    assert changed(segment, before) == [n == episode for n in range(3)]


@pytest.mark.parametrize("name", [f"episode_{name}" for name in NUMBERS])
def test_one_bit_of_what_is_known_of_an_episode_changes_it(segment, monkeypatch, name):
    before = list(episode_digests(segment))
    read, values = Segment.read, flip(segment.read(name), 1)
    monkeypatch.setattr(Segment, "read", lambda s, n: values if n == name else read(s, n))
    assert changed(segment, before) == [False, True, False]


@pytest.mark.parametrize("name", [f"episode_{name}" for name in STRINGS])
def test_another_name_changes_it(segment, monkeypatch, name):
    before = list(episode_digests(segment))
    texts = [text + "x" * (n == 1) for n, text in enumerate(segment.read_strings(name))]
    read = Segment.read_strings
    monkeypatch.setattr(Segment, "read_strings", lambda s, n: texts if n == name else read(s, n))
    assert changed(segment, before) == [False, True, False]


def test_every_array_of_a_segment_is_tried_here(segment):
    tried = {*ARRAYS, *(f"episode_{name}" for name in (*NUMBERS, *STRINGS))}
    assert set(segment.names) - tried == {"episode_offset", "episode_length"}


def test_place_codec_and_categories_do_not_matter(tmp_path):
    alone = Dataset.create(tmp_path / "alone", SPEC)
    publish(alone, [5], seed=7)
    other = Dataset.create(tmp_path / "other", SPEC)
    codec = FrameCodec(name="zstd", chunk_frames=3)
    publish(other, [2, 3, 4, 5], seed=4, codec=codec, info={"policy_version": 7})
    assert identity(other)[3] == identity(alone)[0]


def test_episodes_without_pictures_have_digests_too(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[2, 3]], spec=make_spec(image=False))
    assert len(set(identity(dataset))) == 2
