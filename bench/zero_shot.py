"""How well a preset that learns on generated roads drives .xodr files that it never saw.

    python bench/zero_shot.py FILE.xodr ... [--preset varied_roads] [--work zero-shot] [--seeds 3]
        [--episodes 20] [--name weather --set evaluate.scenario.weather=bad]

Collect once with the preset, learn with several seeds, and drive every file with the last policy of
each seed and with the expert. Everything is done by the commands of ``avtd3``, which are printed.
What is already in the work directory is not done again. `--name` and `--set` evaluate once more,
with other settings. It prints a Markdown table of the share of routes on which the goal is reached.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

STEPS = 200_000


def avtd3(*arguments: object) -> str:
    """Run the command, and return what it prints."""
    words = [str(argument) for argument in arguments]
    print("avtd3 " + shlex.join(words), file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "avtd3.cli", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return done.stdout


def learn(options: argparse.Namespace) -> list[Path]:
    """Collect and learn what is missing; return the directories of policies."""
    data = options.work / "data"
    if options.seeds and not data.exists():
        avtd3("collect", data, "--config", options.preset, "--steps", STEPS)
    found = []
    for seed in range(options.seeds):
        run = options.work / f"run-{seed}"
        resume = ["--resume"] if (run / "config.json").exists() else []
        if not (run / "done").exists():
            avtd3("learn", data, "--config", options.preset, "--run", run, "--seed", seed, *resume)
            (run / "done").touch()
        found.append(run / "policies")
    return found


def score(options: argparse.Namespace, subject: object, name: str, file: Path) -> dict[str, Any]:
    """Return how a subject drives a file; drive it unless that was done."""
    path = options.work / f"{options.name}-{name}-{file.stem}.json"
    if not path.exists():
        settings = [word for setting in options.set for word in ("--set", setting)]
        route = ("--town", file, "--episodes", options.episodes, "--workers", 1)
        path.write_text(avtd3("evaluate", subject, "--config", options.preset, *route, *settings))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.xodr")
    parser.add_argument("--preset", default="varied_roads")
    parser.add_argument("--work", type=Path, default=Path("zero-shot"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--name", default="usual", help="name of the settings of `--set`")
    parser.add_argument("--set", action="append", default=[], help="a setting of the evaluation")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    subjects = {"expert": "expert", **{f"seed {n}": path for n, path in enumerate(learn(options))}}
    print("| roads |", " | ".join(subjects), "| mean of seeds | ends of the seeds |")
    print("| --- |", " | ".join("---:" for _ in subjects), "| ---: | --- |")
    for file in options.files:
        found = {name: score(options, subject, name, file) for name, subject in subjects.items()}
        rates = {name: report["success_rate"] for name, report in found.items()}
        learned = [rate for name, rate in rates.items() if name != "expert"]
        ends: dict[str, int] = {}
        for name, report in found.items():
            for reason, count in report["end_reasons"].items() if name != "expert" else ():
                ends[reason] = ends.get(reason, 0) + count
        shown = " | ".join(f"{rate:.0%}" for rate in rates.values())
        mean = f"{sum(learned) / len(learned):.0%}" if learned else ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(ends.items()))
        print(f"| {file.stem} | {shown} | {mean} | {reasons} |", flush=True)


if __name__ == "__main__":
    main()
