"""Guards in a whole run: it is halted, rolled back or continued."""

import dataclasses
import json
import shutil

import pytest
import torch

from avtd3.cli import main
from avtd3.learn import td3
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.callbacks import ProgressCallback
from avtd3.learn.checkpoints import list_checkpoints
from avtd3.learn.config import LearnConfig
from avtd3.learn.guards.config import ActionLimitConfig, CnnRateConfig, GuardConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.trainer import train
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.spec import ImageSpec

IMAGE = ImageSpec(height=36, width=36, stack=1)
GUARDS = GuardConfig(every=5, warm_up=5, layers_every=10)


@pytest.fixture
def config():
    return LearnConfig(
        updates=40,
        log_every=5,
        publish_every=20,
        checkpoint_every=10,
        keep_checkpoints=9,
        milestones=(),
        guards=GUARDS,
        network=NetworkConfig(hidden=(8, 8), features=8),
        replay=ReplayConfig(batch_size=4),
    )


@pytest.fixture
def learn(tmp_path, make_spec, publish_episodes):
    def learn(config, *, run="run", image=None, **options):
        if not (tmp_path / "data").exists():
            publish_episodes(tmp_path / "data", make_spec(image=image), length=20)
        return train(config, datasets=[tmp_path / "data"], run=tmp_path / run, **options)

    return learn


@pytest.fixture
def break_weights(monkeypatch):
    """Multiply the critic's weights by 1000 the first time that an update is reached, or always."""

    def install(at, *, always=False):
        broken: list[int] = []

        def update(state, *arguments):
            done = td3.update(state, *arguments)
            if state.updates == at and (always or not broken):
                broken.append(at)
                with torch.no_grad():
                    for p in state.critic.parameters():
                        p.mul_(1e3)
            return done

        monkeypatch.setattr("avtd3.learn.device.update", update)

    return install


def lines(run):
    return [json.loads(line) for line in (run / "alerts.jsonl").read_text().splitlines()]


def policy(run):
    found = PolicyStore(run / "policies").latest(None)
    assert found is not None
    return found


def guards(**changes):
    return dataclasses.replace(GUARDS, **changes)


def test_a_stop_ends_the_run_and_is_reported_everywhere(tmp_path, learn, config, break_weights):
    break_weights(23)
    seen: list[str] = []
    report = learn(config, callbacks=[ProgressCallback(lambda p: seen.append(p.line()))])
    run = tmp_path / "run"
    assert (report.updates, report.stopped, report.rollbacks) == (25, False, 0)
    assert report.alerts["stop"] >= 1
    assert "before clipping" in report.halted
    assert "the last good checkpoint is of update 20" in report.halted
    assert "HALTED" in report.summary()
    assert "alerts.jsonl" in report.summary()
    assert any("stop alert" in line and "expected at most" in line for line in seen)
    (stop,) = [line for line in lines(run) if line["name"] == "critic_grad_norm"]
    assert stop["level"] == "stop"
    assert stop["value"] > stop["limit"] == 100_000.0
    curves = read_log(run / "events").curves
    assert curves["alerts/stop"].values[-1] >= 1.0
    assert curves["alerts/critic_grad_norm"].values[-1] >= 1.0
    assert [path.name for path in list_checkpoints(run / "emergency")] == ["update-000000025"]
    assert list_checkpoints(run / "checkpoints")[-1].name == "update-000000020"
    assert policy(run).updates == 20  # what went wrong is not published


def test_the_exit_code_reports_that_a_guard_ended_the_run(tmp_path, learn, config, capsys):
    learn(dataclasses.replace(config, updates=1), run="other")
    options = ["learn.td3.reward_scale=1e38", "learn.guards.max_skipped=4", "learn.guards.every=4"]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("learn", str(tmp_path / "data"), "--run", str(tmp_path / "run")),
                *("--updates", "40", "--json"),
                *(part for option in options for part in ("--set", option)),
            ]
        )
    assert ended.value.code == 1
    assert "not finite" in json.loads(capsys.readouterr().out)["halted"]


