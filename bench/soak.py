"""Run collectors, a learner, a reader and maintenance together while files fail and processes die.

    python bench/soak.py --minutes 15 [--seed 0] [--kill-every S] [--out report.md] [--work DIR]

Two collectors (one with two workers) write into one dataset, a learner follows it and publishes
policies for them, and compact, prune, pin and audit run in turn. Finished segments are copied into
a second dataset in halves and in random order, as a bad copy tool does; a reader follows it. Calls
on files fail at random (`tests/faults/flaky_io.c`), and processes are killed with SIGKILL and
started again. At the end everything must be there exactly once.

A ledger keeps a hard link to each segment that is ever published, so that nothing can hide what is
lost. Exits with 1 if there is a problem. All processes run with the lowest priority but one.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.dataset import Dataset
from avtd3.store.replaced import ORIGIN, episode_digests
from avtd3.tests.faults.native_flaky import READING, NativeFlaky

TICK_S = 0.25
SAMPLE_S = 2.0
ORPHAN_S = 120.0
"""Seconds in which the processes of a killed command must have ended."""
STOP_S = 300.0
"""Seconds in which a command must end after SIGTERM."""
NICENESS = 15
RATES = (0.0, 0.02, 0.1, 0.3)
"""Shares of the calls that fail; each process gets one. Reading tries a call five times."""
SELDOM = (0.0, 0.02, 0.05, 0.1)
"""The same for commands that would rarely get to work otherwise."""
PAUSE_S = 2.0
"""Seconds between the end of a command and its next start."""
WORLD = (
    "--set=collect.scenario.networks=2",
    "--set=collect.scenario.route_length_m=60",
    "--set=collect.scenario.npcs=2",
    "--set=collect.scenario.time_limit_s=10",
)
LEARNER = (
    "--set=learn.replay.batch_size=8",
    "--set=learn.network.features=32",
    "--set=learn.network.hidden=[32]",
    "--set=learn.learning_starts=200",
    "--set=learn.updates_per_step=0.1",
    "--set=learn.publish_every=20",
    "--set=learn.checkpoint_every=20",
    "--set=learn.refresh_seconds=0.5",
    "--set=learn.threads=1",
)
ENDLESS = 1_000_000_000
PRUNED_DRIVER = "random"
"""Only segments of this driver are pruned; no other episode may ever disappear."""


# --- processes -------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Lifetime:
    """One process, from its start to its end."""

    number: int
    started_s: float
    ended_s: float = 0.0
    ending: str = ""
    """``SIGKILL``, ``SIGTERM`` or ``own``: why it ended."""
    code: int | None = None
    samples: list[tuple[float, float, int]] = dataclasses.field(default_factory=list)
    """Seconds since its start, MB of its own memory, open files; its children included.

    Pages of mapped files, such as those of a replay cache, are not its own.
    """

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.ended_s - self.started_s


class Role:
    """A command that is started again whenever it ends."""

    def __init__(
        self,
        name: str,
        words: Callable[[], Sequence[str]],
        soak: "Soak",
        *,
        codes: Sequence[int],
        kill_after_s: float,
        rates: Sequence[float] = RATES,
    ) -> None:
        self.name, self.codes, self.lifetimes = name, tuple(codes), list[Lifetime]()
        self._words, self._soak, self._mean_s = words, soak, kill_after_s
        self._rates, self._kill_s, self._next_s = rates, float("inf"), 0.0
        self._group: subprocess.Popen[bytes] | None = None
        self._orphans: list[tuple[int, float]] = []
        self.log = soak.work / "logs" / f"{name.replace(' ', '-')}.log"

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self._group is not None and self._group.poll() is None

    @property
    def is_due(self) -> bool:
        """Whether it is time to start it again."""
        return not self.is_running and time.monotonic() >= self._next_s

    def start(self, *, may_die: bool = True, rate: float | None = None) -> None:
        """Start the command, with its own share of failing calls and its own time to die."""
        soak, now = self._soak, time.monotonic()
        words = list(self._words())
        self.lifetimes.append(Lifetime(number=len(self.lifetimes), started_s=now))
        with self.log.open("ab") as log:
            log.write(f"\n=== {self.lifetimes[-1].number}: {' '.join(words)}\n".encode())
            log.flush()
            self._group = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=soak.environment(self._rate() if rate is None else rate),
                start_new_session=True,
                preexec_fn=lambda: os.nice(NICENESS),
            )
        self._kill_s = self._later() if may_die else float("inf")

    def _later(self) -> float:
        """Draw the time of the next kill."""
        wait_s = self._soak.random.expovariate(1.0) * self._mean_s
        return time.monotonic() + max(wait_s, 1.0)

    def _rate(self) -> float:
        return self._soak.random.choice(self._rates)

    def tick(self) -> bool:
        """Sample, kill if it is time to; return whether the process ended since the last call."""
        self._bury_orphans()
        if self._group is None:
            return False
        if self._group.poll() is not None:
            self._end("own" if self._group.returncode >= 0 else "SIGKILL")
            return True
        if time.monotonic() >= self._kill_s:
            self.kill()
            return True
        return False

    def kill(self) -> None:
        """Kill the command, or one of its workers, at once."""
        assert self._group is not None
        members = group_members(self._group.pid)
        victim = self._soak.random.choice(members) if members else self._group.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim != self._group.pid:  # the command must notice, and end by itself
            self._kill_s = self._later()
            self._soak.note(self.name)
            return
        self._group.wait()
        self._end("SIGKILL")

    def stop(self) -> int:
        """Ask the command to end, and return its exit code."""
        if self._group is None:
            return 0
        if self._group.poll() is None:
            self._group.send_signal(signal.SIGTERM)
        try:
            self._group.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._soak.problem(f"{self.name} did not end within {STOP_S:.0f} s of SIGTERM")
            os.killpg(self._group.pid, signal.SIGKILL)
            self._group.wait()
        code = int(self._group.returncode)
        self._end("SIGTERM")
        return code

    def wait(self) -> int:
        """Wait for the command to end by itself; return its exit code."""
        assert self._group is not None
        code = self._group.wait()
        self._end("own")
        return code

    def _end(self, ending: str) -> None:
        assert self._group is not None
        life, code = self.lifetimes[-1], self._group.returncode
        life.ended_s, life.ending, life.code = time.monotonic(), ending, code
        if code >= 0 and code not in self.codes:
            self._soak.problem(f"{self.name} {life.number} ended with {code}: {self.tail()}")
        self._orphans.append((self._group.pid, time.monotonic()))
        self._next_s = time.monotonic() + PAUSE_S
        self._group = None

    def _bury_orphans(self) -> None:
        """Report processes of an ended command that are still there after a long time."""
        kept = []
        for group, since_s in self._orphans:
            if not group_members(group):
                continue
            if time.monotonic() - since_s < ORPHAN_S:
                kept.append((group, since_s))
                continue
            self._soak.problem(f"{self.name}: processes were left behind: {describe(group)}")
            os.killpg(group, signal.SIGKILL)
        self._orphans = kept

    def wait_for_orphans(self) -> None:
        """Wait until no process of an ended command is left."""
        while self._orphans:
            self._bury_orphans()
            time.sleep(TICK_S)

    def sample(self) -> None:
        """Measure memory and open files of the process and its children."""
        if self._group is None:
            return
        life, memory_mb, files = self.lifetimes[-1], 0.0, 0
        for process in group_members(self._group.pid):
            with contextlib.suppress(OSError, ValueError, IndexError):
                status = Path(f"/proc/{process}/status").read_text()
                memory_mb += int(status.partition("RssAnon:")[2].split()[0]) / 1e3
                files += len(list(Path(f"/proc/{process}/fd").iterdir()))
        if memory_mb:
            life.samples.append((time.monotonic() - life.started_s, memory_mb, files))

    def tail(self) -> str:
        """Return the last line that the command printed."""
        lines = self.log.read_bytes()[-4000:].decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def group_members(group: int) -> list[int]:
    """Return the processes of a process group, without those that are dead already."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    found.append(int(path.name))
    return sorted(found)


