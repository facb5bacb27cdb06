import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
import avtd3.learn
assert "torch" not in sys.modules, "OpenMP has read its settings by then"
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({}, "5000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
)
def test_threads_leave_the_cores_to_collectors_unless_told_otherwise(settings, answer):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        env=inherited | settings,
    )
    assert done.stdout.split() == [answer]
