"""Datasets with several named streams go out to other layouts, and come back."""

import json

import numpy as np
import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.exchange.exporting import export_episodes
from avtd3.store.exchange.importing import import_episodes
from avtd3.store.exchange.record import ImportConfig
from avtd3.tests.store.segments import STREAMS, make_episode, make_spec, write_dataset

SPEC = make_spec(streams=tuple(STREAMS))


@pytest.fixture
def dataset(tmp_path):
    episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate((3, 6))]
    return write_dataset(tmp_path / "d", SPEC, episodes)


@pytest.mark.parametrize("layout", ["npz", "hdf5", "minari"])
def test_every_stream_comes_back(dataset, tmp_path, layout):
    out = tmp_path / "out"
    export_episodes(dataset.path, out, layout)
    assert import_episodes(out, tmp_path / "back", layout).episodes == 2
    back = Dataset.open(tmp_path / "back")
    assert back.spec == SPEC
    for old, new in zip(dataset.episodes(), back.episodes(), strict=True):
        for name in STREAMS:
            np.testing.assert_array_equal(old.streams[name], new.streams[name])
        np.testing.assert_array_equal(old.vectors, new.vectors)
        np.testing.assert_array_equal(old.actions, new.actions)
        assert old.end_reason == new.end_reason


@pytest.mark.parametrize("layout", ["npz", "hdf5", "minari"])
@pytest.mark.parametrize("vector", [0, 2])
def test_one_stream_may_be_chosen(tmp_path, layout, vector):
    spec = make_spec(streams=("gray", "rgb"), vector=vector)
    dataset = write_dataset(tmp_path / "d", spec, [make_episode(spec, 4, 1)])
    export_episodes(dataset.path, tmp_path / "out", layout, streams=["rgb"])
    import_episodes(tmp_path / "out", tmp_path / "back", layout)
    back = Dataset.open(tmp_path / "back")
    assert back.spec == spec.select(["rgb"])
    ours, theirs = next(dataset.episodes()), next(back.episodes())
    np.testing.assert_array_equal(ours.streams["rgb"], theirs.frames)


def test_one_of_several_images_may_become_the_image(dataset, tmp_path):
    export_episodes(dataset.path, tmp_path / "out", "hdf5")
    config = ImportConfig(image="rgb_image", vectors=("vector",), stack=2)
    import_episodes(tmp_path / "out", tmp_path / "back", "hdf5", config)
    back = Dataset.open(tmp_path / "back")
    assert back.spec.format_version == 1
    np.testing.assert_array_equal(
        next(back.episodes()).frames, next(dataset.episodes()).streams["rgb"]
    )


def test_streams_are_cameras_of_lerobot(dataset, tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match="export other streams than bev"):
        export_episodes(dataset.path, tmp_path / "out", "lerobot")
    export_episodes(dataset.path, tmp_path / "out", "lerobot", streams=["gray", "rgb"])
    features = json.loads((tmp_path / "out/meta/info.json").read_text())["features"]
    assert features["observation.images.gray"]["shape"] == [6, 5, 1]
    assert features["observation.images.rgb"]["shape"] == [7, 9, 3]


def test_a_stream_that_is_missing_is_named(dataset, tmp_path):
    with pytest.raises(SpecError, match="no stream 'left'"):
        export_episodes(dataset.path, tmp_path / "out", "npz", streams=["left"])
