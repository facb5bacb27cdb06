"""Which transitions make a batch: drawn for many batches at once, resumed exactly."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import CheckpointError
from avtd3.store.replay.cache import CachedSegment
from avtd3.store.replay.config import ReplayConfig, episode_shares, policy_decay
from avtd3.store.replay.eligibility import Eligibility
from avtd3.store.replay.gather import EpisodeRows
from avtd3.store.replay.shared import Key

BATCHES_AT_ONCE = 16
"""Batches drawn and looked up together; part of what a seed means, so never changed lightly."""


class Draws:
    """Blocks of draws of what is numbered from 0, batch by batch: all alike, or by groups."""

    def __init__(self, *, seed: int, batch_size: int) -> None:
        """Start at a seed, with nothing to draw from.

        Args:
            seed: Seed of the generator, PCG64.
            batch_size: Draws per batch, B.
        """
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._shape = (BATCHES_AT_ONCE, batch_size)
        self._start = self._generator.bit_generator.state
        self._taken = BATCHES_AT_ONCE
        self._counts = np.zeros(1, np.int64)
        self._shares: NDArray[np.float64] | None = None

    def bind(self, counts: NDArray[np.int64], shares: NDArray[np.float64] | None = None) -> None:
        """Draw from groups of these sizes from now on; the rest of a block is lost.

        Args:
            counts: int64 (G,), how many numbers each group has; groups lie one after another.
            shares: float64 (G,), how much of the draws falls on each group, 0 where it is empty;
                None for numbers all alike.
        """
        self._counts, self._first = counts, counts.cumsum() - counts
        self._shares = None if shares is None or not counts.any() else shares.cumsum()
        if self._shares is not None:
            self._shares /= self._shares[-1]
        self._taken = BATCHES_AT_ONCE

    @property
    def is_drawn(self) -> bool:
        """Whether there is a block with a batch left in it."""
        return self._taken < BATCHES_AT_ONCE

    @property
    def count(self) -> int:
        """How many numbers there are to draw from."""
        return int(self._counts.sum())

    def draw(self) -> NDArray[np.int64]:
        """Draw a new block: int64 (N, B), numbers below the sum of all counts."""
        self._start = self._generator.bit_generator.state
        self._taken = 0
        if self._shares is None:
            return self._generator.integers(0, self._counts.sum(), self._shape)
        group = self._shares.searchsorted(self._generator.random(self._shape), side="right")
        within = self._generator.integers(0, self._counts[group])
        number: NDArray[np.int64] = self._first[group] + within
        return number

    def take(self) -> int:
        """Place in the block of the next batch."""
        self._taken += 1
        return self._taken - 1

    def state(self) -> dict[str, Any]:
        """Where the block began and how many of its batches are taken, as plain JSON."""
        state = self._start if self.is_drawn else self._generator.bit_generator.state
        return {**generator_state(state), "taken": self._taken if self.is_drawn else 0}

    def restore(self, state: Mapping[str, Any]) -> NDArray[np.int64] | None:
        """Continue where `state` was taken.

        Returns:
            The block that was under way, or None if there was none.

        Raises:
            CheckpointError: It is not what `state` returns.
        """
        try:
            taken = int(state["taken"])
            restore_generator(self._generator, state)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"sampler state cannot be read ({error!r}), expected what Sampler.state() "
                "returns; resume from another checkpoint"
            ) from error
        if not 0 <= taken < BATCHES_AT_ONCE:
            raise CheckpointError(
                f"sampler state has taken {taken} batches of {BATCHES_AT_ONCE}; "
                "resume from another checkpoint"
            )
        self._taken = BATCHES_AT_ONCE
        if taken == 0 or not self._counts.any():
            return None
        block, self._taken = self.draw(), taken
        return block


def generator_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a PCG64 as plain JSON."""
    return {
        # 128-bit numbers, which not every reader of JSON keeps
        "state": str(state["state"]["state"]),
        "increment": str(state["state"]["inc"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def restore_generator(generator: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Continue where `generator_state` was taken.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: It is not what that returns.
    """
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(state["state"]), "inc": int(state["increment"])},
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransitionIndex:
    """The E episodes that may be drawn, in the order in which their steps are numbered."""

    keys: tuple[Key, ...]
    """Segments, by dataset, then content: two collectors that publish the same episodes a moment
    earlier or later give the same batches."""
    segment: NDArray[np.int64]
    """int64 (E,), number in `keys` of the segment of each."""
    first_step: NDArray[np.int64]
    """int64 (E,), its first step, counted in the segment."""
    lengths: NDArray[np.int64]
    """int64 (E,), steps of each."""
    first_rows: NDArray[np.int64]
    """int64 (E,), row of its first observation in the cache."""
    bc_mask: NDArray[np.float32] | None
    """float32 (E,), 1 where its steps are marked for imitation, else 0; None if all are."""

    @classmethod
    def of(
        cls,
        segments: Mapping[Key, CachedSegment],
        start: Callable[[Key], int],
        eligible: Eligibility,
    ) -> Self:
        """Number what a cache holds and may be drawn.

        Args:
            segments: All that the cache holds.
            start: First row of a segment.
            eligible: Which episodes may be drawn.
        """
        held = {key: segment for key, segment in segments.items() if eligible.knows(key)}
        keys = tuple(sorted(held, key=lambda key: (key[0], held[key].content, key)))
        chosen = [eligible.drawable(key) for key in keys]
        lengths = [held[key].episodes.lengths for key in keys]
        starts = [ends.cumsum() - ends for ends in lengths]
        first = [start(key) + held[key].first_rows for key in keys]
        counts = [len(values[mask]) for values, mask in zip(lengths, chosen, strict=True)]
        bc_mask = None
        if not eligible.imitates_all:
            marks = [eligible.facts(key).bc_mask for key in keys]
            bc_mask = _join(marks, chosen).astype(np.float32)
        return cls(
            keys=keys,
            segment=np.repeat(np.arange(len(keys)), counts),
            first_step=_join(starts, chosen),
            lengths=_join(lengths, chosen),
            first_rows=_join(first, chosen),
            bc_mask=bc_mask,
        )

    @property
    def steps(self) -> int:
        """Steps that may be drawn."""
        return int(self.lengths.sum())

    def digest(self, groups: "Groups") -> str:
        """SHA-256 over which episodes of the segments are numbered, and their shares."""
        arrays = (self.segment, self.first_step, groups.counts, groups.shares)
        hashed = hashlib.sha256(repr(self.keys).encode())
        for array in arrays:
            hashed.update(b"" if array is None else array.tobytes())
        return hashed.hexdigest()

    def rows(self, starts: NDArray[np.int64]) -> EpisodeRows:
        """Where the numbered places lie, given how many of each episode, from its first step on."""
        return EpisodeRows.from_lengths(starts, self.first_rows, self.bc_mask)

    def datasets(self) -> NDArray[np.int64]:
        """int64 (E,), number of the dataset of each episode."""
        return np.array([key[0] for key in self.keys], np.int64)[self.segment]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Numbers in groups, and how the draws fall on these; see `Draws.bind`."""

    counts: NDArray[np.int64]
    """int64 (G,), numbers in each group."""
    shares: NDArray[np.float64] | None
    """float64 (G,), shares of the draws; None for numbers all alike."""
    of_episode: NDArray[np.int64]
    """int64 (E,), group of each episode."""

    def by_episode(self, starts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of the draws that falls on each episode: float64 (E,), with the sum 1.

        Args:
            starts: int64 (E,), numbers of each, as they were grouped.
        """
        if self.shares is None:
            alike: NDArray[np.float64] = starts / max(starts.sum(), 1)
            return alike
        within = starts / np.maximum(self.counts, 1)[self.of_episode]
        found: NDArray[np.float64] = self.shares[self.of_episode] * within
        return found / found.sum() if len(found) else found


def group(
    numbering: TransitionIndex,
    starts: NDArray[np.int64],
    eligible: Eligibility,
    config: ReplayConfig,
    datasets: int,
) -> Groups:
    """How the draws fall on numbered places.

    By dataset where that is enough, which is faster to look up; else by episode.

    Args:
        numbering: Which episodes.
        starts: int64 (E,), places of each.
        eligible: What is known of the episodes.
        config: Weights, mix and decay.
        datasets: How many datasets there are.
    """
    dataset = numbering.datasets()
    if not config.mix and not config.policy_lag_half_life:
        counts = np.bincount(dataset, starts, minlength=datasets).astype(np.int64)
        shares = np.where(counts > 0, config.weights, 0.0) if config.weights else None
        return Groups(counts=counts, shares=shares, of_episode=dataset)
    facts = [eligible.facts(key) for key in numbering.keys]
    chosen = [eligible.drawable(key) for key in numbering.keys]
    versions = _join([each.versions for each in facts], chosen)
    parts = [each.parts[:, mask] for each, mask in zip(facts, chosen, strict=True)]
    none = np.zeros((len(eligible.part_weights), 0), np.bool_)
    shares = episode_shares(
        starts * policy_decay(versions, eligible.newest, config.policy_lag_half_life),
        dataset,
        np.concatenate([none, *parts], axis=1),
        part_weights=eligible.part_weights,
        dataset_weights=config.weights,
    )
    return Groups(counts=starts, shares=shares, of_episode=np.arange(len(starts)))


def _join(
    columns: Sequence[NDArray[np.int64] | NDArray[np.bool_]],
    chosen: Sequence[NDArray[np.bool_] | slice],
) -> NDArray[np.int64]:
    """The chosen episodes of all segments, one after another."""
    kept = [column[mask] for column, mask in zip(columns, chosen, strict=True)]
    return np.concatenate([np.zeros(0, np.int64), *kept])
