"""Which way a metric should go: `Directions` of a person, then our own, then other writers'."""

import dataclasses
from fnmatch import fnmatchcase
from typing import Literal

from avtd3.learn.metrics import HIGHER, LOWER, metric

Direction = Literal["lower", "higher", "neither"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """Patterns of metrics by what is better; ``*`` stands for anything, ``neither`` goes first."""

    lower: tuple[str, ...] = ()
    """Metrics that are better when they are low."""
    higher: tuple[str, ...] = ()
    """Metrics that are better when they are high."""
    neither: tuple[str, ...] = ()
    """Metrics of which neither is better."""

    def of(self, name: str) -> Direction | None:
        """The direction of a metric; None if no pattern fits."""
        named: tuple[tuple[Direction, tuple[str, ...]], ...] = (
            ("neither", self.neither),
            ("lower", self.lower),
            ("higher", self.higher),
        )
        for direction, patterns in named:
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                return direction
        return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DirectionBook:
    """All that is known of directions. Those of avtd3's own metrics are in learn/metrics.py."""

    own: Directions = dataclasses.field(default_factory=Directions)
    """A person's own, asked first."""
    others: Directions = dataclasses.field(default_factory=Directions)
    """Those of tags that other writers have beside avtd3's metrics, asked last."""

    def of(self, name: str) -> Direction | None:
        """The direction of a metric; None if nobody knows it."""
        known: Direction | None = None
        ours = metric(name)
        if ours is not None:
            known = "higher" if ours.better == HIGHER else "lower"
            known = known if ours.better in (HIGHER, LOWER) else "neither"
        return self.own.of(name) or known or self.others.of(name)
