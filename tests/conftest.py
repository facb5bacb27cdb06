"""What all tests share: one thread for torch, and the command line in the process of a test."""

import os

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is loaded
    os.environ.setdefault(name, "1")


@pytest.fixture
def avtd3(capsys):
    """Run a command; returns its exit code, its standard output and its standard error."""
    from avtd3.cli import main

    def run(*argv):
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return run
