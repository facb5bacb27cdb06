"""What the tests of faults share: the command line in this process, and a clock to move."""

import json
import time

import pytest

from avtd3.cli import main


@pytest.fixture
def avtd3(capsys):
    """Run a command; returns its exit code and what it printed, as text or as a document."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        text, errors = capsys.readouterr()
        code = ended.value.code or 0
        return code, json.loads(text) if "--json" in arguments and text else text + errors

    return run


@pytest.fixture
def wait(monkeypatch):
    """Move the monotonic clock on by so many seconds; nothing sleeps."""
    real, late = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + late[0])

    def pass_by(seconds):
        late[0] += seconds

    return pass_by
