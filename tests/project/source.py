"""The package's source as the tests of tests/project see it: modules, imports, names."""

import ast
import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = ("store", "learn", "collect", "configs", "cli")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One source file of the package."""

    name: str
    """Dotted name without the leading ``avtd3.``; the package itself is ``__init__``."""
    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """Dotted name of its package, such as ``store.replay``; ``cli`` and ``__init__`` as is."""
        if self.path.name == "__init__.py":
            return self.name
        return self.name.rpartition(".")[0] or self.name

    @property
    def layer(self) -> str:
        """First part of the name."""
        return self.name.partition(".")[0]


@functools.cache
def modules() -> dict[str, Module]:
    """Return every source module by name."""
    files = [ROOT / "__init__.py", ROOT / "cli.py"]
    for layer in LAYERS[:-1]:
        files += sorted((ROOT / layer).rglob("*.py"))
    found = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        text = path.read_text("utf-8")
        found[name] = Module(name=name, path=path, text=text, tree=ast.parse(text))
    return found


def imports(module: Module) -> Iterator[tuple[str, bool]]:
    """Yield the modules of the package that a module imports, and whether only for types.

    ``from avtd3.store import files`` imports the module ``store.files``. A name imported from a
    package counts as an import of the package's ``__init__``.
    """
    typing_only = {
        child
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    known = modules()
    for node in ast.walk(module.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name != "avtd3" and not name.startswith("avtd3."):
                continue
            short = name.removeprefix("avtd3").lstrip(".")
            target = short if short in known else short.rpartition(".")[0] or "__init__"
            yield target, node in typing_only


def external_imports(module: Module, *, at_import: bool = False) -> set[str]:
    """Return the top-level packages that a module imports from elsewhere.

    Args:
        module: The module.
        at_import: Whether to return only those that importing the module imports.
    """
    nodes = _executed(module.tree.body) if at_import else ast.walk(module.tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - {"avtd3"}


def _executed(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: not functions, not type checking."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for inner in ("body", "orelse", "finalbody", "handlers"):
            yield from _executed(getattr(node, inner, []))


def cycles(edges: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other: the strongly connected components.

    Args:
        edges: The nodes that each node leads to.
    """
    reached = {node: _reachable(edges, node) for node in edges}
    groups = {
        tuple(sorted(other for other in reached[node] if node in reached.get(other, ())))
        for node in edges
    }
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reachable(edges: Mapping[str, Collection[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(edges.get(node, ()))
    return found
