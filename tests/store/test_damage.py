"""Random damage to any file of a segment: found, or harmless; no crash, no wrong frame."""

import json
import subprocess
import sys

import pytest


def damage(directory, seed, count):
    """Run `damage.py` in a process of its own; returns what it found."""
    command = [sys.executable, "-m", "avtd3.tests.store.damage", directory, str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    # A negative number is the signal that killed it: SIGSEGV, SIGBUS.
    assert done.returncode == 0, f"{done.returncode} at {lines[-1:]}: {done.stderr[-2000:]}"
    return json.loads(lines[-1])


def test_damaged_copies_are_found_or_harmless(tmp_path):
    outcomes = damage(tmp_path, seed=1, count=120)["outcomes"]
    assert sum(outcomes.values()) == 120
    assert outcomes["found when opened"] > 30
    assert outcomes["found when read"] > 30
    assert outcomes.get("harmless", 0) < 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_damaged_copies_are_found_or_harmless(tmp_path):
    found = damage(tmp_path, seed=2, count=2000)
    assert found["touched"] == found["files"] > 120  # every file of every encoding
    outcomes = found["outcomes"]
    assert outcomes.keys() <= {"found when opened", "found when read", "harmless"}
    assert sum(outcomes.values()) == 2000
    assert outcomes.get("harmless", 0) < 100
