"""TD3 from a dataset: networks, updates, checkpoints, published policies."""

import os

# OpenMP reads it when torch is loaded. By default a thread that has finished its part spins for
# some 17 ms before it sleeps: beside a collector that wants the same cores, an update of 64 images
# takes 500 to 1400 ms on two cores. Spinning for 0.3 ms: 120 to 240 ms there, 121 instead of 114 ms
# alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
