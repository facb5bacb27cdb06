"""Run the real commands in processes of their own.

Nothing here waits for a fixed time: on a loaded machine a command may take many times as long as on
an idle one. Only a hang ends a test, through pytest's timeout, which is longer for these tests.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from avtd3.tests.pipeline.hosts import Hosts

HANG_S = 1200
"""Seconds after which a test of this directory counts as hung."""
QUICK_WORLD = (
    "--set=collect.scenario.networks=2",
    "--set=collect.scenario.route_length_m=60",
    "--set=collect.scenario.npcs=2",
)
"""Settings of the built-in simulator that take a few seconds."""

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def pytest_collection_modifyitems(items):
    for item in items:
        here = item.path.is_relative_to(Path(__file__).parent)
        if here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(HANG_S))


def command(*words, clock_s=0.0):
    """Return the words that run avtd3, on a machine whose clock is wrong by some seconds."""
    program = ["-m", "avtd3.cli"]
    if clock_s:
        wrong = f"import time; real = time.time; time.time = lambda: real() + {clock_s}"
        program = ["-c", f"{wrong}; from avtd3.cli import main; main()"]
    return [sys.executable, *program, *map(str, words)]


def avtd3(*words):
    """Run a command; return its exit code, standard output and standard error."""
    done = subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    return done.returncode, done.stdout, done.stderr


def avtd3_json(*words):
    code, out, err = avtd3(*words, "--json")
    assert code == 0, f"{words} exited with {code}: {out}{err}"
    return json.loads(out)


class Running:
    """A running command, with its standard error and its standard output in files."""

    def __init__(self, log, *words, before=(), env=ENVIRONMENT, clock_s=0.0):
        self.log, self.out = log, log.with_suffix(".out")
        with log.open("a") as file, self.out.open("w") as out:
            self.process = subprocess.Popen(
                [*before, *command(*words, clock_s=clock_s)], stdout=out, stderr=file, env=env
            )

    @property
    def is_alive(self):
        return self.process.poll() is None

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, number=signal.SIGTERM):
        """Ask it to finish, as Ctrl-C does; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait()


@pytest.fixture
def start(tmp_path):
    """Start commands in the background; at the end, kill those that run and print all logs."""
    started = []

    def start_one(*words, **options):
        started.append(Running(tmp_path / f"{words[0]}.log", *words, **options))
        return started[-1]

    yield start_one
    for running in started:
        if running.is_alive:
            running.kill()
        sys.stderr.write(running.log.read_text()[-2000:])


@pytest.fixture
def hosts():
    with Hosts("collector", "learner", "watcher") as hosts:
        yield hosts


def wait_until(predicate, what, *, running=()):
    """Wait until a condition holds; fail with its log when a command ends first."""
    pause = threading.Event()
    while not predicate():
        for command_ in running:
            # It may have made the condition true just before it ended.
            ended = not command_.is_alive and not predicate()
            assert not ended, f"ended without {what}: {command_.log.read_text()}"
        pause.wait(0.2)
