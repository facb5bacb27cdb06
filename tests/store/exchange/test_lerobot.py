"""LeRobot datasets: what is written, and what LeRobot's own loader makes of it."""

import io
import json
import os

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from avtd3.store.errors import ConfigError
from avtd3.store.exchange import lerobot
from avtd3.store.exchange.exporting import export_episodes
from avtd3.tests.store.exchange.readers import needs_loaders, run_there
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def write(path, lengths=(4, 6, 5), **options):
    spec = make_spec(**{"height": 8, "width": 9, "vector": 3} | options)
    return write_dataset(path, spec, [make_episode(spec, n, seed=n) for n in lengths])


def rows(folder):
    files = sorted((folder / "data").glob("*/*.parquet"))
    return [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_step_is_a_row(tmp_path, channels, monkeypatch):
    monkeypatch.setattr(lerobot, "_FILES", 2)  # so that there are two chunks
    dataset = write(tmp_path / "data", channels=channels)
    export_episodes(tmp_path / "data", tmp_path / "out", "lerobot")
    found = rows(tmp_path / "out")
    assert [row["index"] for row in found] == list(range(15))
    assert len(list((tmp_path / "out" / "data").iterdir())) == 2
    start = 0
    for number, episode in enumerate(dataset.episodes()):
        for t, row in enumerate(found[start : start + episode.length]):
            assert (row["episode_index"], row["frame_index"]) == (number, t)
            assert row["timestamp"] == pytest.approx(0.05 * t)
            assert row["task_index"] == 0
            picture = np.asarray(Image.open(io.BytesIO(row["observation.images.front"]["bytes"])))
            wanted = np.moveaxis(episode.frames[t], 0, -1)
            np.testing.assert_array_equal(picture.reshape(wanted.shape), wanted)
            for name, values in {
                "observation.state": episode.vectors,
                "action": episode.actions,
                "next.reward": episode.rewards,
                "reward_terms": episode.reward_terms,
                "next.terminated": episode.terminated,
                "next.truncated": episode.truncated,
                "next.done": episode.terminated | episode.truncated,
            }.items():
                np.testing.assert_array_equal(np.asarray(row[name], values.dtype), values[t])
        start += episode.length


def test_the_episodes_know_their_rows_and_facts(tmp_path):
    dataset = write(tmp_path / "data")
    export_episodes(tmp_path / "data", tmp_path / "out", "lerobot")
    path = tmp_path / "out" / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    for row, episode in zip(
        pyarrow.parquet.read_table(path).to_pylist(), dataset.episodes(), strict=True
    ):
        assert row["length"] == row["dataset_to_index"] - row["dataset_from_index"]
        assert row["length"] == episode.length
        facts = json.loads(row["avtd3"])
        assert facts["info"]["seed"] == episode.seed
        assert facts["end_reason"] == episode.end_reason


def test_the_statistics_are_those_of_all_steps(tmp_path):
    dataset = write(tmp_path / "data")
    export_episodes(tmp_path / "data", tmp_path / "out", "lerobot")
    stats = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    episodes = list(dataset.episodes())
    frames = np.concatenate([episode.frames[:-1] for episode in episodes]) / 255.0
    states = np.concatenate([episode.vectors[:-1] for episode in episodes]).astype(np.float64)
    for name, values, axes in (
        ("observation.images.front", frames, (0, 2, 3)),
        ("observation.state", states, (0,)),
    ):
        for key, function in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
            found = np.array(stats[name][key])
            np.testing.assert_allclose(found.ravel(), function(values, axis=axes), atol=1e-9)
    assert np.array(stats["observation.images.front"]["mean"]).shape == (1, 1, 1)
    assert stats["observation.state"]["count"] == [15]


def test_what_the_layout_cannot_hold_is_refused_or_listed(tmp_path):
    write(tmp_path / "planes", channels=4)
    with pytest.raises(ConfigError, match="4 planes, expected 1 or 3"):
        export_episodes(tmp_path / "planes", tmp_path / "out", "lerobot")
    write(tmp_path / "none", lengths=())
    with pytest.raises(ConfigError, match="no episode"):
        export_episodes(tmp_path / "none", tmp_path / "out2", "lerobot")
    assert not any((tmp_path / name).exists() for name in ("out", "out2"))
    write(tmp_path / "data", vector=1, image=False, terms=0)
    report = export_episodes(tmp_path / "data", tmp_path / "out", "lerobot")
    assert "the observation after the last step of each episode" in report.lost
    assert isinstance(rows(tmp_path / "out")[0]["observation.state"], float)


LOAD = """
import json, sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
dataset = LeRobotDataset("local/test", root=sys.argv[1])
items = [dataset[n] for n in range(len(dataset))]
print(json.dumps({
    "length": len(dataset), "episodes": dataset.num_episodes, "fps": dataset.fps,
    "actions": [item["action"].tolist() for item in items],
    "pixels": [(item["observation.images.front"] * 255).round().int().tolist() for item in items],
    "tasks": [item["task"] for item in items],
    "mean": dataset.meta.stats["observation.state"]["mean"].tolist(),
}))
"""


@pytest.mark.slow
@needs_loaders
def test_lerobot_loads_an_export(tmp_path):
    dataset = write(tmp_path / "data", channels=3)
    export_episodes(tmp_path / "data", tmp_path / "out", "lerobot")
    home = str(tmp_path / "hf")
    found = run_there(LOAD, tmp_path / "out", HF_HOME=home, HF_HUB_OFFLINE="1")
    assert (found["length"], found["episodes"], found["fps"]) == (15, 3, 20)
    assert set(found["tasks"]) == {"drive"}
    episodes = list(dataset.episodes())
    actions = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_array_equal(np.float32(found["actions"]), actions)
    frames = np.concatenate([episode.frames[:-1] for episode in episodes])
    np.testing.assert_array_equal(np.array(found["pixels"]), frames)
