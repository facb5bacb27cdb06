"""Show the heartbeats of collectors and learners: as JSON, a table of text, or a page."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from avtd3.store.render.html import render_page
from avtd3.store.render.text import (
    columns,
    duration,
    file_size,
    integer,
    join_lines,
    number,
    plural,
    shorten,
)
from avtd3.store.status import CLEARED_S, DEAD_S, INTERVAL_S, LATE_S, Seen, State

QUIET_S = 120.0
"""Seconds without progress after which a process that waits for nothing is an alert."""
LOW_DISK_BYTES = 1_000_000_000
"""Free space of a disk below which it is an alert."""
HEADS = ("process", "state", "last seen", "steps", "rate", "policy", "lag", "doing")
"""Columns of the table."""
KINDS: dict[State, str] = {
    "running": "ok",
    "late": "warning",
    "dead": "error",
    "ended": "info",
    "unknown": "warning",
}
"""Classes of the states in the style sheet."""
LIVE = ("running", "late")
"""States of processes that have not ended, as far as is known."""


@dataclasses.dataclass(frozen=True, slots=True)
class StatusReport:
    """What is known about the processes of some places.

    Example:
        >>> StatusReport(["data"], [], ()).summary
        'no process has written a heartbeat in the last day'
    """

    places: Sequence[str]
    """Paths or URLs that were read."""
    seen: Sequence[Seen]
    """The processes."""
    problems: Sequence[str]
    """What could not be read."""

    @property
    def newest_policy(self) -> int | None:
        """Newest policy that a learner has published."""
        versions = [s.beat.policy_version for s in self.seen if s.beat.role == "learner"]
        return max((version for version in versions if version is not None), default=None)

    @property
    def rate(self) -> float:
        """Steps per second that the running collectors store together."""
        beats = [seen.beat for seen in self.seen if seen.state in LIVE]
        return sum(beat.rate or 0.0 for beat in beats if beat.role == "collector")

    @property
    def lags(self) -> list[int]:
        """Policies by which the running collectors are behind the learner."""
        running = (seen for seen in self.seen if seen.state in LIVE)
        return [lag for seen in running if (lag := self.lag(seen)) is not None]

    def lag(self, seen: Seen) -> int | None:
        """Return by how many policies a collector is behind; None if that cannot be known."""
        newest, own = self.newest_policy, seen.beat.policy_version
        if newest is None or own is None or seen.beat.role != "collector":
            return None
        return max(newest - own, 0)

    @property
    def alerts(self) -> list[tuple[str, str]]:
        """What a person should look at: the process and the reason."""
        found = [(seen.beat.name, text) for seen in self.seen for text in _alerts(seen)]
        return found + [("", problem) for problem in self.problems]

    @property
    def is_well(self) -> bool:
        """Whether every process runs, or has ended in good order."""
        return all(seen.state in ("running", "ended") for seen in self.seen) and not self.problems

    @property
    def summary(self) -> str:
        """The whole in one sentence."""
        if not self.seen:
            return "no process has written a heartbeat in the last day"
        parts = [
            plural(sum(seen.beat.role == role for seen in self.seen), role)
            for role in ("collector", "learner")
        ]
        parts.append(f"{number(self.rate)} steps/s")
        if lag := _spread(self.lags):
            mean = number(lag["mean"])
            parts.append(f"policy lag {lag['min']} / {mean} / {lag['max']} (min / mean / max)")
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "places": list(self.places),
            "is_well": self.is_well,
            "newest_policy": self.newest_policy,
            "lag": _spread(self.lags),
            "processes": [
                {
                    "state": seen.state,
                    "age_s": None if seen.age_s is None else round(seen.age_s, 1),
                    "place": seen.place,
                    "lag": self.lag(seen),
                    **dataclasses.asdict(seen.beat),
                }
                for seen in self.seen
            ],
            "alerts": [{"process": name, "text": text} for name, text in self.alerts],
        }

    def row(self, seen: Seen) -> tuple[str, ...]:
        """Return the cells of a process in the table under `HEADS`."""
        beat, lag = seen.beat, self.lag(seen)
        return (
            f"{beat.role} {shorten(beat.name, 40)} on {shorten(beat.host, 40)}",
            seen.state,
            "?" if seen.age_s is None else f"{duration(round(seen.age_s))} ago",
            "" if beat.steps is None else integer(beat.steps),
            "" if beat.rate is None or beat.is_ended else f"{number(beat.rate)}/s",
            "" if beat.policy_version is None else str(beat.policy_version),
            "" if lag is None else str(lag),
            _doing(seen),
        )

    def text(self) -> str:
        """Return the report as text."""
        lines = [self.summary]
        if self.seen:
            lines += ["", *columns([HEADS, *map(self.row, self.seen)], "<<>>>>><")]
        if self.alerts:
            lines += ["", "Look at:"]
            lines += [f"  {name + ': ' if name else ''}{text}" for name, text in self.alerts]
        return join_lines(lines)

    def page(self) -> str:
        """Return the report as an HTML page."""
        return render_page(
            "status.html.j2",
            title="Status",
            report=self,
            places=[(place, "") for place in self.places],
            key_figures=self._key_figures(),
            heads=("process", "state", *HEADS[2:]),
            figures=HEADS[2:7],
            rows=[
                (name, "", state, KINDS[seen.state], cells)
                for seen in self.seen
                for name, state, *cells in [self.row(seen)]
            ],
            limits=(duration(INTERVAL_S), duration(LATE_S), duration(DEAD_S), duration(CLEARED_S)),
        )

    def _key_figures(self) -> list[tuple[str, str, str]]:
        running = [seen.beat for seen in self.seen if seen.state == "running"]
        figures = [
            ("running", f"{len(running)} of {len(self.seen)}", "processes"),
            ("collected", f"{number(self.rate)}/s", "steps, all running collectors"),
        ]
        for beat in [beat for beat in running if beat.role == "learner"][:3]:
            if beat.updates is not None and beat.target is not None:
                done = f"{integer(beat.updates)} of {integer(beat.target)}"
                figures.append(("updates", done, beat.name))
        if lag := _spread(self.lags):
            figures.append(("policy lag", number(lag["mean"]), "mean"))
        return figures


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "mean": statistics.fmean(values), "max": max(values)}


def _doing(seen: Seen) -> str:
    """Say what a process does now, and what it stores."""
    beat = seen.beat
    if beat.waiting and not beat.is_ended:
        return beat.waiting
    sizes = (
        ("spool", beat.spool_bytes),
        ("mirror", beat.mirror_bytes),
        ("free", beat.disk_free_bytes),
    )
    parts = [f"{name} {file_size(size)}" for name, size in sizes if size is not None]
    if beat.updates is not None:
        target = "" if beat.target is None else f" of {integer(beat.target)}"
        parts.insert(0, f"update {integer(beat.updates)}{target}")
    return ", ".join(parts)


def _alerts(seen: Seen) -> Iterable[str]:
    beat = seen.beat
    if seen.state in ("late", "dead"):
        yield f"{seen.state}: its last heartbeat came {duration(round(seen.age_s or 0))} ago"
    is_live = seen.state in LIVE
    if is_live and beat.quiet_s > QUIET_S and not beat.waiting:
        yield f"no progress for {duration(beat.quiet_s)}"
    if is_live and beat.disk_free_bytes is not None and beat.disk_free_bytes < LOW_DISK_BYTES:
        yield f"its disk has {file_size(beat.disk_free_bytes)} free"
    if beat.refused:
        yield f"{plural(beat.refused, 'segment')} refused; see avtd3 replay-inspect"
    yield from beat.alerts
