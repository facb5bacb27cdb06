"""The commands in the documents work: each is parsed here, and the slow test runs it.

A block of commands is marked as ``bash``, or has no mark and starts with a command. One that cannot
run has a comment above it that names the reason, and ``<!-- file: NAME -->`` names the file that a
block of another language is saved as. ``DATASET`` and ``RUN`` exist unless a document makes them.
"""

import ast
import dataclasses
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy
import pytest

from avtd3 import cli
from avtd3.configs.commands import console
from avtd3.configs.load import load_section, presets
from avtd3.tests.project.source import ROOT
from avtd3.tests.store.remote import servers

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if path.name != "CHANGELOG.md"
)
BLOCK = re.compile(r"(?:^<!-- ([a-z ]+): (.*?) -->\n)?^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
LANGUAGES = {"bash", "text", "python", "yaml", "json", "html"}
PROGRAMS = {
    *("avtd3", "git", "cd", ".", "make", "pip", "python", "torchrun", "dask"),
    "tensorboard",
    "./CarlaUE4.sh",
}
SYSTEM = {
    "cp",
    "docker",
    "journalctl",
    "rsync",
    "sbatch",
    "systemctl",
    "useradd",
    "/opt/avtd3/bin/pip",
}
"""Programs that only blocks that are not run may use."""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A block of code in a document."""

    document: str
    line: int
    note: str
    """``not run``, ``file`` or nothing."""
    value: str
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The commands, as lists of words; what they print may go to a file."""
        text = re.sub(r" > [\w.]+$", "", self.text.replace("\\\n", " "), flags=re.MULTILINE)
        lines = text.splitlines() if self.language == "bash" else []
        return [words for line in lines if (words := shlex.split(line, comments=True))]


@functools.cache
def blocks(document):
    text = (ROOT / document).read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(3)) + 1
        is_command = match[4].startswith(tuple(f"{program} " for program in PROGRAMS))
        language = match[3] or ("bash" if is_command else "text")
        found.append(Block(document, line, match[1] or "", match[2] or "", language, match[4]))
    return found


ALL_BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def named(block):
    return f"{block.document}:{block.line}"


def preset_blocks():
    """The commands in the comments of the presets."""
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        lines = re.findall(r"^#   (avtd3 .*)", path.read_text("utf-8"), re.MULTILINE)
        text = "\n".join(re.split(r"  +in ", line)[0] for line in lines)
        yield Block(f"configs/{path.name}", 1, "", "", "bash", text)


@functools.cache
def command():
    return cli.make_command()


def context_of(words):
    """Parse the words of an avtd3 command as the command line does, without running it."""
    parsed = command().make_context("avtd3", list(words), resilient_parsing=False)
    while hasattr(parsed.command, "commands"):
        name, inner, rest = parsed.command.resolve_command(
            parsed, parsed._protected_args + parsed.args
        )
        parsed = inner.make_context(name, rest, parent=parsed)
    return parsed


def saved_files(block):
    """The files that the document of a block asks its reader to save."""
    return {each.value for each in blocks(block.document) if each.note == "file"}


def check_avtd3(block, words):
    parameters = context_of(words).params
    saved = saved_files(block)
    if (config := parameters.get("config")) is not None:
        assert config in {*presets(), *saved}, f"{config} is no preset, and no file of the document"
    overrides = parameters.get("set_") or ()
    for section in {override.partition(".")[0] for override in overrides}:
        own = [override for override in overrides if override.startswith(f"{section}.")]
        load_section(section, None if config in saved else config, own)


def check_other(block, program, words):
    if program == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE)
    elif program == "python" and words[0] != "-m":
        assert words[0] in saved_files(block) or (ROOT / words[0]).is_file()
    elif program == "torchrun":
        module, *arguments = words[words.index("--") + 1 :]
        assert module == "avtd3.cli"
        check_avtd3(block, arguments)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        for group in re.findall(r"\[(.*?)\]", " ".join(words)):
            assert set(group.split(",")) <= extras["optional-dependencies"].keys()


def test_documents_have_blocks_of_commands():
    assert sum(bool(block.commands) for block in ALL_BLOCKS) > 12


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=named)
def test_every_block_names_its_language_and_why_it_is_not_run(block):
    assert block.language in LANGUAGES
    assert block.note in ("", "not run", "file"), block.note
    if block.note == "not run":
        assert block.language == "bash"
        assert len(block.value.split()) >= 3, "give the reason"
        for path in re.findall(r"[\w/]+/[\w.]+", block.value):
            assert (ROOT / path).exists(), path
    if block.language == "text":
        assert not re.match(r"(avtd3|pip|python|make) [^|\[\]]*$", block.text), "mark it as bash"


