"""Compare training in bfloat16 with float32: the same data and seeds, and held-out roads.

    python bench/precision_study.py [--out docs] [--work precision-study] [--seeds 3] [--side 48]
        [--steps 60000] [--updates 1500]

Frames are small, so that the study takes less than an hour where bfloat16 is emulated. All other
settings are those of the preset `full_state`, with learning rates that fall over the last half.
Runs that are in the work directory already are not repeated, so an interrupted study can be
continued. The result is ``precision-study.md``.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.configs.load import load_section
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.config import LearnConfig
from avtd3.learn.trainer import train

PRECISIONS = ("fp32", "bf16")
PRESET = "full_state"
CURVES = {"critic/q1_mean": "Q1", "critic/loss": "critic loss", "actor/imitation": "imitation"}
LAST = 5
"""Log lines, the last ones, whose mean stands in the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("precision-study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=48, help="rows and columns of a frame")
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--updates", type=int, default=1_500)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.work / "data"
    if not data.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        collecting = section("collect", {"workers": 1, **camera(options)})
        assert isinstance(collecting, CollectConfig)
        collect(data, collecting, steps=options.steps)
    found: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    for seed in range(options.seeds):
        for precision, rows in found.items():
            rows.append(score(data, options.work / f"{precision}-{seed}", seed, precision, options))
            print(f"{precision}, seed {seed}: return {rows[-1]['return_mean']:.1f}", flush=True)
    text = table(found, options)
    (options.out / "precision-study.md").write_text(text)
    print(text)


def section(name: str, settings: dict[str, Any]) -> object:
    """A section of the preset, with some settings changed."""
    return load_section(name, PRESET, [f"{name}.{key}={value}" for key, value in settings.items()])


def camera(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the small camera."""
    return {"road.camera.height": options.side, "road.camera.width": options.side}


def score(
    data: Path, run: Path, seed: int, precision: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Learn and drive the held-out roads, unless that was done; the report and the curves' ends."""
    kept = run / "score.json"
    if not kept.exists():
        settings = {
            "precision": precision,
            "seed": seed,
            "updates": options.updates,
            "decay_from": options.updates // 2,
        }
        learning = section("learn", settings)
        assert isinstance(learning, LearnConfig)
        train(learning, datasets=[data], run=run, resume=run.exists())
        examining = section("evaluate", {"workers": 1, **camera(options)})
        assert isinstance(examining, EvaluateConfig)
        report = evaluate(run / "policies", examining).document()
        curves = read_log(run / "events").curves
        report["ends"] = {name: statistics.fmean(curves[name].values[-LAST:]) for name in CURVES}
        kept.write_text(json.dumps(report))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def table(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    """Markdown: a line for each run, and the means over the seeds with their standard errors."""
    command = f"--seeds {options.seeds} --side {options.side} --steps {options.steps}"
    lines = [
        "# bfloat16 beside float32",
        "",
        f"`python bench/precision_study.py {command} --updates {options.updates}`: held-out roads "
        "driven without noise, in brackets the 95 % interval over the roads; of the curves, the "
        f"mean of the last {LAST} log lines.",
        "",
        f"| precision | seed | success | return | {' | '.join(CURVES.values())} |",
        "| --- | ---: | ---: | --- |" + " ---: |" * len(CURVES),
    ]
    for precision, rows in found.items():
        for seed, row in enumerate(rows):
            low, high = row["return_interval"]
            ends = " | ".join(f"{row['ends'][name]:.3g}" for name in CURVES)
            lines.append(
                f"| {precision} | {seed} | {row['success_rate']:.0%} "
                f"| {row['return_mean']:.1f} ({low:.1f} to {high:.1f}) | {ends} |"
            )
    returns = {name: [row["return_mean"] for row in rows] for name, rows in found.items()}
    said = ", ".join(f"{name} {mean_and_error(values)}" for name, values in returns.items())
    return "\n".join([*lines, "", f"Mean return over the seeds ± its standard error: {said}.", ""])


def mean_and_error(values: Sequence[float]) -> str:
    """Mean and standard error, for the table."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.1f} ± {error:.1f}"


if __name__ == "__main__":
    main()
