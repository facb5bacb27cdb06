"""`UrlSoak`: a dataset and policies in a bucket, behind a link that fails."""

import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from soaking.copies import Prefix
from soaking.ledger import Ledger, Published
from soaking.processes import Role
from soaking.soak import ENDLESS, Soak, View

from avtd3.store.remote.client import Patience, RemotePlace
from avtd3.store.remote.transfer import LATEST
from avtd3.tests.store.remote import servers

DATA, POLICIES, COPIES, BACKUP = (
    f"s3://soak/{name}" for name in ("data", "policies", "copies", "backup")
)
SEGMENT_STEPS = 150
"""Steps of a segment, of about 0.6 MB."""
SPOOL_BYTES, SPOOL_MORE_BYTES = 1_500_000, 4_000_000
"""Size at which collectors wait for uploads, and what they may complete then."""
MIRROR_BYTES, MIRROR_MORE_BYTES = 5_000_000, 2_000_000
"""Limit of the learner's mirror, and what may be counted twice while a segment is moved."""
SHARE = 0.25
"""Share of the requests that fail while the link is in a state that breaks some."""
HANGING_S, SLOW_S, LAG_S = 40.0, 1.5, 5.0
"""How long a request hangs, a listing takes, and a listing lags; clients wait for 10 s
at first, and twice as long with each repetition."""
STATES: Mapping[str, tuple[float, float, float]] = {
    "good": (6.0, 2.0, 10.0),
    "cut": (2.0, 2.0, 10.0),
    "503": (2.0, 2.0, 8.0),
    "before": (1.0, 2.0, 8.0),
    "after": (2.0, 2.0, 8.0),
    "half": (2.0, 2.0, 8.0),
    "partial": (2.0, 2.0, 8.0),
    "slow": (1.0, 2.0, 8.0),
    "slow listings": (1.0, 5.0, 15.0),
    "late listings": (1.0, 5.0, 15.0),
    "hanging": (0.5, 1.0, 2.0),
    "long cut": (0.3, 25.0, 40.0),
}
"""States of the link: how often, and the least and the most seconds that each lasts."""


class Link:
    """Decides what a proxy does to each request; the state of the link changes every few seconds.

    Before a manifest is put, the ledger takes the segment from the spool: only then may the spool
    delete it.
    """

    def __init__(self, proxy: servers.FaultProxy, ledger: Ledger, rng: random.Random) -> None:
        self._proxy, self._ledger, self._random = proxy, ledger, rng
        self.state, self.next_s, self.is_healed = "good", 0.0, threading.Event()
        self.failed: Counter[str] = Counter()
        """Requests that failed, by the state of the link."""
        self.requests = 0
        proxy.fault = self._fault

    def tick(self) -> None:
        """Change the state of the link when it is time to."""
        self._proxy.put_at = {  # forget what no longer matters
            key: put_s
            for key, put_s in list(self._proxy.put_at.items())
            if put_s > time.monotonic() - LAG_S
        }
        self._proxy.requests.clear()
        if time.monotonic() >= self.next_s:
            weights = [weight for weight, _, _ in STATES.values()]
            self.change(*self._random.choices(list(STATES), weights))

    def change(self, state: str) -> None:
        """Change the state."""
        _, least_s, most_s = STATES[state]
        self.failed[state] += state.endswith("cut") and state != self.state
        self.state = state
        self.next_s = time.monotonic() + self._random.uniform(least_s, most_s)
        self._proxy.is_cut = state.endswith("cut")
        self._proxy.lag_s = LAG_S if state == "late listings" else 0.0

    def heal(self) -> None:
        """Let nothing fail from now on."""
        self.is_healed.set()
        self.change("good")
        self.next_s = float("inf")

    def _fault(self, method: str, path: str) -> str:
        state, is_listing = self.state, "list-type" in path
        self.requests += 1
        if method == "PUT" and path.startswith("/soak/data/segments/") and "MANIFEST" in path:
            self._ledger.scan()
        if state in ("slow listings", "late listings"):
            self.failed[state] += is_listing
            self.is_healed.wait(SLOW_S if is_listing and state == "slow listings" else 0.0)
            return ""
        if state not in ("503", "before", "after", "half", "partial", "slow", "hanging"):
            return ""
        if self._random.random() >= SHARE:
            return ""
        self.failed[state] += 1
        if state == "hanging":
            self.is_healed.wait(HANGING_S)
            return "before"
        return state


