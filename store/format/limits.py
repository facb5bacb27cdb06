"""`Limits`: what a segment may claim, checked before anything is allocated for it."""

import dataclasses
from pathlib import Path

from avtd3.store.format.layout import MAX_STEPS
from avtd3.store.format.manifest import corrupt


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a segment may claim before anything is allocated for it."""

    max_steps: int = MAX_STEPS
    """Most steps."""
    max_file_bytes: int = 16 * 1024**3
    """Most bytes of all its files."""
    max_raw_bytes: int = 64 * 1024**3
    """Most bytes of all its arrays in memory."""

    def check_counts(self, path: Path, steps: int, raw_bytes: int) -> None:
        """Hold what a segment claims to contain against these limits.

        Args:
            path: The segment's directory, for the message.
            steps: What it claims.
            raw_bytes: What its arrays would take in memory, by its claims.

        Raises:
            SegmentCorruptError: It claims more than is allowed.
        """
        _check(path, steps, self.max_steps, "steps")
        _check(path, raw_bytes, self.max_raw_bytes, "bytes in memory")

    def check_size(self, path: Path, size_bytes: int) -> None:
        """Hold the size that a segment claims to have on disk against these limits.

        Raises:
            SegmentCorruptError: It claims more than is allowed.
        """
        _check(path, size_bytes, self.max_file_bytes, "bytes on disk")


def _check(path: Path, claim: int, most: int, unit: str) -> None:
    if claim > most:
        raise corrupt(path, f"claims {claim} {unit}, allowed are {most}")
