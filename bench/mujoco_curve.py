"""TD3 on Gymnasium's tasks through the store, beside the published curves: a table and a figure.

    python bench/mujoco_curve.py WORK --task HalfCheetah-v5:100000:10000 [--task ...] [--out docs]
        [--seed 0] [--minutes M] [--episodes 10]

A task is NAME:STEPS:RANDOM. For each one ``avtd3 collect`` and ``avtd3 learn --follow`` run as two
processes that share WORK/NAME-SEED and nothing else, with the preset mujoco_td3: RANDOM steps at
random, then one update per step. Then the policy of every 5000 steps drives without noise. A policy
of U updates stands at RANDOM + U steps; its data may be ahead by `max_lead` and an episode.

What was stopped, by Ctrl-C or after M minutes for each task, is evaluated as far as it came, and
the same command continues it; ``--minutes 0`` only evaluates. It writes ``mujoco-curve.md``
and ``mujoco-curve.png``. `td3_published.json` holds what the authors of the paper (Fujimoto et al.
2018) publish: ten episodes without noise every 5000 steps, ten seeds, MuJoCo's tasks of then
(-v1; ours are -v5), random for 10 000 steps in HalfCheetah and Ant and 1000 elsewhere.
"""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.configs.load import load_section
from avtd3.learn.policy import Policy
from avtd3.learn.run_settings import CONFIG_FILE
from avtd3.store.dataset import Dataset

PRESET = ("--config", "mujoco_td3")
PUBLISHED = json.loads(Path(__file__).with_name("td3_published.json").read_text())
EVERY = int(PUBLISHED["every_steps"])
"""Steps between two evaluations."""
LAST_WORDS_S = 120.0
"""Seconds that a stopped process gets to publish what is whole."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run."""

    name: str
    """The environment."""
    steps: int
    """Steps to collect, the random ones included."""
    random_steps: int
    """Steps that the random driver takes first, without updates."""
    seed: int
    """Seed of the collection and of the learner."""

    @classmethod
    def parse(cls, text: str, seed: int) -> Self:
        """From NAME:STEPS:RANDOM."""
        name, steps, random_steps = text.rsplit(":", 2)
        return cls(name=name, steps=int(steps), random_steps=int(random_steps), seed=seed)

    @property
    def directory(self) -> str:
        """Its place in the work directory."""
        return f"{self.name}-{self.seed}"

    @property
    def published(self) -> Mapping[str, Sequence[float]] | None:
        """The authors' curve, if there is one."""
        found: Mapping[str, Sequence[float]] | None = PUBLISHED["tasks"].get(
            self.name.rpartition("-v")[0]
        )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--task", action="append", required=True, metavar="NAME:STEPS:RANDOM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for each task")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of each evaluation")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    curves = {}
    for text in options.task:
        task = Task.parse(text, options.seed)
        if options.minutes > 0:
            run(task, options.work / task.directory, options.minutes)
        curves[task] = curve(task, options.work / task.directory, options.episodes)
    report = table(curves, options)
    (options.out / "mujoco-curve.md").write_text(report)
    figure(curves, options.out / "mujoco-curve.png")
    print(report)


def run(task: Task, place: Path, minutes: float) -> None:
    """Collect and learn until both are done, the time is over, or Ctrl-C."""
    place.mkdir(parents=True, exist_ok=True)
    data, policies = str(place / "data"), ("--policies", str(place / "policies"))
    common = (*PRESET, *policies, "--seed", str(task.seed))
    resume = ("--resume",) if (place / "run" / CONFIG_FILE).exists() else ()
    learner = (
        *("learn", data, *common, *resume, "--run", str(place / "run"), "--follow"),
        *("--updates", str(task.steps - task.random_steps)),
        *("--set", f"learn.learning_starts={task.random_steps}"),
    )
    collector = (
        *("collect", data, *common, "--resume", "--world", f"gym:{task.name}"),
        *("--steps", str(task.steps), "--random-steps", str(task.random_steps)),
    )
    processes = []
    for words in (collector, learner):
        with (place / f"{words[0]}.log").open("a") as log:
            command = [sys.executable, "-m", "avtd3.cli", *words]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    try:
        watch(processes, time.monotonic() + 60.0 * minutes, place)
    except KeyboardInterrupt:
        print("stopped; evaluating what there is", flush=True)
    finally:
        stop(processes)


