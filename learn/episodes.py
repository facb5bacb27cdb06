"""What the newest episodes were like, in the log's names.

The store summarises episodes without knowing what its columns mean. Here the columns that driving
is judged by get their names; a dataset that lacks one of them lacks the metric.
"""

import numpy as np

from avtd3.learn.metrics import REWARD_TERMS
from avtd3.store.replay.episodes import EpisodeSummary
from avtd3.store.spec import EpisodeSpec

END_REASONS = {
    "episode/success": "goal",
    "episode/collision": "collision",
    "episode/off_road": "off_road",
}
"""Metric to the end reason whose share it is."""

TERM_SHARES = {"episode/lane_invasion": "safety/lane_invasion"}
"""Metric to the reward term that the share of episodes is of in which it was not 0."""

VECTOR_COLUMNS = {
    "episode/lateral_deviation": "lateral_m",
    "episode/speed": "speed_mps",
}
"""Metric to the vector's column whose mean size it is, in the column's unit."""


class Episodes:
    """The episodes that no line of the log has told of yet."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self.newest_return: float | None = None
        """Mean return of the newest episodes; kept when they are forgotten."""
        self.newest_length: float | None = None
        """Mean steps of the newest episodes; kept likewise."""
        self._spec = spec
        self._new: list[EpisodeSummary] = []

    def add(self, summary: EpisodeSummary) -> None:
        """Take in what a refresh found."""
        if len(summary):
            self._new.append(summary)
            self.newest_return = float(summary.returns.mean())
            self.newest_length = float(summary.lengths.mean())

    @property
    def are_told(self) -> bool:
        """Whether lines of the log have told of all of them."""
        return not self._new

    def forget(self) -> None:
        """Tell of them no more: a line of the log did, before the run was resumed."""
        self._new.clear()

    def scalars(self, version: int | None) -> dict[str, float]:
        """Means for the log, and forget; empty if there were no episodes.

        Args:
            version: Newest published policy.
        """
        if not self._new:
            return {}
        new = EpisodeSummary.join(self._new, self._spec)
        self.forget()
        found = {
            "episode/return": float(new.returns.mean()),
            "episode/length": float(new.lengths.mean()),
        }
        for metric, reason in END_REASONS.items():
            found[metric] = new.end_reasons.count(reason) / len(new)
        return found | self._columns(new) | _policy_lag(new, version)

    def _columns(self, new: EpisodeSummary) -> dict[str, float]:
        spec = self._spec
        sums = new.reward_term_sums.mean(axis=0).tolist()
        found = {REWARD_TERMS + name: x for name, x in zip(spec.reward_terms, sums, strict=True)}
        for metric, name in TERM_SHARES.items():
            if name in spec.reward_terms:
                term = new.reward_term_sums[:, spec.reward_terms.index(name)]
                found[metric] = float((term != 0.0).mean())
        sizes = new.vector_mean_abs.mean(axis=0) * np.array(spec.vector_scales)
        for metric, name in VECTOR_COLUMNS.items():
            if name in spec.vector_names:
                found[metric] = float(sizes[spec.vector_names.index(name)])
        return found


def _policy_lag(new: EpisodeSummary, version: int | None) -> dict[str, float]:
    driven = new.policy_versions[new.policy_versions >= 0]
    if version is None or not len(driven):
        return {}
    lags = version - driven
    return {
        "run/policy_lag": float(lags.mean()),
        "run/policy_lag_min": float(lags.min()),
        "run/policy_lag_max": float(lags.max()),
    }
