"""What becomes of a collection or an evaluation whose simulator is lost again and again.

A world that is lost (`WorldLost`) may be back at its next reset: it brings up a fresh client, and a
fresh server if it started that itself. So the same episode is begun again, some times; an episode
that never comes to its first step is skipped and listed, and so is, at once, a route of a scenario
file that its roads do not have. A server that stays away, or failures without end, stop the one
worker that drives there; the other workers go on, and a resumption collects what is missing.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Self

from avtd3.collect.checks import check_number
from avtd3.store.errors import RouteError, WorldLost
from avtd3.store.render.text import file_size, plural

PROGRESS_STEPS = 20
"""Steps between two failures that make them no failures in a row: a second of driving. A server
that lives for a step or two would otherwise fill a dataset with episodes of that length."""
NO_ROUTE = "no_route"
"""Reason of an episode whose route cannot be driven on its roads."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryConfig:
    """How much a worker bears before it skips an episode, and before it gives up."""

    attempts: int = 3
    """How often an episode is begun that is lost before its first step; then it is skipped."""
    failures: int = 9
    """Failures in a row, with less than a second driven between them, that end a worker; more
    than twice `attempts`, so that two episodes that no server survives are skipped. A route that
    cannot be driven is one."""

    def __post_init__(self) -> None:
        check_number("recovery.attempts", self.attempts, minimum=1, maximum=1000)
        check_number("recovery.failures", self.failures, minimum=1, maximum=1_000_000)


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """An episode that could not be driven."""

    index: int
    """Its index in the plan."""
    reason: str
    """Why the world was lost, see `WorldLost`, or `NO_ROUTE`."""
    error: str
    """The last failure, in a sentence."""

    def document(self) -> dict[str, Any]:
        """The same as JSON values."""
        return dataclasses.asdict(self)


class Recovery:
    """One worker's count of failures.

    Args:
        config: How much to bear.
    """

    def __init__(self, config: RecoveryConfig) -> None:
        self._config = config
        self._failures, self._steps = 0, 0
        self._index, self._attempts = -1, 0

    def lost(self, index: int, error: WorldLost, steps: int) -> Skipped | None:
        """Take in that the world was lost while an episode was begun or driven.

        Args:
            index: The episode's index.
            error: What happened.
            steps: Steps that the worker has driven so far.

        Returns:
            None if another attempt may be made, else what is to be skipped.

        Raises:
            WorldLost: There is no use in going on; the message says why.
        """
        too_many = self._counted(steps)
        self._attempts = self._attempts + 1 if index == self._index else 1
        self._index = index
        if error.reason == "server_away":
            raise error
        if too_many:
            raise WorldLost(f"{too_many}: {error}", error.reason)
        if self._attempts < self._config.attempts:
            return None
        return Skipped(index, error.reason, str(error))

    def unplanned(self, index: int, error: RouteError, steps: int) -> Skipped:
        """Take in that an episode's route cannot be driven; see `lost`.

        Raises:
            RouteError: There is no use in going on; the message says why.
        """
        if too_many := self._counted(steps):
            raise RouteError(f"{too_many}: {error}")
        return Skipped(index, NO_ROUTE, str(error))

    def _counted(self, steps: int) -> str:
        """Count a failure; words for too many of them, or an empty string."""
        moved = steps - self._steps >= PROGRESS_STEPS
        self._failures, self._steps = 1 if moved else self._failures + 1, steps
        is_over = self._failures >= self._config.failures
        return f"{self._failures} failures in a row, the last" if is_over else ""


