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

The settings of each plan are in ``DATASET/.plans``. A resumed collection keeps them, and those that
it changes are recorded there; see `choose_plan` of `avtd3.collect.collector`.

Training seeds are even, evaluation seeds odd. Worlds choose road networks by this bit, so no
dataset contains a road of the evaluation.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Collection, Iterator, Mapping
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
from avtd3.store.files import canonical_json, exists, read_json, sha256, storage_errors, write_aside
from avtd3.store.format.layout import GROUP_FILE, STAGING
from avtd3.store.locks import ExclusiveLock
from avtd3.store.remote.client import LocalPlace
from avtd3.store.remote.commit import Unit, claim_unit, claims_of, read_manifest_bytes
from avtd3.store.render.text import plural
from avtd3.store.settings import Difference, as_json, differences
from avtd3.store.staging import complete_publishing

PLANS = ".plans"  # directory in a dataset with the settings and a lock file of each plan
_KILLED_WAIT_S, _ORPHAN_WAIT_S, _LOCK_POLL_S = 1.0, 30.0, 0.05
MAX_SEED = 2**62 - 1
UNIT = 8
"""Consecutive episodes of a unit of work on a Dask cluster; they become one segment. It is part of
what a claim means: a change would let two versions collect the same episodes twice."""
_OPTIONS: dict[str, Any] = {"steps": int, "episodes": int, "seconds": float | int, "policies": str}
_REPEATS = 10_000_000
"""Distance between the numbers of a unit and of what is missing of it later."""
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
class StoredPlan:
    """The settings with which a plan was collected last."""

    digest: str
    """Digest of the plan."""
    config: Mapping[str, Any]
    """Settings of the collection, the section ``collect``."""
    options: Mapping[str, Any]
    """Options of the command: ``steps``, ``episodes``, ``seconds`` and ``policies``; empty for a
    plan of an older version, of which only the segments are known."""
    changes: tuple[Mapping[str, Any], ...] = ()
    """Settings that were changed when the plan was resumed."""

    @property
    def seed(self) -> object:
        """Seed of the plan."""
        return self.config.get("seed")

    @property
    def is_valid(self) -> bool:
        """Whether a file has values of these types."""
        parts = (self.config, self.options, *self.changes)
        if not (isinstance(self.digest, str) and all(isinstance(part, dict) for part in parts)):
            return False
        return all(isinstance(self.options.get(n), kind | None) for n, kind in _OPTIONS.items())

    def record(self, path: Path, *, before: "StoredPlan | None", from_step: int) -> list[str]:
        """Write the plan to its file in a dataset; return what changed since before, as text."""
        found: list[Difference] = []
        if before is not None:
            found = differences(before.config, self.config, "collect.")
            found += differences(before.options, self.options, "")
        recorded = (
            *(before.changes if before else ()),
            *({**dataclasses.asdict(change), "from_step": from_step} for change in found),
        )
        document = {**dataclasses.asdict(self), "changes": recorded}
        write_aside(_plan_file(path, self.digest), canonical_json(as_json(document)))
        return [f"{change} after {from_step} steps" for change in found]


def stored_plans(path: Path) -> list[StoredPlan]:
    """Return the plans of a dataset; older ones from what their newest segment says."""
    if not exists(path / GROUP_FILE):
        return []
    found: dict[str, StoredPlan] = {}
    for segment in Dataset.open(path).snapshot(check_files=False).segments:
        plan, config = (segment.provenance.get(key) for key in ("plan_digest", "config"))
        if isinstance(plan, str) and isinstance(config, dict):
            found[plan] = StoredPlan(digest=plan, config=config, options={})
    for file in sorted((path / PLANS).glob("*.json")):
        plan = _read_plan(file)
        found[plan.digest] = plan
    return list(found.values())


def stored_plan(path: Path, plan_digest: str) -> StoredPlan | None:
    """Return what the file of a plan says; None if there is no file."""
    file = _plan_file(path, plan_digest)
    return _read_plan(file) if exists(file) else None


def _plan_file(path: Path, plan_digest: str) -> Path:
    return path / PLANS / f"{plan_digest[:16]}.json"


def _read_plan(file: Path) -> StoredPlan:
    try:
        plan = StoredPlan(**read_json(file))
        problem = "" if plan.is_valid else "a value has another type"
    except (TypeError, ValueError) as error:
        problem = str(error)
    if problem:
        raise ConfigError(
            f"{file} cannot be read: {problem}; move it away, and give the settings of the plan "
            "again"
        )
    return plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One worker's part of a plan."""

    amount: Amount
    held: frozenset[int]
    held_steps: int
    worker: int = 0
    workers: int
    unit: tuple[int, ...] | None = None
    """Exactly these episodes, on a Dask cluster; None for what the amount says."""

    @property
    def steps(self) -> int | None:
        """Steps that this worker has to collect; None if the amount is not in steps."""
        if self.amount.steps is None or self.unit is not None:
            return None
        left = max(self.amount.steps - self.held_steps, 0)
        return left // self.workers + (self.worker < left % self.workers)

    def indices(self) -> Iterator[int]:
        """Yield the episodes to collect, in order; endless unless the amount is in episodes."""
        if self.unit is not None:
            yield from self.unit
            return
        if self.amount.episodes is not None:
            missing = [i for i in range(self.amount.episodes) if i not in self.held]
            first, stop = (len(missing) * n // self.workers for n in (self.worker, self.worker + 1))
            yield from missing[first:stop]
            return
        for group in itertools.count(self.worker, self.workers):
            indices = range(group * GROUP, (group + 1) * GROUP)
            yield from (index for index in indices if index not in self.held)


def stop_key(plan_digest: str) -> str:
    """Return the file in a dataset that stops the units of a plan that run on a Dask cluster."""
    return f"{claims_of(plan_digest)}.stop"


def claimed_units(dataset: Path, plan_digest: str) -> set[int]:
    """Return the numbers of the units of a plan that were claimed, and publish their segments.

    A process that ends right after a claim leaves its segment whole, but not yet published.
    """
    place = LocalPlace(dataset)
    keys = [Path(key) for key in place.sizes(f"{claims_of(plan_digest)}/")]
    if place.folders(STAGING):
        for key in keys:
            manifest = read_manifest_bytes(place, place.read(str(key)))
            complete_publishing(dataset, manifest.segment_id)
    return {int(key.stem) for key in keys if key.stem.isdecimal()}


def units_of(
    amount: Amount, held: Collection[int], claimed: Collection[int]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield numbers of units, and the episodes that a dataset lacks of them.

    The number follows from the episodes alone, so that a unit that is still running for a client
    that has ended competes for the same claim as a new one. What is missing of a unit that was
    claimed, such as an episode that was skipped, is a unit with another number.
    """
    for number in itertools.count():
        first, stop = number * UNIT, (number + 1) * UNIT
        if amount.episodes is not None:
            stop = min(stop, amount.episodes)
        if first >= stop:
            return
        if missing := tuple(index for index in range(first, stop) if index not in held):
            free = (n for n in itertools.count(number, _REPEATS) if n not in claimed)
            yield next(free), missing


def claim_segment(dataset: Path, plan_digest: str, number: int, manifest: bytes) -> bool:
    """Claim a unit for the segment with a manifest; return whether it has it.

    If another segment has it, publish that one, in case its process has ended.
    """
    place = LocalPlace(dataset)
    winner = claim_unit(place, Unit(plan=plan_digest, number=number), manifest)
    if winner != manifest:
        complete_publishing(dataset, read_manifest_bytes(place, winner).segment_id)
    return winner == manifest
