"""The examples work: those in the docstrings of exported names, and those in examples/."""

import ast
import doctest
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from avtd3.tests.project.conftest import run
from avtd3.tests.project.source import ROOT
from avtd3.tests.project.test_public_api import exported

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
ELSEWHERE = ("leaderboard_agent.py",)
"""Tested in tests/collect/carla/test_leaderboard_agent.py; it needs packages of the leaderboard."""
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name not in ELSEWHERE)
ORDER = (
    "write_episodes.py",
    "read_episodes.py",
    "train_in_pytorch.py",
    "act_and_evaluate.py",
    "own_world.py",
    "drive_with_onnx.py",
    "train_with_sb3.py",
)
NOTEBOOK = ROOT / "examples" / "first_look.ipynb"
PAGES = ("python.md", "gym.md", "policies.md")
MOST_LINES = 30


def example_docstrings():
    """Yield the doctests of exported names; each name once, and names of its package at hand."""
    seen = set()
    for package, name in exported():
        value = getattr(importlib.import_module(package), name)
        if id(value) in seen or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        seen.add(id(value))
        module = importlib.import_module(package)
        names = {each: getattr(module, each) for each in module.__all__}
        home = vars(importlib.import_module(value.__module__))
        for test in doctest.DocTestFinder().find(value, f"{package}.{name}", globs=home | names):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(example_docstrings()))
def test_docstring(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=output.append, clear_globs=False)
    assert output == [], "".join(output)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_and_use_the_public_api(path):
    source = path.read_text("utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(source))
    public = {"avtd3", "avtd3.store", "avtd3.learn", "avtd3.collect"}
    for module in re.findall(r"^\s*(?:from|import) (avtd3[\w.]*)", source, re.MULTILINE):
        assert module in public, f"{path.name} imports {module}"


def test_a_page_contains_each_example_verbatim():
    document = "".join((ROOT / "docs" / page).read_text("utf-8") for page in PAGES)
    blocks = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert [path.name for path in EXAMPLES] == sorted(ORDER)
    for path in EXAMPLES:
        assert path.read_text("utf-8") in blocks, f"no page of {PAGES} contains {path.name}"


def test_the_notebook_has_no_results_and_uses_the_public_api():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert not any(cell.get("outputs") for cell in cells)
    packages = set(re.findall(r"^from (avtd3[\w.]*)", source, re.MULTILINE))
    # docs/python.md names the function that reads a preset.
    assert packages - {"avtd3.configs.load"} <= {"avtd3.store", "avtd3.learn", "avtd3.collect"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(tmp_path):
    """In a kernel of its own; only the training is shorter, as its first cell says."""
    work = shutil.copy(NOTEBOOK, tmp_path)
    environment = os.environ | {"AVTD3_NOTEBOOK_SECONDS": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    code = "from nbclient.cli import main; main()"
    command = (sys.executable, "-c", code, "--timeout=1500", "--inplace", str(work))
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    cells = json.loads(Path(work).read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert (tmp_path / "notebook-run" / "policies" / "LATEST.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_examples_run_against_the_installed_wheel(wheel, tmp_path):
    """In an empty directory, with a virtual environment that has only the wheel of avtd3.

    Its dependencies come from the environment of the tests through a ``.pth`` file, so that no
    network is needed. The source tree is not on the path.
    """
    environment, work = tmp_path / "venv", tmp_path / "work"
    work.mkdir()
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site,) = environment.glob("lib/python*/site-packages")
    dependencies = Path(numpy.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    where = run(python, "-c", "import avtd3; print(avtd3.__file__)", cwd=work)
    assert Path(where.strip()).is_relative_to(site)
    for name in ORDER:
        if name == "drive_with_onnx.py":
            words = ("policy", "export", "run/policies", "policy.onnx", "--to", "onnx")
            run(environment / "bin" / "avtd3", *words, cwd=work)
        run(python, ROOT / "examples" / name, cwd=work)
