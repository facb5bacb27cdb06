"""Which transitions make a batch: `Draws` samples uniformly or by shares, `Priorities` by TD error.

Both sample numbers of a `TransitionIndex` from a seed, and resume exactly from a saved state.
`group_draws` gives each episode its share of the draws.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import CheckpointError
from avtd3.store.filters import NO_POLICY
from avtd3.store.format.layout import MAX_STEPS
from avtd3.store.replay.cache import ReplayCache
from avtd3.store.replay.config import PriorityConfig, ReplayConfig
from avtd3.store.replay.eligibility import Eligibility
from avtd3.store.replay.scratch import Key


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransitionIndex:
    """Numbers the transitions of the E episodes that may be sampled, one episode after another.

    A transition is a decision of `ReplayConfig.action_repeat` steps, or fewer at the end.
    """

    keys: tuple[Key, ...]
    """Segments, by dataset, then content: the batches do not depend on when or by which collector
    the same episodes were published."""
    segment: NDArray[np.int64]
    """int64 (E,), index in `keys` of each episode's segment."""
    first_step: NDArray[np.int64]
    """int64 (E,), first step of each episode in its segment."""
    lengths: NDArray[np.int64]
    """int64 (E,), decisions of each."""
    stored: NDArray[np.int64]
    """int64 (E,), stored steps of each."""
    first_rows: NDArray[np.int64]
    """int64 (E,), row of each episode's first observation in the backend."""
    bc_mask: NDArray[np.float32] | None
    """float32 (E,), 1 where the steps are marked for imitation, else 0; None if all are."""

    @classmethod
    def of(cls, backend: ReplayCache, eligibility: Eligibility, action_repeat: int = 1) -> Self:
        """Number the transitions that a backend holds and that may be sampled."""
        loaded = {key: found for key, found in backend.segments.items() if eligibility.knows(key)}
        keys = tuple(sorted(loaded, key=lambda key: (key[0], loaded[key].content, key)))
        chosen = [eligibility.eligible(key) for key in keys]
        lengths = [loaded[key].episodes.lengths for key in keys]
        starts = [ends.cumsum() - ends for ends in lengths]
        first = [backend.start(key) + loaded[key].first_rows for key in keys]
        counts = [len(values[mask]) for values, mask in zip(lengths, chosen, strict=True)]
        bc_mask = None
        if not eligibility.imitates_all:
            marks = [eligibility.facts(key).bc_mask for key in keys]
            bc_mask = _join(marks, chosen).astype(np.float32)
        stored = _join(lengths, chosen)
        return cls(
            keys=keys,
            segment=np.repeat(np.arange(len(keys)), counts),
            first_step=_join(starts, chosen),
            lengths=-(-stored // action_repeat),
            stored=stored,
            first_rows=_join(first, chosen),
            bc_mask=bc_mask,
        )

    @property
    def steps(self) -> int:
        """Number of transitions."""
        return int(self.lengths.sum())

    def digest(self, groups: "DrawGroups") -> str:
        """Return the SHA-256 of which episodes of the segments are numbered, and their shares."""
        hashed = hashlib.sha256(repr(self.keys).encode())
        for array in (self.segment, self.first_step, groups.counts, groups.shares):
            hashed.update(b"" if array is None else array.tobytes())
        return hashed.hexdigest()

    def sequence_starts(self, length: int) -> NDArray[np.int64]:
        """Return how many sequences of `length` steps begin in each episode: int64 (E,)."""
        return np.maximum(self.lengths - (length - 1), 0)

    def number(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number places, of which each episode has so many, int64 (E,).

        Return the number after each episode's last place, and the difference between the row and
        the number of its places, both int64 (E,).
        """
        ends: NDArray[np.int64] = places.cumsum()
        return ends, self.first_rows - (ends - places)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DrawGroups:
    """Groups of numbers, and the share of the draws of each group; see `Draws.bind`."""

    counts: NDArray[np.int64]
    """int64 (G,), how many numbers each group has."""
    shares: NDArray[np.float64] | None
    """float64 (G,), shares of the draws; None if all numbers are equally likely."""
    of_episode: NDArray[np.int64]
    """int64 (E,), group of each episode."""

    def by_episode(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the share of each episode, float64 (E,) with sum 1, given its number of places."""
        if self.shares is None:
            uniform: NDArray[np.float64] = places / max(places.sum(), 1)
            return uniform
        within = places / np.maximum(self.counts, 1)[self.of_episode]
        found: NDArray[np.float64] = self.shares[self.of_episode] * within
        return found / found.sum() if len(found) else found


def group_draws(
    index: TransitionIndex,
    places: NDArray[np.int64],
    eligibility: Eligibility,
    config: ReplayConfig,
    datasets: int,
) -> DrawGroups:
    """Return the groups and shares that the weights, mix and decay of `config` ask for.

    A draw first selects a part of the mix by its weight, then a dataset in it by the dataset's
    weight, then a step. Parts, and datasets in a part, without steps leave their share to the
    others. Groups are datasets where that is enough, because this is faster, and else episodes.
    `places` is the number of places of each episode, int64 (E,).
    """
    dataset = np.array([key[0] for key in index.keys], np.int64)[index.segment]
    if not config.mix and not config.policy_lag_half_life:
        counts = np.bincount(dataset, places, minlength=datasets).astype(np.int64)
        shares = np.where(counts > 0, config.weights, 0.0) if config.weights else None
        return DrawGroups(counts=counts, shares=shares, of_episode=dataset)
    facts = [eligibility.facts(key) for key in index.keys]
    chosen = [eligibility.eligible(key) for key in index.keys]
    versions = _join([each.versions for each in facts], chosen)
    parts = [each.parts[:, mask] for each, mask in zip(facts, chosen, strict=True)]
    none = np.zeros((len(eligibility.part_weights), 0), np.bool_)
    shares = _episode_shares(
        places * _policy_decay(versions, eligibility.newest, config.policy_lag_half_life),
        dataset,
        np.concatenate([none, *parts], axis=1),
        part_weights=eligibility.part_weights,
        dataset_weights=config.weights,
    )
    return DrawGroups(counts=places, shares=shares, of_episode=np.arange(len(places)))


_MOST_HALVINGS = 1000
"""Keeps the weight of the oldest policies above 0, so that something can always be sampled."""


def _policy_decay(
    versions: NDArray[np.int64], newest: int, half_life: float
) -> NDArray[np.float64]:
    """Return ``0.5 ** (lag / half_life)`` for each episode, float64 (E,); 1 without a policy."""
    if not half_life:
        return np.ones(len(versions), np.float64)
    lags = newest - versions.astype(np.float64)  # the difference may not fit into int64
    halvings = np.minimum(lags / half_life, _MOST_HALVINGS)
    decay: NDArray[np.float64] = np.where(versions == NO_POLICY, 1.0, np.exp2(-halvings))
    return decay


def _episode_shares(
    mass: NDArray[np.float64],
    dataset: NDArray[np.int64],
    parts: NDArray[np.bool_],
    *,
    part_weights: Sequence[float],
    dataset_weights: Sequence[float],
) -> NDArray[np.float64]:
    """Return the share of the draws of each episode, float64 (E,): sum 1, or 0 without any draws.

    Take the decayed steps `mass` float64 (E,), the datasets int64 (E,), and whether each episode
    belongs to each part of the mix, bool (P, E).
    """
    shares = np.zeros(len(mass), np.float64)
    for members, weight in zip(parts, part_weights, strict=True):
        within = np.where(members, mass, 0.0)
        if dataset_weights:
            sums = np.bincount(dataset, within, minlength=len(dataset_weights))
            empty = np.zeros(len(dataset_weights))
            scale = np.divide(dataset_weights, sums, out=empty, where=sums > 0.0)
            within = within * scale[dataset]
        total = within.sum()
        shares += weight * (within / total if total > 0.0 else within)
    total = shares.sum()
    return shares / total if total > 0.0 else shares


def _join(
    columns: Sequence[NDArray[np.int64] | NDArray[np.bool_]],
    chosen: Sequence[NDArray[np.bool_] | slice],
) -> NDArray[np.int64]:
    """Concatenate the chosen episodes of all segments."""
    kept = [column[mask] for column, mask in zip(columns, chosen, strict=True)]
    return np.concatenate([np.zeros(0, np.int64), *kept])


BATCHES_AT_ONCE = 16
"""Batches in a block, whose rest is discarded when the data change. It is part of what a seed
means: a change would change every run."""
_BLOCKS_AHEAD = 4
"""Blocks that are drawn, and then looked up, at once. It changes no batch. It is faster, because
the gather of the frames of a batch evicts the code and the data of a draw from the CPU caches."""
_NUMBERS_AHEAD = 1 << 14
"""Numbers that are drawn at once, unless a block has more."""


class Draws:
    """Draws numbers from 0 up, in blocks of batches: uniformly, or by the shares of groups."""

    def __init__(self, *, seed: int, batch_size: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._shape = (BATCHES_AT_ONCE, batch_size)
        self._ahead = max(1, min(_BLOCKS_AHEAD, _NUMBERS_AHEAD // (BATCHES_AT_ONCE * batch_size)))
        self._starts: list[Mapping[str, Any]] = []
        self._blocks: NDArray[np.int64] | None = None
        self._taken = 0
        self._counts = np.zeros(1, np.int64)
        self._shares: NDArray[np.float64] | None = None

    def bind(self, counts: NDArray[np.int64], shares: NDArray[np.float64] | None = None) -> None:
        """Draw from these groups from now on; the rest of the block is discarded.

        `counts` is int64 (G,), how many numbers each group has, one group after another. `shares`
        is float64 (G,), 0 for empty groups; None draws all numbers uniformly.
        """
        self._counts, self._first = counts, counts.cumsum() - counts
        self._shares = None if shares is None or not counts.any() else shares.cumsum()
        if self._shares is not None:
            self._shares /= self._shares[-1]
        if self._blocks is not None:  # undo the draws of blocks that are not begun
            self._generator.bit_generator.state = self._starts[-(-self._taken // BATCHES_AT_ONCE)]
        self._blocks = None

    @property
    def count(self) -> int:
        """Number of numbers to draw from."""
        return int(self._counts.sum())

    def next(self) -> tuple[NDArray[np.int64], int]:
        """Return a few blocks, int64 (N, B), and the index of the next batch in them.

        The same array is returned until all of its batches are used. Numbers are below `count`.
        """
        if self._blocks is None or self._taken == len(self._blocks):
            self._blocks = self._draw()
        self._taken += 1
        return self._blocks, self._taken - 1

    def state(self) -> dict[str, Any]:
        """Return the start of the block and how many of its batches are used, as plain JSON."""
        if self._blocks is None:
            return {**_generator_state(self._generator.bit_generator.state), "taken": 0}
        block, taken = divmod(self._taken, BATCHES_AT_ONCE)
        return {**_generator_state(self._starts[block]), "taken": taken}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; raise CheckpointError if it is something else."""
        try:
            taken = int(state["taken"])
            _restore_generator(self._generator, state)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"sampler state cannot be read ({error!r}), expected what Sampler.state() "
                "returns; resume from another checkpoint"
            ) from error
        if not 0 <= taken < BATCHES_AT_ONCE:
            raise CheckpointError(
                f"sampler state has used {taken} batches, expected fewer than {BATCHES_AT_ONCE}; "
                "resume from another checkpoint"
            )
        self._blocks = None
        if taken and self._counts.any():
            self._blocks = self._draw()
            self._taken = taken

    def _draw(self) -> NDArray[np.int64]:
        """Draw the next blocks."""
        self._taken, self._starts, blocks = 0, [], []
        for _ in range(self._ahead):
            self._starts.append(self._generator.bit_generator.state)
            blocks.append(self._draw_block())
        self._starts.append(self._generator.bit_generator.state)
        return np.concatenate(blocks)

    def _draw_block(self) -> NDArray[np.int64]:
        if self._shares is None:
            return self._generator.integers(0, self._counts.sum(), self._shape)
        group = self._shares.searchsorted(self._generator.random(self._shape), side="right")
        within: NDArray[np.int64] = self._generator.integers(0, self._counts[group])
        return self._first[group] + within


def _generator_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a PCG64 as plain JSON."""
    return {
        # 128-bit numbers, which some JSON readers round
        "state": str(state["state"]["state"]),
        "increment": str(state["state"]["inc"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def _restore_generator(generator: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Continue from a state of `_generator_state`."""
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(state["state"]), "inc": int(state["increment"])},
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


FAN_OUT = 16
"""Children of a node."""
TOP = 4096
"""Maximum length of the running sum at the top."""


class SumTree:
    """Draws places in proportion to their values, which may change at any time.

    It is a tree of sums with 16 children per node and one wide node at the top: a million values
    are two levels and a running sum of 3 907 numbers. A batch takes a few numpy calls per level,
    for all of its draws together; 64 or 2 children per node take two to four times as long. Sums
    are always computed from the children in order. So they never drift, and equal values give
    equal trees, bit for bit.
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        """Build the tree from values float64 (N,), finite, 0 or above, N at least 1."""
        self._levels: list[NDArray[np.float64]] = []
        self._top = values.copy()
        while len(self._top) > TOP:
            self._levels.append(_padded(self._top))
            self._top = _sums(self._levels[-1])
        self._running = self._top.cumsum()

    @property
    def total(self) -> float:
        """The sum of all values."""
        return float(self._running[-1])

    def values(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the values at some places, in the shape of `places`."""
        lowest = self._levels[0].reshape(-1) if self._levels else self._top
        return lowest[places]

    def set(self, places: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Change values at places int64 (B,); the last one counts for places given twice."""
        for level in self._levels:
            level.reshape(-1)[places] = values
            places = places // FAN_OUT
            values = _sums(level[places])
        self._top[places] = values
        self._top.cumsum(out=self._running)

    def find(self, targets: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the places where the running sum of the values exceeds the targets, int64 (B,).

        The targets are float64 (B,), from 0 to below `total`, which must be above 0. Places with
        value 0 are never returned, even if a target is rounded.
        """
        targets = np.minimum(targets, np.nextafter(self._running[-1], 0.0))
        place = self._running.searchsorted(targets, side="right")
        before = self._running[place] - self._top[place]
        draws = np.arange(len(targets))
        for level in reversed(self._levels):
            children = level[place]
            running = children.cumsum(axis=1)  # (B, F)
            targets = np.clip(targets - before, 0.0, np.nextafter(running[:, -1], 0.0))
            child = (running > targets[:, None]).argmax(axis=1)
            before = running[draws, child] - children[draws, child]
            place = place * FAN_OUT + child
        return place


def _padded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values as nodes, float64 (M, F), padded with zeros."""
    nodes = -(-len(values) // FAN_OUT)
    padded = np.zeros(nodes * FAN_OUT, np.float64)
    padded[: len(values)] = values
    return padded.reshape(nodes, FAN_OUT)


def _sums(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of each node, float64 (M,), added in the same order as in `SumTree.find`."""
    sums: NDArray[np.float64] = nodes.cumsum(axis=1)[:, -1].copy()
    return sums


_SERIAL = 1 << 20
"""Distance between the indexes of two segments."""
assert MAX_STEPS <= _SERIAL, "a segment's steps must fit"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrioritisedDraw:
    """One batch of B draws."""

    number: NDArray[np.int64]
    """int64 (B,), numbers of the transitions in the `TransitionIndex`."""
    index: NDArray[np.int64]
    """int64 (B,), identifies the transitions for `Priorities.update` while the sampler exists."""
    weight: NDArray[np.float32]
    """float32 (B,), importance weights in (0, 1]."""


class Priorities:
    """Draws transitions in proportion to their priorities (Schaul et al. 2016), stratified.

    The probability of a transition is proportional to ``share * priority ** alpha``.
    """

    def __init__(self, config: PriorityConfig, *, seed: int, batch_size: int) -> None:
        self._config, self._batch_size = config, batch_size
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._drawn = 0
        self._largest = np.float32(1.0)
        self._serials: dict[Key, int] = {}
        self._next_serial = 0
        self._places = _Places(np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._priority = np.zeros(0, np.float32)

    def bind(self, index: TransitionIndex, shares: NDArray[np.float64]) -> None:
        """Draw from these transitions from now on; known ones keep their priorities.

        `shares` is float64 (E,), the share of each episode if all priorities were equal.
        """
        for key in index.keys:
            if key not in self._serials:
                self._serials[key] = self._next_serial
                self._next_serial += 1
        self._serials = {key: self._serials[key] for key in index.keys}
        serials = np.array([self._serials[key] for key in index.keys], np.int64)
        starts = serials[index.segment] * _SERIAL + index.first_step
        places = _Places(starts, index.lengths)
        before = self._places.numbers(places.indexes())
        priority = np.full(len(before), self._largest, np.float32)
        priority[before >= 0] = self._priority[before[before >= 0]]
        self._index, self._places, self._priority = index, places, priority
        # Each transition's share divided by the mean share: 1 if all shares are equal.
        multiples = shares / index.lengths * index.steps
        self._multiple = np.repeat(multiples, index.lengths)
        self._build()

    def draw(self) -> PrioritisedDraw:
        """Sample a batch."""
        size = self._batch_size
        strata = (np.arange(size) + self._generator.random(size)) / size
        number = self._tree.find(strata * self._tree.total)
        config = self._config
        rise = min(self._drawn / config.beta_batches, 1.0)
        beta = config.beta + (1.0 - config.beta) * rise
        self._drawn += 1
        priority = self._priority[number].astype(np.float64)
        weight = (priority.min() / priority) ** (config.alpha * beta)
        return PrioritisedDraw(
            number=number, index=self._places.index(number), weight=weight.astype(np.float32)
        )

    def update(self, index: NDArray[np.int64], td_error: NDArray[np.float32]) -> None:
        """Set priorities, given indexes int64 (B,) and TD errors float (B,) of any sign.

        Skip transitions that were removed, and errors that are not finite.
        """
        number = self._places.numbers(index)
        known = (number >= 0) & np.isfinite(td_error)
        number = number[known]
        if not len(number):
            return
        priority = np.abs(td_error[known]).astype(np.float32) + np.float32(self._config.epsilon)
        self._priority[number] = priority
        self._largest = max(self._largest, priority.max())
        # Read back, so that for a transition drawn twice the same value counts everywhere.
        self._tree.set(number, self._leaves(number))

    def state(self) -> dict[str, Any]:
        """Return everything except the priorities, as plain JSON."""
        return {
            "generator": _generator_state(self._generator.bit_generator.state),
            "drawn": self._drawn,
            "largest": float(self._largest),
            "segments": [list(key) for key in self._index.keys],
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the priorities, float32 (N,), and their episodes, int64 (E, 3).

        The columns of the episodes are segment, first step and length.
        """
        index = self._index
        episodes = np.stack([index.segment, index.first_step, index.lengths], axis=1)
        return {"priority": self._priority.copy(), "priority_episodes": episodes}

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from `state` and `arrays`; what they lack gets the largest priority."""
        try:
            keys = [(int(number), str(name)) for number, name in state["segments"]]
            segment, first_step, lengths = arrays["priority_episodes"].astype(np.int64).T
            priority = arrays["priority"].astype(np.float32)
            serials = np.array([self._serials.get(key, -1) for key in keys], np.int64)
            saved = _Places(serials[segment] * _SERIAL + first_step, lengths)
            number = saved.matching(self._places, len(priority))
            largest, drawn = np.float32(state["largest"]), int(state["drawn"])
            _restore_generator(self._generator, state["generator"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise CheckpointError(
                f"sampler priorities cannot be read ({error!r}), expected what Sampler.state() and "
                "Sampler.arrays() return; resume from another checkpoint, or without replay."
                "prioritised"
            ) from error
        self._drawn, self._largest = drawn, largest
        self._priority[:] = largest
        self._priority[number[number >= 0]] = priority[number >= 0]
        self._build()

    def _build(self) -> None:
        self._tree = SumTree(self._leaves(slice(None)))

    def _leaves(self, number: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        """Return the values of the tree, always by the same formula for identical bits."""
        priority = self._priority[number].astype(np.float64)
        leaves: NDArray[np.float64] = self._multiple[number] * priority**self._config.alpha
        return leaves


class _Places:
    """Converts between the numbers and the permanent indexes of the transitions of episodes."""

    def __init__(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Store the index of each episode's first step, int64 (E,), and the lengths, int64 (E,)."""
        self._starts, self._lengths = starts, lengths
        self._ends = lengths.cumsum()
        self._firsts = self._ends - lengths
        self._shift = starts - self._firsts
        self._order = starts.argsort()
        self._sorted = starts[self._order]

    def indexes(self) -> NDArray[np.int64]:
        """Return the index of every number, int64 (N,)."""
        count = int(self._ends[-1]) if len(self._ends) else 0
        return np.arange(count) + np.repeat(self._shift, self._lengths)

    def index(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indexes of some numbers, in the shape of `number`."""
        episode = self._ends.searchsorted(number, side="right")
        found: NDArray[np.int64] = number + self._shift[episode]
        return found

    def numbers(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of some indexes, in the shape of `index`; -1 for unknown ones."""
        if not len(self._order):
            return np.full(index.shape, -1, np.int64)
        place = self._sorted.searchsorted(index, side="right") - 1
        episode = self._order[np.maximum(place, 0)]
        offset = index - self._starts[episode]
        inside = (place >= 0) & (offset < self._lengths[episode])
        return np.where(inside, self._firsts[episode] + offset, -1)

    def matching(self, other: "_Places", count: int) -> NDArray[np.int64]:
        """Return the number in `other` of each of the `count` numbers here, or -1."""
        index = self.indexes()
        if len(index) != count or (self._lengths < 0).any():
            raise ValueError(f"{count} priorities of {len(index)} transitions")
        return other.numbers(index)
