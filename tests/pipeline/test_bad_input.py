"""Invalid input prints one line that names the cause, and exits with the right code."""

import json
import os
import subprocess

import numpy as np
import pytest
import zarr

from avtd3.cli import main
from avtd3.store.dataset import Dataset
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter
from avtd3.tests.pipeline.conftest import QUICK_WORLD

USAGE, ENVIRONMENT = 2, 3
BROKEN = "avtd3.tests.collect.tiny_envs:TinyBroken-v0"

SPEC = EpisodeSpec(
    image=ImageSpec(height=36, width=36),
    vector_names=("speed_mps",),
    vector_scales=(10.0,),
    action_names=("steer", "throttle_brake"),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    reward_terms=("progress",),
    control_period_s=0.05,
)


def rejected(capsys, code, *words):
    """Run a command that must fail; return its one line."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("avtd3: ")]
    assert stop.value.code == code, err
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert "[Errno" not in err
    assert not out
    return lines[0]


def fill(path, episodes=2, length=6):
    """Write a small valid dataset."""
    dataset = Dataset.create(path, SPEC)
    rng = np.random.default_rng(0)
    with SegmentWriter(dataset, collector="test", provenance={}) as writer:
        for number in range(episodes):
            for step in range(length + 1):
                seen = Observation(
                    image=rng.integers(50, 200, (1, 36, 36)).astype(np.uint8),
                    vector=np.array([0.5], np.float32),
                )
                if step == 0:
                    writer.begin(seen, seed=number, scenario=0, world="test", town="t")
                    continue
                writer.step(
                    np.zeros(2, np.float32),
                    None,
                    seen,
                    terminated=step == length,
                    reward_terms=np.ones(1, np.float32),
                )
            writer.end("goal")
    return dataset


@pytest.fixture
def dataset(tmp_path):
    return fill(tmp_path / "data")


def learn(path, tmp_path, *more):
    return ("learn", path, "--run", tmp_path / "run", "--updates", 1, *more)


def test_a_missing_dataset(tmp_path, capsys):
    assert "nowhere" in rejected(capsys, USAGE, "replay-inspect", tmp_path / "nowhere")
    assert "nowhere" in rejected(capsys, USAGE, *learn(tmp_path / "nowhere", tmp_path))


def test_a_file_instead_of_a_directory(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    for words in (("replay-inspect", file), learn(file, tmp_path), ("collect", file)):
        assert "file" in rejected(capsys, USAGE, *words)


def test_a_foreign_zarr_group(tmp_path, capsys):
    zarr.open_group(tmp_path / "other", mode="w")
    for words in (
        ("replay-inspect", tmp_path / "other"),
        learn(tmp_path / "other", tmp_path),
        ("collect", tmp_path / "other"),
    ):
        assert "other" in rejected(capsys, USAGE, *words)


def test_a_collector_with_another_spec(dataset, capsys):
    line = rejected(capsys, USAGE, "collect", dataset.path)
    assert "vector_names" in line
    assert "against" in line


def test_learning_from_datasets_with_two_specs(dataset, tmp_path, capsys):
    other = Dataset.create(
        tmp_path / "other", EpisodeSpec.from_json(SPEC.to_json() | {"control_period_s": 0.1})
    )
    words = ("learn", dataset.path, other.path, "--run", tmp_path / "run")
    assert "control_period_s" in rejected(capsys, USAGE, *words)


@pytest.mark.parametrize("how", ["truncated", "edited"])
def test_a_damaged_segment(dataset, tmp_path, capsys, how):
    (segment,) = dataset.snapshot().segments
    file = segment.path / "frames" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)
    line = rejected(capsys, USAGE, *learn(dataset.path, tmp_path))
    assert segment.id in line
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(dataset.path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert stop.value.code == 1
    assert report["verdict"] == "errors"
    assert {finding["segment"] for finding in report["findings"]} == {segment.id}
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(dataset.path), "--quarantine"])
    assert stop.value.code == 1
    assert f"moved to quarantine: {segment.id}" in capsys.readouterr().out
    assert [path.name for path in dataset.quarantine_path.iterdir()] == [segment.id]


@pytest.fixture
def policies(dataset, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(
            [
                *map(str, learn(dataset.path, tmp_path, "--policies", tmp_path / "policies")),
                "--set=learn.replay.batch_size=2",
                "--set=learn.learning_starts=1",
            ]
        )
    assert not stop.value.code
    return tmp_path / "policies"


def test_a_truncated_policy(policies, capsys):
    capsys.readouterr()
    (file, *_) = sorted(policies.glob("*.safetensors"), reverse=True)
    file.write_bytes(file.read_bytes()[:1000])
    assert file.name in rejected(capsys, USAGE, "evaluate", file, "--episodes", 1)


def test_a_policy_for_another_spec(policies, capsys):
    capsys.readouterr()
    line = rejected(capsys, USAGE, "evaluate", policies, "--episodes", 1)
    assert "vector_names" in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--set=learn.td3.tua=0.1",), "did you mean learn.td3.tau"),
        (("--set=lern.td3.tau=0.1",), "did you mean learn"),
        (("--set=learn.td3.tau=2",), "tau"),
        (("--set=learn.td3.policy_delay=0",), "policy_delay"),
        (("--set=learn.replay.batch_size=0",), "batch_size"),
        (("--set=learn.replay.gamma=1.5",), "gamma"),
        (("--set=learn.td3.critic_features=both",), "critic_features"),
        (("--set=learn.td3.wiring=coupled",), "critic_features"),
        (("--replay=ram",), "replay.mode is 'ram', expected cache, direct or auto"),
        (("--config=nowhere.yaml",), "nowhere.yaml"),
    ],
)
def test_a_wrong_setting_of_the_learner(dataset, tmp_path, capsys, words, named):
    assert named in rejected(capsys, USAGE, *learn(dataset.path, tmp_path, *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--driver", "exprt"), "exprt"),
        (("--driver", "-1:expert"), "share"),
        (("--driver", "policy"), "--policies"),
        (("--scenario", 99), "99"),
        (("--world", "moon"), "moon"),
        (("--steps", 5, "--episodes", 5), "steps=5, episodes=5"),
        (("--set=collect.writer.segment_steps=0",), "segment_steps"),
        (("--town", "nowhere.xodr"), "nowhere.xodr"),
    ],
)
def test_a_wrong_setting_of_the_collector(tmp_path, capsys, words, named):
    assert named in rejected(capsys, USAGE, "collect", tmp_path / "data", *words)


@pytest.mark.parametrize(
    "text",
    ["", "not xml", "<a/>", "<OpenDRIVE/>", "<OpenDRIVE><road/></OpenDRIVE>", "<OpenDRIVE>", "\0"],
)
def test_an_invalid_road_file(tmp_path, capsys, text):
    file = tmp_path / "town.xodr"
    file.write_text(text)
    words = ("collect", tmp_path / "data", "--town", file, "--steps", 10)
    assert "town.xodr" in rejected(capsys, USAGE, *words)


def test_nothing_published_yet(tmp_path, capsys):
    Dataset.create(tmp_path / "data", SPEC)
    assert "data" in rejected(capsys, USAGE, *learn(tmp_path / "data", tmp_path))


def test_repeating_a_plan_without_resume(tmp_path, capsys):
    words = ("collect", tmp_path / "data", "--episodes", 1, *QUICK_WORLD)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert not stop.value.code
    capsys.readouterr()
    assert "--resume" in rejected(capsys, USAGE, *words)


def test_a_run_that_exists(policies, dataset, tmp_path, capsys):
    capsys.readouterr()
    assert "--resume" in rejected(capsys, USAGE, *learn(dataset.path, tmp_path))


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 8 MB, if this process may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk, capsys):
    words = (
        "collect", small_disk / "data", "--steps", 5000, *QUICK_WORLD,
        "--set=collect.min_free_mb=0", "--set=collect.writer.segment_steps=300",
    )  # fmt: skip
    assert "disk is full" in rejected(capsys, ENVIRONMENT, *words)
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(small_disk / "data")])
    assert not stop.value.code, capsys.readouterr().out


def test_a_nearly_full_disk_is_rejected_before_it_is_full(small_disk, capsys):
    words = ("collect", small_disk / "data", "--steps", 5000, *QUICK_WORLD)
    assert "min_free_mb" in rejected(capsys, ENVIRONMENT, *words)


def test_a_directory_that_cannot_be_written(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    assert "file" in rejected(capsys, ENVIRONMENT, "collect", blocked / "data", "--steps", 10)


def test_a_read_only_directory(small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = rejected(capsys, ENVIRONMENT, "collect", small_disk / "data", "--steps", 10)
    assert "read-only" in line


@pytest.mark.parametrize(
    ("code", "words", "named"),
    [
        (USAGE, ("--world", "gym:Nowhere-v7"), "Nowhere"),
        (USAGE, ("--world", "gym:CartPole-v1", "--driver", "random"), "Discrete(2)"),
        (USAGE, ("--world", "gym:Pendulum-v1", "--driver", "expert"), "random or policy"),
        (USAGE, ("--world", "gym:Pendulum-v1", "--driver", "policy"), "--policies"),
        (ENVIRONMENT, ("--world", f"gym:{BROKEN}", "--driver", "random"), "[nan, 0.0]"),
    ],
)
def test_a_gymnasium_environment_that_does_not_fit(tmp_path, capsys, code, words, named):
    pytest.importorskip("gymnasium")
    line = rejected(capsys, code, "collect", tmp_path / "d", "--episodes", "1", *words)
    assert named in line
    assert words[1] in line or "--policies" in line
