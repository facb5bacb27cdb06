"""`avtd3 demo`: run the whole pipeline once, from the first road to a policy that drives new ones.

The settings of each step are sections of the preset ``demo``, so each step can be repeated with its
own command and ``--config demo``.
"""

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from avtd3.configs.commands.console import interruptible, progress, say
from avtd3.configs.commands.gate import STAGES, load_gate, load_names
from avtd3.configs.commands.options import (
    ConfigOption,
    JsonOption,
    SetOption,
    finish,
    option,
    section,
)
from avtd3.store.errors import ConfigError, DatasetError, check_settings

if TYPE_CHECKING:
    from avtd3.collect.collector import CollectConfig
    from avtd3.collect.evaluator import EvaluateConfig, EvaluateReport
    from avtd3.learn.analysis.gate import GateReport
    from avtd3.learn.config import LearnConfig
    from avtd3.store.audit.audit import AuditConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Amounts of the demo; the other sections configure its steps."""

    steps: int = 20_000
    """Steps to collect before learning."""
    more_steps: int = 2_000
    """Steps to collect with the learned policy afterwards."""
    film_episode: int = 0
    """Number of the held-out episode that is saved as a GIF, from 0."""
    gate: str = "demo"
    """Stage whose criteria the training is checked against."""
    note: str = ""
    """Sentence to print with the results."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            "demo.",
            ("steps", self.steps >= 1, "1 or above"),
            ("more_steps", self.more_steps >= 1, "1 or above"),
            ("film_episode", self.film_episode >= 0, "0 or above"),
            ("gate", self.gate in STAGES, f"one of {', '.join(STAGES)}"),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Settings of all steps of the demo."""

    demo: DemoConfig
    """Amounts."""
    collect: "CollectConfig"
    """Roads, traffic and drivers of the training data."""
    audit: "AuditConfig"
    """Checks of the audits."""
    learn: "LearnConfig"
    """The training."""
    evaluate: "EvaluateConfig"
    """The held-out roads."""

    @classmethod
    def load(cls, source: str | None, overrides: Sequence[str]) -> "DemoSettings":
        """Load all sections of a file or preset; None loads the preset ``demo``.

        Raises:
            ConfigError: As `avtd3.configs.load.load_section`.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: section(name, source or "demo", overrides, *names) for name in names})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """The results of the demo."""

    out: Path
    """Directory of all files."""
    seconds: float
    """Wall-clock time of the whole demo."""
    data_return_mean: float
    """Mean return of the training data."""
    updates: int
    """Gradient updates."""
    gate: "GateReport"
    """Whether the run meets the criteria of its stage."""
    evaluations: dict[str, "EvaluateReport"]
    """Report of each driver on the held-out roads."""
    pictures: tuple[Path, ...]
    """Pictures and plots."""
    note: str = ""
    """What to know about the results."""
    world: str = "road"
    """World in which the policy drove."""

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "out": str(self.out),
            "seconds": self.seconds,
            "data_return_mean": self.data_return_mean,
            "updates": self.updates,
            "gate": self.gate.document(),
            "evaluations": {name: r.document() for name, r in self.evaluations.items()},
            "pictures": [str(path) for path in self.pictures],
            "note": self.note,
        }

    def table(self) -> str:
        """Return the evaluations as a Markdown table."""
        from avtd3.store.render.text import markdown_table

        head = (
            "driver", "success", "95 %", "route", "return", "collisions/km",
            "departures/km", "off centre", "speed",
        )  # fmt: skip
        rows = []
        for name, report in self.evaluations.items():
            d = report.document()
            low, high = d["success_interval"]
            cells = (
                name,
                f"{d['success_rate']:.0%}",
                f"{low:.0%} to {high:.0%}",
                f"{d['route_completion']:.0%}",
                f"{d['return_mean']:.1f}",
                f"{d['collisions_per_km']:.2f}",
                f"{d['lane_departures_per_km']:.2f}",
                f"{d['lateral_deviation_m']:.2f} m",
                f"{3.6 * d['speed_mps']:.1f} km/h",
            )
            rows.append(cells)
        return "\n".join(markdown_table(head, "<" * len(head), rows))

    def summary(self) -> str:
        """Return the report as text."""
        from avtd3.store.render.text import duration, join_lines, plural

        count = len(next(iter(self.evaluations.values())).scores)
        following = next_commands(self.out, self.world)
        lines = [
            f"{count} held-out roads, the same for each driver:",
            "",
            *self.table().splitlines(),
            "",
            *([self.note] if self.note else []),
            f"mean return of the training data: {self.data_return_mean:.1f}",
            self.gate.sentence(),
            f"{plural(self.updates, 'update')}; {duration(self.seconds)} in total; see:",
            *(f"  {path}" for path in self.pictures),
            "",
            "next, in a shell that activated the environment (. .venv/bin/activate):",
            *(f"  {command}  # {purpose}" for command, purpose in following),
            "README.md describes more: CARLA, data of your own, and learning while collecting",
        ]
        return join_lines(lines)


