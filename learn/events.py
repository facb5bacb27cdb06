"""A run's TensorBoard event files: one for each time it was started."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from avtd3.learn.metrics import metric

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
