"""What a collection reports: `CollectProgress` while it runs, `CollectReport` at its end."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Self

from avtd3.collect.recovery import Skipped, describe_skipped
from avtd3.store.render.text import duration, file_size, join_lines, plural

_SUMMED = (
    *("steps", "episodes", "segments", "size_bytes"),
    *("return_sum", "losses", "limited_episodes"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What has been collected so far, by one worker or by all."""

    steps: int = 0
    episodes: int = 0
    segments: int = 0
    size_bytes: int = 0
    return_sum: float = 0.0
    end_reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    policy_version: int = -1
    """Newest policy that has driven; -1 if none has."""
    action_limit: float = 1.0
    """Fraction of the actions' range that the newest episode's policy uses; 1 is all of it."""
    limited_episodes: int = 0
    waiting: str = ""
    warning: str = ""
    losses: int = 0
    skipped: tuple[Skipped, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def return_mean(self) -> float:
        """Mean return of the ended episodes; 0 before the first."""
        return self.return_sum / max(self.episodes, 1)

    def with_end(self, reason: str, episode_return: float) -> Self:
        """Return the tally with one more ended episode."""
        total, count = self.return_sum + episode_return, self.end_reasons.get(reason, 0) + 1
        reasons = {**self.end_reasons, reason: count}
        return dataclasses.replace(
            self, episodes=self.episodes + 1, return_sum=total, end_reasons=reasons
        )

    @classmethod
    def total(cls, tallies: Iterable[Self | None]) -> Self:
        """Add up the tallies of all workers, if any; None for one that has not reported yet."""
        every = [tally or cls() for tally in tallies] or [cls()]
        reasons: collections.Counter[str] = collections.Counter()
        for tally in every:
            reasons.update(tally.end_reasons)
        return cls(
            **{name: sum(getattr(tally, name) for tally in every) for name in _SUMMED},
            end_reasons=dict(reasons),
            policy_version=max(tally.policy_version for tally in every),
            action_limit=min(tally.action_limit for tally in every),
            waiting=every[0].waiting if all(tally.waiting for tally in every) else "",
            warning=next((tally.warning for tally in every if tally.warning), ""),
            skipped=tuple(sorted((e for t in every for e in t.skipped), key=lambda e: e.index)),
            lost=tuple(sentence for tally in every for sentence in tally.lost),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectProgress:
    """The state of a running collection."""

    tally: Tally
    seconds: float
    fraction: float
    disk_free_bytes: int
    remote: str = ""
    """What uploads, or the copies of policies, wait for."""
    spool_bytes: int | None = None
    """Bytes that wait to be uploaded; None if the dataset is a directory."""

    def status(self) -> dict[str, Any]:
        """Return the fields of a heartbeat, see `avtd3.store.status.Beat`."""
        tally = self.tally
        return {
            "steps": tally.steps,
            "rate": tally.steps / max(self.seconds, 1e-9),
            "policy_version": tally.policy_version if tally.policy_version >= 0 else None,
            "disk_free_bytes": self.disk_free_bytes,
            "spool_bytes": self.spool_bytes,
            "waiting": "; ".join(text for text in (tally.waiting, self.remote) if text),
            "alerts": tuple(text for text in (tally.warning, *tally.lost) if text),
        }

    def line(self) -> str:
        """Return the state as one line of text."""
        tally = self.tally
        parts = [
            plural(tally.steps, "step"),
            f"{tally.steps / max(self.seconds, 1e-9):.0f}/s",
            plural(tally.episodes, "episode"),
            f"return {tally.return_mean:.1f}",
            file_size(tally.size_bytes),
            f"{file_size(self.disk_free_bytes)} free",
        ]
        limit = f"actions limited to {tally.action_limit:.0%} of their range"
        optional = (
            (tally.policy_version >= 0, f"policy {tally.policy_version}"),
            (tally.action_limit < 1.0, f"episode {tally.limited_episodes} with {limit}"),
            (tally.losses, f"simulator lost {plural(tally.losses, 'time')}"),
            (tally.skipped, f"{len(tally.skipped)} skipped"),
        )
        parts += [text for is_shown, text in optional if is_shown]
        parts += [text for text in (tally.waiting, self.remote, tally.warning, *tally.lost) if text]
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectReport:
    """The result of `collect`.

    Example:
        >>> report = CollectReport(
        ...     dataset="data", tally=Tally(steps=500, episodes=2), seconds=0.5, workers=1,
        ...     held_steps=0, interrupted=False, plan_digest="", missing="",
        ... )
        >>> report.document()["steps_per_second"]
        1000.0
    """

    dataset: str
    """Path of the dataset."""
    tally: Tally
    """What this call collected."""
    seconds: float
    """Seconds that it took."""
    workers: int
    """Processes that collected."""
    held_steps: int
    """Steps of the same plan that were in the dataset before."""
    interrupted: bool
    """Whether it was stopped before the plan was complete."""
    plan_digest: str
    """Digest that identifies the plan's episodes in the dataset."""
    missing: str
    """What the plan still lacks (``3 episodes``), or an empty string."""
    changes: tuple[str, ...] = ()
    """Settings that a resume changed, as text."""
    unsent: str = ""
    """Which segments are not at the URL yet, and what to do; empty if all are."""

    @property
    def failure(self) -> str:
        """Why the plan is incomplete because of simulators, and what to do; empty if it is not."""
        causes = list(self.tally.lost)
        if self.tally.skipped and self.missing and not self.interrupted:
            causes.append(f"{len(self.tally.skipped)} skipped")
        if not causes:
            return ""
        missing = f"{self.missing or 'time'} missing"
        return "; ".join([*causes, missing, "run the same command with --resume to continue"])

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        tally = self.tally
        return {
            "dataset": self.dataset,
            "steps": tally.steps,
            "episodes": tally.episodes,
            "segments": tally.segments,
            "seconds": self.seconds,
            "steps_per_second": tally.steps / max(self.seconds, 1e-9),
            "bytes": tally.size_bytes,
            "return_mean": tally.return_mean if tally.episodes else None,
            "end_reasons": dict(sorted(tally.end_reasons.items())),
            "policy_version": tally.policy_version if tally.policy_version >= 0 else None,
            "limited_episodes": tally.limited_episodes,
            "workers": self.workers,
            "held_steps": self.held_steps,
            "interrupted": self.interrupted,
            "plan_digest": self.plan_digest,
            "losses": tally.losses,
            "skipped": [dataclasses.asdict(episode) for episode in tally.skipped],
            "lost_workers": list(tally.lost),
            "missing": self.missing,
            "changes": list(self.changes),
            "unsent": self.unsent,
        }

    def summary(self) -> str:
        """Return the report as text."""
        tally = self.tally
        ends = ", ".join(f"{n} {reason}" for reason, n in sorted(tally.end_reasons.items()))
        lines = [
            f"{plural(tally.steps, 'step')} in {plural(tally.episodes, 'episode')}, "
            f"{plural(tally.segments, 'segment')}, {file_size(tally.size_bytes)}, "
            f"to {self.dataset}",
            f"{duration(self.seconds)}, {tally.steps / max(self.seconds, 1e-9):.0f} steps/s, "
            f"{plural(self.workers, 'worker')}",
        ]
        limited = f"{plural(tally.limited_episodes, 'episode')} with actions limited by the learner"
        held = f"{plural(self.held_steps, 'step')} of this plan in the dataset before"
        optional = (
            (tally.episodes, f"mean return {tally.return_mean:.1f}; ends: {ends}"),
            (tally.limited_episodes, limited),
            (self.held_steps, held),
            (tally.losses, f"the simulator was lost {plural(tally.losses, 'time')}"),
            (tally.warning, f"last warning: {tally.warning}"),
        )
        lines += [text for is_shown, text in optional if is_shown]
        lines += [f"changed {change}" for change in self.changes]
        lines += describe_skipped(tally.skipped)
        lines += [self.unsent] if self.unsent else []
        if self.interrupted:
            lines.append("interrupted; run the same command with --resume to continue")
        return join_lines(lines)
