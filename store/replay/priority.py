"""`SumTree`: draws places in proportion to their values, which may change at any time.

A tree of sums with 16 children to a node and one wide node at the top, so that a million values
are two levels and a running sum of 3 907 numbers; a batch is a few calls of numpy on each level,
for all of its draws together (64 children, or 2, take two to four times as long). Sums are always
added up anew from the children, one after another: they never drift, and equal values give equal
trees, bit for bit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import CheckpointError
from avtd3.store.format.layout import MAX_STEPS
from avtd3.store.replay.config import PriorityConfig
from avtd3.store.replay.shared import Key
from avtd3.store.replay.transition_index import TransitionIndex, generator_state, restore_generator

FAN_OUT = 16
"""Children of a node."""
TOP = 4096
"""Most sums in the running sum at the top."""


class SumTree:
    """Sums over values that are 0 or above."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        """Build the sums.

        Args:
            values: float64 (N,), finite, 0 or above, N at least 1; copied.
        """
        self._levels: list[NDArray[np.float64]] = []
        self._top = values.copy()
        while len(self._top) > TOP:
            self._levels.append(_padded(self._top))
            self._top = _sums(self._levels[-1])
        self._running = self._top.cumsum()

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._running[-1])

    def values(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values at some places, in their shape."""
        lowest = self._levels[0].reshape(-1) if self._levels else self._top
        return lowest[places]

    def set(self, places: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Change values; of places given twice, the last one counts.

        Args:
            places: int64 (B,), below N.
            values: float64 (B,), finite, 0 or above.
        """
        for level in self._levels:
            level.reshape(-1)[places] = values
            places = places // FAN_OUT
            values = _sums(level[places])
        self._top[places] = values
        self._top.cumsum(out=self._running)

    def find(self, targets: NDArray[np.float64]) -> NDArray[np.int64]:
        """The places where the running sum of the values passes the targets.

        No place with value 0 is ever found, whatever rounding does to a target.

        Args:
            targets: float64 (B,), from 0 to below `total`, which is above 0.

        Returns:
            int64 (B,).
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
    """Values in rows of nodes, float64 (M, F), filled up with zeros."""
    nodes = -(-len(values) // FAN_OUT)
    padded = np.zeros(nodes * FAN_OUT, np.float64)
    padded[: len(values)] = values
    return padded.reshape(nodes, FAN_OUT)


def _sums(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of each node, float64 (M,): in the very order in which `SumTree.find` adds."""
    sums: NDArray[np.float64] = nodes.cumsum(axis=1)[:, -1].copy()
    return sums


_SERIAL = 1 << 20
"""Distance of the indexes of two segments."""
assert MAX_STEPS <= _SERIAL, "a segment's steps must fit"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrioritisedDraw:
    """B draws."""

    number: NDArray[np.int64]
    """int64 (B,), numbers of the transitions."""
    index: NDArray[np.int64]
    """int64 (B,), what names them for `Priorities.update`, for as long as the sampler lives."""
    weight: NDArray[np.float32]
    """float32 (B,), importance weights in (0, 1]."""


class Priorities:
    """A priority for each transition that may be drawn."""

    def __init__(self, config: PriorityConfig, *, seed: int, batch_size: int) -> None:
        """Start at a seed, with nothing to draw from.

        Args:
            config: Exponents.
            seed: Seed of the generator, PCG64.
            batch_size: Draws per batch, B.
        """
        self._config, self._batch_size = config, batch_size
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._drawn = 0
        self._largest = np.float32(1.0)
        self._serials: dict[Key, int] = {}
        self._next_serial = 0
        self._places = _Places(np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._priority = np.zeros(0, np.float32)

    def bind(self, numbering: TransitionIndex, shares: NDArray[np.float64]) -> None:
        """Draw from these transitions from now on; those known keep their priorities.

        Args:
            numbering: What may be drawn.
            shares: float64 (E,), share of each episode in the draws without priorities.
        """
        for key in numbering.keys:
            if key not in self._serials:
                self._serials[key] = self._next_serial
                self._next_serial += 1
        self._serials = {key: self._serials[key] for key in numbering.keys}
        serials = np.array([self._serials[key] for key in numbering.keys], np.int64)
        starts = serials[numbering.segment] * _SERIAL + numbering.first_step
        places = _Places(starts, numbering.lengths)
        before = self._places.numbers(places.indexes())
        priority = np.full(len(before), self._largest, np.float32)
        priority[before >= 0] = self._priority[before[before >= 0]]
        self._numbering, self._places, self._priority = numbering, places, priority
        # Each transition's share over the mean share: 1 for all where all are alike.
        multiples = shares / numbering.lengths * numbering.steps
        self._multiple = np.repeat(multiples, numbering.lengths)
        self._build()

    def draw(self) -> PrioritisedDraw:
        """Draw a batch."""
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
        """Give transitions new priorities; those let go of, or not finite, are passed over.

        Args:
            index: int64 (B,), of a `PrioritisedDraw`.
            td_error: float (B,), of any sign.
        """
        number = self._places.numbers(index)
        known = (number >= 0) & np.isfinite(td_error)
        number = number[known]
        if not len(number):
            return
        priority = np.abs(td_error[known]).astype(np.float32) + np.float32(self._config.epsilon)
        self._priority[number] = priority
        self._largest = max(self._largest, priority.max())
        # Read back: of a transition that was drawn twice, the last one counts everywhere.
        self._tree.set(number, self._leaves(number))

    def state(self) -> dict[str, Any]:
        """Everything but the priorities, as plain JSON."""
        return {
            "generator": generator_state(self._generator.bit_generator.state),
            "drawn": self._drawn,
            "largest": float(self._largest),
            "segments": [list(key) for key in self._numbering.keys],
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The priorities, float32 (N,), and whose they are, int64 (E, 3): segment, step, length."""
        of = self._numbering
        episodes = np.stack([of.segment, of.first_step, of.lengths], axis=1)
        return {"priority": self._priority.copy(), "priority_episodes": episodes}

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue where `state` and `arrays` were taken.

        Transitions that were not known then keep the largest priority.

        Raises:
            CheckpointError: They are not what `state` and `arrays` return.
        """
        try:
            keys = [(int(number), str(name)) for number, name in state["segments"]]
            segment, first_step, lengths = arrays["priority_episodes"].astype(np.int64).T
            priority = arrays["priority"].astype(np.float32)
            serials = np.array([self._serials.get(key, -1) for key in keys], np.int64)
            saved = _Places(serials[segment] * _SERIAL + first_step, lengths)
            number = saved.matching(self._places, len(priority))
            largest, drawn = np.float32(state["largest"]), int(state["drawn"])
            restore_generator(self._generator, state["generator"])
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
        """What the tree holds for some numbers: always by the same formula, for equal bits."""
        priority = self._priority[number].astype(np.float64)
        leaves: NDArray[np.float64] = self._multiple[number] * priority**self._config.alpha
        return leaves


class _Places:
    """Where the transitions of some episodes are numbered, and what indexes they have."""

    def __init__(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Take the index of each episode's first step, int64 (E,), and the lengths, int64 (E,)."""
        self._starts, self._lengths = starts, lengths
        self._ends = lengths.cumsum()
        self._firsts = self._ends - lengths
        self._shift = starts - self._firsts
        self._order = starts.argsort()
        self._sorted = starts[self._order]

    def indexes(self) -> NDArray[np.int64]:
        """Index of every number: int64 (N,)."""
        count = int(self._ends[-1]) if len(self._ends) else 0
        return np.arange(count) + np.repeat(self._shift, self._lengths)

    def index(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indexes of some numbers, in their shape."""
        episode = self._ends.searchsorted(number, side="right")
        found: NDArray[np.int64] = number + self._shift[episode]
        return found

    def numbers(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of some indexes, in their shape; -1 for those of no episode here."""
        if not len(self._order):
            return np.full(index.shape, -1, np.int64)
        place = self._sorted.searchsorted(index, side="right") - 1
        episode = self._order[np.maximum(place, 0)]
        offset = index - self._starts[episode]
        inside = (place >= 0) & (offset < self._lengths[episode])
        return np.where(inside, self._firsts[episode] + offset, -1)

    def matching(self, other: "_Places", count: int) -> NDArray[np.int64]:
        """Number in `other` of each of our own numbers, which must be so many, or -1."""
        index = self.indexes()
        if len(index) != count or (self._lengths < 0).any():
            raise ValueError(f"{count} priorities of {len(index)} transitions")
        return other.numbers(index)
