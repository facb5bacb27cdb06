"""Rules of CONTRIBUTING.md about the source tree: imports, private names, size."""

import ast
import collections
from collections.abc import Iterator

import pytest

from avtd3.tests.project.source import (
    LAYERS,
    Module,
    cycles,
    external_imports,
    imports,
    modules,
)

NAMES = sorted(modules())

MOST_MODULES = 199
MOST_LINES = 57_100
"""Lower this limit when the source shrinks, and raise it only for a new feature."""
MOST_SINGLE_IMPORTERS = 0.15
"""Largest share of modules with one importer."""
POLICIES = ("learn.policy", "learn.policy_store")
"""All that `collect` imports from `learn`."""
COMMAND, WORK, ENTRY, TOPIC, OPTIONAL, PROCESS = (
    "one file per command, mounted by cli.py",
    "the work of one command, in the layer below it",
    "the entry point of its package",
    "a topic of its own, too long for the file of its user",
    "needs a package that is optional or slow to import, so it is imported on demand",
    "runs in a process of its own",
)
SINGLE_IMPORTERS = {
    "collect.carla.session": PROCESS,
    "collect.carla.traffic": TOPIC,
    "collect.gym_env": OPTIONAL,
    "collect.maps.road_files": WORK,
    "collect.rerender": WORK,
    "collect.sim.traffic": TOPIC,
    "collect.timing": TOPIC,
    "configs.commands.collect": COMMAND,
    "configs.commands.config": COMMAND,
    "configs.commands.demo": COMMAND,
    "configs.commands.doctor": COMMAND,
    "configs.commands.evaluate": COMMAND,
    "configs.commands.exchange": COMMAND,
    "configs.commands.learn": COMMAND,
    "configs.commands.policy": COMMAND,
    "configs.commands.replay_inspect": COMMAND,
    "configs.commands.road": COMMAND,
    "configs.commands.status": COMMAND,
    "configs.commands.store": COMMAND,
    "configs.commands.transfer": COMMAND,
    "learn.guards.limits": TOPIC,
    "learn.guards.monitor": ENTRY,
    "learn.replay_source": TOPIC,
    "store.exchange.lerobot": OPTIONAL,
    "store.maintenance.compact": WORK,
    "store.maintenance.prune": WORK,
    "store.render.audit_view": WORK,
    "store.render.status_view": WORK,
    "store.replay.direct": TOPIC,
}
"""Modules that only one other module imports, and why they are modules of their own."""


def importers() -> dict[str, set[str]]:
    """Return which modules import each module."""
    found = collections.defaultdict(set)
    for module in modules().values():
        for target, _ in imports(module):
            if target != module.name:
                found[target].add(module.name)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way(name):
    module = modules()[name]
    if name == "__init__":
        return
    for target, _ in imports(module):
        if target == "__init__":
            continue
        layer = target.partition(".")[0]
        assert LAYERS.index(layer) <= LAYERS.index(module.layer), f"{name} imports {target}"
        if module.layer == "collect" and layer == "learn":
            assert target in POLICIES, f"{name} imports {target}"


def test_no_cycle_among_modules():
    edges = {
        module.name: {target for target, _ in imports(module)} - {module.name}
        for module in modules().values()
    }
    assert cycles(edges) == []


def test_no_cycle_among_packages():
    edges = collections.defaultdict(set)
    for module in modules().values():
        for target, _ in imports(module):
            source, imported = module.package, modules()[target].package
            # The modules directly in a package are shared by its sub-packages.
            shared = source.startswith(f"{imported}.") or imported.startswith(f"{source}.")
            if source != imported and not shared:
                edges[source].add(imported)
    assert cycles(edges) == []


@pytest.mark.parametrize(
    ("package", "places"),
    [
        ("carla", ("collect.carla.", "collect.maps.network", "collect.maps.road_files")),
        ("dask", ("store.audit.audit",)),
        ("jinja2", ("store.render.html",)),
        ("numba", ("store.replay.native",)),
        ("pydantic", ("configs.load",)),
        ("typer", ("cli", "configs.commands.")),
        ("gymnasium", ("collect.gym_env", "collect.gym_road")),
        ("tensorboard", ("learn.",)),
    ],
)
def test_heavy_packages_have_one_place(package, places):
    for module in modules().values():
        if package in external_imports(module):
            assert module.name.startswith(places), f"{module.name} imports {package}"