def test_a_rollback_continues_from_the_last_good_checkpoint(tmp_path, learn, config, break_weights):
    break_weights(23)
    config = dataclasses.replace(config, guards=guards(on_stop="rollback"))
    report = learn(config, image=IMAGE)
    run = tmp_path / "run"
    assert (report.updates, report.halted, report.rollbacks) == (40, None, 1)
    assert "rollbacks to a good checkpoint: 1" in report.summary()
    names = [line["name"] for line in lines(run)]
    note = lines(run)[names.index("rollback")]
    assert (note["level"], note["update"]) == ("note", 20)
    assert "gradient of the actor before clipping" in note["reason"]
    curves = read_log(run / "events").curves
    assert list(curves["critic/loss"].updates) == list(range(5, 41, 5))
    assert curves["run/rollbacks"].values[-1] == 1.0
    assert curves["critic/loss"].values.max() < 1e3  # the past that went wrong is not shown
    for network in ("actor", "critic"):
        rates = curves[f"rate/{network}_cnn"].values
        assert rates[-1] == pytest.approx(rates[0] / 2)
    assert policy(run).updates == 40
    assert [path.name for path in list_checkpoints(run / "emergency")] == ["update-000000025"]


def test_a_rollback_forgets_the_metrics_of_what_went_wrong(tmp_path, learn, config, break_weights):
    break_weights(23)
    config = dataclasses.replace(config, guards=guards(on_stop="rollback"), keep_best="critic/loss")
    assert learn(config).rollbacks == 1
    run = tmp_path / "run"
    document = json.loads((run / "checkpoints/update-000000020/checkpoint.json").read_text())
    curve = read_log(run / "events").curves["critic/loss"]
    assert document["best"]["newest"] == curve.values[curve.updates == 20].item()


def test_each_rollback_halves_the_rates_again_until_there_were_enough(
    tmp_path, learn, config, break_weights
):
    break_weights(23, always=True)
    config = dataclasses.replace(config, guards=guards(on_stop="rollback", max_rollbacks=2))
    report = learn(config, image=IMAGE)
    assert (report.updates, report.rollbacks) == (25, 2)
    assert "the run was rolled back 2 times already" in report.halted
    rates = read_log(tmp_path / "run" / "events").curves["rate/critic_cnn"].values
    assert rates[-1] == pytest.approx(rates[0] / 4)
    document = json.loads(
        (tmp_path / "run/checkpoints/update-000000020/checkpoint.json").read_text()
    )
    assert document["guards"]["rollbacks"] == 2


def test_a_checkpoint_counts_the_rollbacks_to_it(tmp_path, learn, config, break_weights):
    config = dataclasses.replace(config, guards=guards(on_stop="rollback"))
    learn(dataclasses.replace(config, updates=13))
    break_weights(14)
    report = learn(dataclasses.replace(config, updates=16), resume=True)
    assert (report.updates, report.rollbacks) == (16, 1)
    document = json.loads(
        (tmp_path / "run/checkpoints/update-000000013/checkpoint.json").read_text()
    )
    assert (document["guards"]["rollbacks"], document["guards"]["last_good"]) == (1, 13)


def test_checkpoints_after_the_good_one_are_moved_like_those_of_a_rollback_by_hand(
    tmp_path, learn, config, break_weights
):
    break_weights(13)
    config = dataclasses.replace(config, guards=guards(every=25, on_stop="rollback"))
    report = learn(config)
    assert (report.updates, report.rollbacks) == (40, 1)
    run = tmp_path / "run"
    aside = [path.name for path in list_checkpoints(run / "rolled-back" / "001")]
    assert aside == ["update-000000020"]
    (note,) = [line for line in lines(run) if line["name"] == "rollback"]
    assert note["update"] == 10


