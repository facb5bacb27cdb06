"""A collector and a learner on hosts of their own, a bucket on a third, and links that are cut.

All they share is the bucket. What is looked at meanwhile are the files on each host, so that
looking needs no link; the heartbeats are read on a fourth host.
"""

import contextlib
import hashlib
import json
import random
import re
import signal
import subprocess
import threading
from typing import Any

import numpy as np
import pytest

from avtd3.collect import CollectConfig, collect
from avtd3.store import Dataset, EpisodeSpec, Observation, SegmentWriter
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.tests.pipeline.conftest import ENVIRONMENT, command, wait_until
from avtd3.tests.pipeline.hosts import ADDRESS, CUTS

pytest.importorskip("obstore")
DATA, POLICIES = "s3://fleet/data", "s3://fleet/policies"
WORLD = "avtd3.tests.collect.line_world"
DRIVERS = "0.5:policy,0.5:random"
SEGMENT_STEPS = 24
LEARN = (
    "--set=learn.replay.batch_size=8",
    "--set=learn.network.features=8",
    "--set=learn.network.hidden=[8]",
    "--set=learn.learning_starts=20",
    "--set=learn.updates_per_step=4",
    "--set=learn.publish_every=20",
    "--set=learn.checkpoint_every=60",
    "--set=learn.refresh_seconds=0.2",
)
STATES = re.compile(
    r"(collector|learner) \S+ on .*?\b(running|late|dead|ended|unknown)\b", re.DOTALL
)


class Fleet:
    """The commands of a test on their hosts, and what each host can see of its own."""

    def __init__(self, hosts, start, environment, folder):
        self.hosts, self._start, self._folder = hosts, start, folder
        self._environment = ENVIRONMENT | environment | {"HOME": str(folder)}
        self.clocks_s: dict[str, float] = {}
        """By how many seconds the clock of a host is wrong."""
        self.written: dict[str, bytes] = {}
        """Manifests that the collector was seen to write, by segment."""
        self.reports: list[dict[str, Any]] = []
        """What the collectors said at their ends."""

    def start(self, host, *words):
        before, clock_s = self.hosts.words(host), self.clocks_s.get(host, 0.0)
        return self._start(*words, before=before, env=self._environment, clock_s=clock_s)

    def collector(self, *words, driver=DRIVERS):
        return self.start(
            "collector", "collect", DATA, "--driver", driver, "--seed", 3, "--json", *words,
            "--world", f"{WORLD}:Paced", "--set=collect.min_free_mb=0",
            f"--set=collect.spool={self._folder / 'spool'}", "--set=collect.spool_bytes=500000",
            f"--set=collect.writer.segment_steps={SEGMENT_STEPS}",
        )  # fmt: skip

    def learner(self, *words):
        return self.start(
            "learner", "learn", DATA, "--run", self._folder / "run", "--policies", POLICIES,
            "--follow", "--updates", 1_000_000, *LEARN, *words,
        )  # fmt: skip

    def watch(self, *words):
        """Run a command on the fourth host to its end; return its exit code and its output."""
        whole = [*self.hosts.words("watcher"), *command(*words)]
        done = subprocess.run(
            whole, capture_output=True, text=True, check=False, env=self._environment
        )
        return done.returncode, done.stdout + done.stderr

    def ended(self, collector):
        """Remember the report of a collector that has ended, and return it."""
        self.reports.append(json.loads(collector.out.read_text()))
        return self.reports[-1]

    def spooled(self):
        """Return the segments that wait to be uploaded."""
        found = sorted(self._folder.glob("spool/segments/*/MANIFEST.json"))
        for path in found:
            with contextlib.suppress(FileNotFoundError):  # uploaded meanwhile
                self.written[path.parent.name] = path.read_bytes()
        return {path.parent.name for path in found}

    def mirrored(self):
        """Return the segments that have come to the learner, by directory."""
        return {path.parent for path in self._folder.glob("run/mirror/*/segments/*/MANIFEST.json")}

    def driven(self):
        """Return the newest policy that has driven in what has come to the learner."""
        mirrors = {path.parent.parent for path in self.mirrored()}
        tables = [Dataset.open(path).episode_table() for path in mirrors]
        return max((v for table in tables for v in table.policy_version.tolist()), default=-1)

    def published(self):
        """Return the newest policy that the learner has written on its own host."""
        latest = self._folder / "run" / "policies" / "LATEST.json"
        return json.loads(latest.read_text())["version"] if latest.exists() else -1

    def are_all(self, state):
        """Return whether collector and learner have a state on the page of the fourth host."""
        page = self._folder / "status.html"
        found = set(STATES.findall(page.read_text())) if page.exists() else set()
        return found == {("collector", state), ("learner", state)}

    @contextlib.contextmanager
    def cut(self, names, kind):
        for name in names:
            self.hosts.cut(name, kind)
        try:
            yield
        finally:
            for name in names:
                self.hosts.heal(name, kind)

    def check(self, driver=DRIVERS):
        """Check that the bucket has each episode of the plan once, as the collector made it."""
        code, output = self.watch("pull", DATA, self._folder / "data")
        assert code == 0, output
        dataset = Dataset.open(self._folder / "data")
        episodes = {episode.index: episode for episode in dataset.episodes()}
        count = sum(report["episodes"] for report in self.reports)
        assert sorted(dataset.episode_table().index.tolist()) == list(range(count))
        names = dataset.segment_ids()
        assert len(names) == sum(report["segments"] for report in self.reports)
        paths = {name: dataset.segments_path / name / MANIFEST_FILE for name in names}
        pulled = {name: path.read_bytes() for name, path in paths.items()}
        assert self.written.items() <= pulled.items(), "a segment was lost or altered"
        assert self.spooled() == set()
        # What no policy drove depends on the plan alone, so it can be collected again.
        config = CollectConfig(world=f"{WORLD}:Line", driver=driver, seed=3, min_free_mb=0)
        policies = None if driver == "random" else self._folder / "run" / "policies"
        collect(self._folder / "again", config, episodes=count, policies=policies)
        random_ones = 0
        for again in Dataset.open(self._folder / "again").episodes():
            found = episodes[again.index]
            assert (found.policy_version < 0) == (again.policy_version < 0)
            if again.policy_version < 0:
                random_ones += 1
                # Ctrl-C ends an episode early.
                np.testing.assert_array_equal(found.actions, again.actions[: found.length])
                np.testing.assert_array_equal(found.rewards, again.rewards[: found.length])
        assert random_ones > 0
        return dataset

    def check_policies(self, dataset):
        """Check that each policy that drove is one that the learner published into the bucket."""
        code, output = self.watch("pull", POLICIES, self._folder / "policies")
        assert code == 0, output
        files = sorted(self._folder.glob("policies/policy-*.safetensors"))
        assert {f.name for f in files} == {
            f.name for f in self._folder.glob("run/policies/policy-*.safetensors")
        }
        digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        table = dataset.episode_table()
        drove = {
            digest
            for version, digest in zip(table.policy_version, table.policy_digest, strict=True)
            if version >= 0
        }
        assert len(drove) > 1
        assert drove <= digests


