"""The public Python API: what `avtd3` and its packages export, and what importing them does."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys

import pytest

PACKAGES = ("avtd3", "avtd3.store", "avtd3.learn", "avtd3.collect")
HEAVY = (
    *("numpy", "torch", "zarr", "numcodecs", "scipy", "dask", "pydantic", "carla", "gymnasium"),
    *("tensorboard", "scenariogeneration", "jinja2", "PIL", "yaml", "rich", "typer"),
)
STATE = """
import json, logging, os, signal, sys, threading, warnings

def state():
    return {
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "path": list(sys.path),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "logging": [logging.root.level, logging.root.disabled, len(logging.root.handlers)],
        "warnings": [repr(entry) for entry in warnings.filters],
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "hooks": [repr(sys.excepthook), repr(sys.displayhook), len(sys.meta_path)],
    }
"""


def run(code):
    """Run code in a fresh process with a minimal environment; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def exported():
    for package in PACKAGES:
        for name in getattr(importlib.import_module(package), "__all__", ()):
            yield package, name


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_complete(package):
    module = importlib.import_module(package)
    names = list(module.__all__)
    assert names == sorted(set(names))
    assert set(names) <= set(dir(module))
    assert not any(name.startswith("_") for name in names)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_no_export_has_the_name_of_a_submodule(package):
    """Importing the submodule would replace the export."""
    module = importlib.import_module(package)
    assert {info.name for info in pkgutil.iter_modules(module.__path__)}.isdisjoint(module.__all__)


@pytest.mark.parametrize(("package", "name"), list(exported()))
def test_every_export_has_a_docstring_with_an_example(package, name):
    value = getattr(importlib.import_module(package), name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return
    text = inspect.getdoc(value) or ""
    assert text, f"{package}.{name} has no docstring"
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        assert ">>> " in text, f"the docstring of {package}.{name} has no example"


@pytest.mark.parametrize(("package", "name"), list(exported()))
def test_every_export_belongs_to_its_package(package, name):
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__module__.startswith(package)


def test_the_root_exports_the_same_objects_as_the_packages():
    root = importlib.import_module("avtd3")
    for name in root.__all__:
        found = [
            getattr(module, name)
            for module in map(importlib.import_module, PACKAGES[1:])
            if name in module.__all__
        ]
        assert any(value is getattr(root, name) for value in found), name


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(package):
    code = f"import sys, json, {package}; print(json.dumps(sorted(sys.modules)))"
    assert set(run(code)).isdisjoint(HEAVY)


@pytest.mark.parametrize("layer", ["store", "learn", "collect", "configs", "cli"])
def test_importing_changes_nothing_in_the_process(layer):
    """Import a layer after everything that it imports from elsewhere; compare the state."""
    imported = f"""
import importlib, pkgutil, sys
names = ["avtd3.{layer}"]
module = importlib.import_module(names[0])
if hasattr(module, "__path__"):
    found = pkgutil.walk_packages(module.__path__, names[0] + ".")
    names += [info.name for info in found if not info.name.endswith(("child", "guardian"))]
for name in names:
    importlib.import_module(name)
"""
    listing = f"{imported}\nimport json\nprint(json.dumps([names, list(sys.modules)]))"
    names, loaded = run(listing)
    others = [name for name in loaded if name.partition(".")[0] not in {"avtd3", "__main__"}]
    code = f"""{STATE}
import contextlib, importlib
for name in {others!r}:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
before = state()
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps([before, state()]))
"""
    before, after = run(code)
    for kind, value in before.items():
        assert after[kind] == value, f"importing avtd3.{layer} changes {kind}"
