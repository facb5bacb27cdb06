"""Prose and names keep to the glossary of CONTRIBUTING.md.

The second column of its table ``| use | instead of |`` lists withdrawn words. They must not appear
in documentation, docstrings, comments, messages, help texts, presets or names.
"""

import ast
import dataclasses
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from avtd3.tests.project.source import ROOT

ALLOWED = {
    "arena": r"malloc|glibc|mallopt",  # glibc's term for a heap of its allocator
    "pass over": r"\b(?:a|each|one) pass over\b",  # the noun
    "road world": r"^Road World$",  # the class RoadWorld
}
"""Withdrawn words with a legitimate technical use, and a pattern of the lines that have it."""
AREAS = [
    *("store", "store/format", "store/replay", "store/audit", "store/maintenance", "store/render"),
    *("learn", "learn/guards", "learn/analysis"),
    *("collect", "collect/driving", "collect/maps", "collect/sim", "collect/carla"),
    *("configs", "cli.py", "__init__.py", "examples", "bench", "docs", "docs/decisions"),
    *("README.md", "CONTRIBUTING.md", "Makefile", ".ci", "pyproject.toml"),
    *("tests/store", "tests/learn", "tests/collect", "tests/configs", "tests/pipeline"),
    *("tests/project", "tests/golden", "tests/faults"),
]
TABLES = re.compile(r"^\| (?:use|name) \| (?:instead of|formerly) \|\n(?:\|.*\n)*", re.MULTILINE)
"""The tables of CONTRIBUTING.md that list withdrawn words and former names."""
NESTED = {area for area in AREAS if "/" in area}
PROSE = {".md", ".yaml", ".yml", ".toml", ".j2", ".css", ""}


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a file."""

    path: Path
    line: int
    text: str


@functools.cache
def glossary() -> dict[str, str]:
    """Return each withdrawn word or phrase, and what to use instead."""
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("| use | instead of |\n")[2]
    found: dict[str, str] = {}
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            break
        use, withdrawn = (cell.strip() for cell in line.strip("|").split("|"))
        found |= {word.strip(): use for word in withdrawn.split(",")}
    return found


@functools.cache
def pattern() -> re.Pattern[str]:
    """Return a pattern of every withdrawn word or phrase, with the endings of verbs and nouns."""
    forms = []
    for phrase in glossary():
        first, *rest = phrase.split()
        stem = re.escape(first.removesuffix("e"))
        ending = "(?:e|es|ed|ing)" if first.endswith("e") else "(?:s|es|ed|ing)?"
        forms.append(r"\s+".join([f"{stem}{ending}", *map(re.escape, rest)]))
    return re.compile(rf"(?<![\w-])(?:{'|'.join(forms)})(?![\w-])", re.IGNORECASE)


def withdrawn(text: str) -> Iterator[tuple[str, int]]:
    """Yield the withdrawn words in a text, and the index of the line of each."""
    lines = text.splitlines() or [""]
    for match in pattern().finditer(text):
        number = text.count("\n", 0, match.start())
        word = re.sub(r"\s+", " ", match[0]).lower()
        known = [phrase for phrase in ALLOWED if word.startswith(phrase)]
        if not any(re.search(ALLOWED[phrase], lines[number]) for phrase in known):
            yield word, number


def files_of(area: str) -> Iterator[Path]:
    """Yield the text files of an area, without those of the areas below it."""
    path = ROOT / area
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        below = file.relative_to(ROOT).as_posix()
        nested = any(below.startswith(f"{name}/") for name in NESTED - {area} if name > area)
        if file.is_file() and not nested and "__pycache__" not in below:
            yield file


def texts_of(path: Path) -> Iterator[Text]:
    """Yield the prose and the names of a file."""
    if path.suffix == ".py":
        source = path.read_text("utf-8")
        yield from prose_of(path, source)
        yield from names_of(path, source)
    elif path.suffix in PROSE and "golden" not in path.parts:
        text = TABLES.sub(blank, path.read_text("utf-8"))
        yield Text(path, 1, text)


def blank(match: re.Match[str]) -> str:
    """Replace a matched text by as many empty lines."""
    return "\n" * match[0].count("\n")


def prose_of(path: Path, source: str) -> Iterator[Text]:
    """Yield docstrings, comments and other strings; in tests, docstrings and comments only."""
    in_tests = "tests" in path.relative_to(ROOT).parts
    docstrings = {
        node.value.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_string = token.type in {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
        if is_string and in_tests and token.start[0] not in docstrings:
            continue
        if is_string or token.type == tokenize.COMMENT:
            yield Text(path, token.start[0], token.string)


def names_of(path: Path, source: str) -> Iterator[Text]:
    """Yield the names that a file defines, as words; in tests, those of functions and classes."""
    in_tests = "tests" in path.relative_to(ROOT).parts
    seen = set()
    for node in ast.walk(ast.parse(source)):
        name = ""
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif in_tests:
            continue
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
        if name and name not in seen:
            seen.add(name)
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name)
            yield Text(path, getattr(node, "lineno", 1), words)


@pytest.mark.parametrize("area", AREAS)
def test_withdrawn_words_are_not_used(area):
    found = [
        f"{text.path.relative_to(ROOT)}:{text.line + number}: {word!r}"
        for path in files_of(area)
        for text in texts_of(path)
        for word, number in withdrawn(text.text)
    ]
    assert found == [], f"{len(found)} withdrawn words; see the glossary of CONTRIBUTING.md"


def test_the_glossary_is_read():
    words = glossary()
    assert words["mend"] == "fix"
    assert words["left out"] == "exclude"
    assert len(words) > 25


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mending it", ["mending"]),
        ("it is judged, and told", ["judged", "told"]),
        ("goes\n   on, left\nout", ["goes on", "left out"]),
        ("proven, provenance, emend, foretold, replay-inspect", []),
        ("an arena of malloc, an arena", []),
        ("an arena", ["arena"]),
    ],
)
def test_words_are_found_in_all_their_forms(text, words):
    assert [word for word, _ in withdrawn(text)] == words
