"""`run_demo`: the whole pipeline once, from the first road to a policy that drives new ones.

The settings of every step are sections of the preset ``demo``, so each step can be repeated by hand
with its own command and ``--config demo``.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.evaluator import (
    EvaluateConfig,
    EvaluateReport,
    evaluate,
    film_held_out,
    sheet_held_out,
)
from avtd3.configs.commands.console import Draw
from avtd3.configs.load import load_section
from avtd3.learn.analysis.pages import curves_page
from avtd3.learn.analysis.reader import read_log
from avtd3.learn.config import LearnConfig
from avtd3.learn.trainer import train
from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.errors import ConfigError, DatasetError
from avtd3.store.files import write_aside

CURVES = (
    "critic/loss",
    "critic/q1_mean",
    "critic_cnn/feature_norm",
    "actor/loss",
    "actor/imitation",
    "actor_cnn/feature_norm",
)
"""Metrics that are drawn as learning curves, where the run has them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """How much the demo does; how it does it is in the other sections."""

    steps: int = 20_000
    """Steps to collect before learning."""
    more_steps: int = 2_000
    """Steps to collect with the learned policy afterwards."""
    film_episode: int = 0
    """Number of the held-out episode that is shown as a GIF."""

    def __post_init__(self) -> None:
        for name in ("steps", "more_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"demo.{name} is {getattr(self, name)}, expected 1 or above")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoSections:
    """The settings of every step."""

    demo: DemoConfig
    """Amounts."""
    collect: CollectConfig
    """Roads, traffic and the drivers to learn from."""
    audit: AuditConfig
    """What the audit checks."""
    learn: LearnConfig
    """The learner."""
    evaluate: EvaluateConfig
    """The held-out roads."""

    @classmethod
    def load(cls, source: str | None, overrides: list[str]) -> "DemoSections":
        """Read all sections of a file or preset, ``demo`` if None.

        Raises:
            ConfigError: As `load_section`.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: load_section(name, source or "demo", overrides) for name in names})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What the demo found."""

    out: Path
    """Where everything lies."""
    seconds: float
    """Wall clock of the whole run."""
    data_return_mean: float
    """Mean return of the episodes that were learned from."""
    updates: int
    """Gradient updates."""
    evaluations: dict[str, EvaluateReport]
    """Who drove the held-out roads, and how."""
    pictures: tuple[Path, ...]
    """Files to look at."""

    def document(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "out": str(self.out),
            "seconds": self.seconds,
            "data_return_mean": self.data_return_mean,
            "updates": self.updates,
            "evaluations": {name: r.document() for name, r in self.evaluations.items()},
            "pictures": [str(path) for path in self.pictures],
        }

    def table(self) -> str:
        """The evaluations as a table in Markdown."""
        head = (
            "driver", "success", "95 %", "route", "return", "collisions/km",
            "departures/km", "off centre", "speed",
        )  # fmt: skip
        lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
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
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def summary(self) -> str:
        """The report for a person."""
        count = len(next(iter(self.evaluations.values())).scores)
        lines = [
            f"{count} held-out roads, each driver on the same ones:",
            "",
            self.table(),
            "",
            f"mean return of the data it learned from: {self.data_return_mean:.1f}",
            f"{self.updates} updates; {self.seconds:.0f} s in all; look at:",
            *(f"  {path}" for path in self.pictures),
        ]
        return "\n".join(lines)


def run_demo(
    out: Path,
    sections: DemoSections,
    *,
    should_stop: Callable[[], bool],
    progress: Callable[[], AbstractContextManager[Draw]],
    say: Callable[[str], None],
) -> DemoReport:
    """Collect, audit, learn, evaluate, collect with what was learned, audit again, draw.

    Args:
        out: Directory to make everything in; must be absent or empty.
        sections: The settings.
        should_stop: Asked all the time; true ends the step under way in good order.
        progress: Opens a drawing of a step's progress.
        say: Prints a line between the steps.

    Raises:
        ConfigError: The directory is not empty.
        DatasetError: An audit found something.
        KeyboardInterrupt: It was stopped between two steps.
        Avtd3Error: As the steps.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not an empty directory; remove it or choose another")
    return _Demo(out, sections, should_stop, progress, say).run()


class _Demo:
    """The steps, in order; each says what it does and leaves its files under ``out``."""

    def __init__(
        self,
        out: Path,
        sections: DemoSections,
        should_stop: Callable[[], bool],
        progress: Callable[[], AbstractContextManager[Draw]],
        say: Callable[[str], None],
    ) -> None:
        self._out, self._with = out, sections
        self._should_stop, self._progress, self._say = should_stop, progress, say
        self._data, self._run, self._policies = out / "data", out / "run", out / "policies"

    def run(self) -> DemoReport:
        started_s = time.monotonic()
        settings = self._with.collect
        self._head(f"1 of 7: collect {self._with.demo.steps} steps with {settings.driver}")
        data = self._collect(settings, self._with.demo.steps)
        self._head("2 of 7: audit")
        self._audit()
        self._head(f"3 of 7: learn offline, {self._with.learn.updates} updates")
        self._learn()
        self._head(f"4 of 7: evaluate on {self._with.evaluate.episodes} held-out roads")
        evaluations = self._evaluate()
        self._head(f"5 of 7: collect {self._with.demo.more_steps} steps with the learned policy")
        more = dataclasses.replace(settings, driver="policy", seed=settings.seed + 1)
        self._collect(more, self._with.demo.more_steps)
        self._head("6 of 7: audit again")
        self._audit()
        self._head("7 of 7: pictures")
        report = DemoReport(
            out=self._out,
            pictures=self._draw(),
            data_return_mean=data,
            updates=self._with.learn.updates,
            evaluations=evaluations,
            seconds=time.monotonic() - started_s,
        )
        document = json.dumps(report.document(), indent=2).encode()
        write_aside(self._out / "report.json", document)
        write_aside(self._out / "table.md", f"{report.table()}\n".encode())
        return report

    def _head(self, text: str) -> None:
        if self._should_stop():
            raise KeyboardInterrupt
        self._say(text)

    def _collect(self, config: CollectConfig, steps: int) -> float:
        with self._progress() as draw:
            report = collect(
                self._data,
                config,
                steps=steps,
                policies=self._policies,
                should_stop=self._should_stop,
                on_progress=draw,
            )
        self._say(report.summary())
        return report.tally.return_mean

    def _audit(self) -> None:
        with self._progress() as draw:
            report = audit(
                [self._data], self._with.audit, should_stop=self._should_stop, on_progress=draw
            )
        if report.verdict != "ok":
            raise DatasetError(
                f"the audit of {self._data} found {len(report.findings)} faults; see them with "
                f"avtd3 replay-inspect {self._data}"
            )
        self._say(
            f"verdict {report.verdict}: {report.total.steps} steps, "
            f"{report.total.episodes} episodes, {report.total.segments} segments"
        )

    def _learn(self) -> None:
        with self._progress() as draw:
            report = train(
                [self._data],
                self._run,
                self._with.learn,
                policies=self._policies,
                should_stop=self._should_stop,
                on_progress=draw,
            )
        self._say(report.summary())

    def _evaluate(self) -> dict[str, EvaluateReport]:
        drivers = {
            "random": "random",
            "behaviour": self._with.collect.driver,
            "learned": str(self._policies),
        }
        reports = {}
        for name, subject in drivers.items():
            with self._progress() as draw:
                reports[name] = evaluate(
                    subject, self._with.evaluate, should_stop=self._should_stop, on_progress=draw
                )
            if self._should_stop():
                raise KeyboardInterrupt
            self._say(f"{name}:\n{reports[name].summary()}")
        return reports

    def _draw(self) -> tuple[Path, ...]:
        config, subject = self._with.evaluate, str(self._policies)
        sheet, gif = self._out / "held-out-roads.png", self._out / "learned-policy.gif"
        curves = self._out / "learning-curves.html"
        sheet_held_out(subject, config, sheet, should_stop=self._should_stop)
        film_held_out(subject, config, self._with.demo.film_episode, gif)
        known = read_log(self._run / "events").curves
        drawn = [known[name] for name in CURVES if name in known]
        write_aside(curves, curves_page(drawn, title="avtd3 demo: learning").encode())
        return sheet, gif, curves