class UrlSoak(Soak):
    """Two collectors with spools, a learner with a mirror, and transfers, over an object store."""

    copied_share, maintenance_pause_s = 0.2, 5.0

    def __init__(
        self, work: Path, seed: int, seconds: float, kill_every_s: float, engine: str
    ) -> None:
        self.spools = {name: work / f"spool-{name}" for name in ("a", "b")}
        self.pulled, self.policies = work / "pulled", work / "policies"
        self.copies, self.copies_url = work / "copies", COPIES
        super().__init__(work, seed, seconds, kill_every_s)
        (work / "tmp").mkdir()
        self._stack = contextlib.ExitStack()
        start = {"weed": servers.start_weed, "moto": servers.start_moto}[engine]
        server = self._stack.enter_context(start(work))
        servers.put_bucket(server, "soak")
        self._proxy = self._stack.enter_context(servers.FaultProxy(server))
        self.link = Link(self._proxy, self.ledger, random.Random(seed))
        os.environ.update(server.environment)  # this process does not use the proxy
        patience = Patience(seconds=float("inf"))  # the machine may be very busy
        self.prepare(Prefix(RemotePlace(COPIES, patience)))
        self._policies_place = RemotePlace(POLICIES, patience)
        for name, words, codes, lives in (
            ("collector a", self._collector_a, (0, 3), 1.0),
            ("collector b", self._collector_b, (0, 3), 1.0),
            ("learner", self._learner, (0, 3), 2.0),
            ("reader", lambda: self.follow(COPIES), (0,), 3.0),
        ):
            kill_after_s = self.mean_s * lives
            self.roles[name] = Role(
                name, words, self, codes=codes, kill_after_s=kill_after_s, is_lasting=True,
                keeps_all=name == "reader",
            )  # fmt: skip
        self.add_maintenance(
            {
                "pull": (0, 3),
                "push": (0, 3),
                "audit": (0, 1),
                "status": (0, 1, 3),
                "pull-policies": (0, 3),
                "pull-copies": (0, 1, 3),
            }
        )
        self._next_look_s = 0.0
        self._has_filled = False
        self._at_cut, self._was_cut_s = 0, float("inf")
        self.newest_version, self.most_spool, self.most_mirror = -1, 0, 0

    # --- commands

    def sources(self) -> list[Path]:
        """Collectors publish into spools first."""
        return list(self.spools.values())

    def environment(self, rate: float) -> Mapping[str, str]:
        """Let requests go through the proxy."""
        return {
            **self.base_environment(),
            "AWS_ENDPOINT_URL": self._proxy.endpoint,
            "TMPDIR": str(self.work / "tmp"),
        }

    def _collect(self, name: str, seed: int, *words: object) -> list[str]:
        return self.collect(
            DATA, seed, f"--set=collect.name={name}", f"--set=collect.spool={self.spools[name]}",
            f"--set=collect.spool_bytes={SPOOL_BYTES}",
            f"--set=collect.writer.segment_steps={SEGMENT_STEPS}", *words,
        )  # fmt: skip

    def _collector_a(self) -> list[str]:
        driver = ("--driver", "0.5:policy,0.5:expert", "--policies", POLICIES)
        return self._collect("a", 2 * self.seed, "--workers", 2, *driver)

    def _collector_b(self) -> list[str]:
        return self._collect("b", 2 * self.seed + 1, "--driver", "expert")

    def _learner(self) -> list[str]:
        return self._learn("--follow", "--updates", ENDLESS)

    def _learn(self, *words: object) -> list[str]:
        return self.learn(
            DATA, POLICIES, f"--set=learn.mirror_bytes={MIRROR_BYTES}",
            "--set=learn.keep_policies=20",
            "--set=learn.replay.capacity=20000", *words,
        )  # fmt: skip

    def possible(self) -> list[str]:
        """Return the commands whose sources are there."""
        names = list(self.maintenance)
        if not (self.pulled / "zarr.json").exists():
            names = [name for name in names if name not in ("push", "audit")]
        if self.newest_version < 0:
            names.remove("pull-policies")
        if not self.copier.names:
            names.remove("pull-copies")
        return names

    def words_of(self, name: str) -> list[str]:
        """Return a command of maintenance."""
        words: dict[str, tuple[object, ...]] = {
            "pull": ("pull", DATA, self.pulled),
            "push": ("push", self.pulled, BACKUP),
            "audit": ("replay-inspect", self.pulled),
            "status": ("status", DATA, POLICIES),
            "pull-policies": ("pull", POLICIES, self.policies),
            "pull-copies": ("pull", COPIES, self.copies),
        }
        return self.avtd3(*words[name])

    # --- while it runs

    def heal(self) -> None:
        """Let no request fail from now on."""
        self.link.heal()
        if time.monotonic() > self._was_cut_s + 300.0 and len(self.ledger.names) <= self._at_cut:
            self.problem("no segment was collected for 300 s after the last long cut")

    def close(self) -> None:
        """Stop what still runs, and the store last."""
        super().close()
        self._stack.close()

    def tick(self) -> None:
        """Continue the copies, change the link, and look at what must be bounded."""
        self.copier.work(self.random.randrange(20))
        self._fill_spool((time.monotonic() - self.started_s) / self.seconds)
        if self.link.state == "long cut":
            self._at_cut, self._was_cut_s = len(self.ledger.names), time.monotonic()
        self.link.tick()
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + 5.0
            self._look()

    def _fill_spool(self, share: float) -> None:
        """Cut the link for long, when nothing is killed any more, until a spool is full."""
        if share >= 0.5 and not self._has_filled:
            self.link.change("long cut")
            self._has_filled = share > 0.7 or bool(self._count_waits())

    def _count_waits(self) -> int:
        """Count the lines of progress that say that a spool is full."""
        logs = (self.work / "logs").glob("collector-*")
        return sum(log.read_bytes().count(b"waiting for uploads") for log in logs)

    def _look(self) -> None:
        """Check sizes and the newest version of the policies."""
        self.most_spool = max(self.most_spool, *map(_bytes_of, self.spools.values()))
        self.most_mirror = max(self.most_mirror, _bytes_of(self.run / "mirror"))
        with contextlib.suppress(FileNotFoundError):
            version = int(json.loads(self._policies_place.read(LATEST))["version"])
            if version < self.newest_version:
                self.problem(f"LATEST went from {self.newest_version} back to {version}")
            self.newest_version = max(version, self.newest_version)

    # --- the end

    def last_round(self) -> None:
        """Upload what is left, copy everything here, and learn from all of it."""
        self._check_limits()
        for name, words in (("a", self._collector_a()), ("b", self._collector_b())):
            words[words.index(str(ENDLESS))] = "1"  # a step that is there already
            Role(f"collector-last-{name}", words.copy, self, codes=(0, 3)).run_last()
        self.scan()
        while self.copier.work(1000):
            pass
        for name in ("pull", "push", "pull-policies", "pull-copies"):
            self.choose(name).run_last()
        last = self.answer_of(self._learn("--updates", self.last_updates()))
        if last.get("refused"):
            self.problem(f"the learner refuses {last['refused']}")
        self.run = self.work / "run-last"  # without limits, from the bucket alone
        self.learned = self.answer_of(
            self.learn(DATA, self.work / "policies-last", "--updates", 5)
        ) | {"updates": last.get("updates", 0)}

    def _check_limits(self) -> None:
        """Report what grew beyond its limit, and what a long run should have seen and did not."""
        for what, most, limit in (
            ("a spool", self.most_spool, SPOOL_BYTES + SPOOL_MORE_BYTES),
            ("the mirror", self.most_mirror, MIRROR_BYTES + MIRROR_MORE_BYTES),
        ):
            if most > limit:
                self.problem(f"{what} had {most} bytes, expected {limit} at most")
        seen = {
            "full spool": self._count_waits(),
            "full mirror": self.most_mirror >= 0.8 * MIRROR_BYTES,
            "second policy": self.newest_version >= 1,
            **{f"link that is {state}": self.link.failed[state] for state in STATES},
            **{f"kill of the {name}": role.kills for name, role in self.roles.items()},
        }
        missing = [what for what, count in seen.items() if not count and "good" not in what]
        if missing and self.seconds >= 900.0:
            self.problem(f"the run had no {', no '.join(missing)}; run it for longer")

    def views(self, published: dict[str, Published]) -> list[View]:
        """Compare what was pulled from the bucket, the copies, and what was pushed again."""
        copied = set(self.copier.names)
        copies = {d: episode for d, episode in published.items() if episode.segment in copied}
        backup = self.work / "backup"
        self.answer_of(self.avtd3("pull", BACKUP, backup))
        return [
            ("data", self.pulled, published),
            ("copies", self.copies, copies),
            ("backup", backup, published),
        ]

    def facts(self) -> list[str]:
        """Count the requests that failed, and say what was full."""
        failed = ", ".join(f"{count:,} {state}" for state, count in self.link.failed.items())
        return [
            f"{self.link.requests:,} requests; failed (cuts and long cuts: how often): {failed}.",
            f"spools: {self.most_spool / 1e6:.1f} MB at most (limit {SPOOL_BYTES / 1e6:.1f}); "
            f"lines that say that a collector waits for uploads: "
            f"{self._count_waits()}.",
            f"mirror: {self.most_mirror / 1e6:.1f} MB at most (limit {MIRROR_BYTES / 1e6:.1f}).",
            f"policies: version {self.newest_version} is the newest one at the URL.",
        ]

    def left(self) -> list[Path]:
        """Return segments in spools, what is in staging, and temporary files."""
        found = [path for spool in self.sources() for path in (spool / "segments").glob("*")]
        folders = [*self.sources(), self.pulled, self.copies, *(self.work / "run/mirror").glob("*")]
        for folder in folders:
            found += folder.glob(".staging/*")
        for folder in (*folders, self.work / "run", self.policies):
            found += folder.rglob("*.tmp")
        return found


def _bytes_of(folder: Path) -> int:
    """Return the bytes of the segments below a folder, also of those in staging."""
    total = 0
    for parent, _, names in os.walk(folder):
        if {"segments", ".staging"} & set(Path(parent).parts):
            for name in set(names) - {"MANIFEST.json"}:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    total += (Path(parent) / name).stat().st_size
    return total
