"""`train` with datasets and policies at URLs."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from avtd3.learn.callbacks import ProgressCallback, TrainCallback
from avtd3.learn.config import LearnConfig
from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.ranks import Ranks
from avtd3.learn.replay_source import RunCopies
from avtd3.learn.trainer import train
from avtd3.store import ConfigError, Dataset, DatasetError, InUseError, ReplayConfig
from avtd3.store.remote import background
from avtd3.store.remote.client import open_place
from avtd3.store.remote.commit import read_if_any
from avtd3.store.remote.transfer import transfer
from avtd3.tests.store.remote.servers import KEYS

CONFIG = LearnConfig(
    updates=20,
    publish_every=10,
    checkpoint_every=10,
    learning_starts=10,
    updates_per_step=0.0,
    refresh_seconds=0.01,
    guards=GuardConfig(every=20, layers_every=20),
    network=NetworkConfig(hidden=(8, 8), features=8),
    replay=ReplayConfig(batch_size=4),
)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(background, "PERIOD_S", 0.02)


@pytest.fixture
def data(tmp_path, make_spec, publish_episodes):
    publish_episodes(tmp_path / "data", make_spec(vector=3))
    return tmp_path / "data"


class SecondRank(Ranks):
    """Rank 1, which notes what it waits for."""

    def __init__(self):
        super().__init__(1, 2)
        self.waits = []

    def meet(self):
        self.waits.append("as long as it takes")

    def share(self, document, *, source=0):
        self.waits.append("a short time")
        return True


def test_other_ranks_wait_as_long_as_it_takes_to_copy_the_datasets(bucket, tmp_path):
    ranks = SecondRank()
    copies = RunCopies(tmp_path, [Path(f"{bucket}/d")], tmp_path / "p", CONFIG, "")
    with copies.kept(ranks, follow=False, should_stop=bool, on_wait=print) as are_ready:
        assert are_ready
    assert ranks.waits == ["as long as it takes", "a short time"]


def test_a_run_learns_from_a_url_and_publishes_to_one(data, bucket, tmp_path):
    transfer(data, f"{bucket}/d")
    run = tmp_path / "run"
    report = train(CONFIG, datasets=f"{bucket}/d", run=run, policies=f"{bucket}/policies")
    assert (report.updates, report.policies, report.unsent) == (20, f"{bucket}/policies", "")
    transfer(f"{bucket}/policies", tmp_path / "back")
    policy = PolicyStore(tmp_path / "back").latest(None)
    assert policy is not None
    assert (policy.version, policy.updates) == (2, 20)
    settings = json.loads((run / "config.json").read_bytes())
    assert (settings["datasets"], settings["policies"]) == ([f"{bucket}/d"], f"{bucket}/policies")
    # What is sampled is the same as from the directory that the data came from.
    local = train(CONFIG, datasets=data, run=tmp_path / "local")
    newest = PolicyStore(local.policies).latest(None)
    assert newest is not None
    assert newest.digest == policy.digest
    for file in run.rglob("*"):
        assert not file.is_file() or not any(key.encode() in file.read_bytes() for key in KEYS)


class Until(TrainCallback):
    """Do something at the first wait, and stop at the end."""

    def __init__(self, on_wait):
        self.lines, self.on_wait = [], on_wait

    def on_progress(self, progress):
        self.lines.append(progress.line())
        self.on_wait(progress.line())


def test_a_learner_follows_a_url_through_a_cut_link(
    data, proxy, bucket, tmp_path, make_spec, publish_episodes
):
    """It waits for the dataset, learns, waits while the link is cut, and learns on."""
    steps: list[str] = []

    def act(line):
        if "waiting for a collector to create" in line and not steps:
            steps.append("created")
            transfer(data, bucket)
        elif "waiting for more steps" in line and len(steps) == 1:
            steps.append("cut")
            proxy.is_cut = True
        elif "cannot be reached now" in line and len(steps) == 2:
            steps.append("healed")
            proxy.is_cut = False
            publish_episodes(data, make_spec(vector=3))
            transfer(data, bucket)

    seen = Dataset.open(data).snapshot().steps
    config = dataclasses.replace(
        CONFIG, updates_per_step=1.0, learning_starts=5, updates=2 * seen - 5,
        publish_every=1000, checkpoint_every=1000,
    )  # fmt: skip
    report = train(
        config, datasets=bucket, run=tmp_path / "run", follow=True, callbacks=[Until(act)],
        policies=f"{bucket}/policies",
    )  # fmt: skip
    assert steps == ["created", "cut", "healed"]
    assert report.updates == config.updates
    assert not report.stopped
    assert "LATEST.json" in open_place(f"{bucket}/policies").sizes("")


@pytest.mark.slow
def test_a_resumed_run_counts_the_steps_that_its_mirror_lacks(
    data, tmp_path, make_spec, publish_episodes
):
    pytest.importorskip("obstore")
    for _ in range(3):
        publish_episodes(data, make_spec(vector=3))
    url = f"memory://{tmp_path.name}"
    transfer(data, url)
    total = Dataset.open(data).snapshot().steps
    config = dataclasses.replace(
        CONFIG, replay=ReplayConfig(batch_size=4, capacity=total // 2),
        updates_per_step=1.0, learning_starts=total // 2, updates=total // 2,
        publish_every=1000, checkpoint_every=1000,
    )  # fmt: skip
    stop = threading.Event()
    threading.Timer(240.0, stop.set).start()
    report = train(
        config, datasets=url, run=tmp_path / "run", follow=True,
        callbacks=[ProgressCallback(should_stop=stop.is_set)],
    )  # fmt: skip
    assert report.steps < total, "the mirror has the newest steps only"
    assert report.updates == total // 2, "all steps at the URL allow updates"


def test_versions_continue_after_an_earlier_run_and_two_learners_are_refused(
    data, bucket, tmp_path
):
    policies = f"{bucket}/policies"
    train(CONFIG, datasets=data, run=tmp_path / "one", policies=policies)
    report = train(CONFIG, datasets=data, run=tmp_path / "two", policies=policies)
    assert report.policy_version == 4
    first, second = (
        json.loads((tmp_path / name / "config.json").read_bytes())["run_id"]
        for name in ("one", "two")
    )
    assert first != second
    assert json.loads(open_place(policies).read("policy-00000002.json"))["run"] == first
    more = dataclasses.replace(CONFIG, updates=30)
    train(more, datasets=data, run=tmp_path / "two", policies=policies, resume=True)
    assert json.loads(open_place(policies).read("policy-00000005.json"))["run"] == second

    class Intruder(TrainCallback):
        def on_publish(self, path):
            if path.name.startswith("policy-00000006"):
                open_place(policies).write("policy-00000007.safetensors", b"of another learner")

    with pytest.raises(InUseError, match="another learner"):
        train(
            CONFIG, datasets=data, run=tmp_path / "three", policies=policies,
            callbacks=[Intruder()],
        )  # fmt: skip


def test_a_learner_ends_when_another_run_publishes_newer_policies(data, bucket, tmp_path):
    policies = f"{bucket}/policies"

    class Intruder(TrainCallback):
        def on_publish(self, path):
            if path.name.startswith("policy-00000000"):
                other = {"version": 7, "file": "policy-00000007.safetensors", "run": "0ther"}
                open_place(policies).write("LATEST.json", json.dumps(other).encode())

    with pytest.raises(InUseError, match="another learner, run 0ther, which published there"):
        train(
            CONFIG, datasets=data, run=tmp_path / "run", policies=policies,
            callbacks=[Intruder()],
        )  # fmt: skip


@pytest.mark.slow
def test_the_status_shows_that_two_learners_publish_in_one_place(data, bucket, tmp_path, avtd3):
    policies = f"{bucket}/policies"
    place = open_place(policies)
    sets = {"learning_starts": 10, "network.hidden": "[8,8]", "network.features": 8}
    sets |= {"replay.batch_size": 4, "checkpoint_every": 100, "publish_every": 100}

    def words(run, updates):
        pairs = (f"learn.{name}={value}" for name, value in (sets | {"updates": updates}).items())
        options = [word for pair in pairs for word in ("--set", pair)]
        return ["learn", data, "--run", tmp_path / run, "--policies", policies, *options]

    command = [sys.executable, "-m", "avtd3.cli", *map(str, words("one", 10**9))]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while read_if_any(place, "LATEST.json") is None:
            assert first.poll() is None
            time.sleep(0.05)
        code, _, errors = avtd3(*words("two", 200))
        if loses := code == 2:  # which of them sees the other one first is a race
            first.send_signal(signal.SIGINT)
        errors += first.communicate(timeout=240.0)[1]
    finally:
        first.kill()
    says = f"{policies} is in use by another learner"
    assert (code, first.returncode, says in errors) == ((2, 0) if loses else (0, 2)) + (True,)
    _, out, _ = avtd3("status", policies, "--json")
    alerts = {each["name"]: str(each["alerts"]) for each in json.loads(out)["processes"]}
    assert says in alerts["two" if loses else "one"]
    assert alerts["one" if loses else "two"] == "[]"
    assert says in " ".join(avtd3("status", policies, "--once")[1].split())


@pytest.mark.slow
def test_a_stop_while_the_link_is_cut_says_what_is_unsent(data, proxy, bucket, tmp_path):
    transfer(data, bucket)
    stopping = []

    def act(line):
        if "cannot be reached now" in line:
            stopping.append(line)

    class Callback(Until):
        def on_update(self, updates):
            proxy.is_cut = updates >= 10

        def should_stop(self):
            return bool(stopping)

    report = train(
        CONFIG, datasets=bucket, run=tmp_path / "run", policies=f"{bucket}/policies",
        callbacks=[Callback(act)],
    )  # fmt: skip
    assert report.updates == 20
    assert f"avtd3 push {tmp_path / 'run' / 'policies'} {bucket}/policies" in report.unsent
    assert report.unsent in report.summary()
    proxy.is_cut = False
    assert transfer(tmp_path / "run" / "policies", f"{bucket}/policies").copied


def test_errors_come_at_the_start(data, bucket, tmp_path):
    with pytest.raises(DatasetError, match="there is no dataset at s3://"):
        train(CONFIG, datasets=f"{bucket}/missing", run=tmp_path / "run")
    with pytest.raises(ConfigError, match="no bucket"):
        train(CONFIG, datasets=data, run=tmp_path / "run2", policies="s3://no-bucket-here/p")
    transfer(data, bucket)
    small = LearnConfig(mirror_bytes=10)
    with pytest.raises(ConfigError, match="mirror_bytes is 10, expected at least"):
        train(small, datasets=bucket, run=tmp_path / "run3")
    with pytest.raises(ConfigError, match="is a URL, expected a path of this machine"):
        train(CONFIG, datasets=data, run=f"{bucket}/run")