def describe(group: int) -> str:
    """Return the command lines of the processes of a group."""
    found = []
    for process in group_members(group):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            found.append(b" ".join(words)[-120:].decode("utf-8", "replace"))
    return "; ".join(found)


# --- the ledger ------------------------------------------------------------------------------


class Ledger:
    """Hard links to every segment that was ever published, in a dataset of their own."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.source = path, source
        self.names: list[str] = []
        (path / "segments").mkdir(parents=True)

    def scan(self) -> list[str]:
        """Link the segments that are new; returns their names."""
        known = set(self.names)
        if not (self.source / "zarr.json").exists():
            return []
        if not (self.path / "zarr.json").exists():
            shutil.copyfile(self.source / "zarr.json", self.path / "zarr.json")
        there = sorted(path.name for path in (self.source / "segments").iterdir())
        new = [name for name in there if name not in known and self._link(name)]
        self.names += new
        return new

    def _link(self, name: str) -> bool:
        aside = self.path / f"{name}.linking"
        try:
            if not (self.source / "segments" / name / "MANIFEST.json").exists():
                return False
            shutil.copytree(self.source / "segments" / name, aside, copy_function=os.link)
            aside.rename(self.path / "segments" / name)
        except OSError:  # it was removed meanwhile: replaced or pruned
            shutil.rmtree(aside, ignore_errors=True)
            return False
        return True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An episode that was published."""

    steps: int
    driver: str
    segment: str


