"""What becomes of a collection or an evaluation whose simulator is lost again and again.

A world that is lost (`WorldLost`) may be back at its next reset: it brings up a fresh client, and a
fresh server if it started that itself. So the same episode is begun again, some times; an episode
that never comes to its first step is skipped and listed, and so is, at once, a route of a scenario
file that its roads do not have. A server that stays away, or failures without end, stop the one
worker that drives there; the other workers go on, and a resumption collects what is missing.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from avtd3.collect.checks import check_number
from avtd3.store.errors import RouteError, WorldLost

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
