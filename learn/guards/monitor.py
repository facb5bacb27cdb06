"""`GuardMonitor`: all guards of a run, read every so many updates."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtd3.learn.batch import Batch
from avtd3.learn.guards.action_limit import ActionLimit
from avtd3.learn.guards.alerts import FILE, AlertLog
from avtd3.learn.guards.cnn_lr import CnnRate
from avtd3.learn.guards.config import LEVELS, GuardConfig
from avtd3.learn.guards.limits import Finding, Memory, look, look_at_layers
from avtd3.learn.guards.readings import LayerProbe, Reading, Window
from avtd3.learn.td3 import TD3State, Update
from avtd3.store.errors import CheckpointError

CNNS = ("actor", "critic")
_SERIOUS = LEVELS.index("serious")


class GuardMonitor:
    """Guards over the updates of a run.

    Args:
        run: The run's directory.
        config: The limits.
        features: Numbers that each CNN makes; 0 without a camera.
        policy_delay: Critic updates per actor update.
    """

    def __init__(self, run: Path, config: GuardConfig, *, features: int, policy_delay: int) -> None:
        self.config = config
        self.alerts = AlertLog(run / FILE, config.repeat_every)
        self.rates = {name: CnnRate(config.rate) for name in CNNS}
        self.action_limit = ActionLimit(config.action_limit)
        self.last_good: int | None = None
        """Updates of the newest good checkpoint, see `mark`."""
        self.rollbacks = 0
        """Times that the run went back to a good checkpoint."""
        self._window = Window(features=features)
        self._layers = LayerProbe(config.layers_every, policy_delay)
        self._memory = Memory()
        self._is_serious = False

    def before(self, state: TD3State) -> None:
        """To be called before an update."""
        if self.config.enabled:
            self._layers.before(state)

    def after(
        self, state: TD3State, done: Update, batch: Batch, episode_length: float | None
    ) -> "Watched":
        """To be called after an update; waits for the device only where a reading is due.

        Args:
            state: The networks; the learning rates of their CNNs may be changed.
            done: What the update did.
            batch: What it learned from.
            episode_length: Mean steps of the newest episodes, if there are any.
        """
        if not self.config.enabled:
            return Watched()
        at = state.updates
        self._window.add(at, done, batch)
        scalars = self._layers.after(state)
        findings = look_at_layers(scalars, at, self.config)
        is_due = at % self.config.every == 0
        if is_due:
            reading = self._window.take()
            findings += look(reading, self._memory, self.config)
            self._memory = self._memory.after(reading, self.config)
            self._act(state, reading, episode_length)
        findings.sort(key=_level)  # the worst is said last, and shown longest
        for finding in findings:
            self.alerts.add(finding, at)
        self._is_serious |= any(_level(finding) >= _SERIOUS for finding in findings)
        if is_due:
            scalars |= self.scalars()
        stops = [finding for finding in findings if finding.level == "stop"]
        return Watched(
            scalars=scalars,
            stop=stops[0] if stops else None,
        )

    def scalars(self) -> dict[str, float]:
        """Counts of alerts and what holds now, for the log."""
        return self.alerts.scalars() | {
            "run/action_limit": self.action_limit.share,
            "run/rollbacks": float(self.rollbacks),
        }

    def mark(self, updates: int) -> None:
        """HeldOutEvaluator whether a checkpoint that is about to be saved is a good one.

        It is if nothing serious was found since the one before, and the newest update of each
        network was not left out.
        """
        reading = self._window.settle()
        worst = max((_level(f) for f in look(reading, self._memory, self.config)), default=-1)
        now = self._memory.after(reading, self.config)
        is_left_out = now.skipped_in_a_row or now.actor_skipped_in_a_row
        if not self._is_serious and worst < _SERIOUS and not is_left_out:
            self.last_good = updates
        self._is_serious = False

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "alerts": self.alerts.state(),
            "rates": {name: rate.state() for name, rate in self.rates.items()},
            "action_limit": self.action_limit.state(),
            "last_good": self.last_good,
            "rollbacks": self.rollbacks,
            "memory": dataclasses.asdict(self._memory),
            "window": self._window.settle().document(),
        }

    def restore(self, state: Mapping[str, Any], networks: TD3State) -> None:
        """Go on from what `state` gave; from nothing, for checkpoints older than the guards.

        Raises:
            CheckpointError: It is something else.
        """
        if not state:
            return
        try:
            self.alerts.restore(state["alerts"])
            for name, rate in self.rates.items():
                rate.restore(state["rates"][name])
            self.action_limit.restore(state["action_limit"])
            self.last_good, self.rollbacks = state["last_good"], int(state["rollbacks"])
            self._memory = Memory(**state["memory"])
            self._window.restore(Reading.from_json(state["window"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint's guards cannot be read ({error!r}); resume from another one"
            ) from error
        self._is_serious = False
        set_rates(networks, self.rates)

    def resumed(self, state: Mapping[str, Any], networks: TD3State) -> None:
        """Go on in a new session from what `state` gave; see `restore`."""
        self.restore(state, networks)
        self.alerts.resume(networks.updates)

    def rolled_back(self, state: Mapping[str, Any], networks: TD3State) -> None:
        """Go on from what `state` gave, with the alerts of today and CNNs that learn slower."""
        alerts, rollbacks = self.alerts.state(), self.rollbacks
        self.restore(state, networks)
        self.alerts.restore(alerts)
        self.rollbacks = rollbacks + 1
        for rate in self.rates.values():
            rate.cut(self.config.rollback_rate, networks.updates)
        set_rates(networks, self.rates)

    def _act(self, state: TD3State, reading: Reading, episode_length: float | None) -> None:
        at = state.updates
        for name, rate in self.rates.items():
            norm = reading.last.get(f"{name}_cnn/feature_norm")
            if norm is not None and (text := rate.read(norm, at)):
                limit = self.config.rate.halve_above
                self.alerts.note(f"{name}_cnn_rate", at, text, value=norm, limit=limit)
                set_rates(state, self.rates)
        if text := self.action_limit.read(reading.last, episode_length, at):
            self.alerts.note("action_limit", at, text, value=1.0, limit=1.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the guards have to say after an update."""

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """For the log."""
    stop: Finding | None = None
    """A stop alert, if there was one."""


def set_rates(state: TD3State, rates: Mapping[str, CnnRate]) -> None:
    """Give the CNNs their share of the configured learning rates, by the network's name."""
    for name, rate in rates.items():
        _, optimizer = state.networks()[name]
        for group in optimizer.param_groups:
            if group["part"] == "cnn":
                decay = group["lr"] / group["base_lr"]
                full = group.setdefault("full_lr", group["base_lr"])
                group["base_lr"] = full * rate.share
                group["lr"] = decay * group["base_lr"]


def _level(finding: Finding) -> int:
    return LEVELS.index(finding.level)
