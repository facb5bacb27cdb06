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


@pytest.mark.parametrize("command", ["compact", "compact-streams", "upgrade"])
def test_killed_around_every_rename(tmp_path, command):
    kill_everywhere(tmp_path, command, 1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "compact",
        "prune",
        "relabel",
        "compact-streams",
        "prune-streams",
        "relabel-streams",
        "upgrade",
    ],
)
def test_killed_at_a_third_of_all_system_calls(tmp_path, command):
    kill_everywhere(tmp_path, command, 3)
