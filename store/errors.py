"""The exceptions that avtd3 raises on purpose.

Every message says what was expected, what was found, where, and how to fix it::

    Avtd3Error
    ├── ConfigError (ValueError)                  an unknown key or an invalid value
    │   └── InUseError                            a directory that another process uses
    ├── SpecError (ValueError)                    data of another shape or meaning
    ├── FormatVersionError (ValueError)           a file of a format this version cannot read
    ├── DatasetError (OSError)                    a directory that is not a dataset
    │   └── NoSegmentsError                       a dataset without segments
    ├── UnreadableError (OSError)                 a file that cannot be read now
    │   ├── DatasetUnreadableError                the same for a dataset; a DatasetError as well
    │   ├── SegmentUnreadableError                the same for a file of a segment
    │   └── UnreachableError                      an object store that does not answer now
    ├── SegmentNotFoundError (FileNotFoundError)  a segment that has been removed
    ├── SegmentCorruptError (ValueError)          truncated, edited or damaged files in a segment
    ├── CheckpointError (ValueError)              a damaged checkpoint or policy
    ├── MissingPackageError (ImportError)         an optional package that is not installed
    ├── RoadError (ValueError)                    an .xodr file without a usable road network
    │   └── RouteError                            a route that cannot be driven on its roads
    ├── WorldError (RuntimeError)                 the simulator failed
    │   └── WorldLost                             the simulator is gone, stalled or crashed
    ├── StorageError (OSError)                    the disk is full or not writable
    └── RankLostError (ConnectionError)           another process of a training run is gone

Each error is also a built-in exception, given in parentheses.
"""

import dataclasses
import errno
import importlib
import importlib.metadata
import json
import math
import os
import typing
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

MAX_MESSAGE = 1900
"""Characters of the longest message; values in it may come from a file of any size."""


class Avtd3Error(Exception):
    """Base class of every exception that avtd3 raises on purpose; no message is endless."""

    def __str__(self) -> str:
        return cut_middle(super().__str__())


class ConfigError(Avtd3Error, ValueError):
    """A configuration key that does not exist, or an invalid value."""


class InUseError(ConfigError):
    """A directory that another process uses, although only one may.

    Attributes:
        path: The directory.
        holder: Which process uses it.
    """

    def __init__(self, path: object, holder: str) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def __str__(self) -> str:
        return (
            f"{self.path} is in use by {self.holder}; "
            "wait until it has ended, or choose another directory"
        )


class SpecError(Avtd3Error, ValueError):
    """Data whose shape, names or meaning do not match their spec."""


class FormatVersionError(Avtd3Error, ValueError):
    """A file in a format version that this version of avtd3 cannot read."""


class DatasetError(Avtd3Error, OSError):
    """A path that is not a dataset or cannot be used as one."""


class NoSegmentsError(DatasetError):
    """A dataset without published segments, or without the segments that were asked for."""


class UnreadableError(Avtd3Error, OSError):
    """A file or directory that cannot be read now; nothing is known about its bytes."""


class DatasetUnreadableError(DatasetError, UnreadableError):
    """A dataset whose directory or ``zarr.json`` cannot be read now."""


class SegmentUnreadableError(UnreadableError):
    """A segment of which a file cannot be read now; it may be sound, so try again later."""


class UnreachableError(UnreadableError):
    """An object store that cannot be reached now, or fails; try again later."""


class SegmentNotFoundError(Avtd3Error, FileNotFoundError):
    """A segment that does not exist, or has been removed since it was opened."""


class SegmentCorruptError(Avtd3Error, ValueError):
    """A segment whose files are not the ones that were published."""


SEGMENT_ERRORS = (SegmentCorruptError, SegmentNotFoundError, SegmentUnreadableError)
"""What reading a segment may raise; none of it says anything about other segments."""


class CheckpointError(Avtd3Error, ValueError):
    """A checkpoint or published policy that is truncated, altered or not avtd3's."""


class MissingPackageError(Avtd3Error, ImportError):
    """An optional Python package that is needed but not installed."""


class RoadError(Avtd3Error, ValueError):
    """A road description that is empty, not OpenDRIVE, or without a lane to drive on."""


