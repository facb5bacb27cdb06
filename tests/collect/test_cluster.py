"""Collections, evaluations and audits on a real Dask cluster, whose processes are killed."""

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from avtd3.collect.collector import CollectAheadConfig, CollectConfig, collect
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.plan import UNIT, Amount, claim_segment, claimed_units, units_of
from avtd3.store import staging
from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, MissingPackageError
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter

WORLD = "avtd3.tests.collect.point_world:PacedWorld"
SCENARIO = ScenarioConfig(route_length_m=20.0, time_limit_s=5.0)
CONFIG = CollectConfig(world=WORLD, scenario=SCENARIO, driver="expert", min_free_mb=0)
LIMIT_S = 240.0


class LocalCluster:
    """A scheduler and workers in processes of their own, on the loopback interface."""

    def __init__(self, folder):
        self.file, self.workers = folder / "scheduler.json", []
        self.env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s",  # a stopped worker is soon lost
        }
        words = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", self.file)
        self.scheduler = self.start("dask_scheduler", "--no-dashboard", *words)
        wait_until(lambda: self.file.exists() and self.file.read_text())
        self.address = json.loads(self.file.read_text())["address"]

    def start(self, program, *words):
        command = [sys.executable, "-m", f"distributed.cli.{program}", *map(str, words)]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, env=self.env, stdout=quiet, stderr=quiet)

    def add_worker(self):
        words = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--resources", "collector=1")
        self.workers.append(self.start("dask_worker", self.address, *words))
        return self.workers[-1]

    def close(self):
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def wait_until(condition):
    give_up_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = LocalCluster(tmp_path_factory.mktemp("cluster"))
    yield found
    found.close()


def episodes(path):
    """Return how often each episode is in a dataset; every segment is whole."""
    found: collections.Counter[int] = collections.Counter()
    for segment in Dataset.open(path).snapshot().segments:
        segment.verify()
        found.update(segment.episode_table().index.tolist())
    return found


def segments(path):
    return sorted((path / "segments").iterdir()) if (path / "segments").exists() else []


def once(count):
    return dict.fromkeys(range(count), 1)


