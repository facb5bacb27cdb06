"""`Cluster`: units of work on the workers of an existing Dask cluster.

A unit is a task that runs once, as far as its results show: results are in the store, and a
unit that collects claims its place there before it publishes (`claim_segment`). So it does not
matter that Dask runs a task again when its worker is lost. The world of a worker stays open between
units. Tasks need the resource ``collector``, of which each worker should have one.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from avtd3.collect.environment import Environment
from avtd3.collect.plan import digest
from avtd3.collect.worlds import EnvironmentConfig, WorldFactory, open_environment
from avtd3.store.cluster import connect
from avtd3.store.errors import ConfigError, RoadError, UnreachableError, WorldError
from avtd3.store.files import remote_url
from avtd3.store.remote.client import Patience, open_place
from avtd3.store.remote.commit import read_if_any
from avtd3.store.render.text import plural

RESOURCE = "collector"
_PLUGIN = "avtd3-worlds"
_POLL_S = 0.2
_COUNT_S = 2.0
"""Seconds between two counts of the workers."""
_PER_WORKER = 2
"""Units in flight for each worker: one runs, one waits."""
_MOST_ATTEMPTS = {"failed": 3, "lost": 10}
"""Attempts at a unit whose world fails, and at one whose worker is lost."""
_STOP_CHECK_S, _STOP_REQUEST_S = 1.0, 5.0
"""Seconds between two looks of a unit for the file that stops it, in a directory and at a URL."""
_REGISTRATIONS = 5
"""Attempts to prepare the workers."""
_NOTES = "avtd3-notes"
"""Topic of the events by which units say what they wait for."""

OpenEnvironment = Callable[
    [EnvironmentConfig, WorldFactory], contextlib.AbstractContextManager[Environment]
]


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """The file that stops the units that are running: it exists once they should."""

    place: str
    """Path or URL of the dataset, the same on all machines."""
    key: str
    """Key of the file."""

    def is_set(self) -> bool:
        """Return whether the file exists; False if that is not known now."""
        with contextlib.suppress(UnreachableError):
            return read_if_any(open_place(self.place, Patience(seconds=0.0)), self.key) is not None
        return False

    def set(self) -> None:
        """Create the file."""
        open_place(self.place).write(self.key, b"stop")

    def clear(self) -> None:
        """Delete the file."""
        open_place(self.place).delete([self.key])


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a unit of work gets from the worker that it runs in."""

    open_environment: OpenEnvironment
    """Opens the worker's environment."""
    should_stop: Callable[[], bool]
    """Returns whether to stop."""
    note: Callable[[str], None]
    """Shows the user of the command what the unit waits for; empty for nothing."""


Work = Callable[[Any, WorkerContext], Any]
"""``(job, context) -> result``, a function of a module, run in a worker."""


class WarmWorlds:
    """The plugin of a Dask worker that keeps its environment open between units."""

    name = _PLUGIN
    idempotent = True
    """The plugin of an earlier client stays: a unit may be using its world."""

    def __init__(self) -> None:
        self._key = ""
        self._stack = contextlib.ExitStack()
        self._environment: Environment | None = None

    @contextlib.contextmanager
    def open(self, config: EnvironmentConfig, factory: WorldFactory) -> Iterator[Environment]:
        """Yield the environment of a configuration; close it if the work in it fails."""
        key = f"{factory.__module__}.{factory.__qualname__} {digest(dataclasses.asdict(config))}"
        if self._environment is None or key != self._key:
            self._close()
            opened = open_environment(config, factory)
            self._environment, self._key = self._stack.enter_context(opened), key
        try:
            yield self._environment
        except BaseException:
            self._close()
            raise

    def teardown(self, worker: object) -> None:
        """Close the environment; Dask calls this when the worker ends."""
        self._close()

    def _close(self) -> None:
        self._environment = None
        self._stack.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    key: str
    job: object
    attempts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def again(self, kind: str) -> "_Unit | None":
        """Return the unit for another attempt; None after too many."""
        count = self.attempts.get(kind, 0) + 1
        if count >= _MOST_ATTEMPTS[kind]:
            return None
        return dataclasses.replace(self, attempts={**self.attempts, kind: count})


