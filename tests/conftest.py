"""Settings of all tests: one thread for torch, so that the tests share the cores."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is loaded
    os.environ.setdefault(name, "1")
