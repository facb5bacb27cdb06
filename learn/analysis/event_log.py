"""Read scalars from TensorBoard event files, whatever program wrote them.

Restarts follow TensorBoard's rules: a `SessionLog.START` drops all earlier points at its step or
later; in files without a version (before "brain.Event:2") a step that goes back drops the points of
the same tags from there on. Event files are not trusted: all sizes are limited, and checked before
memory is allocated. docs/decisions/007 compares this reader with TensorBoard's.
"""

import bisect
import dataclasses
import io
import math
import struct
from array import array
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import ConfigError
from avtd3.store.files import check_local, open_regular
from avtd3.store.format.codec import crc32c

MAX_FILES = 10_000
"""Most event files of one run, which has one per start."""
MAX_BYTES = 8 << 30
"""Largest total size of a run's event files: a million updates logged one by one take 4 GB."""
MAX_POINTS = 32_000_000
"""Most points that are read of one run: 512 MB."""
MAX_TAGS = 100_000
"""Most different scalars of one run; a run of avtd3 has about a hundred."""
MAX_TAG_LENGTH = 1_000
MAX_STEP = 1 << 53
"""Largest step, and with its sign the smallest: up to here a float64 is exact."""
MAX_VALUE = 1e70
"""Larger values count as infinite, so that the fourth power of a difference is finite."""
MAX_RECORD_BYTES = 64 << 20
"""Larger records are skipped: those of scalars take a few kilobytes."""
_NAMED = 5
"""Directories that an error message suggests."""
_BELOW = ("*/", "*/*/", "*/*/*/")  # not deeper: a whole tree could be a whole disk
_HEAD = struct.Struct("<Q4s")
_FRAME_BYTES = _HEAD.size + 4
"""Size of a record without its data."""
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

    updates: NDArray[np.int64]
    """int64 (N,), ascending: the steps of the points, in avtd3's runs gradient updates."""
    values: NDArray[np.float64]
    """float64 (N,): the metric, possibly NaN or infinite."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunLog:
    """Content of the event files of one run."""

    files: tuple[str, ...]
    curves: Mapping[str, Curve]
    tags: tuple[str, ...]
    last_step: int | None
    """Largest step of any scalar; None if there are no scalars."""
    notices: tuple[str, ...]
    """Remarks for the user: truncated files, restarts."""
    damaged: tuple[str, ...]
    """Files of which a part could not be read because its bytes have changed, and which part."""


def read_log(run: Path, wanted: Collection[str] | None = None) -> RunLog:
    """Read the scalars of a run, or only those with the wanted tags."""
    files = find_event_files(run)
    size = sum(path.stat().st_size for path in files)
    if len(files) > MAX_FILES or size > MAX_BYTES:
        raise ConfigError(
            f"{run} contains {len(files):,} event files of {size:,} bytes together, expected at "
            f"most {MAX_FILES:,} files and {MAX_BYTES:,} bytes; give one of the files"
        )
    points = _Points(run, None if wanted is None else frozenset(wanted))
    notices: list[str] = []
    damaged: list[str] = []
    for path in files:
        records = _read_file(path, points)
        if records.problem is not None:
            (notices if records.is_truncated else damaged).append(f"{path.name} {records.problem}")
        if count := records.skipped:
            notices.append(f"{path.name}: {count:,} records too large for scalars skipped")
    curves, back, dropped = points.curves()
    remarks = {
        f"{points.skipped:,} scalars skipped: their tags have more than {MAX_TAG_LENGTH:,} "
        f"characters, or their steps are beyond {MAX_STEP:,}": points.skipped,
        f"{dropped:,} points were dropped: the run was restarted at a step before them": dropped,
        f"steps go back without a restart being marked, first in {''.join(back[:1])!r}; all points "
        "are kept, in order of step": back,
    }
    return RunLog(
        files=tuple(path.name for path in files),
        curves=curves,
        tags=tuple(sorted(points.tags)),
        last_step=points.last_step,
        notices=(*notices, *(text for text, applies in remarks.items() if applies)),
        damaged=tuple(damaged),
    )


def find_event_files(run: Path) -> list[Path]:
    """Return the event files of a run, sorted by name, which is TensorBoard's order."""
    check_local(run)
    if run.is_file():
        if _is_event_file(run):
            return [run]
        raise ConfigError(
            f"{run} is a file whose name has no 'tfevents' in it, expected a run's directory or "
            "one of its event files"
        )
    if not run.is_dir():
        raise ConfigError(f"{run}: no such directory; give a run's directory")
    for directory in (run, run / "events"):
        found = sorted(p for p in directory.glob("*tfevents*") if _is_event_file(p))
        if found:
            return found
    below = sorted(
        {p.parent for depth in _BELOW for p in run.glob(f"{depth}*tfevents*") if _is_event_file(p)}
    )
    if not below:
        raise ConfigError(f"{run} contains no event files; give the directory of a run")
    named = ", ".join(map(str, below[:_NAMED])) + (", ..." if below[_NAMED:] else "")
    raise ConfigError(
        f"{run} contains no event files itself, but {len(below)} directories below it do; name one "
        f"of them: {named}"
    )


