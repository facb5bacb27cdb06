"""`avtd3 replay-inspect --against` and `--window`: which episodes are compared with which."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avtd3.store.errors import ConfigError

if TYPE_CHECKING:
    from avtd3.store.audit.drift import Drift
    from avtd3.store.audit.report import AuditReport
    from avtd3.store.filters import EpisodeFilter

WINDOWS = 2
"""Windows that can be compared."""


def parse_share(text: str) -> float:
    """Read a share, as ``5%`` or ``0.05``.

    Raises:
        ConfigError: It is no number above 0 and at most 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"--sample is {text!r}, expected a share above 0 and at most 1, as 5% or 0.05"
        )
    return share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is audited, and which two parts of it are compared, if any."""

    datasets: tuple[Path, ...]
    """All that is audited."""
    against: tuple[Path, ...]
    """Those of them that the others are compared with."""
    windows: tuple["EpisodeFilter", ...]
    """Two sets of episodes to compare, or nothing."""
    names: tuple[str, ...]
    """What the two parts are called."""

    @classmethod
    def parse(
        cls, datasets: Sequence[Path], against: Sequence[Path], windows: Sequence[str]
    ) -> "Comparison":
        """Read the options.

        Args:
            datasets: The command's arguments.
            against: Datasets of ``--against``.
            windows: Texts of ``--window``: filters, several of one window apart by spaces.

        Raises:
            ConfigError: Not two windows, both options at once, or a dataset on both sides.
        """
        from avtd3.store.filters import parse_filter

        if windows and against:
            raise ConfigError("--against and --window both choose what to compare: give one")
        if windows and len(windows) != WINDOWS:
            raise ConfigError(f"{len(windows)} --window given, expected two to compare")
        if both := {*map(str, datasets)} & {*map(str, against)}:
            raise ConfigError(f"{min(both)} is compared with itself: name another --against")
        names = tuple(windows) or tuple(", ".join(map(str, side)) for side in (datasets, against))
        return cls(
            datasets=(*datasets, *against),
            against=tuple(against),
            windows=tuple(parse_filter(text.split()) for text in windows),
            names=names,
        )

    def drifts(self, report: "AuditReport") -> tuple["Drift", ...]:
        """The drift between the two parts, quantity by quantity; nothing if none was asked for."""
        from avtd3.store.audit.drift import drift_between
        from avtd3.store.audit.statistics import Summary

        if self.windows:
            first, second = report.windows
        elif self.against:
            first, second = Summary(), Summary()
            for dataset in report.datasets:
                if dataset.path in map(str, self.against):
                    second = second.merge(dataset.summary)
                else:
                    first = first.merge(dataset.summary)
        else:
            return ()
        return drift_between(first, second)

    def text(self, drifts: Sequence["Drift"]) -> list[str]:
        """The drift for the terminal; nothing if none was asked for."""
        from avtd3.store.audit.drift import render_drift

        wanted = bool(self.windows or self.against)
        return [render_drift(drifts, *self.names)] if wanted else []
