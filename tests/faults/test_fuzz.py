"""Each parser, on thousands of changed files: it returns a value or raises a short `Avtd3Error`.

`fuzz.py` makes the cases, in a process of its own with limited memory. A failure names the command
that repeats it. Road descriptions and routes are in `tests/collect/maps/`.
"""

import json
import subprocess
import sys

import pytest

from avtd3.tests.faults.fuzz import TARGETS

CASES = {"manifest": 60, "policy": 100, "config": 20, "events": 60}
"""Cases that take about a second of CPU time."""


def fuzz(target, root, *options):
    """Run cases of a target in a process of its own; returns what it found."""
    done = subprocess.run(
        [sys.executable, "-m", "avtd3.tests.faults.fuzz", target, str(root), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    # A crash or a hang ends the process: the last number is that of the case.
    last = done.stderr.replace("\r", "\n")[-4000:]
    assert done.returncode == 0, f"the process ended with {done.returncode}: {last}"
    found = json.loads(done.stdout)
    problems = [f"{one['repeat']}\n{one['traceback']}" for one in found["failures"]]
    assert not problems, f"{len(problems)} of {found['cases']} cases:\n\n" + "\n".join(problems)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_a_parser_answers_or_refuses_whatever_it_reads(target, tmp_path):
    assert fuzz(target, tmp_path, "--cases", str(CASES[target]))["cases"] == CASES[target]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_a_parser_answers_or_refuses_for_two_minutes(target, tmp_path):
    assert fuzz(target, tmp_path, "--seconds", "120", "--seed", "1")["cases"] > CASES[target]