@contextlib.contextmanager
def fleet_of(hosts, engine, start, tmp_path):
    with hosts.server(engine, tmp_path, "fleet") as environment:
        yield Fleet(hosts, start, environment, tmp_path)


def check_logs(*commands):
    for each in commands:
        assert "Traceback" not in each.log.read_text()


def test_a_collector_loses_nothing_while_its_link_is_cut(hosts, start, tmp_path):
    """It collects on, can be stopped and started again, and uploads when the link is back."""
    with fleet_of(hosts, "moto", start, tmp_path) as fleet:
        collector = fleet.collector("--steps", 10**9, driver="random")
        alive = {"running": (collector,)}
        wait_until(lambda: fleet.written.keys() - fleet.spooled(), "an upload", **alive)
        with fleet.cut(["collector"], "silent"):
            known = set(fleet.written)
            wait_until(lambda: len(fleet.spooled() - known) >= 2, "new segments", **alive)
            waiting = fleet.spooled()
        wait_until(lambda: not fleet.spooled() & waiting, "their upload", **alive)

        with fleet.cut(["collector"], "unplugged"):
            known = set(fleet.written)
            wait_until(lambda: fleet.spooled() - known, "another segment", **alive)
            assert collector.stop(signal.SIGINT) == 0, collector.log.read_text()
            report = fleet.ended(collector)
            assert f"not uploaded to {DATA}" in report["unsent"]
            assert f"avtd3 push {tmp_path / 'spool'} {DATA}" in report["unsent"]
            assert fleet.spooled()
            again = ("--resume", "--episodes", report["episodes"] + 2)
            refused = fleet.collector(*again, driver="random")
            assert refused.process.wait() == 3
            last = refused.log.read_text().splitlines()[-1]
            assert re.search(rf"cannot be reached now at http://{ADDRESS}:\d+: ", last)

        resumed = fleet.collector(*again, driver="random")
        assert resumed.process.wait() == 0, resumed.log.read_text()
        assert fleet.ended(resumed)["unsent"] == ""
        fleet.check(driver="random")
        check_logs(collector)