class RouteError(RoadError):
    """A route that cannot be driven on its roads; other routes may be fine."""


class WorldError(Avtd3Error, RuntimeError):
    """A simulator that failed or returned invalid data."""


class WorldLost(WorldError):  # noqa: N818 - an outcome, not a fault
    """A simulator that is gone for now; restarting it may help.

    Attributes:
        reason: ``server_lost`` (it does not answer), ``bad_answer`` (it answers with an error or
            with values that cannot be used), ``sensor_stall`` (it ticks, but a sensor sends
            nothing), ``tick_timeout`` (the client is blocked), ``client_crash`` (the client's
            process died), ``spawn_refused`` (every start position is occupied), ``server_away`` (no
            server could be reached in the time allowed) or ``server_busy`` (another client drives
            there); after the last two, do not try again.
    """

    def __init__(self, message: str, reason: str = "server_lost") -> None:
        # Both are in `args`, so that copies and other processes get the reason, too.
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class StorageError(Avtd3Error, OSError):
    """A disk that is full, or a directory that cannot be written."""


class RankLostError(Avtd3Error, ConnectionError):
    """Another process that trains the same run is gone, or no longer does the same updates."""


def escape(text: str, keep: str = "") -> str:
    r"""Escape the control characters of a text as Python does, as ``\x1b``, except those to keep.

    Nothing in the result moves a cursor, reorders text or starts a line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def cut_middle(text: str) -> str:
    """Replace the middle of a text that is longer than `MAX_MESSAGE`."""
    rest = len(text) - MAX_MESSAGE
    half = MAX_MESSAGE // 2
    return text if rest <= 0 else f"{text[:half]} [{rest:,} characters] {text[-half:]}"


_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and try again",
    errno.EDQUOT: "the disk quota is used up: free some space and try again",
    errno.EFBIG: "the file is too large for its file system: choose another disk",
    errno.EROFS: "the file system is read-only: choose another directory",
    errno.EACCES: "permission denied: make the directory writable or choose another",
    errno.EPERM: "not permitted: make the directory writable or choose another",
    errno.EIO: "the device failed: check the disk, then try again",
    errno.ESTALE: "the network mount lost the file: mount it again, then try again",
    errno.ETIMEDOUT: "the mount does not answer: check the network and the server, then try again",
    errno.EMFILE: "too many open files in this process: raise ulimit -n, then try again",
    errno.ENFILE: "too many open files on this machine: end other programs, then try again",
    errno.ENOMEM: "out of memory: end other programs, then try again",
    errno.ENODEV: "the file system cannot map files into memory: choose a local disk",
    errno.EXDEV: "the file system cannot move it: choose a directory on one disk",
    errno.EBUSY: "something else uses it: end that, then try again",
    errno.ENOENT: "a directory is missing: create it, or choose another",
    errno.ENOTDIR: "a part of the path is a file, not a directory: choose another path",
    errno.EISDIR: "it is a directory: choose another name, or remove it",
    errno.EEXIST: "it exists: choose another name, or remove it",
    errno.ENOTEMPTY: "the directory is not empty: choose another name, or remove it",
    errno.ELOOP: "a symbolic link is in its place: remove the link",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ENOLCK: "the file system has no locks: run on the machine that the disk belongs to",
}
_READING = {
    errno.EACCES: "permission denied: make it readable for this user, then try again",
    errno.EPERM: "not permitted: make it readable for this user, then try again",
    errno.ENOENT: "it does not exist: give the path of an existing file",
    errno.EISDIR: "it is a directory: give the path of a file",
    errno.ELOOP: "its symbolic links lead in a circle: give the path of the file itself",
}


def advice(error: OSError, *, reads: bool = False) -> str:
    """Return in one line what an error of the operating system means and what to do about it.

    `reads` says that it came from reading, not from writing.
    """
    code = error.errno or 0
    known = {**_ADVICE, **_READING} if reads else _ADVICE
    reason = os.strerror(code) if code else str(error)
    return known.get(code, f"{reason}: check the disk and the mount, then try again")


def describe(error: BaseException, *, reads: bool = False) -> str:
    """Return what an error says; for one of the operating system, where and the `advice`."""
    if not isinstance(error, OSError) or not isinstance(error.strerror, str):
        return str(error)
    if isinstance(error, Avtd3Error):  # its message is its strerror
        return error.strerror
    place = f"{error.filename}: " if error.filename else ""
    number = error.errno
    if not isinstance(number, int) or error.strerror != os.strerror(number):  # their own words
        return place + error.strerror
    return place + advice(error, reads=reads)


def storage_error(path: object, error: OSError) -> StorageError:
    """Return the error for a file or directory that cannot be written."""
    message = f"cannot write {error.filename or path}: {advice(error)}"
    return StorageError(error.errno or errno.EIO, message)


_LONGEST_INTEGER_BITS = 1024


def install_command(extra: str) -> str:
    """Return the command that installs an extra of avtd3, from the clone if avtd3 runs in one."""
    origin = importlib.metadata.distribution("avtd3").read_text("direct_url.json")
    document = json.loads(origin or "{}")
    if document.get("dir_info", {}).get("editable"):
        path = urllib.parse.unquote(document["url"].removeprefix("file://"))
        return f"pip install -e '{path}[{extra}]'"
    return f"pip install 'avtd3[{extra}]'"


def import_extra(name: str, extra: str, work: str) -> Any:  # noqa: ANN401 - a module
    """Import a module of a package that one of avtd3's extras installs.

    `work` says in the message what needs it, as in ``an export to ONNX``.

    Raises:
        MissingPackageError: The package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{work} needs {name}; install it with {install_command(extra)}"
        ) from error


