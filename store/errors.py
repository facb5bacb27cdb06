"""The exceptions avtd3 raises on purpose.

Every message says what was expected, what was found, where, and what mends it::

    Avtd3Error
    ├── ConfigError (ValueError)                  an unknown key or an impossible value
    ├── SpecError (ValueError)                    data of another shape or meaning
    ├── FormatVersionError (ValueError)           a file of a format this version cannot read
    ├── DatasetError (OSError)                    a directory that is no dataset, or not writable
    │   └── NoSegmentsError                       a dataset that holds nothing yet
    ├── SegmentNotFoundError (FileNotFoundError)  a segment removed while it was wanted
    ├── SegmentCorruptError (ValueError)          torn, edited or flipped bytes in a segment
    ├── CheckpointError (ValueError)              a torn or foreign checkpoint or policy
    ├── RoadError (ValueError)                    an .xodr file that is not a usable road network
    │   └── RouteError                            one route that cannot be driven on its roads
    ├── WorldError (RuntimeError)                 the simulator failed
    │   └── WorldLost                             it vanished, stalled or crashed: try again
    ├── StorageError (OSError)                    the disk is full or cannot be written
    └── TrainingHalted (RuntimeError)             a guard stopped the training
"""


class Avtd3Error(Exception):
    """Base of every error that avtd3 raises on purpose."""


class ConfigError(Avtd3Error, ValueError):
    """A configuration key that does not exist or a value it cannot take."""


class SpecError(Avtd3Error, ValueError):
    """Data whose shape, names or meaning differ from the spec it is held against."""


class FormatVersionError(Avtd3Error, ValueError):
    """A file written in a format version that this version does not read."""


class DatasetError(Avtd3Error, OSError):
    """A path that is not a dataset, or one that cannot be used as such."""


class NoSegmentsError(DatasetError):
    """A dataset in which nothing has been published yet."""


class SegmentNotFoundError(Avtd3Error, FileNotFoundError):
    """A segment that was removed or quarantined since the snapshot was taken."""


class SegmentCorruptError(Avtd3Error, ValueError):
    """A segment whose bytes are not the bytes that were published."""


class CheckpointError(Avtd3Error, ValueError):
    """A checkpoint or a published policy that is torn, altered or foreign."""


class RoadError(Avtd3Error, ValueError):
    """A road description that is empty, not OpenDRIVE, or has no lane to drive on."""


class RouteError(RoadError):
    """One route that cannot be driven on its roads; others may be."""


class WorldError(Avtd3Error, RuntimeError):
    """A simulator that failed, vanished or answered nonsense."""


class WorldLost(WorldError):  # noqa: N818 - an outcome, not a fault
    """A simulator that is gone for now; a fresh start of it may go on.

    Attributes:
        reason: ``server_lost`` (it does not answer), ``sensor_stall`` (it ticks, but a sensor
            gives nothing), ``tick_timeout`` (the client is blocked), ``client_crash`` (the
            client's process died), ``spawn_refused`` (every place tried is taken) or
            ``server_away`` (no server could be reached in all the time that was allowed for it:
            there is no use in trying again).
    """

    def __init__(self, message: str, reason: str = "server_lost") -> None:
        # Both are `args`, so that copies and other processes get the reason, too.
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class StorageError(Avtd3Error, OSError):
    """A disk that is full or a directory that cannot be written."""


class TrainingHalted(Avtd3Error, RuntimeError):  # noqa: N818 - an outcome, not a fault
    """A guard stopped the training; the message says which and why."""
