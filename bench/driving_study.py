"""How well the presets learn to drive: offline from stored data, and online from an offline start.

    python bench/driving_study.py [--out docs] [--work driving-study] [--seeds 3] [--jobs 1]

For each of `full_state` and `vision_only`: collect once, then learn with several seeds and drive
the held-out roads with the last policy. *online* begins as `full_state` does, but after `START`
updates a collector drives with the newest policy and noise, and the learner continues with the old
data and the new, one update for ten steps; it imitates the old data alone. Everything is done by
the commands of ``avtd3``, which are printed. What is already in the work directory is not done
again, so an interrupted study continues. It writes ``driving-study.md`` with the table and
``driving-study.png``.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtd3.learn.policy import read_header

PRESETS = ("full_state", "vision_only")
ONLINE = "online"
STEPS = 200_000
"""Steps to learn from offline."""
START = 1_000
"""Updates after which the online runs leave their offline ones: a policy that has much to learn."""
RATIO = 0.1
"""Updates per step online."""
ONLINE_UPDATES = 3_000
"""Updates in all, those before the start included; the rates fall from the start on."""
PUBLISH_EVERY = 100
"""Updates after which the collector gets another policy."""
DRIVEN_EVERY = 1_000
"""Updates after which the held-out roads are driven, for the curves; the start is among them."""
LEAD = 6_000
"""Steps that the collector may be ahead: two open segments and a policy's time."""
EXPLORE = "policy+gaussian=0.1"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One run of the study."""

    name: str
    seed: int

    def run(self, work: Path) -> Path:
        """Its directory."""
        return work / f"{self.name}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("driving-study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", default=",".join((*PRESETS, ONLINE)), help="with commas")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    names = options.only.split(",")
    ways = [Way(name=name, seed=seed) for seed in range(options.seeds) for name in names]
    for name in names:
        collect(preset(name), options.work)
    for online in (False, True):  # these begin where the others were
        mine = [way for way in ways if (way.name == ONLINE) == online]
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda way: make(way, options.work), mine))
    found = {way: scores(way, options.work) for way in ways}
    text = table(found, options.seeds)
    (options.out / "driving-study.md").write_text(text)
    figure(found, options.out / "driving-study.png")
    print(text)


def preset(name: str) -> str:
    """The preset behind a way's name."""
    return "full_state" if name == ONLINE else name


def avtd3(*arguments: object) -> subprocess.Popen[str]:
    """Start the command, and say which."""
    words = [str(argument) for argument in arguments]
    print("avtd3 " + shlex.join(words), flush=True)
    command = [sys.executable, "-m", "avtd3.cli", *words, "--json"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    )


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the command's report."""
    text, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{shlex.join(process.args)} ended with {process.returncode}")  # type: ignore[arg-type]
    report: dict[str, Any] = json.loads(text)
    return report


def collect(name: str, work: Path) -> None:
    """Collect the preset's data, unless that was done."""
    if not (work / name).exists():
        answer(avtd3("collect", work / name, "--config", name, "--steps", STEPS))


def make(way: Way, work: Path) -> None:
    """Learn, and drive the held-out roads with each policy, unless that was done."""
    run, config = way.run(work), preset(way.name)
    done = run / "done"
    if not done.exists():
        if way.name == ONLINE:
            go_online(way, work)
        else:
            resume = ["--resume"] if (run / "config.json").exists() else []
            answer(avtd3("learn", work / config, "--run", run, *arguments(way), *resume))
        done.touch()
    for policy in shown(run):
        score = run / f"{policy.stem}.json"
        if not score.exists():
            found = answer(avtd3("evaluate", policy, "--config", config, "--workers", 1))
            found["updates"] = updates_of(policy)
            score.write_text(json.dumps(found))


def shown(run: Path) -> list[Path]:
    """The policies of a run that are driven: one each `DRIVEN_EVERY` updates, and the last."""
    policies = {updates_of(path): path for path in (run / "policies").glob("*.safetensors")}
    driven = {updates for updates in policies if updates and updates % DRIVEN_EVERY == 0}
    return [policies[updates] for updates in sorted(driven | {max(policies)})]


def arguments(way: Way) -> list[object]:
    """Settings that all learners of a method share."""
    return ["--config", preset(way.name), "--seed", way.seed]


