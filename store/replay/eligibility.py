"""`Eligibility`: which episodes may be sampled, by filters, held-out split and age of the policies.

Whether an episode is held out depends only on what it is: the SHA-256 of its world, town, scenario,
seed and index in the plan. So the split stays the same after a compaction, a copy, a relabelling or
a second collection by the same plan, and two drives of the same seed are never on both sides. A
larger share holds out the same episodes and more. Episodes that agree in all five values (as from a
writer without seeds) are all on the same side.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import SegmentCorruptError
from avtd3.store.filters import NO_POLICY, parse_filter
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.scratch import Key
from avtd3.store.segment import Segment


def split_positions(table: EpisodeTable) -> NDArray[np.float64]:
    """Return the position of each episode in the held-out split: float64 (E,), uniform in [0, 1].

    Episodes whose position is below the share are held out.
    """
    numbers = (table.numbers("scenario"), table.seed, table.index)
    lists = (table.texts("world"), table.texts("town"), *(column.tolist() for column in numbers))
    digests = (
        hashlib.sha256(json.dumps(identity).encode()).digest()
        for identity in zip(*lists, strict=True)
    )
    return np.array([int.from_bytes(digest[:8]) / 2**64 for digest in digests], np.float64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFacts:
    """The facts about the E episodes of a segment that decide how they are sampled; constant."""

    lengths: NDArray[np.int64]
    """int64 (E,), number of steps."""
    versions: NDArray[np.int64]
    """int64 (E,), versions of their policies."""
    positions: NDArray[np.float64]
    """float64 (E,), positions in the held-out split, see `split_positions`."""
    parts: NDArray[np.bool_]
    """bool (P, E), whether the filter matches and the episode belongs to each part of the mix;
    P = 1 without a mix."""
    bc_mask: NDArray[np.bool_]
    """bool (E,), whether their steps are marked for imitation."""

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Whether the filter and at least one part of the mix select each episode: bool (E,)."""
        selected: NDArray[np.bool_] = np.logical_or.reduce(self.parts, axis=0)
        return selected


class Eligibility:
    """Decides which episodes of the current segments may be sampled."""

    def __init__(self, config: ReplayConfig) -> None:
        """Parse the filters of a configuration."""
        self._config = config
        self._filter, self._imitate = parse_filter(config.filter), parse_filter(config.imitate)
        mixed = [part for part in config.mix if part.weight > 0.0]
        self._parts = [parse_filter(part.filter) for part in mixed]
        self.part_weights = tuple(part.weight for part in mixed) or (1.0,)
        self._facts: dict[Key, EpisodeFacts] = {}
        self.newest = NO_POLICY
        """Newest policy version in all selected episodes."""
        filters = (config.filter, config.mix, config.imitate)
        shares = (config.held_out, config.policy_lag_half_life)
        self.takes_all = config.max_policy_lag is None and not any((*filters, *shares))
        """Whether all episodes are sampled and imitated alike, so that no facts are needed."""
        self.imitates_all = not config.imitate
        """Whether every step is marked for imitation."""

    def update(self, segments: Mapping[Key, Segment]) -> dict[Key, Exception]:
        """Read new segments, forget those not given; return why segments cannot be read."""
        if self.takes_all:
            return {}
        refused: dict[Key, Exception] = {}
        self._facts = {key: facts for key, facts in self._facts.items() if key in segments}
        for key, segment in segments.items():
            if key not in self._facts:
                try:
                    self._facts[key] = self._read(segment)
                except (SegmentCorruptError, OSError) as error:
                    refused[key] = error
        self.newest = max(
            (int(f.versions[f.selected].max(initial=NO_POLICY)) for f in self._facts.values()),
            default=NO_POLICY,
        )
        return refused

    def knows(self, key: Key) -> bool:
        """Return whether `update` was given this segment and could read it."""
        return self.takes_all or key in self._facts

    def facts(self, key: Key) -> EpisodeFacts:
        """Return the facts of a segment; only if not `takes_all`."""
        return self._facts[key]

    def eligible(self, key: Key) -> NDArray[np.bool_] | slice:
        """Return which episodes of a segment may be sampled: bool (E,), or a slice of all."""
        if self.takes_all:
            return slice(None)
        facts, config = self._facts[key], self._config
        found = facts.selected & (facts.positions >= config.held_out)
        if config.max_policy_lag is not None:
            lag = self.newest - facts.versions.astype(np.float64)  # may not fit into int64
            found &= (facts.versions == NO_POLICY) | (lag <= config.max_policy_lag)
        return found

    def steps(self, segments: Mapping[Key, Segment]) -> dict[Key, int]:
        """Return how many steps of each segment may be sampled; omit segments without any."""
        if self.takes_all:
            return {key: segment.steps for key, segment in segments.items()}
        steps = {key: int(self._facts[key].lengths[self.eligible(key)].sum()) for key in segments}
        return {key: count for key, count in steps.items() if count}

    def held_out(self) -> list[tuple[Key, int]]:
        """Return the held-out episodes as segment and index, in the order of the split."""
        if not self._config.held_out:
            return []
        found: list[tuple[float, Key, int]] = []
        for key, facts in self._facts.items():
            chosen = np.flatnonzero(facts.selected & (facts.positions < self._config.held_out))
            positions = facts.positions[chosen].tolist()
            found += zip(positions, [key] * len(chosen), chosen.tolist(), strict=True)
        return [(key, number) for _, key, number in sorted(found)]

    def describe(self) -> str:
        """Return why episodes are excluded; empty if there are no episodes."""
        count = sum(len(facts.lengths) for facts in self._facts.values())
        if not count:
            return ""
        selected = sum(int(facts.selected.sum()) for facts in self._facts.values())
        held_out = len(self.held_out())
        return (
            f"of {count} episodes, {count - selected} are excluded by replay.filter and "
            f"replay.mix, {held_out} are held out and {selected - held_out} have a policy that is "
            "too old; widen the filter, hold out fewer episodes, or raise replay.max_policy_lag"
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
            bc_mask=self._imitate.matches(table),
        )
