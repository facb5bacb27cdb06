"""MANIFEST.json, the last file of a segment: what else it holds, byte for byte.

A directory without a manifest is no segment. The manifest's digest covers everything in it, and
it covers every other file, so two strings tell whether two segments are the same.
"""

import dataclasses
import functools
import operator
import os
import re
import stat
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from pathlib import Path
from typing import Any, NamedTuple, Self

from avtd3.store.errors import FormatVersionError, SegmentCorruptError, SegmentNotFoundError
from avtd3.store.files import canonical_json, is_safe_relative, parse_json, read_bytes, sha256
from avtd3.store.format.layout import FORMAT_VERSION, MANIFEST_FILE, MAX_STEPS

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KIND = 0o170000  # the bits of a mode that tell files from the rest, as stat.S_IFMT has them
_FILES = re.compile(rb'\{"digest":"[0-9a-f]{64}","episodes":[0-9]+,"files":(\[[^][]*\])')
_entry_values = operator.itemgetter("path", "size", "sha256")
_COUNTS = ("episodes", "steps", "observations")
_KEYS = frozenset(
    (
        "format_version",
        "segment_id",
        "spec_digest",
        *_COUNTS,
        "files",
        "provenance",
        "digest",
    )
)


class FileEntry(NamedTuple):
    """One file of a segment."""

    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal."""


class FileTable(Mapping[str, FileEntry]):
    """Files by path, parsed when someone asks for one; a dataset of 10 000 segments has 500 000."""

    __slots__ = ("_files", "_path")

    def __init__(self, path: Path, text: bytes) -> None:
        """Keep the list of files as it stands in a manifest.

        Args:
            path: The segment's directory, for messages.
            text: JSON. What is wrong with it comes to light when it is parsed.
        """
        self._path = path
        self._files: bytes | dict[str, FileEntry] = text

    def _parse(self) -> dict[str, FileEntry]:
        files = self._files
        if isinstance(files, bytes):
            try:
                self._files = files = _read_files(parse_json(files, MANIFEST_FILE))
            except (KeyError, TypeError, ValueError) as error:
                raise corrupt(self._path, f"{MANIFEST_FILE} is malformed: {error}") from error
        return files

    def items(self) -> ItemsView[str, FileEntry]:
        """Those of the dict; as a mixin they would take five times as long."""
        return self._parse().items()

    def values(self) -> ValuesView[FileEntry]:
        """As for `items`."""
        return self._parse().values()

    def __getitem__(self, path: str) -> FileEntry:
        return self._parse()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parse())

    def __len__(self) -> int:
        return len(self._parse())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a segment is made of."""

    segment_id: str
    """Name of the segment's directory."""
    spec_digest: str
    """Digest of the spec of the dataset it was written for."""
    episodes: int
    """Whole episodes."""
    steps: int
    """Sum of their lengths."""
    observations: int
    """``steps + episodes``."""
    files: Mapping[str, FileEntry]
    """Every file but the manifest, by path below the segment's directory. Of a manifest that was
    read, a `FileTable`: if it is malformed, who asks it first gets a `SegmentCorruptError`."""
    provenance: Mapping[str, Any]
    """Who wrote it, when and with what."""
    digest: str
    """SHA-256 of everything else in the manifest."""

    def to_bytes(self) -> bytes:
        """The manifest as it is written: canonical JSON and a line feed."""
        return canonical_json({**self._body(), "digest": self.digest}) + b"\n"

    def _body(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "segment_id": self.segment_id,
            "spec_digest": self.spec_digest,
            "episodes": self.episodes,
            "steps": self.steps,
            "observations": self.observations,
            "files": [
                {"path": path, "size": entry.size, "sha256": entry.sha256}
                for path, entry in self.files.items()
            ],
            "provenance": dict(self.provenance),
        }

    @property
    def size_bytes(self) -> int:
        """Bytes of all files it lists."""
        return sum(entry.size for entry in self.files.values())

    def sealed(self) -> Self:
        """The same manifest with its digest filled in."""
        return dataclasses.replace(self, digest=sha256(canonical_json(self._body())))

    def check_sizes(self, path: Path) -> None:
        """Compare the size of every file with the manifest's.

        Raises:
            SegmentCorruptError: A file is missing, no regular file, or of another size.
        """
        name = "directory"
        try:
            # Relative to an open directory: the kernel walks half as many names.
            directory = os.open(path, _DIRECTORY_FLAGS)
            try:
                for name, (size, _) in self.files.items():
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    if status.st_size != size or status.st_mode & _KIND != stat.S_IFREG:
                        raise corrupt(path, _describe(name, status, size))
            finally:
                os.close(directory)
        except OSError as error:
            raise gone_or_torn(path, f"{name} cannot be read: {error.strerror}") from error


def _describe(name: str, status: os.stat_result, size: int) -> str:
    if stat.S_ISREG(status.st_mode):
        return f"{name} has {status.st_size} bytes, expected {size}"
    what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no file"
    return f"{name} is {what}, expected a file of {size} bytes"


def corrupt(path: Path, problem: str) -> SegmentCorruptError:
    """The error for a segment whose bytes are not those that were published."""
    return SegmentCorruptError(
        f"segment {path.name} ({path.parent}): {problem}; "
        "copy it again from its source, or quarantine it with avtd3 replay-inspect --quarantine"
    )


