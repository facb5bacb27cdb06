import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch

from avtd3.cli import main
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.checkpoints import (
    CheckpointManager,
    CheckpointMetadata,
    fix_replaced,
    list_checkpoints,
    updates_of,
)
from avtd3.learn.config import LearnConfig
from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.td3 import TD3Config, create_state
from avtd3.learn.trainer import train
from avtd3.store.errors import CheckpointError, ConfigError
from avtd3.store.replay.config import ReplayConfig

CPU = torch.device("cpu")
NOISE = torch.Generator()


@pytest.fixture
def config():
    return LearnConfig(
        updates=40,
        log_every=4,
        publish_every=10,
        checkpoint_every=10,
        keep_checkpoints=5,
        milestones=(),
        guards=GuardConfig(every=20),
        network=NetworkConfig(hidden=(8,)),
        replay=ReplayConfig(batch_size=4),
    )


@pytest.fixture
def run(tmp_path, make_spec, publish_episodes, config):
    """Train 40 updates with a checkpoint every 10; return the run."""
    publish_episodes(tmp_path / "data", make_spec())
    train(config, datasets=[tmp_path / "data"], run=tmp_path / "run")
    return tmp_path / "run"


def kept(directory):
    return [updates_of(path) for path in list_checkpoints(directory)]


def bytes_of(checkpoint):
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


def test_a_rollback_deletes_nothing(run, config):
    data, checkpoints = run.parent / "data", run / "checkpoints"
    before = {path.name: bytes_of(path) for path in list_checkpoints(checkpoints)}
    logged = read_log(run / "events").curves["critic/loss"]
    report = train(config, datasets=[data], run=run, rollback=20)
    assert (report.updates, report.session_updates, report.resumed_exactly) == (40, 20, True)
    assert kept(run / "rolled-back" / "001") == [30, 40]
    for path in list_checkpoints(run / "rolled-back" / "001"):
        assert bytes_of(path) == before[path.name]
    assert kept(checkpoints) == [10, 20, 30, 40]
    again = read_log(run / "events").curves["critic/loss"]
    assert again.updates.tolist() == logged.updates.tolist()
    assert again.values.tolist() == logged.values.tolist()  # same settings, same draws
    notes = [json.loads(line) for line in (run / "alerts.jsonl").read_text().splitlines()]
    assert ["rollback", 20, True] in [
        [note["name"], note["update"], "rolled-back/001" in note["reason"]] for note in notes
    ]
    train(config, datasets=[data], run=run, rollback=10)
    assert kept(run / "rolled-back" / "002") == [20, 30, 40]


