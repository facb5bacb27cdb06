"""Tests that the real client must not crash: each runs in a pytest of its own."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHIN_S = 180
_INSIDE = "AVTD3_TEST_IN_OWN_PROCESS"


def own_process(test):
    """Run a test in a process of its own, which may crash or block; fixtures are made in both."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        if os.environ.get(_INSIDE):
            return test(*args, **kwargs)
        node = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        done = subprocess.run(
            [sys.executable, "-m", "avtd3.tests.carla.own_process", node],
            cwd=ROOT,
            # Other plugins take a second to load; this one makes sense of the project's settings.
            env=os.environ | {_INSIDE: "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, f"ended with {done.returncode}: {done.stdout}{done.stderr}"
        return None

    return run


if __name__ == "__main__":
    code = pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-p", "pytest_timeout", sys.argv[1]])
    sys.stdout.flush()
    sys.stderr.flush()
    # The client may abort while the interpreter ends, and by then the test is over.
    os._exit(code)
