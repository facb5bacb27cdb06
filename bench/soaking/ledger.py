"""The ledger: every segment that a collector ever published on this machine, kept by hard links."""

import collections
import dataclasses
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from avtd3.store.dataset import Dataset
from avtd3.store.replaced import ORIGIN, episode_digests


class Ledger:
    """Hard links to every segment that was ever published, in a dataset of their own.

    Args:
        path: Directory of the ledger.
        sources: The datasets, or spools, that collectors publish into.
    """

    def __init__(self, path: Path, sources: Sequence[Path]) -> None:
        self.path, self.sources = path, sources
        self.names: list[str] = []
        self._lock = threading.Lock()
        (path / "segments").mkdir(parents=True)

    def scan(self) -> None:
        """Link the segments that are new."""
        with self._lock:
            for source in self.sources:
                self._scan(source)

    def _scan(self, source: Path) -> None:
        known = set(self.names)
        if not (source / "zarr.json").exists():
            return
        if not (self.path / "zarr.json").exists():
            shutil.copyfile(source / "zarr.json", self.path / "zarr.json")
        there = sorted(path.name for path in (source / "segments").iterdir())
        self.names += [n for n in there if n not in known and self._link(source, n)]

    def _link(self, source: Path, name: str) -> bool:
        aside = self.path / f"{name}.linking"
        try:
            if not (source / "segments" / name / "MANIFEST.json").exists():
                return False
            shutil.copytree(source / "segments" / name, aside, copy_function=os.link)
            aside.rename(self.path / "segments" / name)
        except OSError:  # it was removed meanwhile: replaced, pruned or uploaded
            shutil.rmtree(aside, ignore_errors=True)
            return False
        return True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An episode that was published."""

    steps: int
    driver: str
    segment: str


def read_ledger(ledger: Ledger) -> tuple[dict[str, Published], list[tuple[str, int]]]:
    """Return the published episodes by digest, and each plan's episodes, once for each digest."""
    dataset = Dataset.open(ledger.path)
    episodes: dict[str, Published] = {}
    planned: dict[tuple[str, int], set[str]] = collections.defaultdict(set)
    for name in ledger.names:
        segment = dataset.open_segment(name)
        table = segment.episode_table()
        drivers = table.texts("driver")
        for number, digest in enumerate(episode_digests(segment)):
            steps = int(table.length[number])
            known = Published(steps=steps, driver=drivers[number], segment=name)
            episodes.setdefault(digest, known)
            if ORIGIN not in segment.provenance:
                plan = str(segment.provenance.get("plan_digest"))
                planned[plan, int(table.index[number])].add(digest)
    twice = [key for key, digests in planned.items() if len(digests) > 1]
    return episodes, sorted(twice)


def view(path: Path) -> tuple[collections.Counter[str], int, list[str]]:
    """Return how often a reader of a dataset sees each episode, its steps, what it refuses."""
    snapshot = Dataset.open(path).snapshot()
    seen: collections.Counter[str] = collections.Counter()
    for segment in snapshot.segments:
        seen.update(episode_digests(segment))
    refused = [f"{refusal.segment_id}: {refusal.reason}" for refusal in snapshot.refused]
    return seen, snapshot.steps, refused