def start_client(path, cluster, *options):
    """Start ``avtd3 collect`` on a cluster."""
    sets = {"scenario.route_length_m": 20, "scenario.time_limit_s": 5, "min_free_mb": 0}
    words = [w for name, value in sets.items() for w in ("--set", f"collect.{name}={value}")]
    command = (sys.executable, "-m", "avtd3.cli", "collect", path, "--scheduler", cluster.address)
    return subprocess.Popen(
        [*map(str, command), "--world", WORLD, *words, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_unit_is_published_once(tmp_path, publish):
    first, second = publish(unit=3), publish(unit=3)
    assert first is not None
    assert second is None
    assert publish(unit=4) is not None
    assert len(segments(tmp_path / "data")) == 2
    assert claimed_units(tmp_path / "data", "p" * 64) == {3, 4}


def test_a_claimed_segment_whose_process_died_is_published_by_the_next(tmp_path, publish):
    with pytest.raises(KeyboardInterrupt):
        publish(unit=0, dies=True)
    assert segments(tmp_path / "data") == []
    assert publish(unit=0) is None  # another attempt
    assert len(segments(tmp_path / "data")) == 1
    with pytest.raises(KeyboardInterrupt):
        publish(unit=1, dies=True)
    claimed_units(tmp_path / "data", "p" * 64)  # a client that resumes
    assert len(segments(tmp_path / "data")) == 2


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publish an episode as a unit of a plan; a process that dies leaves its staging directory."""
    spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
    dataset = Dataset.create(tmp_path / "data", spec)

    def make(*, unit, dies=False):
        def claim(manifest):
            is_ours = claim_segment(dataset.path, "p" * 64, unit, manifest)
            if dies:
                raise KeyboardInterrupt
            return is_ours

        with monkeypatch.context() as patch:
            if dies:
                patch.setattr(staging, "_delete_staged", lambda _: None)
            writer = SegmentWriter(dataset, claim=claim)
            seen = Observation(vector=np.zeros(1, np.float32))
            writer.begin(seen, seed=unit)
            writer.step(np.zeros(1, np.float32), 1.0, seen, terminated=True)
            return writer.close()

    return make


def test_units_depend_on_the_episodes_alone():
    amount = Amount(episodes=2 * UNIT + 1)
    every = [(n, tuple(range(n * UNIT, min((n + 1) * UNIT, 2 * UNIT + 1)))) for n in range(3)]
    assert list(units_of(amount, held=(), claimed=())) == every
    assert list(units_of(amount, held=range(UNIT), claimed={0})) == every[1:]
    # what a unit skipped is a unit with a number of its own
    [*_, (number, missing)] = units_of(amount, held=range(2 * UNIT), claimed={0, 1, 2})
    assert number > 2
    assert missing == (2 * UNIT,)


def test_the_learners_pace_is_refused(tmp_path):
    config = CollectConfig(world=WORLD, lead=CollectAheadConfig(max_lead=5))
    with pytest.raises(ConfigError, match=r"max_lead is 5, expected none with --scheduler"):
        collect(tmp_path / "data", config, scheduler="tcp://127.0.0.1:1")


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"\[cluster\]"):
        collect(tmp_path / "data", CONFIG, scheduler="tcp://127.0.0.1:1")


@pytest.mark.slow
def test_workers_that_are_killed_lose_and_double_no_unit(tmp_path, cluster):
    data = tmp_path / "data"
    killed: list[object] = []
    cluster.add_worker()
    victim = cluster.add_worker()
    count = 12 * UNIT

    def on_progress(progress):
        nonlocal victim
        if len(segments(data)) >= 2 * (len(killed) + 1) and len(killed) < 3:
            victim.kill()
            killed.append(victim)
            victim = cluster.add_worker()

    report = collect(
        data, CONFIG, episodes=count, scheduler=cluster.address, on_progress=on_progress
    )
    assert len(killed) == 3
    assert report.missing == ""
    assert report.tally.episodes == count
    assert episodes(data) == once(count)
    assert report.workers >= 1

    # the episodes have the bytes of those that one process collects
    here = tmp_path / "here"
    collect(here, CONFIG, episodes=UNIT)
    first = Dataset.open(data).episodes()
    ours = {episode.seed: episode.load().actions.tobytes() for episode in first}
    for episode in Dataset.open(here).episodes():
        assert ours[episode.seed] == episode.load().actions.tobytes()


@pytest.mark.slow
def test_a_stopped_worker_that_continues_doubles_nothing(tmp_path, cluster):
    data = tmp_path / "data"
    stopped: list[int] = []
    cluster.add_worker()
    victim = cluster.add_worker()

    def on_progress(progress):
        if segments(data) and not stopped:
            victim.send_signal(signal.SIGSTOP)
            stopped.append(len(segments(data)))

    count = 6 * UNIT
    collect(data, CONFIG, episodes=count, scheduler=cluster.address, on_progress=on_progress)
    assert stopped
    assert episodes(data) == once(count)
    before = segments(data)
    victim.send_signal(signal.SIGCONT)  # it ends its unit, or its task is gone
    wait_until(lambda: victim.poll() is not None or not list((data / ".staging").glob("*/")))
    assert segments(data) == before


@pytest.mark.slow
def test_a_client_that_is_killed_is_resumed_while_its_units_still_run(tmp_path, cluster):
    data = tmp_path / "data"
    cluster.add_worker()
    client = start_client(data, cluster, "--episodes", str(6 * UNIT))
    wait_until(lambda: len(segments(data)) >= 2 or client.poll() is not None)
    client.kill()
    client.communicate()
    resumed = start_client(data, cluster, "--resume", "--json")
    output, errors = resumed.communicate(timeout=LIMIT_S)
    assert resumed.returncode == 0, errors
    assert json.loads(output)["missing"] == ""
    assert episodes(data) == once(6 * UNIT)


@pytest.mark.slow
def test_the_end_of_the_scheduler_ends_the_command(tmp_path):
    with contextlib.closing(LocalCluster(tmp_path)) as cluster:
        data = tmp_path / "data"
        cluster.add_worker()
        client = start_client(data, cluster, "--episodes", str(5 * UNIT))
        wait_until(lambda: segments(data) or client.poll() is not None)
        cluster.scheduler.kill()
        _, errors = client.communicate(timeout=LIMIT_S)
        assert client.returncode == 3, errors
        assert "is gone; start it again, then continue with --resume" in errors
        assert max(episodes(data).values()) == 1


@pytest.mark.slow
def test_ctrl_c_stops_the_units_and_a_resume_completes_them(tmp_path, cluster):
    data = tmp_path / "data"
    cluster.add_worker()
    client = start_client(data, cluster, "--episodes", str(5 * UNIT))
    wait_until(lambda: len(segments(data)) >= 1 or client.poll() is not None)
    client.send_signal(signal.SIGINT)
    output, errors = client.communicate(timeout=LIMIT_S)
    assert client.returncode == 0, errors
    assert "interrupted" in output
    report = collect(data, CONFIG, episodes=5 * UNIT, scheduler=cluster.address, resume=True)
    assert report.missing == ""
    assert episodes(data) == once(5 * UNIT)


@pytest.mark.slow
def test_steps_and_seconds_end_a_collection(tmp_path, cluster):
    cluster.add_worker()
    report = collect(tmp_path / "steps", CONFIG, steps=300, scheduler=cluster.address)
    assert report.tally.steps >= 300
    collect(tmp_path / "time", CONFIG, seconds=2.0, scheduler=cluster.address)
    assert max(episodes(tmp_path / "time").values()) == 1


@pytest.mark.slow
def test_evaluations_and_audits_equal_those_of_one_process(tmp_path, cluster):
    cluster.add_worker()
    config = EvaluateConfig(world=WORLD, scenario=SCENARIO, episodes=UNIT + 2)
    ours, theirs = evaluate("expert", config, scheduler=cluster.address), evaluate("expert", config)
    assert ours.scores == theirs.scores
    collect(tmp_path / "data", CONFIG, episodes=3, scheduler=cluster.address)
    reports = [
        audit([tmp_path / "data"], AuditConfig(scheduler=scheduler))
        for scheduler in (cluster.address, "sync")
    ]
    documents = [{**report.document(), "seconds": 0} for report in reports]
    assert documents[0] == documents[1]
    assert reports[0].total.episodes == 3
    assert reports[0].log.count("error") == 0
