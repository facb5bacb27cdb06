"""``zarr.json``: write the documents of the format, and check those of a segment."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from avtd3.store.errors import abbreviate
from avtd3.store.format.codec import MAX_CHUNK_FRAMES, ChainKind, FrameCodec, chain_kind, pack_codec
from avtd3.store.format.layout import ArrayLayout

KEY_ENCODING = {"name": "default", "configuration": {"separator": "/"}}
LITTLE_ENDIAN_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
INDEX_CODECS = [LITTLE_ENDIAN_BYTES, {"name": "crc32c"}]
_PLAIN_BYTES = {"name": "bytes"}
_SLACK_BYTES = 64 * 1024 * 1024


def array_document(
    layout: ArrayLayout, *, codec: FrameCodec | None, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array."""
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
    """Return grid, keys and codecs of an array in one chunk of bytes, packed or not, and a crc."""
    itemsize = np.dtype(layout.dtype).itemsize
    packed = [pack_codec(itemsize)] if layout.is_packed else []
    plain = _PLAIN_BYTES if itemsize == 1 else LITTLE_ENDIAN_BYTES
    return {
        "chunk_grid": _grid(layout.shape),
        "chunk_key_encoding": KEY_ENCODING,
        "codecs": [plain, *packed, {"name": "crc32c"}],
    }


def sharded_encoding(layout: ArrayLayout, codec: FrameCodec) -> dict[str, Any]:
    """Return grid, keys and codecs of the frames: one shard of compressed chunks."""
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
    """Return the ``zarr.json`` of a group with these attributes under the key ``avtd3``."""
    return {"zarr_format": 3, "node_type": "group", "attributes": {"avtd3": dict(attributes)}}


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of a ``zarr.json``, indented so that people can read it."""
    return json.dumps(document, indent=2, allow_nan=False).encode("ascii")


def check_document(document: object, layout: ArrayLayout) -> None:
    """Raise if the ``zarr.json`` of an array is not what the manifest and the format ask for."""
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - a file, not an argument
    expected: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": layout.dtype,
    }
    if layout.is_sharded:
        frame_encoding(document, layout)
    else:
        expected |= plain_encoding(layout)
    for key, value in expected.items():
        _check_value(key, document.get(key), value)


def frame_encoding(document: Mapping[str, Any], layout: ArrayLayout) -> tuple[ChainKind, int]:
    """Return the decoder of the frames' chunks, and the number of frames per chunk."""
    frame_shape = list(layout.shape[1:])
    codecs = document.get("codecs")
    codec = codecs[0] if isinstance(codecs, list) and len(codecs) == 1 else codecs
    settings = lookup(codec, "configuration")
    _check_value("codecs", lookup(codec, "name") or codec, "sharding_indexed")
    _check_value("index_codecs", lookup(settings, "index_codecs"), INDEX_CODECS)
    _check_value("index_location", lookup(settings, "index_location") or "end", "end")
    inner = lookup(settings, "chunk_shape")
    if not is_shape(inner, len(layout.shape)) or inner[1:] != frame_shape:
        raise ValueError(
            f"the chunk shape in a shard is {abbreviate(inner)}, expected [k, *{frame_shape}]"
        )
    size = math.prod(inner)
    # The last chunk is padded: a short segment may have fewer frames than a chunk.
    if inner[0] > MAX_CHUNK_FRAMES and size > 2 * layout.nbytes + _SLACK_BYTES:
        raise ValueError(f"a chunk has {size} bytes, but the array only {layout.nbytes}")
    frames = -(-layout.shape[0] // inner[0]) * inner[0]
    _check_value("chunk_grid", document.get("chunk_grid"), _grid((frames, *layout.shape[1:])))
    _check_value("chunk_key_encoding", document.get("chunk_key_encoding"), KEY_ENCODING)
    return chain_kind(lookup(settings, "codecs")), inner[0]


def _check_value(key: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(
            f"{key} is {abbreviate(found, 200)}, the format expects {abbreviate(expected)}"
        )


def lookup(document: object, *keys: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return a value from nested JSON objects, or None if an object or a key is missing."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def is_shape(value: object, axes: int) -> bool:
    """Return whether a JSON value is a list of this many whole numbers above 0."""
    return (
        isinstance(value, list)
        and len(value) == axes
        and all(type(side) is int and side > 0 for side in value)
    )
