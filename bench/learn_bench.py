"""Measure updates per second of avtd3, stable-baselines3 and plain PyTorch, and their limit.

    python bench/learn_bench.py [--device cpu] [--threads 1,2] [--batch 256] [--repeats 5] [--json]

Each rival runs in its own process and does two updates per turn (one of them updates the actor).
The rivals take turns, and the table shows medians over the repeats: of CPU time with one thread, of
wall-clock time with more. *loop* is everything that ``avtd3 learn`` does: it samples from the
replay cache, updates, reads the metrics back and logs them, here after every second update on the
CPU instead of every hundredth. *floor* is the floating-point work of an update at the speed of a
matrix product of 2048 x 2048, measured in the same turns. *kernels* are the convolutions and matrix
products of an update alone, as torch calls them: forward and both gradients, in the same shapes and
memory format. All rivals use Nature CNNs on four frames of 84x84; avtd3 and plain PyTorch also read
a vector of 23 numbers.

With ``--device cuda`` the rivals are SB3 on that GPU and the loop of avtd3: plain, with recorded
updates (*graphs*, `learn.cuda_graphs`), and also with the replay's frames on the GPU (*frames*,
`learn.device_frames`).
"""

import argparse
import itertools
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from learn_rivals import Plain, stable_baselines3
from replay_frames import open_frames
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from avtd3.learn.batch import Batch, to_batch
from avtd3.learn.callbacks import CallbackList
from avtd3.learn.config import LearnConfig
from avtd3.learn.device import keep_freed_memory
from avtd3.learn.td3 import TD3State, create_state, update
from avtd3.learn.trainer import Trainer
from avtd3.store.dataset import Dataset
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler

CPU = torch.device("cpu")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FRAMES = 2_000
SIDE = 2048
KERNELS = {"convolution", "convolution_backward", "addmm", "mm"}
UPDATES = {"cpu": 2, "cuda": 100}
"""Updates per turn: a whole policy delay on the CPU, and as many as between two logs on a GPU."""
SB3 = "stable-baselines3 TD3 CnnPolicy"
ON_GPU = "bf16 graphs frames"
OURS = tuple(f"avtd3 {what} {name}" for name in TYPES for what in ("update", "loop"))
RIVALS = {
    "cpu": (
        SB3,
        "plain PyTorch",
        *OURS,
        *(f"{what} {name}" for name in TYPES for what in ("kernels", "floor")),
    ),
    "cuda": (
        SB3,
        *(f"avtd3 loop {name}" for name in ("fp32", "bf16", "bf16 graphs", ON_GPU)),
    ),
}

Turn = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=tuple(RIVALS), default="cpu")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, with commas")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="keep the frames in this directory")
    parser.add_argument("--frames-of", type=Path, help="use the frames of this dataset")
    parser.add_argument("--skip-sb3", action="store_true", help="skip stable-baselines3")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.frames_of
        if data is None:
            data = open_frames("road", options.data or Path(folder), FRAMES, lambda _: None).path
        results = [
            {"threads": threads, "seconds": measure(data, threads, options)}
            for threads in map(int, options.threads.split(","))
        ]
    print(json.dumps(results, indent=2) if options.json else "\n\n".join(map(table, results)))


