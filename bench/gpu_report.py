"""Report what avtd3 does on a GPU: correctness, speed, memory, and a short training run.

    python bench/gpu_report.py [--data DATASET] [--updates 6000] [--out DIR]

The report is Markdown on stdout, and ``report.md`` and ``report.json`` in ``--out``. It needs a GPU
and takes less than eight minutes. Nothing has to be installed beyond avtd3; the rows of
stable-baselines3 are missing if it is not installed. Without ``--data``, the script first collects
10 000 steps with the preset ``demo``, which takes one to two minutes of CPU time.

*Correctness*: the same updates with the same batches and noise, from the same weights, on the CPU
and on the GPU. The error after some updates is the norm of the difference between the weights,
divided by the norm of what the CPU changed. In float64 only the order of sums differs. In float32,
cuDNN may also use TF32 for convolutions, which is torch's default. Adam's first step has the same
size for every weight, so rounding that changes the sign of a tiny gradient counts in full.
"""

import argparse
import copy
import dataclasses
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avtd3.configs.load import load_section
from avtd3.learn.batch import Batch, DeviceFrameCache, to_batch
from avtd3.learn.callbacks import CallbackList
from avtd3.learn.config import LearnConfig
from avtd3.learn.device import make_updater, map_tensors
from avtd3.learn.td3 import TD3Config, TD3State, create_state, state_of, update
from avtd3.learn.trainer import Trainer, train
from avtd3.store.dataset import Dataset
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.gather import Transitions
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import IMAGE, EpisodeSpec

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CHECKED_AT = (1, 10, 50)
"""Numbers of updates after which two devices are compared."""
LIMITS = {"float64": 1e-8, "float32": 0.2, "float32 without TF32": 1e-3}
"""Largest accepted error after the first update, by type."""
SMALL_BATCH = 32
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "bf16, graphs": {"precision": "bf16", "cuda_graphs": True},
    "bf16, graphs, frames on the GPU": {
        "precision": "bf16",
        "cuda_graphs": True,
        "device_frames": True,
    },
}
"""Settings of `LearnConfig` whose memory is measured, by name."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="dataset to use; default: collect one")
    parser.add_argument("--updates", type=int, default=6_000, help="updates of the training run")
    parser.add_argument("--batches", default="256,1024", help="batch sizes of the speed rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: this report needs a GPU that torch can use; found none", file=sys.stderr)
        return 3
    options.out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = options.data or collect(work / "data")
        with Sampler(
            [Dataset.open(data)], ReplayConfig(batch_size=SMALL_BATCH), seed=0, scratch=work
        ) as sampler:
            draws = [sampler.sample() for _ in range(max(CHECKED_AT))]
            draws = [copy.deepcopy(draw) for draw in draws]
        spec = Dataset.open(data).spec
        report: dict[str, Any] = {"machine": machine()}
        report["correctness"] = list(correctness(spec, draws))
        report["graphs"] = graphs(spec, draws)
        report["device_frames"] = device_frames(data, work)
        report["memory"] = [memory(name, data, work) for name in VARIANTS]
        report["speed"] = speed(data, options.batches, options.repeats)
        report["training"] = training(data, options.updates, options.out, work)
    report["seconds"] = time.monotonic() - began_s
    text = "\n".join(markdown(report))
    (options.out / "report.md").write_text(text + "\n", encoding="utf-8")
    (options.out / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(text)
    return 0 if all(check["ok"] for check in checks(report)) else 1


def collect(data: Path) -> Path:
    """Collect a small dataset with the preset ``demo``."""
    command = [sys.executable, "-m", "avtd3.cli", "collect", str(data), "--config", "demo"]
    subprocess.run([*command, "--steps", "10000"], check=True, stdout=subprocess.DEVNULL)
    return data


def machine() -> dict[str, Any]:
    """Return the names and versions of hardware and software."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_gb": properties.total_memory / 1e9,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
    }


