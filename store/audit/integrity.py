"""Check the files of a segment, and cache which segments have verified checksums.

The dataset's `.verified.json` stores one stamp per verified segment: a digest of the manifest's
digest and of every file's size, mtime and inode. If the stamp of a segment is unchanged, an audit
does not hash its files again. If a disk alters bytes but none of these, `--full` finds it. The
checksums of the chunks find it too: every audit verifies them as it decodes the chunks.
"""

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from avtd3.store.audit.findings import Fault
from avtd3.store.errors import (
    FormatVersionError,
    SegmentCorruptError,
    SegmentNotFoundError,
    SegmentUnreadableError,
    StorageError,
)
from avtd3.store.files import (
    canonical_json,
    is_passing,
    read_json,
    retry,
    sha256_of_file,
    write_aside,
)
from avtd3.store.format.arrays import ArrayFiles
from avtd3.store.format.layout import MANIFEST_FILE, segment_arrays
from avtd3.store.format.manifest import Manifest, read_manifest
from avtd3.store.format.metadata import check_document
from avtd3.store.segment import optional_arrays
from avtd3.store.spec import EpisodeSpec

VERIFIED_FILE = ".verified.json"
"""Name of the cache file in the dataset's directory."""
FORMAT = 1
SETTLED_NS = 2_000_000_000
"""Age below which two writes may have the same mtime on some file systems."""


def stamp(path: Path, manifest_digest: str, names: Iterable[str]) -> str:
    """Return a digest of the manifest's digest and of the sizes, mtimes and inodes of files.

    It is empty if a file is so new that a later write may go unnoticed.
    """
    digest, newest = hashlib.sha256(manifest_digest.encode()), 0
    for name in sorted(names):
        status = retry(os.lstat, path / name)
        line = f"\n{name} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        digest.update(line.encode("utf-8", "surrogateescape"))
        newest = max(newest, status.st_mtime_ns)
    return digest.hexdigest() if newest < time.time_ns() - SETTLED_NS else ""


class VerifiedSegments:
    """The checksum cache of one dataset: the stamps of its verified segments."""

    def __init__(self, dataset: Path) -> None:
        """Read the cache of a dataset; ignore a truncated or invalid cache file."""
        self._path = dataset / VERIFIED_FILE
        self._stamps: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            document = read_json(self._path)
            if document["format"] == FORMAT:
                stamps = document["segments"].items()
                self._stamps = {name: value for name, value in stamps if isinstance(value, str)}

    def stamp_of(self, segment_id: str) -> str:
        """Return the stamp with which a segment was verified, or an empty string."""
        return self._stamps.get(segment_id, "")

    def save(self, fresh: dict[str, str], present: Iterable[str]) -> None:
        """Add stamps by segment id, drop those of segments that are gone, and replace the file.

        An empty stamp removes the old one. If the dataset cannot be written, nothing is cached.
        """
        kept = {**self._stamps, **fresh}
        names = set(present)
        stamps = {name: value for name, value in kept.items() if name in names and value}
        if stamps == self._stamps:
            return
        with contextlib.suppress(StorageError):
            write_aside(self._path, canonical_json({"format": FORMAT, "segments": stamps}))
            self._stamps = stamps


def open_manifest(path: Path) -> tuple[Manifest | None, list[Fault]]:
    """Read a segment's manifest; return it and no fault, or None and one fault."""
    try:
        return read_manifest(path), []
    except SegmentNotFoundError:
        return None, [Fault(check="segment-gone", message="it was removed after the audit began")]
    except SegmentUnreadableError as error:
        return None, [Fault(check="unreadable", message=str(error))]
    except FormatVersionError as error:
        return None, [Fault(check="format-version", message=str(error))]
    except SegmentCorruptError as error:
        if not os.path.lexists(path / MANIFEST_FILE):
            message = f"no {MANIFEST_FILE}, expected one in every segment"
            return None, [Fault(check="manifest-missing", message=message)]
        return None, [Fault(check="manifest", message=str(error))]


def file_faults(
    path: Path, manifest: Manifest, found: Mapping[str, int], *, hashes: bool
) -> Iterator[Fault]:
    """Compare the files that `list_files` found with the manifest; raise OSError if unreadable.

    Names and sizes are always checked, checksums only with `hashes`.
    """
    for name, entry in manifest.files.items():
        if name not in found:
            message = f"{name} is missing, expected {entry.size} bytes"
            yield Fault(check="file-missing", message=message)
        elif found[name] != entry.size:
            link = ", is a symbolic link" if (path / name).is_symlink() else ""
            message = f"{name} has {found[name]} bytes{link}, expected {entry.size}"
            yield Fault(check="file-size", message=message)
        elif hashes and (digest := sha256_of_file(path / name)) != entry.sha256:
            message = f"{name} has SHA-256 {digest[:16]}, expected {entry.sha256[:16]}"
            yield Fault(check="file-digest", message=message)
    for name in sorted(found.keys() - manifest.files.keys() - {MANIFEST_FILE}):
        message = f"{name}, expected only the files that {MANIFEST_FILE} lists"
        yield Fault(check="file-unexpected", message=message)


def list_files(path: Path) -> dict[str, int]:
    """Return the size in bytes of every file below ``path``, by name; links are not followed."""
    found: dict[str, int] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        for name in retry(os.listdir, path / folder):
            status = retry(os.lstat, path / folder / name)
            if stat.S_ISDIR(status.st_mode):
                folders.append(f"{folder}{name}/")
            else:
                found[f"{folder}{name}"] = status.st_size
    return found


def array_faults(path: Path, manifest: Manifest, spec: EpisodeSpec) -> Iterator[Fault]:
    """Compare each array's ``zarr.json`` with the spec and the counts of the manifest."""
    expected = segment_arrays(
        spec,
        episodes=manifest.episodes,
        steps=manifest.steps,
        observations=manifest.observations,
    )
    try:
        files = ArrayFiles(path, manifest)
        expected |= optional_arrays(files, spec, steps=manifest.steps, episodes=manifest.episodes)
    except (OSError, ValueError) as error:
        yield _metadata(error)
    for layout in expected.values():
        # zarr-python would read a missing chunk as zeros.
        missing = sorted({layout.metadata_path, layout.chunk_path} - manifest.files.keys())
        yield from (_metadata(f"{name} is not in the manifest, expected it") for name in missing)
        if missing:
            continue
        try:
            document = read_json(path / layout.metadata_path)
            check_document(document, layout)
        except (OSError, ValueError) as error:
            yield _metadata(error, f"{layout.name}: ")
            continue
        if document.get("dimension_names") != list(layout.dimensions):
            found = document.get("dimension_names")
            yield _metadata(f"{layout.name}: dimensions {found}, expected {layout.dimensions}")
    for name in sorted(manifest.files):
        folder, _, rest = name.partition("/")
        if rest and folder not in expected:
            yield _metadata(f"{name} belongs to no array of this spec")


def _metadata(problem: str | Exception, about: str = "") -> Fault:
    """Return a fault; an I/O error is raised again, because it is none of the array."""
    if isinstance(problem, OSError) and is_passing(problem):
        raise problem
    return Fault(check="array-metadata", message=f"{about}{problem}")