def read_ledger(ledger: Ledger) -> tuple[dict[str, Published], list[tuple[str, int]]]:
    """Return the published episodes by digest, and each plan's episodes, once for each digest."""
    dataset = Dataset.open(ledger.path)
    episodes: dict[str, Published] = {}
    planned: dict[tuple[str, int], set[str]] = collections.defaultdict(set)
    for name in ledger.names:
        segment = dataset.open_segment(name)
        table = segment.episode_table()
        drivers = table.texts("driver")
        for number, digest in enumerate(episode_digests(segment)):
            steps = int(table.length[number])
            known = Published(steps=steps, driver=drivers[number], segment=name)
            episodes.setdefault(digest, known)
            if ORIGIN not in segment.provenance:
                plan = str(segment.provenance.get("plan_digest"))
                planned[plan, int(table.index[number])].add(digest)
    twice = [key for key, digests in planned.items() if len(digests) > 1]
    return episodes, sorted(twice)


def view(path: Path) -> tuple[collections.Counter[str], int, list[str]]:
    """Return how often a reader of a dataset sees each episode, its steps, what it refuses."""
    snapshot = Dataset.open(path).snapshot()
    seen: collections.Counter[str] = collections.Counter()
    for segment in snapshot.segments:
        seen.update(episode_digests(segment))
    refused = [f"{refusal.segment_id}: {refusal.reason}" for refusal in snapshot.refused]
    return seen, snapshot.steps, refused


# --- truncated copies -------------------------------------------------------------------------


