"""HTML and SVG made of values: whatever is not `Markup` already is escaped.

Datasets come from strangers, so nothing that is read from one may become a tag: text is escaped at
the one place where text becomes HTML.
"""

import html
import re
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML already: only `element` and `join` make it."""

    __slots__ = ()


def element(
    name: str, /, *children: str | Iterable[Markup], **attributes: str | float | None
) -> Markup:
    """An element with its content.

    Args:
        name: The tag.
        children: Text, which is escaped, or `Markup`, or several of those.
        attributes: ``class_`` becomes ``class``, ``text_anchor`` becomes ``text-anchor``; numbers
            are rounded to 0.01; None leaves an attribute out.
    """
    written = "".join(
        f' {key.strip("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    inside = "".join(
        escape(child) if isinstance(child, str) else "".join(map(escape, child))
        for child in children
    )
    return Markup(f"<{name}{written}>{inside}</{name}>")


def breakable(text: str) -> Markup:
    """A name that may be broken after the signs that join its parts."""
    return Markup("<wbr>".join(map(escape, re.split(r"(?<=[/+_=:-])", text))))


def shorten(text: str, most: int = 120) -> str:
    """A text of at most so many characters: a stranger's name may have a million."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def join(parts: Iterable[str]) -> Markup:
    """Pieces one after the other."""
    return Markup("".join(map(escape, parts)))


def escape(text: str) -> Markup:
    """Text as HTML; control characters, which HTML forbids, become question marks."""
    if isinstance(text, Markup):
        return text
    legal = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
    return Markup(html.escape(legal))


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value)
    return f"{value:.2f}".rstrip("0").rstrip(".")


_VOID = frozenset(("meta", "img", "br", "col"))