def abbreviate(value: object, most: int = 80) -> str:
    """Return the `repr` of a value from a file or a user, cut to a length fit for a message.

    It has no control characters. A huge value costs little: only what is shown is formatted.

    Args:
        value: Any value; containers may be nested or contain themselves.
        most: Characters to return at most, at least 3.

    Example:
        >>> abbreviate([0] * 10**6, most=20)
        '[0, 0, 0, 0, 0, 0...'
    """
    text = ""
    for piece in _pieces(value, most):
        text += escape(piece)
        if len(text) > most:
            return f"{text[: most - 3]}..."
    return text


def check_integers(config: object, where: str = "") -> None:
    """Raise `ConfigError` if a whole number of a dataclass is a float or a bool.

    `where` is the text before the name in the message, such as ``learn.``.
    """
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kinds = {field.type, *typing.get_args(field.type)}
        values = value if isinstance(value, tuple | list) else (value,)
        is_wrong = any(isinstance(each, bool | float) for each in values)
        if int in kinds and float not in kinds and is_wrong:
            text = abbreviate(value)
            raise ConfigError(f"{where}{field.name} is {text}, expected a whole number")


def check_settings(
    config: object,
    where: str,
    *checks: tuple[str, bool, str],
    above_zero: Iterable[str] = (),
    zero_or_above: Iterable[str] = (),
) -> None:
    """Raise `ConfigError` if a setting of an object fails a check, or is not finite and in range.

    A check has the setting's name, whether it is valid, and what is expected; `where` is the text
    before the name in the message, such as ``learn.``.
    """
    check_integers(config, where)
    ranges = [(n, 0.0 < getattr(config, n) < math.inf, "above 0") for n in above_zero]
    ranges += [(n, 0.0 <= getattr(config, n) < math.inf, "0 or above") for n in zero_or_above]
    for name, is_valid, expected in (*ranges, *checks):
        if not is_valid:
            value = abbreviate(getattr(config, name))
            raise ConfigError(f"{where}{name} is {value}, expected {expected}")


def _pieces(value: object, most: int) -> Iterator[str]:
    """Yield the parts of a repr in order, each of bounded length."""
    if isinstance(value, str | bytes | bytearray):
        yield repr(value[: most + 1])
    elif isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER_BITS:
        yield f"a whole number of {value.bit_length()} bits"
    elif isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(key, most)
            yield ": "
            yield from _pieces(item, most)
        yield "}"
    elif isinstance(value, list | tuple | set | frozenset):
        opening, closing = "[]" if isinstance(value, list) else "()"
        yield opening
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item, most)
        yield closing
    else:
        yield repr(value)[: most + 1]
