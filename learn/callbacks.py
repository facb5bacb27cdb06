"""`TrainCallback`: follow a training run, or stop it."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from avtd3.learn.guards.alerts import Alert
from avtd3.learn.report import LearnProgress, LearnReport

PROGRESS_INTERVAL_S = 0.1
"""Shortest time between two calls of `TrainCallback.on_progress`, in seconds."""

Describe = Callable[[LearnProgress], LearnProgress]
"""Fills in the fields of a progress report that the caller knows."""


class TrainCallback:
    """Base class of callbacks for `train`; override the methods that you need.

    All methods are called in the training process, between updates. The run waits for them, so keep
    them short. An exception that a callback raises ends the run without saving it; return True from
    `should_stop` to end it in good order.

    Example:
        >>> class StopAtLoss(TrainCallback):
        ...     is_reached = False
        ...
        ...     def on_metrics(self, step, scalars):
        ...         self.is_reached = scalars.get("critic/loss", 1.0) < 0.01
        ...
        ...     def should_stop(self):
        ...         return self.is_reached
        >>> callback = StopAtLoss()
        >>> callback.on_metrics(100, {"critic/loss": 0.005})
        >>> callback.should_stop()
        True
    """

    def should_stop(self) -> bool:
        """Return True to save and publish the run, and to end it.

        Called before each update, and several times a second while the run waits for data.
        """
        return False

    def on_start(self, progress: LearnProgress) -> None:
        """Handle the start of the run: everything is open, and the first update is next."""

    def on_update(self, updates: int) -> None:
        """Handle an update; `updates` is the number of updates so far."""

    def on_progress(self, progress: LearnProgress) -> None:
        """Show the progress; called at most ten times a second, also while the run waits."""

    def on_metrics(self, step: int, scalars: Mapping[str, float]) -> None:
        """Handle scalars that were logged; ``docs/metrics.md`` describes them."""

    def on_checkpoint(self, path: Path) -> None:
        """Handle a checkpoint that was saved; `path` is its directory."""

    def on_publish(self, path: Path) -> None:
        """Handle a policy that was published; `path` is its file."""

    def on_alert(self, alert: Alert) -> None:
        """Handle a new alert or note of the guards."""

    def on_end(self, report: LearnReport) -> None:
        """Handle the end of the run; everything is closed."""


class ProgressCallback(TrainCallback):
    """Call one function to show the progress, and another one to ask whether to stop.

    Args:
        on_progress: Called with the progress, at most ten times a second.
        should_stop: Returns True to save and publish the run, and to end it.

    Example:
        >>> callback = ProgressCallback(lambda progress: print(progress.line()))
        >>> callback.on_progress(LearnProgress(updates=5, target=10))
        update 5 of 10
    """

    def __init__(
        self,
        on_progress: Callable[[LearnProgress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._on_progress, self._should_stop = on_progress, should_stop

    def should_stop(self) -> bool:
        """Call the second function."""
        return self._should_stop()

    def on_progress(self, progress: LearnProgress) -> None:
        """Call the first function."""
        self._on_progress(progress)


class CallbackList:
    """The callbacks of a run, and the progress that they receive."""

    def __init__(self, callbacks: Iterable[TrainCallback], *, target: int) -> None:
        self._callbacks, self._target = tuple(callbacks), target
        self._describe: list[Describe] = []
        self._next_report_s = float("-inf")

    def call(self, hook: Callable[[TrainCallback], None]) -> None:
        """Call a hook of each callback, such as ``lambda callback: callback.on_update(5)``."""
        for callback in self._callbacks:
            hook(callback)

    def should_stop(self) -> bool:
        """Return whether any callback wants to stop the run."""
        return any(callback.should_stop() for callback in self._callbacks)

    def add_source(self, describe: Describe) -> None:
        """Add a function that fills in a part of each progress report."""
        self._describe.append(describe)

    def progress(self, waiting: str = "") -> LearnProgress:
        """Return the current state of the run."""
        progress = LearnProgress(updates=0, target=self._target, waiting=waiting)
        for describe in self._describe:
            progress = describe(progress)
        return progress

    def report(self, waiting: str = "", *, now: bool = False) -> None:
        """Report progress, unless the last report was less than `PROGRESS_INTERVAL_S` ago."""
        now_s = time.monotonic()
        if now or now_s >= self._next_report_s:
            self._next_report_s = now_s + PROGRESS_INTERVAL_S
            progress = self.progress(waiting)
            self.call(lambda callback: callback.on_progress(progress))

    def report_soon(self) -> None:
        """Report progress at the next call of `report` in any case."""
        self._next_report_s = float("-inf")
