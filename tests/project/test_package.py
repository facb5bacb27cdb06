"""The installed package: the contents of the wheel, and what the commands import."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from avtd3.configs.load import SECTIONS
from avtd3.tests.project.conftest import tracked_files
from avtd3.tests.project.source import ROOT

COMMANDS = (
    *((), ("demo",), ("collect",), ("replay-inspect",), ("learn",), ("evaluate",), ("gate",)),
    *(("compare",), ("store",), ("store", "prune"), ("config", "show"), ("doctor", "carla")),
    *(("export",), ("import",), ("policy",), ("policy", "export"), ("road",)),
)
DATA = ("*.yaml", "*.j2", "*.css")
HEAVY = (
    *("torch", "carla", "dask", "zarr", "numpy", "scipy", "tensorboard", "PIL"),
    *("scenariogeneration", "jinja2", "yaml"),
)
"""Not pydantic: typer imports it for the help of a command."""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_wheel_contains_every_module_and_data_file(wheel):
    contents = set(zipfile.ZipFile(wheel).namelist())
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    for package in tools["packages"]:
        folder = ROOT / Path(*package.split(".")[1:])
        files = list(folder.glob("*.py"))
        if package != "avtd3":  # the root of the repository has other files, too
            files += [path for kind in DATA for path in folder.rglob(kind)]
        for path in files:
            name = f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"
            assert name in contents, f"{name} is not in the wheel"
    for name in ("py.typed", "store/render/templates/base.html.j2", "configs/demo.yaml"):
        assert f"avtd3/{name}" in contents
    assert not any(name.startswith(("avtd3/tests", "tests", "bench")) for name in contents)


@pytest.mark.slow
def test_the_source_distribution_contains_every_file_with_its_content(sdist):
    """Tests, documents and changelog included; the wheel of the tests is built from it."""
    expected = [name for name in tracked_files() if not name.startswith(".")]
    with tarfile.open(sdist) as archive:
        root = archive.getnames()[0].partition("/")[0]
        for name in expected:
            content = archive.extractfile(f"{root}/{name}")
            assert content is not None
            assert content.read() == (ROOT / name).read_bytes(), name
    assert {"CHANGELOG.md", "SECURITY.md", "docs/format.md", "tests/conftest.py"} <= set(expected)


def test_every_source_package_is_listed():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {"avtd3"}
    for layer in ("store", "learn", "collect", "configs"):
        for file in (ROOT / layer).rglob("__init__.py"):
            found.add(".".join(("avtd3", *file.parent.relative_to(ROOT).parts)))
    assert sorted(tools["packages"]) == tools["packages"]
    assert set(tools["packages"]) == found


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "avtd3")
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys; from avtd3.cli import main\n"
        f"try: main([*{words!r}, '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("section", SECTIONS)
def test_settings_of_the_learner_need_no_carla_and_those_of_the_collector_no_torch(section):
    missing = {"learn": "carla", "audit": "carla", "collect": "torch", "evaluate": "torch"}
    code = (
        f"import sys; sys.modules[{missing.get(section, 'carla')!r}] = None\n"
        f"from avtd3.configs.load import load_section; load_section({section!r})\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_a_learner_needs_no_carla():
    code = (
        "import sys; sys.modules['carla'] = None\n"
        "import avtd3.cli, avtd3.learn.trainer\n"
        "import avtd3.store.audit.audit, avtd3.store.replay.sampler\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
