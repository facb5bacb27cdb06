"""A resumed run keeps its settings, changes what it is asked to, and lists what changed."""

import dataclasses
import json
import re

import numpy as np
import pytest

from avtd3.cli import main
from avtd3.learn.callbacks import TrainCallback
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.run_settings import CONFIG_FILE, name_run, read_settings, stored_config
from avtd3.learn.td3 import TD3Config
from avtd3.learn.trainer import train
from avtd3.store import Dataset, EpisodeSpec, Observation, ReplayConfig, SegmentWriter
from avtd3.store.errors import ConfigError

OWN = LearnConfig(
    updates=4,
    threads=1,
    network=NetworkConfig(hidden=(8, 8)),
    td3=TD3Config(bc_alpha=1.0, tau=0.02),
    replay=ReplayConfig(batch_size=8, n_step=3, max_policy_lag=5),
)


@pytest.fixture
def run(tmp_path):
    """A run of four updates with settings of its own."""
    spec = EpisodeSpec(vector_names=("x",), action_names=("a",), vector_scales=(1.0,))
    with SegmentWriter(Dataset.create(tmp_path / "data", spec)) as writer:
        writer.begin(Observation(vector=np.zeros(1, np.float32)))
        for t in range(20):
            after = Observation(vector=np.full(1, 0.1 * t, np.float32))
            writer.step(np.zeros(1, np.float32), 1.0, after, terminated=t == 19)
    train(OWN, datasets=tmp_path / "data", run=tmp_path / "run", policies=tmp_path / "published")
    return tmp_path / "run"


def learn(run, *options):
    with pytest.raises(SystemExit) as ended:
        main(["learn", str(run.parent / "data"), "--run", str(run), *options])
    return ended.value.code


def test_a_resume_without_settings_keeps_all_of_them(run):
    assert stored_config(run) == OWN
    report = train(datasets=run.parent / "data", run=run, resume=True)
    assert stored_config(run) == OWN
    assert report.changes == ()
    assert report.policies == str(run.parent / "published")
    assert "changes" not in read_settings(run)


def test_the_command_changes_only_what_it_names(run, capsys):
    assert learn(run, "--resume", "--updates", "8", "--set", "learn.td3.tau=0.01") == 0
    expected = dataclasses.replace(OWN, updates=8, td3=dataclasses.replace(OWN.td3, tau=0.01))
    assert stored_config(run) == expected
    shown = capsys.readouterr()
    assert "changed learn.td3.tau: 0.02 -> 0.01 from update 5 on" in shown.out
    assert read_settings(run)["changes"] == [
        {"setting": "learn.updates", "before": 4, "after": 8, "from_update": 4},
        {"setting": "learn.td3.tau", "before": 0.02, "after": 0.01, "from_update": 4},
    ]
    assert learn(run, "--resume", "--updates", "10") == 0
    assert stored_config(run) == dataclasses.replace(expected, updates=10)
    assert [change["from_update"] for change in read_settings(run)["changes"]] == [4, 4, 8]


def test_a_file_changes_only_what_it_names(run, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("learn: {replay: {batch_size: 4}}\n")
    assert learn(run, "--resume", "--updates", "8", "--config", str(file)) == 0
    replay = dataclasses.replace(OWN.replay, batch_size=4)
    assert stored_config(run) == dataclasses.replace(OWN, updates=8, replay=replay)


def test_networks_of_another_size_are_refused(run, capsys):
    before = (run / CONFIG_FILE).read_bytes()
    assert learn(run, "--resume", "--set", "learn.network.hidden=[16, 16]") == 2
    message = capsys.readouterr().err
    assert "learn.network.hidden is [16, 16], expected [8, 8]" in message
    assert (run / CONFIG_FILE).read_bytes() == before


def test_a_rollback_records_its_own_update(run):
    train(dataclasses.replace(OWN, updates=6), datasets=run.parent / "data", run=run, resume=True)
    changed = dataclasses.replace(OWN, updates=6, log_every=2)
    report = train(changed, datasets=run.parent / "data", run=run, rollback=4)
    assert report.changes == ("learn.log_every: 100 -> 2 from update 5 on",)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", '{"learn": 3}', '{"learn": {"updates": "many"}}'),
        *('{"learn": {"x": 1}}', '{"learn": {}, "changes": 3}', '{"learn": {}, "policies": 3}'),
    ],
)
def test_a_damaged_file_is_one_error(run, capsys, text):
    (run / CONFIG_FILE).write_text(text)
    code = learn(run, "--resume")
    assert code in (0, 2)
    if code == 2:
        assert capsys.readouterr().err.count("\n") <= 2
    elif text:
        assert json.loads(text)["learn"] != {"x": 1}


def test_only_a_run_can_be_resumed(tmp_path):
    with pytest.raises(ConfigError, match="no run to resume"):
        train(datasets=tmp_path / "data", run=tmp_path / "none", resume=True)


