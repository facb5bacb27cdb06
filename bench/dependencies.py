"""List the packages that avtd3 needs, with licence and installed size.

    python bench/dependencies.py [--extra carla --extra gym ...] [--json]

The requirements are those of ``pyproject.toml``; versions, licences and sizes are those of the
packages that are installed beside this Python. By default all extras that users install are
included; ``needed by`` names avtd3 itself, or the extras that bring a package. A package that is
not installed, or whose marker excludes this machine, is listed without a size or not at all.
"""

import argparse
import importlib.metadata
import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NOT_FOR_USERS = ("all", "bench", "dev", "docs")
LONGEST_LICENCE = 60


def declared() -> dict[str, list[str]]:
    """Return the requirements of avtd3 and of each extra, by ``avtd3`` and the extra's name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {"avtd3": project["dependencies"], **project["optional-dependencies"]}


def wanted(lines: Iterable[str], extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """Yield the requirements that hold on this machine with some extras."""
    environments = [{"extra": extra} for extra in (*extras, "")]
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate(environment) for environment in environments):
            yield requirement


def closure(lines: Iterable[str]) -> dict[str, importlib.metadata.Distribution | None]:
    """Return all packages that some requirements need, directly or not, by name."""
    found: dict[str, importlib.metadata.Distribution | None] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = list(wanted(lines))
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name == "avtd3":
            continue
        seen.add(key)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
            continue
        found[name] = package
        queue += wanted(package.requires or (), requirement.extras)
    return found


def licence(package: importlib.metadata.Distribution) -> str:
    """Return the licence that a package names: an expression, its classifiers, or a short text."""
    metadata = package.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = metadata.get_all("Classifier") or ()
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    text = metadata["License"].strip().partition("\n")[0] if "License" in metadata else ""
    return ", ".join(names) or (text if 0 < len(text) <= LONGEST_LICENCE else "see its files")


def size_mb(package: importlib.metadata.Distribution) -> float:
    """Return the size of a package's installed files, in MB."""
    paths = [Path(str(file.locate())) for file in package.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def rows(extras: Iterable[str]) -> list[dict[str, str | float | None]]:
    """Return a row for each package, the largest first."""
    requirements = declared()
    users: dict[str, list[str]] = {}
    packages: dict[str, importlib.metadata.Distribution | None] = {}
    for group in ("avtd3", *sorted(extras)):
        for name, package in closure(requirements[group]).items():
            packages[name] = package
            if "avtd3" not in users.setdefault(name, []):
                users[name].append(group)
    found: list[dict[str, str | float | None]] = [
        {
            "package": name,
            "version": package.version if package else None,
            "licence": licence(package) if package else None,
            "size_mb": round(size_mb(package), 1) if package else None,
            "needed_by": ", ".join(users[name]),
        }
        for name, package in packages.items()
    ]
    return sorted(found, key=lambda row: (-float(row["size_mb"] or 0), str(row["package"])))


def table(found: list[dict[str, str | float | None]]) -> str:
    """Return the rows as a Markdown table, with a line of totals."""
    lines = [
        "| package | version | licence | MB | needed by |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        "| " + " | ".join("not installed" if v is None else str(v) for v in row.values()) + " |"
        for row in found
    ]
    own = sum(float(row["size_mb"] or 0) for row in found if row["needed_by"] == "avtd3")
    total = sum(float(row["size_mb"] or 0) for row in found)
    lines += ["", f"{own:,.0f} MB without extras, {total:,.0f} MB with all of them."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    extras = sorted(declared().keys() - {"avtd3", *NOT_FOR_USERS})
    parser.add_argument("--extra", action="append", choices=extras, help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    given = parser.parse_args()
    found = rows(extras if given.extra is None else given.extra)
    print(json.dumps(found, indent=2) if given.json else table(found))


if __name__ == "__main__":
    main()
