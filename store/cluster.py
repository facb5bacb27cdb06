"""`Cluster`: units of work on the workers of an existing Dask cluster.

A unit is a task that Dask may run more than once: when its worker is lost, it runs again elsewhere.
So a unit returns what can be computed again, or it claims its place in the store before it
publishes (`avtd3.collect.plan.claim_segment`). `fetched_segment` copies one segment of a URL for a
unit that reads.
"""

import contextlib
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    SEGMENT_ERRORS,
    ConfigError,
    DatasetError,
    FormatVersionError,
    MissingPackageError,
    RoadError,
    SegmentCorruptError,
    SegmentNotFoundError,
    UnreachableError,
    WorldError,
    install_command,
)
from avtd3.store.files import remote_url
from avtd3.store.format.layout import GROUP_FILE, SEGMENTS
from avtd3.store.remote.client import LocalPlace, Patience, check_reachable, open_place
from avtd3.store.remote.commit import read_if_any
from avtd3.store.remote.log import LogEntry
from avtd3.store.remote.transfer import (
    THREADS,
    SegmentCopier,
    Stopped,
    copy_maps,
    create_dataset,
    list_segments,
)
from avtd3.store.render.text import plural

_POLL_S = 0.2
_COUNT_S = 2.0
"""Seconds between two counts of the workers."""
_PER_WORKER, _PER_THREAD = 2, 8
"""Units in flight for each worker with the resource (one runs, one waits); without a resource, for
each thread, whose units may end before the next look."""
_MOST_ATTEMPTS = {"failed": 3, "lost": 10}
"""Attempts at a unit whose world fails, and at one whose worker is lost."""
_STOP_CHECK_S, _STOP_REQUEST_S = 1.0, 5.0
"""Seconds between two looks of a unit for the file that stops it, in a directory and at a URL."""
_NOTES = "avtd3-notes"
"""Topic of the events by which units say what they wait for."""


@contextlib.contextmanager
def connect(address: str, setting: str) -> Iterator[Any]:
    """Connect to the scheduler of a Dask cluster; errors name the setting that gives its address.

    Raise MissingPackageError without the package ``distributed``, ConfigError if nothing answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            f"{setting} is {address!r}, which needs Dask's scheduler: {install_command('cluster')}"
        ) from error
    open_client: Any = Client  # only some versions have types
    try:
        client = open_client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting} {address!r} does not answer as a Dask scheduler ({error}); expected an "
            "address such as tcp://host:8786, where `dask scheduler` runs"
        ) from error
    with client:
        yield client


def check_shared(url: str) -> None:
    """Raise if the workers of a cluster cannot see a URL."""
    if url.startswith("memory://"):
        raise ConfigError(
            f"{url} is a place within one process, which the workers of --scheduler do not see; "
            "give a directory that all of them see, or a bucket"
        )


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

    should_stop: Callable[[], bool]
    """Returns whether to stop."""
    note: Callable[[str], None]
    """Shows the user of the command what the unit waits for; empty for nothing."""


Work = Callable[[Any, WorkerContext], Any]
"""``(job, context) -> result``, a function of a module, run in a worker."""


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
    """A Dask cluster that runs units of work.

    Args:
        client: What `connect` yields.
        address: Address of the scheduler.
        resource: What a worker needs one of for a unit; empty for one of its threads.
        most: Most units in flight; 0 for two per worker, or eight per thread.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - a client of Dask
        address: str,
        *,
        resource: str = "",
        most: int = 0,
    ) -> None:
        self._client, self._address = client, address
        self._resource, self._most = resource, most
        self.workers = 0
        """Workers with the resource, at the last count."""
        self._limit = most
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
            on_results: Called with the results so far, of which it may take some out, and the state
                of the cluster.

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
            # Some versions of Dask name five workers only, unless asked for all.
            known = self._client.scheduler_info(n_workers=-1)["workers"].values()
            if self._resource:
                known = [each for each in known if each["resources"].get(self._resource)]
            self.workers = len(known)
            usual = _PER_WORKER * self.workers
            if not self._resource:
                usual = _PER_THREAD * sum(each["nthreads"] for each in known)
            self._limit = self._most or usual
        while len(self._running) < self._limit:
            if (unit := next(units, None)) is None:
                return True
            self._start(_Unit(key=unit[0], job=unit[1]), work, stop)
        return False

    def _start(self, unit: _Unit, work: Work, stop: Stop | None) -> None:
        attempt = sum(unit.attempts.values())
        key = f"{unit.key}-{attempt}" if attempt else unit.key
        resources = {self._resource: 1} if self._resource else None
        options = {"key": key, "resources": resources, "pure": False}
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
            kind, option = "", ""
            if name := self._resource:
                kind, option = f" with the resource {name}", f" --resources {name}=1"
            return (
                f"waiting for workers of {self._address}{kind}; start them with: dask worker "
                f"{self._address} --nthreads 1{option}"
            )
        state = f"{plural(self.workers, 'worker')}, {plural(len(self._running), 'unit')} in flight"
        notes = tuple(self._notes.items())  # another thread adds some
        waiting = next((f"{key} is {text}" for key, text in notes if text), "")
        return f"{state}; {waiting}" if waiting else state


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

    try:
        return work(job, WorkerContext(should_stop, note))
    except (ConfigError, UnreachableError) as error:
        if type(error) not in (ConfigError, UnreachableError):
            raise
        raise type(error)(f"on the worker {worker.address}: {error}") from None


