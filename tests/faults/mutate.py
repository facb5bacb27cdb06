"""Changes documents and bytes as a stranger, a bad disk or an attacker would.

`document` changes the structure of a JSON document, `text` renders it with what JSON libraries
disagree about, and `bytes_of` changes raw bytes. All draws come from the given generator.
"""

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

RAW = "\x00raw:"
"""Start of a string that `text` writes without quotes, as JSON that Python would not write."""

NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    255,
    2**31,
    -(2**31) - 1,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**64,
    10**30,
    -0.0,
    0.5,
    1e-320,
    3e38,
    1.7e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    RAW + "1e999",
    RAW + "-1e999",
    RAW + "9" * 5000,
    RAW + "0x10",
    RAW + "1e-999999999",
)
TEXTS = (
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/dev/zero",
    "a/b",
    "NaN",
    "0",
    "0.5",
    "true",
    "null",
    "\x1b[2J\x1b[Hverdict: ok",
    "\x00",
    "line\nline\r\n",
    "\ud800",
    "\u202e\u0000\uffff",
    "é" * 300,
    "<script>alert(1)</script>",
    "{x!r} {0} %s %(name)s",
    "x" * 100_000,
    "constructor",
    "__class__",
    "2020-13-45",
)
SIMPLE: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None})


def odd_value(rng: random.Random) -> Any:
    """A value that is rarely what a reader expects."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind < 7:
        return copy.deepcopy(rng.choice(SIMPLE))
    return rng.choice(
        (
            lambda: [rng.choice(NUMBERS)] * rng.choice((1, 3, 20_000)),
            lambda: {str(n): n for n in range(rng.choice((1, 300, 20_000)))},
            lambda: RAW + "[" * 100_000 + "]" * 100_000,
            lambda: RAW + "{'a':" * 50_000 + "1" + "}" * 50_000,
            lambda: [rng.choice(TEXTS) for _ in range(5)],
        )
    )()


def _places(document: Any, limit: int = 2000) -> list[tuple[Any, Any]]:
    """Every container in a document with every key or index in it."""
    found: list[tuple[Any, Any]] = []
    todo = [document]
    while todo and len(found) < limit:
        here = todo.pop()
        if isinstance(here, dict):
            items = list(here.items())
        elif isinstance(here, list):
            items = list(enumerate(here))
        else:
            continue
        found += [(here, key) for key, _ in items]
        todo += [value for _, value in items]
    return found


def document(rng: random.Random, original: Any, changes: int | None = None) -> Any:
    """Return a changed copy of a JSON document; the places that change are drawn evenly."""
    changed = copy.deepcopy(original)
    for _ in range(changes or rng.choice((1, 1, 1, 2, 5))):
        places = _places(changed)
        if not places:
            return odd_value(rng)
        rng.choice(_CHANGES)(rng, *rng.choice(places))
    return changed


def _replace(rng: random.Random, where: Any, key: Any) -> None:
    where[key] = odd_value(rng)


def _alter(rng: random.Random, where: Any, key: Any) -> None:
    """Another value of nearly the same kind."""
    value = where[key]
    if isinstance(value, bool) or value is None:
        where[key] = int(bool(value))
    elif isinstance(value, int | float):
        where[key] = rng.choice(
            (str(value), -value, value + 1, value * 1000, value + 0.5, [value], 10**30)
        )
    elif isinstance(value, str):
        spoiled = rng.choice(TEXTS)[:400]
        where[key] = rng.choice((value + spoiled, value[:-1], value.upper(), spoiled + value))
    elif isinstance(value, list):
        where[key] = rng.choice((value * 2, value[:-1], value[::-1], tuple_of(value)))
    else:
        where[key] = rng.choice(([value], list(value), {**value, "new": 1}))


def tuple_of(value: list[Any]) -> dict[str, Any]:
    """Return a list as a mapping of its indices."""
    return {str(n): item for n, item in enumerate(value)}


def _delete(rng: random.Random, where: Any, key: Any) -> None:
    del where[key]


def _rename(rng: random.Random, where: Any, key: Any) -> None:
    if isinstance(where, dict):
        where[rng.choice(TEXTS)[:2000]] = where.pop(key)


def _swap(rng: random.Random, where: Any, key: Any) -> None:
    other = rng.choice(list(where) if isinstance(where, dict) else range(len(where)))
    where[key], where[other] = where[other], where[key]


def _repeat(rng: random.Random, where: Any, key: Any) -> None:
    if isinstance(where, list):
        where[key:key] = [copy.deepcopy(where[key])] * rng.choice((1, 2, 1000))
    else:
        where[f"{key} "] = copy.deepcopy(where[key])


def _nest(rng: random.Random, where: Any, key: Any) -> None:
    for _ in range(rng.choice((1, 5, 90))):
        where[key] = [where[key]] if rng.random() < 0.5 else {"a": where[key]}


_CHANGES: tuple[Callable[[random.Random, Any, Any], None], ...] = (
    _replace,
    _replace,
    _replace,
    _alter,
    _alter,
    _delete,
    _rename,
    _swap,
    _repeat,
    _nest,
)


_QUOTED_RAW = re.compile(r'"\\u0000raw:([^"]*)"')


def text(rng: random.Random, changed: Any) -> bytes:
    """Write a document as JSON, with NaN, keys that are there twice and huge numbers in it."""
    written = json.dumps(changed, separators=(",", ":"), ensure_ascii=rng.random() < 0.7)
    written = _QUOTED_RAW.sub(lambda found: found[1].replace("'", '"'), written)
    if isinstance(changed, dict) and changed and rng.random() < 0.1:
        again = json.dumps(rng.choice(list(changed)))
        written = f"{written[:-1]},{again}:{rng.choice(('1', 'null', '[]', chr(34) * 2))}}}"
    return written.encode("utf-8", "surrogatepass")


def bytes_of(rng: random.Random, data: bytes) -> bytes:
    """Change raw bytes: flip, cut, repeat, insert, zero, shuffle."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(7)
        if kind < 2 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 40)))
        elif kind == 4:
            changed[at:at] = changed[at : at + rng.randrange(64)] * rng.choice((1, 3, 500))
        elif kind == 5:
            changed[at : at + 16] = bytes(len(changed[at : at + 16]))
        else:
            del changed[at : at + rng.randrange(64)]
    return bytes(changed)
