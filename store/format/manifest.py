"""`Manifest`: ``MANIFEST.json``, which lists every other file of a segment with its SHA-256.

It is written last: a directory without a manifest is not a segment. Its digest covers all of it and
so all files: segments with equal digests are equal.
"""

import contextlib
import dataclasses
import functools
import operator
import os
import re
import secrets
import stat
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from pathlib import Path
from typing import Any, NamedTuple, Self

from avtd3.store.errors import (
    Avtd3Error,
    FormatVersionError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SegmentUnreadableError,
    abbreviate,
    advice,
)
from avtd3.store.files import (
    canonical_json,
    is_directory,
    is_passing,
    is_safe_relative,
    parse_json,
    read_bytes,
    retry,
    sha256,
    show_path,
)
from avtd3.store.format.layout import FORMAT_VERSION, MANIFEST_FILE, MAX_STEPS

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KIND = 0o170000  # the bits of a mode with the type of a file, as in stat.S_IFMT
_FILES = re.compile(rb'\{"digest":"[0-9a-f]{64}","episodes":[0-9]+,"files":(\[[^][]*\])')
_entry_values = operator.itemgetter("path", "size", "sha256")
_CONFIG = re.compile(rb'"config":(\{.*?\}),"config_digest":"', re.DOTALL)
_MOST_CONFIG_BYTES = 64 * 1024
_HERE = secrets.token_hex(16)
"""Text in place of a part that is parsed on its own; nobody can have written it into a file."""


class FileEntry(NamedTuple):
    """One file of a segment."""

    size: int
    """Bytes."""
    sha256: str
    """SHA-256 of its bytes, in hexadecimal."""


class FileTable(Mapping[str, FileEntry]):
    """Files by path, parsed when first used: 10 000 segments have 500 000 files."""

    __slots__ = ("_files", "_path")

    def __init__(self, path: Path, text: bytes) -> None:
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
        """Return the items of the dict; those of the mixin are five times slower."""
        return self._parse().items()

    def values(self) -> ValuesView[FileEntry]:
        """Return the values of the dict; see `items`."""
        return self._parse().values()

    def __getitem__(self, path: str) -> FileEntry:
        return self._parse()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parse())

    def __len__(self) -> int:
        return len(self._parse())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a segment's manifest."""

    format_version: int
    """Version of the format, that of its dataset."""
    segment_id: str
    """Name of the segment's directory."""
    spec_digest: str
    """Digest of the dataset's spec."""
    episodes: int
    """Number of episodes."""
    steps: int
    """Sum of their lengths."""
    observations: int
    """``steps + episodes``."""
    files: Mapping[str, FileEntry]
    """Every file except the manifest, by path below the segment's directory. `read_manifest` makes
    it a `FileTable`: if it is malformed, its first use raises `SegmentCorruptError`."""
    provenance: Mapping[str, Any]
    """Who wrote the segment, when and with what."""
    digest: str
    """SHA-256 of everything else in the manifest; empty before it is sealed."""

    def to_bytes(self) -> bytes:
        """Return the content of the file: canonical JSON and a line feed."""
        return canonical_json(self._document()) + b"\n"

    def _document(self) -> dict[str, Any]:
        files = [{"path": path, **entry._asdict()} for path, entry in self.files.items()]
        named = {name: getattr(self, name) for name in _KEYS}
        return {**named, "files": files, "provenance": dict(self.provenance)}

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that it lists."""
        return sum(entry.size for entry in self.files.values())

    def sealed(self) -> Self:
        """Return the manifest with its digest."""
        document = self._document()
        del document["digest"]
        return dataclasses.replace(self, digest=sha256(canonical_json(document)))

    def check_sizes(self, path: Path) -> None:
        """Compare the size of every file with the manifest's."""
        name = "directory"
        try:
            # Relative to an open directory: the kernel walks half as many names.
            directory = retry(os.open, path, _DIRECTORY_FLAGS)
            try:
                for name, (size, _) in self.files.items():
                    try:
                        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    except OSError:  # so that what succeeds at once costs nothing more
                        status = retry(os.stat, name, dir_fd=directory, follow_symlinks=False)
                    if status.st_size != size or status.st_mode & _KIND != stat.S_IFREG:
                        raise corrupt(path, _describe(name, status, size))
            finally:
                os.close(directory)
        except OSError as error:
            raise read_error(path, name, error, says=" cannot be read") from error


_KEYS = frozenset(field.name for field in dataclasses.fields(Manifest))


