"""`MetricLogger`: write the metrics of a run into TensorBoard event files."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from avtd3.learn.metrics import metric
from avtd3.learn.td3 import Update
from avtd3.learn.update_metrics import UpdateMetrics

PREFIX = "events.out.tfevents."
_VERSION = "brain.Event:2"


class Throughput:
    """Measure the speed of one process lifetime of a run.

    The time before the first update and the time spent waiting for data do not count.
    """

    def __init__(self) -> None:
        self.updates = 0
        """Updates in this process lifetime."""
        self._started_s = time.monotonic()
        self._first_update_s: float | None = None
        self._line_s = self._started_s
        self._line_updates = 0
        self._line_sampling_s = 0.0

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
        """Return the metrics since the previous call, for a log line.

        Args:
            sampling_s: Time spent on sampling so far, in seconds.
        """
        now_s = time.monotonic()
        passed_s = max(now_s - self._line_s, 1e-9)
        found = {
            "run/updates_per_second": (self.updates - self._line_updates) / passed_s,
            "run/sampler_wait": (sampling_s - self._line_sampling_s) / passed_s,
        }
        self._line_s, self._line_updates = now_s, self.updates
        self._line_sampling_s = sampling_s
        return found


class EventWriter:
    """Write scalars into a new TensorBoard event file.

    Args:
        directory: Directory of the run's event files; created if it does not exist.
        first_step: First step of this file. Readers discard what earlier files contain from this
            step on: it was logged after the checkpoint from which the run continued.
    """

    def __init__(self, directory: Path, *, first_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Readers take the files in the order of their names. TensorBoard's writer names them by
        # wall-clock time, which may stand still between two starts, or be set back.
        number = max(int(time.time()), _newest(directory) + 1)
        path = directory / f"{PREFIX}{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(path.open("xb"))
        self._add(Event(file_version=_VERSION))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of one step; `avtd3.learn.metrics` must know their names."""
        values = []
        for name, value in scalars.items():
            assert metric(name) is not None, f"{name} is no known metric"
            values.append(Summary.Value(tag=name, simple_value=value))
        self._add(Event(step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Pass everything to the operating system."""
        self._records.flush()

    def close(self) -> None:
        """Flush and close the file; safe to call twice."""
        self._records.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _newest(directory: Path) -> int:
    """Return the largest number among the event files of a directory, or 0."""
    names = (path.name.removeprefix(PREFIX) for path in directory.glob(f"{PREFIX}*"))
    numbers = (name.split(".")[0] for name in names)
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


class MetricLogger:
    """Collect and write the metrics of a run. Call `start` first.

    Args:
        directory: Directory of the run's event files.
        features: Number of features of each CNN; 0 without a camera.
        on_write: Called with the step and the scalars of each line that is written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        features: int,
        on_write: Callable[[int, Mapping[str, float]], None] = lambda *_: None,
    ) -> None:
        self.newest: dict[str, float] = {}
        """The newest value of each metric in this process lifetime."""
        self._directory, self._features, self._on_write = directory, features, on_write
        self._updates = UpdateMetrics(features=features)
        self._writer: EventWriter | None = None

    def start(self, first_step: int, state: Mapping[str, Any]) -> None:
        """Open a new event file; readers discard what earlier files contain from `first_step` on.

        Args:
            first_step: The next update.
            state: What `state` returned for the checkpoint from which the run continues; empty
                without one.

        Raises:
            CheckpointError: If `state` is invalid.
        """
        self.close()
        self._updates = UpdateMetrics(features=self._features)
        self._updates.restore(state)
        self._writer = EventWriter(self._directory, first_step=first_step)

    def add(self, update: Update) -> None:
        """Add an update, without waiting for the device."""
        self._updates.add(update)

    def write_updates(self, step: int, others: Mapping[str, float]) -> None:
        """Write the metrics of the updates since the last call, and others; wait for the device."""
        self.write(step, self._updates.read() | dict(others))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars, if there are any."""
        if not scalars:
            return
        assert self._writer is not None, "call start first"
        self._writer.write(step, scalars)
        self.newest |= scalars
        self._on_write(step, scalars)

    def state(self) -> dict[str, Any]:
        """Return what the next line contains so far, as JSON; wait for the device."""
        return self._updates.state()

    def flush(self) -> None:
        """Pass everything to the operating system."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Close the event file; safe to call twice."""
        if self._writer is not None:
            self._writer.close()
