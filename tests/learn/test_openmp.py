import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
import avtd3.learn
before = dict(os.environ)
from avtd3.learn.threads import limit_spinning
assert os.environ == before, "importing changed the environment"
limit_spinning()
assert "torch" not in sys.modules, "OpenMP has read its settings by then"
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "5000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
)
def test_threads_leave_the_cores_to_collectors_unless_the_environment_says_otherwise(
    settings, expected
):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        env=inherited | settings,
    )
    assert done.stdout.split() == [expected]


def test_the_command_sets_it_before_torch_is_imported(tmp_path):
    code = (
        "import os, sys, builtins\n"
        "from avtd3.cli import main\n"
        "from avtd3.learn import threads\n"
        "real = threads.limit_spinning\n"
        "def checked():\n"
        "    assert 'torch' not in sys.modules\n"
        "    real()\n"
        "    print('called', file=sys.stderr)\n"
        "threads.limit_spinning = checked\n"
        "main(sys.argv[1:])\n"
    )
    for words in (("learn", "nowhere", "--run", "run"), ("demo", "--out", sys.executable)):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert "called" in done.stderr, done.stderr
        assert done.returncode == 2