def test_a_rollback_copies_what_the_file_system_does_not_rename(run, config, monkeypatch):
    """As for a run in the lower layer of an overlay, the image of a container."""
    rename = os.rename

    def refuse(source, target):
        if Path(source).name.startswith("update-"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    before = {path.name: bytes_of(path) for path in list_checkpoints(run / "checkpoints")}
    config = dataclasses.replace(config, updates=20)
    train(config, datasets=[run.parent / "data"], run=run, rollback=20)
    assert kept(run / "checkpoints") == [10, 20]
    aside = list_checkpoints(run / "rolled-back" / "001")
    assert {path.name: bytes_of(path) for path in aside} == {
        name: content for name, content in before.items() if updates_of(Path(name)) > 20
    }


def test_the_restored_policy_is_published_at_once(run, config):
    policies = PolicyStore(run / "policies")
    newest = policies.newest_version()
    train(
        dataclasses.replace(config, updates=20),
        datasets=[run.parent / "data"],
        run=run,
        rollback=20,
    )
    policy = policies.latest(None)
    assert newest is not None
    assert policy is not None
    assert (policy.version, policy.updates) == (newest + 1, 20)
    assert kept(run / "checkpoints") == [10, 20]


def test_an_update_without_a_checkpoint_is_refused_and_nothing_moves(run, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["learn", str(run.parent / "data"), "--run", str(run), "--rollback", "25"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "rollback 25" in message
    assert "10, 20, 30, 40" in message
    assert kept(run / "checkpoints") == [10, 20, 30, 40]
    assert not (run / "rolled-back").exists()


def test_a_truncated_checkpoint_is_refused_for_a_rollback(run, config):
    torn = run / "checkpoints" / "update-000000020" / "tensors.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        train(config, datasets=[run.parent / "data"], run=run, rollback=20)
    assert kept(run / "checkpoints") == [10, 20, 30, 40]


def test_a_rollback_needs_a_run(tmp_path, config):
    with pytest.raises(ConfigError, match="no run"):
        train(config, datasets=[tmp_path / "data"], run=tmp_path / "run", rollback=20)


@pytest.fixture
def keep(tmp_path, make_spec, small_network):
    """Return a function that saves a checkpoint and returns the updates of all that remain."""
    spec = make_spec()
    state = create_state(spec, small_network, TD3Config(), CPU, seed=0)

    def save(keeper, updates, **newest):
        values = {name.replace("_", "/", 1): value for name, value in newest.items()}
        mark = CheckpointMetadata(
            updates=updates, spec_digest=spec.digest, sampler={}, config={}, seconds=0.0
        )
        keeper.save(state, NOISE, mark, newest=values, good=None)
        return kept(tmp_path / "checkpoints")

    return save


def best_of(tmp_path):
    return json.loads((tmp_path / "checkpoints" / "best.json").read_text())


@pytest.mark.parametrize(("metric", "sign"), [("episode/return", 1.0), ("offline/td_error", -1.0)])
def test_the_best_is_kept_besides_the_newest_and_milestones(
    tmp_path, keep, make_spec, metric, sign
):
    replay = ReplayConfig(held_out=0.5)
    config = LearnConfig(keep_best=metric, keep_checkpoints=1, milestones=(1,), replay=replay)
    keeper, name = CheckpointManager(tmp_path, config, make_spec()), metric.replace("/", "_")
    assert keep(keeper, 1) == [1]
    assert keeper.best is None
    assert keep(keeper, 2, **{name: sign * 5.0}) == [1, 2]
    assert keep(keeper, 3, **{name: sign * 9.0}) == [1, 3]
    assert keep(keeper, 4, **{name: sign * 9.0}) == [1, 3, 4]
    assert keep(keeper, 5, **{name: math.nan}) == [1, 3, 5]
    assert best_of(tmp_path) == {"metric": metric, "updates": 3, "value": sign * 9.0}


def test_a_resumed_run_knows_its_best_and_its_newest_value(
    tmp_path, keep, make_spec, small_network
):
    config = LearnConfig(keep_best="episode/return", keep_checkpoints=1)
    keeper = CheckpointManager(tmp_path, config, make_spec())
    keep(keeper, 2, episode_return=5.0)
    keep(keeper, 3, episode_return=4.0)
    best = keeper.best
    state = create_state(make_spec(), small_network, TD3Config(), CPU, seed=0)
    other = CheckpointManager(
        tmp_path, dataclasses.replace(config, keep_best="critic/loss"), make_spec()
    )
    assert other.restore_newest(state, NOISE) is not None
    assert other.best is None
    assert not (tmp_path / "checkpoints" / "best.json").exists()
    resumed = CheckpointManager(tmp_path, config, make_spec())
    resumed.restore_newest(state, NOISE)
    assert resumed.best == best
    assert best_of(tmp_path)["updates"] == 2
    assert keep(resumed, 4) == [2, 4]


def test_a_run_keeps_its_best_by_held_out_episodes(tmp_path, make_spec, publish_episodes, config):
    publish_episodes(tmp_path / "data", make_spec(), episodes=6)
    config = dataclasses.replace(
        config,
        evaluate_every=10,
        keep_checkpoints=1,
        keep_best="offline/td_error",
        replay=ReplayConfig(batch_size=4, held_out=0.5),
    )
    train(config, datasets=[tmp_path / "data"], run=tmp_path / "run")
    curve = read_log(tmp_path / "run" / "events").curves["offline/td_error"]
    best = int(curve.updates[curve.values.argmin()])
    assert best_of(tmp_path / "run")["updates"] == best
    assert kept(tmp_path / "run" / "checkpoints") == sorted({best, 40})


@pytest.mark.parametrize("is_written", [False, True])
def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(tmp_path, keep, make_spec, is_written):
    keep(CheckpointManager(tmp_path, LearnConfig(), make_spec()), 5)
    directory = tmp_path / "checkpoints"
    whole = bytes_of(directory / "update-000000005")
    (directory / "update-000000005").rename(directory / ".update-000000005.replaced")
    if is_written:
        keep(CheckpointManager(tmp_path, LearnConfig(), make_spec()), 6)
        (directory / "update-000000006").rename(directory / "update-000000005")
        whole = bytes_of(directory / "update-000000005")
    fix_replaced(directory)
    assert [path.name for path in directory.iterdir()] == ["update-000000005"]
    assert bytes_of(directory / "update-000000005") == whole


@pytest.mark.parametrize("name", ["episode/returns", "critic/q1_mean"])
def test_a_metric_without_a_direction_is_refused(name):
    with pytest.raises(ConfigError, match="keep_best"):
        LearnConfig(keep_best=name)
