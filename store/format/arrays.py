"""`ArrayFiles`: read the arrays of one segment; check their metadata and decode their bytes.

The format names the encodings that it allows. An array in any other is refused.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import abbreviate
from avtd3.store.files import parse_json, read_bytes, retry, safe_join, sha256, sha256_of_file
from avtd3.store.format.codec import BLOSC_HEADER_BYTES, CRC_BYTES, ChainKind, decode
from avtd3.store.format.layout import GROUP_FILE, ArrayLayout
from avtd3.store.format.manifest import Manifest, corrupt, has_checksums, read_error
from avtd3.store.format.metadata import (
    check_document,
    frame_encoding,
    is_shape,
    lookup,
)
from avtd3.store.format.shard import read_chunks, read_index

_MAX_METADATA_BYTES = 64 * 1024 * 1024
"""Largest ``zarr.json``; that of a column of texts lists every different text."""
_MOST_OVERHEAD = BLOSC_HEADER_BYTES + CRC_BYTES
_PART_BYTES = 2**20
"""Decoded bytes per part of `ArrayFiles.frame_parts`: a part stays in a core's cache."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameShard:
    """A shard of the frames of a stream whose index has been verified."""

    path: Path
    """The file."""
    name: str
    """Its path below the segment's directory, for messages."""
    kind: ChainKind
    """How its chunks are encoded."""
    chunk_frames: int
    """Frames per chunk."""
    spans: NDArray[np.int64]
    """int64 (chunks, 2), see `avtd3.store.format.shard.read_index`."""


