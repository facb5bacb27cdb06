"""Collect the points of scalars from events into curves."""

import dataclasses
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import ConfigError

MAX_POINTS = 32_000_000
"""Most points that are kept of one run: 512 MB."""
MAX_TAGS = 100_000
"""Most different scalars of one run; a run of avtd3 has about a hundred."""
_NUMBERS: Mapping[int, tuple[str, np.dtype[Any]]] = {
    1: ("float_val", np.dtype("<f4")),
    2: ("double_val", np.dtype("<f8")),
    3: ("int_val", np.dtype("<i4")),
    9: ("int64_val", np.dtype("<i8")),
}
"""TensorFlow data types (types.proto) of scalars: the field that holds them and its dtype."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One scalar over a training run."""

    name: str
    """Name of the metric, as logged."""
    updates: NDArray[np.int64]
    """int64 (N,), ascending: the steps of the points, in avtd3's runs gradient updates."""
    values: NDArray[np.float64]
    """float64 (N,): the metric, possibly NaN or infinite."""


class _Series:
    """Points of one tag, in the order in which they were read."""

    __slots__ = ("steps", "values")

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")

    def drop_from(self, step: int) -> int:
        """Drop the points at a step or later and return their number."""
        keep = np.frombuffer(self.steps, np.int64) < step
        dropped = len(self.steps) - int(keep.sum())
        if dropped:
            steps = np.frombuffer(self.steps, np.int64)[keep]
            values = np.frombuffer(self.values, np.float64)[keep]
            self.steps, self.values = array("q", steps.tobytes()), array("d", values.tobytes())
        return dropped


class Gather:
    """Collector of points from events, with TensorBoard's rules for restarts."""

    def __init__(self, run: Path, wanted: frozenset[str] | None) -> None:
        self.tags: set[str] = set()
        self.last_step: int | None = None
        self.dropped = 0
        self._run, self._wanted = run, wanted
        self._series: dict[str, _Series] = {}
        self._points = 0
        self._tensor_scalars: set[str] = set()
        self._versioned = False
        self._most_recent_step = -1

    def add(self, event: Any) -> None:  # noqa: ANN401 - a protobuf message has no type
        """Add the points of an event."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        if event.HasField("file_version"):
            self._versioned = event.file_version not in ("", "brain.Event:1")
        elif event.HasField("session_log"):
            if self._versioned and event.session_log.status == SessionLog.START:
                self._restart(event.step)
        elif event.HasField("summary"):
            self._add_summary(event)

    def curves(self) -> tuple[dict[str, Curve], list[str]]:
        """Return the curves by tag, and the tags whose steps went back."""
        curves, back = {}, []
        for tag in sorted(self._series):
            series = self._series[tag]
            steps = np.array(series.steps, np.int64)
            values = np.array(series.values, np.float64)
            if (np.diff(steps) < 0).any():
                back.append(tag)
                order = np.argsort(steps, kind="stable")
                steps, values = steps[order], values[order]
            curves[tag] = Curve(name=tag, updates=steps, values=values)
        return curves, back

    def _add_summary(self, event: Any) -> None:  # noqa: ANN401 - as above
        scalars = [
            (value.tag, number)
            for value in event.summary.value
            if (number := self._scalar(value)) is not None
        ]
        if not self._versioned and event.step < self._most_recent_step:
            for tag, _ in scalars:
                if tag in self._series:
                    self._drop(self._series[tag], event.step)
        else:
            self._most_recent_step = event.step
        if scalars:
            self.last_step = max(event.step, -1 if self.last_step is None else self.last_step)
        self.tags.update(tag for tag, _ in scalars)
        if len(self.tags) > MAX_TAGS:
            raise ConfigError(
                f"{self._run} holds more than {MAX_TAGS:,} different scalars; give a single run"
            )
        for tag, number in scalars:
            if self._wanted is None or tag in self._wanted:
                self._keep(tag, event.step, number)

    def _keep(self, tag: str, step: int, number: float) -> None:
        series = self._series.get(tag)
        if series is None:
            series = self._series[tag] = _Series()
        series.steps.append(step)
        series.values.append(number)
        self._points += 1
        if self._points > MAX_POINTS:
            raise ConfigError(
                f"{self._run} holds more than {MAX_POINTS:,} points; select metrics, "
                "for example with --metric 'critic/*'"
            )

    def _restart(self, step: int) -> None:
        for series in self._series.values():
            self._drop(series, step)
        if self.last_step is not None and self.last_step >= step:
            self.last_step = step - 1 if step > 0 else None

    def _drop(self, series: _Series, step: int) -> None:
        count = series.drop_from(step)
        self.dropped += count
        self._points -= count

    def _scalar(self, value: Any) -> float | None:  # noqa: ANN401 - as above
        """Return the number in a summary's value, old style or new; None if it is not a scalar."""
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            return float(value.simple_value)
        if kind != "tensor":
            return None
        if value.metadata.plugin_data.plugin_name == "scalars":
            self._tensor_scalars.add(value.tag)  # given only with a tag's first value
        if value.tag not in self._tensor_scalars:
            return None
        return _tensor_number(value.tensor)


def _tensor_number(tensor: Any) -> float | None:  # noqa: ANN401 - a protobuf message
    """Return the number in a tensor that holds exactly one; None for any other.

    TensorBoard's `make_ndarray` would allocate whatever shape the tensor claims.
    """
    kind = _NUMBERS.get(tensor.dtype)
    if kind is None or any(dim.size != 1 for dim in tensor.tensor_shape.dim):
        return None
    field, dtype = kind
    if tensor.tensor_content:
        content = tensor.tensor_content
        fits = len(content) == dtype.itemsize
        return float(np.frombuffer(content, dtype)[0]) if fits else None
    values = getattr(tensor, field)
    return float(values[0]) if len(values) == 1 else None
