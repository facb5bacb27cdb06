"""From updates to numbers: what is read back of them, and when.

An update leaves tensors on the device. They become numbers only when a line is logged, in one
transfer. Values of the actor's update are those of its last one since the line before, and are
absent if there was none: a missing value is never written as 0. What was gathered when a checkpoint
is made goes into it as numbers, so that a run that goes on logs the very same line.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avtd3.learn.guards.clip import GradientNorms
from avtd3.learn.td3 import ActorTerms, CriticTerms, Update
from avtd3.store.errors import CheckpointError

SATURATED = 0.99
"""Share of the way to its bound from which an action counts as saturated."""


class Meter:
    """Gathers updates between two lines of the log."""

    def __init__(self, *, features: int) -> None:
        """Start empty.

        Args:
            features: Numbers that each CNN makes; 0 without a camera.
        """
        self.features = features
        self._clear()

    def _clear(self) -> None:
        self._last: Update | None = None
        self._last_actor: Update | None = None
        self._clipped: dict[str, list[Tensor]] = {"critic": [], "actor": []}
        self._carried: dict[str, float] = {}
        self._carried_clipped: dict[str, list[float]] = {"critic": [], "actor": []}

    def add(self, update: Update) -> None:
        """Take note of an update; nothing is read back."""
        self._last = update
        self._clipped["critic"].append(update.critic_norms.clipped)
        if update.actor_norms is not None:
            self._last_actor = update
            self._clipped["actor"].append(update.actor_norms.clipped)

    def read(self) -> dict[str, float]:
        """Numbers since the last reading, by name; waits for the device once."""
        found = self._carried if self._last_actor is None else {}
        scalars: dict[str, Tensor] = self._actor_scalars()
        if self._last is not None:
            scalars |= _critic_scalars(self._last.critic, self._last.reward)
            scalars |= _norm_scalars("critic", self._last.critic_norms)
            scalars |= feature_scalars("critic_cnn", self._last.critic.state, self.features)
        scalars |= {
            f"{name}/clip_fraction": clipped.mean()
            for name, clipped in self._all_clipped().items()
            if len(clipped)
        }
        self._clear()
        return found | self._read_back(scalars)

    def state(self) -> dict[str, Any]:
        """What is gathered, as JSON; the critic's part is left out: an update comes before a line.

        Waits for the device.
        """
        actor = self._carried | self._read_back(self._actor_scalars())
        return {
            "actor": {name: plain_number(value) for name, value in actor.items()},
            "clipped": {name: clipped.tolist() for name, clipped in self._all_clipped().items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; from nothing, for older checkpoints.

        Raises:
            CheckpointError: It is something else.
        """
        if not state:
            return
        try:
            self._carried = {str(name): float(value) for name, value in state["actor"].items()}
            self._carried_clipped = {
                name: [float(value) for value in state["clipped"][name]] for name in self._clipped
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint's meter cannot be read ({error!r}); resume from another one"
            ) from error

    def _all_clipped(self) -> dict[str, Tensor]:
        """By network, float32 (N,): which updates since the line before were clipped."""
        found = {}
        for name, clipped in self._clipped.items():
            now = torch.stack(clipped) if clipped else torch.empty(0)
            before = torch.tensor(self._carried_clipped[name], device=now.device)
            found[name] = torch.cat([before, now.to(torch.float32)])
        return found

    def _actor_scalars(self) -> dict[str, Tensor]:
        """Of the last update of the actor; empty if there was none."""
        if self._last_actor is None or self._last_actor.actor is None:
            return {}
        assert self._last_actor.actor_norms is not None
        scalars = actor_scalars(self._last_actor.actor)
        scalars |= _norm_scalars("actor", self._last_actor.actor_norms)
        return scalars | feature_scalars("actor_cnn", self._last_actor.actor.state, self.features)

    def _read_back(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        if not scalars:
            return {}
        device = next(iter(scalars.values())).device
        values = torch.stack([value.to(device, torch.float32) for value in scalars.values()])
        return {
            name: value
            for name, value in zip(scalars, values.tolist(), strict=True)
            if not (self.features == 0 and "_cnn/" in name)
        }


def plain_number(value: float) -> float | str:
    """A number that JSON can hold; ``float`` reads it back."""
    return value if math.isfinite(value) else str(value)


def feature_scalars(name: str, state: Tensor, count: int) -> dict[str, Tensor]:
    """What the features of a CNN are like.

    Args:
        name: Before the metrics' names.
        state: (B, F + V) features and vector.
        count: F; without features there are no metrics.
    """
    if not count:
        return {}
    features = state[:, :count].float()
    return {
        f"{name}/feature_norm": torch.linalg.vector_norm(features, dim=1).mean(),
        f"{name}/feature_mean": features.mean(),
        f"{name}/feature_std": features.std(),
        f"{name}/feature_min": features.min(),
        f"{name}/feature_max": features.max(),
        f"{name}/dead_units": (features == 0.0).all(dim=0).float().mean(),
    }


def _critic_scalars(terms: CriticTerms, reward: Tensor) -> dict[str, Tensor]:
    return {
        "critic/loss": terms.loss,
        "critic/q1_mean": terms.q1.mean(),
        "critic/q2_mean": terms.q2.mean(),
        "critic/q_gap": (terms.q1 - terms.q2).abs().mean(),
        "critic/q_min": torch.minimum(terms.q1, terms.q2).min(),
        "critic/q_max": torch.maximum(terms.q1, terms.q2).max(),
        "critic/q_std": terms.q1.std(correction=0),
        "critic/target_mean": terms.target.mean(),
        "critic/target_std": terms.target.std(correction=0),
        "critic/td_error1": (terms.q1 - terms.target).abs().mean(),
        "critic/td_error2": (terms.q2 - terms.target).abs().mean(),
        "batch/reward_mean": reward.mean(),
        "batch/reward_std": reward.std(correction=0),
        "batch/reward_min": reward.min(),
        "batch/reward_max": reward.max(),
    }


def actor_scalars(terms: ActorTerms) -> dict[str, Tensor]:
    """What the actions of an update of the actor were like."""
    return {
        "actor/loss": terms.loss,
        "actor/q_mean": terms.q.mean(),
        "actor/imitation": terms.imitation,
        "actor/saturation": (terms.pre_tanh.tanh().abs() > SATURATED).float().mean(),
        "actor/action_std": terms.action.std(dim=0, correction=0).mean(),
        "actor/pre_tanh": terms.pre_tanh.abs().mean(),
    }


def _norm_scalars(name: str, norms: GradientNorms) -> dict[str, Tensor]:
    return {
        f"{name}_cnn/grad_norm_before": norms.cnn_before,
        f"{name}_cnn/grad_norm_after": norms.cnn_after,
        f"{name}_mlp/grad_norm_before": norms.mlp_before,
        f"{name}_mlp/grad_norm_after": norms.mlp_after,
    }