DRIVEN = {"scenario": {"number": 0, "npcs": 20}}


def publish(path, provenance):
    spec = EpisodeSpec(vector_names=("x",), action_names=("a",), vector_scales=(1.0,))
    at = Observation(vector=np.zeros(1, np.float32))
    with SegmentWriter(Dataset.create(path, spec), provenance=provenance) as writer:
        writer.begin(at)
        writer.step(np.zeros(1, np.float32), 1.0, at, terminated=True)
    return path


@pytest.mark.parametrize(
    ("provenance", "start"),
    [
        (DRIVEN, "TD3_scenario_0_npcs_20_"),
        ({"scenario": {"number": 3}}, "TD3_scenario_3_"),
        ({"scenario": {"number": "../..", "npcs": True}}, "TD3_"),
        ({"scenario": "x"}, "TD3_"),
        ({}, "TD3_"),
    ],
    ids=str,
)
def test_a_run_in_a_parent_directory_gets_a_name(tmp_path, provenance, start):
    data, parent = publish(tmp_path / "data", provenance), tmp_path / "runs"
    assert name_run(parent, [data]) == parent  # a new run of that name
    parent.mkdir()
    run = name_run(parent, [data])
    assert run.parent == parent
    assert re.fullmatch(re.escape(start) + r"20\d{6}_\d{6}", run.name)
    assert name_run(parent, [tmp_path / "missing"]).name.startswith("TD3_2")


def test_a_run_is_no_parent_and_names_do_not_repeat(tmp_path, monkeypatch):
    run = tmp_path / "run"
    for name in (CONFIG_FILE, "checkpoints", "events", ".lock"):
        (run / name).mkdir(parents=True)
        assert name_run(run, [tmp_path]) == run
        (run / name).rmdir()
    names = set()
    for _ in range(3):
        names.add(name_run(run, [tmp_path]))
        name_run(run, [tmp_path]).mkdir()
    assert len(names) == 3


def test_the_command_says_the_name_and_resumes_by_it(tmp_path, capsys):
    data, parent = publish(tmp_path / "data", DRIVEN), tmp_path / "runs"
    parent.mkdir()
    (tmp_path / "c.yaml").write_text("learn: {updates: 2, network: {hidden: [4]}}")
    command = ["learn", str(data), "--config", str(tmp_path / "c.yaml"), "--run"]
    for words, code in ((["runs"], 0), (["runs", "--resume"], 2)):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(tmp_path / words[0]), *words[1:]])
        assert (ended.value.code or 0) == code
    (run,) = parent.iterdir()
    shown = capsys.readouterr()
    assert f"run {run}" in shown.out
    assert "no run to resume" in shown.err
    with pytest.raises(SystemExit) as ended:
        main([*command, str(run), "--resume", "--updates", "3"])
    assert not ended.value.code
    assert stored_config(run).updates == 3


@pytest.mark.parametrize(
    ("run", "policies"),
    [("data", None), ("data/segments", None), ("data/run", None), ("run", "data/segments")],
)
@pytest.mark.parametrize("exists", [True, False])
def test_runs_and_policies_are_not_mixed_with_datasets(tmp_path, run, policies, exists):
    data = publish(tmp_path / "data", {}) if exists else tmp_path / "data"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"is in the dataset .*data; give a directory of its own"):
        train(
            OWN,
            datasets=data,
            run=tmp_path / run,
            policies=policies and tmp_path / policies,
            follow=True,
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_the_running_scale_of_the_rewards_survives_a_resume(tmp_path):
    class Lines(TrainCallback):
        def on_metrics(self, step, scalars):
            if "batch/reward_scale" in scalars:
                found.append((scalars["batch/reward_mean"], scalars["batch/reward_scale"]))

    found: list[tuple[float, float]] = []
    spec = EpisodeSpec(vector_names=("x",), action_names=("a",))
    with SegmentWriter(Dataset.create(tmp_path / "data", spec)) as writer:
        writer.begin(Observation(vector=np.zeros(1, np.float32)))
        for t in range(40):
            after = Observation(vector=np.full(1, 0.1 * t, np.float32))
            writer.step(np.zeros(1, np.float32), float(t), after, terminated=t == 39)
    for updates in (15, 30):
        config = dataclasses.replace(OWN, updates=updates, log_every=1)
        options = {"datasets": tmp_path / "data", "run": tmp_path / "run", "callbacks": [Lines()]}
        train(config, **options, resume=updates == 30)
    assert len(found) == 30
    expected = 0.0  # no reward is negative, so the mean is the mean magnitude
    for line, (mean, scale) in enumerate(found, start=1):
        expected += max(1.0 / line, 0.05) * (mean - expected)
        assert scale == pytest.approx(expected, rel=1e-5)
