"""`LeadConfig`: how far a collection may run ahead of the learner that it collects for.

Published results come from one process that does one update per step. Here the collector and the
learner are two, and either may be the faster one. The learner keeps its side with
``learn.updates_per_step``: no more updates than that for each step. The collector keeps its side
with `max_lead`: no episode is begun while the newest policy is further behind than that.
"""

import dataclasses

from avtd3.collect.checks import check_number, check_positive


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeadConfig:
    """What holds the collector back."""

    random_steps: int = 0
    """Steps of the plan that the random driver takes first, whatever the mixture says; whole
    episodes, so a few more (Fujimoto et al. 2018 take 1 000 or 10 000, the authors' code 25 000).
    With several workers, which episodes these are depends on their number."""
    max_lead: int | None = None
    """Steps, besides the random ones, by which the data may be ahead of the newest policy's
    updates when a policy begins an episode; None never waits. At least ``learn.publish_every`` /
    ``learn.updates_per_step``, or collector and learner wait for one another."""
    updates_per_step: float = 1.0
    """Updates that the learner does per step (``learn.updates_per_step``), to judge the lead by."""
    updates_before: int = 0
    """Updates that the learner had done before the plan's first step, from older data."""

    def __post_init__(self) -> None:
        check_number("random_steps", self.random_steps)
        check_number("max_lead", self.max_lead or 0)
        check_positive("updates_per_step", self.updates_per_step)
        check_number("updates_before", self.updates_before)

    def is_random(self, steps: int) -> bool:
        """Whether an episode that begins after so many steps of the plan is a random one."""
        return steps < self.random_steps

    def waits_for(self, steps: int, updates: int) -> str:
        """Why a policy may not begin an episode yet, or an empty string.

        Args:
            steps: Steps of the plan so far.
            updates: Updates that the newest policy was trained for.
        """
        if self.max_lead is None:
            return ""
        ahead = steps - self.random_steps - self.max_lead
        wanted = self.updates_before + ahead * self.updates_per_step
        if ahead <= 0 or updates >= wanted:
            return ""
        return (
            f"its newest policy has {updates} updates, {steps} steps need {wanted:.0f} "
            f"(max_lead {self.max_lead}); is it running, and does it publish often enough "
            "(learn.publish_every)?"
        )
