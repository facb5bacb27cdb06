"""Metrics of updates: functions from tensors to named scalars, and `UpdateMetrics`.

The functions return tensors on the device. Reading them back waits for the device, so
`UpdateMetrics` and the guards read many of them at once.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avtd3.learn.gradient_clip import GradientNorms
from avtd3.learn.td3 import ActorTerms, CriticTerms, Update
from avtd3.store.errors import CheckpointError

SATURATED = 0.99
"""Absolute value of tanh above which an action counts as saturated."""


def actor_scalars(terms: ActorTerms) -> dict[str, Tensor]:
    """Return the loss of an actor update and statistics of its actions, by metric."""
    return {
        "actor/loss": terms.loss,
        "actor/q_mean": terms.q.mean(),
        "actor/imitation": terms.imitation,
        "actor/saturation": (terms.pre_tanh.tanh().abs() > SATURATED).float().mean(),
        "actor/action_std": terms.action.std(dim=0, correction=0).mean(),
        "actor/pre_tanh": terms.pre_tanh.abs().mean(),
    }


def critic_scalars(terms: CriticTerms, reward: Tensor) -> dict[str, Tensor]:
    """Return the loss of a critic update and statistics of its batch, by metric.

    Args:
        terms: The terms of the loss.
        reward: (B,) rewards, scaled and clipped.
    """
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


def feature_scalars(name: str, state: Tensor, count: int) -> dict[str, Tensor]:
    """Return statistics of a CNN's features, by metric; none if there are no features.

    Args:
        name: Prefix of the metrics' names.
        state: (B, F + V) features and vector.
        count: F, the number of features.
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


def _norm_scalars(name: str, norms: GradientNorms) -> dict[str, Tensor]:
    return {
        f"{name}_cnn/grad_norm_before": norms.cnn_before,
        f"{name}_cnn/grad_norm_after": norms.cnn_after,
        f"{name}_mlp/grad_norm_before": norms.mlp_before,
        f"{name}_mlp/grad_norm_after": norms.mlp_after,
    }


def json_number(value: float) -> float | str:
    """Return a finite number as it is and any other as text; `float` parses both."""
    return value if math.isfinite(value) else str(value)


class UpdateMetrics:
    """Collect the metrics of updates between two log lines.

    Args:
        features: Number of features of each CNN; 0 without a camera.
    """

    def __init__(self, *, features: int) -> None:
        self._feature_count = features
        self._clear()

    def _clear(self) -> None:
        self._last: Update | None = None
        self._last_actor: Update | None = None
        self._clipped: dict[str, list[Tensor]] = {"critic": [], "actor": []}
        self._restored: dict[str, float] = {}
        self._restored_clipped: dict[str, list[float]] = {"critic": [], "actor": []}

    def add(self, update: Update) -> None:
        """Add an update, without waiting for the device."""
        self._last = update
        self._clipped["critic"].append(update.critic_norms.clipped)
        if update.actor_norms is not None:
            self._last_actor = update
            self._clipped["actor"].append(update.actor_norms.clipped)

    def read(self) -> dict[str, float]:
        """Return the metrics since the last call, and start again; wait for the device once."""
        restored = self._restored if self._last_actor is None else {}
        scalars: dict[str, Tensor] = self._actor_scalars()
        if self._last is not None:
            scalars |= critic_scalars(self._last.critic, self._last.reward)
            scalars |= _norm_scalars("critic", self._last.critic_norms)
            scalars |= feature_scalars("critic_cnn", self._last.critic.state, self._feature_count)
        scalars |= {
            f"{name}/clip_fraction": clipped.mean()
            for name, clipped in self._all_clipped().items()
            if len(clipped)
        }
        self._clear()
        return restored | self._read_back(scalars)

    def state(self) -> dict[str, Any]:
        """Return what was collected as JSON; wait for the device.

        The critic's metrics are not included: the next log line takes them from a later update.
        """
        actor = self._restored | self._read_back(self._actor_scalars())
        return {
            "actor": {name: json_number(value) for name, value in actor.items()},
            "clipped": {name: clipped.tolist() for name, clipped in self._all_clipped().items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned; old checkpoints have an empty mapping.

        Raises:
            CheckpointError: If the state is invalid.
        """
        if not state:
            return
        try:
            self._restored = {str(name): float(value) for name, value in state["actor"].items()}
            self._restored_clipped = {
                name: [float(value) for value in state["clipped"][name]] for name in self._clipped
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint's metrics cannot be read ({error!r}); resume from another one"
            ) from error

    def _all_clipped(self) -> dict[str, Tensor]:
        """Return float32 (N,) by network: 1 for each update that was clipped, else 0."""
        found = {}
        for name, clipped in self._clipped.items():
            now = torch.stack(clipped) if clipped else torch.empty(0)
            before = torch.tensor(self._restored_clipped[name], device=now.device)
            found[name] = torch.cat([before, now.to(torch.float32)])
        return found

    def _actor_scalars(self) -> dict[str, Tensor]:
        """Return the metrics of the last actor update; none if there was none."""
        if self._last_actor is None or self._last_actor.actor is None:
            return {}
        assert self._last_actor.actor_norms is not None
        actor = self._last_actor.actor
        scalars = actor_scalars(actor) | _norm_scalars("actor", self._last_actor.actor_norms)
        return scalars | feature_scalars("actor_cnn", actor.state, self._feature_count)

    def _read_back(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        if not scalars:
            return {}
        device = next(iter(scalars.values())).device
        values = torch.stack([value.to(device, torch.float32) for value in scalars.values()])
        return {
            name: value
            for name, value in zip(scalars, values.tolist(), strict=True)
            if not (self._feature_count == 0 and "_cnn/" in name)
        }
