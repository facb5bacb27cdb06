"""Compare options of the learner, over seeds of data and learner, by driving held-out roads.

    python bench/option_study.py [--options plain,bc,...] [--preset full_state] [--side 48]
        [--steps 30000] [--updates 1500] [--episodes 20] [--seeds 3] [--out docs]
        [--set learn.network.shared_encoder=true ...] [--work option-study]

For each seed, data are collected once; each option is trained on them with that seed, with one
thread, and its last policy drives the held-out roads. *plain* is the preset itself, with learning
rates that fall over the last half. The difference of an option from *plain* has the 95 % interval
of a t test over pairs of runs with the same seed. The option *carl* is the preset with other
rewards for the same data (``avtd3 store relabel --weights carl``); compare it by the driving score
(0 to 100). Runs that have a score in ``--work`` are not repeated. It writes ``option-study.md``.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "bc": {"algorithm": "bc"},
    "critic norm": {"network.critic_norm": True},
    "shared encoder": {"network.shared_encoder": True},
    "statistics": {"network.vector_statistics": True},
    "shifts": {"image_shift": 4},
    "carl": {},
}
"""Settings of the section ``learn`` that differ from the preset, by name."""
REWARDS = {"carl": "carl"}
"""Weights that relabel the data before an option learns from them, by its name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="full_state")
    parser.add_argument("--options", default=",".join(OPTIONS))
    parser.add_argument("--side", type=int, default=48, help="rows and columns of a frame")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--updates", type=int, default=1_500)
    parser.add_argument("--episodes", type=int, default=20, help="held-out roads")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="settings of all learners")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("option-study"))
    options = parser.parse_args()
    names = options.options.split(",")
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [(name, seed) for seed in range(1, options.seeds + 1) for name in names]
    found = [score(name, seed, options) for name, seed in runs]
    scores = {
        name: {seed: one for (of, seed), one in zip(runs, found, strict=True) if of == name}
        for name in names
    }
    text = "\n".join(table(scores, options))
    (options.out / "option-study.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def camera(section: str, options: argparse.Namespace) -> list[str]:
    """Return the words that set the size of the frames."""
    sides = (f"{section}.road.camera.{name}={options.side}" for name in ("height", "width"))
    return [word for side in sides for word in ("--set", side)]


def avtd3(*words: object) -> dict[str, Any]:
    """Run a command and return its report."""
    command = ["-m", "avtd3.cli", *(str(word) for word in words), "--json"]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"avtd3 {shlex.join(command[2:])}: {result.returncode}\n{result.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def score(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and drive, unless that has been done; return the report."""
    run = options.work / f"{name.replace(' ', '-')}-{seed}"
    path = run.with_suffix(".json")
    if not path.exists():
        data = options.work / f"data-{seed}"
        if not data.exists():
            size = ["--steps", options.steps, "--seed", seed, *camera("collect", options)]
            avtd3("collect", data, "--config", options.preset, *size)
        if name in REWARDS:
            old, data = data, options.work / f"data-{seed}-{name}"
            avtd3("store", "relabel", old, data, "--weights", REWARDS[name])
        settings = {"threads": 1, "decay_from": options.updates // 2, **OPTIONS[name]}
        texts = [*options.set, *(f"learn.{key}={value}" for key, value in settings.items())]
        words = [word for text in texts for word in ("--set", text)]
        given = ["--config", options.preset, "--seed", seed, "--updates", options.updates, *words]
        learned = avtd3("learn", data, "--run", run, *given)
        roads = ["--config", options.preset, "--episodes", options.episodes]
        driven = avtd3("evaluate", run / "policies", *roads, *camera("evaluate", options))
        driven["updates_per_second"] = learned["updates_per_second"]
        path.write_text(json.dumps(driven))
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def table(scores: dict[str, dict[int, Any]], options: argparse.Namespace) -> list[str]:
    """Return the lines of the report."""
    given = {name: getattr(options, name) for name in ("side", "steps", "updates", "episodes")}
    words = " ".join(f"--{name} {value}" for name, value in given.items())
    words += "".join(f" --set {text}" for text in options.set)
    lines = [
        "# Options of the learner",
        "",
        f"`python bench/option_study.py --preset {options.preset} {words} --seeds {options.seeds}`",
        "",
        "| option | success | mean | return | difference (95 %) | driving score | updates/s |",
        "| --- | --- | ---: | ---: | --- | --- | ---: |",
    ]
    return lines + [row(name, runs, scores.get("plain", {})) for name, runs in scores.items()]


def row(name: str, runs: dict[int, Any], plain: dict[int, Any]) -> str:
    """Return the line of an option."""
    success = [run["success_rate"] for run in runs.values()]
    returns = statistics.mean(run["return_mean"] for run in runs.values())
    speed = statistics.mean(run["updates_per_second"] for run in runs.values())
    pairs = [
        runs[seed]["return_mean"] - plain[seed]["return_mean"] for seed in runs if seed in plain
    ]
    difference = "" if name == "plain" else interval(pairs)
    each = ", ".join(f"{100 * rate:.0f}" for rate in success)
    driving = [run["scores"]["driving_score"] for run in runs.values()]
    return (
        f"| {name} | {each} % | {statistics.mean(success):.0%} | {returns:.1f} "
        f"| {difference} | {', '.join(f'{one:.1f}' for one in driving)} | {speed:.0f} |"
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
