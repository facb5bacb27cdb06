"""`LearnProgress` and `LearnReport`: the state of a run while it trains, and its result."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtd3.store.render.text import duration, join_lines, plural
from avtd3.store.replay.tracker import RefusedSegment

_SHOWN = 10
"""Number of refused segments that a summary lists; the document lists all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LearnProgress:
    """The current state of a run. Values that are not known yet are None.

    Example:
        >>> progress = LearnProgress(updates=500, target=1_000, critic_loss=0.25)
        >>> progress.line()
        'update 500 of 1,000, critic loss 0.25'
    """

    updates: int
    """Updates so far."""
    target: int
    """Total number of updates of the run."""
    updates_per_second: float | None = None
    """Updates per second between the last two log lines, or since the start of the process."""
    critic_loss: float | None = None
    """Loss of the critics at the last log line."""
    actor_loss: float | None = None
    """Loss of the actor at the last log line that has one."""
    q: float | None = None
    """Mean Q1 at the last log line."""
    episode_return: float | None = None
    """Mean return of the newest episodes."""
    policy_version: int | None = None
    """Version of the newest published policy."""
    alerts: tuple[str, ...] = ()
    """The newest alerts, as text."""
    waiting: str = ""
    """What the run is waiting for; empty while it trains."""
    refused: tuple[RefusedSegment, ...] = ()
    """Segments that cannot be used."""
    absent: tuple[Path, ...] = ()
    """Datasets that disappeared during training."""
    mirror_bytes: int | None = None
    """Bytes of the copies of datasets that are URLs; None if there are none."""
    steps_by_collector: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Steps that the datasets have published so far, by the name of their collector."""

    @property
    def fraction(self) -> float:
        """Completed share of the updates, in [0, 1]."""
        return min(self.updates / self.target, 1.0)  # a resume may have a lower target

    def status(self) -> dict[str, Any]:
        """Return the fields of a heartbeat, see `avtd3.store.status.Beat`."""
        return {
            "steps": sum(self.steps_by_collector.values()),
            "rate": self.updates_per_second,
            "policy_version": self.policy_version,
            "updates": self.updates,
            "target": self.target,
            "refused": len(self.refused),
            "mirror_bytes": self.mirror_bytes,
            "acknowledged": dict(self.steps_by_collector),
            "waiting": self.waiting,
            "alerts": (*self.alerts, *(f"{path} has disappeared" for path in self.absent)),
        }

    def line(self) -> str:
        """Return the progress as one line of text."""
        return "; ".join((self.waiting or ", ".join(self._facts()), *_problems(self)))

    def _facts(self) -> list[str]:
        facts = [f"update {self.updates:,} of {self.target:,}"]
        if self.updates_per_second is not None:
            facts.append(f"{self.updates_per_second:.1f}/s")
        for name, value in (
            ("critic loss", self.critic_loss),
            ("actor loss", self.actor_loss),
            ("Q", self.q),
            ("return", self.episode_return),
        ):
            if value is not None:
                facts.append(f"{name} {value:.3g}")
        if self.policy_version is not None:
            facts.append(f"policy {self.policy_version}")
        return facts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LearnReport:
    """The result of one process lifetime of a run.

    Example:
        >>> report = LearnReport(run="run", policies="run/policies", updates=1_000)
        >>> report.halted is None
        True
    """

    run: str
    """The run's directory."""
    policies: str
    """Directory of the policies."""
    updates: int = 0
    """Updates so far, including those before a resume."""
    session_updates: int = 0
    """Updates in this process."""
    updates_per_second: float = 0.0
    """Updates per second in this process, without the time spent waiting for data."""
    policy_version: int | None = None
    """Version of the newest published policy; None if the run stopped before the first one."""
    halted: str | None = None
    """Why a guard ended the run; None if none did."""
    stopped: bool = False
    """Whether a callback stopped the run before its last update."""
    seconds: float = 0.0
    """Wall-clock time of this process, in seconds."""
    waited_s: float = 0.0
    """Part of it that was spent waiting for data, in seconds."""
    replay: str = ""
    """The replay mode, and why it was chosen; empty if the run stopped before."""
    steps: int = 0
    """Number of transitions that could be sampled at the end."""
    skipped: int = 0
    """Skipped updates, because a loss or gradient was not finite."""
    alerts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Number of alerts of the run so far, by level."""
    rollbacks: int = 0
    """Number of rollbacks to a good checkpoint after a stop alert."""
    resumed_exactly: bool | None = None
    """After a resume, whether the data are the same as for the checkpoint; None otherwise."""
    changes: tuple[str, ...] = ()
    """Settings that a resume changed, as text."""
    refused: tuple[RefusedSegment, ...] = ()
    """Segments that could not be used."""
    absent: tuple[Path, ...] = ()
    """Datasets that disappeared during training."""
    unsent: str = ""
    """Which policies are not at their URL, and what to do; empty if all are."""

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return dataclasses.asdict(self) | {
            "refused": [
                {"dataset": str(r.dataset), "segment": r.segment_id, "reason": r.reason}
                for r in self.refused
            ],
            "absent": [str(path) for path in self.absent],
        }

    def summary(self) -> str:
        """Return the report as text for the terminal."""
        state = "stopped" if self.stopped else "done"
        lines = [
            f"{f'HALTED: {self.halted}' if self.halted else state}: "
            f"{plural(self.updates, 'update')}, {self.session_updates:,} of them in "
            f"{duration(self.seconds)} ({self.updates_per_second:.1f} per second, "
            f"{duration(self.waited_s)} waiting for data)",
            f"run {self.run}; policy {self.policy_version} in {self.policies}",
            *([self.replay] if self.replay else []),
        ]
        lines += [f"changed {change}" for change in self.changes]
        if self.resumed_exactly is False:
            lines.append("the data are no longer the same as for the checkpoint")
        if counts := [f"{count} {level}" for level, count in self.alerts.items() if count]:
            lines.append(f"alerts: {', '.join(counts)}; see {self.run}/alerts.jsonl")
        if self.rollbacks:
            lines.append(f"rollbacks to a good checkpoint: {self.rollbacks}")
        if self.refused:
            lines.append(f"{plural(len(self.refused), 'segment')} refused:")
            lines += [f"  {r.segment_id}: {r.reason}" for r in self.refused[:_SHOWN]]
        if len(self.refused) > _SHOWN:
            lines.append(f"  and {len(self.refused) - _SHOWN} more; --json lists all")
        return join_lines([*lines, *_absences(self), *([self.unsent] if self.unsent else [])])


def _problems(progress: LearnProgress) -> list[str]:
    refused = progress.refused
    problems = [
        f"{plural(len(refused), 'segment')} refused, last: {last.segment_id}: {last.reason}"
        for last in refused[-1:]
    ]
    return [*progress.alerts, *problems, *_absences(progress)]


def _absences(of: LearnProgress | LearnReport) -> list[str]:
    return [
        f"dataset {path} has disappeared; training continues with the data read before"
        for path in of.absent
    ]
