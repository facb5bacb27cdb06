"""What a person installs: the wheel, its parts, and the time until it answers."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **kwargs):
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_preset(tmp_path):
    source = tmp_path / "source"
    run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(source))
    built = run(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in packages["packages"]:
        folder = ROOT / Path(*package.split(".")[1:])
        deep = folder.rglob("*.yaml") if package == "avtd3.configs" else folder.glob("*.yaml")
        pages = [*folder.glob("*.css"), *folder.glob("templates/*")]
        for path in [*folder.glob("*.py"), *deep, *pages]:
            name = f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"
            assert name in held, f"{name} is not in the wheel"
    assert "avtd3/store/render/templates/base.html.j2" in held
    assert not any(name.startswith(("avtd3/tests", "tests", "bench")) for name in held)


def test_help_imports_nothing_heavy():
    heavy = [
        "torch",
        "carla",
        "dask",
        "zarr",
        "pydantic",
        "scipy",
        "tensorboard",
        "scenariogeneration",
        "jinja2",
        "PIL",
    ]
    code = (
        "import sys; from avtd3.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"print('HEAVY', [m for m in {heavy!r} if m in sys.modules])"
    )
    answer = run(sys.executable, "-c", code)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "HEAVY []"


def test_a_learner_needs_no_carla():
    code = (
        "import sys; sys.modules['carla'] = None\n"
        "import avtd3.cli, avtd3.learn.trainer\n"
        "import avtd3.store.audit.audit, avtd3.store.replay.sampler\n"
        "from avtd3.configs.load import load_section, SECTIONS\n"
        "for name in SECTIONS: load_section(name)\n"
    )
    answer = run(sys.executable, "-c", code)
    assert answer.returncode == 0, answer.stderr
