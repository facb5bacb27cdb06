"""The order in which steps are numbered for drawing, and how the draws fall on them.

Only episodes that may be drawn have numbers, so filters and held-out episodes cost a draw nothing.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.replay.cache import CachedSegment
from avtd3.store.replay.eligible import Eligibility
from avtd3.store.replay.gather import EpisodeRows
from avtd3.store.replay.rows import Key
from avtd3.store.replay.selection import ReplayConfig
from avtd3.store.replay.shares import episode_shares, policy_decay


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Numbering:
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
    imitated: NDArray[np.float32] | None
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
        imitated = None
        if not eligible.imitates_all:
            marks = [eligible.facts(key).imitated for key in keys]
            imitated = _join(marks, chosen).astype(np.float32)
        return cls(
            keys=keys,
            segment=np.repeat(np.arange(len(keys)), counts),
            first_step=_join(starts, chosen),
            lengths=_join(lengths, chosen),
            first_rows=_join(first, chosen),
            imitated=imitated,
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
        return EpisodeRows.from_lengths(starts, self.first_rows, self.imitated)

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
    numbering: Numbering,
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
