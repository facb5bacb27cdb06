"""`AlertLog`: findings said once, counted always, and written where people and tools look.

Each line of ``RUN/alerts.jsonl`` is one JSON object: ``update``, ``time`` (UTC), ``name``,
``level``, ``value``, ``limit``, ``count`` (updates over the limit since the line before of this
name), ``reason`` and ``mend``. Lines of level ``note`` tell what a guard did.
"""

import datetime
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avtd3.learn.guards.config import GUARDS, LEVELS
from avtd3.learn.guards.limits import Finding
from avtd3.store import files

FILE = "alerts.jsonl"
NOTE = "note"
"""Level of a line that tells what a guard did."""
_NOTHING_TO_DO = "nothing to do"
_SHOWN = 3


def utc_now() -> str:
    """The time for a line, UTC to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class AlertLog:
    """The alerts of a run."""

    def __init__(self, path: Path, repeat_every: int, now: Callable[[], str] = utc_now) -> None:
        """Go on with a run's file; it is made at the first alert.

        Args:
            path: The file.
            repeat_every: Updates in which an alert that goes on is only counted.
            now: Gives the time that lines carry.
        """
        self.levels = dict.fromkeys(LEVELS, 0)
        """Alerts so far by level: readings in which a guard was over its limit."""
        self.guards = dict.fromkeys(GUARDS, 0)
        """Updates so far that were over each guard's limit."""
        self._path, self._repeat_every, self._now = path, repeat_every, now
        self._said: dict[str, tuple[int, int]] = {}
        self._unsaid: dict[str, int] = {}
        self.newest: tuple[str, ...] = ()
        """The newest lines in words, at most three; another object once there is a new one."""

    def add(self, finding: Finding, at: int) -> None:
        """Count a finding, and write a line if there was none of it lately, or only lesser ones.

        Args:
            finding: What was found.
            at: Updates so far.
        """
        name, level = finding.name, LEVELS.index(finding.level)
        self.levels[finding.level] += 1
        self.guards[name] += finding.count
        count = self._unsaid.pop(name, 0) + finding.count
        said_at, said_level = self._said.get(name, (-self._repeat_every, -1))
        if 0 <= at - said_at < self._repeat_every and level <= said_level:
            self._unsaid[name] = count
            return
        self._said[name] = (at, level)
        line = {
            "update": finding.update,
            "name": name,
            "level": finding.level,
            "value": finding.value if math.isfinite(finding.value) else None,
            "limit": finding.limit,
            "count": count,
            "reason": finding.reason,
            "mend": finding.mend,
        }
        self._write(line)
        again = f", {count} updates since it was said last" if count > finding.count else ""
        self._say(
            f"{finding.level} alert {name} at update {finding.update}: {finding.reason}{again}; "
            f"{finding.mend}"
        )

    def note(self, name: str, at: int, reason: str, *, value: float, limit: float) -> None:
        """Tell what a guard did."""
        self._write(
            {
                "update": at,
                "name": name,
                "level": NOTE,
                "value": value,
                "limit": limit,
                "count": 1,
                "reason": reason,
                "mend": _NOTHING_TO_DO,
            }
        )
        self._say(f"{name} at update {at}: {reason}")

    def resume(self, at: int) -> None:
        """Go on behind what a run that was killed wrote: say which of its lines do not hold.

        Args:
            at: Updates of the checkpoint that it goes on from.
        """
        with files.storage_errors(self._path):
            text = self._path.read_bytes() if self._path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # killed in the middle of a line
            files.write_aside(self._path, whole)
        lost = [update for update in map(_update_of, whole.splitlines()) if update > at]
        if lost:
            reason = f"the run was killed and went on from update {at}: lines before this one that "
            reason += "tell of later updates are of a past that no longer holds"
            self.note("resume", at, reason, value=float(max(lost)), limit=float(at))

    def flush(self, at: int) -> None:
        """Write a line for each alert that was only counted since its last one."""
        for name, count in self._unsaid.items():
            level = LEVELS[self._said[name][1]]
            reason = f"{count} more updates were over the limit of {name} by update {at}"
            self._write(
                {
                    "update": at,
                    "name": name,
                    "level": level,
                    "value": None,
                    "limit": None,
                    "count": count,
                    "reason": reason,
                    "mend": GUARDS[name],
                }
            )
        self._unsaid.clear()

    def scalars(self) -> dict[str, float]:
        """Counts so far, by metric."""
        counts = self.levels | self.guards
        return {f"alerts/{name}": float(count) for name, count in counts.items()}

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "levels": dict(self.levels),
            "guards": dict(self.guards),
            "said": {name: list(said) for name, said in self._said.items()},
            "unsaid": dict(self._unsaid),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; guards that are new start at 0, strange ones are lost."""
        self.levels |= {name: int(state["levels"][name]) for name in LEVELS}
        self.guards |= {name: int(state["guards"].get(name, 0)) for name in GUARDS}
        said, unsaid = state["said"], state["unsaid"]
        self._said = {k: (int(v[0]), int(v[1])) for k, v in said.items() if k in GUARDS}
        self._unsaid = {k: int(v) for k, v in unsaid.items() if k in GUARDS}

    def _say(self, message: str) -> None:
        self.newest = (*self.newest, message)[-_SHOWN:]

    def _write(self, line: Mapping[str, Any]) -> None:
        document = json.dumps({"time": self._now()} | dict(line), allow_nan=False)
        with files.storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(document + "\n")


def _update_of(line: bytes) -> int:
    """The update that a line tells of; -1 for one that is not ours."""
    try:
        return int(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):
        return -1
