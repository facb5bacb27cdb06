"""How the audit words amounts and long lines, for a terminal."""

import textwrap

WIDTH = 80
"""Columns of a terminal."""


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60.0:
        return f"{seconds:.3g} s"
    return f"{seconds / 60.0:.1f} min" if seconds < 3600.0 else f"{seconds / 3600.0:,.1f} h"


def size(size_bytes: float) -> str:
    """Bytes in the largest unit that leaves a whole part."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000.0:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000.0
    return f"{size_bytes:,.2f} TB"


def wrapped(text: str, indent: str) -> list[str]:
    """The text in lines of 80 columns; paths and names are never broken."""
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def plural(count: int, noun: str) -> str:
    """A number and its noun, which takes an s for more than one."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
