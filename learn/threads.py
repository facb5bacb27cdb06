"""`ThreadTuner` and `limit_spinning`: share the cores with other processes.

`ThreadTuner` uses as many CPU threads as are fastest while other processes come and go.

An update consists of hundreds of parallel regions, and each waits for its slowest thread. If
another process uses one of the cores, that thread waits for its turn, and two threads can be three
times slower than one. The tuner changes the number of threads only if there is a reason to: the
kernel reports that threads of this process wait for a core, there is an idle core, or updates have
become slower. It then does a few updates with another number, and keeps that number if they are
faster. On an idle machine it changes nothing.

OpenMP reads its environment variables when torch is loaded, so this module does not import torch,
and programs call `limit_spinning` first.
"""

import dataclasses
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

AUTO = "auto"
"""Value of ``learn.threads`` that asks for a `ThreadTuner`."""
CHECK_S = 1.0
"""Seconds between two looks at the load of the machine."""
WAIT_SHARE = 0.08
"""Share of the time that the threads wait for a core, above which fewer threads are tried."""
IDLE_CORES = 0.6
"""Idle cores above which more threads are tried."""
SLOWER = 1.3
"""Factor by which updates become slower before another number of threads is tried."""
GAIN = 0.95
"""A number of threads is kept if its updates take at most this share of the time."""
HOPELESS = 1.6
"""A trial ends as soon as a group of updates takes this many times as long as before, and twice as
many in the first group, which also starts the threads."""
TRIED = 3
"""Measured groups of updates in a trial, after one that is not measured."""
PAUSE_S, LONGEST_PAUSE_S = 10.0, 160.0
"""Pause after a trial that brought nothing; it doubles each time up to the longest one."""
_NS = 1e9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the kernel reports about the time since the last look."""

    waiting: float
    """Mean number of threads of this process that could have run, but waited for a core."""
    idle: float
    """Mean number of idle cores among those that this process may use."""


class KernelLoad:
    """The load of the machine according to ``/proc``, on Linux."""

    def __init__(self) -> None:
        self._before: tuple[float, float, float] | None = None

    def read(self) -> Load | None:
        """Return the load since the last call; None at the first, or without ``/proc``."""
        try:
            now = (time.monotonic(), _waited_s(), _idle_s())
        except (OSError, ValueError, IndexError):
            return None
        before, self._before = self._before, now
        if before is None or now[0] <= before[0]:
            return None
        seconds = now[0] - before[0]
        waiting, idle = ((now[i] - before[i]) / seconds for i in (1, 2))
        return Load(waiting=max(0.0, waiting), idle=max(0.0, idle))


def _waited_s() -> float:
    """Return the seconds that the threads of this process have waited for a core (proc(5))."""
    total = 0
    for task in os.scandir("/proc/self/task"):
        try:
            text = Path(task.path, "schedstat").read_text(encoding="ascii")
        except OSError:  # the thread has ended
            continue
        total += int(text.split()[1])
    return total / _NS


def _idle_s() -> float:
    """Return the seconds that the usable cores have been idle (proc(5))."""
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    total = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if fields and fields[0] in cores:
            total += int(fields[4]) + int(fields[5])  # idle and waiting for a disk
    return total / os.sysconf("SC_CLK_TCK")


def limit_spinning() -> None:
    """Set ``GOMP_SPINCOUNT`` for this process, unless the environment controls spinning already.

    By default, a thread of OpenMP that has finished its part of an update spins for about 17 ms
    before it sleeps. If a collector uses the same two cores, an update of 64 images then takes 500
    to 1400 ms. With this setting it spins for 0.3 ms, and the update takes 120 to 240 ms; without a
    collector, 121 instead of 114 ms.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


@dataclasses.dataclass(slots=True)
class _Trial:
    threads: int
    began_s: float
    groups: list[float] = dataclasses.field(default_factory=list)


