"""A collector and a learner that wait for each other: one update per step."""

import dataclasses
import json
from typing import Any

import pytest

from avtd3.cli import main
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.store.dataset import Dataset
from avtd3.store.errors import SpecError
from avtd3.tests.pipeline.conftest import wait_until

pytest.importorskip("gymnasium")

RANDOM, LEAD, EVERY, STEPS, EPISODE = 100, 60, 30, 400, 50
WORLD = ("--world", "gym:Pendulum-v1")
SHORT = f"--set=collect.gym.time_limit={EPISODE}"
LEARNER = (
    "--config=mujoco_td3",
    f"--set=learn.learning_starts={RANDOM}",
    f"--set=learn.publish_every={EVERY}",
    "--set=learn.network.hidden=[16]",
    "--set=learn.replay.batch_size=16",
)


def episodes(data):
    """Return length, driver and policy version of every episode, in the order of the plan."""
    found: list[Any] = []
    for segment in Dataset.open(data).snapshot().segments:
        table = segment.episode_table()
        columns = (table.index, table.length, table.texts("driver"), table.policy_version)
        found += zip(*(c.tolist() if hasattr(c, "tolist") else c for c in columns), strict=True)
    return [row[1:] for row in sorted(found)]


def updates_of(policies, version):
    data = (policies / f"policy-{version:08d}.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["avtd3_policy"])["updates"]


@pytest.mark.slow
def test_collector_and_learner_wait_for_each_other(tmp_path, start):
    data, policies, run = tmp_path / "data", tmp_path / "policies", tmp_path / "run"
    collector = start(
        "collect", data, "--config", "mujoco_td3", *WORLD, SHORT, "--policies", policies,
        "--steps", STEPS, "--random-steps", RANDOM, "--max-lead", LEAD,
    )  # fmt: skip
    log = collector.log
    wait_until(lambda: "waiting for the first" in log.read_text(), "a wait", running=(collector,))
    assert sum(length for length, *_ in episodes(data)) == RANDOM
    learner = start(
        "learn", data, "--run", run, "--policies", policies, "--follow", *LEARNER,
        "--updates", STEPS - RANDOM,
    )  # fmt: skip
    assert collector.process.wait() == 0, log.read_text()
    assert learner.process.wait() == 0, learner.log.read_text()

    done = 0
    for length, driver, version in episodes(data):
        if done < RANDOM:
            assert driver == "random"
        else:
            assert driver == "policy+gaussian=0.1"
            behind = done - RANDOM - updates_of(policies, version)
            assert behind <= LEAD, f"after {done} steps, policy {version}"
        done += length
    assert done == STEPS

    config = EvaluateConfig(world="gym:Pendulum-v1", episodes=1)
    report = evaluate(str(policies), config)
    assert report.policy_version == (STEPS - RANDOM) // EVERY
    assert report.scores[0].steps == 200
    elsewhere = dataclasses.replace(config, world="gym:MountainCarContinuous-v0")
    with pytest.raises(SpecError, match="trained for another spec"):
        evaluate(str(policies), elsewhere)
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(data), "--sample", "100%"])
    assert stop.value.code == 0
