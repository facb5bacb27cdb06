"""Threads that share the work on one batch."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

MOST_THREADS = 4
"""Threads that decode a batch; never more than the process has cores."""


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Crew:
    """A few threads, the caller's own one of them."""

    def __init__(self, threads: int | None = None) -> None:
        """Start them when they are first needed.

        Args:
            threads: How many, at least 1; None for the process's cores, at most `MOST_THREADS`.
        """
        self.threads = threads or min(MOST_THREADS, usable_cores())
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1), "replay-decode")

    def share(self, count: int, work: Callable[[int, int, int], None]) -> None:
        """Do things ``0:count`` in equal shares.

        Args:
            count: How many things.
            work: Called once in each thread, with the thread's number and its share's two ends.

        Raises:
            Exception: What `work` has raised, once all are done.
        """
        cuts = [count * number // self.threads for number in range(self.threads + 1)]
        jobs = [
            self._pool.submit(work, number, cuts[number], cuts[number + 1])
            for number in range(1, self.threads)
        ]
        try:
            work(0, 0, cuts[1])
        finally:
            for job in jobs:
                job.result()

    def close(self) -> None:
        """End the threads; safe to call twice."""
        self._pool.shutdown()
