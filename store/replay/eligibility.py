"""Which episodes may be sampled, how their transitions are numbered, and what share each gets.

`Eligibility` decides by the filters, the held-out split and the age of the policies.
`TransitionIndex` numbers the transitions of eligible episodes. `group_draws` gives each episode its
share of the draws.

Whether an episode is held out depends only on what it is: the SHA-256 of its world, town, scenario,
seed and index in the plan. So the split stays the same after a compaction, a copy, a relabelling or
a second collection by the same plan, and two drives of the same seed are never on both sides. A
larger share holds out the same episodes and more. Episodes that agree in all five values (as from a
writer without seeds) are all on the same side.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import SegmentCorruptError
from avtd3.store.filters import NO_POLICY, parse_filter
from avtd3.store.replay.backend import Key, ReplayBackend
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HeldOutEpisode:
    """One complete episode of T steps that is never sampled, for evaluation."""

    segment_id: str
    """Segment of the episode."""
    number: int
    """Index of the episode in its segment."""
    frames: NDArray[np.uint8] | None
    """uint8 (T + 1, C, H, W), single frames; None without an image."""
    vector: NDArray[np.float32] | None
    """float32 (T + 1, V), normalised; None without a vector."""
    action: NDArray[np.float32]
    """float32 (T, A)."""
    reward: NDArray[np.float32]
    """float32 (T,)."""
    terminated: bool
    """Whether the episode ended in a terminal state; otherwise it was truncated."""

    def __repr__(self) -> str:
        return f"HeldOutEpisode({self.segment_id!r}, {self.number}, steps={len(self.reward)})"

    def stacks(self, stack: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return stacks of K frames, uint8 (stop - start, K*C, H, W), oldest frame first."""
        assert self.frames is not None, "there are no stacks without an image"
        last = len(self.frames) if stop is None else stop
        rows = np.arange(start, last)[:, None] + np.arange(1 - stack, 1)
        stacked: NDArray[np.uint8] = self.frames[rows.clip(0)]  # (T + 1, K, C, H, W)
        return stacked.reshape(len(stacked), -1, *stacked.shape[3:])


def read_episode(segment: Segment, number: int, spec: EpisodeSpec) -> HeldOutEpisode:
    """Read one episode of a segment."""
    table = segment.episode_table()
    start, length = int(table.offset[number]), int(table.length[number])
    first = int(table.observation_offset[number])
    stop, steps = first + length + 1, slice(start, start + length)
    return HeldOutEpisode(
        segment_id=segment.id,
        number=number,
        frames=None if spec.image is None else segment.read_frames(first, stop),
        vector=segment.read("vector")[first:stop] if spec.vector_size else None,
        action=segment.read("action")[steps],
        reward=segment.read("reward")[steps],
        terminated=bool(segment.read("terminated")[steps][-1]),
    )


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

    def update(self, segments: Mapping[Key, Segment]) -> dict[Key, str]:
        """Read new segments, forget those not given; return why segments cannot be read."""
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
            lag = self.newest - facts.versions
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRows:
    """Where the places of E episodes are, in the order in which they are numbered.

    A place is a transition, or a start of a sequence.
    """

    ends: NDArray[np.int64]
    """int64 (E,), number after each episode's last place; sorted."""
    first: NDArray[np.int64]
    """int64 (E,), row of each episode's first observation."""
    shift: NDArray[np.int64]
    """int64 (E,), difference between the row and the number of a place."""
    bc_mask: NDArray[np.float32] | None = None
    """float32 (E,), 1 where the steps are marked for imitation, else 0; None if all are."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransitionIndex:
    """Numbers the transitions of the E episodes that may be sampled, one episode after another."""

    keys: tuple[Key, ...]
    """Segments, by dataset, then content: the batches do not depend on when or by which collector
    the same episodes were published."""
    segment: NDArray[np.int64]
    """int64 (E,), index in `keys` of each episode's segment."""
    first_step: NDArray[np.int64]
    """int64 (E,), first step of each episode in its segment."""
    lengths: NDArray[np.int64]
    """int64 (E,), steps of each."""
    first_rows: NDArray[np.int64]
    """int64 (E,), row of each episode's first observation in the backend."""
    bc_mask: NDArray[np.float32] | None
    """float32 (E,), 1 where the steps are marked for imitation, else 0; None if all are."""

    @classmethod
    def of(cls, backend: ReplayBackend, eligibility: Eligibility) -> Self:
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

    def rows(self, places: NDArray[np.int64]) -> EpisodeRows:
        """Return where the numbered places are, given how many each episode has: int64 (E,)."""
        ends: NDArray[np.int64] = places.cumsum()
        shift = self.first_rows - (ends - places)
        return EpisodeRows(ends=ends, first=self.first_rows, shift=shift, bc_mask=self.bc_mask)


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
    halvings = np.minimum((newest - versions) / half_life, _MOST_HALVINGS)
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
