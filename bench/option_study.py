"""Compare options of the learner on the same data, over several seeds, by driving held-out roads.

    python bench/option_study.py [--presets full_state,vision_only] [--options plain,bc,...]
        [--steps 200000] [--seeds 3] [--jobs 1] [--device cpu] [--out docs] [--work option-study]

Each preset's data are collected once. Each option is trained on them with each seed, and its last
policy drives the held-out roads of the preset. *plain* is the preset itself. The difference of an
option from *plain* has the 95 % interval of a t test over pairs of runs with the same seed. Runs
that have a score in ``--work`` are not repeated. It writes ``option-study.md``.
"""

import argparse
import concurrent.futures
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "bc": {"algorithm": "bc"},
    "critic norm": {"network.critic_norm": True},
    "rebrac": {"network.critic_norm": True, "td3.critic_bc_weight": 0.01},
    "shared encoder": {"network.shared_encoder": True},
    "huber": {"td3.critic_huber": 1.0},
    "lap": {
        "td3.critic_huber": 1.0,
        "replay.prioritised": True,
        "replay.priority.alpha": 0.4,
        "replay.priority.minimum": 1.0,
        "replay.priority.correct": False,
    },
    "shifts": {"image_shift": 4},
}
"""Settings of the section ``learn`` that differ from the preset, by name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", default="full_state,vision_only")
    parser.add_argument("--options", default=",".join(OPTIONS))
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--updates", type=int, help="other than those of the preset")
    parser.add_argument("--episodes", type=int, default=50, help="held-out roads")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--workers", type=int, default=2, help="processes of a command")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most-seconds", type=float, default=float("inf"), help="start no more")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("option-study"))
    options = parser.parse_args()
    presets, names = options.presets.split(","), options.options.split(",")
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    end_s = time.monotonic() + options.most_seconds
    for preset in presets:
        if not (options.work / preset).exists():
            size = ["--steps", options.steps, "--workers", options.workers]
            avtd3("collect", options.work / preset, "--config", preset, *size)

    def make(run: tuple[int, str, str]) -> None:
        if time.monotonic() < end_s:
            score(run, options)

    runs = [(seed, name, preset) for seed in range(options.seeds) for name in names
            for preset in presets]  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(make, runs))
    text = "\n".join(table(options.work, presets, names, options))
    (options.out / "option-study.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def avtd3(*words: object) -> dict[str, Any]:
    """Run a command and return its report."""
    command = ["-m", "avtd3.cli", *(str(word) for word in words), "--json"]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"avtd3 {shlex.join(command[2:])}: {result.returncode}\n{result.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def score_file(work: Path, seed: int, name: str, preset: str) -> Path:
    """Return the file with the score of a run."""
    return work / f"{preset}-{name.replace(' ', '-')}-{seed}.json"


def score(run: tuple[int, str, str], options: argparse.Namespace) -> None:
    """Train and drive, unless that has been done."""
    seed, name, preset = run
    path = score_file(options.work, seed, name, preset)
    if path.exists():
        return
    settings = {"device": options.device, **OPTIONS[name]}
    if options.updates:
        settings["updates"] = options.updates
    if options.device == "cuda":
        settings |= {"cuda_graphs": True, "device_frames": True}
    words = [word for key, value in settings.items() for word in ("--set", f"learn.{key}={value}")]
    folder = path.with_suffix("")
    learned = avtd3(
        *("learn", options.work / preset, "--run", folder, "--config", preset, "--seed", seed),
        *words,
    )
    roads = ["--episodes", options.episodes, "--workers", options.workers]
    driven = avtd3("evaluate", folder / "policies", "--config", preset, *roads)
    driven["updates_per_second"] = learned["updates_per_second"]
    path.write_text(json.dumps(driven))


def table(
    work: Path, presets: Sequence[str], names: Sequence[str], options: argparse.Namespace
) -> list[str]:
    """Return the lines of the report."""
    lines = [
        "# Options of the learner",
        "",
        f"`python bench/option_study.py --presets {','.join(presets)} --options "
        f"{shlex.quote(','.join(names))} --steps {options.steps} --episodes {options.episodes} "
        f"--seeds {options.seeds} --device {options.device}`",
        "",
        "| preset | option | success | mean | return | difference (95 %) | updates/s |",
        "| --- | --- | --- | ---: | ---: | --- | ---: |",
    ]
    for preset in presets:
        found = {
            name: {
                seed: json.loads(path.read_text())
                for seed in range(options.seeds)
                if (path := score_file(work, seed, name, preset)).exists()
            }
            for name in names
        }
        lines += [
            row(preset, name, runs, found.get("plain", {})) for name, runs in found.items() if runs
        ]
    return lines


def row(preset: str, name: str, runs: dict[int, Any], plain: dict[int, Any]) -> str:
    """Return the line of an option."""
    success = [run["success_rate"] for run in runs.values()]
    returns = statistics.mean(run["return_mean"] for run in runs.values())
    speed = statistics.mean(run["updates_per_second"] for run in runs.values())
    pairs = [
        runs[seed]["return_mean"] - plain[seed]["return_mean"] for seed in runs if seed in plain
    ]
    difference = "" if name == "plain" else interval(pairs)
    each = ", ".join(f"{100 * rate:.0f}" for rate in success)
    return (
        f"| {preset} | {name} | {each} % | {statistics.mean(success):.0%} | {returns:.1f} "
        f"| {difference} | {speed:.0f} |"
    )


def interval(values: Sequence[float]) -> str:
    """Return the mean of differences and its interval as text."""
    if len(values) < 2:
        return "too few runs"
    mean = statistics.mean(values)
    reach = statistics.stdev(values) / len(values) ** 0.5 * stats.t.ppf(0.975, len(values) - 1)
    return f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f})"


if __name__ == "__main__":
    main()
