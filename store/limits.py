"""`Limits`: what a segment may claim, checked before anything is allocated for it."""

import dataclasses
from pathlib import Path

from avtd3.store.layout import MAX_STEPS
from avtd3.store.manifest import Manifest, corrupt


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a segment may claim before anything is allocated for it."""

    max_steps: int = MAX_STEPS
    """Most steps."""
    max_file_bytes: int = 16 * 1024**3
    """Most bytes of all its files."""
    max_raw_bytes: int = 64 * 1024**3
    """Most bytes of all its arrays in memory."""

    def check(self, path: Path, manifest: Manifest, raw_bytes: int) -> None:
        """Hold a segment's claims against these limits.

        Args:
            path: The segment's directory, for the message.
            manifest: What it claims.
            raw_bytes: What its arrays would take in memory, by those claims.

        Raises:
            SegmentCorruptError: It claims more than is allowed.
        """
        for claim, most, unit in (
            (manifest.steps, self.max_steps, "steps"),
            (manifest.size_bytes, self.max_file_bytes, "bytes on disk"),
            (raw_bytes, self.max_raw_bytes, "bytes in memory"),
        ):
            if claim > most:
                raise corrupt(path, f"claims {claim} {unit}, allowed are {most}")