class ArrayFiles:
    """Reads the arrays of a segment; keeps what it has verified, and the indices of shards."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._manifest = manifest
        self._verified: set[str] = set()
        self._shards: dict[str, FrameShard] = {}

    def document(self, layout: ArrayLayout) -> dict[str, Any]:
        """Return the array's ``zarr.json``, compared with the manifest and the layout."""
        document: dict[str, Any] = self._metadata(layout.metadata_path)
        with self._faults(layout.metadata_path):
            check_document(document, layout)
        self._verified.add(layout.name)
        return document

    def names(self) -> list[str]:
        """Return the names of the arrays that the manifest lists."""
        end = f"/{GROUP_FILE}"
        return [name.removesuffix(end) for name in self._manifest.files if name.endswith(end)]

    def rows(self, name: str, most: int) -> int:
        """Return the number of rows of an optional array; 0 if the segment does not have it."""
        path = f"{name}/{GROUP_FILE}"
        if path not in self._manifest.files:
            return 0
        shape = lookup(self._metadata(path), "shape")
        with self._faults(path):
            if not is_shape(shape, 1) or shape[0] > most:
                raise ValueError(f"shape is {abbreviate(shape)}, expected 1 to {most} rows")
        return int(shape[0])

    def dtype(self, name: str, allowed: Sequence[str]) -> str:
        """Return the dtype of an optional array that the segment has."""
        path = f"{name}/{GROUP_FILE}"
        dtype = lookup(self._metadata(path), "data_type")
        with self._faults(path):
            if dtype not in allowed:
                raise ValueError(
                    f"data_type is {abbreviate(dtype)}, expected one of {', '.join(allowed)}"
                )
        return str(dtype)

    def read(self, layout: ArrayLayout) -> NDArray[Any]:
        """Read a whole array other than the frames."""
        if layout.name not in self._verified:
            self.document(layout)
        name = layout.chunk_path
        # The chunk's own checksum does not detect another array's file in its place.
        data = self._read_file(name, layout.nbytes + _MOST_OVERHEAD)
        with self._faults(name):
            kind: ChainKind = "blosc" if layout.is_packed else "raw"
            plain = decode(kind, data, layout.nbytes)
            values = np.frombuffer(plain, np.dtype(layout.dtype).newbyteorder("<"))
            return values.reshape(layout.shape).astype(layout.dtype)

    def texts(self, layout: ArrayLayout) -> list[str]:
        """Read a whole column of codes and return the text of each code."""
        attributes = self.document(layout).get("attributes")
        values = self.read(layout)
        categories = attributes.get("categories") if isinstance(attributes, dict) else None
        if not isinstance(categories, list) or not all(isinstance(c, str) for c in categories):
            raise corrupt(self._path, f"{layout.name} has no list of strings as its categories")
        if not ((values >= 0) & (values < len(categories))).all():
            raise corrupt(
                self._path, f"{layout.name} has codes beyond {len(categories)} categories"
            )
        return [categories[code] for code in values.tolist()]

    def read_frames(self, layout: ArrayLayout, start: int, out: NDArray[np.uint8]) -> None:
        """Decode ``len(out)`` frames from row ``start``, at least one, into ``out``."""
        shard = self.frame_shard(layout)
        checksums = self._decode(layout, shard, start, out)
        if len(out) == layout.shape[0]:
            self._check_checksums(layout, checksums)

    def frame_parts(self, layout: ArrayLayout) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode all frames part by part; see `Segment.frame_parts`."""
        shard, count = self.frame_shard(layout), layout.shape[0]
        most = max(1, _PART_BYTES * count // layout.nbytes // shard.chunk_frames)
        most *= shard.chunk_frames
        memory = np.empty((min(most, count), *layout.shape[1:]), np.uint8)
        checksums = []
        for start in range(0, count, most):
            part = memory[: count - start]
            checksums.append(self._decode(layout, shard, start, part))
            yield start, part
        self._check_checksums(layout, b"".join(checksums))

    def _decode(
        self, layout: ArrayLayout, shard: FrameShard, start: int, out: NDArray[np.uint8]
    ) -> bytes:
        """Decode frames of a shard; return the checksums of their chunks."""
        with self._faults(layout.chunk_path):
            return retry(
                read_chunks,
                shard.path,
                shard.spans,
                shard.kind,
                out,
                chunk_frames=shard.chunk_frames,
                start=start,
            )

    def _check_checksums(self, layout: ArrayLayout, checksums: bytes) -> None:
        """Raise if these checksums of all chunks are those of another segment."""
        shard_sha256 = self._manifest.files[layout.chunk_path].sha256
        provenance = self._manifest.provenance
        if not has_checksums(provenance, layout.name, shard_sha256, checksums):
            raise corrupt(self._path, f"{layout.chunk_path} is another segment's")

    def frame_shard(self, layout: ArrayLayout) -> FrameShard:
        """Return the shard that contains the frames; its index has been checked."""
        if layout.name not in self._shards:
            self._shards[layout.name] = self._open_shard(layout)
        return self._shards[layout.name]

    def verify_file(self, name: str) -> None:
        """Hash one file and compare it with the manifest."""
        with self._faults(name):
            digest = sha256_of_file(safe_join(self._path, name))
        self._compare(name, digest)

    def _metadata(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        data = self._read_file(name, _MAX_METADATA_BYTES)
        with self._faults(name):
            return parse_json(data, name)

    def _read_file(self, name: str, max_bytes: int) -> bytes:
        if name not in self._manifest.files:
            raise corrupt(self._path, f"{name} is not in the manifest")
        with self._faults(name):
            data = read_bytes(safe_join(self._path, name), max_bytes)
        self._compare(name, sha256(data))
        return data

    def _compare(self, name: str, digest: str) -> None:
        if digest != self._manifest.files[name].sha256:
            raise corrupt(self._path, f"SHA-256 of {name} differs from the manifest")

    def _open_shard(self, layout: ArrayLayout) -> FrameShard:
        kind, chunk_frames = frame_encoding(self.document(layout), layout)
        name = layout.chunk_path
        if name not in self._manifest.files:
            raise corrupt(self._path, f"{name} is not in the manifest")
        with self._faults(name):
            path = safe_join(self._path, name)
            spans = retry(read_index, path, -(-layout.shape[0] // chunk_frames))
        return FrameShard(path=path, name=name, kind=kind, chunk_frames=chunk_frames, spans=spans)

    @contextlib.contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        """Name the segment and the file in errors raised inside."""
        try:
            yield
        except OSError as error:
            raise read_error(self._path, name, error) from error
        except ValueError as error:
            raise corrupt(self._path, f"{name}: {error}") from error
