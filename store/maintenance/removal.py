"""What the maintenance commands share: progress, the lock, and the removal of what is replaced."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from avtd3.store.dataset import Dataset, Refusal, Snapshot
from avtd3.store.errors import SEGMENT_ERRORS, SegmentNotFoundError, SegmentUnreadableError
from avtd3.store.locks import ExclusiveLock
from avtd3.store.render.text import plural
from avtd3.store.replaced import ClaimChecker, replaced_by
from avtd3.store.segment import Segment
from avtd3.store.staging import remove_segments


class Problems:
    """What a maintenance command left alone, and why."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        """One for each problem."""
        self.unreadable = 0
        """Segments that could not be read because of an I/O error, which says nothing about their
        data."""

    def add(self, *problems: Refusal | Exception | str) -> None:
        """Add what went wrong with segments, or those that a snapshot refuses."""
        for problem in problems:
            if isinstance(problem, Refusal):
                self.texts.append(problem.reason)
                self.unreadable += problem.is_unreadable
            else:
                self.texts.append(str(problem))
                self.unreadable += isinstance(problem, SegmentUnreadableError)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceProgress:
    """Progress of a maintenance command."""

    verb: str
    """What the command does, as a past participle."""
    done: int
    """Segments done."""
    total: int
    """Segments to do."""

    @property
    def fraction(self) -> float:
        """Return the share of the segments that are done, in [0, 1]."""
        return self.done / max(1, self.total)

    def line(self) -> str:
        """Format the progress as one line."""
        return f"{self.verb} {self.done:,} of {plural(self.total, 'segment')}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceReport:
    """What every maintenance command that can be interrupted reports."""

    dataset: str
    """Path of the dataset that was changed."""
    problems: tuple[str, ...]
    """Why some segments could not be read, merged or removed; they were kept."""
    unreadable: int
    """Segments that could not be read now because of an I/O error."""
    stopped: bool
    """Whether the command was interrupted; what it did until then is complete."""

    def notes(self, verb: str) -> list[str]:
        """Format the problems and an interruption, one line each."""
        lines = [f"{verb}: {problem}" for problem in self.problems]
        stop = ["stopped early; run the command again to continue"] if self.stopped else []
        return lines + stop

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return dataclasses.asdict(self)


@contextlib.contextmanager
def exclusive(dataset: Dataset) -> Iterator[None]:
    """Hold the lock of a dataset, which every command that changes published segments takes.

    Collectors and readers do not take it. What killed processes left is deleted first.
    """
    with ExclusiveLock(dataset.path, purpose="avtd3 store", is_required=True):
        dataset.clean_staging()
        yield


def find_leftovers(snapshot: Snapshot) -> list[str]:
    """Return the ids of segments that others replace, in the order in which they can be removed.

    A snapshot counts a segment as replaced only if the bytes of both sides show that the other one
    has all its episodes.
    """
    # Remove replaced segments before those that replace them, or readers would see them.
    found = sorted(snapshot.replaced, key=lambda segment: (len(replaced_by(segment)), segment.id))
    return [segment.id for segment in found]


def remove_leftovers(
    dataset: Dataset, snapshot: Snapshot, segment_ids: Collection[str], problems: Problems
) -> list[str]:
    """Remove leftovers whose bytes still are in a replacement; return the ids of those removed."""
    replaced = {segment.id: segment for segment in snapshot.replaced}
    checker, proven = ClaimChecker(), []
    for name in find_leftovers(snapshot):
        if name in segment_ids:
            known = (*snapshot.segments, *snapshot.replaced)
            claimants = [segment for segment in known if name in replaced_by(segment)]
            if _is_contained(replaced[name], claimants, checker, problems):
                proven.append(name)
    remove_segments(dataset.path, proven)
    return proven


def _is_contained(
    leftover: Segment, claimants: Sequence[Segment], checker: ClaimChecker, problems: Problems
) -> bool:
    """Return whether one of some segments is whole and has all episodes of a leftover."""
    for claimant in claimants:
        try:
            claimant.verify()
            claim = checker.check(claimant, leftover)
        except SegmentNotFoundError:
            continue
        except SEGMENT_ERRORS as error:
            problems.add(error)
            continue
        if claim.is_proven:
            return True
        problems.add(
            f"segment {leftover.id} stays: {claimant.id} claims to replace it, but {claim.problem}"
        )
    return False
