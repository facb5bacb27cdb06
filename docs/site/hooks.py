"""Add to the site what is not in docs/: generated pages, the project's own files, and examples.

MkDocs calls the functions whose names begin with ``on_``. Links in a page are those of its source
file, so that they also work where the repository is read without the site.
"""

import atexit
import functools
import html
import json
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from avtd3 import cli

ROOT = Path(__file__).parents[2]
PACKAGES = ("__init__.py", "store", "learn", "collect")
"""What the Python reference is made from."""
PROJECT = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
}
"""Documents outside docs/, and where they are in the site."""
NOTEBOOK = "examples/first_look.ipynb"
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
NAMED = re.compile(r"\[([\w./-]+\.md)\](?=\()")
NOTE = re.compile(r"^( *)<!-- (file|not run): (.*?) -->\n( *```\w+)", re.MULTILINE)


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Point mkdocstrings to the package: the directory of the repository may have any name."""
    folder = tempfile.mkdtemp(prefix="avtd3-docs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = Path(folder, "avtd3")
    package.mkdir()
    for name in PACKAGES:
        (package / name).symlink_to(ROOT / name)
    handlers = config.plugins["mkdocstrings"].config.handlers
    handlers["python"]["paths"] = [folder]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, the documents of the project, and the examples."""
    for source, target in PROJECT.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, target, content=text))
    files.append(File.generated(config, "commands.md", content=command_reference()))
    files.append(File.generated(config, "notebook.md", content=notebook_page(ROOT / NOTEBOOK)))
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the site, with the titles of pages, and name saved files."""
    linked = LINK.sub(functools.partial(_link, page.file.src_uri), markdown)
    return NOTE.sub(_title, NAMED.sub(_page_title, linked))


def _link(page: str, match: re.Match[str]) -> str:
    """Return a link of a source file as one of its page."""
    source = next((name for name, uri in PROJECT.items() if uri == page), f"docs/{page}")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
    if target == NOTEBOOK and page != "notebook.md":
        target = "notebook.md"
    target = PROJECT.get(target, target.removeprefix("docs/"))
    return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(page) or '.')}{match[3]}"


@functools.cache
def _page_titles() -> dict[str, str]:
    """Return the first heading of each document by the document's name."""
    paths = (*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in PROJECT))
    texts = {path.name: path.read_text("utf-8") for path in paths}
    return {name: text.partition("\n")[0].removeprefix("# ") for name, text in texts.items()}


def _page_title(match: re.Match[str]) -> str:
    """Return the start of a link with the title of the page in place of its name."""
    return f"[{_page_titles().get(posixpath.basename(match[1]), match[1])}]"


def _title(match: re.Match[str]) -> str:
    """Return the start of a block, with the name of its file as its title."""
    return match[4] + (f' title="{match[3]}"' if match[2] == "file" else "")


def notebook_page(path: Path) -> str:
    """Return a notebook as a page: its texts and its code, without results."""
    pieces = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        pieces.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    pieces.append(f"[Download this notebook](../{NOTEBOOK})")
    return "\n\n".join(pieces) + "\n"


COMMANDS = """# Command line

Every command and option, as `avtd3 COMMAND --help` prints them. The page is made from the program when the site is built.

- Values come from the preset or file of `--config`, then from `--set`, then from the other options; see [Configuration](config.md).
- Every command also accepts `--verbose` (`-v`), which prints versions, settings that are not defaults, and tracebacks; and
  `--quiet` (`-q`), which prints only the answer and errors.
- With `--json`, standard output contains exactly one JSON document. Progress and errors go to standard error.
- The [exit code](project/readme.md#commands) says whether the answer is yes, no, or an error.
- [Troubleshooting](troubleshooting.md) explains error messages.
"""  # noqa: E501
SHARED = ("-v, --verbose", "-q, --quiet")


def command_reference() -> str:
    """Return a page about every command and option, from the program itself."""
    command = cli.make_command()
    context = command.make_context("avtd3", [], resilient_parsing=True)
    return "\n".join((COMMANDS, *_commands_of(command, context, 2)))


def _commands_of(group: Any, parent: Any, level: int) -> Iterator[str]:  # noqa: ANN401 - Typer
    """Yield the lines of the commands of a group."""
    for name, command in group.commands.items():
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        yield f"{'#' * level} {context.command_path}\n"
        yield f"{command.help}\n"
        if hasattr(command, "commands"):
            yield from _commands_of(command, context, level + 1)
            continue
        usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
        yield f"```text\n{usage}\n```\n"
        yield "| argument or option | meaning |\n| --- | --- |"
        for parameter in command.params:
            name, text = parameter.get_help_record(context)
            if name not in SHARED:
                yield f"| `{name}` | {html.escape(text, quote=False).replace('|', '&#124;')} |"
        yield ""