def tell_skipped(skipped: Iterable[Skipped]) -> list[str]:
    """Lines that name skipped episodes, for a person."""
    return [f"skipped episode {e.index} ({e.reason}): {e.error}" for e in skipped]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What has been collected so far, by one worker or by all."""

    steps: int = 0
    """Steps written, those of the running episode included."""
    episodes: int = 0
    """Episodes ended."""
    segments: int = 0
    """Segments published."""
    size_bytes: int = 0
    """Bytes published."""
    return_sum: float = 0.0
    """Sum of the returns of the ended episodes."""
    end_reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Episodes by end reason."""
    policy_version: int = -1
    """Newest policy that has driven, -1 if none has."""
    action_limit: float = 1.0
    """Share of the actions' range that the policy of the newest episode used; 1 is all."""
    limited_episodes: int = 0
    """Episodes begun by a policy that its learner holds back."""
    waiting: str = ""
    """What is being waited for, or an empty string."""
    warning: str = ""
    """The last thing that a person should know, or an empty string."""
    losses: int = 0
    """How often the simulator was lost, and had again or not."""
    skipped: tuple[Skipped, ...] = ()
    """Episodes that could not be begun, however often it was tried."""
    lost: tuple[str, ...] = ()
    """Workers that gave up because their simulator is gone for good, and why."""

    @property
    def return_mean(self) -> float:
        """Mean return of the ended episodes; 0 before the first."""
        return self.return_sum / max(self.episodes, 1)

    def with_end(self, reason: str, episode_return: float) -> Self:
        """The tally with one more ended episode."""
        reasons = {**self.end_reasons, reason: self.end_reasons.get(reason, 0) + 1}
        return dataclasses.replace(
            self,
            episodes=self.episodes + 1,
            return_sum=self.return_sum + episode_return,
            end_reasons=reasons,
        )

    @classmethod
    def total(cls, tallies: Iterable[Self]) -> Self:
        """All workers' tallies as one."""
        every = list(tallies)
        reasons: dict[str, int] = {}
        for tally in every:
            for reason, count in tally.end_reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
        waiting = [tally.waiting for tally in every]
        return cls(
            steps=sum(tally.steps for tally in every),
            episodes=sum(tally.episodes for tally in every),
            segments=sum(tally.segments for tally in every),
            size_bytes=sum(tally.size_bytes for tally in every),
            return_sum=sum(tally.return_sum for tally in every),
            end_reasons=reasons,
            policy_version=max((tally.policy_version for tally in every), default=-1),
            action_limit=min((tally.action_limit for tally in every), default=1.0),
            limited_episodes=sum(tally.limited_episodes for tally in every),
            waiting=waiting[0] if waiting and all(waiting) else "",
            warning=next((tally.warning for tally in every if tally.warning), ""),
            losses=sum(tally.losses for tally in every),
            skipped=tuple(sorted((e for t in every for e in t.skipped), key=lambda e: e.index)),
            lost=tuple(sentence for tally in every for sentence in tally.lost),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectProgress:
    """Where a collection stands."""

    tally: Tally
    """What has been collected."""
    seconds: float
    """Wall clock since the start."""
    fraction: float
    """Share of the work that is done, in [0, 1]."""
    disk_free_bytes: int
    """Bytes free where the dataset lies."""

    @property
    def steps_per_second(self) -> float:
        """Mean speed since the start."""
        return self.tally.steps / max(self.seconds, 1e-9)

    def line(self) -> str:
        """Where it stands, in one line."""
        tally = self.tally
        parts = [
            f"{tally.steps} steps",
            f"{self.steps_per_second:.0f}/s",
            f"{tally.episodes} episodes",
            f"return {tally.return_mean:.1f}",
            file_size(tally.size_bytes),
            f"{file_size(self.disk_free_bytes)} free",
        ]
        if tally.policy_version >= 0:
            parts.append(f"policy {tally.policy_version}")
        if tally.action_limit < 1.0:
            parts.append(
                f"episode {tally.limited_episodes} with actions limited to "
                f"{tally.action_limit:.0%} of their range"
            )
        if tally.losses:
            parts.append(f"simulator lost {tally.losses} times")
        if tally.skipped:
            parts.append(f"{len(tally.skipped)} skipped")
        parts += [text for text in (tally.waiting, tally.warning, *tally.lost) if text]
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CollectReport:
    """What a collection has done."""

    dataset: str
    """Path of the dataset."""
    tally: Tally
    """What was collected by this call."""
    seconds: float
    """Wall clock it took."""
    workers: int
    """Processes that collected."""
    held_steps: int
    """Steps of the same plan that the dataset held before."""
    interrupted: bool
    """Whether it was stopped before the plan was done."""
    plan_digest: str
    """Digest by which the plan's episodes are known in the dataset."""
    missing: str
    """What the plan still lacks (``3 episodes``), or an empty string."""

    @property
    def failure(self) -> str:
        """Why simulators kept the plan from being done and what to do, or an empty string."""
        causes = list(self.tally.lost)
        if self.tally.skipped and self.missing and not self.interrupted:
            causes.append(f"{len(self.tally.skipped)} skipped")
        if not causes:
            return ""
        missing = f"{self.missing or 'time'} missing"
        return "; ".join([*causes, missing, "the same command with --resume goes on"])

    def document(self) -> dict[str, Any]:
        """The report as JSON values."""
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
            "skipped": [episode.document() for episode in tally.skipped],
            "lost_workers": list(tally.lost),
            "missing": self.missing,
        }

    def summary(self) -> str:
        """The report for a person."""
        tally = self.tally
        ends = ", ".join(f"{n} {reason}" for reason, n in sorted(tally.end_reasons.items()))
        lines = [
            f"{tally.steps} steps in {tally.episodes} episodes, {tally.segments} segments, "
            f"{file_size(tally.size_bytes)}, to {self.dataset}",
            f"{self.seconds:.1f} s, {tally.steps / max(self.seconds, 1e-9):.0f} steps/s, "
            f"{plural(self.workers, 'worker')}",
        ]
        if tally.episodes:
            lines.append(f"mean return {tally.return_mean:.1f}; ends: {ends}")
        if tally.limited_episodes:
            lines.append(f"{tally.limited_episodes} episodes with actions limited by the learner")
        if self.held_steps:
            lines.append(f"{self.held_steps} steps of this plan were there before")
        if tally.losses:
            lines.append(f"the simulator was lost {tally.losses} times")
        lines += tell_skipped(tally.skipped)
        if self.interrupted:
            lines.append("interrupted; the same command with --resume goes on")
        return "\n".join(lines)