def next_commands(out: Path, world: str = "road") -> list[tuple[str, str]]:
    """Return commands that continue with the files of a demo, and what each is for."""
    data, run = shlex.quote(str(out / "data")), shlex.quote(str(out / "run-2"))
    elsewhere = "" if world == "road" else f" --world {world}"
    return [
        (f"avtd3 replay-inspect {data} --html audit.html", "look at the data"),
        (f"avtd3 learn {data} --config demo --run {run} --updates 5000", "train for longer"),
        (f"avtd3 evaluate {run}/policies --config demo{elsewhere}", "and compare"),
    ]


def demo(
    out: Annotated[Path, option("DIR", "Directory for all files; must be new or empty.")] = Path(
        "demo-out"
    ),
    quick: Annotated[
        bool,
        option(
            "--quick",
            "Run every step in less than a minute, too short to learn to drive. Uses the "
            "preset demo_quick. Without the package carla, the car drives on one bare road.",
        ),
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline once.

    Collects data, audits them, learns, checks the run with the gate demo, evaluates, collects
    with the learned policy, audits again and draws pictures. Takes about 1.5 minutes on two idle
    cores. Uses the preset demo unless --config is given.
    """
    from avtd3.learn.threads import limit_spinning

    limit_spinning()  # before torch is imported
    settings = load_quick(config, set_ or ()) if quick else DemoSettings.load(config, set_ or ())
    with interruptible() as should_stop:
        report = run_demo(out, settings, should_stop)
    finish(report, as_json)


def load_quick(config: str | None, overrides: Sequence[str]) -> DemoSettings:
    """Load the settings of ``demo --quick``, with a world that needs no carla if it is missing."""
    from avtd3.collect.checks import require_carla
    from avtd3.collect.sim.world import BARE_ROAD

    if config is not None:
        raise ConfigError(
            f"--quick uses the preset demo_quick, found --config {config}; give one of them"
        )
    worlds: list[str] = []
    try:
        require_carla("the built-in simulator")
    except ConfigError as error:
        say(f"{error}; so the car drives on one bare road without traffic")
        worlds = [f"{section}.world={BARE_ROAD}" for section in ("collect", "evaluate")]
    return DemoSettings.load("demo_quick", (*worlds, *overrides))


def run_demo(out: Path, settings: DemoSettings, should_stop: Callable[[], bool]) -> DemoReport:
    """Run all steps and write the results.

    Raises:
        ConfigError: If the directory is not empty.
        DatasetError: If an audit has findings.
        KeyboardInterrupt: If `should_stop` returned True.
    """
    from avtd3.store.files import write_aside

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not an empty directory; remove it or give another")
    report = _Demo(out, settings, should_stop).run()
    write_aside(out / "report.json", json.dumps(report.document(), indent=2).encode())
    write_aside(out / "table.md", f"{report.table()}\n".encode())
    return report


class _Demo:
    """The steps in order; each prints what it does and writes its files below ``out``."""

    def __init__(self, out: Path, settings: DemoSettings, should_stop: Callable[[], bool]) -> None:
        self._out, self._settings, self._should_stop = out, settings, should_stop
        self._data, self._run, self._policies = out / "data", out / "run", out / "policies"

    def run(self) -> DemoReport:
        started_s, amounts = time.monotonic(), self._settings.demo
        collecting, updates = self._settings.collect, self._settings.learn.updates
        self._start(f"1 of 7: collect {amounts.steps:,} steps with {collecting.driver}")
        return_mean = self._collect(collecting, amounts.steps)
        self._start("2 of 7: audit")
        self._audit()
        self._start(f"3 of 7: learn offline, {updates:,} updates")
        self._learn()
        gate = self._gate()
        self._start(f"4 of 7: evaluate on {self._settings.evaluate.episodes} held-out roads")
        evaluations = self._evaluate()
        self._start(f"5 of 7: collect {amounts.more_steps:,} steps with the learned policy")
        more = dataclasses.replace(collecting, driver="policy", seed=collecting.seed + 1)
        self._collect(more, amounts.more_steps)
        say(
            "this return is not comparable with that of step 4: here the policy explores, with "
            f"noise of {collecting.exploration_noise:g} on its actions, on few training roads"
        )
        self._start("6 of 7: audit again")
        self._audit()
        self._start("7 of 7: draw pictures")
        return DemoReport(
            out=self._out,
            pictures=self._draw(evaluations["learned"]),
            data_return_mean=return_mean,
            updates=updates,
            gate=gate,
            evaluations=evaluations,
            seconds=time.monotonic() - started_s,
            note=amounts.note,
            world=self._settings.evaluate.world,
        )

    def _start(self, step: str) -> None:
        if self._should_stop():
            raise KeyboardInterrupt
        say(step)

    def _collect(self, config: "CollectConfig", steps: int) -> float:
        from avtd3.collect.collector import collect

        with progress() as show:
            report = collect(
                self._data,
                config,
                steps=steps,
                policies=self._policies,
                should_stop=self._should_stop,
                on_progress=show,
            )
        say(report.summary())
        return report.tally.return_mean

    def _audit(self) -> None:
        from avtd3.store.audit.audit import audit
        from avtd3.store.render.text import plural

        config = self._settings.audit
        with progress() as show:
            report = audit([self._data], config, should_stop=self._should_stop, on_progress=show)
        if report.verdict != "ok":
            raise DatasetError(
                f"the audit of {self._data} has {len(report.findings)} findings; run avtd3 "
                f"replay-inspect {self._data} to list them"
            )
        say(
            f"verdict {report.verdict}: {plural(report.total.steps, 'step')}, "
            f"{plural(report.total.episodes, 'episode')}, "
            f"{plural(report.total.segments, 'segment')}"
        )

    def _learn(self) -> None:
        from avtd3.learn.analysis.run_page import RunPageCallback
        from avtd3.learn.callbacks import ProgressCallback
        from avtd3.learn.trainer import train

        with progress() as show:
            report = train(
                self._settings.learn,
                datasets=self._data,
                run=self._run,
                policies=self._policies,
                callbacks=[ProgressCallback(show, self._should_stop)],
            )
        say(report.summary())
        RunPageCallback(self._run).on_end(report)  # not at each checkpoint as well

    def _gate(self) -> "GateReport":
        from avtd3.learn.analysis.gate import gate

        amounts, updates = self._settings.demo, self._settings.learn.updates
        stage = dataclasses.replace(load_gate(amounts.gate, None), steps=updates)
        report = gate(self._run, stage, load_names())
        say(report.summary())
        return report

    def _evaluate(self) -> dict[str, "EvaluateReport"]:
        from avtd3.collect.evaluator import evaluate

        drivers = {
            "random": "random",
            "behaviour": self._settings.collect.driver,
            "learned": str(self._policies),
        }
        reports = {}
        for name, subject in drivers.items():
            with progress() as show:
                reports[name] = evaluate(
                    subject,
                    self._settings.evaluate,
                    should_stop=self._should_stop,
                    on_progress=show,
                )
            if self._should_stop():
                raise KeyboardInterrupt
            say(f"{name}:\n{reports[name].summary()}")
        return reports

    def _draw(self, learned: "EvaluateReport") -> tuple[Path, ...]:
        from avtd3.collect.evaluator import film_held_out, sheet_held_out
        from avtd3.learn.analysis.run_page import PAGE

        config, subject = self._settings.evaluate, str(self._policies)
        sheet, gif = self._out / "held-out-roads.png", self._out / "learned-policy.gif"
        sheet_held_out(subject, config, sheet, scores=learned.scores, should_stop=self._should_stop)
        film_held_out(subject, config, self._settings.demo.film_episode, gif)
        return sheet, gif, self._run / PAGE