def correctness(spec: EpisodeSpec, draws: list[Transitions]) -> Iterator[dict[str, Any]]:
    """Compare updates on the two devices, for TD3 and TD3+BC, in three types."""
    for name, config in (("TD3", TD3Config()), ("TD3+BC", TD3Config(bc_alpha=2.5))):
        for kind in LIMITS:
            dtype = torch.float64 if kind == "float64" else torch.float32
            torch.backends.cudnn.allow_tf32 = kind == "float32"
            first = create_state(spec, LearnConfig().network, config, CPU, seed=0)
            start = weights(first, dtype)
            ours = trajectory(first, draws, config, CPU, dtype)
            state = create_state(spec, LearnConfig().network, config, CPU, seed=0)
            theirs = trajectory(to_device(state, config), draws, config, GPU, dtype)
            errors = {
                count: float(torch.linalg.vector_norm(gpu - cpu))
                / float(torch.linalg.vector_norm(cpu - start))
                for count, cpu, gpu in zip(CHECKED_AT, ours, theirs, strict=True)
            }
            ok = errors[CHECKED_AT[0]] <= LIMITS[kind]
            yield {"algorithm": name, "type": kind, "errors": errors, "ok": ok}
    torch.backends.cudnn.allow_tf32 = True


def to_device(state: TD3State, config: TD3Config) -> TD3State:
    """Return a copy of a new state on the GPU."""
    return state_of(copy.deepcopy(state.actor).to(GPU), copy.deepcopy(state.critic).to(GPU), config)


def trajectory(
    state: TD3State,
    draws: list[Transitions],
    config: TD3Config,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Do one update for each draw; return the weights after the counts of `CHECKED_AT`."""
    for network in (state.actor, state.critic, state.actor_target, state.critic_target):
        network.to(dtype)
    generator = torch.Generator().manual_seed(0)
    found = []
    for count, draw in enumerate(draws, 1):
        noise = torch.randn(draw.action.shape, generator=generator, dtype=torch.float64)
        batch = map_tensors(lambda part: part.to(dtype), to_batch(draw, device, dtype))
        update(state, batch, noise.to(device, dtype), config)
        if count in CHECKED_AT:
            found.append(weights(state, dtype))
    return found


def weights(state: TD3State, dtype: torch.dtype) -> Tensor:
    """Return all weights of the actor and the critic as one vector on the CPU."""
    parts = [*state.actor.parameters(), *state.critic.parameters()]
    return torch.cat([part.detach().reshape(-1).cpu().to(dtype) for part in parts]).double()


def graphs(spec: EpisodeSpec, draws: list[Transitions]) -> dict[str, Any]:
    """Compare recorded updates with plain ones on the GPU."""
    config, vectors = TD3Config(), []
    for recorded in (False, True):
        state = create_state(spec, LearnConfig().network, config, GPU, seed=0)
        start = weights(state, torch.float32)
        work = make_updater(state, config, None, graphs=recorded)
        generator = torch.Generator().manual_seed(0)
        for draw in draws:
            noise = torch.randn(draw.action.shape, generator=generator).to(GPU)
            work(to_batch(draw, GPU, torch.float32), noise)
        torch.cuda.synchronize()
        vectors.append(weights(state, torch.float32))
    error = float(torch.linalg.vector_norm(vectors[1] - vectors[0]))
    error /= float(torch.linalg.vector_norm(vectors[0] - start))
    return {"updates": len(draws), "error": error, "ok": error <= 0.05}


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [*batch.observation.pixels, *batch.next_observation.pixels, batch.action]


def device_frames(data: Path, work: Path) -> dict[str, Any]:
    """Compare batches whose frames are gathered on the GPU with those of the host, to the byte."""
    config = ReplayConfig(batch_size=256, n_step=3)
    same: list[bool] = []
    dataset = Dataset.open(data)
    image = dataset.spec.image
    assert image is not None
    cache = DeviceFrameCache(IMAGE, image, GPU)
    with (
        Sampler([dataset], config, seed=0, scratch=work, gathers=False) as bare,
        Sampler([Dataset.open(data)], config, seed=0, scratch=work) as whole,
    ):
        for _ in range(20):
            left, right = bare.sample(), whole.sample()
            stacks = cache.stacks(bare, left.frame_rows)
            ours = to_batch(left, GPU, torch.float32, None, [stacks])
            theirs = to_batch(right, GPU, torch.float32)
            pairs = zip(_tensors(ours), _tensors(theirs), strict=True)
            same += [torch.equal(one, other) for one, other in pairs]
    return {"batches": 20, "ok": all(same)}


def memory(name: str, data: Path, work: Path) -> dict[str, Any]:
    """Measure the peak of the GPU's memory over 20 updates of the training loop."""
    settings = VARIANTS[name]
    config = LearnConfig(device="cuda", log_every=10, **settings)
    run = work / f"memory-{list(VARIANTS).index(name)}"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run.mkdir(parents=True)
    dataset = Dataset.open(data)
    notify = CallbackList([], target=20)
    with Trainer(dataset.spec, config, run, run / "policies", notify) as trainer:
        trainer.restore()
        trainer.open_source([dataset])
        for _ in range(20):
            trainer.step()
        torch.cuda.synchronize()
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"variant": name, "peak_mb": peak / 1e6, "reserved_mb": reserved / 1e6}