def watch(processes: Sequence["subprocess.Popen[bytes]"], until_s: float, place: Path) -> None:
    """Wait for both; the end of one with an error is the end of both."""
    while time.monotonic() < until_s:
        codes = [process.poll() for process in processes]
        if any(codes):
            raise SystemExit(f"collector and learner ended with {codes}; see {place}/*.log")
        if None not in codes:
            return
        time.sleep(1.0)


def stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask those that are left to finish."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(LAST_WORDS_S)


def curve(task: Task, place: Path, episodes: int) -> dict[int, float]:
    """Return without noise by steps; what was evaluated before is not evaluated again."""
    config = load_section("evaluate", "mujoco_td3", [f"evaluate.episodes={episodes}"])
    assert isinstance(config, EvaluateConfig)
    config = dataclasses.replace(config, world=f"gym:{task.name}")
    known_at = place / f"curve-{episodes}.json"
    known: dict[str, float] = json.loads(known_at.read_text()) if known_at.exists() else {}
    for steps, policy in milestones(task, place).items():
        if str(steps) not in known:
            known[str(steps)] = evaluate(policy, config).document()["return_mean"]
            known_at.write_text(json.dumps(known))
            print(f"{task.name} after {steps} steps: {known[str(steps)]:.1f}", flush=True)
    return {int(steps): value for steps, value in sorted(known.items(), key=lambda x: int(x[0]))}


def milestones(task: Task, place: Path) -> dict[int, Path]:
    """The policy at each multiple of `EVERY` steps after the random ones."""
    spec = Dataset.open(place / "data").spec
    files = sorted((place / "policies").glob("policy-*.safetensors"))
    found: dict[int, Path] = {}
    for file in files:
        steps = task.random_steps + Policy.load(file, spec=spec).updates
        if steps > task.random_steps and steps % EVERY == 0:
            found[steps] = file
    return found


def table(curves: Mapping[Task, Mapping[int, float]], options: argparse.Namespace) -> str:
    """Markdown: ours beside the published at the same steps."""
    words = " ".join(f"--task {text}" for text in options.task)
    lines = [
        "# TD3 on Gymnasium's tasks",
        "",
        f"`python bench/mujoco_curve.py WORK {words} --seed {options.seed}`: the mean return of "
        f"{options.episodes} episodes without noise, one seed; published: mean and standard "
        "deviation of ten seeds, each with ten episodes.",
        "",
        "| task | steps | of these random | avtd3 | published |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task, points in curves.items():
        for steps, value in points.items():
            lines.append(
                f"| {task.name} | {steps:,} | {task.random_steps:,} | {value:.0f} | "
                f"{published(task, steps)} |"
            )
    return "\n".join([*lines, "", "![the curves](mujoco-curve.png)", ""])


def published(task: Task, steps: int) -> str:
    """What the authors had at these steps, for a table."""
    theirs, place = task.published, steps // EVERY
    if theirs is None or place >= len(theirs["mean"]):
        return "none"
    return f"{theirs['mean'][place]:.0f} ± {theirs['sd'][place]:.0f}"


def figure(curves: Mapping[Task, Mapping[int, float]], path: Path) -> None:
    """A panel for each task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(3.6 * len(curves), 2.8), layout="constrained")
    FigureCanvasAgg(drawing)
    panels: Any = drawing.subplots(1, len(curves), squeeze=False)[0]
    for panel, (task, points) in zip(panels, curves.items(), strict=True):
        panel.set_title(task.name, fontsize=9)
        panel.plot(list(points), list(points.values()), "o-", color="#c44e52", ms=4, label="avtd3")
        if task.published is not None:
            count = min(max(points, default=0) // EVERY + 2, len(task.published["mean"]))
            steps = [place * EVERY for place in range(count)]
            mean, spread = (task.published[key][:count] for key in ("mean", "sd"))
            low = [m - s for m, s in zip(mean, spread, strict=True)]
            high = [m + s for m, s in zip(mean, spread, strict=True)]
            panel.plot(steps, mean, color="#2f6fb7", lw=1.2, label="published, ten seeds")
            panel.fill_between(steps, low, high, color="#2f6fb7", alpha=0.2, lw=0)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=7)
    drawing.supxlabel("steps", fontsize=9)
    drawing.supylabel("return", fontsize=9)
    drawing.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
