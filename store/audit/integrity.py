"""Whether a segment's files are those that were published, and are the arrays the spec asks for.

Sizes and names cost a `stat` per file, hashes a read of every byte. Whether the bytes also decode
is left to the reader: it checks every chunk's own checksum.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from avtd3.store.audit.findings import Fault
from avtd3.store.errors import FormatVersionError, SegmentCorruptError, SegmentNotFoundError
from avtd3.store.events import stored_arrays
from avtd3.store.files import read_json, sha256_of_file
from avtd3.store.format.arrays import ArrayFiles
from avtd3.store.format.foreign import chunk_files
from avtd3.store.format.layout import MANIFEST_FILE, segment_arrays
from avtd3.store.format.manifest import Manifest, read_manifest
from avtd3.store.format.metadata import check_document
from avtd3.store.spec import EpisodeSpec


def open_manifest(path: Path) -> tuple[Manifest | None, list[Fault]]:
    """Read a segment's manifest, or say why that cannot be.

    Args:
        path: The segment's directory.

    Returns:
        The manifest and no fault, or None and one.
    """
    try:
        return read_manifest(path), []
    except SegmentNotFoundError:
        return None, [Fault(check="segment-gone", message="it was there when the audit began")]
    except FormatVersionError as error:
        return None, [Fault(check="format-version", message=str(error))]
    except SegmentCorruptError as error:
        if not (path / MANIFEST_FILE).exists():
            message = f"no {MANIFEST_FILE}, expected one in every segment"
            return None, [Fault(check="manifest-missing", message=message)]
        return None, [Fault(check="manifest", message=str(error))]


def spec_faults(manifest: Manifest, spec: EpisodeSpec) -> Iterator[Fault]:
    """Hold the segment's spec digest against its dataset's."""
    if manifest.spec_digest != spec.digest:
        message = f"spec digest {manifest.spec_digest[:16]}, expected {spec.digest[:16]}"
        yield Fault(check="spec-digest", message=message)


def file_faults(
    path: Path, manifest: Manifest, found: Mapping[str, int], *, hashes: bool
) -> Iterator[Fault]:
    """Hold the segment's files against its manifest.

    Args:
        path: The segment's directory.
        manifest: Its manifest.
        found: Its files and their sizes, from `list_files`.
        hashes: Whether to read every byte; sizes and names are checked in any case.

    Raises:
        OSError: A file cannot be read.
    """
    for name, entry in manifest.files.items():
        if name not in found:
            message = f"{name} is missing, expected {entry.size} bytes"
            yield Fault(check="file-missing", message=message)
        elif found[name] != entry.size:
            message = f"{name} has {found[name]} bytes, expected {entry.size}"
            yield Fault(check="file-size", message=message)
        elif hashes and (digest := sha256_of_file(path / name)) != entry.sha256:
            message = f"{name} has SHA-256 {digest[:16]}, expected {entry.sha256[:16]}"
            yield Fault(check="file-digest", message=message)
    for name in sorted(found.keys() - manifest.files.keys() - {MANIFEST_FILE}):
        message = f"{name}, expected only what {MANIFEST_FILE} names"
        yield Fault(check="file-unexpected", message=message)


def list_files(path: Path) -> dict[str, int]:
    """Size in bytes of every file by its name below ``path``; links are files, unfollowed.

    Raises:
        OSError: A file vanished meanwhile.
    """
    found: dict[str, int] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(path / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                else:
                    found[name] = entry.stat(follow_symlinks=False).st_size
    return found


def array_faults(path: Path, manifest: Manifest, spec: EpisodeSpec) -> Iterator[Fault]:
    """Hold each array's ``zarr.json`` against the spec and the manifest's counts."""
    expected = segment_arrays(
        spec,
        episodes=manifest.episodes,
        steps=manifest.steps,
        observations=manifest.observations,
    )
    try:
        files = ArrayFiles(path, manifest)
        expected |= stored_arrays(files, steps=manifest.steps, episodes=manifest.episodes)
    except (OSError, ValueError) as error:
        yield _metadata(str(error))
    for layout in expected.values():
        if layout.metadata_path not in manifest.files:
            yield _metadata(f"{layout.metadata_path} is not in the manifest, expected it there")
            continue
        try:
            document = read_json(path / layout.metadata_path)
            check_document(document, layout)
            # A chunk that the manifest does not name would be read as zeros, silently, by zarr.
            chunk_files(layout, document, manifest.files)
        except (OSError, ValueError) as error:
            yield _metadata(f"{layout.name}: {error}")
            continue
        if document.get("dimension_names") != list(layout.dimensions):
            found = document.get("dimension_names")
            yield _metadata(f"{layout.name}: dimensions {found}, expected {layout.dimensions}")
    for name in sorted(manifest.files):
        folder, _, rest = name.partition("/")
        if rest and folder not in expected:
            yield _metadata(f"{name} belongs to no array of this spec")


def _metadata(message: str) -> Fault:
    return Fault(check="array-metadata", message=message)
