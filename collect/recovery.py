"""`Recovery`: what to do when a simulator is lost again and again.

A world that is lost (`WorldLost`) may be back at its next reset: it starts a new client, and a new
server if it started the server itself. So the same episode is tried again, a few times. An episode
that never reaches its first step is skipped and reported; so is, at once, a map or a route of a
scenario file that cannot be used. A server that stays away, or failures without end, stop the
one worker that drives there; the other workers continue, and ``--resume`` collects what is missing.
"""

import dataclasses
from collections.abc import Iterable

from avtd3.collect.checks import check_number
from avtd3.store.errors import RoadError, RouteError, WorldLost, check_integers

PROGRESS_STEPS = 20
"""Steps between two failures after which they no longer count as consecutive: one second of
driving. A server that lives for a step or two would otherwise fill a dataset with episodes of that
length."""
_FINAL = ("server_away", "server_busy")  # losses that another attempt does not change
NO_ROUTE, NO_ROAD = "no_route", "no_road"
"""Reasons of an episode whose route cannot be driven on its roads, or whose map is refused."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryConfig:
    """How many failures a worker accepts before it skips an episode, and before it stops."""

    attempts: int = 3
    """Times that an episode is started and lost before its first step until it is skipped."""
    failures: int = 9
    """Consecutive failures, with less than a second driven between them, that stop a worker; more
    than twice `attempts`, so that two episodes that no server survives are skipped. As many routes
    in a row that cannot be driven, at least one of each scenario, stop a worker as well."""

    def __post_init__(self) -> None:
        check_integers(self, "recovery.")
        check_number("recovery.attempts", self.attempts, minimum=1, maximum=1000)
        check_number("recovery.failures", self.failures, minimum=1, maximum=1_000_000)


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """An episode that could not be driven."""

    index: int
    reason: str
    """Why the world was lost, see `WorldLost`, or `NO_ROUTE`, or `NO_ROAD`."""
    error: str


class Recovery:
    """One worker's count of failures."""

    def __init__(self, config: RecoveryConfig) -> None:
        self._config = config
        self._failures, self._failed_at = 0, 0
        self._refusals, self._refused_at = 0, 0
        self._index, self._attempts = -1, 0

    def record_loss(self, index: int, error: WorldLost, steps: int) -> Skipped | None:
        """Record that the world was lost while an episode was started or driven."""
        has_driven = steps - self._failed_at >= PROGRESS_STEPS
        self._failures, self._failed_at = 1 if has_driven else self._failures + 1, steps
        self._attempts = self._attempts + 1 if index == self._index else 1
        self._index = index
        if error.reason in _FINAL:
            raise error
        if self._failures >= self._config.failures:
            raise WorldLost(f"{self._failures} failures in a row, the last: {error}", error.reason)
        if self._attempts < self._config.attempts:
            return None
        return Skipped(index, error.reason, str(error))

    def record_refusal(self, index: int, error: RoadError, steps: int, scenarios: int) -> Skipped:
        """Record that the map or the route of an episode cannot be used.

        Episodes take the scenarios in turn, so as many refusals in a row mean that this worker can
        drive none of them; a route that was drawn at random may be possible with another seed.
        """
        self._refusals = 1 if steps > self._refused_at else self._refusals + 1
        self._refused_at = steps
        is_route = isinstance(error, RouteError)
        if self._refusals >= max(self._config.failures if is_route else 1, scenarios):
            count = f"{self._refusals} failures in a row, the last: " * (self._refusals > 1)
            raise type(error)(f"{count}{error}")
        return Skipped(index, NO_ROUTE if is_route else NO_ROAD, str(error))


def describe_skipped(skipped: Iterable[Skipped]) -> list[str]:
    """Return a line of text for each skipped episode."""
    return [f"skipped episode {e.index} ({e.reason}): {e.error}" for e in skipped]
