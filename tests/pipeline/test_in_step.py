"""A collector and a learner that wait for each other: one update per step."""

import collections
import concurrent.futures
import dataclasses
import json
import time
from typing import Any

import pytest

from avtd3.cli import main
from avtd3.collect.collector import CollectAheadConfig, CollectConfig, collect
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.learn.callbacks import ProgressCallback
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.trainer import train
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.replay.config import ReplayConfig
from avtd3.tests.pipeline.conftest import wait_until

pytest.importorskip("gymnasium")

TINY = LearnConfig(
    updates=400,
    learning_starts=100,
    publish_every=1_000,  # more than the lead: the learner publishes when it gets no steps
    checkpoint_every=400,
    refresh_seconds=0.01,
    network=NetworkConfig(hidden=(8,)),
)
PACED = CollectConfig(
    world="avtd3.tests.collect.line_world:Line",
    driver="policy",
    lead=CollectAheadConfig(random_steps=100, max_lead=50),
)


@pytest.mark.parametrize(
    "replay",
    [
        {"held_out": 0.1},
        {"filter": ("driver=policy*",)},  # without the random steps
        {"capacity": 120},
    ],
    ids=str,
)
def test_a_pair_ends_whatever_the_learner_may_sample(tmp_path, replay):
    data, policies, waits = tmp_path / "data", tmp_path / "policies", collections.deque[str]()
    deadline_s = time.monotonic() + 200.0  # far away: a pair that waits for ever must end, too

    def is_late() -> bool:
        return time.monotonic() > deadline_s

    config = dataclasses.replace(TINY, replay=ReplayConfig(batch_size=8, **replay))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        collected = pool.submit(
            collect, data, PACED, steps=500, policies=policies, should_stop=is_late
        )
        learned = train(
            config,
            datasets=data,
            run=tmp_path / "run",
            policies=policies,
            follow=True,
            callbacks=[ProgressCallback(lambda p: waits.append(p.line()), is_late)],
        )
        report = collected.result()
    assert not report.interrupted, waits[-1]
    assert (learned.updates, learned.stopped) == (400, False), waits[-1]


def test_more_learning_starts_than_capacity_are_refused_when_following(tmp_path):
    config = dataclasses.replace(TINY, replay=ReplayConfig(batch_size=8, capacity=99))
    with pytest.raises(ConfigError, match=r"learning_starts is 100, expected at most .* 99"):
        train(config, datasets=tmp_path / "data", run=tmp_path / "run", follow=True)
    assert not (tmp_path / "run").exists()


def test_a_filter_that_excludes_all_steps_is_named_while_waiting(tmp_path):
    data, waits = tmp_path / "data", collections.deque[str](["nothing"])
    collect(data, dataclasses.replace(PACED, driver="random"), steps=120)
    config = dataclasses.replace(TINY, replay=ReplayConfig(batch_size=8, filter=("end=goal",)))
    report = train(
        config,
        datasets=data,
        run=tmp_path / "run",
        follow=True,
        callbacks=[
            ProgressCallback(lambda p: waits.append(p.line()), lambda: "sample" in waits[-1])
        ],
    )
    assert report.stopped
    waiting = next(line for line in waits if "steps to sample" in line)
    assert (
        "120 steps are collected, but of 10 episodes, 10 are excluded by replay.filter" in waiting
    )


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
    assert (report.policy_version or 0) >= (STEPS - RANDOM) // EVERY
    assert report.scores[0].steps == 200
    elsewhere = dataclasses.replace(config, world="gym:MountainCarContinuous-v0")
    with pytest.raises(SpecError, match="trained for another spec"):
        evaluate(str(policies), elsewhere)
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(data), "--sample", "100%"])
    assert stop.value.code == 0
