"""What a sampler found when it looked at its datasets: what is new, and what it cannot use."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from avtd3.store.dataset import Snapshot
from avtd3.store.replay.episodes import EpisodeSummary
from avtd3.store.replay.rows import Key
from avtd3.store.spec import EpisodeSpec

_NAMED = 5
"""Most segments that an error names."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefusedSegment:
    """A published segment that cannot be used."""

    dataset: Path
    """Directory of its dataset."""
    segment_id: str
    """Name of its directory."""
    reason: str
    """What is wrong with it and what mends it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefreshReport:
    """What a refresh, or the opening of a sampler, changed."""

    segments_added: int
    """Segments that can be drawn from now on."""
    segments_removed: int
    """Segments that cannot be drawn any more: past the capacity, or removed from the dataset."""
    steps_added: int
    """Transitions in the added segments."""
    episodes: EpisodeSummary
    """The episodes in the added segments: by dataset, then segment id."""
    refused: tuple[RefusedSegment, ...]
    """Segments that cannot be used, each reported once; `Sampler.refused` has all of them."""
    absent: tuple[Path, ...] = ()
    """Datasets that cannot be listed or have lost all their segments, as when a disk is unmounted;
    what was read of them can still be drawn."""

    @classmethod
    def join(cls, reports: Sequence[Self], spec: EpisodeSpec) -> Self:
        """Several changes in one report, in the order in which they happened."""
        return cls(
            segments_added=sum(report.segments_added for report in reports),
            segments_removed=sum(report.segments_removed for report in reports),
            steps_added=sum(report.steps_added for report in reports),
            episodes=EpisodeSummary.join([report.episodes for report in reports], spec),
            refused=tuple(segment for report in reports for segment in report.refused),
        )


class Refusals:
    """Segments that cannot be used, in the order in which they were found.

    What could not be opened is tried again by each snapshot. What opened and then proved bad is
    left alone until it is removed: it would be read in vain every time.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Start with none.

        Args:
            paths: Directory of each dataset, in the order of the keys' numbers.
        """
        self._paths = tuple(paths)
        self._reasons: dict[Key, str] = {}
        self._proved: set[Key] = set()
        self._reported: set[Key] = set()

    def __contains__(self, key: Key) -> bool:
        """Whether a segment opened and proved bad."""
        return key in self._proved

    def follow(self, snapshots: Sequence[Snapshot]) -> None:
        """Take in what snapshots refuse; forget what was mended or removed."""
        unopened = {
            (number, refusal.segment_id): refusal.reason
            for number, snapshot in enumerate(snapshots)
            for refusal in snapshot.refused
        }
        if self._proved:
            listed = {
                (n, segment.id) for n, held in enumerate(snapshots) for segment in held.segments
            }
            self._proved &= listed
        still = unopened.keys() | self._proved
        self._reasons = {key: reason for key, reason in self._reasons.items() if key in still}
        self._reasons |= unopened
        self._reported &= still

    def add(self, proved: Mapping[Key, str]) -> None:
        """Take in segments that opened and proved bad, with the reason."""
        self._proved |= proved.keys()
        self._reasons |= proved

    def all(self) -> tuple[RefusedSegment, ...]:
        """All that are refused now."""
        return tuple(self._describe(key) for key in self._reasons)

    def take_new(self) -> tuple[RefusedSegment, ...]:
        """Those that no call before has returned."""
        new = [key for key in self._reasons if key not in self._reported]
        self._reported.update(new)
        return tuple(self._describe(key) for key in new)

    def _describe(self, key: Key) -> RefusedSegment:
        return RefusedSegment(
            dataset=self._paths[key[0]], segment_id=key[1], reason=self._reasons[key]
        )


def name_refused(refused: Sequence[RefusedSegment]) -> str:
    """For an error where nothing but refused segments is left: which, and why the first.

    Args:
        refused: At least one.
    """
    names = ", ".join(segment.segment_id for segment in refused[:_NAMED])
    if len(refused) > _NAMED:
        names += f" and {len(refused) - _NAMED} more"
    return f"{len(refused)} segments are refused ({names}), the first because: {refused[0].reason}"
