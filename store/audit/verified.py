"""Which segments' checksums were verified before, so that an audit need not hash them again.

Remembered in the dataset's `.verified.json`, outside the published segments: one stamp per
segment over its manifest's digest and every file's size, mtime and inode. Any of them changed,
and the files are hashed anew. What a disk loses without a trace in these is found by `--full`,
and by the chunks' own checksums, which every audit checks as it decodes.
"""

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

from avtd3.store.errors import StorageError
from avtd3.store.files import canonical_json, read_json, write_aside

VERIFIED_FILE = ".verified.json"
"""Name in the dataset's directory."""
FORMAT = 1
SETTLED_NS = 2_000_000_000
"""Age below which an mtime cannot tell two writes apart on every file system."""


def stamp(path: Path, manifest_digest: str, names: Iterable[str]) -> str:
    """What a segment's files look like from outside, or "" if they are too new to tell.

    Args:
        path: The segment's directory.
        manifest_digest: Digest of the manifest, which holds the checksums.
        names: Its files.

    Raises:
        OSError: A file vanished.
    """
    digest, newest = hashlib.sha256(manifest_digest.encode()), 0
    for name in sorted(names):
        status = (path / name).lstat()
        digest.update(f"\n{name} {status.st_size} {status.st_mtime_ns} {status.st_ino}".encode())
        newest = max(newest, status.st_mtime_ns)
    return digest.hexdigest() if newest < time.time_ns() - SETTLED_NS else ""


class VerifiedSegments:
    """The memory of one dataset."""

    def __init__(self, dataset: Path) -> None:
        """Read what is remembered; a torn or strange memory is no memory."""
        self._path = dataset / VERIFIED_FILE
        self._stamps: dict[str, str] = {}
        try:
            document = read_json(self._path)
        except (OSError, ValueError):
            return
        if isinstance(document, dict) and document.get("format") == FORMAT:
            stamps = document.get("segments")
            if isinstance(stamps, dict):
                self._stamps = {k: v for k, v in stamps.items() if isinstance(v, str)}

    def stamp_of(self, segment_id: str) -> str:
        """The stamp under which a segment was verified, or ""."""
        return self._stamps.get(segment_id, "")

    def save(self, fresh: dict[str, str], present: Iterable[str]) -> None:
        """Remember more segments, and forget those that are gone; atomically.

        A dataset that cannot be written is audited all the same, and nothing is remembered.
        """
        kept = {**self._stamps, **fresh}
        names = set(present)
        stamps = {name: value for name, value in kept.items() if name in names and value}
        if stamps == self._stamps:
            return
        document = canonical_json({"format": FORMAT, "segments": stamps})
        try:
            write_aside(self._path, document)
        except StorageError:
            return
        self._stamps = stamps
