"""`Pace`: how fast a session learns, and how long its batches take."""

import time


class Pace:
    """The clock of a session.

    Until the first update nothing is timed; waits for data are left out of the session's pace.
    """

    def __init__(self) -> None:
        self.done = 0
        """Updates of this session."""
        self._started_s = time.monotonic()
        self._paced_from_s: float | None = None
        self._line_s = self._started_s
        self._line_done = 0
        self._sampling_s = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of this session, in seconds."""
        return time.monotonic() - self._started_s

    @property
    def updates_per_second(self) -> float | None:
        """Updates per second of this session, from its first one on; None before that."""
        if self._paced_from_s is None or not self.done:
            return None
        return self.done / max(time.monotonic() - self._paced_from_s, 1e-9)

    def begin(self) -> None:
        """Say that an update begins."""
        if self._paced_from_s is None:
            self._paced_from_s = self._line_s = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Take a wait for data out of the pace."""
        if self._paced_from_s is not None:
            self._paced_from_s += seconds

    def sampled(self, since_s: float) -> None:
        """Say that a batch was drawn, begun at a time of the monotonic clock."""
        self._sampling_s += time.monotonic() - since_s

    def line(self) -> dict[str, float]:
        """Metrics since the line of the log before, which this call ends."""
        now_s = time.monotonic()
        passed_s = max(now_s - self._line_s, 1e-9)
        found = {
            "run/updates_per_second": (self.done - self._line_done) / passed_s,
            "run/sampler_wait": self._sampling_s / passed_s,
        }
        self._line_s, self._line_done, self._sampling_s = now_s, self.done, 0.0
        return found
