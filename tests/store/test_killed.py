"""Maintenance killed with SIGKILL: readers never lose an episode or see one twice."""

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
    assert int(points) > int(calls) // stride


def test_killed_around_every_rename_of_a_compaction(tmp_path):
    kill_everywhere(tmp_path, "compact", 1000)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compact", "prune", "relabel"])
def test_killed_at_a_third_of_all_system_calls(tmp_path, command):
    kill_everywhere(tmp_path, command, 3)
