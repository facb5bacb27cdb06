"""`Throughput`: how fast a session learns, and how long its batches take."""

import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from avtd3.learn.gradient_clip import GradientNorms
from avtd3.learn.metrics import metric
from avtd3.learn.td3 import ActorTerms, CriticTerms, Update
from avtd3.store.errors import CheckpointError


class Throughput:
    """The clock of a session.

    Until the first update nothing is timed; waits for data are left out of the session's pace.
    """

    def __init__(self) -> None:
        self.done = 0
        """Updates of this session."""
        self._started_s = time.monotonic()
        self._paced_from_s: float | None = None
        self._line_s = self._started_s
        self._line_done = 0
        self._sampling_s = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of this session, in seconds."""
        return time.monotonic() - self._started_s

    @property
    def updates_per_second(self) -> float | None:
        """Updates per second of this session, from its first one on; None before that."""
        if self._paced_from_s is None or not self.done:
            return None
        return self.done / max(time.monotonic() - self._paced_from_s, 1e-9)

    def begin(self) -> None:
        """Say that an update begins."""
        if self._paced_from_s is None:
            self._paced_from_s = self._line_s = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Take a wait for data out of the pace."""
        if self._paced_from_s is not None:
            self._paced_from_s += seconds

    def sampled(self, since_s: float) -> None:
        """Say that a batch was drawn, begun at a time of the monotonic clock."""
        self._sampling_s += time.monotonic() - since_s

    def line(self) -> dict[str, float]:
        """Metrics since the line of the log before, which this call ends."""
        now_s = time.monotonic()
        passed_s = max(now_s - self._line_s, 1e-9)
        found = {
            "run/updates_per_second": (self.done - self._line_done) / passed_s,
            "run/sampler_wait": self._sampling_s / passed_s,
        }
        self._line_s, self._line_done, self._sampling_s = now_s, self.done, 0.0
        return found


SATURATED = 0.99
"""Share of the way to its bound from which an action counts as saturated."""


class UpdateMetrics:
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


PREFIX = "events.out.tfevents."
_VERSION = "brain.Event:2"


class EventWriter:
    """Writes scalars into a TensorBoard event file of its own."""

    def __init__(self, directory: Path, *, first_step: int) -> None:
        """Open a new file.

        Args:
            directory: Where the run's event files are; made if it is missing.
            first_step: First step that is still to come. Readers drop what earlier files have from
                there on: it was logged behind the checkpoint that the run went on from.
        """
        directory.mkdir(parents=True, exist_ok=True)
        # Readers take the files in the order of their names. TensorBoard's own writer names them
        # by the clock, which may stand still between two starts, or go back.
        number = max(int(time.time()), _newest(directory) + 1)
        path = directory / f"{PREFIX}{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(path.open("xb"))
        self._add(Event(file_version=_VERSION))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars of one step, named as `metric` knows them."""
        values = []
        for name, value in scalars.items():
            assert metric(name) is not None, f"{name} is no known metric"
            values.append(Summary.Value(tag=name, simple_value=value))
        self._add(Event(step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._records.flush()

    def close(self) -> None:
        """Flush and close; safe to call twice."""
        self._records.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _newest(directory: Path) -> int:
    """The largest number among the event files of a directory, or 0."""
    names = (path.name.removeprefix(PREFIX) for path in directory.glob(f"{PREFIX}*"))
    numbers = (name.split(".")[0] for name in names)
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


class MetricLogger:
    """What is logged of the updates."""

    def __init__(
        self, directory: Path, *, features: int, first_step: int, gathered: Mapping[str, Any]
    ) -> None:
        """Begin an event file.

        Args:
            directory: Of the run's event files.
            features: Numbers that each CNN makes; 0 without a camera.
            first_step: First update that is still to come.
            gathered: What `gathered` gave for a checkpoint; empty at the start of a run.

        Raises:
            CheckpointError: `gathered` is something else.
        """
        self.newest: dict[str, float] = {}
        """The newest value of each metric."""
        self._directory, self._features = directory, features
        self._meter = UpdateMetrics(features=features)
        self._meter.restore(gathered)
        self._writer = EventWriter(directory, first_step=first_step)

    def add(self, update: Update) -> None:
        """Take note of an update; nothing is read back."""
        self._meter.add(update)

    def line(self, step: int, others: Mapping[str, float]) -> None:
        """Write what the updates since the line before came to, with other metrics.

        Waits for the device once.
        """
        scalars = self._meter.read() | dict(others)
        self._writer.write(step, scalars)
        self.newest |= scalars

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write metrics that come at times of their own."""
        if scalars:
            self._writer.write(step, scalars)
            self.newest |= scalars

    def go_back(self, first_step: int) -> None:
        """Begin anew from an update on; readers drop what was logged from there on before."""
        self._writer.close()
        self._writer = EventWriter(self._directory, first_step=first_step)
        self._meter = UpdateMetrics(features=self._features)

    def gathered(self) -> dict[str, Any]:
        """What the next line has to tell so far, as JSON for a checkpoint; waits for the device."""
        return self._meter.state()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file; safe to call twice."""
        self._writer.close()
