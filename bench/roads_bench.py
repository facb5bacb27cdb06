"""Try every .xodr file below a directory: which are driven, refused, or end or block the process?

    python bench/roads_bench.py DIRECTORY [--seconds S] [--json]

Each file is tried in a process of its own: the built-in simulator prepares its roads, and the
expert drives one episode on a random route. The outcome is ``driven``, ``refused`` (one
`RoadError`), ``failed`` (any other exception), ``crashed`` (a signal ended the process) or ``hung``
(it was still running after the time limit). The exit code is 1 if anything failed, crashed or hung.
"""

import argparse
import collections
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUTCOMES = ("driven", "refused", "failed", "crashed", "hung")


def drive(path: str) -> dict[str, Any]:
    """Drive one episode on the roads of a file."""
    import numpy as np

    from avtd3.collect.driving.driving_env import DrivingEnvironment
    from avtd3.collect.driving.expert import ExpertConfig
    from avtd3.collect.driving.task import TaskConfig
    from avtd3.collect.maps.scenarios import scenario
    from avtd3.collect.sim.world import RoadWorld
    from avtd3.store.errors import RoadError

    setting = scenario(0, town=path, npcs=5)
    environment = DrivingEnvironment(RoadWorld(), TaskConfig(), (setting,), ExpertConfig())
    driver = environment.driver("expert")
    try:
        observation = environment.reset(2).observation
    except RoadError as error:
        return {"outcome": "refused", "text": str(error)}
    driver.reset(np.random.default_rng(0))
    while True:
        step = environment.step(driver.act(observation))
        observation = step.observation
        if step.terminated or step.truncated:
            length = round(environment.task.route.length_m)
            return {"outcome": "driven", "text": f"{step.end_reason} on {length} m"}


def attempt(path: Path, limit_s: float) -> dict[str, Any]:
    """Drive on the roads of a file in a process of its own."""
    started_s = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        row = {"outcome": "hung", "text": f"after {limit_s:g} s"}
    else:
        lines = done.stdout.splitlines() or [""]
        if done.returncode < 0:
            row = {"outcome": "crashed", "text": signal.Signals(-done.returncode).name}
        elif done.returncode:
            row = {"outcome": "failed", "text": (done.stderr.splitlines() or [""])[-1]}
        else:
            row = json.loads(lines[-1])
    return {"file": str(path), **row, "seconds": round(time.monotonic() - started_s, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit of each file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(drive(str(options.directory))))
        return 0
    counts: collections.Counter[str] = collections.Counter()
    rows = []
    for path in sorted(options.directory.rglob("*.xodr")):
        row = attempt(path, options.seconds)
        counts[row["outcome"]] += 1
        rows.append(row)
        if not options.json:
            print(f"{row['outcome']:8} {row['seconds']:6.1f} s  {path}  {row['text']}", flush=True)
    if options.json:
        print(json.dumps({"counts": counts, "rows": rows}, indent=2))
    else:
        total = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
        print(f"{len(rows)} files: {total}")
    return int(any(counts[outcome] for outcome in ("failed", "crashed", "hung")))


if __name__ == "__main__":
    sys.exit(main())