def _describe(name: str, status: os.stat_result, size: int) -> str:
    if stat.S_ISREG(status.st_mode):
        return f"{name} has {status.st_size} bytes, expected {size}"
    what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a file"
    return f"{name} is {what}, expected a file of {size} bytes"


def corrupt(path: Path, problem: str) -> SegmentCorruptError:
    """Return the error for a segment whose bytes are not those that were published."""
    return SegmentCorruptError(
        f"segment {path.name} ({show_path(path.parent)}): {problem}; "
        "copy it again from its source, or quarantine it with avtd3 replay-inspect --quarantine"
    )


def read_error(path: Path, name: str, error: OSError, *, says: str = "") -> Avtd3Error:
    """Return the error for a file of a segment that cannot be read.

    An I/O error says nothing about the bytes. Only a file that is missing, or no file, in a
    directory that is there makes the segment a damaged one.
    """
    if not is_passing(error):
        try:
            if path.is_symlink():
                return SegmentCorruptError(
                    f"segment {path.name} ({path.parent}) is a symbolic link, expected a "
                    "directory; move the segment itself there, or make a hard-linked copy (cp -al)"
                )
            if is_directory(path):
                return corrupt(path, f"{name}{says}: {error.strerror}")
        except OSError as failure:
            error = failure
        else:
            return SegmentNotFoundError(
                f"segment {path.name} is no longer in {path.parent}: removed or quarantined; "
                "refresh the snapshot"
            )
    return SegmentUnreadableError(
        f"segment {path.name} ({path.parent}): {name} is unreadable now, which says nothing about "
        f"its data; {advice(error, reads=True)}"
    )


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of the segment in a directory."""
    file = f"{path}/{MANIFEST_FILE}"
    try:
        data = read_bytes(file, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise read_error(path, MANIFEST_FILE, error, says=" cannot be read") from error
    except ValueError as error:
        raise corrupt(path, str(error)) from error
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Check the bytes of the manifest of the segment at a path."""
    try:
        document = _parse(data, path)
    except ValueError as error:
        raise corrupt(path, str(error)) from error
    if not isinstance(document, dict):
        raise corrupt(path, f"{MANIFEST_FILE} is not a JSON object")
    version = document.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatVersionError(
            f"segment {path.name} ({path.parent}) has format {abbreviate(version)}, this avtd3 "
            f"reads up to {FORMAT_VERSION}: install a newer avtd3"
        )
    try:
        manifest = _from_json(document, path)
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(path, f"{MANIFEST_FILE} is malformed: {error}") from error
    if not _digest_holds(data, manifest.digest):
        raise corrupt(path, f"{MANIFEST_FILE} does not match its own digest")
    if manifest.segment_id != path.name:
        raise corrupt(path, f"{MANIFEST_FILE} is that of segment {abbreviate(manifest.segment_id)}")
    return manifest


