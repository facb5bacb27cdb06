"""Commands that are started, measured, killed and started again."""

import contextlib
import dataclasses
import math
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

TICK_S = 0.25
ORPHAN_S = 120.0
"""Seconds in which the processes of a killed command must have ended."""
STOP_S = 300.0
"""Seconds in which a command must end after SIGTERM."""
NICENESS = 10
"""Lowest priority of the processes, unless that of the soak is lower."""
UNREACHABLE, ATTEMPTS = 3, 3
"""Exit code of a command that could not reach something, and how often the last ones are run."""
PAUSE_S = 2.0
"""Seconds between the end of a command and its next start."""
CHECKED_S = 180.0
"""Seconds of the second half of a lifetime from which on growth is checked."""
MEMORY_SHARE, MEMORY_MB, FILES = 0.03, 6.0, 8.0
"""Most growth over the second half of a lifetime: memory by the larger of two, open files."""


class Surroundings(Protocol):
    """What a command needs to know of the soak that it is part of."""

    work: Path
    random: random.Random
    kills_until_s: float
    """Time from which on no command that runs for ever is killed, so that its growth shows."""

    def problem(self, text: str) -> None:
        """Record something that must not happen."""

    def note(self, name: str) -> None:
        """Count a worker of a command that was killed."""

    def environment(self, rate: float) -> Mapping[str, str]:
        """Return the variables of a process in which a share of the calls fail."""
        ...


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

    changed_s: float = 0.0
    """Seconds since its start at which one of its workers was killed last."""

    @property
    def half(self) -> list[tuple[float, float, int]]:
        """The second half of the samples since a worker was killed."""
        since = [sample for sample in self.samples if sample[0] > self.changed_s]
        return since[len(since) // 2 :]

    def growth(self) -> tuple[float, float, float, float]:
        """Return the MB and the open files that it gained over its second half, then per hour.

        They are the rise of the least-squares line through the samples of that half.
        """
        half = self.half
        seconds = [sample[0] for sample in half]
        span_s = seconds[-1] - seconds[0]
        slopes = [
            statistics.linear_regression(seconds, [float(sample[n]) for sample in half]).slope
            for n in (1, 2)
        ]
        return (*(slope * span_s for slope in slopes), *(slope * 3600.0 for slope in slopes))  # type: ignore[return-value]

    @property
    def is_long_enough(self) -> bool:
        """Whether it ran for so long that it must not have grown."""
        half = self.half
        return len(half) >= 20 and half[-1][0] - half[0][0] >= CHECKED_S

    def check_growth(self) -> str:
        """Return how much it grew, if that is too much."""
        if not self.is_long_enough:
            return ""
        memory_mb, files = self.growth()[:2]
        most_mb = max(MEMORY_MB, MEMORY_SHARE * statistics.median(mb for _, mb, _ in self.half))
        if memory_mb > most_mb:
            return f"its memory grew by {memory_mb:.1f} MB in its second half, over {most_mb:.1f}"
        if files > FILES:
            return f"its open files grew by {files:.1f} in its second half, over {FILES:.0f}"
        return ""


class Role:
    """A command that is started again whenever it ends.

    Args:
        name: Its name in the report and of its log.
        words: Returns the command.
        soak: What it is part of.
        codes: Exit codes that it may have.
        kill_after_s: Mean time until it is killed.
        rates: Shares of failing calls, of which each process gets one.
        is_lasting: Whether it runs until it is stopped.
        keeps_all: Whether it keeps all data, of which there are always more, so that it must grow.
    """

    def __init__(
        self,
        name: str,
        words: Callable[[], Sequence[str]],
        soak: Surroundings,
        *,
        codes: Sequence[int],
        kill_after_s: float = 1.0,
        rates: Sequence[float] = (0.0,),
        is_lasting: bool = False,
        keeps_all: bool = False,
    ) -> None:
        self.name, self.codes, self.lifetimes = name, tuple(codes), list[Lifetime]()
        self._words, self._soak, self._mean_s = words, soak, kill_after_s
        self._rates, self._kill_s, self._next_s = rates, float("inf"), 0.0
        self._is_lasting, self.keeps_all = is_lasting, keeps_all
        self._group: subprocess.Popen[bytes] | None = None
        self._orphans: list[tuple[int, float]] = []
        self.log = soak.work / "logs" / f"{name.replace(' ', '-')}.log"

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self._group is not None and self._group.poll() is None

    @property
    def kills(self) -> int:
        """How often it was killed."""
        return sum(life.ending == "SIGKILL" for life in self.lifetimes)

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
                env=soak.environment(soak.random.choice(self._rates) if rate is None else rate),
                start_new_session=True,
                preexec_fn=_become_background,
            )
        self._kill_s = self._later() if may_die else float("inf")

    def _later(self) -> float:
        """Draw the time of the next kill; a command that runs for ever is killed at least once."""
        now, wait_s = time.monotonic(), self._soak.random.expovariate(1.0) * self._mean_s
        if self._is_lasting and not self.kills and math.isfinite(self._mean_s):
            wait_s = min(wait_s, (self._soak.kills_until_s - now) * self._soak.random.random())
        kill_s = now + max(wait_s, 1.0)
        is_spared = self._is_lasting and kill_s >= self._soak.kills_until_s
        return float("inf") if is_spared else kill_s

    def tick(self) -> bool:
        """Kill the command if it is time to; return whether it ended since the last call."""
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
        """Kill the command, or one of its workers, at once; the command itself first."""
        assert self._group is not None
        members = group_members(self._group.pid) if self.kills else []
        victim = self._soak.random.choice(members) if members else self._group.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim != self._group.pid:  # the command must notice, and end by itself
            self._kill_s = self._later()
            life = self.lifetimes[-1]
            life.changed_s = time.monotonic() - life.started_s
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

    def run_last(self) -> None:
        """Run the command without failures; it must end with 0.

        A machine that is too busy may let a request fail for a minute, which the code says.
        """
        for _ in range(ATTEMPTS):
            self.start(may_die=False, rate=0.0)
            if (code := self.wait()) != UNREACHABLE:
                break
        if code:
            self._soak.problem(f"the last {self.name} ended with {code}: {self.tail()}")

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

    @property
    def longest(self) -> Lifetime | None:
        """The lifetime that was measured for longest without a kill of a worker."""
        return max(self.lifetimes, key=lambda life: len(life.half), default=None)

    def tail(self) -> str:
        """Return the last line that the command printed."""
        lines = self.log.read_bytes()[-4000:].decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _become_background() -> None:
    """Lower the priority, and let Ctrl-C's signal work again, which `&` of a shell ignores."""
    os.nice(max(NICENESS - os.nice(0), 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
