"""`Window` and `LayerProbe`: turn updates into the numbers that the guards check."""

import dataclasses
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avtd3.learn.batch import Batch
from avtd3.learn.guards.config import UPDATE_RATIOS, WEIGHTS
from avtd3.learn.logging import actor_scalars, feature_scalars
from avtd3.learn.td3 import TD3State, Update


class LayerProbe:
    """Measure the weights of each layer, and how far one update moves them.

    This reveals growth that clipping does not stop: Adam divides the scale of the gradient out.
    """

    def __init__(self, every: int, policy_delay: int) -> None:
        self._every, self._policy_delay = every, policy_delay
        self._before: dict[str, dict[str, list[Tensor]]] = {}

    def before(self, state: TD3State) -> None:
        """Copy the weights before an update that is due for measurement."""
        number = state.updates + 1
        due: dict[str, nn.Module] = {}
        if number % self._every == 0:
            due["critic"] = state.critic
        if number % self._policy_delay == 0 and number % self._every < self._policy_delay:
            due["actor"] = state.actor
        self._before = {
            name: {k: [p.detach().clone() for p in ps] for k, ps in layers_of(network).items()}
            for name, network in due.items()
        }

    def after(self, state: TD3State) -> dict[str, float]:
        """Return norms and ratios after an update that was due; wait for the device if it was."""
        scalars: dict[str, Tensor] = {}
        for name, layers in self._before.items():
            now = layers_of(getattr(state, name))
            for layer, old in layers.items():
                size = _norm(old)
                step = _norm([b.detach() - a for a, b in zip(old, now[layer], strict=True)])
                scalars[f"{WEIGHTS}{name}.{layer}"] = _norm([p.detach() for p in now[layer]])
                scalars[f"{UPDATE_RATIOS}{name}.{layer}"] = step / size.clamp(min=1e-12)
        self._before = {}
        if not scalars:
            return {}
        values = torch.stack(list(scalars.values())).tolist()
        return dict(zip(scalars, values, strict=True))


def layers_of(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each layer of a network, by the layer's name."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        layers.setdefault(name.rpartition(".")[0], []).append(parameter)
    return layers


def _norm(tensors: list[Tensor]) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)).float())
    return total


_ALWAYS = ("loss", "q_min", "q_max", "grad_norm", "finite")
"""Columns of the updates of both networks."""
_LAST = ("feature_norm", "dead_units", "saturation", "action_std")
"""Metrics of the last update that the guards check."""


@dataclasses.dataclass(slots=True)
class Rows:
    """A table of updates: one row per update, one column per number."""

    updates: list[int] = dataclasses.field(default_factory=list)
    """Number of each update."""
    columns: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """Values by name, one for each update; NaN and infinities included."""

    def column(self, name: str) -> list[float]:
        """Return the values of a column; none if it is missing."""
        return self.columns.get(name, [])

    def extend(self, updates: list[int], columns: Mapping[str, list[float]]) -> None:
        """Append rows."""
        self.updates += updates
        for name, values in columns.items():
            self.columns.setdefault(name, []).extend(values)


