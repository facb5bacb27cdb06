"""`Faults`: failures that tests can inject while the server runs."""

import dataclasses
from typing import Any


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
    late_calls_every: int = 0
    """Every n-th call that expects no answer is carried out only after the next tick; 0 for none.
    A real server handles the messages of a client in any order."""
    late_controls_every: int = 0
    """The same for controls in batches, whose answers are sent at once."""
    control_changes: int = 0
    """Number of ticks that drive with another steering than commanded."""
    float_settings: bool = False
    """Settings are returned as float32 numbers."""
    nan_snapshots: int = 0
    """Number of snapshots in which the cars of clients have no position."""
    refuse_settings_after: int | None = None
    """All settings after this many are refused, with an error."""
    refuse_loads: int = 0
    """Number of maps that are not loaded, with an error."""
    late_events_ticks: int = 0
    """Collisions are reported this many ticks late, with the frame in which they happened."""
    contact: list[Any] = dataclasses.field(default_factory=list)
    """A collision that is reported on every tick: type of the other actor, and impulse."""
    sinks_m: float = 0.0
    """Cars stand this far below the road."""
    camera_repeats: bool = False
    """Each picture is sent once more, with its old frame number, before the next one."""
    crlf: bool = False
    """The map's text has other ends of lines than the text that was sent."""
    foreign_ticks_every: int = 0
    """Every n-th tick is followed by one that nobody asked for; 0 for none."""
    ignore_physics: bool = False
    """`apply_physics_control` has no effect."""
    lights: list[Any] = dataclasses.field(default_factory=list)
    """Traffic lights: x, y and yaw of the lane in degrees, where their stop lines are."""
    light_state: int = 2
    """State of all lights: red 0, yellow 1, green 2."""

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
