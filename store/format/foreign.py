"""Arrays in an encoding that is not format 1's own: complete, and no bomb? then ask zarr-python.

A segment may be compressed again with other codecs and its manifest rebuilt; it stays readable,
only slower. zarr-python answers a missing chunk, shard or chunk of a shard with zeros, and
allocates whatever a chunk decodes to; so here each must exist and decode to its size before it is
asked.
"""

import contextlib
import itertools
import math
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.files import open_regular, read_bytes
from avtd3.store.format.decoded_size import ChunkSizes, chunk_sizes
from avtd3.store.format.layout import ArrayLayout
from avtd3.store.format.metadata import has_known_index, is_shape, lookup
from avtd3.store.format.shard import read_index

_MAX_CHUNKS = 100_000


def chunk_files(
    layout: ArrayLayout, document: dict[str, Any], files: Container[str]
) -> tuple[str, ...]:
    """Paths of all chunks (or shards) that an array must have, below the segment's directory.

    Args:
        layout: The array.
        document: Its ``zarr.json``, checked by `check_document`.
        files: The paths that the manifest lists.

    Raises:
        ValueError: A chunk is not in the manifest, or the grid is not a regular one.
    """
    chunk_shape = document["chunk_grid"]["configuration"]["chunk_shape"]
    counts = _count(layout.shape, chunk_shape)
    if math.prod(counts) > _MAX_CHUNKS:
        raise ValueError(f"{math.prod(counts)} chunks, allowed are {_MAX_CHUNKS}")
    encoding = document.get("chunk_key_encoding")
    kind, separator = lookup(encoding, "name"), lookup(encoding, "configuration", "separator")
    if kind not in ("default", "v2") or separator not in ("/", ".", None):
        raise ValueError(f"chunk keys of an unknown kind: {encoding!r}")
    prefix = ["c"] if kind == "default" else []
    separator = separator or ("/" if kind == "default" else ".")
    names = tuple(
        f"{layout.name}/{separator.join((*prefix, *map(str, place)))}"
        for place in itertools.product(*map(range, counts))
    )
    for name in names:
        if name not in files:
            raise ValueError(f"chunk {name} is not in the manifest")
    return names


def read_through_zarr(
    path: Path, layout: ArrayLayout, document: dict[str, Any], names: tuple[str, ...]
) -> NDArray[Any]:
    """Read a whole array with zarr-python.

    Args:
        path: The segment's directory.
        layout: The array.
        document: Its ``zarr.json``.
        names: From `chunk_files`, each of them verified.

    Raises:
        OSError: A file is gone.
        ValueError: A chunk of a shard is missing, a chunk decodes to another size than the grid's,
            or zarr-python cannot decode the array.
    """
    _check_chunks(path, layout, document, names)
    # Half a second, paid only for segments that are not as we write them.
    import zarr
    from zarr.errors import BaseZarrError

    try:
        array = zarr.open_array(path / layout.name, mode="r", zarr_format=3)
        values = np.asarray(array[...])
    except (BaseZarrError, KeyError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"zarr-python cannot read it: {error}") from error
    if values.shape != layout.shape or values.dtype != np.dtype(layout.dtype):
        raise ValueError(f"decodes to {values.dtype} {values.shape}, expected {layout.shape}")
    return values


def _count(shape: Sequence[int], chunk_shape: Sequence[int]) -> list[int]:
    return [-(-n // side) for n, side in zip(shape, chunk_shape, strict=True)]


def _check_chunks(
    path: Path, layout: ArrayLayout, document: dict[str, Any], names: tuple[str, ...]
) -> None:
    """Every chunk must be there and decode to the size that the grid gives it."""
    codecs: Any = document.get("codecs")
    outer = document["chunk_grid"]["configuration"]["chunk_shape"]
    item_bytes = np.dtype(layout.dtype).itemsize
    if not _is_sharded(codecs):
        sizes = chunk_sizes(codecs, math.prod(outer) * item_bytes)
        for name in names:
            with _named(name):
                sizes.check(read_bytes(path / name, sizes.max_bytes))
        return
    inner = lookup(codecs[0], "configuration", "chunk_shape")
    if len(codecs) != 1 or not has_known_index(codecs[0]) or not is_shape(inner, len(outer)):
        raise ValueError("shards whose index cannot be checked for missing chunks")
    sizes = chunk_sizes(lookup(codecs[0], "configuration", "codecs"), math.prod(inner) * item_bytes)
    counts = _count(outer, inner)
    if math.prod(counts) > _MAX_CHUNKS:
        raise ValueError(f"{math.prod(counts)} chunks in a shard, allowed are {_MAX_CHUNKS}")
    begins = np.stack([axis.ravel() for axis in np.indices(counts)], axis=1) * inner
    places = itertools.product(*map(range, _count(layout.shape, outer)))
    for name, place in zip(names, places, strict=True):
        # Chunks that begin behind the array's end hold nothing and need not be there.
        required = (begins + np.multiply(place, outer) < layout.shape).all(axis=1)
        _check_shard(path, name, required, sizes)


def _is_sharded(codecs: Any) -> bool:  # noqa: ANN401 - any JSON value
    if not isinstance(codecs, list):
        raise ValueError("codecs is no list")  # noqa: TRY004 - a file, not an argument
    return any(lookup(codec, "name") == "sharding_indexed" for codec in codecs)


def _check_shard(path: Path, name: str, required: NDArray[np.bool_], sizes: ChunkSizes) -> None:
    with _named(name):
        spans = read_index(path / name, len(required), required)
        with open_regular(path / name) as file:
            for low, high in spans[required | (spans[:, 1] > 0)].tolist():
                if high - low > sizes.max_bytes:
                    raise ValueError(
                        f"a chunk has {high - low} bytes, expected at most {sizes.max_bytes}"
                    )
                file.seek(low)
                sizes.check(file.read(high - low))


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the file in what goes wrong inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