def copy_outline(url: str, path: Path, should_stop: Callable[[], bool]) -> list[str] | None:
    """Make a dataset that shows which segments a URL has; return why some cannot be copied.

    Return None if stopped.

    Segments are empty directories. Only those that claim to replace others, and these, are whole,
    so that the claims can be checked.

    Raises:
        DatasetError: There is no dataset at the URL.
        UnreachableError: The URL cannot be reached.
    """
    place, local = open_place(url, Patience(should_stop=should_stop)), LocalPlace(path)
    check_reachable(place)
    if (group := read_if_any(place, GROUP_FILE)) is None:
        raise DatasetError(f"there is no dataset at {url}; check the URL")
    create_dataset(place, local, group)
    try:
        with SegmentCopier(place, local, should_stop=should_stop) as copier:
            segments = _claims(copier, sorted(list_segments(place)[0]))
            claimed = {name: segments.keys() & claims for name, claims in segments.items()}
            compared = {name for name, those in claimed.items() if those}.union(*claimed.values())
            for name in segments.keys() - compared:
                (path / SEGMENTS / name).mkdir()
            return [text for name in sorted(compared) if (text := _copy(copier, name))]
    except Stopped:
        return None


def _copy(copier: SegmentCopier, name: str) -> str:
    """Copy a segment unless it was removed; return why it cannot be copied, if so."""
    try:
        if (found := copier.manifest(name)) is not None:
            copier.copy(*found)
    except (SegmentCorruptError, SegmentNotFoundError, FormatVersionError) as error:
        return str(error)
    return ""


def _claims(copier: SegmentCopier, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what each segment claims to replace, by name; segments without a manifest are none."""

    def read(name: str) -> tuple[str, ...] | None:
        if copier.should_stop():
            raise Stopped
        with contextlib.suppress(SegmentCorruptError, FormatVersionError):
            found = copier.manifest(name)
            return None if found is None else LogEntry.of(found[0], 0.0).replaces
        return ()  # copying it fails later, with the reason

    with ThreadPoolExecutor(THREADS, "avtd3-outline") as pool:
        found = zip(names, pool.map(read, names), strict=True)
        return {name: claimed for name, claimed in found if claimed is not None}


@contextlib.contextmanager
def fetched_segment(url: str, name: str, on_wait: Callable[[str], None]) -> Iterator[Path]:
    """Yield a temporary dataset with one segment of a URL, unless it was removed, and its maps.

    Raises:
        SegmentCorruptError, SegmentNotFoundError, FormatVersionError: It cannot be copied.
        UnreachableError: The URL cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="avtd3-audit-") as folder:
        path = Path(folder) / "data"
        place, local = open_place(url, Patience(on_wait=on_wait)), LocalPlace(path)
        create_dataset(place, local, place.read(GROUP_FILE))
        with SegmentCopier(place, local) as copier:
            if (found := copier.manifest(name)) is not None:
                copier.copy(*found)
                with contextlib.suppress(*SEGMENT_ERRORS):  # the audit finds why
                    if maps := Dataset.open(path).open_segment(name).map_digests():
                        copy_maps(place, local, maps)
        on_wait("")
        yield path
