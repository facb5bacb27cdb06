"""What binds the frames of a segment to its manifest, where hashing the whole shard takes too long.

Each chunk's crc32c holds for whatever chunk it is, so a shard of another segment with exactly the
same size is sound in itself. All checksums together, in order, tell one shard from another, and
who decodes a whole shard has them at hand: SHA-256 of four bytes a chunk, not of all of them.
"""

from collections.abc import Mapping
from typing import Any

from avtd3.store.files import sha256

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