def _is_event_file(path: Path) -> bool:
    return "tfevents" in path.name and not path.name.endswith(".profile-empty") and path.is_file()


def _read_file(path: Path, points: "_Points") -> "_Records":
    """Add every event of a file to ``points``; return the records, which state any problem."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    records = _Records(path)
    for record in records:
        try:
            event = Event.FromString(record)
        except DecodeError:
            records.stop("holds no event at")
        else:
            points.add(event)
    return records


class _Records:
    """Iterator over the records of an event file, up to its end or to the first invalid one.

    A record is a uint64 length, the checksum of the length, the data, and the checksum of the data,
    all little-endian; a checksum is a masked crc32c (tensorflow/core/lib/io/record_writer.h).
    """

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None
        """Why the file could not be read to its end, to be printed after its name."""
        self.is_truncated = False
        """Whether the file only ends early, because its run is still writing or was killed."""
        self.skipped = 0
        self._path, self._start, self._size = path, 0, 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the data of each record whose checksums are valid."""
        with io.BufferedReader(open_regular(self._path)) as file:
            self._size = self._path.stat().st_size
            while self._start < self._size and self.problem is None:
                data = self._next(file)
                if data is not None:
                    yield data
                    self._start += _FRAME_BYTES + len(data)

    def _next(self, file: BinaryIO) -> bytes | None:
        """Return the data of the next record; None if it is too large or there is a problem."""
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return self._truncated()
        length, checksum = _HEAD.unpack(head)
        if _masked_crc32c(head[:8]) != checksum:
            return self.stop("fails a checksum at")
        if self._start + _FRAME_BYTES + length > self._size:
            return self._truncated()
        if length > MAX_RECORD_BYTES:
            self.skipped += 1
            self._start += _FRAME_BYTES + length
            file.seek(self._start)
            return None
        data = file.read(length)
        if len(data) < length:  # truncated since its size was read
            return self._truncated()
        if file.read(4) != _masked_crc32c(data):
            return self.stop("fails a checksum at")
        return data

    def _truncated(self) -> bytes | None:
        left = self._size - self._start
        self.problem = f"ends inside a record: its last {left:,} bytes were ignored"
        self.is_truncated = True
        return None

    def stop(self, what: str) -> bytes | None:
        """Report what is wrong with the current record, and end the iteration."""
        left = self._size - self._start
        self.problem = f"{what} byte {self._start:,}: {left:,} bytes from there on were not read"
        return None


