"""CONTRIBUTING.md agrees with the tree: its map, its paths, its commands."""

import re

import pytest

from avtd3.tests.project.source import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def section(title):
    """Return the text below a heading, up to the next heading."""
    return re.split(r"\n#+ ", TEXT.partition(f"# {title}\n")[2])[0]


def test_the_seven_paths_exist():
    rows = [line for line in section("Find your way").splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 7
    for row in rows:
        paths = re.findall(r"`([\w./]+\.py)`", row)
        assert paths or "config dataclass" in row, row
        for path in paths:
            assert (ROOT / path).is_file(), path


def test_the_map_names_what_exists():
    """Directories at their place, and every module name below one of them."""
    text = section("Map of the code").partition("```text\n")[2].partition("```")[0]
    parent = ""
    for line in text.splitlines():
        match = re.match(r"(  )?([a-z]+)/ ", line)
        if match:
            parent = match[2] if not match[1] else parent
            folder = match[2] if not match[1] else f"{parent}/{match[2]}"
            assert (ROOT / folder).is_dir(), folder
        elif parent in {"store", "learn", "collect"}:
            for name in re.split(r"\s{4,}", line.strip())[0].split():
                assert (ROOT / parent / f"{name}.py").is_file(), f"{parent}/{name}.py"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make (\w+)`", TEXT))))
def test_the_targets_of_make_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
