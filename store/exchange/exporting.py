"""Export a dataset to the layout of another tool.

The work is done in ``OUT.partial/``: one file per episode, each complete once it has its name. The
last step renames the whole to ``OUT``, so an interrupted export is never taken for a whole one.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avtd3.store.dataset import Dataset
from avtd3.store.episode import Episode, SegmentReader
from avtd3.store.errors import ConfigError, SegmentCorruptError, SegmentUnreadableError
from avtd3.store.exchange.hdf5 import RobomimicLayout
from avtd3.store.exchange.lerobot import LeRobotLayout
from avtd3.store.exchange.minari import MinariLayout
from avtd3.store.exchange.npz import NpzLayout
from avtd3.store.exchange.record import (
    Layout,
    facts_of,
    record_of,
)
from avtd3.store.files import (
    aside_of,
    canonical_json,
    check_local,
    exists,
    fsync_directory,
    read_json,
    remove,
    remove_tree,
    storage_errors,
    sweep_asides,
    write_aside,
)
from avtd3.store.filters import parse_filter
from avtd3.store.locks import ExclusiveLock
from avtd3.store.render.text import WorkProgress, join_lines, plural
from avtd3.store.segment import Segment

LAYOUTS: Mapping[str, type[Layout]] = {
    "hdf5": RobomimicLayout,
    "lerobot": LeRobotLayout,
    "minari": MinariLayout,
    "npz": NpzLayout,
}
"""The layouts by name."""
_PLAN, _EPISODES = "plan.json", "episodes"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What `export_episodes` made."""

    dataset: str
    out: str
    layout: str
    episodes: int
    steps: int
    resumed: int
    """Episodes that an earlier run had exported."""
    kept: tuple[str, ...]
    """What is in fields that only avtd3 reads."""
    lost: tuple[str, ...]
    """What is not exported."""
    stopped: bool
    """Whether the export was interrupted; ``out`` does not exist then."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        what = f"{plural(self.episodes, 'episode')} of {self.steps:,} steps"
        if self.stopped:
            return join_lines(
                [f"stopped early after {what}; run the command again to continue", self.out]
            )
        earlier = f" ({self.resumed:,} exported before)" if self.resumed else ""
        lines = [f"exported {what} to {self.out} ({self.layout}){earlier}"]
        lines += ["kept in fields that only avtd3 reads:", *(f"  {text}" for text in self.kept)]
        lines += ["not exported:", *(f"  {text}" for text in self.lost)]
        return join_lines(lines)

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return dataclasses.asdict(self)


def export_episodes(
    source: Path,
    out: Path,
    layout: str,
    *,
    filters: Sequence[str] = (),
    streams: Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> ExportReport:
    """Export the episodes that match all filters, or continue an interrupted export.

    Args:
        source: Path of the dataset.
        out: Path of the export, which must not exist.
        layout: One of `LAYOUTS`.
        filters: Texts such as ``end=goal``; see docs/sampling.md.
        streams: Names of the streams to export; empty for all.
        should_stop: Called before each episode; True ends the run.
        on_progress: Called after each episode.

    Raises:
        ConfigError: ``out`` exists, or ``out``.partial is of another export.
        StorageError: The disk is full.

    Example:
        >>> from avtd3.store import EpisodeSpec
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> dataset = Dataset.create("data", spec)
        >>> export_episodes(dataset.path, Path("out"), "npz").episodes
        0
    """
    check_local(out)
    dataset = Dataset.open(source)
    if layout not in LAYOUTS:
        raise ConfigError(f"--to is {layout!r}, expected one of: {', '.join(LAYOUTS)}")
    parse_filter(filters)  # an error here makes no directory
    made = LAYOUTS[layout](dataset.spec.select(streams))
    if exists(out):
        raise ConfigError(f"{out} exists; choose another path, or remove it first")
    partial = out.with_name(f"{out.name}.partial")
    with storage_errors(partial):
        (partial / _EPISODES).mkdir(parents=True, exist_ok=True)
    with ExclusiveLock(partial, purpose="avtd3 export"):
        work = _Export(dataset, out, partial, made, layout, tuple(filters))
        stopped = work.run(should_stop, on_progress)
        if not stopped:
            work.finish()
    if not stopped:
        remove_tree(partial)
    return work.report(stopped=stopped)


class _Export:
    """One run of an export."""

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        partial: Path,
        layout: Layout,
        name: str,
        filters: tuple[str, ...],
    ) -> None:
        self._dataset, self._out, self._partial = dataset, out, partial
        self._layout, self._name, self._filters = layout, name, filters
        self._chosen = parse_filter(filters)
        self._segments = self._planned_segments()
        self._parts: list[Path] = []
        self._steps = self._resumed = 0

    def _planned_segments(self) -> list[Segment]:
        """Return the segments of the first run, whatever was published since."""
        snapshot = self._dataset.snapshot()
        if snapshot.refused:
            first = snapshot.refused[0]
            kind = SegmentUnreadableError if first.is_unreadable else SegmentCorruptError
            raise kind(first.reason)
        found = {segment.id: segment for segment in snapshot.segments}
        digests = {name: segment.manifest_digest for name, segment in found.items()}
        settings = {
            "layout": self._name,
            "dataset": str(self._dataset.path.resolve()),
            "filters": list(self._filters),
        }
        if self._layout.spec != self._dataset.spec:
            settings["streams"] = list(self._layout.spec.images)
        path = self._partial / _PLAN
        try:
            plan = read_json(path, 1 << 30)
        except FileNotFoundError:
            plan = {**settings, "segments": digests}
            write_aside(path, canonical_json(plan))
        except ValueError:
            plan = {}
        is_same = isinstance(plan, dict) and all(plan.get(k) == v for k, v in settings.items())
        segments = plan.get("segments") if is_same else None
        if not isinstance(segments, dict) or not segments.items() <= digests.items():
            raise ConfigError(
                f"{self._partial} is of another export, or the dataset has lost segments since; "
                "remove it to export anew"
            )
        return [segment for name, segment in found.items() if name in segments]

    def _episodes(self) -> Iterator[Episode]:
        for segment in self._segments:  # the arrays of one segment at a time are in memory
            reader = SegmentReader(segment)
            for number in np.flatnonzero(self._chosen.matches(reader.table)).tolist():
                yield Episode(reader, number)

    def run(
        self,
        should_stop: Callable[[], bool],
        on_progress: Callable[[WorkProgress], None],
    ) -> bool:
        """Write the files of the episodes that have none; return whether it was interrupted."""
        total = sum(int(self._chosen.matches(s.episode_table()).sum()) for s in self._segments)
        sweep_asides(self._partial / _EPISODES)
        for number, episode in enumerate(self._episodes()):
            if should_stop():
                return True
            path = self._partial / _EPISODES / self._layout.part_name(number, episode)
            with storage_errors(path):
                if is_there := exists(path):
                    self._resumed += 1
                else:
                    self._write(path, number, episode)
            self._parts.append(path)
            self._steps += episode.length
            if not is_there:  # what costs no time would spoil the estimate of the time left
                on_progress(
                    WorkProgress(verb="exported", done=number + 1, total=total, noun="episode")
                )
        return False

    def _write(self, path: Path, number: int, episode: Episode) -> None:
        record, aside = record_of(episode, self._layout.spec), aside_of(path)
        try:
            self._layout.write_part(aside, number, record, facts_of(episode, record))
            aside.rename(path)
        finally:
            remove(aside)

    def finish(self) -> None:
        """Make the whole export, and give it its name."""
        with storage_errors(self._out):
            fsync_directory(self._partial / _EPISODES)
            document = self._document()
            whole = self._layout.finish(self._partial, self._parts, self._out, document)
            if exists(self._out):
                raise ConfigError(f"{self._out} exists now; choose another path")
            whole.rename(self._out)
            fsync_directory(self._out.parent)

    def _document(self) -> dict[str, Any]:
        """Return what is known of the export as a whole: spec and provenance."""
        return {
            "avtd3": importlib.metadata.version("avtd3"),
            "dataset": str(self._dataset.path),
            "spec": self._layout.spec.to_json(),
            "spec_digest": self._layout.spec.digest,
            "filters": list(self._filters),
            "episodes": len(self._parts),
            "steps": self._steps,
            "segments": [
                {"id": s.id, "digest": s.manifest_digest, "provenance": dict(s.provenance)}
                for s in self._segments
            ],
            "kept": list(self._layout.kept),
            "lost": list(self._layout.lost),
        }

    def report(self, *, stopped: bool) -> ExportReport:
        """Return what was made."""
        return ExportReport(
            dataset=str(self._dataset.path),
            out=str(self._out),
            layout=self._name,
            episodes=len(self._parts),
            steps=self._steps,
            resumed=self._resumed,
            kept=self._layout.kept,
            lost=self._layout.lost,
            stopped=stopped,
        )
