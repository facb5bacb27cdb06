import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from avtd3.learn import batch
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.callbacks import ProgressCallback
from avtd3.learn.checkpoints import list_checkpoints
from avtd3.learn.config import LearnConfig
from avtd3.learn.device import make_updater
from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.metrics import METRICS, metric
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.replay_source import scratch_directory
from avtd3.learn.report import LearnProgress
from avtd3.learn.trainer import train
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    ConfigError,
    DatasetError,
    DatasetUnreadableError,
    InUseError,
    NoSegmentsError,
    SpecError,
)
from avtd3.store.locks import ExclusiveLock
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.tracker import RefusedSegment
from avtd3.store.spec import ImageSpec

IMAGE = ImageSpec(height=36, width=36, stack=2)


@pytest.fixture
def config():
    return LearnConfig(
        updates=40,
        log_every=4,
        publish_every=20,
        checkpoint_every=10,
        guards=GuardConfig(every=20, layers_every=20),
        learning_starts=10,
        refresh_seconds=0.01,
        milestones=(20,),
        keep_checkpoints=1,
        network=NetworkConfig(hidden=(16, 16), features=24),
        replay=ReplayConfig(batch_size=8),
    )


def newest_policy(path):
    policy = PolicyStore(path).latest(None)
    assert policy is not None
    return policy


def tensors_of(checkpoint):
    return safetensors.numpy.load_file(checkpoint / "tensors.safetensors")


