"""`MetricLogger`: compute the metrics of a run, and write them into TensorBoard event files.

The functions from tensors to metrics return tensors on the device. Reading them back waits for the
device, so `MetricLogger` and the guards read many of them at once.
"""

import dataclasses
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from avtd3.learn.checkpoints import as_json, read_as
from avtd3.learn.metrics import metric
from avtd3.learn.td3 import ActorTerms, CriticTerms, GradientNorms, Update
from avtd3.store.errors import CheckpointError
from avtd3.store.render.media import encode, frame_image

PREFIX = "events.out.tfevents."
RESULTS = (
    "critic/loss",
    "critic/q1_mean",
    "actor/loss",
    "episode/return",
    "offline/fitted_value",
    "offline/td_error",
)
"""Metrics that TensorBoard's table of hyperparameters compares."""
_VERSION = "brain.Event:2"
SATURATED = 0.99
"""Absolute value of tanh above which an action counts as saturated."""
SCALE_WEIGHT = 0.05
"""Weight of a log line in the running scale of the rewards, which averages about 20 of them."""


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
    """Return the loss of a critic update and statistics of its rewards (B,), by metric."""
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
        "batch/reward_scale": reward.abs().mean(),
    }


def feature_scalars(name: str, state: Tensor, count: int) -> dict[str, Tensor]:
    """Return statistics of the `count` features in a state (B, F + V), by metric; none for 0."""
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
        f"{name}_{part}/grad_norm_{when}": values[part]
        for part in norms.before
        for when, values in (("before", norms.before), ("after", norms.after))
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Collected:
    """What a `MetricLogger` has collected since the last log line, for a checkpoint."""

    actor: dict[str, float]
    clipped: dict[str, list[float]]
    reward_scale: float = 0.0
    """Mean absolute reward over the log lines so far, the newer ones with more weight."""
    lines: int = 0
    """Log lines so far."""


class Throughput:
    """Measure the speed of one process, without waits for data or before the first update."""

    def __init__(self) -> None:
        self.updates = 0
        """Updates in this process lifetime."""
        self._started_s = time.monotonic()
        self._first_update_s: float | None = None
        self._line_s, self._line_updates, self._line_sampling_s = self._started_s, 0, 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock time of this process lifetime, in seconds."""
        return time.monotonic() - self._started_s

    @property
    def updates_per_second(self) -> float | None:
        """Updates per second since the first update; None before it."""
        if self._first_update_s is None or not self.updates:
            return None
        return self.updates / max(time.monotonic() - self._first_update_s, 1e-9)

    def begin_update(self) -> None:
        """Start the clock at the first update."""
        if self._first_update_s is None:
            self._first_update_s = self._line_s = time.monotonic()

    def exclude(self, seconds: float) -> None:
        """Exclude a wait for data from `updates_per_second`."""
        if self._first_update_s is not None:
            self._first_update_s += seconds

    def scalars(self, sampling_s: float) -> dict[str, float]:
        """Return the metrics since the previous call, given the time spent on sampling so far."""
        now_s = time.monotonic()
        passed_s = max(now_s - self._line_s, 1e-9)
        found = {
            "run/updates_per_second": (self.updates - self._line_updates) / passed_s,
            "run/sampler_wait": (sampling_s - self._line_sampling_s) / passed_s,
        }
        self._line_s, self._line_updates, self._line_sampling_s = now_s, self.updates, sampling_s
        return found


class EventWriter:
    """Write scalars into a new event file; it voids what earlier ones have from its first step."""

    def __init__(
        self, directory: Path, *, first_step: int, settings: Mapping[str, Any] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Readers take the files in the order of their names. TensorBoard's writer names them by
        # wall-clock time, which may stand still between two starts, or be set back.
        number = max(int(time.time()), _newest(directory) + 1)
        path = directory / f"{PREFIX}{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(path.open("xb"))
        self._add(Event(file_version=_VERSION))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        if settings is not None:
            values = [Summary.Value(tag=tag, metadata=m) for tag, m in _hparams(settings)]
            self._add(Event(step=first_step, summary=Summary(value=values)))
        self.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of one step; `avtd3.learn.metrics` must know their names."""
        unknown = [name for name in scalars if metric(name) is None]
        assert not unknown, f"{unknown} are no known metrics"
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(Event(step=step, summary=Summary(value=values)))

    def write_pictures(self, step: int, frames: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write frames uint8 (C, H, W) of one step, by tag."""
        for tag, frame in frames.items():
            picture = frame_image(frame)
            image = Summary.Image(
                height=picture.height,
                width=picture.width,
                colorspace=3,
                encoded_image_string=encode(picture, "PNG"),
            )
            self._add(
                Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))
            )

    def flush(self) -> None:
        """Pass everything to the operating system."""
        self._records.flush()

    def close(self) -> None:
        """Flush and close the file; safe to call twice."""
        self._records.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _hparams(settings: Mapping[str, Any]) -> Iterator[tuple[str, SummaryMetadata]]:
    """Yield tags and metadata of TensorBoard's plugin hparams: metrics, settings and values."""
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    infos = []
    for name, value in _flat(settings, "learn."):
        info = api_pb2.HParamInfo(name=name, type=api_pb2.DATA_TYPE_STRING)
        if isinstance(value, bool):
            info.type, start.hparams[name].bool_value = api_pb2.DATA_TYPE_BOOL, value
        elif isinstance(value, int | float):
            info.type, start.hparams[name].number_value = api_pb2.DATA_TYPE_FLOAT64, value
        else:
            start.hparams[name].string_value = str(value)
        infos.append(info)
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in RESULTS]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
    for tag, data in (
        (metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment)),
        (
            metadata.SESSION_START_INFO_TAG,
            plugin_data_pb2.HParamsPluginData(session_start_info=start),
        ),
    ):
        yield tag, metadata.create_summary_metadata(data)


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _newest(directory: Path) -> int:
    """Return the largest number among the event files of a directory, or 0."""
    names = (path.name.removeprefix(PREFIX) for path in directory.glob(f"{PREFIX}*"))
    return max((int(n.split(".")[0]) for n in names if n.split(".")[0].isdecimal()), default=0)


