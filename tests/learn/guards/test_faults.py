"""Each guard fires at its own fault."""

import dataclasses
import math

import pytest
import torch

from avtd3.learn.guards.config import CnnRateConfig
from avtd3.learn.td3 import TD3Config
from avtd3.tests.learn.guarded_run import GUARDS, PLAIN, scale


def test_a_poisoned_batch_is_reported_and_counted(make_run):
    run = make_run(camera=False)
    run.go(5)
    run.go(2, lambda batch: dataclasses.replace(batch, reward=batch.reward * math.nan))
    run.go(13)
    assert run.fired() == {"critic_not_finite": "warn"}
    assert run.scalars["alerts/critic_not_finite"] == 2.0
    assert run.state.skipped == 2.0
    (line,) = run.lines()
    assert "2 updates of the critic, 2 of them in a row" in line["reason"]
    assert "replay-inspect" in line["fix"]
    assert "critic_not_finite" in run.messages[0]
    assert run.stop is None


def test_continued_poison_is_a_stop(make_run):
    run = make_run(camera=False, guards=dataclasses.replace(GUARDS, max_skipped=15))
    run.go(20, lambda batch: dataclasses.replace(batch, reward=batch.reward / 0.0))
    assert run.stop is not None
    assert (run.stop.name, run.stop.level, run.stop.value) == ("critic_not_finite", "stop", 20.0)


@pytest.mark.parametrize(
    ("factor", "wanted"),
    [
        (30.0, {"q_bound"}),
        (1000.0, {"critic_grad_norm", "critic_loss", "q_size", "q_bound"}),
    ],
)
def test_inflated_critics(make_run, factor, wanted):
    run = make_run(camera=False)
    run.go(10)
    scale(run.state.critic.head1, factor)
    run.go(10)
    assert wanted <= run.fired().keys()
    if factor == 1000.0:
        assert run.fired()["q_size"] == "serious"
        assert run.fired()["critic_grad_norm"] == "stop"
        assert run.stop is not None


@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_of_the_actor_counts_before_clipping(make_run, shared):
    network = dataclasses.replace(PLAIN, shared_encoder=True)  # the actor trains no CNN
    run = make_run(network=network) if shared else make_run(camera=False)
    run.go(10)
    scale(run.state.critic.head1, 300.0)
    scale(run.state.critic.head2, 300.0)
    run.go(10)
    assert "actor_grad_norm" in run.fired()
    line = next(line for line in run.lines() if line["name"] == "actor_grad_norm")
    assert line["value"] > 10_000.0 > run.td3.clip.actor_max_norm


@pytest.mark.slow
def test_critic_features_of_the_actor_are_caught_by_what_the_data_allow(make_run):
    fast = TD3Config(critic_features="actor", actor_cnn_lr=3e-3, actor_lr=3e-3)
    run = make_run(td3=fast)
    run.go(200)
    fired = run.fired()
    assert {"actor_q_bound", "actor_loss", "actor_feature_norm"} <= fired.keys()
    assert not {"q_bound", "q_size", "critic_loss"} & fired.keys()
    assert any(line["name"] == "actor_cnn_rate" for line in run.lines())
    assert run.monitor.rates["actor"].share < 1.0
    assert run.monitor.rates["critic"].share == 1.0


@pytest.mark.parametrize("network", ["actor", "critic"])
def test_dead_units(make_run, network):
    run = make_run()
    with torch.no_grad():
        getattr(run.state, network).encoder.linear.bias.sub_(1e3)
    run.go(10)
    assert run.fired() == {f"{network}_dead_units": "warn"}
    (line,) = run.lines()
    assert line["value"] == 1.0
    assert f"{network}'s CNN" in line["reason"]


def test_features_of_the_critics_count_apart(make_run):
    run = make_run()
    scale(run.state.critic.encoder.linear, 3000.0)
    run.go(10)
    assert run.fired()["critic_feature_norm"] == "serious"
    assert "actor_feature_norm" not in run.fired()
    assert run.monitor.rates["critic"].share == 0.5
    assert run.monitor.rates["actor"].share == 1.0


def test_a_saturated_and_constant_actor(make_run):
    run = make_run(camera=False)
    with torch.no_grad():
        run.state.actor.head.layers[-1].bias.add_(100.0)
    run.go(10)
    assert run.fired() == {"saturation": "warn"}
    run.go(10)
    assert run.fired() == {"saturation": "warn", "constant_action": "warn"}


def test_large_features_halve_the_rate_of_their_own_cnn(make_run):
    rate = CnnRateConfig(cool_down=20, floor=0.25)
    run = make_run(guards=dataclasses.replace(GUARDS, rate=rate))
    scale(run.state.actor.encoder.linear, 3000.0)
    before = [group["lr"] for group in run.state.actor_optimizer.param_groups]
    run.go(10)
    assert run.fired()["actor_feature_norm"] == "serious"
    assert [g["lr"] for g in run.state.actor_optimizer.param_groups] == [before[0], before[1] / 2]
    run.go(10)  # cooling down
    assert run.state.actor_optimizer.param_groups[1]["lr"] == before[1] / 2
    run.go(60)
    assert run.state.actor_optimizer.param_groups[1]["lr"] == before[1] / 4  # the floor
    assert run.state.critic_optimizer.param_groups[1]["lr"] == before[1]
    run.state.scale_rates(0.5)
    assert run.state.actor_optimizer.param_groups[1]["lr"] == before[1] / 8


def test_weights_that_are_not_finite_are_a_stop(make_run):
    run = make_run(camera=False)
    run.go(15)
    with torch.no_grad():
        run.state.critic.head2.layers[0].weight[0, 0] = math.nan
    run.go(5)
    assert run.stop is not None
    assert run.stop.name == "weights"
    assert "critic.head2.layers.0" in run.stop.reason


def test_many_skipped_actor_updates_are_a_stop(make_run):
    run = make_run(camera=False, guards=dataclasses.replace(GUARDS, max_skipped=8))
    run.td3 = TD3Config(bc_alpha=1.0, bc_weight=1e38)
    run.go(20)
    assert run.stop is not None
    assert (run.stop.name, run.stop.value) == ("actor_not_finite", 10.0)


def test_a_layer_that_moves_too_far_in_one_update(make_run):
    run = make_run(camera=False)
    run.go(10)
    for group in run.state.actor_optimizer.param_groups:
        group["lr"] = 0.5
    run.go(10)
    (line,) = [line for line in run.lines() if line["name"] == "update_ratio"]
    assert (line["level"], line["limit"], line["update"]) == ("warn", 0.1, 20)
    assert "actor.head" in line["reason"]
