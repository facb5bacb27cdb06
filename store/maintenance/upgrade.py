"""`upgrade`: make a dataset of format 2, whose image is a named stream, from one of format 1.

Nothing is decoded: the files of all arrays are shared by hard links, and those of the frames get
another name. Each segment is read back and compared with its source before it is published.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.layout import FRAMES, frames_array
from avtd3.store.format.manifest import FRAMES_CHECKSUMS
from avtd3.store.maintenance.derive import Change, Derivation, DerivedTally, NewArrays
from avtd3.store.maintenance.removal import (
    MaintenanceProgress,
    MaintenanceReport,
    Problems,
    exclusive,
)
from avtd3.store.render.text import file_size, join_lines, plural
from avtd3.store.replaced import UPGRADE
from avtd3.store.segment import Segment


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeReport(MaintenanceReport):
    """What `upgrade` made."""

    source: str
    """Path of the old dataset."""
    stream: str
    """Name of the stream that the image has become."""
    segments: int
    """Segments that were made and compared with their sources."""
    steps: int
    """Steps in these segments."""
    already_there: int
    """Segments that an earlier run had made."""
    bytes_written: int
    """Size of the files that were written."""
    bytes_shared: int
    """Size of the files that both datasets share through hard links."""
    bytes_copied: int
    """Size of the files that were copied because hard links are not possible."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        made = f"{plural(self.segments, 'segment')} of {self.steps:,} steps"
        lines = [
            f"upgraded {made} into {self.dataset}, format 2, and compared them; the image is the "
            f"stream {self.stream}",
            f"{file_size(self.bytes_written)} written, {file_size(self.bytes_shared)} shared with "
            "the old dataset by hard links",
        ]
        if self.bytes_copied:
            lines.append(f"{file_size(self.bytes_copied)} copied: hard links are not possible")
        if self.already_there:
            lines.append(f"{plural(self.already_there, 'segment')} made before")
        return join_lines([*lines, *self.notes("skipped")])


def upgrade(
    source: Path,
    target: Path,
    *,
    stream: str = "front",
    clock: Callable[[], float] = time.time,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[MaintenanceProgress], None] = lambda _: None,
) -> UpgradeReport:
    """Make a dataset of format 2 with the same episodes, or add what is new to it.

    ``should_stop`` is called before each segment; True ends the command, and another one continues.

    Raises:
        ConfigError: The dataset has no image or is one of format 2, or ``target`` is the source.
        SpecError: ``stream`` cannot be the name of a stream.
    """
    old = Dataset.open(source)
    if old.spec.image is None:
        found = "named streams already" if old.spec.streams else "no image"
        raise ConfigError(f"{source} has {found}, expected an image; there is nothing to upgrade")
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the source dataset itself; name a new directory")
    spec = dataclasses.replace(old.spec, image=None, streams={stream: old.spec.image})
    new, array = Dataset.create(target, spec), frames_array(spec, stream)
    document = {"format_version": spec.format_version, "stream": stream}
    tag = sha256(canonical_json(document))[:8]
    change = Change(key=UPGRADE, document=document, tag=tag, arrays=())

    def make(segment: Segment) -> NewArrays:
        about = segment.provenance
        named = {key: {array: about[key]} for key in ("codec", FRAMES_CHECKSUMS) if key in about}
        return NewArrays(files={}, provenance=named, renamed={FRAMES: array})

    with exclusive(new):
        work = Derivation(old, new, change)
        missing = work.missing

        def show(tally: DerivedTally) -> None:
            on_progress(MaintenanceProgress(verb="upgraded", done=tally.done, total=len(missing)))

        stopped = work.run(missing, make, clock, should_stop, show)
    tally, problems = work.tally, Problems()
    problems.add(*work.refused)
    return UpgradeReport(
        source=str(source),
        dataset=str(target),
        stream=stream,
        segments=tally.segments,
        steps=tally.steps,
        already_there=work.already_there - tally.segments,
        bytes_written=tally.bytes_written,
        bytes_shared=tally.bytes_shared,
        bytes_copied=tally.bytes_copied,
        problems=(*problems.texts, *tally.problems),
        unreadable=problems.unreadable + tally.unreadable,
        stopped=stopped,
    )
