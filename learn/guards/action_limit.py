"""`ActionLimit`: published policies hold back until the learning looks sound."""

from collections.abc import Mapping
from typing import Any

from avtd3.learn.guards.config import ActionLimitConfig


class ActionLimit:
    """Whether the limit still holds, and since when nothing speaks for it."""

    def __init__(self, config: ActionLimitConfig) -> None:
        self._config = config
        self._is_lifted = config.share >= 1.0
        self._calm_since: int | None = None

    @property
    def share(self) -> float:
        """Share of each half range of the action that policies may use now."""
        return 1.0 if self._is_lifted else self._config.share

    def read(self, last: Mapping[str, float], episode_length: float | None, at: int) -> str:
        """Take in a reading; returns why the limit was lifted, in words, or an empty string.

        Args:
            last: Metrics of the newest updates; without a camera there is no feature norm, and it
                does not count.
            episode_length: Mean steps of the newest episodes; None before there were any.
            at: Updates so far.
        """
        config = self._config
        if self._is_lifted or (spread := last.get("actor/action_std")) is None:
            return ""
        if not last.get("actor_cnn/feature_norm", 0.0) < config.feature_norm_below:
            self._calm_since = None
            return ""
        if self._calm_since is None:
            self._calm_since = at
        calm = at - self._calm_since
        is_long = episode_length is not None and episode_length > config.episode_length_above
        if calm < config.for_updates or not spread > config.action_std_above or not is_long:
            return ""
        self._is_lifted = True
        return (
            f"policies act without limit again: for {calm} updates the feature norm stayed below "
            f"{config.feature_norm_below:g}, the actions vary by {spread:.3g}, and the newest "
            f"episodes have {episode_length:.0f} steps"
        )

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"is_lifted": self._is_lifted, "calm_since": self._calm_since}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; a limit that is configured away does not come back."""
        self._is_lifted = bool(state["is_lifted"]) or self._config.share >= 1.0
        self._calm_since = state["calm_since"]
