"""All guards together: no alert in a healthy run, exact after a resume, without waits."""

import copy
import dataclasses
import json
import math
import statistics

import pytest
import torch

from avtd3.learn.guards.config import CnnRateConfig
from avtd3.learn.td3 import TD3Config
from avtd3.store.errors import CheckpointError
from avtd3.tests.learn.guarded_run import GUARDS, PLAIN, learnable, scale


@pytest.mark.parametrize(
    ("camera", "feature_norm", "updates", "left"),
    [(False, False, 250, 0.5), (True, False, 80, 0.95), (True, True, 80, 0.95)],
)
def test_a_run_that_learns_raises_nothing(make_run, camera, feature_norm, updates, left):
    network = dataclasses.replace(PLAIN, feature_norm=feature_norm)
    td3 = TD3Config(actor_lr=1e-3, critic_lr=3e-3, critic_cnn_lr=1e-3, tau=0.05)
    run = make_run(camera=camera, network=network, td3=td3)
    run.go(updates, learnable)
    first, last = statistics.mean(run.errors[:20]), statistics.mean(run.errors[-20:])
    assert last < left * first  # it learns indeed
    assert run.lines() == []
    assert run.messages == ()
    assert run.stop is None
    counts = {name: value for name, value in run.scalars.items() if name.startswith("alerts/")}
    assert set(counts.values()) == {0.0}
    assert run.scalars["run/action_limit"] == 1.0
    assert all(rate.share == 1.0 for rate in run.monitor.rates.values())


def test_the_critics_own_features_at_the_same_rates_raise_nothing(make_run):
    run = make_run(td3=TD3Config(actor_cnn_lr=3e-3, actor_lr=3e-3))
    run.go(120)
    assert not {"actor_q_bound", "actor_loss", "actor_feature_norm"} & run.fired().keys()


def test_a_persisting_alert_is_repeated_seldom_and_counted_always(make_run):
    run = make_run(camera=False, guards=dataclasses.replace(GUARDS, repeat_every=30))
    with torch.no_grad():
        run.state.actor.head.layers[-1].bias.add_(100.0)
    run.go(60)
    reported = [line for line in run.lines() if line["name"] == "saturation"]
    assert [(line["update"], line["count"]) for line in reported] == [(10, 1), (40, 3)]
    assert run.scalars["alerts/saturation"] == 6.0
    run.monitor.alerts.flush(60)
    reported = [line for line in run.lines() if line["name"] == "saturation"]
    assert (reported[-1]["update"], reported[-1]["count"]) == (60, 2)
    assert "2 more updates" in reported[-1]["reason"]


def test_disabled_guards_check_nothing(make_run):
    run = make_run(camera=False, guards=dataclasses.replace(GUARDS, enabled=False))
    run.go(20, lambda batch: dataclasses.replace(batch, reward=batch.reward * math.nan))
    assert (run.lines(), run.scalars, run.stop) == ([], {}, None)


def test_a_restored_monitor_continues_exactly(make_run):
    guards = dataclasses.replace(GUARDS, rate=CnnRateConfig(cool_down=20))
    whole, first = make_run(guards=guards), make_run(guards=guards)
    for run in (whole, first):
        scale(run.state.actor.encoder.linear, 3000.0)
    whole.go(47)
    first.go(13)
    state = json.loads(json.dumps(first.monitor.state(), allow_nan=False))
    second = make_run(guards=guards)
    second.state, second.noise = first.state, first.noise
    second.monitor.restore(state, second.state)
    second.go(34)
    assert second.monitor.state() == whole.monitor.state()
    assert [g["lr"] for g in second.state.actor_optimizer.param_groups] == [
        g["lr"] for g in whole.state.actor_optimizer.param_groups
    ]


def test_an_invalid_state_is_refused(make_run):
    run = make_run(camera=False)
    run.monitor.restore({}, run.state)
    with pytest.raises(CheckpointError, match="guards"):
        run.monitor.restore({"alerts": 5}, run.state)


def places(document, path=()):
    """Yield the paths of all values in a JSON document, of lists and of large objects the first."""
    yield path
    if isinstance(document, dict):
        for key in list(document)[:8]:
            yield from places(document[key], (*path, key))
    elif isinstance(document, list) and document:
        yield from places(document[0], (*path, 0))


def replaced(document, path, value):
    if not path:
        return value
    copied = copy.copy(document)
    copied[path[0]] = replaced(document[path[0]], path[1:], value)
    return copied


@pytest.mark.parametrize("wrong", [None, "x", True, 0.5, 10**30, -1, [], [[]], {}, {"x": "y"}])
def test_a_state_of_a_wrong_type_is_refused_or_harmless(make_run, wrong):
    run = make_run(camera=False)
    run.go(13)
    good = run.monitor.state()
    text = json.dumps(good)
    messages = []
    for path in places(good):
        try:
            run.monitor.restore(replaced(good, path, wrong), run.state)
        except CheckpointError as error:
            messages.append(str(error))
        else:  # whatever was accepted can be read, reported and saved
            run.monitor.alerts.flush(13)
            run.go(10 - run.state.updates % 10)
            json.dumps(run.monitor.state(), allow_nan=False)
    assert len(messages) > 5
    assert max(map(len, messages)) < 400
    assert json.dumps(good) == text


def test_a_checkpoint_is_good_if_nothing_serious_came_before_it(make_run):
    run = make_run(camera=False)
    run.go(10)
    run.monitor.mark_checkpoint(10)
    assert run.monitor.last_good == 10
    scale(run.state.critic.head1, 1000.0)
    run.go(5)  # not read yet
    run.monitor.mark_checkpoint(15)
    assert run.monitor.last_good == 10
    run.go(5)
    run.monitor.mark_checkpoint(20)
    assert run.monitor.last_good == 10


def test_a_checkpoint_whose_newest_update_was_skipped_is_not_good(make_run):
    run = make_run(camera=False)
    run.go(10)
    run.go(3, lambda batch: dataclasses.replace(batch, reward=batch.reward * math.nan))
    run.monitor.mark_checkpoint(13)
    assert run.monitor.last_good is None
    run.go(1)
    run.monitor.mark_checkpoint(14)
    assert run.monitor.last_good == 14


def test_nothing_is_read_back_between_two_readings(make_run, monkeypatch):
    run = make_run(guards=dataclasses.replace(GUARDS, every=20, layers_every=20))
    read: list[tuple[int, str]] = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        plain = getattr(torch.Tensor, name)

        def reported(tensor, *arguments, name=name, plain=plain, **options):
            if inside:
                read.append((run.state.updates, name))
            return plain(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, reported)
    inside = False
    after = run.monitor.after

    def watched(*arguments):
        nonlocal inside
        inside = True
        found = after(*arguments)
        inside = False
        return found

    monkeypatch.setattr(run.monitor, "after", watched)
    run.go(40)
    assert [update for update, _ in read] == [20, 20, 40, 40]
    assert {name for _, name in read} == {"tolist"}