class Cluster:
    """A Dask cluster that runs units of work; see `open_cluster`."""

    def __init__(self, client: Any, address: str) -> None:  # noqa: ANN401 - a client of Dask
        self._client, self._address = client, address
        self.workers = 0
        """Workers with the resource, at the last count."""
        self._count_at_s = 0.0
        self._running: dict[Any, _Unit] = {}
        self._results: list[Any] = []
        self._lost: list[str] = []
        self._notes: dict[str, str] = {}
        client.subscribe_topic(_NOTES, self._take_note)

    def _take_note(self, event: tuple[float, tuple[str, str]]) -> None:
        key, text = event[1]
        self._notes[key] = text

    def run(
        self,
        work: Work,
        units: Iterable[tuple[str, Any]],
        *,
        stop: Stop | None = None,
        should_stop: Callable[[], bool],
        on_results: Callable[[list[Any], str], None],
    ) -> tuple[list[Any], list[str]]:
        """Run units, given as keys and jobs, as long as there are any and nobody stops.

        Args:
            work: What to do with a job.
            units: Taken one by one, while fewer than two per worker are in flight.
            stop: Stops the units that are running, which are waited for; None not to wait for them.
            should_stop: Returns whether to stop.
            on_results: Called with the results so far, and the state of the cluster.

        Returns:
            The results, and why units were given up.

        Raises:
            Avtd3Error: A unit failed for a reason that concerns all of them.
            WorldError: The scheduler is gone.
        """
        self._results, self._lost = [], []
        left = iter(units)
        first = next(left, None)
        left = itertools.chain(() if first is None else (first,), left)
        is_over, is_stopping = first is None, False
        try:
            while self._running or not is_over:
                if should_stop():
                    if stop is None:
                        break
                    if not is_stopping:
                        stop.set()
                    is_over = is_stopping = True
                is_over = is_over or self._submit(work, left, stop)
                on_results(self._results, self._describe())
                self._take(work, stop)
        finally:
            if self._client.status == "running":
                self._client.cancel(list(self._running))
            self._running.clear()
        on_results(self._results, self._describe())
        return self._results, self._lost

    def _submit(self, work: Work, units: Iterator[tuple[str, Any]], stop: Stop | None) -> bool:
        """Start as many units as the workers need; return whether there are no more."""
        if time.monotonic() >= self._count_at_s:
            self._count_at_s = time.monotonic() + _COUNT_S
            known = self._client.scheduler_info()["workers"].values()
            self.workers = sum(bool(each["resources"].get(RESOURCE)) for each in known)
        while len(self._running) < _PER_WORKER * self.workers:
            if (unit := next(units, None)) is None:
                return True
            self._start(_Unit(key=unit[0], job=unit[1]), work, stop)
        return False

    def _start(self, unit: _Unit, work: Work, stop: Stop | None) -> None:
        attempt = sum(unit.attempts.values())
        key = f"{unit.key}-{attempt}" if attempt else unit.key
        options = {"key": key, "resources": {RESOURCE: 1}, "pure": False}
        self._running[self._client.submit(run_unit, work, unit.job, stop, **options)] = unit

    def _take(self, work: Work, stop: Stop | None) -> None:
        """Wait for a moment, and take the results of the units that have ended."""
        time.sleep(_POLL_S)
        self._check_scheduler()
        for future in [each for each in self._running if each.status != "pending"]:
            unit = self._running.pop(future)
            self._notes.pop(future.key, None)
            if future.status == "finished":
                self._results.append(future.result())
            else:
                error = future.exception() if future.status == "error" else None
                kind = self._kind_of(error)
                if (again := unit.again(kind)) is not None:
                    self._start(again, work, stop)
                else:
                    self._lost.append(f"unit {unit.key} was given up: {error or 'cancelled'}")
            future.release()

    def _kind_of(self, error: BaseException | None) -> str:
        """Return why a unit has no result, if another attempt may help; raise its error if not."""
        if isinstance(error, WorldError | RoadError | UnreachableError):
            return "failed"
        if isinstance(error, ImportError):
            raise ConfigError(
                f"a worker of {self._address} cannot import what it needs ({error}); install the "
                "same version of avtd3, and the module of your world, where the workers run"
            )
        if error is not None and type(error).__name__ != "KilledWorker":
            raise error
        return "lost"

    def _check_scheduler(self) -> None:
        if self._client.status != "running":
            raise WorldError(
                f"the Dask scheduler {self._address} is gone; start it again, then continue with "
                "--resume"
            )

    def _describe(self) -> str:
        if not self.workers:
            return (
                f"waiting for workers of {self._address} with the resource {RESOURCE}; start them "
                f"with: dask worker {self._address} --nthreads 1 --resources {RESOURCE}=1"
            )
        state = f"{plural(self.workers, 'worker')}, {plural(len(self._running), 'unit')} in flight"
        notes = tuple(self._notes.items())  # another thread adds some
        waiting = next((f"{key} is {text}" for key, text in notes if text), "")
        return f"{state}; {waiting}" if waiting else state


@contextlib.contextmanager
def open_cluster(address: str) -> Iterator[Cluster]:
    """Connect to a Dask cluster, and let its workers keep their worlds open."""
    with connect(address, "--scheduler") as client:
        from distributed.diagnostics.plugin import WorkerPlugin

        # The plugin must be a subclass of one of Dask, which is imported only here.
        kind: Any = type("AvtdWorlds", (WarmWorlds, WorkerPlugin), {})
        for attempt in range(_REGISTRATIONS):
            try:
                client.register_plugin(kind(), name=_PLUGIN)
            except OSError as error:  # a worker was lost meanwhile
                if attempt == _REGISTRATIONS - 1:
                    raise WorldError(f"the workers of {address} do not answer: {error}") from error
                time.sleep(_COUNT_S)
            else:
                break
        yield Cluster(client, address)


def run_unit(work: Work, job: object, stop: Stop | None) -> object:
    """Run a unit in a Dask worker."""
    from distributed import get_worker

    worker: Any = get_worker()
    key, next_check_s, is_stopped, noted = worker.get_current_task(), 0.0, False, ""

    def should_stop() -> bool:
        nonlocal next_check_s, is_stopped
        if stop is not None and time.monotonic() >= next_check_s:
            is_stopped = stop.is_set()
            period_s = _STOP_CHECK_S if remote_url(stop.place) is None else _STOP_REQUEST_S
            next_check_s = time.monotonic() + period_s
        return is_stopped

    def note(text: str) -> None:
        nonlocal noted
        if text != noted:
            worker.log_event(_NOTES, (key, text))
            noted = text

    worlds: WarmWorlds = worker.plugins[_PLUGIN]
    return work(job, WorkerContext(worlds.open, should_stop, note))
