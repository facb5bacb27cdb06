"""The names that ``avtd3.learn`` exports."""

import subprocess
import sys

import avtd3.learn


def test_the_exported_names_are_sorted_and_exist():
    assert avtd3.learn.__all__ == sorted(avtd3.learn.__all__)
    for name in avtd3.learn.__all__:
        assert getattr(avtd3.learn, name).__doc__
    assert set(avtd3.learn.__all__) <= set(dir(avtd3.learn))


def test_importing_loads_nothing_heavy_and_changes_nothing():
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "import avtd3.learn\n"
        "assert os.environ == before\n"
        "print([m for m in ('torch', 'numpy', 'zarr') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