def gone_or_torn(path: Path, problem: str) -> SegmentCorruptError | SegmentNotFoundError:
    """The error for a file that cannot be opened: is the whole segment gone, or only the file?"""
    if path.is_dir():
        return corrupt(path, problem)
    return SegmentNotFoundError(
        f"segment {path.name} is no longer in {path.parent}: removed or quarantined; "
        "refresh the snapshot"
    )


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of the segment in a directory.

    Raises:
        SegmentNotFoundError: There is no such segment.
        SegmentCorruptError: The manifest is missing, torn, edited or another segment's.
        FormatVersionError: It is of a format that this version cannot read.
    """
    file = f"{path}/{MANIFEST_FILE}"
    try:
        data = read_bytes(file, MAX_MANIFEST_BYTES)
        document = _parse(data, path)
    except OSError as error:
        raise gone_or_torn(path, f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise corrupt(path, str(error)) from error
    if not isinstance(document, dict):
        raise corrupt(path, f"{MANIFEST_FILE} is not a JSON object")
    version = document.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatVersionError(
            f"segment {path.name} ({path.parent}) is of format {version}, this version of avtd3 "
            f"reads up to {FORMAT_VERSION}: install a newer avtd3"
        )
    try:
        manifest = _from_json(document, path)
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(path, f"{MANIFEST_FILE} is malformed: {error}") from error
    if not _digest_holds(data, manifest.digest):
        raise corrupt(path, f"{MANIFEST_FILE} does not match its own digest")
    if manifest.segment_id != path.name:
        raise corrupt(path, f"{MANIFEST_FILE} is that of segment {manifest.segment_id}")
    return manifest


def _parse(data: bytes, path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a manifest; of one that begins as ours do, the list of files is left for later.

    That list is nine tenths of the text. No path of ours has a bracket: one in a string cuts it
    short, and then what is left, or later what was cut out, is no JSON.
    """
    ours = _FILES.match(data)
    if ours is None:
        return parse_json(data, f"{path}/{MANIFEST_FILE}")
    begin, end = ours.span(1)
    document = parse_json(data[:begin] + b"[]" + data[end:], f"{path}/{MANIFEST_FILE}")
    document["files"] = FileTable(path, data[begin:end])
    return document


def _from_json(document: dict[str, Any], path: Path) -> Manifest:
    if document.keys() != _KEYS:
        raise ValueError(f"missing or unknown keys: {sorted(_KEYS ^ document.keys())}")
    files = document["files"]
    if not isinstance(files, FileTable):
        files = _read_files(files)
    for name in _COUNTS:
        if type(document[name]) is not int or document[name] < 1:
            raise ValueError(f"{name} is {document[name]!r}, expected a whole number above 0")
    if document["observations"] != document["steps"] + document["episodes"]:
        raise ValueError("observations are not steps + episodes")
    if not isinstance(document["provenance"], dict):
        raise TypeError("provenance is no JSON object")
    return Manifest(
        segment_id=str(document["segment_id"]),
        spec_digest=str(document["spec_digest"]),
        episodes=document["episodes"],
        steps=document["steps"],
        observations=document["observations"],
        files=files,
        provenance=document["provenance"],
        digest=str(document["digest"]),
    )


def _read_files(entries: object) -> dict[str, FileEntry]:
    if not isinstance(entries, list):
        raise TypeError("files is no list")
    # Whole columns instead of entry by entry: Python needs a third of the time for them.
    paths, sizes, digests = zip(*map(_entry_values, entries), strict=True) if entries else ((),) * 3
    if not set(map(type, sizes)) <= {int} or min(sizes, default=0) < 0:
        raise ValueError("the size of a file is no whole number of bytes")
    if not set(map(type, digests)) <= {str}:
        raise ValueError("the SHA-256 of a file is no text")
    return dict(zip(_check_paths(paths), map(FileEntry, sizes, digests), strict=True))


@functools.lru_cache(maxsize=64)
def _check_paths(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of files, if they are plain and distinct; one tuple for all segments that list them."""
    for name in paths:
        if type(name) is not str or not is_safe_relative(name):
            raise ValueError(f"file {name!r} is no plain path")
    if len(set(paths)) != len(paths):
        raise ValueError("a file is listed twice")
    return paths


def _digest_holds(data: bytes, digest: str) -> bool:
    # Our own manifests are canonical already: cutting the digest out of the text spares writing
    # 50 files' worth of JSON again.
    cut = data.replace(f'"digest":"{digest}",'.encode(), b"", 1).removesuffix(b"\n")
    if sha256(cut) == digest:
        return True
    try:
        rest = parse_json(data, MANIFEST_FILE)
        del rest["digest"]
        return sha256(canonical_json(rest)) == digest
    except ValueError:
        return False


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


BINDING = "frames_checksums"
"""Key of the provenance."""


def binding(shard_sha256: str, checksums: bytes) -> dict[str, str]:
    """What the provenance says of a shard.

    Args:
        shard_sha256: SHA-256 of the file, as in the manifest.
        checksums: Of all its chunks, see `avtd3.store.format.shard.joined_checksums`.
    """
    return {"shard": shard_sha256, "checksums": sha256(checksums)}


def is_bound(provenance: Mapping[str, Any], shard_sha256: str, checksums: bytes) -> bool:
    """Whether checksums that were read are those that the provenance says.

    Older segments say nothing, and what is said of another file, which was replaced together with
    the manifest's entry, does not count.
    """
    said = provenance.get(BINDING)
    if not isinstance(said, dict) or said.get("shard") != shard_sha256:
        return True
    return said == binding(shard_sha256, checksums)
