"""The calls that callbacks of a training run receive, and how they stop it."""

import pytest

from avtd3.learn import GuardConfig, LearnConfig, NetworkConfig, TrainCallback, train
from avtd3.learn.policy import Policy
from avtd3.store.errors import ConfigError, DatasetError
from avtd3.store.replay.config import ReplayConfig


class Recorder(TrainCallback):
    """Keep every call."""

    def __init__(self, *, stop_at=None):
        self.calls = []
        self.stop_at = stop_at

    def should_stop(self):
        return self.stop_at is not None and self.named("on_update")[-1:] == [self.stop_at]

    def named(self, name):
        return [argument for method, argument in self.calls if method == name]


def record(name):
    def method(self, *arguments):
        self.calls.append((name, arguments[0] if len(arguments) == 1 else arguments))

    return method


for hook in ("start", "update", "metrics", "checkpoint", "publish", "alert", "end"):
    setattr(Recorder, f"on_{hook}", record(f"on_{hook}"))


@pytest.fixture
def config():
    return LearnConfig(
        updates=12,
        log_every=4,
        publish_every=6,
        checkpoint_every=6,
        milestones=(),
        guards=GuardConfig(every=4, layers_every=100),
        network=NetworkConfig(hidden=(8,)),
        replay=ReplayConfig(batch_size=4),
    )


@pytest.fixture
def data(tmp_path, make_spec, publish_episodes):
    publish_episodes(tmp_path / "data", make_spec())
    return tmp_path / "data"


def test_each_hook_is_called_in_order(tmp_path, data, config):
    recorder = Recorder()
    report = train(config, datasets=str(data), run=str(tmp_path / "run"), callbacks=[recorder])
    names = [name for name, _ in recorder.calls]
    assert names[:2] == ["on_publish", "on_start"]
    assert names[-1] == "on_end"
    assert recorder.named("on_update") == list(range(1, 13))
    assert [path.name for path in recorder.named("on_checkpoint")] == [
        "update-000000006",
        "update-000000012",
    ]
    assert [Policy.load(path).updates for path in recorder.named("on_publish")] == [0, 6, 12]
    logged = [step for step, scalars in recorder.named("on_metrics") if "critic/loss" in scalars]
    assert logged == [4, 8, 12]
    assert recorder.named("on_start")[0].updates == 0
    assert recorder.named("on_end") == [report]


def test_a_callback_stops_the_run_in_good_order(tmp_path, data, config):
    recorders = Recorder(), Recorder(stop_at=7)
    report = train(config, datasets=[data], run=tmp_path / "run", callbacks=recorders)
    assert (report.updates, report.stopped, report.policy_version) == (7, True, 2)
    assert recorders[0].named("on_checkpoint")[-1].name == "update-000000007"
    again = train(config, datasets=[data], run=tmp_path / "run", resume=True)
    assert (again.updates, again.session_updates) == (12, 5)


def test_alerts_reach_callbacks_as_they_are_written(tmp_path, data, config):
    import dataclasses
    import json

    td3 = dataclasses.replace(config.td3, reward_scale=1e38)
    recorder = Recorder()
    config = dataclasses.replace(config, td3=td3)
    train(config, datasets=[data], run=tmp_path / "run", callbacks=[recorder])
    text = (tmp_path / "run" / "alerts.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in text]
    alerts = recorder.named("on_alert")
    assert alerts[0].name == "critic_not_finite"
    for alert, line in zip(alerts, written, strict=False):
        assert dataclasses.asdict(alert) == {k: v for k, v in line.items() if k != "time"}


def test_user_mistakes_are_named(tmp_path, config):
    with pytest.raises(ConfigError, match="at least one dataset"):
        train(config, datasets=[], run=tmp_path / "run")
    with pytest.raises(DatasetError):
        train(datasets="nowhere", run=tmp_path / "run")