class Copier:
    """Copies segments in halves and in random order, from the ledger into a second dataset."""

    def __init__(self, ledger: Ledger, target: Path, rng: random.Random) -> None:
        self.ledger, self.target, self.random = ledger, target, rng
        self.names: list[str] = []
        self._todo: list[Iterator[None]] = []
        (target / "segments").mkdir(parents=True)

    def add(self, name: str) -> None:
        """Begin to copy a segment."""
        if not (self.target / "zarr.json").exists():
            shutil.copyfile(self.ledger.path / "zarr.json", self.target / "zarr.json")
        self.names.append(name)
        self._todo.append(self._copy(name))

    def work(self, operations: int) -> bool:
        """Do some operations of copies that are drawn; return whether any are left."""
        for _ in range(operations):
            if not self._todo:
                return False
            at = self.random.randrange(len(self._todo))
            if next(self._todo[at], "done") == "done":
                del self._todo[at]
        return bool(self._todo)

    def _copy(self, name: str) -> Iterator[None]:
        source, target = self.ledger.path / "segments" / name, self.target / "segments" / name
        files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        way = self.random.choice(("halves", "halves", "sizes first", "whole"))
        self.random.shuffle(files)
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            data = (source / file).read_bytes()
            with (target / file).open("wb") as out:
                out.write(data if way == "whole" else data[: len(data) // 2])
                if way == "sizes first":
                    out.truncate(len(data))
            yield
        self.random.shuffle(files)
        for file in files if way != "whole" else ():
            data = (source / file).read_bytes()
            with (target / file).open("r+b") as out:
                out.seek(len(data) // 2)
                out.write(data[len(data) // 2 :])
            yield


# --- the reader of the second dataset, a process of its own ---------------------------------


def follow(path: Path, answer: Path) -> None:
    """Follow a dataset with a sampler until SIGTERM; write what it has into a file now and then."""
    from avtd3.store.errors import Avtd3Error
    from avtd3.store.replay.config import ReplayConfig
    from avtd3.store.replay.sampler import Sampler

    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    while not stopped:
        try:
            sampler = Sampler(
                [Dataset.open(path)], ReplayConfig(batch_size=32, mode="direct"), seed=0
            )
            break
        except Avtd3Error as error:
            print(f"waiting: {error}"[:300], flush=True)
            time.sleep(1.0)
    else:
        return
    with sampler:
        while not stopped:
            sampler.refresh()
            if sampler.steps:
                batch = sampler.sample()
                assert len(batch.reward) == 32
            document = {"steps": sampler.steps, "refused": [r.reason for r in sampler.refused]}
            aside = answer.with_suffix(".tmp")
            aside.write_text(json.dumps(document))
            aside.rename(answer)
            time.sleep(0.2)


# --- the soak ----------------------------------------------------------------------------------


class Soak:
    """All processes of a soak, and what they did wrong."""

    def __init__(self, work: Path, seed: int, seconds: float, kill_every_s: float) -> None:
        self.work, self.seconds, self.random = work, seconds, random.Random(seed)
        self.data, self.mirror, self.run = work / "data", work / "mirror", work / "run"
        self.policies = work / "policies"
        (work / "logs").mkdir(parents=True)
        self.problems: list[str] = []
        self.killed_workers: collections.Counter[str] = collections.Counter()
        self.flaky = {
            rate: NativeFlaky(
                work / f"flaky-{rate}",
                [self.data, self.mirror, self.policies],
                rate=rate,
                calls=READING,
                seed=seed,
            )
            for rate in {*RATES, *SELDOM}
        }
        self.ledger = Ledger(work / "ledger", self.data)
        self.copier = Copier(self.ledger, self.mirror, self.random)
        self.answer = work / "reader.json"
        mean_s = kill_every_s or float("inf")
        self.seed = seed
        self.roles = {
            name: Role(name, words, self, codes=codes, kill_after_s=mean_s * lives, rates=rates)
            for name, words, codes, lives, rates in (
                ("collector a", self._collector_a, (0, 3), 1.0, SELDOM),
                ("collector b", self._collector_b, (0, 3), 1.0, SELDOM),
                ("learner", self._learner, (0, 3), 2.0, SELDOM),
                ("reader", self._reader, (0,), 3.0, RATES),
            )
        }
        self.pinned: set[str] = set()
        self._chosen: list[str] = []
        self.maintenance = {
            name: Role(name, lambda: self._chosen, self, codes=codes, kill_after_s=mean_s)
            for name, codes in (
                ("compact", (0, 1, 3)),
                ("prune", (0, 1, 3)),
                ("pin", (0, 2, 3)),
                ("audit", (0, 3)),
                ("audit-copies", (0, 1, 3)),
            )
        }
        self._current: Role | None = None
        self._pin = ""

    def problem(self, text: str) -> None:
        """Record something that must not happen."""
        print(f"PROBLEM: {text}", flush=True)
        self.problems.append(text)

    def note(self, name: str) -> None:
        """Count a worker of a command that was killed."""
        self.killed_workers[name] += 1

    def environment(self, rate: float) -> dict[str, str]:
        """Return the variables of a process in which a share of the calls fail."""
        base = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return self.flaky[rate].environment(base) if rate else base

    def _avtd3(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "avtd3.cli", *map(str, words)]

    def _collect(self, seed: int, *words: object) -> list[str]:
        return self._avtd3(
            "collect", self.data, "--seed", seed, "--steps", ENDLESS, "--resume", *WORLD,
            "--set=collect.writer.segment_steps=200", "--set=collect.min_free_mb=500", *words,
        )  # fmt: skip

    def _collector_a(self) -> list[str]:
        driver = ("--driver", "0.5:policy,0.5:expert", "--policies", self.policies)
        return self._collect(2 * self.seed, "--workers", 2, *driver)

    def _collector_b(self) -> list[str]:
        """Its episodes are pruned, and would be collected again: each process has its own plan."""
        number = len(self.roles["collector b"].lifetimes)
        return self._collect(2 * self.seed + 1 + 1_000_000 * number, "--driver", PRUNED_DRIVER)

    def _learner(self, updates: int = ENDLESS) -> list[str]:
        resume = ("--resume",) if (self.run / "config.json").exists() else ()
        return self._avtd3(
            "learn", self.data, "--run", self.run, "--policies", self.policies, "--follow",
            "--updates", updates, "--seed", self.seed, *LEARNER, *resume,
        )  # fmt: skip

    def _reader(self) -> list[str]:
        return [sys.executable, __file__, "--follow", str(self.mirror), str(self.answer)]

    def _maintain(self) -> None:
        """Run the commands of maintenance, one after the other, in random order."""
        if self._current is not None:
            self._current.sample()
            if self._current.tick():
                life = self._current.lifetimes[-1]
                if self._current.name == "pin" and life.code == 0:
                    self.pinned.add(self._pin)
                self._current = None
            return
        if len(self.ledger.names) < 3:
            return
        self._current = self.random.choice(list(self.maintenance.values()))
        self._chosen = self._words_of(self._current.name)
        self._current.start()

    def _words_of(self, name: str) -> list[str]:
        self._pin = self.random.choice(self.ledger.names)
        words: dict[str, tuple[object, ...]] = {
            "compact": ("store", "compact", self.data, "--target-steps", 3000),
            "prune": (
                "store", "prune", self.data, "--older-than", "60s",
                "--filter", f"driver={PRUNED_DRIVER}",
            ),
            "pin": ("store", "pin", self.data, self._pin),
            "audit": ("replay-inspect", self.data, "--quarantine"),
            "audit-copies": ("replay-inspect", self.mirror),
        }  # fmt: skip
        return self._avtd3(*words[name])

    def soak(self) -> None:
        """Run everything for the given time."""
        start, sampled = time.monotonic(), 0.0
        while (now := time.monotonic()) < start + self.seconds:
            for role in self.roles.values():
                role.tick()
                if role.is_due:
                    role.start()
            self._scan()
            self.copier.work(self.random.randrange(120))
            self._maintain()
            if now >= sampled + SAMPLE_S:
                sampled = now
                for role in self.roles.values():
                    role.sample()
            time.sleep(TICK_S)

    def _scan(self) -> None:
        for name in self.ledger.scan():
            self.copier.add(name)

    def close(self) -> None:
        """Stop what still runs."""
        for role in (*self.roles.values(), *self.maintenance.values()):
            if role.is_running:
                role.stop()

    def finish(self) -> dict[str, Any]:
        """Stop everything in good order, and compare what is there with what was published."""
        for flaky in self.flaky.values():
            flaky.stop()
        if self._current is not None:
            self._current.wait()
        for name in ("collector a", "collector b", "learner"):
            self.roles[name].stop()
        for role in (*self.roles.values(), *self.maintenance.values()):
            if role.name != "reader":
                role.wait_for_orphans()
        self._last_round()
        self._scan()
        while self.copier.work(1000):
            pass
        reader = self._wait_for_reader()
        return {"reader": reader, **self._compare(), **self._leftovers()}

    def _last_round(self) -> None:
        """Run each command once more without failures: all must end with 0 and sweep."""
        self._scan()
        for name in ("compact", "prune"):
            self._chosen = self._words_of(name)
            self._run(self.maintenance[name])
            self._scan()
        words = self._collector_a()
        words[words.index(str(ENDLESS))] = "1"  # a step that is there already
        self._run(Role("collector-last", lambda: words, self, codes=(0,), kill_after_s=1.0))
        newest = max(
            (int(p.name[7:]) for p in (self.run / "checkpoints").glob("update-*")), default=0
        )
        words = [*self._learner(newest + 5), "--json"]  # reads all that is there, once
        words.remove("--follow")
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            self.problem(f"the last learner ended with {done.returncode}: {done.stderr[-500:]}")
            return
        self.learned = json.loads(done.stdout)

    def _run(self, role: Role) -> None:
        role.start(may_die=False, rate=0.0)
        if code := role.wait():
            self.problem(f"the last {role.name} ended with {code}: {role.tail()}")

    def _wait_for_reader(self) -> dict[str, Any]:
        """Wait until the reader has all that lies there; its last process has seen the failures."""
        role, steps = self.roles["reader"], view(self.mirror)[1]
        if not role.is_running:
            role.tick()
            role.start(may_die=False)
        deadline = time.monotonic() + 600.0
        document: dict[str, Any] = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                document = json.loads(self.answer.read_text())
                if document["steps"] == steps and not document["refused"]:
                    break
            time.sleep(TICK_S)
        else:
            self.problem(f"the reader has {document}, expected {steps} steps and none refused")
        role.stop()
        role.wait_for_orphans()
        return {"steps": document.get("steps"), "expected": steps}

    def _compare(self) -> dict[str, Any]:
        published, twice = read_ledger(self.ledger)
        found: dict[str, Any] = {
            "published": len(published),
            "published_steps": sum(episode.steps for episode in published.values()),
            "segments": len(self.ledger.names),
            "twice": len(twice),
        }
        if twice:
            self.problem(f"{len(twice)} episodes of a plan were collected twice: {twice[:5]}")
        kept = {
            digest: episode
            for digest, episode in published.items()
            if episode.driver != PRUNED_DRIVER or episode.segment in self.pinned
        }
        for name, path, expected in (
            ("data", self.data, kept),
            ("copies", self.mirror, published),
        ):
            seen, steps, refused = view(path)
            lost = [episode for digest, episode in expected.items() if not seen[digest]]
            doubled = sum(count - 1 for count in seen.values())
            unknown = len(seen.keys() - published.keys())
            found[name] = {
                "episodes": len(seen),
                "steps": steps,
                "expected": len(expected),
                "lost": sum(episode.steps for episode in lost),
                "doubled": doubled,
            }
            for text, count in (
                (f"episodes were lost: {lost[:3]}", len(lost)),
                ("episodes are there twice", doubled),
                ("episodes were never published", unknown),
                (f"segments are refused: {refused[:3]}", len(refused)),
            ):
                if count:
                    self.problem(f"{name}: {count} {text}")
            self._audit(name, path, found)
        if getattr(self, "learned", None) is not None:
            self._check_learned(found)
        return found

    def _audit(self, name: str, path: Path, found: dict[str, Any]) -> None:
        done = subprocess.run(
            self._avtd3("replay-inspect", path, "--json"),
            capture_output=True,
            text=True,
            check=False,
        )
        document = json.loads(done.stdout) if done.stdout else {}
        found[name]["verdict"] = document.get("verdict")
        found[name]["findings"] = document.get("finding_counts")
        if done.returncode:
            self.problem(f"the audit of {name} ended with {done.returncode}: {found[name]}")

    def _check_learned(self, found: dict[str, Any]) -> None:
        found["learner"] = {"steps": self.learned["steps"], "updates": self.learned["updates"]}
        if self.learned["refused"] or self.learned["steps"] != found["data"]["steps"]:
            self.problem(
                f"the learner has {self.learned['steps']} steps and refuses "
                f"{len(self.learned['refused'])}, expected {found['data']['steps']} and none"
            )

    def _leftovers(self) -> dict[str, Any]:
        """Return what killed processes left that the last ones should have removed."""
        left = [p for p in (self.data / ".staging").glob("*") if p.exists()]
        left += [p for p in (self.data / "quarantine").glob("*")]
        for folder in (self.run, self.policies, self.data):
            left += list(folder.rglob("*.tmp"))
        if left:
            names = ", ".join(str(path.relative_to(self.work)) for path in sorted(set(left))[:5])
            self.problem(f"{len(set(left))} files were left behind: {names}")
        for log in sorted((self.work / "logs").iterdir()):
            text = log.read_bytes()
            if b"Traceback" in text:
                at = text.index(b"Traceback")
                self.problem(f"{log.name}: {text[at : at + 3000].decode('utf-8', 'replace')}")
        return {"left": len(set(left))}


# --- the report -----------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def report(soak: Soak, found: dict[str, Any], command: str) -> str:
    """Return the result as Markdown."""
    roles = [*soak.roles.values(), *soak.maintenance.values()]
    lines = [
        f"`{command}`: {soak.seconds / 60:.1f} minutes, {os.cpu_count()} cores.",
        "",
        f"- {found['published']:,} episodes ({found['published_steps']:,} steps) in "
        f"{found['segments']:,} segments were published; collected twice: {found['twice']}.",
    ]
    for name in ("data", "copies"):
        one = found[name]
        lines.append(
            f"- {name}: {one['episodes']:,} episodes ({one['steps']:,} steps) are visible; lost "
            f"steps: {one['lost']}, doubled episodes: {one['doubled']}; audit: {one['verdict']}."
        )
    if "learner" in found:
        one = found["learner"]
        lines.append(f"- learner: {one['updates']:,} updates, {one['steps']:,} steps at the end.")
    calls = collections.Counter[str]()
    for rate in soak.flaky.values():
        calls.update(rate.counts())
    failed = ", ".join(f"{count:,} {call}" for call, count in calls.items() if count)
    lines += [
        f"- calls that failed: {failed}.",
        f"- problems: {len(soak.problems)}.",
        "",
        *table(
            (
                "command",
                "starts",
                "SIGKILL",
                "of workers",
                "SIGTERM",
                "exit codes",
                "most MB",
                "most files",
            ),
            [_lives(role, soak.killed_workers[role.name]) for role in roles],
        ),
        "",
        "Own memory (MB) and open files of the longest process of each command, over its lifetime:",
        "",
        *table(
            ("command", "seconds", "at 20 %", "40 %", "60 %", "80 %", "100 %"),
            [row for role in soak.roles.values() if (row := _growth(role))],
        ),
    ]
    lines += [f"- {text}" for text in soak.problems]
    return "\n".join(lines) + "\n"


def _lives(role: Role, killed_workers: int) -> list[object]:
    ends = collections.Counter(life.ending for life in role.lifetimes)
    codes = collections.Counter(life.code for life in role.lifetimes if life.code is not None)
    shown = ", ".join(f"{n} x {c}" for c, n in sorted(codes.items()) if c >= 0) or "none"
    samples = [sample for life in role.lifetimes for sample in life.samples]
    return [
        role.name,
        len(role.lifetimes),
        ends["SIGKILL"],
        killed_workers,
        ends["SIGTERM"],
        shown,
        f"{max((memory for _, memory, _ in samples), default=0.0):.0f}",
        max((files for _, _, files in samples), default=0),
    ]


def _growth(role: Role) -> list[object]:
    longest = max(role.lifetimes, key=lambda life: len(life.samples), default=None)
    if longest is None or len(longest.samples) < 5:
        return []
    samples = longest.samples
    points = [samples[min(len(samples) * n // 5, len(samples)) - 1] for n in range(1, 6)]
    return [
        role.name,
        f"{longest.samples[-1][0]:.0f}",
        *(f"{mb:.0f}, {fd}" for _, mb, fd in points),
    ]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kill-every",
        type=float,
        metavar="S",
        help="mean seconds until a collector is killed; the others live longer; 0 kills nothing",
    )
    parser.add_argument("--out", type=Path, help="write the report as Markdown")
    parser.add_argument("--work", type=Path, help="keep all files in this new directory")
    parser.add_argument("--follow", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kill_every is None:
        options.kill_every = max(8.0, min(60.0, options.minutes * 12.0))
    return options


def main() -> None:
    options = parse()
    if options.follow:
        follow(*options.follow)
        return
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    work = options.work or Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(work, options.seed, options.minutes * 60.0, options.kill_every)
    try:
        soak.soak()
        found = soak.finish()
    finally:
        soak.close()
    command = f"{options.minutes:g} --seed {options.seed} --kill-every {options.kill_every:g}"
    text = report(soak, found, f"python bench/soak.py --minutes {command}")
    print(text)
    if options.out:
        options.out.write_text(text)
    if not options.work and not soak.problems:
        shutil.rmtree(work)
    sys.exit(1 if soak.problems else 0)


if __name__ == "__main__":
    main()
