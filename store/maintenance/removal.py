"""What the maintenance commands share: progress, the lock, and the removal of what is replaced."""

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.dataset import Dataset, Refusal, Snapshot
from avtd3.store.errors import SEGMENT_ERRORS, SegmentNotFoundError, SegmentUnreadableError
from avtd3.store.files import canonical_json, parse_json, storage_errors
from avtd3.store.locks import ExclusiveLock
from avtd3.store.replaced import ClaimChecker, replaced_by
from avtd3.store.segment import Segment
from avtd3.store.staging import remove_segments

REMOVED_FILE = ".removed.jsonl"
"""File of a dataset that names the segments which maintenance removed from it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A segment that maintenance removed."""

    segment: str
    digest: str
    replaced_by: str = ""
    """The segment that has all its episodes; empty if they were pruned."""


def remove(dataset: Dataset, segments: Sequence[Segment], replaced_by: str = "") -> None:
    """Write down which segments are removed, for `avtd3 push --removals`, and remove them."""
    made = (
        Removal(segment=each.id, digest=each.manifest_digest, replaced_by=replaced_by)
        for each in segments
    )
    # A line that was cut by a crash ends where the next one begins.
    text = b"".join(b"\n" + canonical_json(dataclasses.asdict(each)) for each in made)
    path = dataset.path / REMOVED_FILE
    with storage_errors(path), path.open("ab") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    remove_segments(dataset.path, [segment.id for segment in segments])


def read_removals(path: Path) -> dict[str, Removal]:
    """Return what maintenance removed from the dataset at a path, by id; skip damaged lines."""
    found = {}
    try:
        lines = (path / REMOVED_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        with contextlib.suppress(TypeError, ValueError):
            removal = Removal(**parse_json(line, REMOVED_FILE))
            found[removal.segment] = removal
    return found


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
    checker, removed = ClaimChecker(), []
    for name in find_leftovers(snapshot):
        if name in segment_ids:
            known = (*snapshot.segments, *snapshot.replaced)
            claimants = [segment for segment in known if name in replaced_by(segment)]
            by = _container(replaced[name], claimants, checker, problems)
            if by is not None:
                remove(dataset, [replaced[name]], by.id)
                removed.append(name)
    return removed


def _container(
    leftover: Segment, claimants: Sequence[Segment], checker: ClaimChecker, problems: Problems
) -> Segment | None:
    """Return the one of some segments that is whole and has all episodes of a leftover."""
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
            return claimant
        problems.add(
            f"segment {leftover.id} stays: {claimant.id} claims to replace it, but {claim.problem}"
        )
    return None
