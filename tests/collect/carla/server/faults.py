"""What can be made to go wrong, while the server runs."""

import dataclasses


@dataclasses.dataclass(slots=True, kw_only=True)
class Faults:
    """The faults in force; counts begin when they are set, and nothing is wrong at first."""

    version: str = "0.9.16"
    """What the server says it is."""
    exit_after_ticks: int | None = None
    """The process ends, without an answer, on the tick after so many."""
    hang_after_ticks: int | None = None
    """No call is answered any more from the tick after so many on; 0 on the next tick."""
    hang: bool = False
    """No call is answered at all."""
    slow: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds that a call takes, by its name; ``*`` for every call."""
    camera_stops_after_frames: int | None = None
    """Cameras send nothing after so many pictures."""
    camera_delay_ticks: int = 0
    """Pictures are sent so many ticks late."""
    camera_skips_every: int = 0
    """Every so many-th picture is not sent; 0 for none."""
    camera_rows_lost: int = 0
    """Pictures lack so many of their rows."""
    cut_sensors_after_ticks: int | None = None
    """The sensors' connections are closed, once, on the tick after so many: its data is lost."""
    cut_snapshots_after_ticks: int | None = None
    """The same for the snapshots' connections."""
    lost_snapshots: int = 0
    """So many snapshots are sent to nobody, as if no subscription were live yet."""
    refuse_spawns: int = 0
    """So many vehicles are refused, as if their places were taken."""
    grow_mb_per_episode: int = 0
    """Memory lost with each camera spawned and each map loaded."""
    crash_on_map: str = ""
    """The process ends when a map whose name holds this is loaded."""
    frame_step: int = 1
    """By how much the frame number rises."""

    def change(self, changes):
        """Set some faults by name."""
        for name, value in changes.items():
            if name not in self.__dataclass_fields__:
                raise ValueError(f"fault {name!r} is unknown, expected {list(FAULTS)}")
            setattr(self, name, value)

    def is_due(self, name):
        """Count down a fault of so many ticks or frames; whether its time has come."""
        left = getattr(self, name)
        if left is None:
            return False
        if left > 0:
            setattr(self, name, left - 1)
        return left <= 0


FAULTS = tuple(field.name for field in dataclasses.fields(Faults))
