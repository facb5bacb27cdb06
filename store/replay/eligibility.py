"""Episodes that are never drawn: a stable share, for judging what was learned.

Whether an episode is held out depends on what it is: the SHA-256 of its world, town, scenario,
seed and index in the plan. So the split is the same after a compaction, a copy, a relabelling or
another collection by the same plan, and two drives of the same seed are never on both sides. It
does not depend on the time, the driver or the data. A larger share holds out the same episodes and
more. Episodes that agree in all five (as where a writer has no seeds) all fall on one side.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode_table import EpisodeTable
from avtd3.store.errors import SegmentCorruptError
from avtd3.store.filters import NO_POLICY, parse_filter
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.shared import Key
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec


def split_positions(table: EpisodeTable) -> NDArray[np.float64]:
    """Where each episode stands in the split: float64 (E,) in [0, 1], uniform over identities.

    Those below the share are held out.
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
    """One whole episode of T steps, in order."""

    segment_id: str
    """Segment that it lies in."""
    number: int
    """Its number there."""
    frames: NDArray[np.uint8] | None
    """uint8 (T + 1, C, H, W), single frames; None without an image."""
    vector: NDArray[np.float32] | None
    """float32 (T + 1, V), normalised; None without a vector."""
    action: NDArray[np.float32]
    """float32 (T, A)."""
    reward: NDArray[np.float32]
    """float32 (T,)."""
    terminated: bool
    """Whether it ended in a state without a future; otherwise it was truncated."""

    def __repr__(self) -> str:
        return f"HeldOutEpisode({self.segment_id!r}, {self.number}, steps={len(self.reward)})"

    def stacks(self, stack: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Stacked observations from `start` to before `stop`, clamped to the episode's start.

        Args:
            stack: Frames in each, K.
            start: First observation.
            stop: Behind the last one; None for the end.

        Returns:
            uint8 (stop - start, K*C, H, W), oldest frame first.
        """
        assert self.frames is not None, "there are no stacks without an image"
        last = len(self.frames) if stop is None else stop
        rows = np.arange(start, last)[:, None] + np.arange(1 - stack, 1)
        stacked: NDArray[np.uint8] = self.frames[rows.clip(0)]  # (T + 1, K, C, H, W)
        return stacked.reshape(len(stacked), -1, *stacked.shape[3:])


def read_episode(segment: Segment, number: int, spec: EpisodeSpec) -> HeldOutEpisode:
    """Read one episode of a segment.

    Raises:
        SegmentNotFoundError: The segment was removed.
        SegmentCorruptError: Its bytes are not those that were published.
    """
    table = segment.episode_table()
    start, length = int(table.offset[number]), int(table.length[number])
    first = int(table.observation_offset[number])
    steps, observations = slice(start, start + length), slice(first, first + length + 1)
    has_image = spec.image is not None
    return HeldOutEpisode(
        segment_id=segment.id,
        number=number,
        frames=segment.read_frames(observations.start, observations.stop) if has_image else None,
        vector=segment.read("vector")[observations] if spec.vector_size else None,
        action=segment.read("action")[steps],
        reward=segment.read("reward")[steps],
        terminated=bool(segment.read("terminated")[steps][-1]),
    )


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
    bc_mask: NDArray[np.bool_]
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
        """Whether all episodes are drawn and bc_mask alike, whatever they are."""
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
            bc_mask=self._imitate.matches(table),
        )
