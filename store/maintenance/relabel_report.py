"""What a relabelling answers: figures, and how they are told."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from avtd3.store.maintenance.progress import count


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RelabelReport:
    """What a relabelling made."""

    source: str
    dataset: str
    """The new dataset."""
    weights: Mapping[str, float]
    """Of every reward term."""
    segments: int
    """Segments made."""
    steps: int
    """Steps in them."""
    already_there: int
    """Segments that an earlier run had made."""
    bytes_written: int
    bytes_shared: int
    """Bytes of files that lie in both datasets and on the disk once."""
    bytes_copied: int
    """Bytes that had to be copied, because links do not reach from one to the other."""
    mean_return_before: float
    """Over the episodes of the segments made; 0 if there are none."""
    mean_return_after: float
    problems: tuple[str, ...]
    """Segments that cannot be read and were left out, and why."""
    stopped: bool
    """Whether it was interrupted; the next run goes on."""

    def document(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return dataclasses.asdict(self) | {"problems": list(self.problems)}

    def summary(self) -> str:
        """The report in a few lines."""
        made = f"{count(self.segments, 'segment')} of {self.steps:,} steps"
        lines = [f"relabelled {made} into {self.dataset}"]
        if self.segments:
            lines += [
                f"mean return {self.mean_return_before:.3f} -> {self.mean_return_after:.3f}",
                f"{self.bytes_written / 1e6:.1f} MB written, {self.bytes_shared / 1e6:.1f} MB "
                "shared with the old dataset by hard links",
            ]
        if self.bytes_copied:
            lines.append(
                f"{self.bytes_copied / 1e6:.1f} MB copied: hard links do not reach from "
                f"{self.source} to {self.dataset}"
            )
        if self.already_there:
            lines.append(f"{count(self.already_there, 'segment')} made before")
        lines += [f"left out: {problem}" for problem in self.problems]
        if self.stopped:
            lines.append("stopped early; run it again to go on")
        return "\n".join(lines)
