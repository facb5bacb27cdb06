"""Collections, evaluations and audits on a real Dask cluster, whose processes are killed."""

import collections
import contextlib
import dataclasses
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
from avtd3.collect.plan import UNIT, Amount, claim_segment, claimed_units, stop_key, units_of
from avtd3.collect.reports import Tally
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store import staging
from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.cluster import Stop
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, MissingPackageError
from avtd3.store.remote.client import RemotePlace, open_place
from avtd3.store.remote.log import LogReader
from avtd3.store.remote.transfer import transfer
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.remote import servers
from avtd3.tests.store.remote.datasets import make, sealed
from avtd3.tests.store.remote.servers import KEYS

WORLD = "avtd3.tests.collect.point_world:PacedWorld"
SCENARIO = ScenarioConfig(route_length_m=20.0, time_limit_s=5.0)
CONFIG = CollectConfig(world=WORLD, scenario=SCENARIO, driver="expert", min_free_mb=0)
LIMIT_S = 240.0


class LocalCluster:
    """A scheduler and workers in processes of their own, on the loopback interface."""

    def __init__(self, folder, **environment):
        self.file, self.workers, self.killed = folder / "scheduler.json", [], []
        self.env = (
            os.environ
            | environment
            | {
                "OMP_NUM_THREADS": "1",
                "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s",  # a stopped worker is soon lost
            }
        )
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


@pytest.fixture(scope="module")
def cloud_cluster(tmp_path_factory, moto):
    """A cluster whose workers have the credentials of a store."""
    folder = tmp_path_factory.mktemp("cluster")
    with contextlib.closing(LocalCluster(folder, **moto.environment)) as found:
        yield found


def published(url):
    """Return how many segments a URL has, or 0 without a dataset."""
    return len(sealed(open_place(url)))


def pulled(url, tmp_path, name="back"):
    """Return how often each episode is at a URL."""
    transfer(url, tmp_path / name)
    return episodes(tmp_path / name)


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


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_units_are_stopped_by_a_file_in_the_dataset(tmp_path, kind):
    place = str(tmp_path / "data") if kind == "local" else f"memory://{tmp_path.name}"
    stop = Stop(place, stop_key("p" * 64))
    assert not stop.is_set()
    stop.set()
    assert Stop(place, stop_key("p" * 64)).is_set()
    stop.clear()
    stop.clear()
    assert not stop.is_set()


def test_no_results_add_up_to_nothing():
    assert Tally.total([]) == Tally()


def test_the_learners_pace_is_refused(tmp_path):
    config = CollectConfig(world=WORLD, lead=CollectAheadConfig(max_lead=5))
    with pytest.raises(ConfigError, match=r"max_lead is 5, expected none with --scheduler"):
        collect(tmp_path / "data", config, scheduler="tcp://127.0.0.1:1")


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"\[cluster\]"):
        collect(tmp_path / "data", CONFIG, scheduler="tcp://127.0.0.1:1")


def killing(cluster, count):
    """Return what kills three workers, one by one as `count()` grows by two, and replaces them."""
    cluster.add_worker()
    cluster.add_worker()
    cluster.killed = []

    def kill(progress):
        if len(cluster.killed) < 3 and count() >= 2 * (len(cluster.killed) + 1):
            cluster.killed.append(cluster.workers[-1])
            cluster.workers[-1].kill()
            cluster.add_worker()

    return kill


def assert_as_of_one_process(path, tmp_path):
    """The episodes have the bytes of those that one process collects."""
    collect(tmp_path / "here", CONFIG, episodes=UNIT)
    ours = {e.seed: e.load().actions.tobytes() for e in Dataset.open(path).episodes()}
    for episode in Dataset.open(tmp_path / "here").episodes():
        assert ours[episode.seed] == episode.load().actions.tobytes()


@pytest.mark.slow
def test_workers_that_are_killed_lose_and_double_no_unit(tmp_path, cluster):
    data = tmp_path / "data"
    count, kill = 12 * UNIT, killing(cluster, lambda: len(segments(data)))
    report = collect(data, CONFIG, episodes=count, scheduler=cluster.address, on_progress=kill)
    assert len(cluster.killed) == 3
    assert report.missing == ""
    assert report.tally.episodes == count
    assert episodes(data) == once(count)
    assert report.workers >= 1

    assert_as_of_one_process(data, tmp_path)