def _parse(data: bytes, path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a manifest; if it begins as avtd3 writes it, the list of files is parsed later.

    That list is most of the text. Valid paths have no bracket. If a string has one, the list is cut
    too early, and one of the two parts is not JSON.
    """
    ours = _FILES.match(data)
    if ours is None:
        return parse_json(data, f"{path}/{MANIFEST_FILE}")
    begin, end = ours.span(1)
    document = _parse_rest(data[:begin] + b"[]" + data[end:], f"{path}/{MANIFEST_FILE}")
    document["files"] = FileTable(path, data[begin:end])
    return document


def _parse_rest(data: bytes, name: str) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a manifest without files; equal settings of collectors are one object in memory.

    They are most of the values, and the same in all segments of a collector. If the cut is not that
    of the settings, a part is not JSON, or the mark is elsewhere, and all is parsed together.
    """
    found = _CONFIG.search(data)
    begin, end = (0, 0) if found is None else found.span(1)
    if 0 < end - begin <= _MOST_CONFIG_BYTES:
        with contextlib.suppress(ValueError):
            document = parse_json(data[:begin] + b'"%b"' % _HERE.encode() + data[end:], name)
            provenance = document.get("provenance") if isinstance(document, dict) else None
            if isinstance(provenance, dict) and provenance.get("config") == _HERE:
                provenance["config"] = _parse_config(data[begin:end])
                return document
    return parse_json(data, name)


@functools.lru_cache(maxsize=64)
def _parse_config(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    return parse_json(text, "config")


def _from_json(document: dict[str, Any], path: Path) -> Manifest:
    if document.keys() != _KEYS:
        wrong = abbreviate(sorted(_KEYS ^ document.keys()))
        raise ValueError(f"missing or unknown keys: {wrong}")
    files = document["files"]
    if not isinstance(files, FileTable):
        files = _read_files(files)
    for name in ("episodes", "steps", "observations"):
        if type(document[name]) is not int or document[name] < 1:
            raise ValueError(f"{name} is {abbreviate(document[name])}, expected 1 or more")
    if document["observations"] != document["steps"] + document["episodes"]:
        raise ValueError("observations are not steps + episodes")
    if not isinstance(document["provenance"], dict):
        raise TypeError("provenance is not a JSON object")
    if type(version := document["format_version"]) is not int or version < 1:
        raise ValueError(f"format_version is {abbreviate(version)}, expected 1 or more")
    texts = {name: str(document[name]) for name in ("segment_id", "spec_digest", "digest")}
    return Manifest(**{**document, **texts, "files": files})


def _read_files(entries: object) -> dict[str, FileEntry]:
    if not isinstance(entries, list):
        raise TypeError("files is not a list")
    # Checking whole columns takes a third of the time of checking entry by entry.
    paths, sizes, digests = zip(*map(_entry_values, entries), strict=True) if entries else ((),) * 3
    if not set(map(type, sizes)) <= {int} or min(sizes, default=0) < 0:
        raise ValueError("the size of a file is not a whole number of bytes")
    if not (set(map(type, digests)) <= {str} and "".join(digests).isascii()):
        raise ValueError("the SHA-256 of a file is not a text")
    return dict(zip(_check_paths(paths), map(FileEntry, sizes, digests), strict=True))


@functools.lru_cache(maxsize=64)
def _check_paths(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return the paths if they are plain and distinct; one tuple for all segments with them."""
    for name in paths:
        if type(name) is not str or not is_safe_relative(name):
            raise ValueError(f"file {abbreviate(name)} is not a plain path")
    if len(set(paths)) != len(paths):
        raise ValueError("a file is listed twice")
    return paths


def _digest_holds(data: bytes, digest: str) -> bool:
    # Manifests that avtd3 wrote are canonical: cutting the digest out of the text is faster than
    # encoding the JSON again.
    own = f'"digest":"{digest}",'.encode("utf-8", "surrogatepass")
    cut = data.replace(own, b"", 1).removesuffix(b"\n")
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
    """Largest size that a segment may claim; checked before memory is allocated for it.

    Example:
        >>> Limits(max_steps=10_000).max_file_bytes == 16 * 1024**3
        True
    """

    max_steps: int = MAX_STEPS
    """Largest number of steps."""
    max_file_bytes: int = 16 * 1024**3
    """Largest size of all its files, in bytes."""
    max_raw_bytes: int = 64 * 1024**3
    """Largest size of all its arrays in memory, in bytes."""

    def check(self, path: Path, *, steps: int = 0, raw_bytes: int = 0, file_bytes: int = 0) -> None:
        """Raise `SegmentCorruptError` if the segment in a directory claims more than the limits."""
        for claim, most, unit in (
            (steps, self.max_steps, "steps"),
            (raw_bytes, self.max_raw_bytes, "bytes in memory"),
            (file_bytes, self.max_file_bytes, "bytes on disk"),
        ):
            if claim > most:
                raise corrupt(path, f"claims {claim} {unit}, expected at most {most}")


FRAMES_CHECKSUMS = "frames_checksums"
"""Key of the provenance that ties the frames to their segment."""


def frames_checksums(shard_sha256: str, checksums: bytes) -> dict[str, str]:
    """Return the value of `FRAMES_CHECKSUMS` for a shard."""
    return {"shard": shard_sha256, "checksums": sha256(checksums)}


def of_array(recorded: object, array: str) -> object:
    """Return what the provenance records of an array of frames.

    Format 1 has one such array, and records it without its name.
    """
    return recorded.get(array, recorded) if isinstance(recorded, dict) else recorded


def has_checksums(
    provenance: Mapping[str, Any], array: str, shard_sha256: str, checksums: bytes
) -> bool:
    """Return whether the checksums of an array of frames that were read match the provenance.

    Also True if the provenance has no checksums (older segments), or those of another file, which
    was replaced together with its entry in the manifest.
    """
    recorded = of_array(provenance.get(FRAMES_CHECKSUMS), array)
    if not isinstance(recorded, dict) or recorded.get("shard") != shard_sha256:
        return True
    return recorded == frames_checksums(shard_sha256, checksums)
