"""Standard streams that are closed, full, or too narrow, and signals while a command starts."""

import json
import os
import signal
import subprocess

import pytest

from avtd3.tests.pipeline.conftest import ENVIRONMENT, command
from avtd3.tests.pipeline.test_bad_input import fill


@pytest.fixture
def dataset(tmp_path):
    """A dataset with a finding, in a directory whose name is neither ASCII nor harmless."""
    dataset = fill(tmp_path / "dütä\n\x1b[2J\udc80")
    (dataset.path / "segments" / "str\x1bay\nverdict: ok").mkdir()
    return dataset


def shell(redirection, *words, **options):
    """Run a command with a redirection, such as ``2>&-``."""
    line = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(*words)]
    return subprocess.run(
        line, capture_output=True, check=False, env=ENVIRONMENT | options, timeout=600
    )


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_change_no_answer(dataset, tmp_path, closed):
    page = tmp_path / "page.html"
    done = shell(closed, "replay-inspect", dataset.path, "--html", page)
    assert done.returncode == 1, done.stderr
    assert page.read_bytes().startswith(b"<!DOCTYPE html>")  # and nothing was printed into it
    assert (b"verdict" in done.stdout) == ("1>&-" not in closed)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
def test_any_encoding_can_print_any_name(dataset, encoding):
    done = shell("", "replay-inspect", dataset.path, PYTHONIOENCODING=encoding)
    assert done.returncode == 1, done.stderr
    text = done.stdout.decode(encoding.partition(":")[0])
    assert r"\n\x1b[2J\udc80" in text
    assert r"str\x1bay\nverdict: ok" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert not any(line.startswith("verdict: ok") for line in text.splitlines())


def test_a_reader_that_stops_early_changes_no_answer(dataset):
    reader, writer = os.pipe()
    os.close(reader)
    words = command("replay-inspect", dataset.path)
    done = subprocess.run(
        words, stdout=writer, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT
    )
    os.close(writer)
    assert done.returncode == 1
    assert b"Error" not in done.stderr


def test_an_answer_that_does_not_fit_is_an_error():
    done = shell("> /dev/full", "config", "show", "demo")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        b"avtd3: cannot write standard output: No space left on device"
    ]


def test_messages_that_do_not_fit_are_dropped():
    done = shell("2> /dev/full", "config", "show", "nowhere")
    assert done.returncode == 2


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_while_a_command_starts_ends_with_its_code(tmp_path, name):
    # An import that takes as long as the test likes.
    (tmp_path / "typer.py").write_text("print('importing', flush=True)\ninput()\n")
    started = subprocess.Popen(
        command("config", "show"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT | {"PYTHONPATH": str(tmp_path)},
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"importing\n"
    started.send_signal(signal.Signals[name])
    _, err = started.communicate()
    assert started.returncode == 128 + signal.Signals[name]
    assert not err


def test_json_of_hostile_names_is_one_document(dataset):
    done = shell("", "replay-inspect", dataset.path, "--json")
    path = json.loads(done.stdout)["datasets"][0]["path"]
    assert path == str(dataset.path).replace("\udc80", r"\udc80")  # no JSON has lone surrogates
