"""Housekeeping killed with SIGKILL: readers lose nothing and see nothing twice, ever."""

import subprocess
import sys

import pytest


def kill_everywhere(directory, command, stride):
    done = subprocess.run(
        [sys.executable, "-m", "avtd3.tests.store.killed", str(directory), command, str(stride)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    points, _, calls = (directory / "points").read_text().split()
    assert int(points) >= min(int(calls) // stride, 10)


@pytest.mark.parametrize("command", ["compact", "prune", "relabel"])
def test_killed_at_some_system_calls(tmp_path, command):
    kill_everywhere(tmp_path, command, 60)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compact", "prune", "relabel"])
def test_killed_at_a_third_of_all_system_calls(tmp_path, command):
    kill_everywhere(tmp_path, command, 3)