def test_a_run_leaves_policies_checkpoints_and_metrics(
    tmp_path, make_spec, publish_episodes, config
):
    spec = make_spec(image=IMAGE, vector=3)
    publish_episodes(tmp_path / "data", spec)
    seen: list[LearnProgress] = []
    report = train(
        config,
        datasets=[tmp_path / "data"],
        run=tmp_path / "run",
        callbacks=[ProgressCallback(seen.append)],
    )
    assert (report.updates, report.policy_version, report.halted) == (40, 2, None)
    assert not report.stopped
    assert report.updates_per_second > 0
    assert report.skipped == 0
    json.dumps(report.document(), allow_nan=False)
    assert "40 updates" in report.summary()
    assert all(0.0 <= progress.fraction <= 1.0 for progress in seen)
    assert not any("nan" in progress.line() for progress in seen)
    policy = newest_policy(tmp_path / "run" / "policies")
    assert (policy.version, policy.updates) == (2, 40)
    names = [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["update-000000020", "update-000000040"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["learn"]["updates"] == 40
    curves = read_log(tmp_path / "run" / "events").curves
    unknown = {"episode/lane_invasion", "episode/lateral_deviation", "episode/speed"}
    unknown |= {name for name in METRICS if name.startswith("offline/")}
    assert set(METRICS) - set(curves) == {m for m in METRICS if "policy_lag" in m} | unknown
    assert all(metric(name) is not None for name in curves)
    assert curves["episode/success"].values.tolist() == [1.0]
    assert list(curves["critic/loss"].updates) == list(range(4, 41, 4))
    assert len(curves["episode/return"].values) == 1
    assert all(np.isfinite(curve.values).all() for curve in curves.values())
    assert (curves["critic_mlp/grad_norm_after"].values <= 10.0).all()
    assert (curves["actor_mlp/grad_norm_before"].values > 0.0).all()


def test_progress_shows_the_pace_at_once_and_losses_once_they_are_logged(
    tmp_path, make_spec, publish_episodes, config, monkeypatch
):
    monkeypatch.setattr("avtd3.learn.callbacks.PROGRESS_INTERVAL_S", 0.0)
    publish_episodes(tmp_path / "data", make_spec())
    seen: list[LearnProgress] = []
    train(
        dataclasses.replace(config, updates=8),
        datasets=[tmp_path / "data"],
        run=tmp_path / "run",
        callbacks=[ProgressCallback(seen.append)],
    )
    learning = {progress.updates: progress for progress in seen if not progress.waiting}
    assert learning.keys() == set(range(1, 9))
    assert all((progress.updates_per_second or 0.0) > 0.0 for progress in learning.values())
    assert all(progress.episode_return is not None for progress in learning.values())
    for progress in learning.values():
        shown = [progress.critic_loss, progress.actor_loss, progress.q]
        assert [value is not None for value in shown] == [progress.updates >= 4] * 3


def test_metrics_of_the_actor_are_absent_when_it_was_not_updated(
    tmp_path, make_spec, publish_episodes, config
):
    publish_episodes(tmp_path / "data", make_spec())
    td3 = dataclasses.replace(config.td3, policy_delay=8)
    train(dataclasses.replace(config, td3=td3), datasets=[tmp_path / "data"], run=tmp_path / "run")
    curves = read_log(tmp_path / "run" / "events").curves
    assert list(curves["critic/loss"].updates) == list(range(4, 41, 4))
    assert list(curves["actor/loss"].updates) == list(range(8, 41, 8))
    assert not any("_cnn/" in name for name in curves)


@pytest.mark.parametrize("image", [None, IMAGE])
def test_a_resumed_run_equals_one_that_never_stopped(
    tmp_path, make_spec, publish_episodes, config, image
):
    data = tmp_path / "data"
    publish_episodes(data, make_spec(image=image))
    train(config, datasets=[data], run=tmp_path / "whole")
    train(dataclasses.replace(config, updates=13), datasets=[data], run=tmp_path / "parts")
    report = train(config, datasets=[data], run=tmp_path / "parts", resume=True)
    assert report.resumed_exactly is True
    assert (report.updates, report.session_updates) == (40, 27)
    whole, parts = (
        tensors_of(list_checkpoints(tmp_path / name / "checkpoints")[-1])
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert value.tobytes() == parts[name].tobytes(), name


def test_random_shifts_reach_the_batches(
    tmp_path, make_spec, publish_episodes, config, monkeypatch
):
    publish_episodes(tmp_path / "data", make_spec(image=IMAGE))
    seen = []

    plain_to_batch = batch.to_batch

    def to_batch(transitions, device, dtype, shift, stacks):
        seen.append(shift)
        return plain_to_batch(transitions, device, dtype, shift, stacks)

    monkeypatch.setattr("avtd3.learn.batch.to_batch", to_batch)
    for name, pad in (("plain", 0), ("moved", 3)):
        short = dataclasses.replace(config, updates=2, image_shift=pad)
        train(short, datasets=[tmp_path / "data"], run=tmp_path / name)
    assert [shift and shift.pad for shift in seen] == [None, None, 3, 3]
    plain, moved = (
        tensors_of(list_checkpoints(tmp_path / n / "checkpoints")[-1]) for n in ("plain", "moved")
    )
    assert (plain["noise"] != moved["noise"]).any()  # so that a resumed run draws the same shifts


def test_readers_drop_what_was_logged_behind_the_checkpoint(
    tmp_path, make_spec, publish_episodes, config
):
    data, run = tmp_path / "data", tmp_path / "run"
    publish_episodes(data, make_spec())
    config = dataclasses.replace(config, log_every=5, keep_checkpoints=2, milestones=())
    train(dataclasses.replace(config, updates=20), datasets=[data], run=run)
    first, last = list_checkpoints(run / "checkpoints")
    assert first.name == "update-000000010"
    shutil.rmtree(last)  # as if it had been killed just before it saved
    assert list(read_log(run / "events").curves["critic/loss"].updates) == [5, 10, 15, 20]
    train(config, datasets=[data], run=run, resume=True)
    curves = read_log(run / "events").curves
    assert list(curves["critic/loss"].updates) == list(range(5, 41, 5))
    assert list(curves["run/steps"].updates) == list(range(5, 41, 5))


def test_policy_versions_continue_after_a_resume(tmp_path, make_spec, publish_episodes, config):
    data, policies = tmp_path / "data", tmp_path / "policies"
    publish_episodes(data, make_spec())
    first = train(config, datasets=[data], run=tmp_path / "run", policies=policies)
    assert first.policy_version == 2
    before = {path.name: path.read_bytes() for path in policies.glob("policy-*")}
    longer = dataclasses.replace(config, updates=60)
    second = train(longer, datasets=[data], run=tmp_path / "run", policies=policies, resume=True)
    assert second.policy_version == 3
    for name, data_before in before.items():
        assert (policies / name).read_bytes() == data_before


def test_a_resume_on_other_segments_is_reported(tmp_path, make_spec, publish_episodes, config):
    spec = make_spec()
    publish_episodes(tmp_path / "data", spec)
    train(
        dataclasses.replace(config, updates=10), datasets=[tmp_path / "data"], run=tmp_path / "run"
    )
    publish_episodes(tmp_path / "data", spec, seed=1)
    report = train(config, datasets=[tmp_path / "data"], run=tmp_path / "run", resume=True)
    assert report.resumed_exactly is False
    assert "no longer" in report.summary()


def test_a_stopped_run_is_saved_and_published(tmp_path, make_spec, publish_episodes, config):
    publish_episodes(tmp_path / "data", make_spec())
    asked = iter(range(1000))
    report = train(
        config,
        datasets=[tmp_path / "data"],
        run=tmp_path / "run",
        callbacks=[ProgressCallback(should_stop=lambda: next(asked) >= 7)],
    )
    assert report.stopped
    assert report.updates == 7
    assert report.policy_version == 1
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "update-000000007"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def test_runs_side_by_side_share_their_scratch(tmp_path, monkeypatch):
    runs = [tmp_path / name for name in "ab"]
    for run in runs:
        run.mkdir()
    assert {scratch_directory(run) for run in runs} == {tmp_path.resolve()}
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert scratch_directory(runs[0]) == runs[0].resolve() / "scratch"


def test_following_waits_for_the_dataset_its_steps_and_the_pace(
    tmp_path, make_spec, publish_episodes, config, monkeypatch
):
    data, spec = tmp_path / "data", make_spec()
    slow = dataclasses.replace(config, updates_per_step=0.5, learning_starts=30)
    texts: list[str] = []
    script = [
        lambda: publish_episodes(data, spec, episodes=1),
        lambda: publish_episodes(data, spec, episodes=1, seed=1),
        lambda: publish_episodes(data, spec, episodes=2, seed=2),
    ]

    def advance(_seconds: float) -> None:
        waits.append(texts[-1] if texts else "")
        if len(waits) % 3 == 0 and script:
            script.pop(0)()

    waits: list[str] = []
    monkeypatch.setattr("avtd3.learn.callbacks.PROGRESS_INTERVAL_S", 0.0)
    monkeypatch.setattr("avtd3.learn.replay_source.time.sleep", advance)
    report = train(
        dataclasses.replace(slow, refresh_seconds=1e-9, updates=25),
        datasets=[data],
        run=tmp_path / "run",
        follow=True,
        callbacks=[ProgressCallback(lambda progress: texts.append(progress.line()))],
    )
    assert report.updates == 25
    assert report.steps == 80
    joined = "\n".join(waits)
    assert f"waiting for a collector to create {data}" in joined
    assert f"waiting for segments in {data}: 20 of 30 steps" in joined
    assert "5 updates are 0.5 for each of 10 steps after the first 30" in joined


def test_following_waits_while_a_collector_makes_the_dataset(
    tmp_path, make_spec, publish_episodes, config, monkeypatch
):
    data = tmp_path / "data"
    for name in ("segments", ".staging"):  # what is there a moment before zarr.json
        (data / name).mkdir(parents=True)
    spec, texts = make_spec(), []
    monkeypatch.setattr("avtd3.learn.callbacks.PROGRESS_INTERVAL_S", 0.0)
    monkeypatch.setattr(
        "avtd3.learn.replay_source.time.sleep",
        lambda _: (data / "zarr.json").exists() or publish_episodes(data, spec, episodes=2),
    )
    short = dataclasses.replace(config, updates=2, learning_starts=10)
    report = train(
        short,
        datasets=[data],
        run=tmp_path / "run",
        follow=True,
        callbacks=[ProgressCallback(lambda progress: texts.append(progress.line()))],
    )
    assert report.updates == 2
    assert any(f"waiting for a collector to create {data}" in text for text in texts)


def test_following_something_else_is_refused_at_once(tmp_path, config):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("not a dataset")
    with pytest.raises(DatasetError, match=r"no zarr\.json"):
        train(config, datasets=[tmp_path / "data"], run=tmp_path / "run", follow=True)


def test_following_can_be_stopped_before_there_is_anything(tmp_path, config):
    asked = iter(range(10))
    report = train(
        config,
        datasets=[tmp_path / "data"],
        run=tmp_path / "run",
        follow=True,
        callbacks=[ProgressCallback(should_stop=lambda: next(asked) >= 1)],
    )
    assert report.stopped
    assert (report.updates, report.policy_version) == (0, None)


def test_an_untrained_policy_is_there_before_the_first_segment(tmp_path, make_spec, config):
    spec = make_spec()
    Dataset.create(tmp_path / "data", spec)
    asked = iter(range(10))
    report = train(
        config,
        datasets=[tmp_path / "data"],
        run=tmp_path / "run",
        policies=tmp_path / "policies",
        follow=True,
        callbacks=[ProgressCallback(should_stop=lambda: next(asked) >= 2)],
    )
    assert report.policy_version == 0
    assert newest_policy(tmp_path / "policies").updates == 0
    assert "waiting for segments" not in report.summary()


def test_updates_that_stay_not_finite_halt_the_run(tmp_path, make_spec, publish_episodes, config):
    publish_episodes(tmp_path / "data", make_spec())
    td3 = dataclasses.replace(config.td3, reward_scale=1e38)
    report = train(
        dataclasses.replace(config, td3=td3, guards=GuardConfig(every=4, max_skipped=6)),
        datasets=[tmp_path / "data"],
        run=tmp_path / "run",
    )
    assert report.halted is not None
    assert "not finite" in report.halted
    assert "emergency" in report.halted
    assert report.updates == 8
    assert report.skipped == 8
    assert "HALTED" in report.summary()
    assert newest_policy(tmp_path / "run" / "policies").updates == 0


def test_missing_and_empty_datasets_are_refused(tmp_path, make_spec, config):
    with pytest.raises(DatasetError):
        train(config, datasets=[tmp_path / "nowhere"], run=tmp_path / "run")
    Dataset.create(tmp_path / "empty", make_spec())
    with pytest.raises(NoSegmentsError, match="--follow"):
        train(config, datasets=[tmp_path / "empty"], run=tmp_path / "run")


def damage(segment):
    """Flip a bit of the rewards; return the segment's id."""
    file = segment.path / "reward" / "c" / "0"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    return segment.id


def test_refused_segments_are_always_reported(tmp_path, make_spec, publish_episodes, config):
    data = tmp_path / "data"
    publish_episodes(data, make_spec())
    bad = damage(publish_episodes(data, make_spec(), seed=1).snapshot().segments[-1])
    lines: list[str] = []
    report = train(
        config,
        datasets=[data],
        run=tmp_path / "run",
        callbacks=[ProgressCallback(lambda progress: lines.append(progress.line()))],
    )
    assert f"1 segment refused, last: {bad}: " in lines[-1]
    assert bad in report.summary()
    (refusal,) = report.document()["refused"]
    assert (refusal["dataset"], refusal["segment"]) == (str(data), bad)
    assert "differs from the manifest" in refusal["reason"]
    assert report.steps == 60
    (good,) = Dataset.open(data).snapshot().segments[:1]
    damage(good)
    with pytest.raises(
        NoSegmentsError, match=rf"2 segments are refused .*{bad}.*differs from the manifest"
    ):
        train(config, datasets=[data], run=tmp_path / "other")


def test_a_dataset_that_disappears_is_named(tmp_path, make_spec, publish_episodes, config):
    data = tmp_path / "data"
    publish_episodes(data, make_spec())
    asked = 0

    def should_stop():
        nonlocal asked
        asked += 1
        if asked == 3:
            (data / "segments").rename(data / "elsewhere")
        return False

    fast = dataclasses.replace(config, refresh_seconds=1e-9, updates_per_step=0.0)
    report = train(
        fast,
        datasets=[data],
        run=tmp_path / "run",
        follow=True,
        callbacks=[ProgressCallback(should_stop=should_stop)],
    )
    assert report.updates == 40
    assert report.absent == (data,)
    assert f"dataset {data} has disappeared" in report.summary()


def test_datasets_of_two_specs_are_refused(tmp_path, make_spec, publish_episodes, config):
    publish_episodes(tmp_path / "one", make_spec())
    publish_episodes(tmp_path / "two", make_spec(vector=6))
    with pytest.raises(SpecError):
        train(config, datasets=[tmp_path / "one", tmp_path / "two"], run=tmp_path / "run")


def test_a_run_directory_is_not_taken_twice(tmp_path, make_spec, publish_episodes, config):
    data = tmp_path / "data"
    publish_episodes(data, make_spec())
    short = dataclasses.replace(config, updates=2)
    with pytest.raises(ConfigError, match="no run to resume"):
        train(short, datasets=[data], run=tmp_path / "run", resume=True)
    train(short, datasets=[data], run=tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        train(short, datasets=[data], run=tmp_path / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        train(short, datasets=[data], run=tmp_path / "file")


def test_a_checkpoint_of_other_data_is_refused(tmp_path, make_spec, publish_episodes, config):
    short = dataclasses.replace(config, updates=2)
    publish_episodes(tmp_path / "one", make_spec())
    publish_episodes(tmp_path / "two", make_spec(low=(-2.0, -2.0)))
    train(short, datasets=[tmp_path / "one"], run=tmp_path / "run")
    with pytest.raises(SpecError, match="the run's own data"):
        train(short, datasets=[tmp_path / "two"], run=tmp_path / "run", resume=True)


KILLED = """
import os, sys
from pathlib import Path
from avtd3.learn import LearnConfig, NetworkConfig, train
from avtd3.store import files
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.tracker import RefusedSegment
count = 0
real = os.fsync
def fsync(descriptor):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    real(descriptor)
os.fsync = fsync
config = LearnConfig(updates=30, publish_every=5, checkpoint_every=5,
    network=NetworkConfig(hidden=(8,)), replay=ReplayConfig(batch_size=4))
train(config, datasets=sys.argv[1], run=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("fsyncs", [1, 9, 15, 20])
def test_a_run_killed_at_any_write_continues(tmp_path, make_spec, publish_episodes, fsyncs):
    data, run = tmp_path / "data", tmp_path / "run"
    publish_episodes(data, make_spec())
    command = [sys.executable, "-c", KILLED, str(data), str(run), str(fsyncs)]
    assert subprocess.run(command, check=False).returncode == -9
    config = LearnConfig(
        updates=30,
        publish_every=5,
        checkpoint_every=5,
        network=NetworkConfig(hidden=(8,)),
        replay=ReplayConfig(batch_size=4),
    )
    started = (run / "config.json").exists()
    report = train(config, datasets=[data], run=run, resume=started)
    assert report.updates == 30
    assert newest_policy(run / "policies").updates == 30
    assert not list(Path(run / "policies").glob(".*.tmp"))


@pytest.mark.parametrize(
    "bad",
    [
        {"updates": 0},
        {"refresh_seconds": 0.0},
        {"precision": "fp8"},
        {"seed": -1},
        {"image_shift": -1},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        LearnConfig(**bad)


def test_an_unknown_device_is_refused(tmp_path, make_spec, publish_episodes, config):
    publish_episodes(tmp_path / "data", make_spec())
    with pytest.raises(ConfigError, match="device"):
        train(
            dataclasses.replace(config, device="quantum"),
            datasets=[tmp_path / "data"],
            run=tmp_path / "r",
        )


def test_the_replay_mode_is_reported_and_does_not_change_the_result(
    tmp_path, make_spec, publish_episodes, config
):
    publish_episodes(tmp_path / "data", make_spec(image=IMAGE, vector=3))
    checkpoints = []
    for mode in ("cache", "direct"):
        replay = dataclasses.replace(config.replay, mode=mode)
        seen: list[LearnProgress] = []
        report = train(
            dataclasses.replace(config, updates=10, replay=replay),
            datasets=[tmp_path / "data"],
            run=tmp_path / mode,
            callbacks=[ProgressCallback(seen.append)],
        )
        assert report.replay.startswith(f"replay {mode}: as configured")
        assert report.replay in report.summary()
        assert report.document()["replay"] == report.replay
        assert report.replay in [progress.waiting for progress in seen]
        checkpoints.append(next((tmp_path / mode / "checkpoints").iterdir()))
    first, second = map(tensors_of, checkpoints)
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("held", ["run", "policies"])
def test_a_second_learner_says_who_uses_the_directory(
    tmp_path, make_spec, publish_episodes, config, held
):
    publish_episodes(tmp_path / "data", make_spec())
    options = {"datasets": [tmp_path / "data"], "policies": tmp_path / "policies"}
    few = dataclasses.replace(config, updates=4)
    train(few, run=tmp_path / "run", **options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with ExclusiveLock(tmp_path / held, purpose="another learner"):
        for run, resume in (("run", True), ("other" if held == "policies" else "run", False)):
            with pytest.raises(InUseError, match=f"{held} is in use by process .*another learner"):
                train(config, run=tmp_path / run, resume=resume, **options)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert train(few, run=tmp_path / "run", resume=True, **options).updates == 4


def test_the_lock_of_a_dead_learner_blocks_nobody(tmp_path, make_spec, publish_episodes, config):
    publish_episodes(tmp_path / "data", make_spec())
    (tmp_path / "run").mkdir()
    code = (
        "import os, signal, sys; from pathlib import Path; "
        "from avtd3.store.locks import ExclusiveLock; "
        "ExclusiveLock(Path(sys.argv[1]), purpose='dead').__enter__(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert killed.returncode == -9
    assert b"dead" in (tmp_path / "run" / ".lock").read_bytes()
    few = dataclasses.replace(config, updates=4)
    assert train(few, datasets=tmp_path / "data", run=tmp_path / "run").updates == 4


@pytest.mark.parametrize("left", ["nothing", "weights", "sidecar", "no LATEST", "damaged"])
def test_a_resumed_learner_repairs_what_a_killed_one_left_of_policy_0(
    tmp_path, make_spec, publish_episodes, config, left
):
    spec = make_spec()
    publish_episodes(tmp_path / "data", spec)
    policies = PolicyStore(tmp_path / "run" / "policies")
    started = dataclasses.replace(config, updates=1)
    train(started, datasets=tmp_path / "data", run=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # killed before the first one
    shutil.rmtree(policies.path)
    if left != "nothing":
        network = config.network
        policies.publish(Actor(spec, network), spec, network, updates=0)
        (policies.path / "LATEST.json").unlink()
        weights = policies.path_of(0)
        if left == "weights":
            weights.with_suffix(".json").unlink()
        elif left == "sidecar":
            weights.unlink()
        elif left == "damaged":
            weights.write_bytes(weights.read_bytes()[:-1])
    seen: list[object] = []

    def stop() -> bool:
        seen.append(policies.latest(spec))
        return True

    waiting = ProgressCallback(should_stop=stop)
    config = dataclasses.replace(config, learning_starts=10**6)  # waits for data
    train(
        config,
        datasets=tmp_path / "data",
        run=tmp_path / "run",
        follow=True,
        resume=True,
        callbacks=[waiting],
    )
    assert seen[-1] is not None
    assert newest_policy(policies.path).updates == 0
    assert not list(policies.path.glob("*.tmp"))


@pytest.mark.parametrize(("value", "fault"), [(np.nan, "has values"), (3e38, "actions")])
def test_an_actor_that_would_not_drive_is_not_published(
    tmp_path, make_spec, publish_episodes, config, monkeypatch, value, fault
):
    def break_after(state, *args, **options):
        update = make_updater(state, *args, **options)

        def update_and_break(batch, noise):
            done = update(batch, noise)
            if state.updates == 5:
                with torch.no_grad():
                    for layer in state.actor.head.layers:
                        layer.weight[:, ::2], layer.weight[:, 1::2] = value, -value
                        layer.bias.fill_(value)
            return done

        return update_and_break

    monkeypatch.setattr("avtd3.learn.trainer.make_updater", break_after)
    publish_episodes(tmp_path / "data", make_spec())
    guards = dataclasses.replace(config.guards, on_stop="continue")
    config = dataclasses.replace(config, guards=guards)
    report = train(config, datasets=tmp_path / "data", run=tmp_path / "run")
    assert (report.updates, report.policy_version) == (40, 0)
    assert newest_policy(tmp_path / "run" / "policies").version == 0
    lines = (tmp_path / "run" / "alerts.jsonl").read_text().splitlines()
    notes = [line for line in map(json.loads, lines) if line["name"] == "not_published"]
    assert [note["update"] for note in notes] == [20, 40]
    assert all(fault in note["reason"] for note in notes)


@pytest.mark.parametrize("is_unreadable", [True, False])
@pytest.mark.parametrize("follow", [True, False])
def test_a_run_that_loses_all_its_segments_waits_or_says_why(
    tmp_path, make_spec, publish_episodes, config, monkeypatch, is_unreadable, follow
):
    publish_episodes(tmp_path / "data", make_spec())
    refused = RefusedSegment(
        dataset=tmp_path / "data", segment_id="s", reason="EIO", is_unreadable=is_unreadable
    )
    sample, calls, waits = Sampler.sample, [], []

    def lose(sampler):
        calls.append(sampler)
        if len(calls) < 5:
            return sample(sampler)
        sampler.steps = 0
        monkeypatch.setattr(Sampler, "refused", (refused,))
        raise NoSegmentsError("nothing left")

    monkeypatch.setattr(Sampler, "sample", lose)

    def wait_a_little(progress):
        waits.append(progress.waiting)

    options = {
        "datasets": tmp_path / "data",
        "run": tmp_path / "run",
        "follow": follow,
        "callbacks": [ProgressCallback(wait_a_little, lambda: "steps to sample" in waits[-1])],
    }
    if follow:
        assert train(config, **options).updates == 4
    else:
        error = DatasetUnreadableError if is_unreadable else NoSegmentsError
        with pytest.raises(error, match="no published step to learn from"):
            train(config, **options)