@pytest.mark.parametrize(
    "block", [b for b in (*ALL_BLOCKS, *preset_blocks()) if b.commands], ids=named
)
def test_every_command_is_valid(block):
    for program, *words in block.commands:
        known = PROGRAMS | SYSTEM if block.note == "not run" else PROGRAMS
        assert program in known, f"unknown program {program}"
        if program == "avtd3":
            check_avtd3(block, words)
        else:
            check_other(block, program, words)
    console.set_verbosity(0)


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_every_option_in_the_text_exists(document):
    """Of commands in the middle of a sentence, such as `avtd3 learn --follow`."""
    text = BLOCK.sub("", (ROOT / document).read_text("utf-8"))
    for code in re.findall(r"`avtd3 ([a-z-]+ [^`]*)`", text):
        name, *words = code.split()
        found = command().commands.get(name)
        if document == "CHANGELOG.md" and found is None:
            continue  # a command of an older version
        assert found is not None, f"avtd3 {name}"
        inner = getattr(found, "commands", {})
        known = [found] if not inner else [inner[word] for word in words if word in inner]
        options = {
            opt for each in known for p in each.params for opt in (*p.opts, *p.secondary_opts)
        }
        for word in words:
            option = re.match(r"\[?(--[a-z-]+)", word)
            assert option is None or option[1] in options | {"--help"}, f"avtd3 {code}"


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if b.language == "python"], ids=named)
def test_python_blocks_import_what_exists(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "avtd3":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the working tree with a virtual environment, as the set-up commands make it.

    Its packages come from the environment of the tests, so that no network is needed.
    """
    folder = tmp_path_factory.mktemp("clone") / "avtd3"
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listing.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    environment = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n")
    (site / "avtd3").symlink_to(folder)
    for name, module in (("avtd3", "avtd3.cli"), ("torchrun", "torch.distributed.run")):
        script = environment / "bin" / name
        # With a guard, as pip writes it: worker processes import the script again.
        code = f"from {module} import main\nif __name__ == '__main__':\n    main()\n"
        script.write_text(f"#!{environment}/bin/python\n{code}")
        script.chmod(0o755)
    return folder


MAKE_DATASET = """
avtd3 collect DATASET --episodes 4 --set collect.scenario.networks=1 \\
  --set collect.scenario.route_length_m=40
"""
MAKE_RUN = "avtd3 learn DATASET --config smoke_50 --updates 4 --run RUN\n"


def setup_of(text):
    """Return the commands that make what some commands use but do not make."""
    needs_run = "RUN" in re.findall(r"\w+", text) and not re.search(r"--run RUN\b", text)
    needs_dataset = needs_run or "DATASET" in re.findall(r"\w+", text)
    needs_dataset = needs_dataset and not re.search(r"collect +DATASET\b", text)
    return MAKE_DATASET * needs_dataset + MAKE_RUN * needs_run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("avtd3 collect  DATASET\navtd3 learn DATASET --run RUN", ""),
        ("avtd3 replay-inspect DATASET", MAKE_DATASET),
        ("avtd3 evaluate RUN/policies", MAKE_DATASET + MAKE_RUN),
        ("avtd3 collect DATASET\navtd3 evaluate RUN/policies", MAKE_RUN),
        ("avtd3 replay-inspect DATA --html RUN2", ""),
    ],
)
def test_a_document_gets_what_it_does_not_make(text, expected):
    assert setup_of(text) == expected


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "document",
    [d for d in DOCUMENTS if any(b.commands and b.note != "not run" for b in blocks(d))],
)
def test_the_commands_of_a_document_run_in_fresh_shells(document, clone, tmp_path, request):
    """In the order of the document; each block in a shell of its own that activates avtd3.

    The buckets that it names are those of a server on this machine.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    work = tmp_path / "work"
    work.mkdir()
    (work / ".venv").symlink_to(clone / ".venv")
    for block in blocks(document):
        if block.note == "file":
            (work / block.value).write_text(block.text)
    run = [b for b in blocks(document) if b.commands and b.note != "not run"]
    setup = setup_of("".join(block.text for block in run))
    buckets = set(re.findall(r"s3://([a-z]+)", "".join(block.text for block in run)))
    for bucket in buckets:
        server = request.getfixturevalue("moto")
        environment |= server.environment
        servers.put_bucket(server, bucket)
    for name, text in (("set-up", setup), *((named(block), block.text) for block in run)):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f". .venv/bin/activate\n{text}"],
            cwd=work, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
