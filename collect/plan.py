"""`CollectPlan`: which episodes are to be collected, and which of them a dataset already holds.

An episode is its index: world, scenario, driver and every random number of episode i follow from
the plan's seed and i. So, for drivers other than policies,

- episode i has the same bytes whatever the number of workers and whatever ran before it;
- ``episodes = N`` collects exactly the episodes 0 to N - 1; each worker takes an equal, contiguous
  part of those that the dataset lacks;
- ``steps = N`` gives each worker an equal share of the steps still to do; worker w of W takes
  the groups w, w + W, w + 2W, ... of `GROUP` episodes, and stops after the episode with which it
  reaches its share. The dataset then holds at least N steps of whole episodes; how many more,
  and which episodes, depends on the number of workers;
- ``seconds = S`` collects likewise for S seconds of wall clock and cuts the running episodes.

The plan's digest goes into every segment. Collecting again under the same digest would store the
same episodes twice: that is refused, unless it is a resumption, which adds the missing ones. An
episode that was cut short, by a lost simulator too, counts as held; one that was skipped does not.

Training seeds are even, evaluation seeds odd. Worlds draw road networks by this bit, so no dataset
ever holds a road of the evaluation.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from avtd3.collect.checks import check_number
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.files import canonical_json, sha256
from avtd3.store.render.text import plural

_TRAINING, _EVALUATION = 0, 1
MAX_SEED = 2**62 - 1
"""Largest seed of a plan and of an episode."""
GROUP = 4
"""Episodes in a row whose seeds follow one another. A world may let them share what is dear to
make: the road world drives them on one network, which takes a third of an episode's time to build.
More would be cheaper and teach less: with eight, the demo (docs/experiments.md) drove 10 of 20
held-out roads, having seen half as many."""


def training_seed(seed: int, index: int) -> int:
    """Seed of an episode of a plan: even, 62 bits; successive within a group."""
    group, place = divmod(index, GROUP)
    return (_spread(seed, group) // GROUP * GROUP + place) << 1 | _TRAINING


def evaluation_seed(seed: int, index: int) -> int:
    """Seed of an episode of an evaluation: odd, 62 bits."""
    return _spread(seed, index) << 1 | _EVALUATION


def _spread(seed: int, index: int) -> int:
    word = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return int(word) >> 3


def episode_generator(episode_seed: int) -> np.random.Generator:
    """The generator from which an episode's driver is drawn, and then its noise.

    Apart from the world's, which is seeded with the number itself: the driver cannot be guessed
    from the road.
    """
    return np.random.default_rng((episode_seed, 0xD21))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much to collect: one of the three is set."""

    steps: int | None = None
    """Steps that the dataset shall hold of this plan, at least."""
    episodes: int | None = None
    """Episodes that it shall hold, exactly."""
    seconds: float | None = None
    """Seconds of wall clock to collect for."""

    def __post_init__(self) -> None:
        given = {
            name: value
            for name in ("steps", "episodes", "seconds")
            if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            named = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
            raise ConfigError(f"one of steps, episodes and seconds must be given, found {named}")
        for name, value in given.items():
            check_number(name, value)

    def fraction(
        self, held: Mapping[int, int], steps: int, episodes: int, elapsed_s: float
    ) -> float:
        """Share of the work that is done, in [0, 1].

        Args:
            held: What the dataset held before, see `held_episodes`.
            steps: Steps collected since.
            episodes: Episodes collected since.
            elapsed_s: Wall clock since.
        """
        if self.seconds is not None:
            done, all_ = elapsed_s, self.seconds
        elif self.steps is not None:
            done, all_ = steps + sum(held.values()), self.steps
        else:
            done, all_ = episodes + self._below(held), self.episodes or 0
        return min(done / max(all_, 1e-9), 1.0)

    def missing(self, held: Mapping[int, int], steps: int, episodes: int) -> str:
        """What is still to be collected (``3 episodes``); empty if nothing is, or time is counted.

        Args:
            held: What the dataset held before, see `held_episodes`.
            steps: Steps collected since.
            episodes: Episodes collected since.
        """
        if self.steps is not None:
            left, name = self.steps - steps - sum(held.values()), "step"
        else:
            left, name = (self.episodes or 0) - episodes - self._below(held), "episode"
        return plural(left, name) if left > 0 else ""

    def _below(self, held: Mapping[int, int]) -> int:
        """Held episodes that count: a longer plan may have been held."""
        return sum(index < (self.episodes or 0) for index in held)


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document of plain JSON values, in hexadecimal."""
    return sha256(canonical_json(document))


def held_episodes(dataset: Dataset, plan_digest: str) -> dict[int, int]:
    """Episodes of a plan that a dataset holds: index to number of steps.

    Segments that cannot be read are passed over: their episodes are collected again.
    """
    held: dict[int, int] = {}
    for segment in dataset.snapshot().segments:
        if segment.provenance.get("plan_digest") == plan_digest:
            table = segment.episode_table()
            held.update(zip(table.index.tolist(), table.length.tolist(), strict=True))
    return held


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One worker's part of a plan."""

    amount: Amount
    """The whole plan's amount."""
    held: frozenset[int]
    """Indices of the episodes that the dataset already holds."""
    held_steps: int
    """Their steps."""
    worker: int
    """Number of the worker, from 0."""
    workers: int
    """How many there are."""

    @property
    def steps(self) -> int | None:
        """Steps that this worker has to do; None when steps are not what is counted."""
        if self.amount.steps is None:
            return None
        left = max(self.amount.steps - self.held_steps, 0)
        return left // self.workers + (self.worker < left % self.workers)

    def indices(self) -> Iterator[int]:
        """The episodes to collect, in order; endless when episodes are not what is counted."""
        if self.amount.episodes is not None:
            missing = [i for i in range(self.amount.episodes) if i not in self.held]
            count, worker = len(missing), self.worker
            yield from missing[
                count * worker // self.workers : count * (worker + 1) // self.workers
            ]
            return
        for group in itertools.count(self.worker, self.workers):
            indices = range(group * GROUP, (group + 1) * GROUP)
            yield from (index for index in indices if index not in self.held)
