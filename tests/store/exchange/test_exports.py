"""Exports: nothing is lost on the way back, the other side's loader opens them, and faults."""

import json
import math
import os
import signal
import subprocess
import sys
import types
from typing import Any

import h5py
import minari
import numpy as np
import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, InUseError, MissingPackageError, SegmentCorruptError
from avtd3.store.events import Event
from avtd3.store.exchange.exporting import LAYOUTS, export_episodes
from avtd3.store.exchange.importing import SOURCES, import_episodes
from avtd3.store.locks import ExclusiveLock
from avtd3.tests.store.exchange.readers import (
    GAMMA,
    N_STEP,
    DrqReplay,
    RobomimicDataset,
    needs_loaders,
    run_there,
)
from avtd3.tests.store.segments import (
    begin,
    equal_labels,
    make_episode,
    make_labels,
    make_spec,
    make_writer,
    step,
)

SPECS = {
    "image and vector": make_spec(height=33, width=40),
    "colour image": make_spec(channels=3, height=8, width=9, vector=0, terms=0),
    "vector": make_spec(image=False),
}
EVENT = Event(step=2, kind="collision", subject="kerb\n", value=1.5, x_m=-3.25, y_m=1e-9)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def write(path, spec=SPECS["image and vector"], lengths=(4, 6, 5)):
    episodes = [make_episode(spec, n, seed=n, lap=n) for n in lengths]
    dataset = Dataset.create(path, spec)
    with make_writer(dataset, segment_steps=8) as writer:
        for episode in episodes:
            begin(writer, episode)
            for n in range(episode.length):
                step(writer, episode, n)
            labels = make_labels(spec, episode.length) if episode.length != 6 else None
            writer.end(episode.reason, [EVENT], labels=labels)
    return dataset


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data")


def facts(episode):
    ours = ("imported", "imported_episode")
    return {k: v for k, v in episode.facts.items() if k not in (*ours, "offset", "wall_time")}


def assert_equal(found, wanted):
    assert facts(found) == facts(wanted)
    assert found.events == wanted.events
    assert equal_labels(found.labels, wanted.labels)
    names = ["actions", "rewards", "terminated", "truncated", "frame_ids", "sim_times_s"]
    names += ["frames"] * (found.spec.image is not None)
    names += ["vectors"] * bool(found.spec.vector_size)
    names += ["reward_terms"] * bool(found.spec.reward_terms)
    for name in names:
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def contents(path):
    """Names and bytes of an export; of HDF5 files, names and arrays."""
    found: dict[Any, bytes] = {}
    for file in sorted([path] if path.is_file() else path.rglob("*")):
        if file.is_dir():
            continue
        name = str(file.relative_to(path))
        if name.endswith("hdf5") or file == path:
            with h5py.File(file) as opened:
                opened.visititems(
                    lambda key, node, name=name: found.__setitem__(
                        (name, key), node[()].tobytes() if isinstance(node, h5py.Dataset) else b""
                    )
                )
        elif not name.endswith(".json"):
            found[name] = file.read_bytes()
    return found


