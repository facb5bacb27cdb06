"""The documentation site: it builds without a warning, and its pages and links are complete."""

import ast
import functools
import html.parser
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import pytest

from avtd3 import cli
from avtd3.tests.project.source import ROOT, modules
from avtd3.tests.project.test_public_api import exported

MESSAGE = re.compile(r"^### `(.*)`$", re.MULTILINE)
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
)
VALUE = "\0"
"""Stands for a value in the template of a message; no message contains it."""


def template_of(node):
    """Return the text of a string or f-string, or None for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template_of(part) or VALUE for part in node.values)
    return None


@functools.cache
def templates():
    """Return all texts in the source, and the lines of the Makefile."""
    found = [
        text
        for module in modules().values()
        for node in ast.walk(module.tree)
        if (text := template_of(node))
    ]
    return [*found, *(ROOT / "Makefile").read_text("utf-8").splitlines()]


def is_in_source(message):
    """Return whether the fixed parts of a message follow each other in one text of the source."""
    parts = [part.strip(" ") for part in message.split("...")]
    pattern = re.compile(".*".join(re.escape(part) for part in parts if part), re.DOTALL)
    return any(pattern.search(text) for text in templates())


class Links(html.parser.HTMLParser):
    """What a page leads to, what it loads, and the anchors that it has."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag in {"script", "img", "link", "iframe"}:
            self.loaded += filter(None, (found.get("src"), found.get("href")))
        elif tag == "a" and found.get("href"):
            self.targets.append(found["href"])


def build(folder):
    """Build the site as `make docs` does."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    warnings = re.findall(r"WARNING.*", done.stderr)
    assert (done.returncode, warnings) == (0, []), done.stderr
    return {
        path.relative_to(folder).as_posix(): Links(path.read_text("utf-8"))
        for path in folder.rglob("*.html")
    }


def broken(folder, name, link, pages):
    """Return why a link of a page leads nowhere, or an empty string."""
    place, _, anchor = link.partition("#")
    target = os.path.normpath(Path(folder, name).parent / unquote(place)) if place else None
    path = Path(folder, name) if target is None else Path(target)
    if not path.exists():
        return "no such file"
    page = pages.get(path.relative_to(folder).as_posix())
    if anchor and page is not None and unquote(anchor) not in page.anchors:
        return "no such anchor"
    return ""


def check_links(folder, pages):
    """Check that pages load nothing from elsewhere, and that their links lead somewhere."""
    del pages["404.html"]  # its links are those of a web server
    for name, page in pages.items():
        for link in page.loaded:
            assert not re.match(r"(https?:)?//", link), f"{name} loads {link}"
        for link in (*page.loaded, *page.targets):
            if not re.match(r"https?:", link):
                why = broken(folder, name, link.partition("?")[0], pages)
                assert not why, f"{name}: {link}: {why}"


def check_lists(folder, pages):
    """Check that no item of a list is part of the text before it."""
    for name in pages:
        text = re.sub(r"(?s)<(pre|script)\b.*?</\1>", "", (folder / name).read_text("utf-8"))
        lines = [line for line in text.splitlines() if re.match(r"[-*] |1\. ", line)]
        assert lines == [], f"{name}: put an empty line before these items"


def check_python_reference(pages):
    """Check that every public name has its place."""
    for package, name in exported():
        if package != "avtd3":
            page = pages[f"api/{package.removeprefix('avtd3.')}.html"]
            assert f"{package}.{name}" in page.anchors


def check_command_reference(text):
    """Check that every command and option is described."""
    commands = [cli.make_command()]
    for command in commands:  # which grows
        commands += getattr(command, "commands", {}).values()
        for parameter in command.params if command.name != "avtd3" else ():
            assert parameter.opts[0] in text or parameter.metavar in text, command.name


def test_the_site_is_built_without_a_warning_and_is_whole(tmp_path):
    pages = build(tmp_path)
    check_links(tmp_path, pages)
    check_lists(tmp_path, pages)
    check_python_reference(pages)
    check_command_reference((tmp_path / "commands.html").read_text("utf-8"))


def test_every_document_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r"[\w/.-]+\.md", navigation))
    documents = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert documents <= named, f"not in the navigation of mkdocs.yml: {documents - named}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_also_work_in_the_repository(document):
    """Except to the page about the command line, which exists in the site only."""
    path = ROOT / document
    for link in re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", path.read_text("utf-8")):
        assert (path.parent / link).exists() or link.endswith("commands.md"), link


def test_the_python_reference_lists_the_names_of_the_package():
    text = (ROOT / "docs" / "api" / "index.md").read_text("utf-8")
    listed = re.findall(r"^\[`(\w+)`\]", text, re.MULTILINE)
    assert listed == importlib.import_module("avtd3").__all__


def test_the_glossary_is_in_order():
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    words = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)[2:]
    assert words == sorted(set(words), key=str.lower)


def test_links_to_other_sites_are_listed():
    script = ROOT / "docs" / "site" / "links.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert re.search(r"^https://semver.org .*docs/stability.md$", done.stdout, re.MULTILINE)


def messages():
    return MESSAGE.findall((ROOT / "docs" / "troubleshooting.md").read_text("utf-8"))


def test_troubleshooting_covers_many_messages():
    assert len(messages()) == len(set(messages())) > 40


@pytest.mark.parametrize("message", messages())
def test_a_message_that_the_documents_explain_is_in_the_source(message):
    assert len(message.replace("...", "")) > 12, "quote more of it"
    assert is_in_source(message)


@pytest.mark.slow
def test_pages_fit_every_screen_and_the_search_works_from_the_disk(browser, tmp_path):
    build(tmp_path)
    for name in ("index", "tutorial", "troubleshooting", "config", "api/learn", "notebook"):
        for width in (360, 768, 1280):
            browser.open(tmp_path / f"{name}.html", width=width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, name
    browser.ask("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.evaluate("document.getElementById('__search').click()")
    browser.evaluate(
        "(() => { const field = document.querySelector('.md-search__input'); field.focus();"
        "field.value = 'rollback'; for (const kind of ['input', 'keyup'])"
        "field.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )
    found = "document.querySelectorAll('.md-search-result__link').length"
    deadline = time.monotonic() + 120
    while browser.evaluate(found) == 0:
        assert time.monotonic() < deadline, "the search finds nothing"
        time.sleep(0.1)
