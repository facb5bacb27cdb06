"""Draws from datasets: snapshot and seed in, batches of transitions out.

`Sampler` is where the files beside it meet: `following` says which segments are wanted, `stock` has
them decoded in the `cache` (or `direct` reads them as they are drawn), `numbering` numbers what may
be drawn of them, `draw`, `priority` and `sequences` draw numbers, `gather` puts batches together.
"""

import dataclasses
import functools
import hashlib
import itertools
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, NoSegmentsError
from avtd3.store.replay.cache import FrameArray, Progress
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.direct import DirectReplay
from avtd3.store.replay.eligibility import HeldOutEpisode
from avtd3.store.replay.gather import FrameBuffer, Gather, Lookup, Transitions
from avtd3.store.replay.priority import Priorities, PrioritisedDraw
from avtd3.store.replay.segment_pool import (
    DAMAGED,
    TAKE_S,
    RefreshReport,
    RefusedSegment,
    SegmentPool,
)
from avtd3.store.replay.sequences import SequenceBatch, Sequences
from avtd3.store.replay.transition_index import Draws, TransitionIndex, group

__all__ = ["RefreshReport", "RefusedSegment", "ReplayConfig", "Sampler", "Transitions"]


class Sampler:
    """Draws of transitions, or sequences of them, from one or several datasets.

    What can be drawn is a function of the datasets' snapshots and the configuration alone; with
    the same seed it gives the same batches. One lock lets `sample` run in a thread of its own.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        config: ReplayConfig,
        *,
        seed: int,
        scratch: Path | None = None,
        buffers: int = 3,
        gathers: bool = True,
        grows: bool = False,
        on_progress: Progress | None = None,
    ) -> None:
        """Take a snapshot of each dataset and decode it into the cache, or begin to.

        Args:
            datasets: Where to read; all of one spec.
            config: What to keep and how to draw.
            seed: Seed of the draws.
            scratch: Directory for the scratch files if the config names none.
            buffers: Batches alive at a time: 3 for a thread that draws ahead; 1, which stays in the
                processor's cache and saves a fifth of the time, where each is used up at once.
            gathers: False for batches that name the rows of their frames in `frame_array` instead.
            grows: Whether `refresh` will be called; see `choose_mode`.
            on_progress: Called with frames done and frames in all while it waits for them.

        Raises:
            ConfigError: No dataset, one given twice, not one weight for each, or no buffer.
            SpecError: The datasets hold different data.
            StorageError: The scratch directory is not writable or too small.
        """
        if buffers < 1:
            raise ConfigError(f"a sampler needs at least 1 buffer, found {buffers}")
        self._stock = SegmentPool(
            datasets,
            config,
            directory=Path(config.scratch or scratch or tempfile.gettempdir()),
            grows=grows,
            on_change=self._index,
        )
        self._following, self._cache = self._stock.following, self._stock.cache
        self.spec, self.mode = self._stock.spec, self._stock.mode
        self.config, self.steps = config, 0
        size, n = config.batch_size, config.n_step
        self._draws = Draws(seed=seed, batch_size=size)
        self._priorities = None
        if config.prioritised:
            self._priorities = Priorities(config.priority, seed=seed, batch_size=size)
        self._chosen_digest = ""
        self._lookup: Lookup | None = None
        self._lock = threading.Lock()
        self._gather = Gather(self.spec, n_step=n, gamma=config.gamma)
        self._sequences = None
        if length := config.sequence_length:
            self._sequences = Sequences(
                self.spec, self._gather, seed=seed, length=length, count=size // length
            )
        gathers = gathers or isinstance(self._cache, DirectReplay)
        make = functools.partial(FrameBuffer, self.spec, batch_size=size, n_step=n, holds=gathers)
        self._frames = itertools.cycle([make() for _ in range(buffers)])
        try:
            self.opening = self._stock.open(on_progress)
        except BaseException:
            self.close()
            raise

    def sample(self) -> Transitions:
        """Draw a batch.

        Returns:
            A batch whose frames the call number `buffers` from now overwrites; the rest of it is
            never overwritten.

        Raises:
            NoSegmentsError: Nothing has been published yet.
        """
        with self._lock:
            frames = next(self._frames)
            while True:
                self._stock.take_arrived(every_s=TAKE_S)
                if not self.steps:
                    raise NoSegmentsError(self._following.why_empty())
                lookup, number, drawn = self._next()
                try:
                    self._gather.take_frames(lookup.rows[number], frames)
                except DAMAGED:
                    self._stock.refuse_damaged()
                    continue
                batch = lookup.batch(number, frames)
                if drawn is None:
                    return batch
                return dataclasses.replace(batch, weight=drawn.weight, index=drawn.index)

    def sample_sequences(self) -> SequenceBatch:
        """Draw a batch of sequences; only if `ReplayConfig.sequence_length` is above 0.

        Returns:
            ``batch_size / sequence_length`` sequences, whose frames the next call overwrites.

        Raises:
            NoSegmentsError: Nothing can be drawn, or no episode is long enough.
        """
        assert self._sequences is not None, "set replay.sequence_length"
        with self._lock:
            self._stock.take_arrived(every_s=TAKE_S)
            while self._sequences.draws.count:
                try:
                    return self._sequences.sample()
                except DAMAGED:
                    self._stock.refuse_damaged()
            if not self.steps:
                raise NoSegmentsError(self._following.why_empty())
            length = self.config.sequence_length
            raise NoSegmentsError(
                f"no episode has {length} steps, as replay.sequence_length asks for; lower it"
            )

    def update_priorities(self, index: NDArray[np.int64], td_error: NDArray[np.float32]) -> None:
        """Draw transitions by these TD errors from now on; only if draws are prioritised.

        Args:
            index: int64 (B,), `Transitions.index` of a batch, however old.
            td_error: float (B,), of any sign; what is not finite is passed over.
        """
        assert self._priorities is not None, "set replay.prioritised"
        with self._lock:
            self._priorities.update(index, td_error)

    def refresh(self) -> RefreshReport:
        """Take in what was published since, and let go of what is too old or was removed.

        Raises:
            StorageError: The scratch directory is too small.
        """
        with self._lock:
            self._stock.take_arrived()
            # Rows must stay where they are while others are filled: first things first.
            absent = () if self._stock.is_filling else self._following.look_again()
            self._stock.unreported.append(self._stock.follow())
            return dataclasses.replace(self._stock.take_reports(), absent=absent)

    @property
    def has_news(self) -> bool:
        """Whether `news` has something to tell, or will once more is decoded."""
        return bool(self._stock.unreported) or self._stock.is_filling

    def news(self) -> RefreshReport:
        """What has changed since the last report, without a look at the datasets.

        Raises:
            StorageError: The scratch directory is too small.
        """
        with self._lock:
            self._stock.take_arrived()
            return self._stock.take_reports()

    def held_out(self, limit: int | None = None) -> Iterator[HeldOutEpisode]:
        """Whole episodes that are never drawn, in an order that stays when others are added.

        Args:
            limit: Most episodes; None for all of them.
        """
        return self._following.held_out(self._lock, limit)

    def frame_array(self) -> FrameArray:
        """All decoded frames; see `SegmentPool.frame_array`."""
        with self._lock:
            return self._stock.frame_array()

    @property
    def left_out(self) -> str:
        """What became of the episodes where none may be drawn; empty if there are none."""
        return self._following.eligible.describe()

    @property
    def refused(self) -> tuple[RefusedSegment, ...]:
        """All published segments that cannot be used as of the last refresh."""
        with self._lock:
            return self._following.refusals.all()

    def state(self) -> dict[str, Any]:
        """The generator's state and a digest of what can be drawn, as plain JSON."""
        with self._lock:
            state = {**self._draws.state(), "segments": self._digest()}
            if self._priorities is not None:
                state["priorities"] = self._priorities.state()
            if self._sequences is not None:
                state["sequences"] = self._sequences.draws.state()
            return state

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What belongs to `state` and is too large for JSON: priorities, if there are any."""
        with self._lock:
            return {} if self._priorities is None else self._priorities.arrays()

    def restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> bool:
        """Continue where `state` and `arrays` were taken.

        Returns:
            True if the same segments can be drawn as then, so that the batches are identical.

        Raises:
            CheckpointError: `state` is not what `Sampler.state` returns.
        """
        with self._lock:
            block = self._draws.restore(state)
            self._lookup = None if block is None else self._gather.look_up(block)
            if self._priorities is not None and "priorities" in state:
                self._priorities.restore(state["priorities"], arrays or {})
            if self._sequences is not None and "sequences" in state:
                self._sequences.restore(state["sequences"])
            return bool(state.get("segments") == self._digest())

    def close(self) -> None:
        """Give the scratch space back; safe to call twice."""
        with self._lock:
            self._stock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> tuple[Lookup, int, PrioritisedDraw | None]:
        """The next batch's place in a block that is looked up."""
        if self._priorities is not None:
            drawn = self._priorities.draw()
            return self._gather.look_up(drawn.number[None]), 0, drawn
        if self._lookup is None or not self._draws.is_drawn:
            self._lookup = self._gather.look_up(self._draws.draw())
        return self._lookup, self._draws.take(), None

    def _index(self) -> None:
        """Number all transitions that may be drawn."""
        eligible = self._following.eligible
        numbering = TransitionIndex.of(self._cache.segments, self._cache.start, eligible)
        lengths, datasets = numbering.lengths, len(self._following.datasets)
        groups = group(numbering, lengths, eligible, self.config, datasets)
        self.steps = numbering.steps
        self._chosen_digest = "" if eligible.takes_all else numbering.digest(groups)
        self._draws.bind(groups.counts, groups.shares)
        if self._priorities is not None:
            self._priorities.bind(numbering, groups.by_episode(lengths))
        if self._sequences is not None:
            starts = np.maximum(lengths - (self.config.sequence_length - 1), 0)
            groups = group(numbering, starts, eligible, self.config, datasets)
            self._sequences.draws.bind(groups.counts, groups.shares)
            self._sequences.bind(numbering.rows(starts))
        direct = self._cache.frames if isinstance(self._cache, DirectReplay) else None
        self._gather.bind(self._cache.columns(), numbering.rows(lengths), direct)

    def _digest(self) -> str:
        held = repr(sorted(self._cache.segments)) + self._chosen_digest
        return hashlib.sha256(held.encode()).hexdigest()