def _masked_crc32c(data: bytes) -> bytes:
    value = int.from_bytes(crc32c(data), "little")
    return (((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


class _Series:
    """Points of one tag in the order in which they were read, and which of them are dropped."""

    __slots__ = ("_drop_steps", "_dropped_before", "epoch", "steps", "values")

    def __init__(self, epoch: int) -> None:
        self.steps, self.values = array("q"), array("d")
        self.epoch = epoch
        """Number of restarts that it has taken into account."""
        self._dropped_before, self._drop_steps = array("q"), array("q")

    def drop_from(self, step: int) -> None:
        """Drop the points so far at a step or later."""
        if self._dropped_before and self._dropped_before[-1] == len(self.steps):
            self._drop_steps[-1] = min(self._drop_steps[-1], step)
        else:
            self._dropped_before.append(len(self.steps))
            self._drop_steps.append(step)

    def kept(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the points that were not dropped; takes time in proportion to the points."""
        steps, values = np.array(self.steps, np.int64), np.array(self.values, np.float64)
        first_dropped = np.full(len(steps) + 1, np.iinfo(np.int64).max)
        first_dropped[np.array(self._dropped_before, np.int64)] = self._drop_steps
        keep = steps < np.minimum.accumulate(first_dropped[::-1])[::-1][1:]
        return steps[keep], values[keep]


class _Points:
    """Collects the points of scalars from events, with TensorBoard's rules for restarts."""

    def __init__(self, run: Path, wanted: frozenset[str] | None) -> None:
        self.tags: set[str] = set()
        self.last_step: int | None = None
        self.skipped = 0
        """Scalars whose tag or step is beyond the limits."""
        self._run, self._wanted = run, wanted
        self._series: dict[str, _Series] = {}
        self._count = 0
        self._tensor_scalars: set[str] = set()
        self._versioned = False
        self._most_recent_step = -1
        self._restarts: list[tuple[int, int]] = []
        self._epoch = 0

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

    def curves(self) -> tuple[dict[str, Curve], list[str], int]:
        """Return the curves by tag, the tags whose steps went back, and how many were dropped."""
        curves, back, dropped = {}, [], 0
        for tag, series in sorted(self._series.items()):
            self._catch_up(series)
            steps, values = series.kept()
            dropped += len(series.steps) - len(steps)
            if (steps[1:] < steps[:-1]).any():
                back.append(tag)
                order = np.argsort(steps, kind="stable")
                steps, values = steps[order], values[order]
            curves[tag] = Curve(updates=steps, values=values)
        return curves, back, dropped

    def _add_summary(self, event: Any) -> None:  # noqa: ANN401 - as above
        scalars = [
            (value.tag, number)
            for value in event.summary.value
            if (number := self._scalar(value)) is not None
        ]
        if not -MAX_STEP <= event.step <= MAX_STEP:
            self.skipped += len(scalars)
            return
        goes_back = not self._versioned and event.step < self._most_recent_step
        if not goes_back:
            self._most_recent_step = event.step
        if scalars:
            self.last_step = max(event.step, -1 if self.last_step is None else self.last_step)
        for tag, number in scalars:
            if len(tag) > MAX_TAG_LENGTH:
                self.skipped += 1
                continue
            self.tags.add(tag)
            if self._wanted is None or tag in self._wanted:
                self._keep(tag, event.step, number, goes_back=goes_back)
        if len(self.tags) > MAX_TAGS:
            raise ConfigError(
                f"{self._run} contains more than {MAX_TAGS:,} different scalars; give a single run"
            )

    def _keep(self, tag: str, step: int, number: float, *, goes_back: bool) -> None:
        if (series := self._series.get(tag)) is None:
            series = self._series[tag] = _Series(self._epoch)
        self._catch_up(series)
        if goes_back:
            series.drop_from(step)
        series.steps.append(step)
        series.values.append(number if abs(number) <= MAX_VALUE else number * math.inf)
        self._count_one()

    def _count_one(self) -> None:
        self._count += 1
        if self._count > MAX_POINTS:
            raise ConfigError(
                f"{self._run} contains more than {MAX_POINTS:,} points; select metrics, "
                "for example with --metric 'critic/*'"
            )

    def _restart(self, step: int) -> None:
        """Drop all points at a step or later, when `_catch_up` is called for their series."""
        while self._restarts and self._restarts[-1][1] >= step:
            self._restarts.pop()
        self._restarts.append((self._epoch, step))
        self._epoch += 1
        self._count_one()
        if self.last_step is not None and self.last_step >= step:
            self.last_step = step - 1 if step > 0 else None

    def _catch_up(self, series: _Series) -> None:
        """Drop what the restarts since the newest point of a series drop: the lowest one counts."""
        if series.epoch < self._epoch:
            lowest = bisect.bisect_left(self._restarts, (series.epoch,))
            series.drop_from(self._restarts[lowest][1])
            series.epoch = self._epoch

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
    """Return the number in a tensor that holds exactly one; None for any other."""
    kind = _NUMBERS.get(tensor.dtype)
    if kind is None or any(dim.size != 1 for dim in tensor.tensor_shape.dim):
        return None
    field, dtype = kind
    if content := tensor.tensor_content:
        return float(np.frombuffer(content, dtype)[0]) if len(content) == dtype.itemsize else None
    values = getattr(tensor, field)
    return float(values[0]) if len(values) == 1 else None