@dataclasses.dataclass(slots=True)
class Reading:
    """The numbers of all updates between two readings of the guards."""

    critic: Rows = dataclasses.field(default_factory=Rows)
    """Columns ``loss``, ``q_min``, ``q_max``, ``grad_norm``, ``finite``, and the ``return_min`` and
    ``return_max`` that each batch allows."""
    actor: Rows = dataclasses.field(default_factory=Rows)
    """Columns ``loss``, ``q_min``, ``q_max``, ``grad_norm`` and ``finite`` of the actor updates."""
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics of the features and actions at the last update of each network."""

    def is_consistent(self) -> bool:
        """Return whether every column that the guards read has a value for each update."""
        return all(
            (not rows.updates or set(_ALWAYS) <= rows.columns.keys())
            and all(len(column) == len(rows.updates) for column in rows.columns.values())
            for rows in (self.critic, self.actor)
        )


@dataclasses.dataclass(slots=True)
class _Pending:
    """Tensors of updates that have not been read back yet."""

    updates: list[int] = dataclasses.field(default_factory=list)
    values: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)

    def add(self, update: int, values: Mapping[str, Tensor]) -> None:
        self.updates.append(update)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def columns(self) -> dict[str, Tensor]:
        """Return the columns (N,) of `Rows`, on the device; none without updates."""
        if not self.updates:
            return {}
        stacked = {name: torch.stack(values).float() for name, values in self.values.items()}
        norms = [stacked[name] for name in ("mlp", "cnn") if name in stacked]
        qs = torch.cat([stacked[name] for name in ("q1", "q2") if name in stacked], dim=1)
        found = {
            "loss": stacked["loss"],
            "q_min": qs.amin(dim=1),
            "q_max": qs.amax(dim=1),
            "grad_norm": torch.stack(norms).amax(dim=0),
            "finite": stacked["finite"],
        }
        if "discount" in stacked:
            allowed = allowed_returns(stacked["reward"], stacked["discount"])
            found |= {"return_min": allowed.amin(dim=1), "return_max": allowed.amax(dim=1)}
        return found


class Window:
    """Collect updates between two readings of the guards."""

    def __init__(self, *, features: int) -> None:
        self._reading = Reading()
        self._feature_count = features
        self._critic, self._actor = _Pending(), _Pending()
        self._last: Update | None = None
        self._last_actor: Update | None = None

    def add(self, number: int, update: Update, batch: Batch) -> None:
        """Add an update, without computing anything or waiting for the device."""
        critic = update.critic
        values = {"loss": critic.loss, "q1": critic.q1, "q2": critic.q2, "reward": update.reward}
        values |= {"discount": batch.discount, "finite": update.critic_norms.finite}
        self._critic.add(number, values | update.critic_norms.before)
        self._last = update
        if update.actor is not None and update.actor_norms is not None:
            values = {"loss": update.actor.loss, "q1": update.actor.q}
            values["finite"] = update.actor_norms.finite
            self._actor.add(number, values | update.actor_norms.before)
            self._last_actor = update

    def settle(self) -> Reading:
        """Return the reading so far; wait for the device if there are new updates."""
        parts = (self._critic.columns(), self._actor.columns(), self._last_scalars())
        if tensors := [value for part in parts for value in part.values()]:
            flat = torch.cat([value.reshape(-1).to(torch.float32) for value in tensors])
            numbers = iter(flat.tolist())
            critic, actor, last = (
                {
                    name: list(itertools.islice(numbers, value.numel()))
                    for name, value in part.items()
                }
                for part in parts
            )
            self._reading.critic.extend(self._critic.updates, critic)
            self._reading.actor.extend(self._actor.updates, actor)
            self._reading.last |= {name: value for name, (value,) in last.items()}
        self.restore(self._reading)
        return self._reading

    def take(self) -> Reading:
        """Return the reading, and start again."""
        reading = self.settle()
        self._reading = Reading()
        return reading

    def restore(self, reading: Reading) -> None:
        """Continue from a reading, without updates that have not been read back."""
        self._critic, self._actor = _Pending(), _Pending()
        self._last = self._last_actor = None
        self._reading = reading

    def _last_scalars(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self._last is not None:
            found |= feature_scalars("critic_cnn", self._last.critic.state, self._feature_count)
        if self._last_actor is not None and self._last_actor.actor is not None:
            actor = self._last_actor.actor
            found |= feature_scalars("actor_cnn", actor.state, self._feature_count)
            found |= actor_scalars(actor)
        return {name: value for name, value in found.items() if name.partition("/")[2] in _LAST}


def allowed_returns(reward: Tensor, discount: Tensor) -> Tensor:
    """Return ``r / (1 - discount)``, the discounted return if a transition repeated forever.

    No discounted return over the data exceeds the largest of these: if ``Q <= M`` and
    ``r <= (1 - discount) * M``, then ``r + discount * Q <= M``.
    """
    allowed = torch.nan_to_num(reward / (1.0 - discount))
    return torch.where(torch.isfinite(reward), allowed, 0.0)
