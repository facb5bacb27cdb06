"""Read scalars from TensorBoard event files, whatever program wrote them.

TensorBoard's event loaders end a file silently at the first bad record; `read_log` reports it.
Restarts follow TensorBoard's rules: a `SessionLog.START` drops all earlier points at its step or
later; in files without a version (before "brain.Event:2") a step that goes back drops the points of
the same tags from there on.

Event files may come from strangers, so the number of files, bytes, tags and points is limited. One
record is in memory at a time; each kept point takes 16 bytes.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from avtd3.learn.analysis.records import Records
from avtd3.learn.analysis.scalars import Curve, Gather
from avtd3.store.errors import ConfigError

MAX_FILES = 10_000
"""Most event files of one run, which has one per start."""
MAX_BYTES = 8 << 30
"""Largest total size of a run's event files: a million updates logged one by one take 4 GB."""
_NAMED = 5
"""Directories that an error message suggests."""
_BELOW = ("*/", "*/*/", "*/*/*/")
"""Depths at which they are searched for: a whole tree could be a whole disk."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunLog:
    """Content of the event files of one run."""

    directory: Path
    """Directory of the files."""
    files: tuple[str, ...]
    """Names of the files, in the order in which they were read."""
    curves: Mapping[str, Curve]
    """The requested scalars, by tag."""
    tags: tuple[str, ...]
    """Tags of all scalars, sorted."""
    last_step: int | None
    """Largest step of any scalar; None if there are no scalars."""
    notices: tuple[str, ...]
    """Remarks for the user: truncated files, restarts."""
    damaged: tuple[str, ...]
    """Files of which a part could not be read because its bytes have changed, and which part."""


def read_log(run: Path, wanted: Collection[str] | None = None) -> RunLog:
    """Read the scalars of a run.

    Args:
        run: A run's directory, a directory with event files, or an event file.
        wanted: Tags to keep; None keeps all.

    Raises:
        ConfigError: If there are no event files, or they exceed one of the limits.
    """
    files = find_event_files(run)
    _check_size(run, files)
    gather = Gather(run, None if wanted is None else frozenset(wanted))
    notices: list[str] = []
    damaged: list[str] = []
    for path in files:
        records = _read_file(path, gather)
        trouble = records.trouble
        if trouble is not None:
            (notices if trouble.torn else damaged).append(f"{path.name} {trouble.text}")
        if records.skipped:
            notices.append(
                f"{path.name}: {records.skipped:,} records too large for scalars skipped"
            )
    curves, back = gather.curves()
    if gather.dropped:
        notices.append(
            f"{gather.dropped:,} points were dropped: the run was restarted at a step before them"
        )
    if back:
        notices.append(
            f"steps go back without a restart being marked, first in {back[0]!r}; all points are "
            "kept, in order of step"
        )
    return RunLog(
        directory=files[0].parent,
        files=tuple(path.name for path in files),
        curves=curves,
        tags=tuple(sorted(gather.tags)),
        last_step=gather.last_step,
        notices=tuple(notices),
        damaged=tuple(damaged),
    )


def find_event_files(run: Path) -> list[Path]:
    """Return the event files of a run, sorted by name, which is TensorBoard's order.

    Raises:
        ConfigError: If there are none; the message names subdirectories that have some.
    """
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
        raise ConfigError(f"{run} holds no event files; give the directory of a run")
    named = ", ".join(map(str, below[:_NAMED])) + (", ..." if below[_NAMED:] else "")
    raise ConfigError(
        f"{run} holds no event files itself, but {len(below)} directories below it do; name one of "
        f"them: {named}"
    )


def _is_event_file(path: Path) -> bool:
    return "tfevents" in path.name and not path.name.endswith(".profile-empty") and path.is_file()


def _check_size(run: Path, files: list[Path]) -> None:
    size = sum(path.stat().st_size for path in files)
    if len(files) > MAX_FILES or size > MAX_BYTES:
        raise ConfigError(
            f"{run} holds {len(files):,} event files of {size:,} bytes together, expected at most "
            f"{MAX_FILES:,} files and {MAX_BYTES:,} bytes; give one of the files"
        )


def _read_file(path: Path, gather: Gather) -> Records:
    """Add every event of a file to `gather`; return the records, with what was wrong with them."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    records = Records(path)
    for record in records:
        try:
            event = Event.FromString(record)
        except DecodeError:
            records.stop()
        else:
            gather.add(event)
    return records