@pytest.mark.slow
def test_workers_that_are_killed_lose_and_double_no_unit_at_a_url(tmp_path, cloud_cluster, bucket):
    """The workers share no directory: each one uploads what it has collected."""
    cluster, url = cloud_cluster, f"{bucket}/data"
    config = dataclasses.replace(CONFIG, spool=str(tmp_path / "spool"))
    count, kill = 12 * UNIT, killing(cluster, lambda: published(url))
    report = collect(url, config, episodes=count, scheduler=cluster.address, on_progress=kill)
    assert len(cluster.killed) == 3
    assert (report.missing, report.unsent, report.tally.episodes) == ("", "", count)
    assert pulled(url, tmp_path) == once(count)
    assert len(open_place(url).sizes("claims/")) == 12
    entries = LogReader(RemotePlace(url)).open()
    assert sorted(index for entry in entries for index in entry.indices) == list(range(count))
    assert not any((tmp_path / "spool" / "segments").iterdir())

    assert_as_of_one_process(tmp_path / "back", tmp_path)
    for key in KEYS:
        files = (p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
        assert not any(key.encode() in data for data in files)


@pytest.mark.slow
def test_a_client_that_is_killed_or_stopped_is_resumed_at_a_url(tmp_path, cloud_cluster, bucket):
    cluster, url = cloud_cluster, f"{bucket}/data"
    spool = ("--set", f"collect.spool={tmp_path / 'spool'}")
    cluster.add_worker()

    def start_and(end, *options):
        before = published(url)
        client = start_client(url, cluster, *options, *spool)
        wait_until(lambda: published(url) >= before + 2 or client.poll() is not None)
        client.send_signal(end)
        return client, *client.communicate(timeout=LIMIT_S)

    start_and(signal.SIGKILL, "--episodes", str(8 * UNIT))
    client, output, errors = start_and(signal.SIGINT, "--resume")
    # Units of the first client still run, so this one may be stopped before its first one.
    was_early = "stopped before a worker could open" in errors
    assert client.returncode == (3 if was_early else 0), errors
    assert "interrupted" in output or was_early
    # a machine that has no spool with the plan's settings finds its episodes at the URL
    config = dataclasses.replace(CONFIG, spool=str(tmp_path / "other"))
    report = collect(url, config, episodes=8 * UNIT, scheduler=cluster.address, resume=True)
    assert report.missing == ""
    assert report.held_steps > 0
    assert pulled(url, tmp_path) == once(8 * UNIT)


@pytest.mark.slow
def test_a_cut_link_of_the_workers_is_waited_for_and_shown(tmp_path, moto, bucket):
    """The command reaches the store, the workers do not."""
    with (
        servers.FaultProxy(moto) as proxy,
        contextlib.closing(
            LocalCluster(tmp_path, **moto.environment | {"AWS_ENDPOINT_URL": proxy.endpoint})
        ) as cluster,
    ):
        lines: list[str] = []

        def on_progress(progress):
            lines.append(progress.line())
            proxy.is_cut = published(f"{bucket}/data") >= 1 and not seen()

        def seen():
            return any("cannot be reached now" in line for line in lines)

        cluster.add_worker()
        config = dataclasses.replace(CONFIG, spool=str(tmp_path / "spool"))
        report = collect(
            f"{bucket}/data", config, episodes=3 * UNIT, scheduler=cluster.address,
            on_progress=on_progress,
        )  # fmt: skip
        assert seen()
        assert report.missing == ""
        assert pulled(f"{bucket}/data", tmp_path) == once(3 * UNIT)


@pytest.mark.slow
def test_policies_at_a_url_drive_on_a_cluster(tmp_path, cloud_cluster, bucket):
    spec = Dataset.open(collect_here(tmp_path / "here")).spec
    network = NetworkConfig(hidden=(8,), features=8)
    PolicyStore(tmp_path / "policies").publish(Actor(spec, network), spec, network, updates=7)
    transfer(tmp_path / "policies", f"{bucket}/policies")
    cluster = cloud_cluster
    cluster.add_worker()
    evaluation = EvaluateConfig(world=WORLD, scenario=SCENARIO, episodes=UNIT + 2)
    theirs = evaluate(f"{bucket}/policies", evaluation, scheduler=cluster.address)
    assert theirs.scores == evaluate(tmp_path / "policies", evaluation).scores
    assert theirs.driver == f"{bucket}/policies"

    config = dataclasses.replace(CONFIG, driver="policy", spool=str(tmp_path / "spool"))
    report = collect(
        f"{bucket}/data", config, episodes=UNIT, scheduler=cluster.address,
        policies=f"{bucket}/policies",
    )  # fmt: skip
    assert report.missing == ""
    assert LogReader(RemotePlace(f"{bucket}/data")).open()[0].policy_versions == (0, 0)


def collect_here(path):
    collect(path, CONFIG, episodes=1)
    return path


@pytest.mark.parametrize("action", [collect, evaluate])
def test_a_place_within_this_process_is_refused(action):
    with pytest.raises(ConfigError, match="memory://here is a place within one process"):
        action("memory://here", scheduler="tcp://127.0.0.1:1")


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


@pytest.mark.slow
def test_an_audit_of_a_url_survives_killed_workers_and_ends_on_ctrl_c(
    tmp_path, cloud_cluster, bucket
):
    data, cluster = make(tmp_path / "data", [(3,)] * 40), cloud_cluster
    transfer(data.path, bucket)
    done = [0]
    kill = killing(cluster, lambda: done[0] // 4)

    def on_progress(progress):
        done[0] = progress.segments_done
        kill(progress)

    config = AuditConfig(scheduler=cluster.address)
    found = audit([bucket], config, on_progress=on_progress).document()
    assert len(cluster.killed) == 3
    here = {**audit([data.path]).document(), "seconds": found["seconds"]}
    assert json.dumps(here).replace(str(data.path), bucket) == json.dumps(found)

    command = (sys.executable, "-m", "avtd3.cli", "replay-inspect", bucket, "--json")
    client = subprocess.Popen(
        [*command, "--scheduler", cluster.address, "--set", "audit.workers=1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    shown = next(line for line in client.stderr or () if "segments" in line)
    client.send_signal(signal.SIGINT)
    output, errors = client.communicate(timeout=LIMIT_S)
    assert "Traceback" not in shown + errors
    report = json.loads(output)
    assert (report["complete"], report["segments"] < 40) == (False, True)