@pytest.mark.parametrize("layout", SOURCES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_an_export_and_an_import_give_back_the_same_episodes(tmp_path, layout, spec):
    dataset = write(tmp_path / "data", spec)
    report = export_episodes(tmp_path / "data", tmp_path / "out", layout)
    assert (report.episodes, report.steps, report.resumed) == (3, 15, 0)
    assert not (tmp_path / "out.partial").exists()
    back = import_episodes(tmp_path / "out", tmp_path / "back", layout)
    assert (back.episodes, back.steps, back.already_there) == (3, 15, 0)
    found = Dataset.open(tmp_path / "back")
    assert found.spec == spec
    for ours, theirs in zip(found.episodes(), dataset.episodes(), strict=True):
        assert_equal(ours, theirs)
    again = import_episodes(tmp_path / "out", tmp_path / "back", layout)
    assert (again.episodes, again.already_there) == (0, 3)
    about = found.snapshot().segments[0].provenance["import"]
    assert about["sha256"] == back.digest
    sources = [segment["digest"] for segment in about["export"]["segments"]]
    assert sources == [segment.manifest_digest for segment in dataset.snapshot().segments]
    assert about["export"]["segments"][0]["provenance"]["config"] == {"a": 1}


def test_the_replay_buffer_of_drqv2_samples_from_an_export(tmp_path, data):
    export_episodes(tmp_path / "data", tmp_path / "out", "npz")
    replay = DrqReplay(tmp_path / "out")
    for number, episode in enumerate(data.episodes()):
        stacks = episode.observations()
        for start in range(episode.length - N_STEP + 1):
            frames, action, reward, discount, after = replay.transition(number, start + 1)
            np.testing.assert_array_equal(frames, stacks[start])
            np.testing.assert_array_equal(after, stacks[start + N_STEP])
            np.testing.assert_array_equal(action, episode.actions[start])
            ends = episode.terminated[start : start + N_STEP].any()
            powers = GAMMA ** np.arange(N_STEP)
            wanted = (powers * episode.rewards[start : start + N_STEP]).sum()
            assert reward == pytest.approx(wanted, rel=1e-5, abs=1e-6)
            assert discount == pytest.approx(0.0 if ends else GAMMA**N_STEP)


def test_robomimic_reads_an_export(tmp_path, data):
    export_episodes(tmp_path / "data", tmp_path / "out.hdf5", "hdf5")
    demos = RobomimicDataset(tmp_path / "out.hdf5").demos
    for demo, episode in zip(demos, data.episodes(), strict=True):
        pictures = np.moveaxis(episode.frames, 1, -1)
        np.testing.assert_array_equal(demo["obs"]["image"], pictures[:-1])
        np.testing.assert_array_equal(demo["next_obs"]["image"], pictures[1:])
        np.testing.assert_array_equal(demo["next_obs"]["vector"], episode.vectors[1:])
        np.testing.assert_array_equal(demo["actions"], episode.actions)
        np.testing.assert_array_equal(demo["rewards"], episode.rewards)
        np.testing.assert_array_equal(demo["dones"], episode.terminated)


SEQUENCES = """
import json, sys
from robomimic.utils import obs_utils
from robomimic.utils.dataset import SequenceDataset
keys = {"obs": {"rgb": ["image"], "low_dim": ["vector"]}}
obs_utils.initialize_obs_utils_with_obs_specs(keys)
data = SequenceDataset(
    hdf5_path=sys.argv[1], obs_keys=("image", "vector"), frame_stack=1, seq_length=1,
    dataset_keys=("actions", "rewards", "dones"), load_next_obs=True,
)
items = [data[n] for n in range(len(data))]
print(json.dumps({
    "demos": data.n_demos,
    "actions": [item["actions"][0].tolist() for item in items],
    "dones": [int(item["dones"][0]) for item in items],
    "after": [item["next_obs"]["image"][0].tolist() for item in items],
}))
"""


@pytest.mark.slow
@needs_loaders
def test_robomimic_itself_reads_an_export(tmp_path, data):
    export_episodes(tmp_path / "data", tmp_path / "out.hdf5", "hdf5")
    found = run_there(SEQUENCES, tmp_path / "out.hdf5")
    assert found["demos"] == 3
    episodes = list(data.episodes())
    actions = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_array_equal(np.float32(found["actions"]), actions)
    after = np.concatenate([episode.frames[1:] for episode in episodes])
    np.testing.assert_array_equal(np.array(found["after"]), np.moveaxis(after, 1, -1))
    ends = np.concatenate([episode.terminated for episode in episodes])
    np.testing.assert_array_equal(np.array(found["dones"]), ends)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_minari_loads_an_export(tmp_path, monkeypatch, spec):
    dataset = write(tmp_path / "data", spec)
    export_episodes(tmp_path / "data", tmp_path / "road-v0", "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    loaded = minari.load_dataset("road-v0")
    assert (loaded.total_episodes, loaded.total_steps) == (3, 15)
    np.testing.assert_array_equal(loaded.action_space.low, np.float32(spec.action_low))
    for found, episode in zip(loaded.iterate_episodes(), dataset.episodes(), strict=True):
        parts = found.observations
        if not isinstance(parts, dict):
            parts = {"image" if spec.image else "vector": parts}
        for n in range(episode.length + 1):
            at = {key: values[n] for key, values in parts.items()}
            assert loaded.observation_space.contains(at if len(at) > 1 else next(iter(at.values())))
        if spec.image:
            pictures = np.moveaxis(episode.frames, 1, -1)
            np.testing.assert_array_equal(parts["image"], pictures)
        if spec.vector_size:
            np.testing.assert_array_equal(parts["vector"], episode.vectors)
        np.testing.assert_array_equal(found.actions, episode.actions)
        np.testing.assert_array_equal(found.rewards, episode.rewards)
        np.testing.assert_array_equal(found.terminations, episode.terminated)
        np.testing.assert_array_equal(found.truncations, episode.truncated)
    (seed, *_) = (data["seed"] for data in loaded.storage.get_episode_metadata([0]))
    assert seed == 4


def test_filters_select_the_episodes(tmp_path, data):
    report = export_episodes(tmp_path / "data", tmp_path / "out", "npz", filters=["end=collision"])
    assert report.episodes == 1
    assert len(list((tmp_path / "out").glob("*.npz"))) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupted_export_continues_and_is_the_same(tmp_path, data, layout):
    source, out = tmp_path / "data", tmp_path / "out"
    export_episodes(source, tmp_path / "whole", layout)
    seen: list[Any] = []
    stopped = export_episodes(
        source, out, layout, on_progress=seen.append, should_stop=lambda: len(seen) == 2
    )
    assert stopped.stopped
    assert stopped.episodes == 2
    assert "run the command again" in stopped.summary()
    assert not out.exists()
    write(source, lengths=(7,))  # published meanwhile: not in this export
    report = export_episodes(source, out, layout, on_progress=seen.append)
    assert (report.episodes, report.resumed) == (3, 2)
    assert contents(out) == contents(tmp_path / "whole")
    assert seen[-1].fraction == 1.0
    assert "3 of 3 episodes" in seen[-1].line()


KILLED = """
import os, signal, sys
from pathlib import Path
from avtd3.store.exchange.exporting import export_episodes

def kill(progress):
    if progress.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

export_episodes(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], on_progress=kill)
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_export_is_no_export_and_continues(tmp_path, data, layout):
    source, out = tmp_path / "data", tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, source, out, layout], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert export_episodes(source, out, layout).resumed == 2
    export_episodes(source, tmp_path / "whole", layout)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_failure_at_the_last_step_leaves_no_export(tmp_path, data, layout, monkeypatch):
    source, out = tmp_path / "data", tmp_path / "out"

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LAYOUTS[layout], "finish", fail)
        with pytest.raises(OSError, match="the disk is full"):
            export_episodes(source, out, layout)
    assert not out.exists()
    assert export_episodes(source, out, layout).resumed == 3


def test_what_exists_is_never_replaced(tmp_path, data):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="out exists"):
        export_episodes(tmp_path / "data", tmp_path / "out", "npz")
    assert (tmp_path / "out").read_text() == "mine"


def test_the_remains_of_another_export_are_refused(tmp_path, data):
    source, out = tmp_path / "data", tmp_path / "out"
    export_episodes(source, out, "npz", should_stop=lambda: True)
    with pytest.raises(ConfigError, match="is of another export"):
        export_episodes(source, out, "hdf5")
    (tmp_path / "out.partial" / "plan.json").write_text("[")
    with pytest.raises(ConfigError, match="is of another export"):
        export_episodes(source, out, "npz")


def test_two_exports_to_one_place_exclude_each_other(tmp_path, data):
    (tmp_path / "out.partial").mkdir()
    with ExclusiveLock(tmp_path / "out.partial", purpose="test"), pytest.raises(InUseError):
        export_episodes(tmp_path / "data", tmp_path / "out", "npz")


def test_a_damaged_segment_is_not_exported(tmp_path, data):
    path = data.snapshot().segments[0].path / "action" / "c" / "0" / "0"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(SegmentCorruptError):
        export_episodes(tmp_path / "data", tmp_path / "out", "npz")
    assert not (tmp_path / "out").exists()


def test_the_report_lists_what_is_not_exported(tmp_path, data):
    report = export_episodes(tmp_path / "data", tmp_path / "out", "minari")
    for text in (*report.kept, *report.lost):
        assert text in report.summary()
    document = json.loads((tmp_path / "out" / "avtd3.json").read_text())
    assert tuple(document["lost"]) == report.lost
    assert json.loads(json.dumps(report.document()))["episodes"] == 3


def test_a_start_that_is_not_a_number_names_a_file(data):
    episode: Any = types.SimpleNamespace(started_at=math.nan, length=3)
    name = LAYOUTS["npz"](data.spec).part_name(0, episode)
    assert name == "19700101T000000_0_3.npz"


def test_without_h5py_one_line_names_the_extra(tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingPackageError, match=r"\[exchange\]"):
        export_episodes(tmp_path / "data", tmp_path / "out", "hdf5")


def test_an_attribute_that_begin_could_not_take_is_refused(tmp_path, data):
    export_episodes(tmp_path / "data", tmp_path / "out", "npz")
    path = next((tmp_path / "out").glob("*.npz"))
    arrays = dict(np.load(path))
    document = json.loads(arrays["avtd3"].tobytes())
    document["info"]["attributes"] = {"observation": 1}
    arrays["avtd3"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="cannot name an attribute"):
        import_episodes(tmp_path / "out", tmp_path / "back", "npz")
