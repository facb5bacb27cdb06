"""A run that learns to drive raises no alerts."""

import pytest

from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.guards.config import GUARDS
from avtd3.tests.pipeline.conftest import QUICK_WORLD, avtd3_json

SETTINGS = (
    "--set=learn.log_every=2",
    "--set=learn.td3={bc_alpha: 1.0, tau: 0.02, actor_lr: 0.001, critic_lr: 0.001}",
    "--set=learn.replay={batch_size: 32, n_step: 10, gamma: 0.98}",
    "--set=learn.guards={every: 20, warm_up: 60, layers_every: 50}",
)


@pytest.mark.slow
def test_learning_to_drive_raises_no_alert(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    driver = "0.5:expert,0.5:expert+noise=0.2"
    avtd3_json("collect", data, "--driver", driver, "--steps", 2000, "--workers", 1, *QUICK_WORLD)
    report = avtd3_json("learn", data, "--run", run, "--updates", 400, *SETTINGS)
    assert report["alerts"] == {"warn": 0, "serious": 0, "stop": 0}
    assert (report["halted"], report["rollbacks"], report["skipped"]) == (None, 0, 0)
    assert not (run / "alerts.jsonl").exists()
    curves = read_log(run / "events").curves
    assert {curves[f"alerts/{name}"].values.max() for name in GUARDS} == {0.0}
    imitation = curves["actor/imitation"].values
    assert imitation[-20:].mean() < 0.5 * imitation[0]  # it learns
