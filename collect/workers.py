"""`run_jobs`: processes that work in parallel and end together.

Each worker is a new interpreter (``spawn``) with a pipe to its parent. A worker whose world fails,
or that dies, loses only its own unpublished steps, and the others continue; any other error stops
them all in good order. Workers notice at their next step that their parent died: they publish their
whole episodes, drop the one that is running, and exit. The stop flag is a byte of shared memory
without a lock, because a lock that a killed process held would block all others.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, TypeVar

from avtd3.store import errors
from avtd3.store.errors import Avtd3Error, RoadError, WorldError

JobT = TypeVar("JobT")
ReportT = TypeVar("ReportT")

WorkFunction = Callable[[JobT, Callable[[], bool], Callable[[ReportT], None]], ReportT]
"""``(job, should_stop, report) -> last report``, a function of a module, run in the worker."""

_POLL_S = 0.2
_EXIT_WAIT_S = 10.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that end a worker in good order; SLURM sends the last one before it preempts a job."""
_SIGNALS = (signal.SIGINT, *_STOP_SIGNALS)
_OWN_FAILURES = (WorldError, RoadError)
"""Errors that say something about one worker's world only."""


def run_jobs(
    work: WorkFunction[JobT, ReportT],
    jobs: Sequence[JobT],
    *,
    should_stop: Callable[[], bool],
    on_reports: Callable[[list[ReportT | None]], None],
) -> tuple[list[ReportT | None], list[str]]:
    """Run each job in a process of its own; a single job in this process."""
    if len(jobs) == 1:
        return [work(jobs[0], should_stop, lambda report: on_reports([report]))], []
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue(ctypes.c_byte, 0)
    workers: list[_Worker[ReportT]] = []
    try:
        for number, job in enumerate(jobs):
            workers.append(_Worker(context, number, work, job, stop))
        _supervise(workers, stop, should_stop, on_reports)
    finally:
        stop.value = 1
        for worker in workers:
            worker.end()
    failed = {worker.number: worker.error for worker in workers if worker.error is not None}
    for worker in workers:
        if worker.error and (len(failed) == len(workers) or worker.is_fatal):
            raise worker.error
    lost = [f"worker {number} stopped: {error}" for number, error in failed.items()]
    return [worker.report for worker in workers], lost


class _Worker(Generic[ReportT]):
    """The parent's side of one process."""

    def __init__(
        self,
        context: SpawnContext,
        number: int,
        work: WorkFunction[Any, ReportT],
        job: object,
        stop: ctypes.c_byte,
    ) -> None:
        self.number, self._stop = number, stop
        self.report: ReportT | None = None
        self.error: Avtd3Error | None = None
        self._is_done = False
        self.pipe, child_end = context.Pipe(duplex=False)
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(work, job, child_end, stop, os.getpid()), daemon=True
        )
        # The child end is open in the worker alone, so that its death closes the pipe.
        with child_end, _signals_wait():
            self.process.start()

    @property
    def is_fatal(self) -> bool:
        """Whether the worker failed for a reason that concerns all of them."""
        return self.error is not None and not isinstance(self.error, _OWN_FAILURES)

    def receive(self) -> None:
        """Receive one message; a closed pipe means that the worker is gone."""
        try:
            content, error, self._is_done = self.pipe.recv()
        except (EOFError, OSError):
            self._record_exit()
            return
        if error is None:
            self.report = content
        else:
            name, arguments = error
            self.error = getattr(errors, name)(*arguments)

    def _record_exit(self) -> None:
        self.pipe.close()
        self.process.join(_EXIT_WAIT_S)
        code = self.process.exitcode
        is_stopped = self._stop.value and code in [-number for number in _SIGNALS]
        if not (self._is_done or is_stopped):
            cause = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            self.error = WorldError(
                f"worker {self.number} (process {self.process.pid}) died with {cause}; the "
                "segments that it published are kept; continue with --resume"
            )

    def end(self) -> None:
        """Wait for the process to exit; kill it if it does not."""
        self.process.join(_EXIT_WAIT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Let a process that starts inherit a mask, so that a signal waits until it is handled."""
    resource_tracker.ensure_running()  # its own start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _supervise(
    workers: Sequence[_Worker[ReportT]],
    stop: ctypes.c_byte,
    should_stop: Callable[[], bool],
    on_reports: Callable[[list[ReportT | None]], None],
) -> None:
    while running := {worker.pipe: worker for worker in workers if not worker.pipe.closed}:
        for pipe in wait(list(running), timeout=_POLL_S):
            assert isinstance(pipe, Connection)
            running[pipe].receive()
        on_reports([worker.report for worker in workers])
        if should_stop() or any(worker.is_fatal for worker in workers):
            stop.value = 1


def _serve(
    work: WorkFunction[JobT, ReportT],
    job: JobT,
    pipe: "Connection[Any, Any]",
    stop: ctypes.c_byte,
    parent: int,
) -> None:
    """Run a job in the worker's process, and report to the parent."""
    received = _receive_signals()

    def should_stop() -> bool:
        if os.getppid() != parent:
            # Nobody waits for the running episode: it is collected again, and whole.
            raise SystemExit("the collection's main process is gone")
        return bool(stop.value or received)

    def send(report: object, error: tuple[str, list[str]] | None, *, is_done: bool) -> None:
        with contextlib.suppress(OSError):  # should_stop notices a parent that is gone
            pipe.send((report, error, is_done))

    # Torch reads these when it is imported. There already is one process for each core.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    try:
        last = work(job, should_stop, lambda report: send(report, None, is_done=False))
    except Avtd3Error as error:
        # A user's own subclass is not known to the parent.
        kinds = (kind.__name__ for kind in type(error).__mro__)
        name = next(name for name in kinds if hasattr(errors, name))
        send(None, (name, [str(argument) for argument in error.args]), is_done=True)
    else:
        send(last, None, is_done=True)
    gc.freeze()  # the parent waits for the exit, which would search all objects for garbage


def _receive_signals() -> list[int]:
    """Handle the signals of a worker; return the list of those that will have asked it to stop."""
    received: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, lambda number, _: received.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    return received
