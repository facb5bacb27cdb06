"""A thread that fills the replay cache while batches are drawn from what is there already."""

import threading
from collections.abc import Generator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Filling(Generic[Item]):
    """Takes from a generator in a thread of its own; what has arrived is asked for."""

    def __init__(self, work: Generator[Item | None, None, None]) -> None:
        """Start.

        Args:
            work: Yields what arrives, and now and then None, so that it can be stopped.
        """
        self._work = work
        self._arrived: list[Item] = []
        self._fault: BaseException | None = None
        self._is_over = False
        self._is_stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="replay-filling", daemon=True)
        self._thread.start()

    @property
    def has_news(self) -> bool:
        """Whether `take` has something to give, an error or the end among it."""
        return bool(self._arrived) or self._is_over

    def take(self) -> tuple[list[Item], bool]:
        """What has arrived since the last call, and whether nothing will come after it.

        Raises:
            BaseException: What ended the work.
        """
        with self._changed:
            arrived, self._arrived = self._arrived, []
            if not arrived and self._fault is not None:
                raise self._fault
            return arrived, self._is_over and self._fault is None

    def wait(self) -> None:
        """Wait until there is something to take."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_news)

    def stop(self) -> None:
        """End the work after what is being done; safe to call twice."""
        self._is_stopped = True
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._work:
                if item is not None:
                    with self._changed:
                        self._arrived.append(item)
                        self._changed.notify_all()
                if self._is_stopped:
                    break
            self._work.close()
        except BaseException as error:  # noqa: BLE001 - whoever takes gets it
            self._fault = error
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
