"""What all tests share: one thread for torch, the command line in the process, and a browser."""

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


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """The browser of all tests, a headless Chromium with one page."""
    from avtd3.tests.store.chromium import Chromium, find_chromium

    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    chromium = Chromium(executable, tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()
