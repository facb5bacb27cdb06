"""Compare both features of the actor's loss, with and without guards: a table and a figure.

    avtd3 collect DATASET --config demo --steps 30000
    python bench/wiring_study.py DATASET [--out docs] [--updates 600] [--seeds 3] [--episodes 10]

There are ten variants with several seeds each: the correct loss and the ablation `coupled`, each
without guards, with gradient clipping, with LayerNorm on the features, with weight decay on the
CNNs, and with all three. Each run trains TD3 without imitation on the same stored data, with
defaults for all other settings, and then drives held-out roads with the last policy. Runs that are
in the work directory already are not repeated, so an interrupted study can be continued. The
results are ``wiring-study.md`` with the table and ``wiring-study.png``.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from avtd3.collect.evaluator import EvaluateConfig, evaluate
from avtd3.configs.load import load_section
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.config import LearnConfig
from avtd3.learn.trainer import train

WIRINGS = {"coupled": "actor", "correct": "own"}
"""Name of each actor loss, and its value of `learn.td3.critic_features`."""
GUARDS = {
    "none": (False, False, False),
    "clipping": (True, False, False),
    "LayerNorm": (False, True, False),
    "weight decay": (False, False, True),
    "all three": (True, True, True),
}
"""Clipping, LayerNorm, weight decay."""
WATCHED = {
    "actor/loss": "actor loss",
    "actor_cnn/feature_norm": "actor feature norm",
    "critic/q1_mean": "Q1",
    "actor/saturation": "saturation",
    "actor_mlp/grad_norm_before": "actor MLP gradient",
}
LOG_EVERY = 20
LAST = 5
"""Log lines, the last ones, whose median stands in the table."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One run of the study."""

    wiring: str
    guard: str
    seed: int

    @property
    def name(self) -> str:
        """Its directory's name."""
        return f"{self.wiring}-{self.guard.replace(' ', '-').lower()}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("wiring-study"))
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=10, help="held-out roads for each run")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ways = [
        Way(wiring=wiring, guard=guard, seed=seed)
        for seed in range(options.seeds)
        for guard in GUARDS
        for wiring in WIRINGS
    ]
    for number, way in enumerate(ways):
        print(f"{number + 1} of {len(ways)}: {way.name}", flush=True)
        make(way, options)
    command = (
        f"python bench/wiring_study.py DATASET --updates {options.updates} --seeds {options.seeds} "
        f"--batch {options.batch} --episodes {options.episodes}"
    )
    text = table(ways, options.work, command)
    (options.out / "wiring-study.md").write_text(text)
    figure(ways, options.work, options.out / "wiring-study.png")
    print(text)


def settings(way: Way, options: argparse.Namespace) -> LearnConfig:
    """The run's settings: the defaults, but for its wiring and guards."""
    clip, norm, decay = GUARDS[way.guard]
    text = {
        "learn.td3.critic_features": WIRINGS[way.wiring],
        "learn.td3.clip.enabled": str(clip).lower(),
        "learn.network.feature_norm": str(norm).lower(),
        "learn.td3.cnn_weight_decay": "1e-4" if decay else "0",
        "learn.replay.batch_size": str(options.batch),
        "learn.updates": str(options.updates),
        "learn.seed": str(way.seed),
        "learn.threads": str(options.threads),
        "learn.log_every": str(LOG_EVERY),
        "learn.publish_every": str(options.updates),
        "learn.checkpoint_every": str(options.updates),
    }
    config = load_section("learn", None, [f"{key}={value}" for key, value in text.items()])
    assert isinstance(config, LearnConfig)
    return config


def make(way: Way, options: argparse.Namespace) -> None:
    """Learn, and drive held-out roads, unless that was done before."""
    run = options.work / way.name
    score = run / "score.json"
    if score.exists():
        return
    train(settings(way, options), datasets=[options.dataset], run=run, resume=run.exists())
    config = load_section("evaluate", "demo", [f"evaluate.episodes={options.episodes}"])
    assert isinstance(config, EvaluateConfig)
    report = evaluate(str(run / "policies"), config)
    score.write_text(json.dumps(report.document()))


def last(way: Way, work: Path, metric: str) -> float:
    """The metric at the run's end: the median of its last log lines."""
    return statistics.median(read_log(work / way.name / "events").curves[metric].values[-LAST:])


def held_out(way: Way, work: Path) -> float:
    """Mean return on the held-out roads."""
    found: float = json.loads((work / way.name / "score.json").read_text())["return_mean"]
    return found


def table(ways: Sequence[Way], work: Path, command: str) -> str:
    """Markdown: for each wiring and guard, the median over the seeds and the range."""
    heads = ["wiring", "guards", *WATCHED.values(), "return on held-out roads"]
    lines = [
        "# The wiring of the actor's loss",
        "",
        f"`{command}`: the end of each run, the median over the seeds and, in brackets, the "
        "smallest and the largest.",
        "",
        "| " + " | ".join(heads) + " |",
        "| --- | --- |" + " ---: |" * (len(WATCHED) + 1),
    ]
    for wiring in WIRINGS:
        for guard in GUARDS:
            mine = [way for way in ways if (way.wiring, way.guard) == (wiring, guard)]
            columns = [[last(way, work, metric) for way in mine] for metric in WATCHED]
            columns.append([held_out(way, work) for way in mine])
            cells = " | ".join(map(spread, columns))
            lines.append(f"| {wiring} | {guard} | {cells} |")
    return "\n".join([*lines, "", "![the runs](wiring-study.png)", ""])


def spread(values: Sequence[float]) -> str:
    """Median and range, for a table."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def figure(ways: Sequence[Way], work: Path, path: Path) -> None:
    """A panel for each metric and guard; every run is a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors = {"coupled": "#c44e52", "correct": "#2f6fb7"}
    size = (3.0 * len(GUARDS), 2.2 * len(WATCHED))
    drawing = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(len(WATCHED), len(GUARDS), squeeze=False, sharex=True, sharey="row")
    for way in ways:
        curves = read_log(work / way.name / "events").curves
        for row, metric in enumerate(WATCHED):
            panel = panels[row][list(GUARDS).index(way.guard)]
            curve = curves[metric]
            label = way.wiring if way.seed == 0 else None
            panel.plot(curve.updates, curve.values, color=colors[way.wiring], lw=1.1, label=label)
            panel.set_yscale("symlog", linthresh=1e-3 if "grad" in metric else 1.0)
            panel.grid(alpha=0.3)
            panel.tick_params(labelsize=7)
    for column, guard in enumerate(GUARDS):
        panels[0][column].set_title(guard, fontsize=9)
    for row, title in enumerate(WATCHED.values()):
        panels[row][0].set_ylabel(title, fontsize=8)
    panels[0][0].legend(fontsize=7)
    drawing.supxlabel("updates", fontsize=9)
    drawing.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
