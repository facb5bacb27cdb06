"""`Recovery`: what to do when a simulator is lost again and again.

A world that is lost (`WorldLost`) may be back at its next reset: it starts a new client, and a new
server if it started the server itself. So the same episode is tried again, a few times. An episode
that never reaches its first step is skipped and reported; so is, at once, a route of a scenario
file that cannot be driven on its roads. A server that stays away, or failures without end, stop the
one worker that drives there; the other workers continue, and ``--resume`` collects what is missing.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from avtd3.collect.checks import check_number
from avtd3.store.errors import RouteError, WorldLost

PROGRESS_STEPS = 20
"""Steps between two failures after which they no longer count as consecutive: one second of
driving. A server that lives for a step or two would otherwise fill a dataset with episodes of that
length."""
_FINAL = ("server_away", "server_busy")
"""Losses that another attempt does not change."""
NO_ROUTE = "no_route"
"""Reason of an episode whose route cannot be driven on its roads."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryConfig:
    """How many failures a worker accepts before it skips an episode, and before it stops."""

    attempts: int = 3
    """Times that an episode is started and lost before its first step until it is skipped."""
    failures: int = 9
    """Consecutive failures, with less than a second driven between them, that stop a worker; more
    than twice `attempts`, so that two episodes that no server survives are skipped. A route that
    cannot be driven counts as one."""

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
        """Return the same as JSON values."""
        return dataclasses.asdict(self)


class Recovery:
    """One worker's count of failures.

    Args:
        config: How many failures to accept.
    """

    def __init__(self, config: RecoveryConfig) -> None:
        self._config = config
        self._failures, self._steps = 0, 0
        self._index, self._attempts = -1, 0

    def record_loss(self, index: int, error: WorldLost, steps: int) -> Skipped | None:
        """Record that the world was lost while an episode was started or driven.

        Args:
            index: The episode's index.
            error: What happened.
            steps: Steps that the worker has driven so far.

        Returns:
            None to try the episode again, else the record of the skipped episode.

        Raises:
            WorldLost: If the worker should stop; the message says why.
        """
        too_many = self._count_failure(steps)
        self._attempts = self._attempts + 1 if index == self._index else 1
        self._index = index
        if error.reason in _FINAL:
            raise error
        if too_many:
            raise WorldLost(f"{too_many}: {error}", error.reason)
        if self._attempts < self._config.attempts:
            return None
        return Skipped(index, error.reason, str(error))

    def record_no_route(self, index: int, error: RouteError, steps: int) -> Skipped:
        """Record that an episode's route cannot be driven; see `record_loss`.

        Raises:
            RouteError: If the worker should stop; the message says why.
        """
        if too_many := self._count_failure(steps):
            raise RouteError(f"{too_many}: {error}")
        return Skipped(index, NO_ROUTE, str(error))

    def _count_failure(self, steps: int) -> str:
        """Count a failure; return the words for too many of them, or an empty string."""
        moved = steps - self._steps >= PROGRESS_STEPS
        self._failures, self._steps = 1 if moved else self._failures + 1, steps
        is_over = self._failures >= self._config.failures
        return f"{self._failures} failures in a row, the last" if is_over else ""


def describe_skipped(skipped: Iterable[Skipped]) -> list[str]:
    """Return a line of text for each skipped episode."""
    return [f"skipped episode {e.index} ({e.reason}): {e.error}" for e in skipped]
