"""`run_workers`: processes that work in parallel and end together.

Each worker is a new interpreter (``spawn``) with a pipe to its parent. A worker that dies loses
only its own unpublished steps: the others stop in good order, and the parent raises. Workers notice
at their next step that their parent died (even by ``kill -9``); they publish what is whole and
exit. The stop flag is a byte of shared memory without a lock, because a lock that a killed process
held would block all others.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, TypeVar

from avtd3.store import errors
from avtd3.store.errors import Avtd3Error, WorldError

JobT = TypeVar("JobT")
ReportT = TypeVar("ReportT")
ResultT = TypeVar("ResultT")

WorkFunction = Callable[[JobT, Callable[[], bool], Callable[[ReportT], None]], ResultT]
"""``(job, should_stop, report) -> result``, a function of a module, run in the worker."""

_POLL_S = 0.2
_EXIT_WAIT_S = 10.0
_REPORT, _RESULT, _ERROR = "report", "result", "error"


def run_workers(
    work: WorkFunction[JobT, ReportT, ResultT],
    jobs: Sequence[JobT],
    *,
    should_stop: Callable[[], bool],
    on_reports: Callable[[list[ReportT | None]], None],
) -> list[ResultT]:
    """Run each job in a process of its own.

    Args:
        work: The function that does a job; must be importable by name.
        jobs: One for each process.
        should_stop: Called a few times a second; true asks all workers to stop.
        on_reports: Called with each worker's newest report, None before its first.

    Returns:
        The results, in the order of the jobs.

    Raises:
        Avtd3Error: The error that a worker raised; the first one if there were several.
        WorldError: If a worker died without an error.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue(ctypes.c_byte, 0)
    workers: list[_Worker[ReportT, ResultT]] = []
    try:
        for number, job in enumerate(jobs):
            workers.append(_Worker(context, number, work, job, stop))
        _supervise(workers, stop, should_stop, on_reports)
    finally:
        stop.value = 1
        for worker in workers:
            worker.end()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    return [worker.result for worker in workers if worker.result is not None]


class _Worker(Generic[ReportT, ResultT]):
    """The parent's side of one process."""

    def __init__(
        self,
        context: SpawnContext,
        number: int,
        work: WorkFunction[Any, ReportT, ResultT],
        job: object,
        stop: ctypes.c_byte,
    ) -> None:
        self.number = number
        self.report: ReportT | None = None
        self.result: ResultT | None = None
        self.error: Avtd3Error | None = None
        self.pipe, child_end = context.Pipe(duplex=False)
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(work, job, child_end, stop, os.getpid()), daemon=True
        )
        with child_end:  # open in the worker alone, so that its death closes the pipe
            self.process.start()

    @property
    def is_over(self) -> bool:
        return self.pipe.closed

    def receive(self) -> None:
        """Receive one message; a closed pipe means that the worker is gone."""
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self._record_exit()
            return
        if kind == _REPORT:
            self.report = content
        elif kind == _RESULT:
            self.result = content
        else:
            name, arguments = content
            self.error = getattr(errors, name)(*arguments)

    def _record_exit(self) -> None:
        self.pipe.close()
        self.process.join(_EXIT_WAIT_S)
        if self.result is None and self.error is None:
            code = self.process.exitcode
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


def _supervise(
    workers: Sequence[_Worker[ReportT, ResultT]],
    stop: ctypes.c_byte,
    should_stop: Callable[[], bool],
    on_reports: Callable[[list[ReportT | None]], None],
) -> None:
    while running := {worker.pipe: worker for worker in workers if not worker.is_over}:
        for pipe in wait(list(running), timeout=_POLL_S):
            assert isinstance(pipe, Connection)
            running[pipe].receive()
        on_reports([worker.report for worker in workers])
        if should_stop() or any(worker.error is not None for worker in workers):
            stop.value = 1


def _serve(
    work: WorkFunction[JobT, ReportT, ResultT],
    job: JobT,
    pipe: "Connection[Any, Any]",
    stop: ctypes.c_byte,
    parent: int,
) -> None:
    """Run a job in the worker's process, and report to the parent."""
    signals: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))

    def should_stop() -> bool:
        return bool(stop.value or signals or os.getppid() != parent)

    def send(kind: str, content: object) -> None:
        with contextlib.suppress(OSError):  # should_stop notices a parent that is gone
            pipe.send((kind, content))

    _use_one_thread()
    try:
        result = work(job, should_stop, lambda report: send(_REPORT, report))
    except Avtd3Error as error:
        send(_ERROR, (type(error).__name__, error.args))
    else:
        send(_RESULT, result)


def _use_one_thread() -> None:
    """Limit torch to one thread, because there already is one process for each core.

    Torch reads these variables when it is first imported, which is later than this.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
