"""Which transitions make a batch: drawn for many batches at once, resumed exactly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import CheckpointError

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
