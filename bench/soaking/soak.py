"""`Soak`: what the soak of a directory and that of a bucket have in common."""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from soaking.copies import Copier, Target
from soaking.ledger import Ledger, Published, read_ledger, view
from soaking.processes import ATTEMPTS, TICK_S, UNREACHABLE, Role

SAMPLE_S = 2.0
WORLD = (
    "--set=collect.scenario.networks=2",
    "--set=collect.scenario.route_length_m=60",
    "--set=collect.scenario.npcs=2",
    "--set=collect.scenario.time_limit_s=10",
    "--set=collect.min_free_mb=500",
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
View: TypeAlias = tuple[str, Path, dict[str, Published]]
"""A dataset to compare: its name, its path, and the episodes that must be there."""
SCRIPT = Path(__file__).parents[1] / "soak.py"


class Soak(ABC):
    """All processes of a soak, and what they did wrong.

    Args:
        work: New directory for all files.
        seed: Seed of what is drawn, and of the collections.
        seconds: How long it runs; in the second half, no process that runs for ever is killed.
        kill_every_s: Mean time until a collector is killed; 0 kills nothing.
    """

    def __init__(self, work: Path, seed: int, seconds: float, kill_every_s: float) -> None:
        self.work, self.seconds, self.random, self.seed = work, seconds, random.Random(seed), seed
        self.run, self.answer = work / "run", work / "reader.json"
        (work / "logs").mkdir(parents=True)
        self.started_s, self.kills_until_s = 0.0, 0.0
        self.problems: list[str] = []
        self.killed_workers: Counter[str] = Counter()
        self.mean_s = kill_every_s or float("inf")
        self.ledger = Ledger(work / "ledger", self.sources())
        self.roles: dict[str, Role] = {}
        self.maintenance: dict[str, Role] = {}
        self._current: Role | None = None
        self._chosen: list[str] = []
        self._scanned, self._next_maintenance_s = 0, 0.0
        self.learned: dict[str, Any] | None = None

    def prepare(self, target: Target) -> None:
        """Complete the construction: copies go to a target; a reader follows them."""
        self.copier = Copier(self.ledger, target, self.random)

    # --- what the kinds of soaks say

    copied_share = 1.0
    """Share of the segments that are copied."""
    maintenance_pause_s = 0.0
    """Seconds between two commands of maintenance."""

    @abstractmethod
    def sources(self) -> list[Path]:
        """Return the directories that collectors publish into."""

    @abstractmethod
    def environment(self, rate: float) -> Mapping[str, str]:
        """Return the variables of a process in which a share of the calls fail."""

    @abstractmethod
    def words_of(self, name: str) -> list[str]:
        """Return a command of maintenance."""

    @abstractmethod
    def heal(self) -> None:
        """Let nothing fail from now on."""

    @abstractmethod
    def last_round(self) -> None:
        """Run each command once more without failures: all must end with 0 and sweep."""

    @abstractmethod
    def views(self, published: dict[str, Published]) -> list[View]:
        """Return the datasets to compare: a name, a path, and the episodes that must be there."""

    @abstractmethod
    def facts(self) -> list[str]:
        """Return lines of the report about what failed."""

    @abstractmethod
    def left(self) -> list[Path]:
        """Return the files that should not be there at the end."""

    def tick(self) -> None:  # noqa: B027 - a default
        """Do what this kind of soak does a few times a second."""

    def possible(self) -> list[str]:
        """Return the commands of maintenance that make sense now."""
        return list(self.maintenance)

    def ended(self, role: Role) -> None:  # noqa: B027 - a default
        """Note that a command of maintenance has ended."""

    # --- commands

    def problem(self, text: str) -> None:
        """Record something that must not happen."""
        print(f"PROBLEM: {text}", flush=True)
        self.problems.append(text)

    def note(self, name: str) -> None:
        """Count a worker of a command that was killed."""
        self.killed_workers[name] += 1

    def base_environment(self) -> dict[str, str]:
        """Return the variables that all processes get."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def avtd3(self, *words: object) -> list[str]:
        """Return a command of avtd3."""
        return [sys.executable, "-m", "avtd3.cli", *map(str, words)]

    def collect(self, place: object, seed: int, *words: object) -> list[str]:
        """Return the command of a collector that never ends."""
        return self.avtd3(
            "collect", place, "--seed", seed, "--steps", ENDLESS, "--resume", *WORLD, *words
        )

    def learn(self, place: object, policies: object, *words: object) -> list[str]:
        """Return the command of a learner, which continues its run."""
        resume = ("--resume",) if (self.run / "config.json").exists() else ()
        return self.avtd3(
            "learn", place, "--run", self.run, "--policies", policies, "--seed", self.seed,
            *LEARNER, *resume, *words,
        )  # fmt: skip

    def follow(self, place: object) -> list[str]:
        """Return the command of the reader of the copies."""
        return [sys.executable, str(SCRIPT), "--follow", str(place), str(self.work)]

    def answer_of(self, words: Sequence[str], codes: Sequence[int] = (0,)) -> dict[str, Any]:
        """Run a command without failures; return its JSON document."""
        for _ in range(ATTEMPTS):
            done = subprocess.run(
                [*words, "--json"],
                capture_output=True,
                text=True,
                check=False,
                env=dict(self.environment(0.0)),
            )
            if done.returncode != UNREACHABLE:
                break
        name = " ".join(words[3:5])
        if done.returncode not in codes:
            self.problem(f"{name} ended with {done.returncode}: {done.stderr[-500:]}")
        document: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return document

    def last_updates(self) -> int:
        """Return a number of updates that is a little more than the run has."""
        folders = (self.run / "checkpoints").glob("update-*")
        return max((int(path.name[7:]) for path in folders), default=0) + 5

    # --- the run

    def soak(self) -> None:
        """Run everything for the given time."""
        start = self.started_s = time.monotonic()
        self.kills_until_s, sampled = start + self.seconds / 2.0, 0.0
        while (now := time.monotonic()) < start + self.seconds:
            for role in self.roles.values():
                role.tick()
                if role.is_due:
                    role.start()
            self.scan()
            self.tick()
            self._maintain()
            if now >= sampled + SAMPLE_S:
                sampled = now
                for role in self.roles.values():
                    role.sample()
            time.sleep(TICK_S)

    def scan(self) -> None:
        """Bring the ledger up to date, and begin copies of what is new."""
        self.ledger.scan()
        new = self.ledger.names[self._scanned :]
        self._scanned += len(new)
        for name in new:
            if self.random.random() < self.copied_share:
                self.copier.add(name)

    def _maintain(self) -> None:
        """Run the commands of maintenance, one after the other, in random order."""
        if self._current is not None:
            self._current.sample()
            if self._current.tick():
                self.ended(self._current)
                self._current = None
                self._next_maintenance_s = time.monotonic() + self.maintenance_pause_s
            return
        if len(self.ledger.names) < 3 or time.monotonic() < self._next_maintenance_s:
            return
        self._current = self.choose(self.random.choice(self.possible()))
        self._current.start()

    def choose(self, name: str) -> Role:
        """Draw what a command of maintenance does next; return it."""
        self._chosen = self.words_of(name)
        return self.maintenance[name]

    def add_maintenance(self, codes: Mapping[str, Sequence[int]]) -> None:
        """Define the commands of maintenance by their exit codes."""
        for name, allowed in codes.items():
            self.maintenance[name] = Role(
                name, lambda: self._chosen, self, codes=allowed, kill_after_s=self.mean_s
            )

    def close(self) -> None:
        """Stop what still runs."""
        for role in (*self.roles.values(), *self.maintenance.values()):
            if role.is_running:
                role.stop()

    # --- the end

    def finish(self) -> dict[str, Any]:
        """Stop everything in good order, and compare what is there with what was published."""
        self.heal()
        if self._current is not None:
            self._current.wait()
        others = [role for name, role in self.roles.items() if name != "reader"]
        for role in others:
            role.stop()
        for role in (*others, *self.maintenance.values()):
            role.wait_for_orphans()
        self.last_round()
        self.scan()
        while self.copier.work(1000):
            pass
        reader = self._wait_for_reader()
        found = {"reader": reader, **self._compare()}
        self._check_left()
        self._check_growth()
        return found

    def _wait_for_reader(self) -> dict[str, Any]:
        """Wait until the reader has all that lies there; its last process has seen the failures."""
        role, copied = self.roles["reader"], set(self.copier.names)
        published = read_ledger(self.ledger)[0].values()
        steps = sum(each.steps for each in published if each.segment in copied)
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
            "views": {},
        }
        if twice:
            self.problem(f"{len(twice)} episodes of a plan were collected twice: {twice[:5]}")
        for name, path, expected in self.views(published):
            found["views"][name] = self._compare_view(name, path, published, expected)
        self.check_learned(found)
        return found

    def _compare_view(
        self,
        name: str,
        path: Path,
        published: dict[str, Published],
        expected: dict[str, Published],
    ) -> dict[str, Any]:
        seen, steps, refused = view(path)
        lost = [episode for digest, episode in expected.items() if not seen[digest]]
        doubled = sum(count - 1 for count in seen.values())
        for text, count in (
            (f"episodes were lost: {lost[:3]}", len(lost)),
            ("episodes are there twice", doubled),
            ("episodes were never published", len(seen.keys() - published.keys())),
            (f"segments are refused: {refused[:3]}", len(refused)),
        ):
            if count:
                self.problem(f"{name}: {count} {text}")
        audit = self.answer_of(self.avtd3("replay-inspect", path), codes=(0, 1))
        if audit.get("verdict") not in ("ok", "warnings"):  # a few copies are not varied
            self.problem(f"{name}: the audit says {audit.get('finding_counts')}")
        return {
            "episodes": len(seen),
            "steps": steps,
            "expected": len(expected),
            "lost": sum(episode.steps for episode in lost),
            "doubled": doubled,
            "verdict": audit.get("verdict"),
            "findings": audit.get("finding_counts"),
        }

    def check_learned(self, found: dict[str, Any]) -> None:
        """Check that the last learner has every step that is visible."""
        expected = found["views"]["data"]["steps"]
        if self.learned and (self.learned["refused"] or self.learned["steps"] != expected):
            self.problem(
                f"the learner has {self.learned['steps']} steps and refuses "
                f"{len(self.learned['refused'])}, expected {expected} and none"
            )

    def _check_growth(self) -> None:
        """Report commands whose memory or open files grew."""
        for role in self.roles.values():
            if role.keeps_all or role.longest is None:
                continue
            if text := role.longest.check_growth():
                self.problem(f"{role.name}: {text}")

    def _check_left(self) -> None:
        """Report what killed processes left that the last ones should have removed."""
        if left := sorted(set(self.left())):
            names = ", ".join(str(path.relative_to(self.work)) for path in left[:5])
            self.problem(f"{len(left)} files were left behind: {names}")
        for log in sorted((self.work / "logs").iterdir()):
            text = log.read_bytes()
            # One of multiprocessing's own processes may have been killed.
            for at in (
                m.start() for m in re.finditer(rb"Traceback(?!.*\n.*resource_tracker)", text)
            ):
                self.problem(f"{log.name}: {text[at : at + 3000].decode('utf-8', 'replace')}")