class MetricLogger:
    """Collect and write the metrics of a run. Call `start` first."""

    def __init__(
        self,
        directory: Path,
        *,
        features: int,
        settings: Mapping[str, Any] | None = None,
        on_write: Callable[[int, Mapping[str, float]], None] = lambda *_: None,
    ) -> None:
        self.newest: dict[str, float] = {}
        """The newest value of each metric since `start`."""
        self._directory, self._feature_count, self._on_write = directory, features, on_write
        self._settings = settings
        self._writer: EventWriter | None = None
        self._reward_scale, self._lines = 0.0, 0
        self._clear()

    def _clear(self) -> None:
        self._last: Update | None = None
        self._last_actor: Update | None = None
        self._clipped: dict[str, list[Tensor]] = {"critic": [], "actor": []}
        self._restored: dict[str, float] = {}
        self._restored_clipped: dict[str, list[float]] = {"critic": [], "actor": []}

    def start(self, first_step: int, state: Mapping[str, Any]) -> None:
        """Open a new event file, which begins with the next update, `first_step`."""
        self.close()
        self._clear()
        self.newest = {}  # after a rollback, none of what went wrong
        if state:
            collected = read_as(_Collected, state, "the checkpoint's metrics")
            if any(metric(name) is None for name in collected.actor):
                raise CheckpointError("the checkpoint has unknown metrics; resume from another one")
            self._restored = collected.actor
            self._restored_clipped = {n: collected.clipped.get(n, []) for n in self._clipped}
            self._reward_scale, self._lines = collected.reward_scale, collected.lines
        self._writer = EventWriter(self._directory, first_step=first_step, settings=self._settings)

    def add(self, update: Update) -> None:
        """Add an update, without waiting for the device."""
        self._last = update
        self._clipped["critic"].append(update.critic_norms.clipped)
        if update.actor_norms is not None:
            self._last_actor = update
            self._clipped["actor"].append(update.actor_norms.clipped)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars, if there are any."""
        if not scalars:
            return
        assert self._writer is not None, "call start first"
        self._writer.write(step, scalars)
        self.newest |= scalars
        self._on_write(step, scalars)

    def write_pictures(self, step: int, frames: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write frames uint8 (C, H, W), by tag."""
        assert self._writer is not None, "call start first"
        self._writer.write_pictures(step, frames)

    def state(self) -> dict[str, Any]:
        """Return what the next line has so far, but the critic's, as JSON; wait for the device."""
        clipped = {name: values.tolist() for name, values in self._all_clipped().items()}
        actor = self._restored | self._read_back(self._actor_scalars())
        found: dict[str, Any] = as_json(
            _Collected(
                actor=actor, clipped=clipped, reward_scale=self._reward_scale, lines=self._lines
            )
        )
        return found

    def flush(self) -> None:
        """Pass everything to the operating system."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Close the event file; safe to call twice."""
        if self._writer is not None:
            self._writer.close()

    def read_updates(self) -> dict[str, float]:
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
        found = restored | self._read_back(scalars)
        if (size := found.get("batch/reward_scale")) is not None and math.isfinite(size):
            self._lines += 1
            weight = max(1.0 / self._lines, SCALE_WEIGHT)
            self._reward_scale += weight * (size - self._reward_scale)
            found["batch/reward_scale"] = self._reward_scale
        return found

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
        return dict(zip(scalars, values.tolist(), strict=True))
