"""`Faults`: failures that tests can inject while the server runs."""

import dataclasses


@dataclasses.dataclass(slots=True, kw_only=True)
class Faults:
    """The active faults; none at first. Counts start when a fault is set."""

    version: str = "0.9.16"
    """Version that the server reports."""
    exit_after_ticks: int | None = None
    """The process ends without an answer, on the tick after this many."""
    hang_after_ticks: int | None = None
    """No call is answered from the tick after this many on; 0 for the next tick."""
    hang: bool = False
    """No call is answered."""
    slow: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds that a call takes, by name; ``*`` for all calls."""
    camera_stops_after_frames: int | None = None
    """Cameras send nothing after this many pictures."""
    camera_delay_ticks: int = 0
    """Pictures are sent this many ticks late."""
    camera_skips_every: int = 0
    """Every n-th picture is not sent; 0 for none."""
    camera_rows_lost: int = 0
    """Number of rows that pictures lack."""
    cut_sensors_after_ticks: int | None = None
    """The connections of the sensors are closed once, on the tick after this many."""
    cut_snapshots_after_ticks: int | None = None
    """The connections of the snapshots are closed once, on the tick after this many."""
    lost_snapshots: int = 0
    """Number of snapshots that are not sent, as if no subscription were live yet."""
    refuse_spawns: int = 0
    """Number of vehicles that are refused, as if their places were occupied."""
    grow_mb_per_episode: int = 0
    """Memory that leaks with each camera and each map, in megabytes."""
    crash_on_map: str = ""
    """The process ends when a map whose name contains this is loaded."""
    frame_step: int = 1
    """Increment of the frame number."""

    def change(self, changes):
        """Set some faults by name."""
        for name, value in changes.items():
            if name not in self.__dataclass_fields__:
                raise ValueError(f"fault {name!r} is unknown, expected {list(FAULTS)}")
            setattr(self, name, value)

    def is_due(self, name):
        """Count down a fault; return whether it is due."""
        left = getattr(self, name)
        if left is None:
            return False
        if left > 0:
            setattr(self, name, left - 1)
        return left <= 0


FAULTS = tuple(field.name for field in dataclasses.fields(Faults))
