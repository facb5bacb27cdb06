"""What a run says of itself: a line while it learns, a report at its end."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtd3.store.replay.tracker import RefusedSegment

_NAMED = 10
"""Most refused segments that a summary names; the document has all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LearnProgress:
    """Where a run stands. What is not known yet is None, and is not shown."""

    updates: int
    """Updates so far."""
    target: int
    """Updates in all."""
    updates_per_second: float | None = None
    """Throughput between the last two lines of the log, or of the session before there are two."""
    critic_loss: float | None = None
    """Critic's loss at the last line."""
    actor_loss: float | None = None
    """Actor's loss at the last line that had one."""
    q: float | None = None
    """Mean Q1 at the last line."""
    episode_return: float | None = None
    """Sum of rewards of the newest episodes, mean."""
    policy_version: int | None = None
    """Newest published policy."""
    alerts: tuple[str, ...] = ()
    """The newest alerts of the guards, in words."""
    waiting: str = ""
    """What is waited for; empty while learning."""
    refused: tuple[RefusedSegment, ...] = ()
    """Segments that cannot be used."""
    absent: tuple[Path, ...] = ()
    """Datasets that have gone away while they are learned from."""

    @property
    def fraction(self) -> float:
        """Share of the updates that is done."""
        return self.updates / self.target

    def line(self) -> str:
        """Where it stands, in one line."""
        return "; ".join((self.waiting or ", ".join(self._facts()), *_troubles(self)))

    def _facts(self) -> list[str]:
        facts = [f"update {self.updates} of {self.target}"]
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
    """What a session of learning came to."""

    run: str
    """Directory of the run."""
    updates: int
    """Updates in all, those before a resume included."""
    session_updates: int
    """Updates of this session."""
    updates_per_second: float
    """Throughput over this session's learning, waiting excluded."""
    policy_version: int | None
    """Newest published policy; None if it was stopped before there was one."""
    policies: str
    """Directory of the policies."""
    halted: str | None
    """Why a guard stopped the training; None if none did."""
    stopped: bool
    """Whether it was told to stop before its last update."""
    seconds: float
    """Wall time of this session."""
    waited_s: float
    """Of that, seconds spent waiting for data."""
    replay: str
    """Where frames were drawn from, and why; empty if it was stopped before."""
    steps: int
    """Transitions that could be drawn at the end."""
    skipped: int
    """Updates left out because something was not finite."""
    alerts: Mapping[str, int]
    """Alerts of the run so far, by level."""
    rollbacks: int
    """Times that the run went back to a good checkpoint."""
    resumed_exactly: bool | None
    """After a resume: whether the data are still those of the checkpoint. None without one."""
    refused: tuple[RefusedSegment, ...]
    """Segments that could not be used, as of the last look at the datasets."""
    absent: tuple[Path, ...]
    """Datasets that had gone away by then."""

    def document(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return dataclasses.asdict(self) | {
            "refused": [
                {"dataset": str(r.dataset), "segment": r.segment_id, "reason": r.reason}
                for r in self.refused
            ],
            "absent": [str(path) for path in self.absent],
        }

    def summary(self) -> str:
        """The report for a person."""
        state = "stopped" if self.stopped else "done"
        lines = [
            f"{f'HALTED: {self.halted}' if self.halted else state}: {self.updates} updates, "
            f"{self.session_updates} of them in {self.seconds:.0f} s "
            f"({self.updates_per_second:.1f} a second, {self.waited_s:.0f} s waited for data)",
            f"run {self.run}; policy {self.policy_version} in {self.policies}",
            *([self.replay] if self.replay else []),
        ]
        if self.resumed_exactly is False:
            lines.append("the data are no longer those of the checkpoint that it went on from")
        if told := [f"{count} {level}" for level, count in self.alerts.items() if count]:
            lines.append(f"alerts: {', '.join(told)}; see {self.run}/alerts.jsonl")
        if self.rollbacks:
            lines.append(f"went back to a good checkpoint {self.rollbacks} times")
        if self.refused:
            lines.append(f"{len(self.refused)} segments refused:")
            lines += [f"  {r.segment_id}: {r.reason}" for r in self.refused[:_NAMED]]
        if len(self.refused) > _NAMED:
            lines.append(f"  and {len(self.refused) - _NAMED} more, named with --json")
        return "\n".join(lines + _absences(self))


def _troubles(progress: LearnProgress) -> list[str]:
    troubles = list(progress.alerts)
    if progress.refused:
        last = progress.refused[-1]
        troubles.append(
            f"{len(progress.refused)} segments refused, last: {last.segment_id}: {last.reason}"
        )
    return troubles + _absences(progress)


def _absences(of: LearnProgress | LearnReport) -> list[str]:
    return [
        f"dataset {path} has gone away; learned from what was read of it before"
        for path in of.absent
    ]