def cut_and_heal(fleet, names, kind, pause_s, running):
    """Cut links while all run; check that everyone continues, then and after healing."""
    known = fleet.mirrored()
    wait_until(lambda: fleet.mirrored() - known, "new data at the learner", running=running)
    version = fleet.published()
    threading.Event().wait(pause_s)
    with fleet.cut(names, kind):
        if "collector" in names:
            known = fleet.spooled()
            wait_until(lambda: fleet.spooled() - known, "collecting on", running=running)
        else:
            wait_until(lambda: fleet.published() > version, "learning on", running=running)
    version = fleet.published()
    wait_until(lambda: fleet.driven() > version, "a newer policy that drives", running=running)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "seed", "skew_s"), [("moto", 1, -600.0), ("weed", 2, 600.0)])
def test_a_fleet_survives_links_that_are_cut_again_and_again(
    hosts, start, tmp_path, engine, seed, skew_s
):
    """Clocks may differ by 15 minutes, with all other delays of an entry in the log."""
    rng = random.Random(seed)
    sides = (["collector"], ["learner"], ["collector", "learner"])
    rounds = [(names, kind) for names in sides for kind in CUTS]
    rng.shuffle(rounds)
    with fleet_of(hosts, engine, start, tmp_path) as fleet:
        plan = ("--policies", POLICIES, "--steps", 10**9, "--set=collect.lead.max_unseen=500")
        fleet.clocks_s["collector"] = skew_s
        collector, learner = fleet.collector(*plan), fleet.learner()
        page = ("--watch", "--interval", 0.5, "--html", tmp_path / "status.html")
        wait_until(
            lambda: fleet.driven() >= 1, "a policy that drives", running=(collector, learner)
        )
        watcher = fleet.start("watcher", "status", DATA, POLICIES, *page)
        running = collector, learner, watcher
        for names, kind in rounds:
            cut_and_heal(fleet, names, kind, rng.uniform(0.0, 1.0), running)

        wait_until(lambda: fleet.are_all("running"), "heartbeats", running=running)
        # Long enough for both to be late and dead; then they are there again.
        with fleet.cut(["collector", "learner"], "silent"):
            for state in ("late", "dead"):
                wait_until(lambda state=state: fleet.are_all(state), state, running=running)
        wait_until(lambda: fleet.are_all("running"), "heartbeats", running=running)

        # Both end while the links are cut, say what is not at the bucket, and continue later.
        known = fleet.mirrored()
        wait_until(lambda: fleet.mirrored() - known, "new data at the learner", running=running)
        with fleet.cut(["collector", "learner"], rng.choice(list(CUTS))):
            known = fleet.spooled()
            wait_until(lambda: fleet.spooled() - known, "collecting on", running=running)
            assert collector.stop(signal.SIGINT) == 0, collector.log.read_text()
            assert learner.stop(signal.SIGINT) == 0, learner.log.read_text()
            assert f"not uploaded to {DATA}" in fleet.ended(collector)["unsent"]
        collector, learner = fleet.collector(*plan, "--resume"), fleet.learner("--resume")
        running = collector, learner, watcher
        version = fleet.published()
        wait_until(lambda: fleet.driven() > version, "a newer policy that drives", running=running)

        assert collector.stop(signal.SIGINT) == 0, collector.log.read_text()
        assert learner.stop(signal.SIGINT) == 0, learner.log.read_text()
        assert watcher.stop(signal.SIGINT) == 0, watcher.log.read_text()
        assert fleet.ended(collector)["unsent"] == ""
        fleet.check_policies(fleet.check())
        check_logs(*running)


@pytest.mark.slow
def test_a_segment_arrives_over_a_link_on_which_it_takes_longer_than_an_answer_may(
    hosts, start, tmp_path
):
    """400 kbit/s need 20 s for 1 MB; an answer may take 10 s."""
    spec = EpisodeSpec(vector_names=tuple(f"v{i}" for i in range(64)), action_names=("push",))
    vectors = np.random.default_rng(0).normal(size=(4_001, 64)).astype(np.float32)
    with SegmentWriter(Dataset.create(tmp_path / "noise", spec)) as writer:
        writer.begin(Observation(vector=vectors[0]))
        for vector in vectors[1:]:
            writer.step(np.zeros(1, np.float32), 0.0, Observation(vector=vector))
        writer.truncate("time_limit")
    with fleet_of(hosts, "moto", start, tmp_path) as fleet:
        try:
            hosts.shell(
                "collector", "tc qdisc add dev eth0 root tbf rate 400kbit burst 16k latency 1s"
            )
        except OSError as error:
            pytest.skip(f"needs tc of iproute2, with tbf: {error}")
        pushed = fleet.start("collector", "push", tmp_path / "noise", DATA)
        assert pushed.process.wait() == 0, pushed.log.read_text()
        code, output = fleet.watch("pull", DATA, tmp_path / "back")
        assert code == 0, output
        (episode,) = Dataset.open(tmp_path / "back").episodes()
        np.testing.assert_array_equal(episode.vectors, vectors)
