"""Measure what several ranks cost: plain training, one rank and two ranks under ``torchrun``.

    python bench/ranks_bench.py [--updates 60] [--repeats 3] [--batch 64] [--json]

The cases take turns; two ranks have half the batch each, so that all cases do the same updates from
84x84 frames, with one thread per process. *CPU* is the CPU time of an update, of all ranks
together; *wall* is its wall-clock time, which needs an idle core for each rank. Medians over the
repeats, without the first updates and the start of the processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from replay_frames import open_frames

FRAMES = 1_000
SKIPPED = 5
"""Updates that are not measured."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
CASES = {
    "plain": (1, ()),
    "torchrun, 1 rank": (1, (*TORCHRUN, "1", "--")),
    "torchrun, 2 ranks": (2, (*TORCHRUN, "2", "--")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--train", nargs=2, metavar=("DATA", "RUN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        data, run = map(Path, options.train)
        train_run(data, run, options.updates, options.batch)
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        data = open_frames("road", Path(folder), FRAMES, lambda _: None).path
        for repeat in range(options.repeats):
            for name in CASES:
                run = Path(folder) / f"run {name} {repeat}"
                found[name].append(measure(name, data, run, options.updates, options.batch))
    medians = {
        name: [1e3 * statistics.median(column) for column in zip(*values, strict=True)]
        for name, values in found.items()
    }
    if options.json:
        print(json.dumps(medians, indent=2))
        return
    print(f"{'ms per update':20} {'CPU':>8} {'wall':>8}")
    for name, (cpu_ms, wall_ms) in medians.items():
        print(f"{name:20} {cpu_ms:8.1f} {wall_ms:8.1f}")


def measure(name: str, data: Path, run: Path, updates: int, batch: int) -> tuple[float, float]:
    """Train a run in processes of its own; return the CPU and wall-clock seconds of an update."""
    ranks, launcher = CASES[name]
    words = ["--train", str(data), str(run), "--updates", str(updates)]
    words += ["--batch", str(batch // ranks)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run((sys.executable, *launcher, __file__, *words), env=env, check=True)
    times = [json.loads(path.read_text()) for path in run.glob("times-*.json")]
    assert len(times) == ranks
    return sum(each["cpu_s"] for each in times), statistics.mean(each["wall_s"] for each in times)


def train_run(data: Path, run: Path, updates: int, batch: int) -> None:
    """Train a run in this process, and write the times of its updates into a file."""
    from avtd3.learn import LearnConfig, TrainCallback, train
    from avtd3.store import ReplayConfig

    class Clock(TrainCallback):
        """Reads the clocks before each update, which ranks other than 0 also report."""

        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []

        def should_stop(self) -> bool:
            self.times.append((time.process_time(), time.perf_counter()))
            return False

    clock, replay = Clock(), ReplayConfig(batch_size=batch)
    config = LearnConfig(updates=updates, device="cpu", precision="fp32", threads=1, replay=replay)
    train(config, datasets=data, run=run, callbacks=[clock])
    measured = clock.times[SKIPPED:]
    count = len(measured) - 1
    cpu_s, wall_s = ((measured[-1][i] - measured[0][i]) / count for i in (0, 1))
    path = run / f"times-{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s}))


if __name__ == "__main__":
    main()
