"""The plan of a collection: which episodes to collect, and which of them a dataset already has.

The index of an episode determines the episode: world, scenario, driver and every random number of
episode i follow from the plan's seed and i. So, for drivers other than policies,

- episode i has the same bytes, whatever the number of workers and whatever ran before it;
- ``episodes = N`` collects exactly the episodes 0 to N - 1; each worker takes an equal, contiguous
  part of those that the dataset lacks;
- ``steps = N`` gives each worker an equal share of the remaining steps; worker w of W takes the
  groups w, w + W, w + 2W, ... of `GROUP` episodes, and stops after the episode with which it
  reaches its share. The dataset then has at least N steps of whole episodes; how many more, and
  which episodes, depends on the number of workers;
- ``seconds = S`` does the same for S seconds of wall-clock time and cuts the running episodes.

The plan's digest is stored in every segment. Collecting again with the same digest would store the
same episodes twice: that is refused, unless the collection is resumed, which adds the missing ones.
An episode that was cut short counts as present, also if the simulator was lost; a skipped one does
not, nor one that ran when the collection was killed. Without a time limit, `steps` cuts an episode.

Training seeds are even, evaluation seeds odd. Worlds choose road networks by this bit, so no
dataset contains a road of the evaluation.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.collect.checks import check_number
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    ConfigError,
    InUseError,
    SegmentCorruptError,
    SegmentNotFoundError,
    UnreadableError,
)
from avtd3.store.files import canonical_json, sha256, storage_errors
from avtd3.store.locks import ExclusiveLock
from avtd3.store.render.text import plural

PLANS = ".plans"  # directory in a dataset with a lock file for each plan
_KILLED_WAIT_S, _ORPHAN_WAIT_S, _LOCK_POLL_S = 1.0, 30.0, 0.05
MAX_SEED = 2**62 - 1
GROUP = 4
"""Consecutive episodes with consecutive seeds. A world may let them share what is expensive to
make: the built-in simulator drives them on one network, which takes a third of an episode's time
to build. A larger group would be cheaper but less varied: with eight, the demo
(docs/experiments.md) drove 10 of 20 held-out roads, having seen half as many."""


def training_seed(seed: int, index: int) -> int:
    """Return the seed of an episode of a plan: even, 62 bits, consecutive within a group."""
    group, place = divmod(index, GROUP)
    return (_spread(seed, group) // GROUP * GROUP + place) << 1


def evaluation_seed(seed: int, index: int) -> int:
    """Return the seed of an episode of an evaluation: odd, 62 bits."""
    return _spread(seed, index) << 1 | 1


def _spread(seed: int, index: int) -> int:
    word = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return int(word) >> 3


def episode_generator(episode_seed: int) -> np.random.Generator:
    """Return the generator of an episode's driver and noise, independent of the world's."""
    return np.random.default_rng((episode_seed, 0xD21))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much to collect: exactly one of the three is set."""

    steps: int | None = None
    episodes: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) != 1:
            named = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
            raise ConfigError(f"one of steps, episodes and seconds must be given, found {named}")
        for name, value in given.items():
            check_number(name, value)

    def fraction(
        self, held: Mapping[int, int], steps: int, episodes: int, elapsed_s: float
    ) -> float:
        """Return the fraction of the work that is done, in [0, 1]."""
        done, wanted, _ = self._progress(held, steps, episodes)
        if self.seconds is not None:
            return min(elapsed_s / max(self.seconds, 1e-9), 1.0)
        return min(done / max(wanted, 1e-9), 1.0)

    def missing(self, held: Mapping[int, int], steps: int, episodes: int) -> str:
        """Return what is missing (``3 episodes``); empty if nothing is, or if time is counted."""
        done, wanted, unit = self._progress(held, steps, episodes)
        return plural(wanted - done, unit) if done < wanted else ""

    def _progress(self, held: Mapping[int, int], steps: int, episodes: int) -> tuple[int, int, str]:
        if self.steps is not None:
            return steps + sum(held.values()), self.steps, "step"
        wanted = self.episodes or 0  # the dataset may have more episodes, of a longer plan
        return episodes + sum(index < wanted for index in held), wanted, "episode"


def digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document of plain JSON values, in hexadecimal."""
    return sha256(canonical_json(document))


def held_episodes(dataset: Dataset, plan_digest: str) -> dict[int, int]:
    """Return index and steps of each episode of a plan in a dataset, except in damaged segments."""
    held: dict[int, int] = {}
    snapshot = dataset.snapshot()
    for refusal in snapshot.refused:
        if refusal.is_unreadable:
            raise UnreadableError(f"cannot find out what to resume: {refusal.reason}")
    for segment in snapshot.segments:
        if segment.provenance.get("plan_digest") == plan_digest:
            try:
                table = segment.episode_table()
            except (SegmentCorruptError, SegmentNotFoundError):
                continue
            held.update(zip(table.index.tolist(), table.length.tolist(), strict=True))
    return held


@contextlib.contextmanager
def lock_plan(dataset: Dataset, plan_digest: str) -> Iterator[None]:
    """Let one collection at a time collect a plan: two would collect the same episodes twice.

    Workers that outlived a killed collection still publish their whole episodes, so wait for them.
    """
    folder, name = dataset.path / PLANS, plan_digest[:16]
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as mine:
        _wait_for(mine, folder / f"{name}.lock", _KILLED_WAIT_S)
        with contextlib.ExitStack() as orphans:
            for path in folder.glob(f"{name}-*.lock"):
                _wait_for(orphans, path, _ORPHAN_WAIT_S)
        yield


def _wait_for(stack: contextlib.ExitStack, path: Path, wait_s: float) -> None:
    """Take a lock that whoever holds it may be about to release."""
    deadline_s = time.monotonic() + wait_s
    while True:
        lock = ExclusiveLock(path.parent, purpose="avtd3 collect", name=path.name)
        try:
            stack.enter_context(lock)
        except InUseError:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(_LOCK_POLL_S)
        else:
            return


def lock_share(dataset: Path, plan_digest: str, worker: int) -> ExclusiveLock:
    """Return the lock that a worker process holds while it collects its share of a plan."""
    name = f"{plan_digest[:16]}-{worker}.lock"
    return ExclusiveLock(dataset / PLANS, purpose=f"avtd3 collect, worker {worker}", name=name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One worker's part of a plan."""

    amount: Amount
    held: frozenset[int]
    held_steps: int
    worker: int = 0
    workers: int

    @property
    def steps(self) -> int | None:
        """Steps that this worker has to collect; None if the amount is not in steps."""
        if self.amount.steps is None:
            return None
        left = max(self.amount.steps - self.held_steps, 0)
        return left // self.workers + (self.worker < left % self.workers)

    def indices(self) -> Iterator[int]:
        """Yield the episodes to collect, in order; endless unless the amount is in episodes."""
        if self.amount.episodes is not None:
            missing = [i for i in range(self.amount.episodes) if i not in self.held]
            first, stop = (len(missing) * n // self.workers for n in (self.worker, self.worker + 1))
            yield from missing[first:stop]
            return
        for group in itertools.count(self.worker, self.workers):
            indices = range(group * GROUP, (group + 1) * GROUP)
            yield from (index for index in indices if index not in self.held)
