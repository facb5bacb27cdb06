"""A short run of `bench/soak.py`: everything at once, while files fail and processes die."""

import subprocess
import sys
from pathlib import Path

import pytest

from avtd3.tests.faults.native_flaky import why_not
from avtd3.tests.store.remote.servers import find_program

SOAK = Path(__file__).parents[2] / "bench" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be compiled")
@pytest.mark.parametrize("mode", [[], ["--url"]])
def test_nothing_is_lost_or_doubled_in_a_short_soak(tmp_path, mode):
    if mode:
        pytest.importorskip("obstore")
        find_program("weed")
    words = [sys.executable, str(SOAK), "--minutes", "1", "--work", str(tmp_path / "soak"), *mode]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "problems: 0." in done.stdout
