"""``zarr.json``: the documents that format 1 writes, and the check of those that it finds."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from avtd3.store.format.codec import ChainKind, FrameCodec, known_chain
from avtd3.store.format.layout import ArrayLayout

KEY_ENCODING = {"name": "default", "configuration": {"separator": "/"}}
LITTLE_ENDIAN_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
INDEX_CODECS = [LITTLE_ENDIAN_BYTES, {"name": "crc32c"}]
_PLAIN_BYTES = {"name": "bytes"}
_SLACK_BYTES = 64 * 1024 * 1024


def array_document(
    layout: ArrayLayout, *, codec: FrameCodec | None, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``zarr.json`` of an array.

    Args:
        layout: The array.
        codec: For frames, how chunks inside the shard are encoded; None for the plain arrays.
        attributes: The array's user attributes.
    """
    encoding = plain_encoding(layout) if codec is None else sharded_encoding(layout, codec)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": layout.dtype,
        **encoding,
        "fill_value": False if layout.dtype == "bool" else 0,
        "attributes": dict(attributes),
        "dimension_names": list(layout.dimensions),
        "storage_transformers": [],
    }


def plain_encoding(layout: ArrayLayout) -> dict[str, Any]:
    """Grid, keys and codecs of an array in one chunk of plain bytes and a crc32c."""
    one_byte = np.dtype(layout.dtype).itemsize == 1
    return {
        "chunk_grid": _grid(layout.shape),
        "chunk_key_encoding": KEY_ENCODING,
        "codecs": [_PLAIN_BYTES if one_byte else LITTLE_ENDIAN_BYTES, {"name": "crc32c"}],
    }


def sharded_encoding(layout: ArrayLayout, codec: FrameCodec) -> dict[str, Any]:
    """Grid, keys and codecs of the frames: one shard of chunks of ``codec.chunk_frames``."""
    frame_shape = layout.shape[1:]
    settings = {
        "chunk_shape": [codec.chunk_frames, *frame_shape],
        "codecs": codec.chain(),
        "index_codecs": INDEX_CODECS,
        "index_location": "end",
    }
    frames = -(-layout.shape[0] // codec.chunk_frames) * codec.chunk_frames
    return {
        "chunk_grid": _grid((frames, *frame_shape)),
        "chunk_key_encoding": KEY_ENCODING,
        "codecs": [{"name": "sharding_indexed", "configuration": settings}],
    }


def _grid(chunk_shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}}


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The ``zarr.json`` of a group with these attributes under the key ``avtd3``."""
    return {"zarr_format": 3, "node_type": "group", "attributes": {"avtd3": dict(attributes)}}


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """A ``zarr.json`` as it is written: indented, for people who open it."""
    return json.dumps(document, indent=2, allow_nan=False).encode("ascii")


def check_document(document: object, layout: ArrayLayout) -> None:
    """Hold the ``zarr.json`` of an array against what the manifest says it must be.

    Raises:
        ValueError: Another shape or dtype, or chunks far larger than the array.
    """
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - a file, not an argument
    for key, value in (
        ("zarr_format", 3),
        ("node_type", "array"),
        ("shape", list(layout.shape)),
        ("data_type", layout.dtype),
    ):
        if document.get(key) != value:
            raise ValueError(f"{key} is {document.get(key)!r}, expected {value!r}")
    chunk_shape = lookup(document, "chunk_grid", "configuration", "chunk_shape")
    if not is_shape(chunk_shape, len(layout.shape)):
        raise ValueError(f"chunk shape {chunk_shape!r} is none for {layout.shape}")
    chunk_bytes = math.prod(chunk_shape) * np.dtype(layout.dtype).itemsize
    if chunk_bytes > 2 * layout.nbytes + _SLACK_BYTES:
        raise ValueError(f"a chunk claims {chunk_bytes} bytes of an array of {layout.nbytes}")


def frame_chunks(document: dict[str, Any], layout: ArrayLayout) -> tuple[ChainKind, int] | None:
    """Decoder and frames per chunk, or None if the frames are not encoded as format 1 does."""
    if document.get("chunk_key_encoding") != KEY_ENCODING:
        return None
    codecs = document.get("codecs")
    if not isinstance(codecs, list) or len(codecs) != 1:
        return None
    settings = lookup(codecs[0], "configuration")
    inner = lookup(settings, "chunk_shape")
    if not is_shape(inner, len(layout.shape)) or tuple(inner[1:]) != layout.shape[1:]:
        return None
    frames = -(-layout.shape[0] // inner[0]) * inner[0]
    if document["chunk_grid"] != _grid((frames, *layout.shape[1:])):
        return None
    kind = known_chain(lookup(settings, "codecs"))
    if kind is None or not has_known_index(codecs[0]):
        return None
    return kind, inner[0]


def has_known_index(codec: object) -> bool:
    """Whether a codec is ``sharding_indexed`` with its index written as format 1 does."""
    settings = lookup(codec, "configuration")
    return (
        lookup(codec, "name") == "sharding_indexed"
        and lookup(settings, "index_codecs") == INDEX_CODECS
        and lookup(settings, "index_location") in ("end", None)
    )


def lookup(document: object, *keys: str) -> Any:  # noqa: ANN401 - any JSON value
    """Walk into nested JSON objects; None where one of them is no object or lacks the key."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def is_shape(value: object, axes: int) -> bool:
    """Whether a JSON value is a list of so many whole numbers above 0."""
    return (
        isinstance(value, list)
        and len(value) == axes
        and all(type(side) is int and side > 0 for side in value)
    )
