"""`GuardMonitor`: all guards of a run, and the two quantities that they adjust."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avtd3.learn.batch import Batch
from avtd3.learn.checkpoints import as_json, read_as
from avtd3.learn.guards.alerts import ALERTS_FILE, Alert, AlertLog, AlertState
from avtd3.learn.guards.config import LEVELS, ActionLimitConfig, CnnRateConfig, GuardConfig
from avtd3.learn.guards.limits import History, check_layers, check_reading
from avtd3.learn.guards.readings import LayerProbe, Reading, Window
from avtd3.learn.td3 import TD3State, Update
from avtd3.store.errors import CheckpointError

CNNS = ("actor", "critic")
_SERIOUS = LEVELS.index("serious")


@dataclasses.dataclass(slots=True, kw_only=True)
class CnnRate:
    """The learning rate of one CNN: halved while its features are large, then doubled again."""

    share: float = 1.0
    """Share of the configured rate, in [floor, 1]."""
    halved_at: int | None = None
    calm_since: int | None = None

    def read(self, feature_norm: float, at: int, config: CnnRateConfig) -> str:
        """Adapt the rate to a feature norm; return what changed, or an empty text."""
        if not config.enabled or not math.isfinite(feature_norm):
            return ""
        if feature_norm >= config.recover_below:
            self.calm_since = None
        elif self.calm_since is None:
            self.calm_since = at
        if feature_norm > config.halve_above:
            return self._halve(feature_norm, at, config)
        if self.calm_since is not None and at - self.calm_since >= config.recover_after:
            return self._recover(at, config)
        return ""

    def reduce(self, factor: float, at: int, config: CnnRateConfig) -> None:
        """Multiply the rate by a factor, but not below the floor."""
        self.share = max(self.share * factor, config.floor)
        self.halved_at, self.calm_since = at, None

    def _halve(self, feature_norm: float, at: int, config: CnnRateConfig) -> str:
        is_cooling = self.halved_at is not None and at - self.halved_at < config.cool_down
        if is_cooling or self.share <= config.floor:
            return ""
        self.reduce(0.5, at, config)
        return (
            f"the feature norm is {feature_norm:.4g}, expected at most {config.halve_above:g}: the "
            f"CNN's learning rate is now {self.share:.3g} of the configured one"
        )

    def _recover(self, at: int, config: CnnRateConfig) -> str:
        self.calm_since = at
        if self.share >= 1.0:
            return ""
        self.share = min(2.0 * self.share, 1.0)
        return (
            f"the feature norm stayed below {config.recover_below:g} for {config.recover_after} "
            f"updates: the CNN's learning rate is {self.share:.3g} of the configured one again"
        )


@dataclasses.dataclass(slots=True, kw_only=True)
class ActionLimit:
    """The limit on the actions of published policies, and whether it has been removed."""

    is_lifted: bool
    calm_since: int | None = None

    def read(
        self,
        last: Mapping[str, float],
        episode_length: float | None,
        at: int,
        config: ActionLimitConfig,
    ) -> str:
        """Remove the limit if training looks healthy; return why, or an empty text."""
        if self.is_lifted or (spread := last.get("actor/action_std")) is None:
            return ""
        if not last.get("actor_cnn/feature_norm", 0.0) < config.feature_norm_below:
            self.calm_since = None
            return ""
        if self.calm_since is None:
            self.calm_since = at
        calm = at - self.calm_since
        is_long = episode_length is not None and episode_length > config.episode_length_above
        if calm < config.for_updates or not spread > config.action_std_above or not is_long:
            return ""
        self.is_lifted = True
        return (
            f"the actions of policies are no longer limited: for {calm} updates the feature norm "
            f"stayed below {config.feature_norm_below:g}, the standard deviation of the actions is "
            f"{spread:.3g}, and the newest episodes have {episode_length:.0f} steps"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuardState:
    """The state of all guards, as in a checkpoint."""

    alerts: AlertState
    rates: dict[str, CnnRate]
    action_limit: ActionLimit
    last_good: int | None
    rollbacks: int
    memory: History
    window: Reading


class GuardMonitor:
    """Check the updates of a run, write alerts, and adjust learning rates and the action limit.

    Call `before` and `after` around each update, and `mark_checkpoint` before saving a checkpoint.
    """

    def __init__(
        self,
        run: Path,
        config: GuardConfig,
        *,
        features: int,
        policy_delay: int,
        on_alert: Callable[[Alert], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.alerts = AlertLog(run / ALERTS_FILE, config.repeat_every, on_alert=on_alert)
        self.rates = {name: CnnRate() for name in CNNS}
        self._limit = ActionLimit(is_lifted=config.action_limit.share >= 1.0)
        self.last_good: int | None = None
        """Updates of the newest good checkpoint; see `mark_checkpoint`."""
        self.rollbacks = 0
        """Number of rollbacks to a good checkpoint after a stop alert."""
        self._window = Window(features=features)
        self._layers = LayerProbe(config.layers_every, policy_delay)
        self._history = History()
        self._is_serious = False

    @property
    def action_limit(self) -> float:
        """Share of each half range of the action that policies may use now."""
        return 1.0 if self._limit.is_lifted else self.config.action_limit.share

    def before(self, state: TD3State) -> None:
        """Prepare for an update."""
        if self.config.enabled:
            self._layers.before(state)

    def after(
        self, state: TD3State, update: Update, batch: Batch, episode_length: float | None
    ) -> tuple[Mapping[str, float], Alert | None]:
        """Check an update; return metrics to log, and the first alert of level ``stop``.

        Wait for the device only if a reading is due.
        """
        if not self.config.enabled:
            return {}, None
        at = state.updates
        self._window.add(at, update, batch)
        scalars = self._layers.after(state)
        findings = list(check_layers(scalars, at, self.config))
        is_due = at % self.config.every == 0
        if is_due:
            reading = self._window.take()
            findings += check_reading(reading, self._history, self.config)
            self._history = self._history.after(reading, self.config)
            self._adjust(state, reading, episode_length)
        findings.sort(key=_level)  # the most severe one comes last, and is shown longest
        for finding in findings:
            self.alerts.add(finding, at)
        self._is_serious |= any(_level(finding) >= _SERIOUS for finding in findings)
        if is_due:
            scalars |= self.alerts.scalars()
            scalars |= {
                "run/action_limit": self.action_limit,
                "run/rollbacks": float(self.rollbacks),
            }
        return scalars, next((f for f in findings if f.level == "stop"), None)

    def mark_checkpoint(self, updates: int) -> None:
        """Set `last_good` if the checkpoint that is about to be saved is good.

        Nothing serious was found since the previous one, and no newest update was skipped.
        """
        reading = self._window.settle()
        findings = check_reading(reading, self._history, self.config)
        self._is_serious |= any(_level(finding) >= _SERIOUS for finding in findings)
        now = self._history.after(reading, self.config)
        if not (self._is_serious or now.skipped_in_a_row or now.actor_skipped_in_a_row):
            self.last_good = updates
        self._is_serious = False

    def state(self) -> dict[str, Any]:
        """Return the state of all guards as JSON, for a checkpoint."""
        state = GuardState(
            alerts=self.alerts.state(),
            rates=self.rates,
            action_limit=self._limit,
            last_good=self.last_good,
            rollbacks=self.rollbacks,
            memory=self._history,
            window=self._window.settle(),
        )
        document: dict[str, Any] = as_json(state)
        return document

    def restore(self, document: Mapping[str, Any], networks: TD3State) -> None:
        """Continue from what `state` returned; checkpoints without guards have an empty mapping."""
        if not document:
            return
        where = "the checkpoint's guards"
        state = read_as(GuardState, document, where)
        is_whole = state.rates.keys() >= set(CNNS) and state.window.is_consistent()
        if not is_whole or not all(0.0 < rate.share <= 1.0 for rate in state.rates.values()):
            raise CheckpointError(f"{where} are incomplete; resume from another checkpoint")
        self.alerts.restore(state.alerts)
        self.rates = {name: state.rates[name] for name in CNNS}
        self._limit = state.action_limit
        self._limit.is_lifted |= self.config.action_limit.share >= 1.0
        self.last_good, self.rollbacks = state.last_good, state.rollbacks
        self._history = state.memory
        self._window.restore(state.window)
        self._is_serious = False
        set_cnn_rates(networks, self.rates)

    def resume(self, state: Mapping[str, Any], networks: TD3State) -> None:
        """Restore in a new process, and mark the alerts that became void."""
        self.restore(state, networks)
        self.alerts.resume(networks.updates)

    def roll_back(self, state: Mapping[str, Any], networks: TD3State) -> None:
        """Restore after a rollback: keep the counts of alerts, and reduce the CNNs' rates."""
        alerts, rollbacks = self.alerts.state(), self.rollbacks
        self.restore(state, networks)
        self.alerts.restore(alerts)
        self.rollbacks = rollbacks + 1
        for rate in self.rates.values():
            rate.reduce(self.config.rollback_rate, networks.updates, self.config.rate)
        set_cnn_rates(networks, self.rates)

    def _adjust(self, state: TD3State, reading: Reading, episode_length: float | None) -> None:
        at = state.updates
        for name, rate in self.rates.items():
            norm = reading.last.get(f"{name}_cnn/feature_norm")
            config = self.config.rate
            if norm is not None and (text := rate.read(norm, at, config)):
                limit = config.halve_above
                self.alerts.note(f"{name}_cnn_rate", at, text, value=norm, limit=limit)
                set_cnn_rates(state, self.rates)
        if text := self._limit.read(reading.last, episode_length, at, self.config.action_limit):
            self.alerts.note("action_limit", at, text, value=1.0, limit=1.0)


def set_cnn_rates(state: TD3State, rates: Mapping[str, CnnRate]) -> None:
    """Set the learning rates of the CNNs to their shares of the configured rates."""
    for name, rate in rates.items():
        _, optimizer = state.networks()[name]
        for group in optimizer.param_groups:
            if group["part"] == "cnn":
                decay = group["lr"] / group["base_lr"]
                full = group.setdefault("full_lr", group["base_lr"])
                group["base_lr"] = full * rate.share
                group["lr"] = decay * group["base_lr"]


def _level(alert: Alert) -> int:
    return LEVELS.index(alert.level)
