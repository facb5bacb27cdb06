"""Measure what several ranks cost: plain training, one rank and two ranks under ``torchrun``.

    python bench/ranks_bench.py [--updates 300] [--repeats 3] [--batch 64] [--json]

The cases take turns; two ranks have half the batch each, so that all cases do the same updates from
84x84 frames, with one thread per process. Medians over the repeats.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from replay_frames import open_frames

FRAMES = 2_000
LEARN = ("-m", "--", "avtd3.cli", "learn")
CASES = {
    "plain": (1, ("-m", "avtd3.cli", "learn")),
    "torchrun, 1 rank": (1, ("-m", "torch.distributed.run", "--nproc-per-node", "1", *LEARN)),
    "torchrun, 2 ranks": (2, ("-m", "torch.distributed.run", "--nproc-per-node", "2", *LEARN)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        data = open_frames("road", Path(folder), FRAMES, lambda _: None).path
        for repeat in range(options.repeats):
            for name in CASES:
                run = Path(folder) / f"run {name} {repeat}"
                found[name].append(measure(name, data, run, options.updates, options.batch))
    medians = {name: statistics.median(values) for name, values in found.items()}
    if options.json:
        print(json.dumps(medians, indent=2))
        return
    for name, speed in medians.items():
        share = speed / medians["plain"]
        print(f"{name:20} {speed:7.2f} updates/s  {1e3 / speed:7.1f} ms  {share:5.2f} of plain")


def measure(name: str, data: Path, run: Path, updates: int, batch: int) -> float:
    """Train a run; return its updates per second."""
    ranks, command = CASES[name]
    settings = {
        "device": "cpu",
        "precision": "fp32",
        "threads": "1",
        "updates": str(updates),
        "replay.batch_size": str(batch // ranks),
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"learn.{key}={value}")]
    words = (sys.executable, *command, str(data), "--run", str(run), "--json", *sets)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, check=True, text=True)
    return float(json.loads(done.stdout)["updates_per_second"])


if __name__ == "__main__":
    main()