def go_online(way: Way, work: Path) -> None:
    """Learn a little offline, then follow a collector that drives with what was learned."""
    run, offline, online = way.run(work), work / preset(way.name), work / f"steps-{way.seed}"
    for left_over in (run, online):  # the two halves belong together
        shutil.rmtree(left_over, ignore_errors=True)
    answer(avtd3("learn", offline, "--run", run, *arguments(way), "--updates", START))
    held = answer(avtd3("replay-inspect", offline))["steps"]
    follow: dict[str, float | str] = {
        "updates_per_step": RATIO,
        "learning_starts": round(held - START / RATIO),  # the old steps have had their updates
        "decay_from": START,
        "replay.imitate": "[policy=none]",
        "publish_every": PUBLISH_EVERY,
        "refresh_seconds": 0.5,
    }
    learner = avtd3(
        *("learn", offline, online, "--run", run, *arguments(way), *sets("learn", follow)),
        *("--updates", ONLINE_UPDATES, "--follow", "--resume"),
    )
    lead = {"updates_per_step": RATIO, "updates_before": START, "max_lead": LEAD}
    steps = round((ONLINE_UPDATES - START) / RATIO) + LEAD
    collector = avtd3(
        *("collect", online, "--config", preset(way.name), "--driver", EXPLORE, "--workers", 1),
        *("--policies", run / "policies", "--steps", steps, "--seed", 100 + way.seed),
        *sets("collect.lead", lead),
    )
    while collector.poll() is None and learner.poll() is None:
        time.sleep(1.0)
    if learner.poll():
        collector.terminate()  # it would wait for policies for ever
    answer(learner)
    answer(collector)


def sets(section: str, settings: Mapping[str, float | str]) -> list[str]:
    """The settings as the command line takes them."""
    return [
        word for name, value in settings.items() for word in ("--set", f"{section}.{name}={value}")
    ]


def updates_of(policy: Path) -> int:
    """Updates that the policy was trained for."""
    return read_header(policy.read_bytes(), policy).updates


def scores(way: Way, work: Path) -> list[dict[str, Any]]:
    """What the held-out roads said of each policy of a run, the earliest first."""
    found = [json.loads(path.read_text()) for path in way.run(work).glob("policy-*.json")]
    return sorted(found, key=lambda score: score["updates"])


def table(found: dict[Way, list[dict[str, Any]]], seeds: int) -> str:
    """Markdown: the last policy of each run; online, the one that it started from as well."""
    lines = [
        "# Driving",
        "",
        f"`python bench/driving_study.py --seeds {seeds}`: held-out roads driven without noise; in "
        "brackets the 95 % interval over the roads.",
        "",
        "| preset | seed | updates | success | return | collisions/km | departures/km |",
        "| --- | ---: | ---: | --- | --- | ---: | ---: |",
    ]
    for way, rows in sorted(found.items(), key=lambda item: (item[0].name, item[0].seed)):
        start = [row for row in rows if row["updates"] == START] if way.name == ONLINE else []
        lines += [line(way, row) for row in (*start, rows[-1])]
    return "\n".join([*lines, "", "![the runs](driving-study.png)", ""])


def line(way: Way, row: dict[str, Any]) -> str:
    """One policy's line of the table."""
    low, high = row["success_interval"]
    least, most = row["return_interval"]
    return (
        f"| {way.name} | {way.seed} | {row['updates']} "
        f"| {row['success_rate']:.0%} ({low:.0%} to {high:.0%}) "
        f"| {row['return_mean']:.1f} ({least:.1f} to {most:.1f}) "
        f"| {row['collisions_per_km']:.2f} | {row['lane_departures_per_km']:.2f} |"
    )


def figure(found: dict[Way, list[dict[str, Any]]], path: Path) -> None:
    """Success and return over the updates, with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors = ("#2f6fb7", "#c44e52", "#4f9a5b", "#8268a8", "#b8860b")
    names = sorted({way.name for way in found})
    drawing = Figure(figsize=(3.4 * len(names), 4.6), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(2, len(names), squeeze=False, sharex="col", sharey="row")
    for way, rows in found.items():
        column, color = names.index(way.name), colors[way.seed % len(colors)]
        updates = [row["updates"] for row in rows]
        for row, (mean, interval) in enumerate(
            (("success_rate", "success_interval"), ("return_mean", "return_interval"))
        ):
            panel = panels[row][column]
            means = [score[mean] for score in rows]
            reach = [[abs(score[interval][end] - score[mean]) for score in rows] for end in (0, 1)]
            at = [count + 40 * way.seed for count in updates]  # seeds side by side
            label = f"seed {way.seed}"
            panel.errorbar(at, means, reach, fmt="o-", color=color, ms=4, capsize=3, label=label)
            panel.set_xlim(0, max(*at, 1_000) + 200)
            panel.grid(alpha=0.3)
        panels[0][column].set_title(way.name, fontsize=10)
    panels[0][0].set_ylim(0.0, 1.02)
    panels[0][0].set_ylabel("success")
    panels[1][0].set_ylabel("return")
    panels[0][0].legend(fontsize=7)
    drawing.supxlabel("updates", fontsize=9)
    drawing.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
