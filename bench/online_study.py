"""Does driving with the policy help where data are few? Offline and online learning, compared.

    python bench/online_study.py [--seeds 3] [--preset full_state] [--side 48] [--episodes 50]
        [--set learn.network.shared_encoder=true ...] [--steps 20000] [--own-steps 30000]
        [--start 1500] [--updates 4000] [--name online] [--work online-study] [--out docs]
        [--online-set learn.replay.imitate=[end=goal] ...]

For each seed: collect ``--steps``, learn ``--start`` updates with rates that fall over the second
half. From there, the rates rise once more and fall until ``--updates``, in two ways: *offline* on
the same data alone, *online* with the data and ``--own-steps`` that a collector drives meanwhile
with the newest policy and noise. The online learner imitates the old data alone, unless
``--online-set`` says otherwise. The policies drive held-out roads. Work that is done is not
repeated; ``--name`` gives the online half with other settings a place of its own. It writes
``online-study.md``.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from driving_study import EXPLORE, PUBLISH_EVERY, answer, avtd3, sets, updates_of

LEAD = 6_000
"""Steps that the collector may be ahead: two open segments and a policy's time."""
DRIVEN_EVERY = 1_500
"""Updates after which an offline policy drives the held-out roads, to find the best one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3", help="with commas")
    parser.add_argument("--preset", default="full_state")
    parser.add_argument("--side", type=int, default=48, help="rows and columns of a frame")
    parser.add_argument("--episodes", type=int, default=50, help="held-out roads")
    parser.add_argument(
        "--set", action="append", default=[], help="further settings of the learner"
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--own-steps", type=int, default=30_000)
    parser.add_argument("--start", type=int, default=1_500)
    parser.add_argument("--updates", type=int, default=4_000)
    parser.add_argument("--explore", default=EXPLORE, help="driver of the own steps")
    parser.add_argument("--name", default="online", help="another name for other settings online")
    parser.add_argument("--online-set", action="append", default=[], help="settings online alone")
    parser.add_argument("--work", type=Path, default=Path("online-study"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in (int(text) for text in options.seeds.split(",")):
        study = Study(options, seed)
        study.make()
        rows += study.rows()
    (options.out / "online-study.md").write_text("\n".join([*head(options), *rows, ""]))
    print("\n".join([*head(options), *rows]))


class Study:
    """The runs of one seed."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.seed = seed
        self.data = options.work / f"data-{seed}"
        self.offline = options.work / f"offline-{seed}"
        self.begin = options.work / f"start-{seed}"
        self.online = options.work / f"{options.name}-{seed}"
        self.own = options.work / f"{options.name}-steps-{seed}"

    def make(self) -> None:
        """Collect, learn in both ways and drive, as far as that is not done."""
        options = self.options
        if not self.data.exists():
            size = ("--steps", options.steps, "--seed", self.seed)
            answer(
                avtd3("collect", self.data, *self.common("collect"), *size, *self.camera("collect"))
            )
        if not (self.begin / "done").exists():
            self.learn_start()
        if not (self.offline / "done").exists():
            self.learn_offline()
        if not (self.online / "done").exists():
            self.learn_online()
        for run in (self.offline, self.online):
            for policy in self.driven(run):
                self.drive(policy)

    def common(self, command: str) -> list[object]:
        """Words that all runs of a command share."""
        words: list[object] = ["--config", self.options.preset]
        return words if command == "learn" else [*words, "--workers", 1]

    def camera(self, section: str) -> list[str]:
        """The words that set the size of the frames."""
        side = self.options.side
        return sets(section, {"road.camera.height": side, "road.camera.width": side})

    def learn_start(self) -> None:
        """Learn until the start, which both ways share."""
        options, run = self.options, self.begin
        shutil.rmtree(run, ignore_errors=True)
        first = {"threads": 1, "decay_from": options.start // 2, "publish_every": PUBLISH_EVERY}
        given = [word for text in options.set for word in ("--set", text)]
        words = (*self.common("learn"), "--seed", self.seed, *sets("learn", first), *given)
        answer(avtd3("learn", self.data, "--run", run, *words, "--updates", options.start))
        (run / "done").touch()

    def copy(self, run: Path) -> None:
        """Begin a run as a copy of the start."""
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.begin, run, ignore=shutil.ignore_patterns("done"))

    def learn_offline(self) -> None:
        """Continue on the data alone."""
        self.copy(self.offline)
        words = (*self.second(), "--policies", self.offline / "policies", "--resume")
        answer(avtd3("learn", self.data, "--run", self.offline, *words))
        (self.offline / "done").touch()

    def second(self) -> list[object]:
        """Words of the second half, which both ways share."""
        options = self.options
        return ["--updates", options.updates, *sets("learn", {"decay_from": options.start})]

    def learn_online(self) -> None:
        """Continue the copy with the data and with the steps of a collector that follows it."""
        options = self.options
        shutil.rmtree(self.own, ignore_errors=True)
        self.copy(self.online)
        held = answer(avtd3("replay-inspect", self.data))["steps"]
        ratio = (options.updates - options.start) / options.own_steps
        follow: dict[str, float | str] = {
            "updates_per_step": ratio,
            # The old steps have had their updates.
            "learning_starts": round(held - options.start / ratio),
            "replay.imitate": "[policy=none]",
            "refresh_seconds": 0.5,
        }
        learner = avtd3(
            *("learn", self.data, self.own, "--run", self.online, *self.second()),
            *("--policies", self.online / "policies", *sets("learn", follow)),
            *(word for text in options.online_set for word in ("--set", text)),
            *("--follow", "--resume"),
        )
        lead = {"updates_per_step": ratio, "updates_before": options.start, "max_lead": LEAD}
        collector = avtd3(
            *("collect", self.own, *self.common("collect"), "--driver", options.explore),
            *("--policies", self.online / "policies", "--steps", options.own_steps),
            *("--seed", 100 + self.seed, *self.camera("collect"), *sets("collect.lead", lead)),
        )
        while collector.poll() is None and learner.poll() is None:
            time.sleep(1.0)
        if learner.poll():
            collector.terminate()  # it would wait for policies for ever
            sys.exit(f"the learner of seed {self.seed} ended with {learner.returncode}")
        answer(collector)
        answer(learner)
        (self.online / "done").touch()

    def driven(self, run: Path) -> list[Path]:
        """The policies that are driven: offline, one each `DRIVEN_EVERY` updates; else the last."""
        found = {updates_of(path): path for path in (run / "policies").glob("*.safetensors")}
        if run == self.online:
            return [found[max(found)]]
        shown = {u for u in found if u and u % DRIVEN_EVERY == 0} | {max(found)}
        return [found[updates] for updates in sorted(shown)]

    def drive(self, policy: Path) -> dict[str, Any]:
        """Drive the held-out roads, unless that was done; return the report."""
        path = policy.parent.parent / f"{policy.stem}.json"
        if not path.exists():
            words = (*self.common("evaluate"), "--episodes", self.options.episodes)
            found = answer(avtd3("evaluate", policy, *words, *self.camera("evaluate")))
            path.write_text(json.dumps(found))
        report: dict[str, Any] = json.loads(path.read_text())
        return report

    def rows(self) -> list[str]:
        """Lines of the table: the start, the best and the last offline, the last online."""
        offline = [(updates_of(path), self.drive(path)) for path in self.driven(self.offline)]
        best = max(offline, key=lambda one: one[1]["return_mean"])
        online = self.driven(self.online)[0]
        return [
            self.row("start", *offline[0]),
            self.row("offline, best", *best),
            self.row("offline, last", *offline[-1]),
            self.row(f"{self.options.name}, last", updates_of(online), self.drive(online)),
        ]

    def row(self, name: str, updates: int, report: dict[str, Any]) -> str:
        """One policy's line."""
        low, high = report["success_interval"]
        least, most = report["return_interval"]
        return (
            f"| {self.seed} | {name} | {updates} "
            f"| {report['success_rate']:.0%} ({low:.0%} to {high:.0%}) "
            f"| {report['return_mean']:.1f} ({least:.1f} to {most:.1f}) |"
        )


def head(options: argparse.Namespace) -> list[str]:
    """The first lines of the report."""
    given = " ".join(f"--set {text}" for text in options.set)
    given += "".join(f" --online-set {text}" for text in options.online_set)
    words = f"--preset {options.preset} --seeds {options.seeds} --side {options.side} {given}"
    return [
        "# Online and offline from few data",
        "",
        f"`python bench/online_study.py {words}`: {options.steps:,} steps of data, "
        f"{options.own_steps:,} own steps, {options.episodes} held-out roads.",
        "",
        "| seed | policy | updates | success | return |",
        "| ---: | --- | ---: | --- | --- |",
    ]


if __name__ == "__main__":
    main()
