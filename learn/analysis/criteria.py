"""What a gate asks of a run: `Criterion`, its `Window` of steps, and `GateConfig`, a stage's list.

A criteria file is a `GateConfig` in YAML; configs/gates/ holds those of the stages.
"""

import dataclasses
import math
from typing import Literal

from avtd3.store.errors import ConfigError

Rule = Literal[
    "every",
    "share",
    "count",
    "max",
    "min",
    "mean",
    "median",
    "last",
    "sum",
    "rising",
    "falling",
    "not_rising",
    "not_falling",
]
TRENDS = ("rising", "falling", "not_rising", "not_falling")
_BOUNDS = ("below", "above", "at_most", "at_least")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which points of a metric a criterion looks at; without any setting, all."""

    from_step: int | None = None
    """First step that is looked at."""
    to_step: int | None = None
    """Last step that is looked at."""
    last_share: float | None = None
    """Only this share of the steps, at the end: 0.2 is the last fifth."""
    last_points: int | None = None
    """Of what is left, only so many points, at the end."""

    def __post_init__(self) -> None:
        if self.last_share is not None and not 0.0 < self.last_share <= 1.0:
            raise ConfigError(
                f"window.last_share is {self.last_share}, expected above 0 and at most 1"
            )
        if self.last_points is not None and self.last_points < 1:
            raise ConfigError(f"window.last_points is {self.last_points}, expected 1 or above")
        if None not in (self.from_step, self.to_step) and self.from_step > self.to_step:  # type: ignore[operator] # neither is None
            raise ConfigError(
                f"window.from_step {self.from_step} lies behind window.to_step {self.to_step}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One thing that a gate asks of one metric."""

    name: str = ""
    """What it is called in the table; each criterion of a file has its own."""
    metric: str = ""
    """avtd3's name of the metric, see learn/metrics.py; other writers' tags are mapped to these."""
    rule: Rule = "every"
    """``every``, ``share`` and ``count`` look at each point; ``max``, ``min``, ``mean``,
    ``median``, ``last`` and ``sum`` at one number of them all; ``rising``, ``falling``,
    ``not_rising`` and ``not_falling`` at the trend."""
    absolute: bool = False
    """Whether the values' sizes are looked at, without their signs."""
    below: float | None = None
    """Bound that values lie below."""
    above: float | None = None
    """Bound that values lie above."""
    at_most: float | None = None
    """Bound that values lie below or at."""
    at_least: float | None = None
    """Bound that values lie above or at."""
    at_most_setting: str | None = None
    """Where the run's own config.json has the bound ``at_most``, as
    ``learn.td3.clip.actor_max_norm``; a run without it is held against ``at_most``."""
    tolerance: float = 0.0
    """How far beyond a bound still counts as within, as a share of the bound: for rounding."""
    share: float = 1.0
    """With ``share``: least share of the points that lies within the bounds."""
    times: int = 0
    """With ``count``: most points that may lie within the bounds."""
    confidence: float = 0.95
    """With a trend: how sure a rise or fall must be, see learn/analysis/trend.py."""
    window: Window = dataclasses.field(default_factory=Window)
    """Which points are looked at."""
    min_points: int = 1
    """Points below which the answer is unknown."""
    optional: bool = False
    """Whether the run may lack the metric; without this, an absent metric is unknown, so NO-GO."""
    advisory: bool = False
    """Whether a failure is only told, and does not make the gate NO-GO."""
    why: str = ""
    """What a failure means and what to do, for people."""
    source: str = ""
    """Where the criterion is from."""

    @property
    def is_trend(self) -> bool:
        """Whether the rule is about a trend."""
        return self.rule in TRENDS

    def __post_init__(self) -> None:
        name = self.name or self.metric
        if not self.name or not self.metric:
            raise ConfigError(f"criterion {name!r} needs a name and a metric")
        self._check_bounds(name)
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"criterion {name!r}: share is {self.share}, expected 0 to 1")
        if not 0.5 < self.confidence < 1.0:
            raise ConfigError(
                f"criterion {name!r}: confidence is {self.confidence}, expected between 0.5 and 1"
            )
        for field, least in (("times", 0), ("min_points", 1), ("tolerance", 0)):
            value = getattr(self, field)
            if not least <= value < math.inf:
                raise ConfigError(
                    f"criterion {name!r}: {field} is {value}, expected {least} or above"
                )
        # What a rule does not look at would be ignored silently.
        for field, rule, default in (("share", "share", 1.0), ("times", "count", 0)):
            if getattr(self, field) != default and self.rule != rule:
                raise ConfigError(
                    f"criterion {name!r}: {field} belongs to rule {rule}, found rule {self.rule}"
                )

    def _check_bounds(self, name: str) -> None:
        bounds = {field: getattr(self, field) for field in _BOUNDS}
        given = {field: bound for field, bound in bounds.items() if bound is not None}
        for field, bound in given.items():
            if not math.isfinite(bound):
                raise ConfigError(f"criterion {name!r}: {field} is {bound}, expected a number")
        has_bound = bool(given) or self.at_most_setting is not None
        if self.is_trend and (has_bound or self.absolute):
            raise ConfigError(
                f"criterion {name!r}: rule {self.rule} takes no bounds; make a second criterion"
            )
        if not self.is_trend and not has_bound:
            raise ConfigError(
                f"criterion {name!r}: rule {self.rule} needs a bound, one of {', '.join(_BOUNDS)}"
            )
        if self.at_most_setting is not None and self.at_most is None:
            raise ConfigError(
                f"criterion {name!r}: at_most_setting needs at_most too, for runs that lack the "
                "setting"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """The criteria of a stage."""

    stage: str = ""
    """What the stage is called."""
    about: str = ""
    """What passing it means, for people."""
    steps: int | None = None
    """Steps of the stage: a run must have reached them, and is judged up to there; None judges all
    there is."""
    criteria: tuple[Criterion, ...] = ()
    """What is asked."""

    def __post_init__(self) -> None:
        if not self.criteria:
            raise ConfigError("criteria is empty, expected at least one criterion")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps is {self.steps}, expected 1 or above")
        names = [criterion.name for criterion in self.criteria]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"criterion {twice[0]!r} is there twice; give each its own name")
