"""Real processes: the installed commands, run as a person would."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

QUICK_WORLD = (
    "--set=collect.scenario.networks=2",
    "--set=collect.scenario.route_length_m=60",
    "--set=collect.scenario.npcs=2",
)
"""A road world that is built in a moment and driven in a few seconds."""

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def command(*words):
    return [sys.executable, "-m", "avtd3.cli", *map(str, words)]


def avtd3(*words, timeout=120):
    """Run a command to its end; returns (exit code, standard output, standard error)."""
    done = subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=ENVIRONMENT,
    )
    return done.returncode, done.stdout, done.stderr


def avtd3_json(*words, **kwargs):
    code, out, err = avtd3(*words, "--json", **kwargs)
    assert code == 0, f"{words} answered {code}: {err}"
    return json.loads(out)


class Running:
    """A command under way, with its standard error in a file."""

    def __init__(self, log, *words):
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen(
                command(*words), stdout=subprocess.DEVNULL, stderr=file, env=ENVIRONMENT
            )

    @property
    def is_alive(self):
        return self.process.poll() is None

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout=60):
        """Ask it to finish, as Ctrl-C does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@pytest.fixture
def start(tmp_path):
    """Start commands in the background; whatever is left of them is killed at the end."""
    crew = []

    def start_one(*words):
        crew.append(Running(tmp_path / f"{words[0]}.log", *words))
        return crew[-1]

    yield start_one
    for running in crew:
        if running.is_alive:
            running.kill()


def wait_until(predicate, what, *, running=(), deadline_s=90):
    """Ask until it is so; fails with the logs when it takes too long or a command has ended."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not predicate():
        for command_ in running:
            assert command_.is_alive, f"ended early: {command_.log.read_text()}"
        if time.monotonic() > end:
            logs = "\n".join(command_.log.read_text()[-2000:] for command_ in running)
            pytest.fail(f"waited {deadline_s} s in vain for {what}\n{logs}")
        pause.wait(0.2)
