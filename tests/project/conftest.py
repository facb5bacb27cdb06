"""A source distribution and a wheel of the working tree, built once."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avtd3.tests.project.source import ROOT


def run(*command, cwd=None):
    """Run a command that must succeed; return its standard output."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def find_tool(package, name):
    """Return the path of a program that a package installs; skip the test if it is missing."""
    try:
        files = importlib.metadata.files(package) or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for path in (Path(str(file.locate())) for file in files if file.name == name):
        return path.resolve()
    return shutil.which(name) or pytest.skip(f"{name} is not installed; the extra dev installs it")


def tracked_files():
    """Return the files that git tracks or would track."""
    names = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    """Build a source distribution of these files, and a wheel from it, without a network."""
    folder = tmp_path_factory.mktemp("distributions")
    source = folder / "source"
    for name in tracked_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


@pytest.fixture(scope="session")
def wheel(distributions):
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def sdist(distributions):
    (path,) = distributions.glob("*.tar.gz")
    return path
