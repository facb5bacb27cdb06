"""The house rules that a reader relies on: which layer may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("store", "learn", "collect", "configs", "cli")
POLICIES = ("avtd3.learn.policy", "avtd3.learn.policy_store")
"""All that collectors know of the learner."""
MODULES = sorted(
    path
    for layer in LAYERS
    for path in ([ROOT / "cli.py"] if layer == "cli" else (ROOT / layer).rglob("*.py"))
)


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "avtd3" or len(parts) == 1:
            continue
        assert LAYERS.index(parts[1]) <= LAYERS.index(layer), f"{path} imports {name}"
        if layer == "collect" and parts[1] == "learn":
            assert name in POLICIES, f"{path} imports {name}"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("torch", ("learn",)),
        ("carla", ("collect",)),
        ("dask", ("store/audit/audit",)),
        ("jinja2", ("store/render/html",)),
    ],
)
def test_heavy_packages_stay_in_their_rooms(package, allowed):
    for path in MODULES:
        place = path.relative_to(ROOT).with_suffix("").as_posix()
        if package in {name.split(".")[0] for name in imports(path)}:
            ours = any(place == room or place.startswith(room + "/") for room in allowed)
            lazily = package not in {
                name.split(".")[0] for name in imports(path, top_level_only=True)
            }
            assert ours or (package == "torch" and lazily), f"{place} imports {package}"


def test_audits_are_data_and_only_the_render_package_shows_them():
    for path in (ROOT / "store" / "audit").glob("*.py"):
        for name in imports(path):
            assert not name.startswith("avtd3.store.render"), f"{path} imports {name}"


def test_nothing_is_unpickled():
    words = ("pickle", " torch.load", " torch.save", "allow_pickle=True", "joblib")
    for path in MODULES:
        for line in path.read_text("utf-8").splitlines():
            code = " " + line.split("#")[0]
            assert not any(f"{word}(" in code or f"import {word}" in code for word in words), line