def speed(data: Path, batches: str, repeats: int) -> dict[str, Any]:
    """Run `learn_bench.py` for each batch size; return seconds per update by rival."""
    found: dict[str, Any] = {}
    script = Path(__file__).with_name("learn_bench.py")
    skip = () if importlib.util.find_spec("stable_baselines3") else ("--skip-sb3",)
    for batch in batches.split(","):
        command = [sys.executable, str(script), "--device", "cuda", "--threads", "4", "--json"]
        command += ["--batch", batch, "--repeats", str(repeats), "--frames-of", str(data), *skip]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found[batch] = json.loads(result.stdout)[0]["seconds"]
    return found


def training(data: Path, updates: int, out: Path, work: Path) -> dict[str, Any]:
    """Train with the preset ``demo``, all GPU settings on; keep the policy in ``out``."""
    config = load_section("learn", "demo", [])
    changes = {"device": "cuda", "precision": "auto", "cuda_graphs": True, "device_frames": True}
    changes |= {"updates": updates, "publish_every": updates, "checkpoint_every": updates}
    changes |= {"decay_from": updates // 2}
    config = dataclasses.replace(config, **changes)
    report = train(config, datasets=data, run=work / "training", policies=out / "policies")
    return {
        "updates": report.updates,
        "seconds": report.seconds,
        "updates_per_second": report.updates_per_second,
        "halted": report.halted,
        "policies": str(out / "policies"),
        "ok": report.updates == updates and report.halted is None,
    }


def checks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a report that pass or fail."""
    return [*report["correctness"], report["graphs"], report["device_frames"], report["training"]]


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report."""
    m = report["machine"]
    yield f"{m['gpu']} ({m['gpu_gb']:.0f} GB), torch {m['torch']}, CUDA {m['cuda']}"
    yield from ("", f"| weights against the CPU after | {' | '.join(map(str, CHECKED_AT))} | |")
    yield "| --- |" + " ---: |" * len(CHECKED_AT) + " --- |"
    for row in report["correctness"]:
        cells = [f"{error:.1e}" for error in row["errors"].values()]
        yield f"| {row['algorithm']} {row['type']} | {' | '.join(cells)} | {verdict(row)} |"
    g, f = report["graphs"], report["device_frames"]
    yield from ("", f"Recorded updates against plain ones after {g['updates']} updates: ")
    yield f"{g['error']:.1e} ({verdict(g)}). Batches gathered on the GPU: {verdict(f)}."
    yield from ("", "| memory of the GPU | peak | reserved |", "| --- | ---: | ---: |")
    for row in report["memory"]:
        yield f"| {row['variant']} | {row['peak_mb']:.0f} MB | {row['reserved_mb']:.0f} MB |"
    for batch, seconds in report["speed"].items():
        yield from ("", f"| batch {batch} | ms per update | updates/s |", "| --- | ---: | ---: |")
        for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
            yield f"| {name} | {1e3 * value:.2f} | {1 / value:.0f} |"
    t = report["training"]
    yield from ("", f"Training, preset demo: {t['updates']} updates in {t['seconds']:.0f} s, ")
    yield f"{t['updates_per_second']:.0f} updates/s ({verdict(t)})."
    yield from ("", f"The report took {report['seconds']:.0f} s.")


def verdict(part: dict[str, Any]) -> str:
    return "ok" if part["ok"] else "FAILED"


if __name__ == "__main__":
    sys.exit(main())
