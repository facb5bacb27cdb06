"""The texts of the road networks of a dataset, each stored once under its digest.

`DATASET/maps/<SHA-256 of the text>.xodr.gz` holds a text of which episodes know the digest, see
`avtd3.store.world_record`.
"""

import gzip
import os
import re
from pathlib import Path

from avtd3.store.errors import DatasetError, DatasetUnreadableError, SpecError, abbreviate, advice
from avtd3.store.files import (
    exists,
    is_passing,
    list_directory,
    read_bytes,
    sha256,
    storage_errors,
    unzip,
    write_aside,
)
from avtd3.store.format.layout import MAPS

_SUFFIX = ".xodr.gz"
_MAX_BYTES = 64 * 1024 * 1024
"""Largest size of a text, that of the .xodr files that the built-in simulator reads."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def map_path(dataset: Path, digest: str) -> Path:
    """Return the path of the text of a road network."""
    return dataset / MAPS / f"{digest}{_SUFFIX}"


def publish_map(dataset: Path, text: str) -> str:
    """Store the text of a road network unless it is there; return its digest.

    One that is there becomes as young as a new one, so that a pruning at the same time keeps it.
    """
    data = text.encode()
    digest = sha256(data)
    path = map_path(dataset, digest)
    try:
        os.utime(path)
        if read_map(dataset, digest) == text:
            return digest
    except (OSError, DatasetError):
        pass  # missing or damaged: write it
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
    write_aside(path, gzip.compress(data, 9, mtime=0))
    return digest


def read_map(dataset: Path, digest: str) -> str:
    """Read the text of a road network, and verify its digest.

    Raises:
        DatasetError: The dataset does not have it, or its bytes are damaged.
        DatasetUnreadableError: It cannot be read now.
    """
    if not _DIGEST.fullmatch(digest):
        raise SpecError(f"{abbreviate(digest)} is not the digest of a map")
    path = map_path(dataset, digest)
    source = "copy it from the dataset that these segments were copied from"
    try:
        data = unzip(read_bytes(path, _MAX_BYTES), _MAX_BYTES)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; {source}") from error
    except OSError as error:
        kind = DatasetUnreadableError if is_passing(error) else DatasetError
        raise kind(f"{path} cannot be read: {advice(error, reads=True)}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}); {source}") from error
    if sha256(data) != digest:
        raise DatasetError(f"{path} is damaged: its SHA-256 is not that of its name; {source}")
    return data.decode("utf-8", "replace")


def stored_maps(dataset: Path) -> dict[str, Path]:
    """Return the files of a dataset's maps by digest."""
    folder = dataset / MAPS
    with storage_errors(folder):
        names = list_directory(folder)[1] if exists(folder) else []
    digests = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return {digest: map_path(dataset, digest) for digest in digests if _DIGEST.fullmatch(digest)}