def test_without_a_good_checkpoint_a_stop_halts_the_run(learn, config, break_weights):
    break_weights(3)
    report = learn(dataclasses.replace(config, guards=guards(on_stop="rollback")))
    assert report.updates == 5
    assert "there is no good checkpoint to roll back to" in report.halted


def test_with_continue_a_stop_is_only_reported(tmp_path, learn, config, break_weights):
    break_weights(23)
    report = learn(dataclasses.replace(config, guards=guards(on_stop="continue")))
    assert (report.updates, report.halted) == (40, None)
    assert report.alerts["stop"] >= 1
    assert not (tmp_path / "run" / "emergency").exists()


def test_a_resumed_run_keeps_the_state_of_the_guards(tmp_path, learn, config):
    rate = CnnRateConfig(halve_above=1.0, recover_below=0.5, cool_down=10)
    limit = ActionLimitConfig(share=0.6, for_updates=1000)
    config = dataclasses.replace(config, guards=guards(rate=rate, action_limit=limit))
    learn(config, run="whole", image=IMAGE)
    learn(dataclasses.replace(config, updates=13), run="parts")
    assert learn(config, run="parts", resume=True).resumed_exactly is True
    whole, parts = (
        list_checkpoints(tmp_path / run / "checkpoints")[-1] for run in ("whole", "parts")
    )
    tensors = [(path / "tensors.safetensors").read_bytes() for path in (whole, parts)]
    assert tensors[0] == tensors[1]
    states = [
        json.loads((path / "checkpoint.json").read_text())["guards"] for path in (whole, parts)
    ]
    assert states[0] == states[1]
    assert states[0]["rates"]["actor"]["share"] < 0.2
    reported = [
        [(line["update"], line["name"], line["reason"]) for line in lines(tmp_path / run)]
        for run in ("whole", "parts")
    ]
    assert reported[0] == reported[1]


def test_void_lines_are_marked_after_a_resume(tmp_path, learn, config):
    rate = CnnRateConfig(halve_above=1.0, recover_below=0.5, cool_down=5)
    config = dataclasses.replace(config, updates=20, guards=guards(rate=rate))
    learn(config, image=IMAGE)
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints" / "update-000000020")
    with (run / "alerts.jsonl").open("a") as file:
        file.write('{"time": "202')  # killed in the middle of it
    before = (run / "alerts.jsonl").read_bytes()
    learn(config, resume=True)
    assert (run / "alerts.jsonl").read_bytes().startswith(before[:-13])
    found = [line for line in lines(run) if line["name"] == "resume"]
    assert [(line["level"], line["update"]) for line in found] == [("note", 10)]
    assert "are void" in found[0]["reason"]


def test_alerts_from_before_the_first_checkpoint_are_void(tmp_path, learn, config):
    path = tmp_path / "run" / "alerts.jsonl"
    path.parent.mkdir()
    alert = {"update": 7, "name": "q_bound", "level": "warn", "reason": "r"}
    path.write_text(json.dumps(alert) + '\n{"time": "202')  # killed in the middle of a line
    learn(dataclasses.replace(config, updates=5))
    assert [(line["name"], line["update"]) for line in lines(path.parent)[:2]] == [
        *(("q_bound", 7), ("resume", 0)),
    ]


def test_policies_are_limited_until_training_looks_healthy(tmp_path, learn, config):
    limit = ActionLimitConfig(
        share=0.6, for_updates=20, action_std_above=0.0, episode_length_above=10.0
    )
    config = dataclasses.replace(config, guards=guards(action_limit=limit))
    learn(dataclasses.replace(config, updates=20), image=IMAGE)
    assert policy(tmp_path / "run").action_limit == 0.6
    learn(config, resume=True)
    assert policy(tmp_path / "run").action_limit == 1.0
    (line,) = lines(tmp_path / "run")
    assert (line["name"], line["level"], line["update"]) == ("action_limit", "note", 25)
    curve = read_log(tmp_path / "run" / "events").curves["run/action_limit"]
    assert curve.values == pytest.approx([0.6] * 4 + [1.0] * 4)