def test_only_learn_imports_torch_at_import():
    for module in modules().values():
        if "torch" in external_imports(module, at_import=True):
            assert module.layer == "learn", f"{module.name} imports torch"


def test_audits_are_data_and_only_the_render_package_shows_them():
    for module in modules().values():
        if module.name.startswith("store.audit."):
            for target, _ in imports(module):
                assert not target.startswith("store.render"), f"{module.name} imports {target}"


JOIN_THEIR_OWN = {
    "store.audit.statistics": "names of arrays, which format 1 fixes",
    "store.render.text": "join_lines itself",
    "store.render.episode_view": "colours and captions of frames",
    "learn.analysis.compare": "Markdown",
    "learn.analysis.gate": "Markdown",
    "configs.commands.config": "Markdown, and names of presets",
    "configs.commands.options": "a help text",
    "configs.load": "YAML",
    "learn.policy_export": "Markdown",
    "configs.commands.demo": "Markdown",
    "configs.commands.replay_inspect": "texts of reports that are joined already",
}


def test_reports_join_their_lines_so_that_a_value_cannot_start_one():
    joining = {module.name for module in modules().values() if '"\\n".join(' in module.text}
    assert joining == JOIN_THEIR_OWN.keys(), "use join_lines of store/render/text.py"


def test_nothing_is_unpickled():
    words = ("pickle", " torch.load", " torch.save", "allow_pickle=True", "joblib")
    for module in modules().values():
        for line in module.text.splitlines():
            code = " " + line.split("#")[0]
            assert not any(f"{word}(" in code or f"import {word}" in code for word in words), line


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("name", NAMES)
def test_private_names_stay_in_their_module(name):
    module = modules()[name]
    aliases = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "avtd3":
            for alias in node.names:
                assert not is_private(alias.name), f"{name} imports {alias.name}"
                aliases.add(alias.asname or alias.name)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            reached = node.value.id in aliases and is_private(node.attr)
            assert not reached, f"{name}:{node.lineno} uses {node.value.id}.{node.attr}"


NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}


def foreign_private_attributes(module: Module) -> Iterator[str]:
    """Yield the private attributes that a module's code uses from outside their class.

    A class may use what it defines itself, also on another instance: ``other._key`` in ``__eq__``,
    or ``made._key`` in a class method that makes one. Private names of other projects' modules
    (``os._exit``) and the methods of named tuples are not ours.
    """
    own = {"self", "cls", *external_names(module)}

    def visit(node: ast.AST, defined: frozenset[str]) -> Iterator[str]:
        if isinstance(node, ast.ClassDef):
            defined = frozenset(names_defined_by(node))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, defined)
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            base = ast.unparse(node.value)
            if base not in own and node.attr not in defined | NAMED_TUPLE:
                yield f"{module.name}:{node.lineno} uses {base}.{node.attr}"

    return visit(module.tree, frozenset())


def external_names(module: Module) -> Iterator[str]:
    """Yield the names of other projects' modules that a module imports."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.asname or alias.name for alias in node.names)


def names_defined_by(class_: ast.ClassDef) -> Iterator[str]:
    """Yield the attributes and methods that a class defines or assigns."""
    for node in ast.walk(class_):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "cls"}:
            yield node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("name", NAMES)
def test_no_class_reaches_into_another(name):
    assert list(foreign_private_attributes(modules()[name])) == []


def test_the_source_stays_small():
    lines = sum(len(module.text.splitlines()) for module in modules().values())
    assert len(modules()) <= MOST_MODULES
    assert lines <= MOST_LINES


def test_few_modules_have_a_single_importer():
    """A module that a package exports has users of its own; it does not count."""
    users = importers()
    single = {
        module.name
        for module in modules().values()
        if module.path.name != "__init__.py"
        and len(users[module.name]) == 1
        and modules()[next(iter(users[module.name]))].path.name != "__init__.py"
    }
    unexplained = single - SINGLE_IMPORTERS.keys()
    assert unexplained == set(), "merge each into its only user, or give a reason"
    assert SINGLE_IMPORTERS.keys() - single == set(), "remove what is no longer true"
    assert len(single) / len(modules()) < MOST_SINGLE_IMPORTERS
