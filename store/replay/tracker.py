"""`SegmentTracker`: which segments of the datasets a sampler wants, and which it cannot use."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from avtd3.store.dataset import Dataset, Refusal, Snapshot
from avtd3.store.errors import (
    ConfigError,
    DatasetError,
    DatasetUnreadableError,
    NoSegmentsError,
    SegmentCorruptError,
    SpecError,
)
from avtd3.store.replaced import unseen_episodes
from avtd3.store.replay.cache import EpisodeSummary, LoadedSegment
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.eligibility import Eligibility
from avtd3.store.replay.scratch import Key
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec
from avtd3.store.status import collector_of

_NAMED = 5
"""Maximum number of segments that an error names."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefusedSegment:
    """A published segment that cannot be used."""

    dataset: Path
    """Directory of its dataset."""
    segment_id: str
    """Name of its directory."""
    reason: str
    """What is wrong and how to fix it."""
    is_unreadable: bool = False
    """Whether it cannot be read now because of an I/O error."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefreshReport:
    """What changed when a sampler was opened or refreshed."""

    segments_added: int
    """Number of segments that can be sampled from now on."""
    segments_removed: int
    """Number of segments that can no longer be sampled, because the capacity was exceeded or they
    were removed from the dataset."""
    steps_added: int
    """Number of transitions in the added segments."""
    episodes: EpisodeSummary
    """Episodes in the added segments, by dataset, then segment id."""
    refused: tuple[RefusedSegment, ...]
    """Segments that cannot be used. Each is reported once; `Sampler.refused` has all of them."""
    absent: tuple[Path, ...] = ()
    """Datasets that cannot be listed, or that have lost all their segments, for example because a
    disk was unmounted. Segments that were loaded from them can still be sampled."""

    @classmethod
    def join(cls, reports: Sequence[Self], spec: EpisodeSpec) -> Self:
        """Combine several reports, in the order in which the changes happened."""
        return cls(
            segments_added=sum(report.segments_added for report in reports),
            segments_removed=sum(report.segments_removed for report in reports),
            steps_added=sum(report.steps_added for report in reports),
            episodes=EpisodeSummary.join([report.episodes for report in reports], spec),
            refused=tuple(segment for report in reports for segment in report.refused),
        )


class Refusals:
    """Segments that the snapshots of some datasets refuse; each is reported once.

    A segment that is tried again and refused again is not news. It is once it was loaded in
    between, or removed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Start with none; `paths` are the directories of the datasets."""
        self._paths = tuple(paths)
        self._found: dict[Key, Refusal] = {}
        self._reported: set[Key] = set()

    def update(self, snapshots: Sequence[Snapshot]) -> None:
        """Take over what snapshots refuse; forget segments that were fixed or removed."""
        numbered = list(enumerate(snapshots))
        found = {(n, r.segment_id): r for n, snapshot in numbered for r in snapshot.refused}
        tried_again = {(n, r.segment_id) for n, snapshot in numbered for r in snapshot.earlier}
        old = {key: found[key] for key in self._found if key in found}
        self._found = old | found
        self._reported &= found.keys() | tried_again

    def forget(self, loaded: Iterable[Key]) -> None:
        """Forget segments that turned out to be sound."""
        self._reported.difference_update(loaded)

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    def __bool__(self) -> bool:
        """Return whether any segment is refused now."""
        return bool(self._found)

    def all(self) -> tuple[RefusedSegment, ...]:
        """Return all segments that are refused now, in the order in which they were found."""
        return tuple(self._describe(key) for key in self._found)

    def take_new(self) -> tuple[RefusedSegment, ...]:
        """Return the segments that no earlier call has returned."""
        new = [key for key in self._found if key not in self._reported]
        self._reported.update(new)
        return tuple(self._describe(key) for key in new)

    def _describe(self, key: Key) -> RefusedSegment:
        return RefusedSegment(
            dataset=self._paths[key[0]],
            segment_id=key[1],
            reason=self._found[key].reason,
            is_unreadable=self._found[key].is_unreadable,
        )


def name_refused(refused: Sequence[RefusedSegment]) -> str:
    """Describe which segments, at least one, are refused, and why the first one is."""
    names = ", ".join(segment.segment_id for segment in refused[:_NAMED])
    if len(refused) > _NAMED:
        names += f" and {len(refused) - _NAMED} more"
    are = "segment is" if len(refused) == 1 else "segments are"
    return f"{len(refused)} {are} refused ({names}), the first because: {refused[0].reason}"


class SegmentTracker:
    """The newest snapshot of each dataset, and which of its segments a sampler wants."""

    def __init__(self, datasets: Sequence[Dataset], config: ReplayConfig) -> None:
        """Take a snapshot of each dataset; raise if they cannot be sampled together."""
        self.datasets = _check_datasets(datasets, config)
        self.eligibility = Eligibility(config)
        self.refusals = Refusals([dataset.path for dataset in self.datasets])
        self._config = config
        # Files of segments beyond the capacity need not be there; see `wanted`.
        check = not self.eligibility.takes_all
        self._snapshots = [dataset.snapshot(check_files=check) for dataset in self.datasets]
        self._counted: set[Key] = set()
        self.published: Counter[str] = Counter()
        """Steps of all episodes that were listed so far, whether or not they may be sampled, by the
        name of their collector."""
        for number, snapshot in enumerate(self._snapshots):
            self._count(number, snapshot, ())
        self.followed: Mapping[Key, Segment] = {}
        """Segments of the last call of `follow`."""
        self._before: Mapping[Key, Segment] = {}

    def refresh(self) -> tuple[Path, ...]:
        """Take new snapshots; return the datasets that are absent, whose old snapshots are kept."""
        absent = [n for n in range(len(self.datasets)) if self._is_absent(n)]
        return tuple(self.datasets[n].path for n in absent)

    def retry(self) -> None:
        """Try refused segments again where it is time to, and take no new segments."""
        for number, snapshot in enumerate(self._snapshots):
            if snapshot.refused:
                self._is_absent(number, known_only=True)

    def refuse(self, problems: Mapping[Key, Exception]) -> None:
        """Exclude segments that turned out to be bad; `refresh` tries them again."""
        for number in {number for number, _ in problems}:
            own = {key[1]: problem for key, problem in problems.items() if key[0] == number}
            self._snapshots[number] = self.datasets[number].refuse(self._snapshots[number], own)
        self.refusals.update(self._snapshots)

    def wanted(self) -> dict[Key, Segment]:
        """Return the segments to load; refuse those that are truncated or cannot be read."""
        self.refusals.update(self._snapshots)
        while True:
            segments = self._listed()
            problems = self.eligibility.update(segments)
            readable = {key: segments[key] for key in segments if key not in problems}
            chosen = _select_segments(self.eligibility.steps(readable), self._config)
            found = {key: segments[key] for key in chosen}
            problems |= _truncated(found)
            if not problems:
                return found
            self.refuse(problems)

    def follow(self, wanted: Mapping[Key, Segment]) -> None:
        """Record that these segments are loaded from now on, or being loaded."""
        self._before, self.followed = self.followed, wanted

    def new_episodes(self, added: Mapping[Key, LoadedSegment]) -> list[EpisodeSummary]:
        """Return the episodes of added segments that may be sampled and are new.

        Episodes of a merged segment are not new if one of its origins was loaded before. The added
        segments are some of the last `follow`; return one summary for each, sorted by key.
        """
        found = []
        self.refusals.forget(added)
        for key in sorted(added):
            is_new = np.zeros(len(added[key].episodes), np.bool_)
            is_new[self.eligibility.eligible(key)] = True
            before = (old for (number, _), old in self._before.items() if number == key[0])
            is_new &= unseen_episodes(self.followed[key], before)
            found.append(added[key].episodes.choose(is_new))
        return found

    def held_out(self) -> list[tuple[Key, int, Segment]]:
        """Return the held-out episodes, as key, index in the segment and segment, in order."""
        segments = self._listed()
        return [
            (key, number, segments[key])
            for key, number in self.eligibility.held_out()
            if key in segments
        ]

    def empty_error(self) -> NoSegmentsError | DatasetUnreadableError:
        """Return the error if nothing can be sampled: what was found, and the fix."""
        refused = self.refusals.all()
        why = "no segment is published yet; run `avtd3 collect` and refresh"
        if excluded := self.eligibility.describe():
            why = excluded
        elif refused:
            why = name_refused(refused)
        where = ", ".join(str(dataset.path) for dataset in self.datasets)
        is_unreadable = any(segment.is_unreadable for segment in refused)
        kind = DatasetUnreadableError if is_unreadable and not excluded else NoSegmentsError
        return kind(f"nothing to sample in {where}: {why}")

    def _listed(self) -> dict[Key, Segment]:
        """Return all published segments that are not refused."""
        return {
            (number, segment.id): segment
            for number, snapshot in enumerate(self._snapshots)
            for segment in snapshot.segments
        }

    def _is_absent(self, number: int, *, known_only: bool = False) -> bool:
        """Take a new snapshot, unless the dataset seems to be unmounted."""
        old = self._snapshots[number]
        try:
            new = self.datasets[number].refresh(old, known_only=known_only)
        except DatasetError:
            return True
        if old.segments and not new.segments:
            return True
        self._snapshots[number] = new
        self._count(number, new, old.segments)
        return False

    def _count(self, number: int, snapshot: Snapshot, before: Sequence[Segment]) -> None:
        """Count the steps of new segments, once each; those of merged ones are counted already."""
        for segment in snapshot.segments:
            if (number, segment.id) not in self._counted:
                self._counted.add((number, segment.id))
                self.published[collector_of(segment.id)] += _unseen_steps(segment, before)


def _unseen_steps(segment: Segment, before: Sequence[Segment]) -> int:
    """Return the number of steps that are in none of the segments that a segment replaces."""
    is_new = unseen_episodes(segment, before)
    if is_new.all() or not is_new.any():
        return segment.steps if is_new.all() else 0
    try:
        return int(segment.episode_table().length[is_new].sum())
    except (SegmentCorruptError, OSError):
        return 0


def _truncated(segments: Mapping[Key, Segment]) -> dict[Key, Exception]:
    """Return the segments of which a file is missing or of another size, with the reason."""
    problems: dict[Key, Exception] = {}
    for key, segment in segments.items():
        try:
            segment.check_files()
        except (SegmentCorruptError, OSError) as error:
            problems[key] = error
    return problems


def _check_datasets(datasets: Sequence[Dataset], config: ReplayConfig) -> list[Dataset]:
    """Return the datasets; raise ConfigError or SpecError if they cannot be sampled together."""
    if not datasets:
        raise ConfigError("a sampler needs at least one dataset, found none")
    if config.weights and len(config.weights) != len(datasets):
        raise ConfigError(
            f"replay.weights has {len(config.weights)} values, expected {len(datasets)}, one for "
            "each dataset"
        )
    first = datasets[0]
    for number, dataset in enumerate(datasets[1:], start=1):
        ours, theirs = (each.spec.select(config.streams) for each in (first, dataset))
        if difference := ours.difference(theirs):
            raise SpecError(
                f"the spec of dataset {dataset.path} differs from that of {first.path} "
                f"({difference}); use datasets with the same spec"
            )
        if dataset.path.resolve() in {other.path.resolve() for other in datasets[:number]}:
            raise ConfigError(f"dataset {dataset.path} is given twice; name it once, with a weight")
    return list(datasets)


def _select_segments(steps: Mapping[Key, int], config: ReplayConfig) -> list[Key]:
    """Return the newest segments that fit into the capacity, or into the part of each dataset.

    `steps` is how many steps of each segment may be sampled. The result depends only on the
    arguments, so that a resumed run selects the same segments.
    """
    if not config.weights:
        return _newest(steps, config.capacity)
    total = sum(config.weights)
    selected: list[Key] = []
    for number, weight in enumerate(config.weights):
        if weight > 0.0:
            own = {key: count for key, count in steps.items() if key[0] == number}
            selected += _newest(own, int(config.capacity * weight / total))
    return selected


def _newest(steps: Mapping[Key, int], capacity: int) -> list[Key]:
    """Return the newest segments whose steps fit, oldest first; at least one if there is any."""
    kept: list[Key] = []
    total = 0
    for key in sorted(steps, key=lambda key: (key[1], key[0]), reverse=True):
        total += steps[key]
        if kept and total > capacity:
            break
        kept.append(key)
    return kept[::-1]
