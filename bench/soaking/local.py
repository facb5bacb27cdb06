"""`LocalSoak`: a dataset in a directory, whose files fail."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from soaking.copies import Directory
from soaking.ledger import Published
from soaking.processes import Role
from soaking.soak import ENDLESS, Soak, View

from avtd3.tests.faults.native_flaky import READING, NativeFlaky

RATES = (0.0, 0.02, 0.1, 0.3)
"""Shares of the calls that fail; each process gets one. Reading tries a call five times."""
SELDOM = (0.0, 0.02, 0.05, 0.1)
"""The same for commands that would rarely get to work otherwise."""
PRUNED_DRIVER = "random"
"""Only segments of this driver are pruned; no other episode may ever disappear."""


class LocalSoak(Soak):
    """Two collectors, a learner, a reader of copies, and maintenance, on one disk."""

    def __init__(self, work: Path, seed: int, seconds: float, kill_every_s: float) -> None:
        self.data, self.copies, self.policies = work / "data", work / "copies", work / "policies"
        super().__init__(work, seed, seconds, kill_every_s)
        self.flaky = {
            rate: NativeFlaky(
                work / f"flaky-{rate}",
                [self.data, self.copies, self.policies],
                rate=rate,
                calls=READING,
                seed=seed,
            )
            for rate in {*RATES, *SELDOM}
        }
        self.prepare(Directory(self.copies))
        for name, words, codes, lives, rates in (
            ("collector a", self._collector_a, (0, 3), 1.0, SELDOM),
            ("collector b", self._collector_b, (0, 3), 1.0, SELDOM),
            ("learner", self._learner, (0, 3), 2.0, SELDOM),
            ("reader", lambda: self.follow(self.copies), (0,), 3.0, RATES),
        ):
            kill_after_s = self.mean_s * lives
            self.roles[name] = Role(
                name, words, self, codes=codes, kill_after_s=kill_after_s, rates=rates,
                is_lasting=True, keeps_all=name == "reader",
            )  # fmt: skip
        self.add_maintenance(
            {
                "compact": (0, 1, 3),
                "prune": (0, 1, 3),
                "pin": (0, 2, 3),
                "audit": (0, 3),
                "audit-copies": (0, 1, 3),
            }
        )
        self.pinned: set[str] = set()
        self._pin = ""

    def sources(self) -> list[Path]:
        """Collectors publish into the dataset itself."""
        return [self.data]

    def environment(self, rate: float) -> Mapping[str, str]:
        """Let calls on files of the dataset, the copies and the policies fail."""
        base = self.base_environment()
        return self.flaky[rate].environment(base) if rate else base

    def heal(self) -> None:
        """Let no call fail from now on."""
        for flaky in self.flaky.values():
            flaky.stop()

    def tick(self) -> None:
        """Continue the copies."""
        self.copier.work(self.random.randrange(120))

    def _collect(self, seed: int, *words: object) -> list[str]:
        return self.collect(self.data, seed, "--set=collect.writer.segment_steps=200", *words)

    def _collector_a(self) -> list[str]:
        driver = ("--driver", "0.5:policy,0.5:expert", "--policies", self.policies)
        return self._collect(2 * self.seed, "--workers", 2, *driver)

    def _collector_b(self) -> list[str]:
        """Its episodes are pruned, and would be collected again: each process has its own plan."""
        number = len(self.roles["collector b"].lifetimes)
        return self._collect(2 * self.seed + 1 + 1_000_000 * number, "--driver", PRUNED_DRIVER)

    def _learner(self) -> list[str]:
        return self.learn(self.data, self.policies, "--follow", "--updates", ENDLESS)

    def words_of(self, name: str) -> list[str]:
        """Return a command of maintenance."""
        self._pin = self.random.choice(self.ledger.names)
        words: dict[str, tuple[object, ...]] = {
            "compact": ("store", "compact", self.data, "--target-steps", 3000),
            "prune": (
                "store", "prune", self.data, "--older-than", "60s",
                "--filter", f"driver={PRUNED_DRIVER}",
            ),
            "pin": ("store", "pin", self.data, self._pin),
            "audit": ("replay-inspect", self.data, "--quarantine"),
            "audit-copies": ("replay-inspect", self.copies),
        }  # fmt: skip
        return self.avtd3(*words[name])

    def ended(self, role: Role) -> None:
        """Remember what was pinned."""
        if role.name == "pin" and role.lifetimes[-1].code == 0:
            self.pinned.add(self._pin)

    def last_round(self) -> None:
        """Compact, prune, collect what is there already, and learn from all, once more."""
        self.scan()
        for name in ("compact", "prune"):
            self.choose(name).run_last()
            self.scan()
        words = self._collector_a()
        words[words.index(str(ENDLESS))] = "1"  # a step that is there already
        Role("collector-last", lambda: words, self, codes=(0, 3)).run_last()
        self.learned = self.answer_of(
            self.learn(self.data, self.policies, "--updates", self.last_updates())
        )

    def views(self, published: dict[str, Published]) -> list[View]:
        """Compare the dataset, from which only pruned episodes may be missing, and the copies."""
        kept = {
            digest: episode
            for digest, episode in published.items()
            if episode.driver != PRUNED_DRIVER or episode.segment in self.pinned
        }
        return [("data", self.data, kept), ("copies", self.copies, published)]

    def facts(self) -> list[str]:
        """Count the calls that failed."""
        calls = Counter[str]()
        for rate in self.flaky.values():
            calls.update(rate.counts())
        failed = ", ".join(f"{count:,} {call}" for call, count in calls.items() if count)
        return [f"calls that failed: {failed}."]

    def left(self) -> list[Path]:
        """Return what is in staging and quarantine, and temporary files."""
        found = [*(self.data / ".staging").glob("*"), *(self.data / "quarantine").glob("*")]
        for folder in (self.run, self.policies, self.data):
            found += folder.rglob("*.tmp")
        return found
