"""`Journal`: a session's metrics on their way into TensorBoard, and the newest of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtd3.learn.events import EventWriter
from avtd3.learn.meter import Meter
from avtd3.learn.td3 import Update


class Journal:
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
        self._meter = Meter(features=features)
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
        self._meter = Meter(features=self._features)

    def gathered(self) -> dict[str, Any]:
        """What the next line has to tell so far, as JSON for a checkpoint; waits for the device."""
        return self._meter.state()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file; safe to call twice."""
        self._writer.close()