class ThreadTuner:
    """Set the number of torch's CPU threads to the fastest one, and follow changes of the load.

    Args:
        most: Largest number of threads; None for torch's default.
        group: Number of updates that are timed together: the actor's update is not in each of them.
        read_load: Returns the load since its last call; None at the first, or if it is not known.
        set_threads: Sets the number of threads; None for that of torch.
        clock: Returns seconds.
    """

    def __init__(
        self,
        most: int | None = None,
        *,
        group: int = 1,
        read_load: Callable[[], Load | None] | None = None,
        set_threads: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import torch

        self.most = torch.get_num_threads() if most is None else most
        self.threads = self.most
        """The number in use, or the one that is being tried."""
        self._group, self._clock = group, clock
        self._set = set_threads or torch.set_num_threads
        self._read_load = read_load or KernelLoad().read
        self._steady = self.most
        self._open: list[float] = []
        self._recent: deque[float] = deque(maxlen=8)
        self._best: dict[int, float] = {}
        self._trial: _Trial | None = None
        self._next_check_s = clock() + CHECK_S
        self._pauses: dict[int, float] = {}
        self._not_before: dict[int, float] = {}

    def add(self, seconds: float) -> None:
        """Add the time of an update, and change the number of threads if that is worth it.

        Args:
            seconds: Wall-clock time of the update, without waiting for data.
        """
        self._open.append(seconds)
        if self._trial is not None and self._is_hopeless(self._trial):
            self._end_trial(self._trial, is_better=False)
            return
        if len(self._open) < self._group:
            return
        taken = sum(self._open)
        self._open.clear()
        if self._trial is not None:
            self._continue(self._trial, taken)
            return
        self._recent.append(taken)
        self._best[self._steady] = min(self._best.get(self._steady, taken), self._median())
        if self._clock() >= self._next_check_s and len(self._recent) >= TRIED:
            self._next_check_s = self._clock() + CHECK_S
            self._check()

    def _median(self) -> float:
        return statistics.median(self._recent)

    def _check(self) -> None:
        load, now_s = self._read_load(), self._clock()
        is_slower = self._median() > SLOWER * self._best[self._steady]
        for threads in self._candidates(load, is_slower=is_slower):
            possible = 0 < threads <= self.most and threads != self._steady
            if possible and now_s >= self._not_before.get(threads, now_s):
                self._trial = _Trial(threads, now_s)
                self._use(threads)
                return
        if is_slower:  # no number is better now: compare with what is possible now
            self._best[self._steady] = self._median()

    def _candidates(self, load: Load | None, *, is_slower: bool) -> list[int]:
        """Return the numbers of threads that are worth a trial, the most promising first."""
        now, found = self._steady, []
        is_waiting = load is not None and load.waiting > WAIT_SHARE * now
        if load is not None and is_waiting:
            found.append(now - math.ceil(load.waiting))
        if load is not None and load.idle > IDLE_CORES:
            found.append(min(self.most, now + math.ceil(load.idle - IDLE_CORES)))
        if found or is_slower:
            found += [now // 2] if is_slower or found[0] < now else []
            # More threads than cores would only wait for each other.
            found += [min(2 * now, self.most)] if is_slower and not is_waiting else []
        return found

    def _is_hopeless(self, trial: _Trial) -> bool:
        factor = HOPELESS if trial.groups else 2.0 * HOPELESS
        return sum(self._open) > factor * self._median()

    def _continue(self, trial: _Trial, taken: float) -> None:
        trial.groups.append(taken)
        measured = trial.groups[1:]
        if len(measured) == TRIED:
            better = statistics.median(measured) <= GAIN * self._median()
            self._end_trial(trial, is_better=better)

    def _end_trial(self, trial: _Trial, *, is_better: bool) -> None:
        self._trial = None
        self._open.clear()
        now_s = self._clock()
        if is_better:
            self._steady = trial.threads
            self._recent.clear()
            self._recent.extend(trial.groups[1:])
            self._best = {self._steady: self._median()}
            self._pauses.clear()
            self._not_before.clear()
        else:
            pause_s = self._pauses.get(trial.threads, PAUSE_S)
            pause_s = max(pause_s, 30.0 * (now_s - trial.began_s))
            self._not_before[trial.threads] = now_s + pause_s
            self._pauses[trial.threads] = min(2.0 * pause_s, LONGEST_PAUSE_S)
        self._use(self._steady)
        self._read_load()  # the next look is about the time from here on
        self._next_check_s = now_s + CHECK_S

    def _use(self, threads: int) -> None:
        self.threads = threads
        self._set(threads)