def measure(data: Path, threads: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds per update of each rival."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes = []
    rivals = [name for name in RIVALS[options.device] if not (options.skip_sb3 and name == SB3)]
    for name in rivals:
        ends[name], theirs = context.Pipe()
        arguments = (name, data, threads, options.batch, options.device, theirs)
        processes.append(context.Process(target=serve, args=arguments, daemon=True))
        processes[-1].start()
        ends[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for repeat in range(options.repeats + 1):  # the first one is a warm-up
        for name, end in ends.items():
            end.send(UPDATES[options.device])
            taken: float = end.recv()
            if repeat:
                seconds[name].append(taken)
    for end in ends.values():
        end.send(0)
    for process in processes:
        process.join()
    return {name: statistics.median(each) for name, each in seconds.items()}


def serve(name: str, data: Path, threads: int, batch: int, device: str, end: Connection) -> None:
    """Run the process of a rival: do the requested updates, and send the seconds per update."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 and device == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.open(data)
        replay = ReplayConfig(batch_size=batch, mode="cache")
        scratch, gathers = Path(folder) / "scratch", name.split()[-1] != "frames"
        sampler = Sampler([dataset], replay, seed=0, scratch=scratch, gathers=gathers)
        turn = rival(name, dataset, sampler, replay, Path(folder) / "run", device)
        end.send("ready")
        while updates := end.recv():
            before_s = clock()
            for _ in range(updates):
                turn()
            if device == "cuda":
                torch.cuda.synchronize()
            end.send((clock() - before_s) / updates)
        sampler.close()


def rival(
    name: str, dataset: Dataset, sampler: Sampler, replay: ReplayConfig, run: Path, device: str
) -> Turn:
    """Return a function that does one update of a rival."""
    if name == SB3:
        return stable_baselines3(replay.batch_size, device)
    if name == "plain PyTorch":
        plain = Plain(dataset.spec.vector_size)
        return lambda: plain.update(sampler.sample())
    words = name.split()
    if words[0] == "floor":
        return floor(dataset, sampler, TYPES[words[1]])
    if words[0] == "kernels":
        return kernels(dataset, sampler, TYPES[words[1]])
    keep_freed_memory()
    precision = words[2]
    if words[1] == "loop":
        config = LearnConfig(
            device=device,
            precision=precision,
            cuda_graphs="graphs" in words,
            device_frames="frames" in words,
            replay=replay,
            log_every=UPDATES[device],
        )
        run.mkdir(parents=True)
        notify = CallbackList([], target=config.updates)
        trainer = Trainer(dataset.spec, config, run, run / "policies", notify)
        trainer.restore()
        trainer.open_source([dataset])
        return trainer.step
    state, draw = fresh(dataset), sampler.sample()
    return lambda: step(state, to_batch(draw, CPU, TYPES[precision]), TYPES[precision])


def floor(dataset: Dataset, sampler: Sampler, dtype: torch.dtype) -> Turn:
    """Return a function that does as much floating-point work as an update, in matrix products."""
    state, batch = fresh(dataset), to_batch(sampler.sample(), CPU, torch.float32)
    with FlopCounterMode(display=False) as counter:
        for _ in range(UPDATES["cpu"]):
            step(state, batch, torch.float32)
    products = counter.get_total_flops() / UPDATES["cpu"] / (2 * SIDE**3)
    left, right = torch.randn(2, SIDE, SIDE).to(dtype)
    result = torch.empty_like(left)
    owed = 0.0

    def turn() -> None:
        nonlocal owed
        owed += products
        for _ in range(int(owed)):
            torch.mm(left, right, out=result)
        owed -= int(owed)

    return turn


class Record(TorchDispatchMode):
    """Keep the convolutions and matrix products that run within a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Turn] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func.overloadpacket.__name__ in KERNELS:
            self.calls.append(lambda: func(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def kernels(dataset: Dataset, sampler: Sampler, dtype: torch.dtype) -> Turn:
    """Return a function that repeats the large kernels of an update on the same tensors."""
    state, batch = fresh(dataset), to_batch(sampler.sample(), CPU, dtype)
    found: list[list[Turn]] = []
    for _ in range(UPDATES["cpu"]):
        with Record() as record:
            step(state, batch, dtype)
        found.append(record.calls)
    turns = itertools.cycle(found)

    @torch.no_grad()
    def turn() -> None:
        for call in next(turns):
            call()

    return turn


def fresh(dataset: Dataset) -> TD3State:
    """Create networks and optimisers with the default settings."""
    config = LearnConfig()
    return create_state(dataset.spec, config.network, config.td3, CPU, seed=0)


def step(state: TD3State, batch: Batch, dtype: torch.dtype) -> None:
    """Do one update with new noise."""
    autocast = None if dtype is torch.float32 else dtype
    update(state, batch, torch.randn(batch.action.shape), LearnConfig().td3, autocast)


def table(result: dict[str, object]) -> str:
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    peer = seconds.get(SB3, math.nan)
    lines = [
        f"| threads: {result['threads']} | ms per update | updates/s | to SB3 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {1e3 * value:.0f} | {1 / value:.2f} | {peer / value:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
