"""Which episodes may be drawn: those that the filters mean, not held out, their policy not too old.

What a segment's episodes are is read once, from a few small arrays, and only if the configuration
asks for it: without filters, held-out episodes and the like, every episode may be drawn and nothing
is read here.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SegmentCorruptError
from avtd3.store.filters import NO_POLICY, parse_filter
from avtd3.store.replay.held_out import split_positions
from avtd3.store.replay.rows import Key
from avtd3.store.replay.selection import ReplayConfig
from avtd3.store.segment import Segment


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFacts:
    """What decides about the E episodes of a segment; it never changes."""

    lengths: NDArray[np.int64]
    """int64 (E,), steps."""
    versions: NDArray[np.int64]
    """int64 (E,), of their policies."""
    positions: NDArray[np.float64]
    """float64 (E,), in the split, see `split_positions`."""
    parts: NDArray[np.bool_]
    """bool (P, E), parts of the mix that each belongs to, the filter being met; P = 1 without a
    mix."""
    imitated: NDArray[np.bool_]
    """bool (E,), whether their steps are marked for imitation."""

    @property
    def meant(self) -> NDArray[np.bool_]:
        """Whether the filter and any part of the mix mean each: bool (E,)."""
        meant: NDArray[np.bool_] = np.logical_or.reduce(self.parts, axis=0)
        return meant


class Eligibility:
    """What may be drawn, of the segments that were looked at last."""

    def __init__(self, config: ReplayConfig) -> None:
        """Read the filters of a configuration."""
        self._config = config
        self._filter, self._imitate = parse_filter(config.filter), parse_filter(config.imitate)
        mixed = [part for part in config.mix if part.weight > 0.0]
        self._parts = [parse_filter(part.filter) for part in mixed]
        self.part_weights = tuple(part.weight for part in mixed) or (1.0,)
        self._facts: dict[Key, EpisodeFacts] = {}
        self.newest = NO_POLICY
        """Newest version of a policy in any episode that the filters mean."""

    @property
    def takes_all(self) -> bool:
        """Whether all episodes are drawn and imitated alike, whatever they are."""
        config = self._config
        return config.max_policy_lag is None and not (
            config.filter
            or config.mix
            or config.imitate
            or config.held_out
            or config.policy_lag_half_life
        )

    @property
    def imitates_all(self) -> bool:
        """Whether every step is marked for imitation."""
        return not self._config.imitate

    def look(self, segments: Mapping[Key, Segment]) -> dict[Key, str]:
        """Take in these segments and forget all others.

        Returns:
            Those that cannot be read, with the reason.
        """
        if self.takes_all:
            return {}
        refused = {}
        self._facts = {key: facts for key, facts in self._facts.items() if key in segments}
        for key, segment in segments.items():
            if key not in self._facts:
                try:
                    self._facts[key] = self._read(segment)
                except (SegmentCorruptError, OSError) as error:
                    refused[key] = str(error)
        self.newest = max(
            (int(facts.versions[facts.meant].max(initial=NO_POLICY)) for facts in self),
            default=NO_POLICY,
        )
        return refused

    def __iter__(self) -> Iterator[EpisodeFacts]:
        return iter(self._facts.values())

    def knows(self, key: Key) -> bool:
        """Whether a segment was among those looked at last."""
        return self.takes_all or key in self._facts

    def facts(self, key: Key) -> EpisodeFacts:
        """What is known of a segment; only if not `takes_all`."""
        return self._facts[key]

    def drawable(self, key: Key) -> NDArray[np.bool_] | slice:
        """Index of the episodes of a segment that may be drawn: bool (E,), or all of them."""
        if self.takes_all:
            return slice(None)
        facts, config = self._facts[key], self._config
        found = facts.meant & (facts.positions >= config.held_out)
        if config.max_policy_lag is not None:
            lag = self.newest - facts.versions
            found &= (facts.versions == NO_POLICY) | (lag <= config.max_policy_lag)
        return found

    def steps(self, segments: Mapping[Key, Segment]) -> dict[Key, int]:
        """Steps that may be drawn of each segment that has any."""
        if self.takes_all:
            return {key: segment.steps for key, segment in segments.items()}
        steps = {key: int(self._facts[key].lengths[self.drawable(key)].sum()) for key in segments}
        return {key: count for key, count in steps.items() if count}

    def held_out(self) -> list[tuple[Key, int]]:
        """Episodes that are held out, as segment and number, by their place in the split."""
        if not self._config.held_out:
            return []
        found: list[tuple[float, Key, int]] = []
        for key, facts in self._facts.items():
            chosen = np.flatnonzero(facts.meant & (facts.positions < self._config.held_out))
            positions = facts.positions[chosen].tolist()
            found += zip(positions, [key] * len(chosen), chosen.tolist(), strict=True)
        return [(key, number) for _, key, number in sorted(found)]

    def describe(self) -> str:
        """What became of the episodes, where none may be drawn; empty if there are none."""
        count = sum(len(facts.lengths) for facts in self)
        if not count:
            return ""
        meant = sum(int(facts.meant.sum()) for facts in self)
        held_out = len(self.held_out())
        return (
            f"of {count} episodes, {count - meant} are not meant by replay.filter and replay.mix, "
            f"{held_out} are held out, {meant - held_out} have too old a policy; widen the filter, "
            "hold out fewer, or raise replay.max_policy_lag"
        )

    def _read(self, segment: Segment) -> EpisodeFacts:
        table = segment.episode_table()
        base = self._filter.matches(table)
        parts = [part.matches(table) & base for part in self._parts] or [base]
        return EpisodeFacts(
            lengths=table.length,
            versions=table.policy_version,
            positions=split_positions(table),
            parts=np.stack(parts),
            imitated=self._imitate.matches(table),
        )
