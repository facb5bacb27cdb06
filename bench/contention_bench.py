"""Measure updates per second beside other work, with one, two and automatic threads.

    python bench/contention_bench.py [--seconds 12] [--repeats 3] [--batch 64] [--json]

The cases are an idle machine, one and two busy processes, and a collector with two workers. In each
case, three learners take turns: ``learn.threads`` is 1, as many as there are cores, and ``auto``. A
learner sleeps while another one has its turn. Medians over the repeats; the first turn in a case is
not counted, so that ``auto`` is measured after it has found its number. *share* is ``auto`` divided
by the best fixed number, and *idle* is ``auto`` divided by ``auto`` on the idle machine.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from replay_frames import open_frames

from avtd3.learn.threads import limit_spinning

FRAMES = 4_000
CASES = ("idle", "1 busy process", "2 busy processes", "collector, 2 workers")
AUTO = "auto"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    names = ("1", str(cores), AUTO) if cores > 1 else ("1", AUTO)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = open_frames("road", Path(folder), FRAMES, lambda _: None).path
        with learners(names, data, options.batch) as ends:
            for case in CASES:
                with load(case, Path(folder)):
                    results[case] = measure(ends, options.seconds, options.repeats)
    print(json.dumps(results, indent=2) if options.json else table(names, results))


@contextlib.contextmanager
def learners(names: tuple[str, ...], data: Path, batch: int) -> Iterator[dict[str, Connection]]:
    """Start a learner for each number of threads."""
    limit_spinning()  # before torch is loaded in the processes
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    for name in names:
        ends[name], theirs = context.Pipe()
        arguments = (name, data, batch, theirs)
        processes.append(context.Process(target=serve, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()  # so that the end of the process ends a `recv`
        ends[name].recv()
    try:
        yield ends
    finally:
        for end in ends.values():
            end.send(0.0)
        for process in processes:
            process.join()


def serve(name: str, data: Path, batch: int, end: Connection) -> None:
    """Run the process of a learner: update for the requested seconds, and send updates/s."""
    from avtd3.learn.callbacks import CallbackList
    from avtd3.learn.config import LearnConfig
    from avtd3.learn.trainer import Trainer, cpu_threads, open_run
    from avtd3.store.dataset import Dataset
    from avtd3.store.replay.config import ReplayConfig

    threads: int | str = name if name == AUTO else int(name)
    replay = ReplayConfig(batch_size=batch, mode="cache", n_step=10)
    config = LearnConfig(device="cpu", threads=threads, replay=replay)
    with contextlib.ExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        stack.enter_context(cpu_threads(threads))
        stack.enter_context(open_run(run, run / "policies", {}, resume=False))
        notify = CallbackList([], target=config.updates)
        dataset = Dataset.open(data)
        with Trainer(dataset.spec, config, run, run / "policies", notify) as trainer:
            trainer.restore()
            trainer.open_source([dataset])
            end.send("ready")
            while seconds := end.recv():
                begin_s, before = time.monotonic(), trainer.updates
                while time.monotonic() - begin_s < seconds:
                    trainer.step()
                end.send((trainer.updates - before) / (time.monotonic() - begin_s))


@contextlib.contextmanager
def load(case: str, folder: Path) -> Iterator[None]:
    """Run the other work of a case."""
    commands: list[list[str]] = []
    if "busy" in case:
        commands = [[sys.executable, "-c", "while True: pass"]] * int(case[0])
    elif "collector" in case:
        collect = [sys.executable, "-m", "avtd3.cli", "collect", str(folder / "collected")]
        commands = [[*collect, "--workers", "2", "--seconds", "100000", "--config", "demo"]]
    quiet = subprocess.DEVNULL
    processes = [subprocess.Popen(each, stdout=quiet, stderr=quiet) for each in commands]
    try:
        time.sleep(3.0 if processes else 0.0)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
            process.wait()


def measure(ends: dict[str, Connection], seconds: float, repeats: int) -> dict[str, float]:
    """Return the median updates per second of each learner."""
    found: dict[str, list[float]] = {name: [] for name in ends}
    for repeat in range(repeats + 1):  # the first one is a warm-up
        for name, end in ends.items():
            end.send(seconds)
            rate: float = end.recv()
            if repeat:
                found[name].append(rate)
    return {name: statistics.median(each) for name, each in found.items()}


def table(names: tuple[str, ...], results: dict[str, dict[str, float]]) -> str:
    lines = [
        f"| updates/s | {' | '.join(f'threads {name}' for name in names)} | share | idle |",
        "| --- |" + " ---: |" * (len(names) + 2),
    ]
    idle = results["idle"][AUTO]
    for case, rates in results.items():
        best = max(rate for name, rate in rates.items() if name != AUTO)
        cells = [f"{rates[name]:.1f}" for name in names]
        cells += [f"{rates[AUTO] / best:.2f}", f"{rates[AUTO] / idle:.2f}"]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
