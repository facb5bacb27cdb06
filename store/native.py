"""Optional machine code for direct replay, from the wheels of the extra ``native``."""

from avtd3.store.direct import ChunkDecoder


def open_decoder() -> ChunkDecoder | None:
    """The native decoder, or None where its packages are not installed."""
    return None
