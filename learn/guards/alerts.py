"""`AlertLog`: count alerts, and write them to ``RUN/alerts.jsonl``."""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from avtd3.learn.checkpoints import read_as
from avtd3.learn.guards.config import GUARDS, LEVELS
from avtd3.store import files

ALERTS_FILE = "alerts.jsonl"
NOTE = "note"
"""Level of an alert that reports an action of a guard instead of a problem."""
RESUME = "resume"
"""Name of the note that marks the lines above it as void."""
MAX_ALERT_BYTES = 256 << 20
"""Largest file of alerts that is read."""
_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One line of ``RUN/alerts.jsonl``: a guard over its limit, or an action of a guard.

    Example:
        >>> alert = Alert(update=24, name="q_size", level="serious", reason="Q is 2e4", count=3)
        >>> print(alert)
        serious alert q_size at update 24: Q is 2e4; 3 updates were over the limit
    """

    update: int
    """The update that exceeded the limit most."""
    name: str
    """Name of the guard, or of its action."""
    level: str
    """``warn``, ``serious`` or ``stop``, or ``note`` for an action of a guard."""
    value: float | None = None
    """The value at that update; None if it is not finite or there is none."""
    limit: float | None = None
    """The limit of this level; None if there is none."""
    count: int = 1
    """Updates over the limit since the previous line of this name."""
    reason: str
    """What was found and what was expected, as a sentence."""
    fix: str = ""
    """How to fix it."""

    def __str__(self) -> str:
        text = f"{self.name} at update {self.update}: {self.reason}"
        if self.level == NOTE:
            return text
        count = f"; {self.count} updates were over the limit" if self.count > 1 else ""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{self.level} alert {text}{count}{fix}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlertState:
    """The counts of an `AlertLog`, as in a checkpoint."""

    levels: dict[str, int]
    guards: dict[str, int]
    said: dict[str, tuple[int, int]]
    """Update and level of the newest line of each guard."""
    unsaid: dict[str, int]
    """Updates over the limit since then."""


class AlertLog:
    """The alerts of a run. Each one is counted; a persisting one is not written every time."""

    def __init__(
        self, path: Path, repeat_every: int, *, on_alert: Callable[[Alert], None] = lambda _: None
    ) -> None:
        self.levels = dict.fromkeys(LEVELS, 0)
        """Number of alerts so far, by level."""
        self.guards = dict.fromkeys(GUARDS, 0)
        """Number of updates over the limit so far, by guard."""
        self.newest: tuple[str, ...] = ()
        """The newest alerts as text, at most three."""
        self._path, self._repeat_every, self._on_alert = path, repeat_every, on_alert
        self._reported: dict[str, tuple[int, int]] = {}
        self._unreported: dict[str, int] = {}

    def add(self, alert: Alert, at: int) -> None:
        """Count an alert; write it unless it was written lately at the same or a higher level."""
        name, level = alert.name, LEVELS.index(alert.level)
        self.levels[alert.level] += 1
        self.guards[name] += alert.count
        count = self._unreported.pop(name, 0) + alert.count
        reported_at, reported_level = self._reported.get(name, (-self._repeat_every, -1))
        if 0 <= at - reported_at < self._repeat_every and level <= reported_level:
            self._unreported[name] = count
            return
        self._reported[name] = (at, level)
        self._write(dataclasses.replace(alert, count=count))

    def note(
        self,
        name: str,
        at: int,
        reason: str,
        *,
        value: float | None = None,
        limit: float | None = None,
        fix: str = "nothing to do",
    ) -> None:
        """Write an action of a guard."""
        line = Alert(update=at, name=name, level=NOTE, reason=reason, fix=fix)
        self._write(dataclasses.replace(line, value=value, limit=limit))

    def resume(self, at: int) -> None:
        """Continue the file of a run that was killed, and mark the lines that became void."""
        with files.storage_errors(self._path):
            text = self._path.read_bytes() if self._path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # the process was killed in the middle of a line
            files.write_aside(self._path, whole)
        void = [alert.update for alert in _parse(whole) if alert.update > at]
        if void:
            reason = f"the run was killed and continues from update {at}: the lines above this one "
            reason += "that report later updates are void"
            self.note(RESUME, at, reason, value=float(max(void)), limit=float(at))

    def flush(self, at: int) -> None:
        """Write a line for each alert that was only counted since its last line."""
        for name, count in self._unreported.items():
            reason = f"{count} more updates were over the limit of {name} by update {at}"
            level, fix = LEVELS[self._reported[name][1]], GUARDS[name]
            line = Alert(update=at, name=name, level=level, count=count, reason=reason, fix=fix)
            self._append(line)
        self._unreported.clear()

    def scalars(self) -> dict[str, float]:
        """Return the counts so far, by metric."""
        counts = self.levels | self.guards
        return {f"alerts/{name}": float(count) for name, count in counts.items()}

    def state(self) -> AlertState:
        """Return the counts, for a checkpoint."""
        said, unsaid = dict(self._reported), dict(self._unreported)
        return AlertState(
            levels=dict(self.levels), guards=dict(self.guards), said=said, unsaid=unsaid
        )

    def restore(self, state: AlertState) -> None:
        """Continue from what `state` returned; new guards start at 0, unknown ones are dropped."""
        self.levels |= {name: count for name, count in state.levels.items() if name in LEVELS}
        self.guards = {name: state.guards.get(name, 0) for name in GUARDS}
        self._reported = {
            name: (at, level)
            for name, (at, level) in state.said.items()
            if name in GUARDS and 0 <= level < len(LEVELS)
        }
        self._unreported = {k: v for k, v in state.unsaid.items() if k in self._reported}

    def _write(self, alert: Alert) -> None:
        self._append(alert)
        self.newest = (*self.newest, str(alert))[-_SHOWN:]
        self._on_alert(alert)

    def _append(self, alert: Alert) -> None:
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        document = json.dumps({"time": time} | dataclasses.asdict(alert), allow_nan=False)
        with files.storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(document + "\n")


def read_alerts(path: Path) -> list[Alert]:
    """Read the alerts of a run, without those that a resume made void; none without the file.

    Lines that are no alerts are skipped.
    """
    if not path.exists():
        return []
    found: list[Alert] = []
    for alert in _parse(files.read_bytes(path, MAX_ALERT_BYTES)):
        if alert.name == RESUME:
            found = [earlier for earlier in found if earlier.update <= alert.update]
        found.append(alert)
    return found


def _parse(data: bytes) -> Iterator[Alert]:
    for line in data.splitlines():
        with contextlib.suppress(ValueError):  # the line is no alert
            alert = read_as(Alert, files.parse_json(line, ALERTS_FILE), "alert")
            if alert.level in (NOTE, *LEVELS):
                yield alert
