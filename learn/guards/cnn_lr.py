"""`CnnRate`: the learning rate of one CNN, halved while its features are large."""

import math
from collections.abc import Mapping
from typing import Any

from avtd3.learn.guards.config import CnnRateConfig


class CnnRate:
    """Share of its configured learning rate that a CNN has left."""

    def __init__(self, config: CnnRateConfig) -> None:
        self.share = 1.0
        """Share of the configured rate, in [floor, 1]."""
        self._config = config
        self._halved_at: int | None = None
        self._calm_since: int | None = None

    def read(self, feature_norm: float, at: int) -> str:
        """Take in a feature norm; returns what was done about it, in words, or an empty string.

        Args:
            feature_norm: Per sample, mean over the batch; passed over if not finite.
            at: Updates so far.
        """
        config = self._config
        if not config.enabled or not math.isfinite(feature_norm):
            return ""
        if feature_norm >= config.recover_below:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = at
        if feature_norm > config.halve_above:
            return self._halve(feature_norm, at)
        if self._calm_since is not None and at - self._calm_since >= config.recover_after:
            return self._recover(at)
        return ""

    def cut(self, share: float, at: int) -> None:
        """Take the rate down to a share of what it is, not below the floor."""
        self.share = max(self.share * share, self._config.floor)
        self._halved_at, self._calm_since = at, None

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "share": self.share,
            "halved_at": self._halved_at,
            "calm_since": self._calm_since,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.share = float(state["share"])
        self._halved_at, self._calm_since = state["halved_at"], state["calm_since"]

    def _halve(self, feature_norm: float, at: int) -> str:
        config = self._config
        if self._halved_at is not None and at - self._halved_at < config.cool_down:
            return ""
        if self.share <= config.floor:
            return ""
        self.cut(0.5, at)
        return (
            f"the feature norm is {feature_norm:.4g}, expected at most {config.halve_above:g}: the "
            f"CNN's learning rate is now {self.share:.3g} of the configured one"
        )

    def _recover(self, at: int) -> str:
        self._calm_since = at
        if self.share >= 1.0:
            return ""
        self.share = min(2.0 * self.share, 1.0)
        return (
            f"the feature norm stayed below {self._config.recover_below:g} for "
            f"{self._config.recover_after} updates: the CNN's learning rate is {self.share:.3g} of "
            "the configured one again"
        )
