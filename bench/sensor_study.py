"""Use what a drive stores: compare sensors, rounds of DAgger, and privileged critics.

    python bench/sensor_study.py sensors|critic|dagger [--seeds 1,2,3] [--steps N] [--updates N]
        [--episodes 50] [--set learn.td3.bc_alpha=0.5 ...] [--work sensor-study]

*sensors* collects ``--steps`` on all kinds of roads and as many in towns (preset
``vision_command``, with the full vector beside what the policy sees), draws the streams of
`STREAMS` from the stored states, and learns from each stream on the same drives. *critic* learns
from the gray stream of these drives with critics that see what the actor sees, and with critics
that see the full vector. *dagger* compares two rounds of DAgger (``--steps`` in all, half of
them in the rounds) with as many offline steps and as many updates (preset ``demo``, 48x48 frames).

Each run has one thread, and rates that fall over its second half. Its last policy drives the same
held-out roads. Work that is done is not repeated. The table is printed.
"""

import argparse
import json
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from option_study import avtd3, interval

STREAMS = {
    "gray": "kind=gray",
    "rgb": "kind=rgb",
    "bev": "kind=bev,height=64,width=64",
}
"""Streams by name: the recorded camera, the same in colour, and the view from above."""
POLICY_SEES = "[speed_mps,command_*]"
CRITICS: dict[str, dict[str, object]] = {
    "the same as the actor": {"shared_encoder": False},
    "the full vector as well": {"shared_encoder": False, "critic_inputs": "[]"},
}
"""What the critics see: settings of ``learn.network`` that differ from those of *sensors*."""
SMALL = {"road.camera.height": 48, "road.camera.width": 48}
DEFAULTS = {"sensors": (50_000, 3_000), "critic": (50_000, 3_000), "dagger": (40_000, 2_000)}
"""Steps and updates of each study."""
LABELS = {"replay.imitate_expert": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=sorted(DEFAULTS))
    parser.add_argument("--seeds", default="1,2,3", help="with commas")
    parser.add_argument("--steps", type=int, help="steps of a collection")
    parser.add_argument("--updates", type=int)
    parser.add_argument("--episodes", type=int, default=50, help="held-out roads")
    parser.add_argument("--set", action="append", default=[], help="settings of all learners")
    parser.add_argument("--work", type=Path, default=Path("sensor-study"))
    options = parser.parse_args()
    steps, updates = DEFAULTS[options.study]
    options.steps, options.updates = options.steps or steps, options.updates or updates
    options.work.mkdir(parents=True, exist_ok=True)
    seeds = [Seed(options, int(text)) for text in options.seeds.split(",")]
    runs = [row for seed in seeds for row in getattr(seed, options.study)()]
    print("| variant | seed | success | towns | return | other ends | CPU of learning |")
    print("| --- | ---: | --- | --- | --- | --- | ---: |")
    for name, seed, driven in sorted(
        runs, key=lambda run: [each[0] for each in runs].index(run[0])
    ):
        print(f"| {name} | {seed} {line(driven)}")
    print("\n".join(differences(runs)))


