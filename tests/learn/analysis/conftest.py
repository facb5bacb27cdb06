"""Event files of made-up runs, by avtd3's writer and by others."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from avtd3.learn.logging import EventWriter

WriteRun = Callable[..., Path]
Points = Mapping[str, Iterable[tuple[int, float]]]


@pytest.fixture
def write_run() -> WriteRun:
    """Write a session of a run of avtd3: points by metric, logged step by step."""

    def write(run: Path, points: Points, *, first_step: int = 1) -> Path:
        lines: dict[int, dict[str, float]] = {}
        for metric, series in points.items():
            for step, value in series:
                lines.setdefault(step, {})[metric] = value
        writer = EventWriter(run / "events", first_step=first_step)
        for step in sorted(lines):
            writer.write(step, lines[step])
        writer.close()
        return run

    return write


@pytest.fixture(scope="session")
def write_foreign() -> WriteRun:
    """Write an event file as torch's SummaryWriter does: a record for each scalar."""

    def write(
        directory: Path,
        points: Points,
        *,
        name: str = "events.out.tfevents.1700000000.host.1.0",
        version: str | None = "brain.Event:2",
        restart: int | None = None,
    ) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / name
        records = RecordWriter(path.open("wb"))
        if version is not None:
            records.write(Event(file_version=version).SerializeToString())
        if restart is not None:
            log = SessionLog(status=SessionLog.START)
            records.write(Event(step=restart, session_log=log).SerializeToString())
        for tag, series in points.items():
            for step, value in series:
                scalar = Summary.Value(tag=tag, simple_value=value)
                event = Event(step=step, wall_time=1.0, summary=Summary(value=[scalar]))
                records.write(event.SerializeToString())
        records.close()
        return path

    return write