class Seed:
    """All runs of one seed of data and learner."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.seed = seed

    def sensors(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Learn from each stream of the same drives."""
        seen, size = self.streams()
        for name in STREAMS:
            driven = self.learn_stream(name, name, seen, {})
            yield name, self.seed, driven | {"bytes": size[name]}

    def critic(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Learn from the gray stream with critics that see more, and that do not."""
        seen, _ = self.streams()
        for name, network in CRITICS.items():
            settings = {f"network.{key}": value for key, value in network.items()}
            yield name, self.seed, self.learn_stream(slug(name), "gray", seen, settings)

    def streams(self) -> tuple[Path, dict[str, float]]:
        """Collect, and draw the streams; return the dataset and the bytes of a step by stream."""
        drives, seen = self.path("drives"), self.path("seen")
        full = "collect.task.observation.vector=full"
        for scenario in (0, 2):  # with one seed, a third of the second repeats towns of the first
            words = ("--config", "vision_command", "--scenario", scenario, "--set", full)
            self.collect(f"drives-{scenario}", drives, *words, steps=self.options.steps)
        cameras = [word for each in STREAMS.items() for word in ("--camera", "=".join(each))]
        drawn = self.once("seen", "store", "render", drives, seen, *cameras)
        size = {
            name: sum(
                file.stat().st_size for file in seen.glob(f"segments/*/frames_{name}/c/0/0/0/0")
            )
            for name in STREAMS
        }
        return seen, {name: each * len(STREAMS) / drawn["frames"] for name, each in size.items()}

    def learn_stream(
        self, name: str, stream: str, seen: Path, changed: Mapping[str, object]
    ) -> dict[str, Any]:
        """Learn from a stream and drive with it."""
        settings = {
            "network.shared_encoder": True,
            "network.vector_statistics": True,
            "network.actor_inputs": POLICY_SEES,
            "network.critic_inputs": POLICY_SEES,
            "replay.streams": f"[{stream}]",
            "replay.imitate_expert": False,
            **changed,
        }
        given = ("--config", "vision_command")
        camera = STREAMS[stream].replace("=", ": ").replace(",", ", ")
        roads = {"road.streams": f"{{{stream}: {{{camera}}}}}"}
        spent_s = self.learn(name, seen, [*given], settings, self.options.updates)
        return self.drive(name, [*given, *sets("evaluate", roads)], spent_s)

    def dagger(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Learn from rounds of DAgger, and from as many steps of the preset `demo`."""
        steps, updates = self.options.steps, self.options.updates
        demo = ("--config", "demo", *sets("collect", SMALL))
        offline, own = self.path("offline-steps"), self.path("dagger-steps")
        self.collect("offline-steps", offline, *demo, steps=steps)
        for name, settings in (("offline", {}), ("offline, labels imitated", LABELS)):
            yield name, self.seed, self.learn_demo(slug(name), offline, settings)
        self.collect("dagger-steps", own, *demo, steps=steps // 2)
        spent_s = self.learn("start", own, ["--config", "demo"], LABELS, updates // 4)
        run = self.path("start")
        for number in (1, 2):
            words = ("--config", "dagger", *sets("collect", SMALL), "--policies", run / "policies")
            self.collect(f"round-{number}-steps", own, *words, steps=steps // 4, plan=10 * number)
            run, size = self.path(f"round-{number}"), updates // 4 * number
            spent_s += self.learn(f"round-{number}", own, ["--config", "demo"], LABELS, size)
        yield "two rounds of DAgger", self.seed, self.drive_demo("round-2", spent_s)

    def learn_demo(self, name: str, data: Path, settings: Mapping[str, object]) -> dict[str, Any]:
        """Learn with the settings of the demo, and drive."""
        updates = self.options.updates
        return self.drive_demo(
            name, self.learn(name, data, ["--config", "demo"], settings, updates)
        )

    def drive_demo(self, name: str, spent_s: float) -> dict[str, Any]:
        """Drive with small frames."""
        return self.drive(name, ["--config", "demo", *sets("evaluate", SMALL)], spent_s)

    def path(self, name: str) -> Path:
        """Return the directory of a dataset or a run."""
        return self.options.work / f"{name}-{self.seed}"

    def collect(self, name: str, data: Path, *words: object, steps: int, plan: int = 0) -> None:
        """Collect once with this seed, or with one of its further plans."""
        given = ("--steps", steps, "--seed", self.seed + plan, "--workers", 1)
        self.once(name, "collect", data, *words, *given)

    def learn(
        self,
        name: str,
        data: Path,
        given: list[object],
        settings: Mapping[str, object],
        updates: int,
    ) -> float:
        """Learn once; return the CPU time that it took."""
        falling = {"threads": 1, "decay_from": updates // 2, "publish_every": updates}
        texts = [word for text in self.options.set for word in ("--set", text)]
        words = (*given, "--seed", self.seed, "--updates", updates, *sets("learn", falling), *texts)
        words = ("--run", self.path(name), *words, *sets("learn", settings))
        spent_s: float = self.once(name, "learn", data, *words)["cpu_s"]
        return spent_s

    def drive(self, name: str, roads: list[object], spent_s: float) -> dict[str, Any]:
        """Drive once; return the report with the time of learning."""
        words = (*roads, "--episodes", self.options.episodes, "--workers", 1)
        driven = self.once(f"{name}-driven", "evaluate", self.path(name) / "policies", *words)
        return driven | {"learn_cpu_s": spent_s}

    def once(self, name: str, *words: object) -> dict[str, Any]:
        """Run a command unless that was done; return its report with its CPU time."""
        path = self.path(name).with_suffix(".json")
        if not path.exists():
            if "learn" in words:  # a run that was interrupted begins again
                shutil.rmtree(self.path(name), ignore_errors=True)
            before = cpu_s()
            report = avtd3(*words)
            path.write_text(json.dumps(report | {"cpu_s": cpu_s() - before}))
        report = json.loads(path.read_text())
        return report


def slug(name: str) -> str:
    """Return a name of files for a variant."""
    return name.replace(",", "").replace(" ", "-")


def sets(section: str, settings: Mapping[str, object]) -> list[str]:
    """Return the words that change settings of a section."""
    texts = (f"{section}.{key}={value}" for key, value in settings.items())
    return [word for text in texts for word in ("--set", text)]


def cpu_s() -> float:
    """Return the CPU time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(driven: Mapping[str, Any]) -> str:
    """Return the cells of a run."""
    low, high = driven["success_interval"]
    least, most = driven["return_interval"]
    towns = [row["end_reason"] for row in driven["rows"] if row["town"].startswith("town-")]
    ends = driven["end_reasons"].items()
    failures = ", ".join(f"{count} `{reason}`" for reason, count in ends if reason != "goal")
    size = f", {driven['bytes']:,.0f} bytes per step" if "bytes" in driven else ""
    return (
        f"| {driven['success_rate']:.0%} ({low:.0%} to {high:.0%}) "
        f"| {towns.count('goal')} of {len(towns)} "
        f"| {driven['return_mean']:.0f} ({least:.0f} to {most:.0f}) "
        f"| {failures} | {driven['learn_cpu_s']:.0f} s{size} |"
    )


def differences(runs: list[tuple[str, int, dict[str, Any]]]) -> Iterator[str]:
    """Yield each variant's differences from the first one, over pairs of runs of one seed."""
    found = {(name, seed): driven for name, seed, driven in runs}
    names = list(dict.fromkeys(name for name, _ in found))
    seeds = dict.fromkeys(seed for _, seed in found)
    for name in names[1:]:
        pairs = [(found[name, seed], found[names[0], seed]) for seed in seeds]
        successes = interval([100 * (a["success_rate"] - b["success_rate"]) for a, b in pairs])
        returns = interval([a["return_mean"] - b["return_mean"] for a, b in pairs])
        yield f"{name} - {names[0]}: success {successes} points, return {returns}"


if __name__ == "__main__":
    main()
